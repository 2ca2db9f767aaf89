"""Real packets: dual stack with cold neighbour tables, a router advertisement, two gateways."""

import shutil

from tests.support import need
from tests.support.host import SERVER, SERVER6, PrivateHost, wait_for


def test_ipv6_beyond_the_uplink_both_ways_with_cold_neighbours(host: PrivateHost) -> None:
    host.write(
        "a.yaml",
        "networks: {n: {subnets: ['2001:db8:5::/64'], masquerade: false, inbound: open}}\n"
        "containers: {a: {interfaces: n}}\n",
    )
    host.sh("ip -n internet -6 route add 2001:db8:5::/64 via 2001:db8:ffff::2")
    host.reconcile()
    cold = "ip neigh flush all; ip -n a neigh flush all; ip -n internet neigh flush all"
    host.sh(cold)
    assert host.ping("a", SERVER6)
    host.sh(cold)
    assert host.ping("internet", "2001:db8:5::2")
    assert host.reconcile().changes == []


def test_dual_stack_is_translated_in_both_families(host: PrivateHost) -> None:
    host.write(
        "a.yaml",
        "networks: {n: {subnets: [10.5.0.0/24, 'fd00:5::/64']}}\ncontainers: {a: {interfaces: n}}\n",
    )
    host.reconcile()
    assert host.ping("a", SERVER) and host.ping("a", SERVER6)
    assert host.ip("-6", "addr", "show", "dev", "eth0", netns="a")
    locals_ = [a["local"] for a in host.ip("addr", "show", "dev", "n")[0]["addr_info"]
               if a["scope"] == "link"]  # fmt: skip
    assert len(locals_) == 1


def test_the_hosts_router_advertised_default_route_survives_forwarding(host: PrivateHost) -> None:
    need.program("radvd")
    host.sh("ip -6 route del default; sysctl -qw net.ipv6.conf.eth0.accept_ra=1")
    config = host.dir / "radvd.conf"
    config.write_text(
        "interface up0 { AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4;"
        " prefix 2001:db8:ffff::/64 {}; };\n"
    )
    config.chmod(0o644)
    host.sh("ip netns exec internet sysctl -qw net.ipv6.conf.all.forwarding=1")
    host.start(
        "ip", "netns", "exec", "internet", "radvd", "-n", "-C", str(config), "-p", "/run/radvd.pid"
    )

    def learned() -> bool:
        return any(
            r["dst"] == "default" and r.get("protocol") == "ra" for r in host.ip("-6", "route")
        )

    wait_for(learned, 30, "a router advertisement")
    host.write(
        "a.yaml", "networks: {n: {subnets: 'fd00:5::/64'}}\ncontainers: {a: {interfaces: n}}\n"
    )
    host.reconcile()
    assert learned()
    assert host.run("sysctl", "-n", "net.ipv6.conf.eth0.accept_ra").out.strip() == "2"
    assert host.run("sysctl", "-n", "net.ipv6.conf.all.forwarding").out.strip() == "1"
    assert host.ping("a", SERVER6)


def test_two_networks_answer_on_both_addresses_under_strict_rp_filter(host: PrivateHost) -> None:
    host.write(
        "a.yaml",
        "networks: {n: {subnets: 10.5.0.0/24, inbound: open}, s: {subnets: 10.6.0.0/24, inbound: open}}\n"
        "containers: {a: {interfaces: [{network: n, addresses: 10.5.0.5},"
        " {network: s, addresses: 10.6.0.5}],"
        " sysctls: {net.ipv4.conf.all.rp_filter: 1, net.ipv4.conf.default.rp_filter: 1}}}\n",
    )
    host.sh("ip -n internet route add 10.5.0.0/24 via 192.0.2.2;"
            "ip -n internet route add 10.6.0.0/24 via 192.0.2.2")  # fmt: skip
    host.reconcile()
    host.sh(
        "ip netns exec a sysctl -qw net.ipv4.conf.eth0.rp_filter=1 net.ipv4.conf.eth1.rp_filter=1"
    )
    for address in ("10.5.0.5", "10.6.0.5"):
        assert host.ping("internet", address)
        assert host.ping("", address)


def test_an_external_bridge_gains_ports_and_nothing_else(bare: PrivateHost) -> None:
    text = (
        "networks: {lan: {external: true, bridge: br9, subnets: 10.5.0.0/24, gateways: 10.5.0.1}}\n"
        "containers: {a: {interfaces: lan}}\n"
    )
    bare.write("a.yaml", text)
    run = bare.reconcile(check=False)
    assert run.code == 1 and "br9" in str(run.report["problems"])
    bare.sh(
        "ip link add br9 address 02:00:00:00:00:09 type bridge; ip link set br9 mtu 1400 up; ip addr add 10.5.0.1/24 dev br9"
    )
    before = bare.link("br9")
    bare.reconcile()
    assert bare.link("eth0", "a")["mtu"] == 1400
    assert bare.ping("a", "10.5.0.1")
    after = bare.link("br9")
    same = ("address", "mtu", "ifalias", "flags")
    assert [after.get(k) for k in same[:3]] == [before.get(k) for k in same[:3]]
    bare.write("a.yaml", "containers: {b: {mode: none}}\n")
    bare.reconcile()
    assert bare.link("br9")["ifname"] == "br9" and bare.ours()["links"] == []


def test_mtu_auto_follows_the_uplink(bare: PrivateHost) -> None:
    bare.sh("ip link set eth0 mtu 1420")
    bare.write(
        "a.yaml",
        "networks: {n: {subnets: 10.5.0.0/24, uplink: eth0}}\ncontainers: {a: {interfaces: n}}\n",
    )
    bare.reconcile()
    assert bare.link("n")["mtu"] == 1420 == bare.link("eth0", "a")["mtu"]
    assert bare.host_end("a", "eth0")["mtu"] == 1420


def test_members_that_are_isolated_cannot_reach_each_other(host: PrivateHost) -> None:
    host.write(
        "a.yaml",
        "networks: {n: {subnets: 10.5.0.0/24, isolate_members: true}}\n"
        "containers: {a: {interfaces: n}, b: {interfaces: n}}\n",
    )
    host.reconcile()
    assert host.ping("a", "10.5.0.1") and host.ping("a", SERVER)
    assert not host.ping("a", "10.5.0.3", "-W1")


def test_ping_works_without_cap_net_raw(bare: PrivateHost) -> None:
    bare.write(
        "a.yaml", "networks: {n: {subnets: 10.5.0.0/24}}\ncontainers: {a: {interfaces: n}}\n"
    )
    bare.reconcile()
    ping = bare.dir / "ping"  # a copy has no file capabilities
    shutil.copyfile("/bin/ping", ping)
    bare.dir.chmod(0o755)
    ping.chmod(0o755)
    bare.sh(
        "ip netns exec a setpriv --bounding-set=-all --inh-caps=-all --reuid=65534 --regid=65534 "
        f"--clear-groups {ping} -c1 -W2 10.5.0.1"
    )
