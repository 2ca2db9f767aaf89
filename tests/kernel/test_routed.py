"""Networks of `type: routed`, with real packets: no bridge, a route and permanent neighbours for each member."""

import re

import pytest

from tests.support import need
from tests.support.host import SERVER, SERVER6, PrivateHost

DEFINITION = """
networks:
  flat: {type: routed, subnets: [10.50.0.0/20, "fd00:50::/64"], masquerade: true}
containers:
  one: {interfaces: {network: flat, addresses: [10.50.0.5, "fd00:50::5"]}}
  two: {interfaces: flat}
"""
STRICT = """
sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1
sysctl -qw net.ipv4.conf.all.arp_ignore=1
"""


def test_members_reach_the_gateway_each_other_and_beyond_the_uplink(host: PrivateHost) -> None:
    host.sh(STRICT)
    host.write("a.yaml", DEFINITION)
    report = host.reconcile().report
    assert report["converged"] and not report["failed"]
    assert host.addresses("eth0", "one") == ["10.50.0.5/32", "fd00:50::5/128"]
    two, two6 = (a.split("/")[0] for a in host.addresses("eth0", "two"))
    for address in ("10.50.0.1", "fd00:50::1", two, two6, SERVER, SERVER6):
        assert host.ping("one", address), address
    assert host.ping("", "10.50.0.5") and host.ping("", "fd00:50::5")
    links = host.ip("link", "show")
    assert not [link for link in links if link.get("linkinfo", {}).get("info_kind") == "bridge"]
    # No ARP, no NDP: every entry is permanent, on both ends, and there is no link-local address.
    for netns in ("", "one"):
        entries = host.ip("neigh", "show", netns=netns)
        assert {n["state"][0] for n in entries if n["dev"] != "eth0" or netns} == {"PERMANENT"}
    assert "fe80" not in host.run("ip", "-n", "one", "addr").out
    assert host.reconcile().changes == []


DRIFT = {
    "host end down": "ip link set {end} down",
    "host route": "ip route del 10.50.0.5/32",
    "host route's source": "ip route replace 10.50.0.5 dev {end} proto 0x72",
    "host route, IPv6": "ip -6 route del fd00:50::5/128 dev {end}",
    "host's neighbour": "ip neigh del 10.50.0.5 dev {end}",
    "host's wrong neighbour": (
        "ip neigh replace 10.50.0.5 lladdr 02:00:00:00:00:09 dev {end} nud permanent protocol 0x72"
    ),
    "gateway": "ip addr del 10.50.0.1/32 dev lo",
    "gateway, IPv6": "ip addr del fd00:50::1/128 dev lo",
    "gateway's neighbour inside": "ip -n one neigh del 10.50.0.1 dev eth0",
    "inner end down": "ip -n one link set eth0 down",
    "inner MAC": "ip -n one link set eth0 address 02:00:00:00:00:77",
    "host MAC": "ip link set {end} address 02:00:00:00:00:78",
    "route to the gateway": "ip -n one route del 10.50.0.1",
    "device group": "ip link set {end} group 7",
    "a bridge of somebody": "ip link add br9 type bridge; ip link set {end} master br9",
    "too many": "ip route add 10.50.3.3/32 dev {end} proto 0x72",
    "deleted": "ip link del {end}",
    "namespace gone": "ip netns del one",
}


@pytest.mark.parametrize("kind", DRIFT)
def test_drift_of_a_routed_member_is_repaired(bare: PrivateHost, kind: str) -> None:
    bare.write("a.yaml", DEFINITION)
    bare.reconcile()
    bare.sh(DRIFT[kind].format(end=bare.host_end("one", "eth0")["ifname"]))
    repair = bare.reconcile()
    assert repair.changes and repair.report["converged"]
    assert bare.reconcile().changes == []
    for address in ("10.50.0.1", "fd00:50::1"):
        assert bare.ping("one", address), address
    assert bare.ping("", "10.50.0.5") and bare.ping("", "fd00:50::5")
    assert "src 10.50.0.1" in bare.run("ip", "route", "get", "10.50.0.5").out


