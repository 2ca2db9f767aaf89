"""Each kind of drift, made by hand; one pass mends it, with only the operations that it takes."""

import contextlib
import signal
import sys

import pytest

from tests.support.host import PrivateHost, wait_for

DEFINITION = """
networks:
  runc0: {subnets: [176.10.0.0/16, "fd00:1::/64"]}
  side: {subnets: 10.9.0.0/24}
containers:
  web:
    interfaces:
      - {network: runc0, addresses: [176.10.0.5, "fd00:1::5"]}
      - {network: side, addresses: 10.9.0.5}
    routes: {to: 10.77.0.0/16, via: 176.10.0.9}
    sysctls: {net.core.somaxconn: 1234}
  other: {interfaces: runc0}
"""
END = (
    "$(ip -o link show type veth | sed -n 's/^[0-9]*: \\([^@]*\\)@.*/\\1/p' | while read n; do "
    "if ip link show $n | grep -q /web/eth0; then echo $n; fi; done)"
)

INSIDE = {
    "lo down": ("ip -n web link set lo down", ["container/web: set lo up"]),
    "lo's mark": ("ip -n web link set lo alias x", ["container/web: set lo alias runcnet:web"]),
    "address": (
        "ip -n web addr del 10.9.0.5/24 dev eth1",
        [
            "container/web: add 10.9.0.5/24 to eth1",
            "container/web: add route 10.9.0.0/24 dev eth1 table 29185",
            "container/web: add route default via 10.9.0.1 dev eth1 table 29185",
        ],
    ),
    "IPv6 address": (
        "ip -n web addr del fd00:1::5/64 dev eth0",
        ["container/web: add fd00:1::5/64 to eth0"],
    ),
    "default route": (
        "ip -n web route del default",
        ["container/web: add route default via 176.10.0.1 dev eth0"],
    ),
    "wrong default route of ours": (
        "ip -n web route replace default via 176.10.0.3 proto 0x72",
        [
            "container/web: remove route default via 176.10.0.3 dev eth0",
            "container/web: add route default via 176.10.0.1 dev eth0",
        ],
    ),
    "declared route": (
        "ip -n web route del 10.77.0.0/16",
        ["container/web: add route 10.77.0.0/16 via 176.10.0.9 dev eth0"],
    ),
    "all routes of a link": (
        "ip -n web route flush dev eth0",
        [
            "container/web: add route 176.10.0.0/16 dev eth0 src 176.10.0.5",
            "container/web: add route default via 176.10.0.1 dev eth0",
            "container/web: add route 10.77.0.0/16 via 176.10.0.9 dev eth0",
        ],
    ),
    "all IPv6 routes of a link": (
        "ip -n web -6 route flush dev eth0",
        [
            "container/web: add route fd00:1::/64 dev eth0",
            "container/web: add route fe80::/64 dev eth0",
            "container/web: add route default via fd00:1::1 dev eth0",
        ],
    ),
    "rule": (
        "ip -n web rule del from 10.9.0.5",
        ["container/web: add rule from 10.9.0.5/32 lookup 29185"],
    ),
    "sysctl": (
        "ip netns exec web sysctl -qw net.core.somaxconn=77",
        ["container/web: set net.core.somaxconn to 1234"],
    ),
    "ping groups": (
        "ip netns exec web sysctl -qw net.ipv4.ping_group_range='1 0'",
        ["container/web: set net.ipv4.ping_group_range to 0 2147483647"],
    ),
    "address of ours too many": (
        "ip -n other addr flush dev lo; ip -n web link set eth1 mtu 1300",
        ["container/web: set eth1 mtu 1500"],
    ),
}  # fmt: skip
HOST = {
    "host end down": (f"ip link set {END} down", "up"),
    "host end's MTU": (f"ip link set {END} mtu 1400", "mtu 1500"),
    "host end's MAC": (f"ip link set {END} address 02:00:00:00:00:99", "address "),
    "host end's mark": (f"ip link set {END} alias nobody", "alias runcnet:runc0/web/eth0"),
    "host end's bridge": (f"ip link set {END} nomaster", "master runc0"),
    "another bridge": (f"ip link set {END} master side", "master runc0"),
    "a route of ours too many": (
        f"ip route add 10.1.2.3/32 dev {END} proto 0x72",
        "remove route 10.1.2.3/32",
    ),
    "host end's name": (f"n={END}; ip link set $n down; ip link set $n name zzz", "rename zzz to"),
}
NETWORK = {
    "bridge down": (
        "ip link set side down",
        [
            "network/side: set side up, type bridge mcast_snooping 1",
            "container/web: add neighbour 10.9.0.5 at",
        ],
    ),
    "bridge's MTU": ("ip link set side mtu 1400", ["network/side: set side mtu 1500"]),
    "bridge's mark": (
        "ip link set side alias x",
        ["network/side: set side alias runcnet:side"],
    ),
    "gateway": (
        "ip addr del 10.9.0.1/24 dev side",
        ["network/side: add 10.9.0.1/24 to side", "container/web: add neighbour 10.9.0.5 at"],
    ),
    "bridge's routes": (
        "ip route flush dev runc0; ip -6 route flush dev runc0",
        [
            "network/runc0: add route 176.10.0.0/16 dev runc0 src 176.10.0.1",
            "network/runc0: add route fd00:1::/64 dev runc0",
            "network/runc0: add route fe80::/64 dev runc0",
        ],
    ),
    "forwarding": ("sysctl -qw net.ipv4.ip_forward=0", ["host: set net/ipv4/ip_forward to 1"]),
}


