"""Beside firewalls of others: chains that drop what no rule accepts, and tools that rewrite rules.

outside (internet) --- eth0 [host] --- red (bridge): web, mate
                                   --- blue (bridge): other
                                   --- green (routed): far
"""

import itertools
import re
from collections.abc import Iterator
from functools import partial

import pytest

from tests.kernel.town import ruleset, saved
from tests.support import need
from tests.support.host import SERVER, SERVER6, PrivateHost, wait_for
from tests.support.talk import reached

HOST = {4: "192.0.2.2", 6: "2001:db8:ffff::2"}
OUTSIDE = {4: SERVER, 6: SERVER6}
WEB = {4: "10.1.0.10", 6: "fd01::10"}
MATE = {4: "10.1.0.11", 6: "fd01::11"}
FAR = {4: "10.3.0.10", 6: "fd03::10"}
FILE = """
networks:
  red: {subnets: [10.1.0.0/24, "fd01::/64"], egress: {deny: [203.0.113.0/24, "2001:db8:7::/64"]}}
  blue: {subnets: [10.2.0.0/24, "fd02::/64"]}
  green: {type: routed, subnets: [10.3.0.0/24, "fd03::/64"]}
containers:
  web:
    interfaces: {network: red, addresses: [10.1.0.10, "fd01::10"]}
    ports: ["8080:80", "8080:80/udp"]
  mate: {interfaces: {network: red, addresses: [10.1.0.11, "fd01::11"]}}
  other: {interfaces: blue}
  far:
    interfaces: {network: green, addresses: [10.3.0.10, "fd03::10"]}
    ports: "9080:80"
"""
DOCKER = """
for p in PROGRAMS; do
    $p -N DOCKER-USER; $p -N DOCKER-FORWARD; $p -N DOCKER-CT
    $p -A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    $p -A DOCKER-FORWARD -j DOCKER-CT
    $p -A DOCKER-FORWARD -i docker0 -j ACCEPT
    $p -A FORWARD -j DOCKER-USER
    $p -A FORWARD -j DOCKER-FORWARD
    $p -P FORWARD DROP
done
"""
"""What Docker leaves of its rules in a filter table."""
VARIANTS = {
    "legacy": "iptables-legacy ip6tables-legacy",
    "nft": "iptables-nft ip6tables-nft",
    "both": "iptables-legacy ip6tables-legacy iptables-nft ip6tables-nft",
}


def state(host: PrivateHost) -> list[str]:
    """All rules of everybody, but for counters, empty chains and what says where a table begins."""
    lines = saved(host)
    for program in ("iptables-nft-save", "ip6tables-nft-save"):
        lines += [line.split(" [")[0] for line in host.run(program).out.splitlines()]
    shown = [
        line
        for line in lines
        if not line.startswith(("#", "*", "COMMIT"))
        and not (line.startswith(":") and line.endswith(" ACCEPT"))
    ]
    return [*shown, re.sub(r"packets \d+ bytes \d+", "", ruleset(host))]


@pytest.fixture(
    scope="module",
    params=list(itertools.product(["iptables", "nftables"], VARIANTS)),
    ids="-".join,
)
def town(request: pytest.FixtureRequest) -> Iterator[PrivateHost]:
    """All of that beside something like Docker, from the first pass to teardown."""
    need.program("nft")
    private = PrivateHost()
    try:
        private.firewall, variant = request.param
        # To look at the legacy tables creates them.
        state(private)
        private.sh(DOCKER.replace("PROGRAMS", VARIANTS[variant]))
        before = state(private)
        private.write("a.yaml", FILE)
        run = private.reconcile()
        assert run.report["converged"] and not [
            note for note in run.report["notes"] if "will drop" in note
        ]
        private.sh("ip -n internet route add 10.0.0.0/8 via 192.0.2.2")
        private.sh("ip -n internet -6 route add fd00::/8 via 2001:db8:ffff::2")
        private.sh("ip -n internet address add 203.0.113.1/24 dev lo")
        private.sh("ip -n internet address add 2001:db8:7::1/64 dev lo nodad")
        for name in ("web", "far"):
            # eth0's link-local address is tentative for a second or two.
            to = (OUTSIDE[6], 80)
            wait_for(partial(reached, private, name, to, server="internet", port=80), what=name)
        yield private
        assert private.reconcile("--once", "--check").code == 0
        private.runcnet("teardown", "--yes")
        assert state(private) == before
    finally:
        private.close()


@pytest.mark.parametrize("version", [4, 6])
def test_what_the_policy_accepts_passes(town: PrivateHost, version: int) -> None:
    for client in ("web", "far"):
        assert reached(town, client, (OUTSIDE[version], 80), server="internet", port=80)
    for client in ("internet", "mate", "other", "far"):
        for protocol in ("tcp", "udp"):
            to = (HOST[version], 8080)
            assert reached(town, client, to, server="web", port=80, protocol=protocol), client
    assert reached(town, "internet", (HOST[version], 9080), server="far", port=80)
    assert reached(town, "web", (MATE[version], 80), server="mate", port=80)


@pytest.mark.parametrize("version", [4, 6])
def test_what_it_refuses_is_refused(town: PrivateHost, version: int) -> None:
    refused = [
        ("internet", WEB[version], "web"),
        ("other", WEB[version], "web"),
        ("far", WEB[version], "web"),
        ("web", FAR[version], "far"),
        ("internet", FAR[version], "far"),
        ("web", {4: "203.0.113.1", 6: "2001:db8:7::1"}[version], "internet"),
    ]
    for client, address, server in refused:
        assert not reached(town, client, (address, 80), server=server, port=80), (client, server)


def test_the_jump_stands_behind_the_administrators_chain_alone(town: PrivateHost) -> None:
    for program in ("iptables-legacy", "iptables-nft"):
        rules = town.run(program, "-S", "FORWARD").out.splitlines()
        targets = [line.split(" -j ")[1] for line in rules if " -j " in line]
        if "DOCKER-USER" in targets:
            assert targets == ["DOCKER-USER", "RUNCNET-FORWARD", "DOCKER-FORWARD"]
        else:
            assert targets in ([], ["RUNCNET-FORWARD"])
