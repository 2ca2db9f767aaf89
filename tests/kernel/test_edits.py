"""What an edit does to a running container: which connections live on, which lines are marked `!`."""

import sys

import pytest

from tests.support.host import PrivateHost, wait_for

BASE = """
networks:
  runc0: {subnets: 176.10.0.0/16}
  side: {subnets: 10.9.0.0/24}
containers:
  web:
    interfaces:
      - {network: runc0, addresses: 176.10.0.5}
      - {network: side, addresses: 10.9.0.5}
  peer: {interfaces: {network: runc0, addresses: 176.10.0.9}}
"""
SERVER = """
import socket
s = socket.create_server(("0.0.0.0", 7777)); print("ready", flush=True)
c, _ = s.accept()
while data := c.recv(100): c.sendall(data)
"""
CLIENT = """
import socket, sys
c = socket.create_connection((sys.argv[1], 7777)); c.settimeout(20)
print("ready", flush=True)
for line in sys.stdin:
    c.sendall(line.encode()); print(c.recv(100).decode(), end="", flush=True)
"""


class Connection:
    """A TCP connection from `peer` to `web`."""

    def __init__(self, host: PrivateHost, address: str = "176.10.0.5") -> None:
        python = ("python3", "-uc")
        self.server = host.start("ip", "netns", "exec", "web", *python, SERVER)
        assert self.server.stdout and self.server.stdout.readline() == "ready\n"
        self.client = host.start("ip", "netns", "exec", "peer", *python, CLIENT, address)
        assert self.client.stdout and self.client.stdout.readline() == "ready\n"

    def answers(self) -> bool:
        assert self.client.stdin and self.client.stdout
        self.client.stdin.write("still there?\n")
        self.client.stdin.flush()
        return self.client.stdout.readline() == "still there?\n"


KEPT = {
    "addresses": ("addresses: 176.10.0.5}", "addresses: [176.10.0.5]}", False),
    "another interface's address": ("10.9.0.5", "10.9.0.6", False),
    "routes": ("  peer:", "    routes: {to: 10.5.0.0/16, via: 176.10.0.77}\n  peer:", False),
    "mac": ("addresses: 176.10.0.5}", "addresses: 176.10.0.5, mac: '02:00:00:00:00:77'}", False),
    "mtu": ("addresses: 176.10.0.5}", "addresses: 176.10.0.5, mtu: 1400}", False),
    "sysctls": ("  peer:", "    sysctls: {net.core.somaxconn: 99}\n  peer:", False),
    "default_route": ("addresses: 10.9.0.5}", "addresses: 10.9.0.5, default_route: true}", False),
    "name": ("addresses: 176.10.0.5}", "addresses: 176.10.0.5, name: lan0}", True),
    "host_interface": ("addresses: 176.10.0.5}", "addresses: 176.10.0.5, host_interface: w0}", True),
    "order of interfaces": (
        "      - {network: runc0, addresses: 176.10.0.5}\n      - {network: side, addresses: 10.9.0.5}",
        "      - {network: side, addresses: 10.9.0.5, name: eth1}\n"
        "      - {network: runc0, addresses: 176.10.0.5, name: eth0, default_route: true}", False),
    "the other interface's network": (
        "  side: {subnets: 10.9.0.0/24}", "  side: {subnets: 10.9.0.0/24}\n  third: {subnets: 10.7.0.0/24}",
        False),
}  # fmt: skip


@pytest.mark.parametrize("kind", KEPT)
def test_a_connection_lives_through_the_edit(bare: PrivateHost, kind: str) -> None:
    old, new, interrupts = KEPT[kind]
    assert BASE.count(old) == 1
    bare.write("a.yaml", BASE)
    bare.reconcile()
    connection = Connection(bare)
    assert connection.answers()
    bare.write("a.yaml", BASE.replace(old, new))
    run = bare.reconcile()
    assert any(o["interrupts"] for o in run.report["operations"]) is interrupts, run.changes
    assert bare.reconcile().changes == []
    assert connection.answers()