@pytest.mark.parametrize("kind", [*INSIDE, *NETWORK])
def test_drift_is_repaired_with_only_what_it_takes(bare: PrivateHost, kind: str) -> None:
    bare.write("a.yaml", DEFINITION)
    assert bare.reconcile().report["converged"]
    script, expected = {**INSIDE, **NETWORK}[kind]
    bare.sh(script)
    repair = bare.reconcile()
    assert len(repair.changes) == len(expected), repair.changes
    assert all(c.startswith(e) for c, e in zip(repair.changes, expected, strict=True))
    assert repair.report["converged"]
    assert bare.reconcile().changes == []


@pytest.mark.parametrize("kind", HOST)
def test_a_host_end_is_repaired(bare: PrivateHost, kind: str) -> None:
    bare.write("a.yaml", DEFINITION)
    bare.reconcile()
    script, words = HOST[kind]
    bare.sh(script)
    repair = bare.reconcile()
    # A port that comes back is told of anew.
    changes = [c for c in repair.changes if "tell the bridge of" not in c]
    assert len(changes) == 1 and words in changes[0], repair.changes
    assert bare.reconcile().changes == []
    assert bare.ping("web", "176.10.0.1")


def test_a_link_that_is_down_comes_back_with_addresses_and_routes(bare: PrivateHost) -> None:
    bare.write("a.yaml", DEFINITION)
    bare.reconcile()
    bare.sh("ip -n web link set eth0 down")
    bare.reconcile()
    assert set(bare.addresses("eth0", "web")) == {"176.10.0.5/16", "fd00:1::5/64"}
    assert bare.ping("web", "176.10.0.1") and bare.ping("web", "fd00:1::1")
    assert bare.reconcile().changes == []


def test_a_deleted_veth_comes_back_as_it_was(bare: PrivateHost) -> None:
    bare.write("a.yaml", DEFINITION)
    bare.reconcile()
    mac = bare.link("eth0", "web")["address"]
    bare.sh(f"ip link del {END}")
    bare.reconcile()
    assert bare.link("eth0", "web")["address"] == mac
    assert bare.ping("web", "176.10.0.1")
    assert bare.reconcile().changes == []


def test_what_the_kernel_routes_to_other_links_stands_beside_it(bare: PrivateHost) -> None:
    """Each link has a route of its own to fe80::/64: one put back must not take another's place."""
    bare.write("a.yaml", DEFINITION.replace("10.9.0.0/24", '[10.9.0.0/24, "fd00:2::/64"]'))
    bare.reconcile()
    before = bare.run("ip", "-6", "route").out
    bare.sh("ip -6 route flush dev runc0")
    bare.reconcile()
    assert sorted(bare.run("ip", "-6", "route").out.split("\n")) == sorted(before.split("\n"))


@pytest.mark.parametrize("then", ["true", "rm /run/runcnet/record.db*"])
def test_a_host_end_that_left_the_host_is_made_anew(bare: PrivateHost, then: str) -> None:
    bare.write("a.yaml", DEFINITION)
    bare.reconcile()
    end = bare.host_end("web", "eth0")
    bare.sh(f"ip netns add elsewhere; ip link set {end['ifname']} netns elsewhere; {then}")
    with bare.process("web"):
        assert bare.reconcile().report["converged"]
        assert bare.ping("web", "176.10.0.1") and bare.reconcile().changes == []
    assert bare.host_end("web", "eth0")["ifname"] == end["ifname"]
    assert end["ifname"] not in bare.run("ip", "-n", "elsewhere", "link").out


def test_a_workloads_own_veth_in_the_place_of_ours_is_left_alone(bare: PrivateHost) -> None:
    bare.write("a.yaml", DEFINITION)
    bare.reconcile()
    bare.sh(
        "ip -n web link del eth0; ip netns add elsewhere;"
        "ip -n web link add eth0 type veth peer name far; ip -n web link set far netns elsewhere"
    )
    run = bare.reconcile(check=False)
    assert "eth0 is a veth that is not runcnet's" in run.report["problems"][0]["message"]
    assert "far" in bare.run("ip", "-n", "elsewhere", "link").out


