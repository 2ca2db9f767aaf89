"""What a workload can do from inside its own namespace, and must not gain by it."""

import json
import stat
import sys
from pathlib import Path

import pytest

from reconciler.host import rtnl
from tests.support.host import PrivateHost, wait_for

ADVERT = Path(__file__).resolve().parents[1] / "support" / "advert.py"
EVERYBODY = "33:33:00:00:00:01"
NEAREST_BRIDGE = "01:80:c2:00:00:0e"
"""A bridge hands frames to that address to the host on the port itself, not on the bridge."""
NETWORKS = {
    "IPv4 only": "routed: {type: routed, subnets: 10.50.0.0/24}\n  bridged: {subnets: 10.51.0.0/24}",
    "both": 'routed: {type: routed, subnets: [10.50.0.0/24, "fd00:50::/64"]}\n'
    '  bridged: {subnets: [10.51.0.0/24, "fd00:51::/64"]}',
}


def _learned(host: PrivateHost, netns: str, mac: str) -> list[str]:
    """What the host takes from an advertisement. It is handled before `send` returns, by a veth."""
    host.run("ip", "netns", "exec", netns, sys.executable, str(ADVERT), "eth0", mac)
    routes = host.run("ip", "-6", "route").out + host.run("ip", "-6", "addr").out
    return [line for line in routes.splitlines() if "bad1" in line]


@pytest.mark.parametrize("accept", ["1", "2"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_no_member_becomes_the_hosts_router(bare: PrivateHost, kind: str, accept: str) -> None:
    """CVE-2020-10749. On an IPv4-only host accept_ra 1 is enough, for it does not forward IPv6."""
    bare.sh(f"sysctl -qw net.ipv6.conf.default.accept_ra={accept}")
    bare.write(
        "a.yaml",
        f"networks:\n  {NETWORKS[kind]}\n"
        "containers: {one: {interfaces: routed}, two: {interfaces: bridged}}\n",
    )
    bare.reconcile()
    attacks = [("one", EVERYBODY), ("two", EVERYBODY), ("two", NEAREST_BRIDGE)]
    for netns, mac in attacks:
        assert _learned(bare, netns, mac) == [], (netns, mac)
    ends = [bare.host_end(c, "eth0")["ifname"] for c in ("one", "two")]
    for name in ["bridged", *ends]:
        path = f"net/ipv6/conf/{name}/accept_ra"
        assert bare.run("sysctl", "-n", path).out == "0\n"
        # The attack works where nothing guards against it; the next pass does.
        bare.sh(f"sysctl -qw {path}=2")
    netns, mac = attacks[0]
    wait_for(lambda: _learned(bare, netns, mac), what="a host that believes")
    repair = bare.reconcile()
    assert sum("accept_ra to 0" in change for change in repair.changes) == 3
    assert bare.reconcile().changes == []


def test_a_digest_says_nothing_without_its_key() -> None:
    path = "/proc/self/ns/net"
    one, again, other = (rtnl.scan([path], key=bytes([n]) * 16)[0] for n in (1, 1, 2))
    assert one.digest == again.digest and one.digest != other.digest
    assert [link.digest for link in one.links] == [link.digest for link in again.links]
    assert all(a.digest != b.digest for a, b in zip(one.links, other.links, strict=True))
    assert any(link.digest >> 32 for link in one.links)


def test_the_secret_of_the_digests_is_nobody_elses(bare: PrivateHost) -> None:
    bare.write("a.yaml", "containers: {k: {mode: none}}\n")
    bare.reconcile()
    modes = bare.run("stat", "-c", "%a", "/run/runcnet/record.db").out
    assert stat.S_IMODE(int(modes, 8)) == 0o600


def test_links_inside_are_numbered_above_what_modules_put_there(bare: PrivateHost) -> None:
    """A kernel with ipip, sit and such puts a device of each into every new namespace."""
    bare.write(
        "a.yaml", "networks: {n: {subnets: 10.0.0.0/24}}\ncontainers: {k: {interfaces: [n]}}\n"
    )
    bare.reconcile()
    assert bare.link("eth0", "k")["ifindex"] == 64
    bare.sh("ip -n k link add one type veth peer name two")
    assert bare.link("one", "k")["ifindex"] < 64


def test_what_a_namespace_says_of_itself_is_not_believed_of_another(bare: PrivateHost) -> None:
    """Without the record the marks must speak, and what is inside is written by a workload."""
    text = (
        "networks: {n: {subnets: 10.0.0.0/24}}\n"
        "containers: {evil: {interfaces: n}, web: {interfaces: n, netns: zzz}}\n"
    )
    bare.write("a.yaml", text)
    bare.reconcile()
    before = bare.addresses("eth0", "zzz"), bare.addresses("eth0", "evil")
    bare.sh("ip -n evil link set lo alias runcnet:web; rm /run/runcnet/record.db*")
    with bare.process("zzz"):
        assert bare.reconcile().changes == ["container/evil: set lo alias runcnet:evil"]
        assert (bare.addresses("eth0", "zzz"), bare.addresses("eth0", "evil")) == before


def test_a_bridge_forgets_behind_which_port_a_mac_was(bare: PrivateHost) -> None:
    """What was learned holds for five minutes, and who got the MAC may have nothing to say."""
    text = (
        "networks: {n: {subnets: 10.0.0.0/24}}\n"
        "containers:\n"
        '  one: {interfaces: {network: n, addresses: none, mac: "%s"}}\n'
        '  two: {interfaces: {network: n, addresses: none, mac: "%s"}}\n'
    )
    macs = ("02:00:00:00:00:01", "02:00:00:00:00:02")

    def learned() -> dict[str, str]:
        found = json.loads(bare.run("bridge", "-j", "fdb", "show", "br", "n").out)
        return {entry["mac"]: entry["ifname"] for entry in found if entry["mac"] in macs}

    bare.write("a.yaml", text % macs)
    bare.reconcile()
    ends = [bare.host_end(name, "eth0")["ifname"] for name in ("one", "two")]
    for name in ("one", "two"):
        _learned(bare, name, EVERYBODY)
    assert learned() == dict(zip(macs, ends, strict=True))
    bare.write("a.yaml", text % macs[::-1])
    assert bare.reconcile().report["converged"]
    assert learned().get(macs[0]) != ends[0] and learned().get(macs[1]) != ends[1]