def test_everything_goes_when_it_is_no_longer_declared(bare: PrivateHost) -> None:
    bare.write("b.yaml", "containers: {k: {mode: none}}\n")
    bare.write("a.yaml", DEFINITION)
    bare.reconcile()
    assert "10.50.0.1/32" in bare.addresses("lo")
    bare.drop("a.yaml")
    assert bare.reconcile("--once", "--max-removals", "all").report["converged"]
    assert bare.addresses("lo") == ["127.0.0.1/8"] or "10.50.0.1/32" not in bare.addresses("lo")
    assert "proto 0x72" not in bare.run("ip", "route").out + bare.run("ip", "-6", "route").out
    assert bare.ours()["links"] == [] and bare.ours()["netns"] == ["k"]
    assert bare.reconcile().changes == []


def test_a_network_changes_its_type_both_ways(bare: PrivateHost) -> None:
    bridged = DEFINITION.replace("type: routed, ", "")
    bare.write("a.yaml", bridged)
    bare.reconcile()
    before = bare.addresses("eth0", "two")[0].split("/")[0]
    with bare.process("one"):
        bare.write("a.yaml", DEFINITION)
        change = bare.reconcile()
        assert change.report["converged"]
        assert any(o["interrupts"] for o in change.report["operations"])
        assert bare.ping("one", before) and bare.reconcile().changes == []
        assert bare.run("ip", "link", "show", "flat", check=False).code != 0
        bare.write("a.yaml", bridged)
        assert bare.reconcile().report["converged"] and bare.reconcile().changes == []
        assert bare.ping("one", before) and bare.ping("one", "fd00:50::1")
    assert "10.50.0.1/32" not in bare.addresses("lo")
    assert bare.addresses("eth0", "two")[0] == f"{before}/20"


def test_the_gateway_can_change(bare: PrivateHost) -> None:
    bare.write("a.yaml", DEFINITION)
    bare.reconcile()
    bare.write(
        "a.yaml", DEFINITION.replace("masquerade: true", "gateways: [10.50.9.9, 'fd00:50::9']")
    )
    assert bare.reconcile().report["converged"] and bare.reconcile().changes == []
    assert bare.ping("one", "10.50.9.9") and bare.ping("one", "fd00:50::9")
    assert "10.50.0.1/32" not in bare.addresses("lo")


def test_isolated_members_and_liars_are_dropped(either: PrivateHost) -> None:
    host = either
    host.write(
        "a.yaml",
        """
networks:
  apart: {type: routed, subnets: [10.51.0.0/24, "fd00:51::/64"], isolate_members: true}
  inner: {type: routed, subnets: 10.52.0.0/24, internal: true}
  other: {subnets: 10.53.0.0/24}
containers:
  a1: {interfaces: {network: apart, addresses: [10.51.0.11, "fd00:51::11"]}}
  a2: {interfaces: {network: apart, addresses: [10.51.0.12, "fd00:51::12"]}}
  i1: {interfaces: {network: inner, addresses: 10.52.0.11}}
  i2: {interfaces: {network: inner, addresses: 10.52.0.12}}
  o1: {interfaces: {network: other, addresses: 10.53.0.11}}
""",
    )
    assert host.reconcile().report["converged"]
    assert host.ping("a1", SERVER) and host.ping("a1", "10.51.0.1")
    assert not host.ping("a1", "10.51.0.12") and not host.ping("a1", "fd00:51::12")
    assert host.ping("i1", "10.52.0.12") and not host.ping("i1", SERVER)
    assert not host.ping("o1", "10.51.0.11") and not host.ping("a1", "10.53.0.11")
    # An address that is not its own: dropped on the way in, in both families.
    host.sh(
        "ip -n a1 addr add 10.51.0.99/32 dev eth0; ip -n a1 addr add fd00:51::99/128 dev eth0 nodad"
    )
    assert not host.ping("a1", "10.51.0.1", "-I", "10.51.0.99")
    # What it claims is then a member's own: the answer would go to that one.
    host.sh("ip -n a1 addr add 10.51.0.12/32 dev eth0")
    assert not host.ping("a1", "10.51.0.1", "-I", "10.51.0.12")
    if host.firewall == "nftables":
        raw = host.run("nft", "list", "chain", "inet", "runcnet", "raw6").out
        assert "fib saddr . iif oif missing drop" in raw
    else:
        raw = host.run("ip6tables-legacy", "-t", "raw", "-S").out
        assert "-m rpfilter --invert" in raw
    # The world does not know the way in; `inbound` says what enters if it did.
    host.sh("ip -n internet route add 10.51.0.0/24 via 192.0.2.2")
    assert not host.ping("internet", "10.51.0.11")
    assert host.reconcile().changes == []