def test_the_record_does_not_grow_with_what_is_repaired(bare: PrivateHost) -> None:
    bare.write("a.yaml", DEFINITION)
    for _ in range(3):
        bare.reconcile()
        bare.sh("ip -n web link del eth0; ip -n other link del eth0")
    bare.reconcile()
    count = "import sqlite3; print(*sqlite3.connect('/run/runcnet/record.db').execute("
    count += "'SELECT count(*) FROM end').fetchone())"
    assert bare.run(sys.executable, "-c", count).out == "3\n"


def test_a_deleted_namespace_comes_back_with_its_addresses(bare: PrivateHost) -> None:
    bare.write("a.yaml", DEFINITION)
    bare.reconcile()
    before = bare.addresses("eth0", "other")
    bare.sh("ip netns del other")
    repair = bare.reconcile()
    assert [c.split(":")[0] for c in repair.changes] == ["container/other"]
    assert bare.addresses("eth0", "other") == before
    assert bare.reconcile().changes == []


def test_a_deleted_bridge_comes_back_with_its_ports(bare: PrivateHost) -> None:
    bare.write("a.yaml", DEFINITION)
    bare.reconcile()
    bare.sh("ip link del runc0")
    bare.reconcile()
    assert bare.ping("web", "176.10.0.1")
    assert bare.reconcile().changes == []


FIREWALL = {
    "flushed": "iptables-legacy -F RUNCNET-FORWARD; iptables-legacy -t nat -F RUNCNET-POSTROUTING",
    "jump gone": "iptables-legacy -D FORWARD 1",
    "jump twice": "iptables-legacy -A FORWARD -j RUNCNET-FORWARD",
    "rule gone": "iptables-legacy -D RUNCNET-FORWARD 2",
    "rule twice": "iptables-legacy -A RUNCNET-FORWARD -o runc0 -j ACCEPT",
    "order": "r=$(iptables-legacy -S RUNCNET-FORWARD | sed -n 3p); iptables-legacy -D RUNCNET-FORWARD 2;"
    " eval iptables-legacy $r",
    "chain gone": "iptables-legacy -t nat -F POSTROUTING; iptables-legacy -t nat -F RUNCNET-POSTROUTING;"
    " iptables-legacy -t nat -X RUNCNET-POSTROUTING",
    "all gone": "iptables-legacy -F; iptables-legacy -X; iptables-legacy -t nat -F",
}  # fmt: skip


@pytest.mark.parametrize("kind", FIREWALL)
def test_rules_come_back(host: PrivateHost, kind: str) -> None:
    host.write(
        "a.yaml",
        "networks: {runc0: {subnets: 176.10.0.0/16}}\ncontainers: {web: {interfaces: runc0}}\n",
    )
    host.reconcile()
    host.sh("iptables-legacy -N MINE; iptables-legacy -A FORWARD -j MINE")
    before = host.ours()["rules"]
    host.sh(FIREWALL[kind])
    repair = host.reconcile()
    assert [c.split(":")[0] for c in repair.changes] == ["firewall"]
    assert host.ours()["rules"] == before
    assert host.reconcile().changes == []
    if kind != "all gone":
        assert "-j MINE" in host.run("iptables-legacy", "-S", "FORWARD").out


def test_what_a_workload_made_inside_is_left_alone(bare: PrivateHost) -> None:
    bare.write("a.yaml", DEFINITION)
    bare.reconcile()
    bare.sh(
        "ip -n web link add vpn type bridge; ip -n web addr add 10.200.0.1/24 dev vpn;"
        "ip -n web link set vpn up; ip -n web addr add 176.10.0.200/32 dev eth0;"
        "ip -n web route add 10.88.0.0/16 dev vpn; ip -n web rule add from 10.200.0.0/24 lookup 77"
    )
    assert bare.reconcile().changes == []
    assert "176.10.0.200/32" in bare.addresses("eth0", "web")
    bare.sh("ip -n web route replace default dev vpn")
    run = bare.reconcile(check=False)
    assert run.code == 1 and run.changes == []
    assert "not runcnet's" in run.report["problems"][0]["message"]
    status = bare.runcnet("status", "web", "--json", check=False).report
    assert status["containers"][0]["state"] == "differs"


@pytest.mark.parametrize("way", ["ip netns del web", "umount -l /run/netns/web"])
def test_a_path_unmounted_under_a_process_is_bound_again(bare: PrivateHost, way: str) -> None:
    bare.write("a.yaml", DEFINITION)
    bare.reconcile()
    with bare.process("web", "ping", "-i0.2", "176.10.0.1") as ping:
        inode = bare.run("stat", "-Lc%i", f"/proc/{ping.pid}/ns/net").out
        bare.sh(way)
        repair = bare.reconcile()
        assert len(repair.changes) == 1 and "bind /run/netns/web again" in repair.changes[0]
        assert bare.run("stat", "-Lc%i", "/run/netns/web").out == inode
        assert ping.stdout
        ping.stdout.readline()
        wait_for(lambda: "bytes from" in ping.stdout.readline(), what="the ping to go on")
    assert bare.reconcile().changes == []