def test_an_interface_moves_to_another_network_and_the_others_stay(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    bare.reconcile()
    connection = Connection(bare)
    third = BASE.replace("containers:", "  third: {subnets: 10.7.0.0/24}\ncontainers:")
    bare.write("a.yaml", third.replace("network: side, addresses: 10.9.0.5", "network: third"))
    plan = bare.runcnet("plan").out
    assert "~!container web" in plan.replace("~! ", "~!"), plan
    held = bare.reconcile("--once", "--no-interrupt", check=False)
    assert held.code == 1 and "no-interrupt" in held.report["held_back"][0]["reason"]
    assert bare.addresses("eth1", "web") == ["10.9.0.5/24"]
    bare.reconcile()
    assert bare.addresses("eth1", "web") == ["10.7.0.2/24"]
    assert connection.answers()


def test_automatic_addresses_move_with_the_subnet_and_keep_their_host_part(
    bare: PrivateHost,
) -> None:
    text = "networks: {n: {subnets: 10.9.0.0/24}}\ncontainers: {a: {interfaces: n}, b: {interfaces: n}}\n"
    bare.write("a.yaml", text)
    bare.reconcile()
    with bare.process("b"):
        bare.write("a.yaml", text.replace("10.9", "10.10"))
        run = bare.reconcile()
    assert any(o["interrupts"] and "remove 10.9.0.3/24" in o["description"]
               for o in run.report["operations"])  # fmt: skip
    assert bare.addresses("eth0", "b") == ["10.10.0.3/24"]
    assert bare.addresses("n") == ["10.10.0.1/24"]
    assert bare.ping("a", "10.10.0.3")
    assert bare.reconcile().changes == []


@pytest.mark.parametrize("edit", ["netns: elsewhere", "mode: none", "mode: host"])
def test_netns_and_mode_wait_for_the_last_process(bare: PrivateHost, edit: str) -> None:
    body = "interfaces: runc0"
    bare.write(
        "a.yaml", f"networks: {{runc0: {{subnets: 10.9.0.0/24}}}}\ncontainers: {{a: {{{body}}}}}\n"
    )
    bare.reconcile()
    kept = f"{body}, " if "netns" in edit else ""
    bare.write(
        "a.yaml",
        f"networks: {{runc0: {{subnets: 10.9.0.0/24}}}}\ncontainers: {{a: {{{kept}{edit}}}}}\n",
    )
    with bare.process("a"):
        run = bare.reconcile(check=False)
        assert run.code == 1 and run.report["held_back"][0]["object"] == "container/a"
        assert bare.ping("a", "10.9.0.1")
    bare.reconcile()
    names = {"netns: elsewhere": ["elsewhere"], "mode: none": ["a"], "mode: host": []}[edit]
    assert bare.ours()["netns"] == names
    assert bare.reconcile().changes == []


def test_a_declared_address_moves_a_lease_unless_its_holder_is_in_use(bare: PrivateHost) -> None:
    net = "networks: {n: {subnets: 10.9.0.0/24}}\ncontainers:\n  a: {interfaces: n}\n"
    bare.write("a.yaml", net)
    bare.reconcile()
    bare.write(
        "b.yaml", "containers:\n  b:\n    interfaces:\n      - {network: n, addresses: 10.9.0.2}\n"
    )
    with bare.process("a"):
        run = bare.reconcile(check=False)
        assert run.code == 2
        assert "held by a, which is in use" in run.report["rejected"][0]["message"]
        assert run.report["rejected"][0]["file"].endswith("b.yaml")
        assert bare.addresses("eth0", "a") == ["10.9.0.2/24"]
    plan = bare.runcnet("plan").out
    assert "lease 10.9.0.2 becomes 10.9.0.3: b declares 10.9.0.2" in plan
    bare.reconcile()
    assert bare.addresses("eth0", "a") == ["10.9.0.3/24"]
    assert bare.addresses("eth0", "b") == ["10.9.0.2/24"]
    assert bare.reconcile().changes == []


def test_a_dropped_bundle_is_left_as_it_is(bare: PrivateHost) -> None:
    bundle = bare.bundle("x", "true")
    bare.write(
        "a.yaml", f"containers: {{x: {{mode: none, bundle: {bundle}}}, y: {{mode: none}}}}\n"
    )
    bare.reconcile()
    wired = (bundle / "config.json").read_bytes()
    assert b"/run/netns/x" in wired
    bare.write("a.yaml", "containers: {y: {mode: none}}\n")
    bare.reconcile()
    assert (bundle / "config.json").read_bytes() == wired
    wait_for(lambda: "x" not in bare.ours()["netns"])


def test_an_interface_that_is_dropped_goes_alone(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    bare.reconcile()
    connection = Connection(bare)
    bare.write("a.yaml", BASE.replace("      - {network: side, addresses: 10.9.0.5}\n", ""))
    run = bare.reconcile()
    assert [o["action"] for o in run.report["operations"]] == ["update", "update"], run.changes
    assert connection.answers()
    assert bare.reconcile().changes == []


def test_two_interfaces_swap_their_names(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    bare.reconcile()
    before = bare.link("eth0", "web")["address"]
    swapped = BASE.replace("addresses: 176.10.0.5", "addresses: 176.10.0.5, name: eth1")
    bare.write("a.yaml", swapped.replace("addresses: 10.9.0.5", "addresses: 10.9.0.5, name: eth0"))
    bare.reconcile()
    assert bare.link("eth1", "web")["address"] == before
    assert bare.addresses("eth0", "web") == ["10.9.0.5/24"]
    assert bare.ping("web", "176.10.0.9") and bare.ping("web", "10.9.0.1")
    assert bare.reconcile().changes == []


def test_containers_trade_their_netns_files(bare: PrivateHost) -> None:
    text = "containers: {a: {mode: none, netns: x}, b: {mode: none, netns: y}}\n"
    bare.write("a.yaml", text)
    bare.reconcile()
    bare.write("a.yaml", text.replace("x", "z").replace("y", "x").replace("z", "y"))
    assert bare.reconcile().report["converged"]
    assert bare.link("lo", "x")["ifalias"] == "runcnet:b"
    assert bare.reconcile().changes == []


def test_a_container_without_interfaces_gets_some_once_it_is_not_in_use(bare: PrivateHost) -> None:
    net = "networks: {n: {subnets: 10.9.0.0/24}}\n"
    bare.write("a.yaml", net + "containers: {a: {mode: none}}\n")
    bare.reconcile()
    bare.write("a.yaml", net + "containers: {a: {interfaces: n}}\n")
    with bare.process("a"):
        run = bare.reconcile(check=False)
        assert run.report["held_back"][0]["reason"].startswith("its mode is now network")
    bare.reconcile()
    with bare.process("a"):
        bare.sh("ip -n a link del eth0")
        assert bare.reconcile().report["converged"], "a deleted veth is drift, no change of mode"
    assert bare.addresses("eth0", "a") == ["10.9.0.2/24"]
    assert bare.reconcile().changes == []


@pytest.mark.parametrize("kind", ["bridge", "routed"])
def test_an_mtu_too_small_for_ipv6_and_back(bare: PrivateHost, kind: str) -> None:
    """Below 1,280 bytes a link has no IPv6, and nothing of it can be set there."""
    text = (
        f"networks: {{n: {{type: {kind}, subnets: 10.0.0.0/24, mtu: %d}}}}\n"
        "containers: {a: {interfaces: {network: n, addresses: 10.0.0.5}}}\n"
    )
    for mtu in (1000, 1500, 1279, 1280):
        bare.write("a.yaml", text % mtu)
        assert bare.reconcile().report["converged"]
        assert bare.reconcile().changes == []
        assert bare.link("eth0", "a")["mtu"] == mtu and bare.ping("a", "10.0.0.1")
        end = bare.host_end("a", "eth0")["ifname"]
        found = bare.run("cat", f"/proc/sys/net/ipv6/conf/{end}/accept_ra", check=False).out
        assert found == ("0\n" if mtu >= 1280 else "")


def test_a_network_that_loses_ipv6_keeps_no_neighbours_of_it(bare: PrivateHost) -> None:
    """Addresses that a bridge loses take some of its neighbours along, and not others."""
    text = "networks: {n: {subnets: %s}}\ncontainers: {a: {interfaces: n}, b: {interfaces: n}}\n"
    for subnets in ('[10.0.0.0/24, "fd00::/64"]', "10.0.0.0/24", '"fd00::/64"', "10.0.0.0/24"):
        bare.write("a.yaml", text % subnets)
        assert bare.reconcile().report["converged"]
        assert bare.reconcile().changes == []
        shown = bare.run("ip", "neigh", "show", "nud", "permanent").out
        assert shown.count("proto") == (4 if "[" in subnets else 2), shown


WITHOUT_IPV6 = """
import sys
from reconciler.cli import reconcile_entry
from reconciler.core.observed import Observed
Observed.ipv6 = property(lambda self: False)  # as where the kernel was started with ipv6.disable=1
sys.exit(reconcile_entry())
"""


def test_nothing_of_ipv6_is_asked_of_a_kernel_without_it(bare: PrivateHost) -> None:
    """Such a kernel refuses a message that names IPv6 (EAFNOSUPPORT), and has no such sysctls."""
    bare.write(
        "a.yaml",
        "networks: {n: {subnets: 10.0.0.0/24}, r: {type: routed, subnets: 10.1.0.0/24}}\n"
        "containers: {a: {interfaces: [n, r]}}\n",
    )
    bare.run(sys.executable, "-c", WITHOUT_IPV6, "--once", *bare.options, check=False)
    assert bare.ping("a", "10.0.0.1") and bare.ping("a", "10.1.0.1")
    links = [bare.link("n"), *bare.ip("link", "show", "type", "veth")]
    links += [link for link in bare.ip("link", "show", netns="a") if link["ifname"] != "lo"]
    ours = [link for link in links if link["ifname"] != "eth0" or "link_netnsid" in link]
    modes = {link["ifname"]: link["inet6_addr_gen_mode"] for link in ours}
    assert set(modes.values()) == {"eui64"}, modes


def test_an_address_that_one_in_use_still_carries_is_not_given_away(bare: PrivateHost) -> None:
    text = (
        "networks: {n: {subnets: 10.1.0.0/24}}\n"
        "containers: {k: {interfaces: n}, WHO: {interfaces: {network: n, addresses: 10.1.0.77}}}\n"
    )
    bare.write("a.yaml", text.replace("WHO", "one"))
    bare.reconcile()
    with bare.process("one"):
        bare.write("a.yaml", text.replace("WHO", "two"))
        run = bare.reconcile(check=False)
        assert run.code == 2
        assert "10.1.0.77 is held by one, which is in use" in run.report["rejected"][0]["message"]
        assert "two" not in bare.ours()["netns"]
    assert bare.reconcile().report["converged"]
    assert bare.addresses("eth0", "two") == ["10.1.0.77/24"]


def test_from_a_network_without_ipv6_into_one_that_has_it(bare: PrivateHost) -> None:
    nets = (
        "networks: {four: {subnets: 10.1.0.0/24}, both: {subnets: [10.2.0.0/24, 'fd00:2::/64']}}\n"
    )
    bare.write("a.yaml", nets + "containers: {a: {interfaces: four}}\n")
    bare.reconcile()
    bare.write("a.yaml", nets + "containers: {a: {interfaces: both}}\n")
    run = bare.reconcile()
    assert run.report["converged"] and not run.report["failed"], run.out
    assert sorted(bare.addresses("eth0", "a")) == ["10.2.0.2/24", "fd00:2::2/64"]
    assert bare.reconcile().changes == []