def test_two_networks_on_one_container_answer_where_they_were_asked(host: PrivateHost) -> None:
    host.write(
        "a.yaml",
        """
networks:
  flat: {type: routed, subnets: 10.50.0.0/24}
  second: {type: routed, subnets: 10.54.0.0/24, inbound: open, masquerade: false}
  side: {subnets: 10.55.0.0/24}
containers:
  both: {interfaces: [side, {network: second, addresses: 10.54.0.9}, flat]}
  far: {interfaces: second}
""",
    )
    host.sh("ip -n internet route add 10.54.0.0/24 via 192.0.2.2")
    assert host.reconcile().report["converged"]
    assert host.ping("internet", "10.54.0.9") and host.ping("far", "10.54.0.9")
    assert host.ping("both", SERVER) and host.reconcile().changes == []


@pytest.mark.parametrize(
    "text,message",
    [
        ("{type: routed, subnets: 10.1.0.0/24, bridge: b}", "has no bridge (drop the key)"),
        (
            "{type: routed, subnets: 10.1.0.0/24, external: true}",
            "has no bridge that could be external",
        ),
        ("{type: routed, subnets: 10.1.0.0/24, gateways: none}", "through its gateway"),
        (
            "{type: routed, subnets: 10.1.0.0/24, routes: {to: 10.9.0.0/16, via: 10.1.0.7}}",
            "is not the gateway of the routed network n",
        ),
    ],
)
def test_what_a_routed_network_cannot_have_is_said(
    bare: PrivateHost, text: str, message: str
) -> None:
    bare.write("a.yaml", f"networks: {{n: {text}}}\n")
    run = bare.reconcile(check=False)
    assert run.code == 2 and message in run.report["rejected"][0]["message"]


def test_a_bridge_full_of_members_names_the_way_out(bare: PrivateHost) -> None:
    text = (
        "networks: {n: {subnets: 10.0.0.0/16}}\ncontainers: {w: {replicas: 1024, interfaces: n}}\n"
    )
    bare.write("a.yaml", text)
    run = bare.reconcile(check=False)
    assert run.code == 2 and "type: routed" in run.report["rejected"][0]["message"]


def test_a_chain_of_others_that_drops_is_named_with_what_lets_a_routed_network_pass(
    host: PrivateHost,
) -> None:
    need.program("nft")
    host.sh(
        "nft add table inet other; nft 'add chain inet other forward "
        "{ type filter hook forward priority 0; policy drop; }'"
    )
    host.write("a.yaml", DEFINITION)
    note = next(n for n in host.reconcile().report["notes"] if "network flat" in n)
    assert not host.ping("one", SERVER)
    for command in re.findall(r"nft insert rule [^;)]*accept", note):
        host.sh(command)
    assert host.ping("one", SERVER)
    assert host.reconcile().report["notes"] == []


def test_hundreds_are_torn_down_together(bare: PrivateHost) -> None:
    """One by one a veth pair takes the kernel some 20 ms: the host's ends are not deleted by hand."""
    bare.write(
        "a.yaml",
        "networks: {n: {type: routed, subnets: 10.0.0.0/16}, b: {subnets: 10.1.0.0/16}}\n"
        "containers: {w: {replicas: 300, interfaces: n}, v: {replicas: 300, interfaces: b}}\n",
    )
    bare.reconcile()
    with bare.process("w-7"):
        bare.runcnet("teardown", "--yes")
        assert bare.ours()["links"] == [] and bare.ours()["netns"] == []
    assert "10.0.0.1/32" not in bare.addresses("lo")