@pytest.mark.parametrize("served", [False, True], ids=["once", "daemon"])
def test_the_mount_point_of_an_unmounted_path_goes_with_its_container(
    bare: PrivateHost, *, served: bool
) -> None:
    """What others left beside it stays: nobody knows whose it is."""
    bare.write("n.yaml", "networks: {n: {subnets: 10.1.0.0/24}}\n")
    file = bare.write("a.yaml", "containers: {a: {interfaces: n, netns: x}, b: {interfaces: n}}\n")
    only_b = "containers: {b: {interfaces: n}}\n"
    with bare.daemon("--resync", "3600") if served else contextlib.nullcontext() as daemon:
        bare.reconcile()
        if daemon:
            daemon.child.send_signal(signal.SIGSTOP)
        bare.sh("touch /run/netns/foreign; chmod 0 /run/netns/foreign; umount -l /run/netns/x")
        bare.write(file.name, only_b)
        if daemon:
            daemon.child.send_signal(signal.SIGCONT)
        else:
            bare.reconcile()
        wait_for(lambda: "x" not in bare.sh("ls /run/netns").out.split(), 15.0)
        wait_for(lambda: "10.1.0.2 " not in bare.sh("ip neigh show nud permanent").out)
    assert {"b", "foreign"} <= set(bare.sh("ls /run/netns").out.split())
    assert bare.reconcile().changes == []


def test_a_routed_host_end_leaves_a_bridge_that_a_small_pass_does_not_look_at(
    bare: PrivateHost,
) -> None:
    text = "networks: {far: {type: routed, subnets: 10.1.0.0/24}, red: {subnets: 10.2.0.0/24}}\n"
    bare.write("n.yaml", text)
    bare.write("a.yaml", "containers: {a: {interfaces: far}, b: {interfaces: red}}\n")
    with bare.daemon("--resync", "3600"):
        wait_for(lambda: bare.run("ip", "netns", "exec", "b", "true", check=False).code == 0)
        wait_for(lambda: bare.ping("a", "10.1.0.1"))
        bare.sh(f"ip link set {bare.host_end('a', 'eth0')['ifname']} master red")
        wait_for(lambda: "master" not in bare.host_end("a", "eth0"))
    assert bare.reconcile().changes == []


def test_mount_points_go_with_all_that_is_owned(bare: PrivateHost) -> None:
    """By teardown, where a container has no namespace any more, and when the record was lost."""
    text = "networks: {n: {subnets: 10.1.0.0/24}}\ncontainers: {a: {interfaces: n}, b: {interfaces: n}}\n"
    path = bare.write("a.yaml", text)
    bare.reconcile()
    bare.sh("rm /run/runcnet/record.db*")
    bare.reconcile()
    bare.sh("umount -l /run/netns/a")
    bare.write(path.name, text.replace("a: {interfaces: n}", "a: {mode: host}"))
    bare.reconcile()
    assert "a" not in bare.sh("ls /run/netns").out.split()
    bare.sh("umount -l /run/netns/b")
    bare.runcnet("teardown", "--yes")
    assert "b" not in bare.sh("ls /run/netns").out.split()


@pytest.mark.parametrize("served", [False, True], ids=["once", "daemon"])
def test_an_inner_end_on_the_host_is_not_in_the_way_of_a_new_one(
    bare: PrivateHost, *, served: bool
) -> None:
    bare.write(
        "a.yaml", "networks: {n: {subnets: 10.1.0.0/24}}\ncontainers: {a: {interfaces: n}}\n"
    )
    script = (
        "ip -n a link set eth0 down; ip -n a link set eth0 name yy0; "
        "ip -n a link set yy0 netns $$; ip netns del a"
    )
    with bare.daemon("--resync", "3600") if served else contextlib.nullcontext() as daemon:
        bare.reconcile()
        if daemon:
            daemon.child.send_signal(signal.SIGSTOP)
        bare.sh(script)
        if daemon:
            daemon.child.send_signal(signal.SIGCONT)
        else:
            bare.reconcile()
        said = daemon.log if daemon else ""
        wait_for(
            lambda: bare.run("ip", "netns", "exec", "a", "ip", "addr", check=False).code == 0,
            15.0,
            said,
        )
        assert bare.addresses("eth0", "a") == ["10.1.0.2/24"]
        assert bare.run("ip", "link", "show", "yy0", check=False).code
