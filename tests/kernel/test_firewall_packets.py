"""The firewall seen by packets: who reaches whom, and from which address."""

from functools import partial

import pytest

from reconciler.core.policy import Policy
from tests.kernel.town import BOTH, TOWN, ask, network, passes, ruleset, saved, source_seen
from tests.support.host import PrivateHost, wait_for


@pytest.fixture
def town(either: PrivateHost) -> PrivateHost:
    """The host with two networks and two worlds outside, forwarding, and no rules yet."""
    host = either
    host.sh(TOWN)
    assert source_seen(host, "red1", "internet") == "10.1.0.11"
    for outside in ("internet", "stranger"):
        for one in ("red1", "red2", "blue1"):
            # eth0's link-local address is tentative for a second or two.
            wait_for(partial(source_seen, host, one, outside, 6), what=f"{one} to {outside}")
    return host


def test_members_reach_out_translated_and_only_replies_come_in(town: PrivateHost) -> None:
    ask(town, "replace")
    assert source_seen(town, "red1", "internet") == "192.0.2.2"
    assert source_seen(town, "red1", "internet", 6) == "fd01::11"
    assert source_seen(town, "red1", "stranger") == "203.0.113.1"
    assert not passes(town, "internet", "red1")
    assert not passes(town, "stranger", "red1")


def test_networks_do_not_reach_each_other_but_members_do(town: PrivateHost) -> None:
    ask(town, "replace")
    assert not passes(town, "red1", "blue1")
    assert not passes(town, "blue1", "red1")
    assert source_seen(town, "red1", "red2") == "10.1.0.11"
    assert passes(town, "red1", "red2")


def test_the_guard_keeps_the_host_from_routing_for_others(town: PrivateHost) -> None:
    ask(town, "replace", Policy(networks=BOTH.networks))
    assert passes(town, "stranger", "internet")
    ask(town, "replace")
    assert not passes(town, "stranger", "internet")
    assert not passes(town, "internet", "stranger")


def test_the_guard_lets_a_foreign_bridge_switch(town: PrivateHost) -> None:
    # red0 is nobody's network here: what it switches is none of the router's business.
    town.sh("sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1")
    ask(town, "replace", Policy(networks=(network("blue"),), guards=(4, 6)))
    assert passes(town, "red1", "red2")
    assert not passes(town, "red1", "internet")


def test_inbound_open_lets_the_uplink_in_and_nobody_else(town: PrivateHost) -> None:
    opened = network("red", inbound="open", uplinks=("eth0",), masquerade=())
    ask(town, "replace", Policy(networks=(network("blue"), opened)))
    assert source_seen(town, "internet", "red1") == "192.0.2.1"
    assert passes(town, "internet", "red1")
    assert not passes(town, "stranger", "red1")
    assert not passes(town, "blue1", "red1")
    assert source_seen(town, "red1", "internet") == "10.1.0.11"
    assert not passes(town, "red1", "stranger")


def test_inbound_open_without_an_uplink_lets_every_outside_in(town: PrivateHost) -> None:
    ask(town, "replace", Policy(networks=(network("blue"), network("red", inbound="open"))))
    assert passes(town, "internet", "red1")
    assert passes(town, "stranger", "red1")
    assert not passes(town, "blue1", "red1")


@pytest.mark.parametrize("bridged", [0, 1])
def test_internal_members_reach_each_other_and_nothing_else(
    town: PrivateHost, bridged: int
) -> None:
    town.sh(
        f"sysctl -qw net.bridge.bridge-nf-call-iptables={bridged} "
        f"net.bridge.bridge-nf-call-ip6tables={bridged}"
    )
    ask(town, "replace", Policy(networks=(network("blue"), network("red", internal=True))))
    assert passes(town, "red1", "red2")
    for outside in ("internet", "stranger", "blue1"):
        assert not passes(town, "red1", outside)
        assert not passes(town, outside, "red1")


def test_isolated_members_do_not_meet_at_the_gateway(town: PrivateHost) -> None:
    ask(town, "replace", Policy(networks=(network("red", isolate_members=True),)))
    # The way around an isolated port: a host route through the gateway.
    for one, other in (("red1", 12), ("red2", 11)):
        town.sh(f"ip -n {one} route add 10.1.0.{other}/32 via 10.1.0.1")
        town.sh(f"ip -n {one} -6 route add fd01::{other}/128 via fd01::1")
    assert not passes(town, "red1", "red2")
    assert passes(town, "red1", "internet")


def test_the_administrators_chain_comes_first_and_is_never_written(town: PrivateHost) -> None:
    ask(town, "replace")
    if town.firewall == "nftables":
        town.run("nft", "add rule inet runcnet user iifname red0 oifname blue0 accept")
    else:
        for program in ("iptables-legacy", "ip6tables-legacy"):
            town.run(program, "-A", "RUNCNET-USER", "-i", "red0", "-o", "blue0", "-j", "ACCEPT")
    before = saved(town)
    assert ask(town, "look")["differences"] == []
    assert passes(town, "red1", "blue1")
    ask(town, "replace", Policy(networks=(network("blue"), network("red", inbound="open"))))
    assert passes(town, "red1", "blue1")
    ask(town, "remove")
    if town.firewall == "nftables":
        left = " ".join(ruleset(town).split())
        rule = 'iifname "red0" oifname "blue0" accept'
        assert left == f"table inet runcnet {{ chain user {{ {rule} }} }}"
        return
    after = saved(town)
    assert [line for line in before if "-A RUNCNET-USER" in line] == [
        line for line in after if "RUNCNET" in line and not line.startswith(":")
    ]


def test_an_ipv6_rule_meets_its_link_alone(town: PrivateHost) -> None:
    # python-iptables' mask compares one bit of each character, and takes eth2 for eth0.
    town.sh("ip link set port0 down; ip link set port0 name eth2; ip link set eth2 up")
    town.sh("ip addr replace fd09::1/64 dev eth2 nodad")
    wait_for(lambda: source_seen(town, "stranger", "red1", 6), what="the renamed link")
    opened = network("red", inbound="open", uplinks=("eth0",), masquerade=())
    ask(town, "replace", Policy(networks=(opened,)))
    assert source_seen(town, "internet", "red1", 6) == "2001:db8:ffff::1"
    assert source_seen(town, "stranger", "red1", 6) is None