def test_a_gateway_that_a_lost_record_does_not_name_goes(bare: PrivateHost) -> None:
    far = "  far: {type: routed, subnets: 10.60.0.0/20}\n"
    members = "containers: {one: {interfaces: flat}, two: {interfaces: far}}\n"
    nets = "networks:\n  flat: {type: routed, subnets: 10.50.0.0/20}\n"
    bare.write("a.yaml", nets + far + members)
    bare.reconcile()
    bare.sh("rm /run/runcnet/record.db*")
    bare.write("a.yaml", nets + far.replace("type: routed, ", "") + members)
    assert bare.reconcile().report["converged"]
    assert "10.60.0.1/32" not in bare.addresses("lo") and "10.50.0.1/32" in bare.addresses("lo")
    assert bare.ping("two", "10.60.0.1")
    assert bare.reconcile().changes == []


@pytest.mark.parametrize("version", [4, 6])
def test_a_routed_network_moves_to_another_subnet(host: PrivateHost, version: int) -> None:
    """IPv4 routes go with the last address of a link, IPv6 ones stay, and so do IPv4 ones where
    a workload has given the link one more address."""
    subnet = {4: "10.50.0.0/24", 6: "'fd00:50::/64'"}[version]
    text = (
        f"networks: {{flat: {{type: routed, subnets: {subnet}}}}}\n"
        "containers: {one: {interfaces: flat}, two: {interfaces: flat}}\n"
    )
    host.write("a.yaml", text)
    host.reconcile()
    host.sh("ip -n one addr add 10.99.0.1/24 dev eth0")
    with host.process("one"):
        host.write("a.yaml", text.replace("10.50.", "10.66.").replace("fd00:50:", "fd00:66:"))
        assert host.reconcile().report["converged"]
    assert host.reconcile().changes == []
    for netns in ("", "one", "two"):
        lead = ["-n", netns] if netns else []
        for shown in (["route"], ["-6", "route"], ["neigh"], ["addr"]):
            found = host.run("ip", *lead, *shown).out
            assert "10.50.0." not in found and "fd00:50:" not in found, (netns, shown, found)
    there = {4: ("10.66.0.1", "10.66.0.2", SERVER), 6: ("fd00:66::1", "fd00:66::2", SERVER6)}
    for address in there[version]:
        own = {4: "10.66.0.2", 6: "fd00:66::2"}[version]
        assert host.ping("one", address, "-I", own) and host.ping("two", address), address
    assert "10.99.0.1/24" in host.addresses("eth0", "one")


def test_a_foreign_route_to_a_members_address_is_named_and_left_alone(bare: PrivateHost) -> None:
    bare.write("a.yaml", DEFINITION)
    bare.reconcile()
    foreign = ["10.50.0.5 via 192.0.2.1 dev eth0", "fd00:50::5 via 2001:db8:ffff::1 dev eth0"]
    bare.sh(f"ip route replace {foreign[0]}")
    bare.write(
        "b.yaml", "containers: {late: {interfaces: {network: flat, addresses: 10.50.0.9}}}\n"
    )
    bare.sh("ip route add 10.50.0.9 via 192.0.2.1")
    run = bare.reconcile(check=False)
    assert run.code == 1 and run.changes == []
    for object_ in ("container/one", "container/late"):
        message = next(p["message"] for p in run.report["problems"] if p["object"] == object_)
        assert "through eth0 is not runcnet's" in message
    routes = bare.run("ip", "route").out
    assert foreign[0] in routes and "10.50.0.9 via 192.0.2.1" in routes
    bare.sh("ip route del 10.50.0.5; ip route del 10.50.0.9")
    assert bare.reconcile().report["converged"] and bare.ping("", "10.50.0.9")
    bare.sh(f"ip -6 route del fd00:50::5; ip -6 route add {foreign[1]}")
    run = bare.reconcile(check=False)
    assert run.code == 1 and "fd00:50::5/128" in run.report["problems"][0]["message"]
