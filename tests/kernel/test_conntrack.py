"""Stale connections are forgotten, and no others: with real packets through real mappings."""

import json
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any, NamedTuple

import msgspec
import pytest
from msgspec.structs import astuple, replace

from reconciler.core.model import Address, parse_address
from reconciler.host.conntrack import Port
from tests.kernel.town import ADDRESSES, TOWN, source_seen
from tests.support import need
from tests.support.host import PrivateHost, wait_for
from tests.support.talk import inside

DRIVER = """
import json, sys
from reconciler.core.errors import FirewallError
from reconciler.core.model import Address
from reconciler.host import conntrack
asked, counted = json.load(sys.stdin), []
addresses = [Address(*a) for a in asked["addresses"]]
ports = [conntrack.Port(v, p, ip and Address(*ip), a, b, to and Address(*to), port)
         for v, p, ip, a, b, to, port in asked["ports"]]

class Lib:
    def rcn_conntrack_forget(self, *words):
        error = conntrack_lib.rcn_conntrack_forget(*words)
        counted.append({name: getattr(words[-1], name) for name in ("dumps", "seen", "failed")})
        return error

conntrack_lib, conntrack.lib = conntrack.lib, Lib()
try:
    print(json.dumps({"gone": conntrack.forget(addresses, ports), **counted[0]}))
except FirewallError as error:
    print(json.dumps({"error": str(error)}))
"""
HOST = {4: "192.0.2.2", 6: "2001:db8:ffff::2"}
PROGRAM = {4: "iptables-legacy", 6: "ip6tables-legacy"}
RED1, RED2 = ([parse_address(one) for one in ADDRESSES[name]] for name in ("red1", "red2"))


def forget(
    host: PrivateHost,
    addresses: list[Address] | None = None,
    ports: list[Port] | None = None,
    lead: str = "",
) -> dict[str, Any]:
    """`gone`: how many; `dumps`, `seen` and `failed`: what it took. Or `error`."""
    asked = {"addresses": addresses or [], "ports": [astuple(port) for port in ports or ()]}
    text = msgspec.json.encode(asked).decode()
    run = host.run(*lead.split(), sys.executable, "-c", DRIVER, stdin=text)
    return json.loads(run.out)  # type: ignore[no-any-return]


def gone(host: PrivateHost, *addresses: Address, ports: list[Port] | None = None) -> int:
    """How many were forgotten."""
    return int(forget(host, list(addresses), ports)["gone"])


def remembered(host: PrivateHost, *words: str) -> list[str]:
    """The lines of conntrack's list with all these words."""
    lines = host.run("cat", "/proc/self/net/nf_conntrack").out.splitlines()
    return [line for line in lines if set(words) <= set(line.split())]


def lead(
    host: PrivateHost, name: str, version: int, *, table: str = "nat", chain: str = "PREROUTING"
) -> None:
    """Lead port 53 of the host to port 5353 of that member, and nowhere else."""
    target = ADDRESSES[name][0 if version == 4 else 1]
    there = f"[{target}]:5353" if version == 6 else f"{target}:5353"
    match = f"-t {table} -A {chain} -d {HOST[version]} -p udp --dport 53 -j DNAT --to-destination {there}"
    host.sh(f"{PROGRAM[version]} -t {table} -F {chain}; {PROGRAM[version]} {match}")


class Resolvers:
    """red1 and red2 that answer with their names on UDP port 5353, and a client that asks from one port."""

    def __init__(self, host: PrivateHost, version: int, stack: ExitStack) -> None:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        self.host, self.version = host, version
        self.servers = {}
        for name in ("red1", "red2"):
            with inside(host, name):
                server = socket.socket(family, socket.SOCK_DGRAM)
            stack.enter_context(closing(server))
            server.bind((ADDRESSES[name][0 if version == 4 else 1], 5353))
            self.servers[server] = name
        with inside(host, "internet"):
            self.client = stack.enter_context(closing(socket.socket(family, socket.SOCK_DGRAM)))
        self.client.bind(("", 40053))

    def answer(self, seconds: float = 2.0) -> str | None:
        """Who answers one question; None: it reached nobody, or its answer was lost."""
        self.client.sendto(b"?", (HOST[self.version], 53))
        for server in select.select(list(self.servers), [], [], seconds)[0]:
            server.sendto(self.servers[server].encode(), server.recvfrom(100)[1])
        if not select.select([self.client], [], [], seconds)[0]:
            return None
        return self.client.recv(100).decode()


class Connection(NamedTuple):
    """Both ends of a TCP connection that stands."""

    caller: socket.socket
    served: socket.socket

    def lives(self) -> bool:
        """Whether the far end is still heard: it speaks first, for a kernel that had forgotten the
        connection would pick up the caller's packets as a new one, and translate them again."""
        for end, other in ((self.served, self.caller), (self.caller, self.served)):
            end.sendall(b"x")
            if not select.select([other], [], [], 2.0)[0] or other.recv(10) != b"x":
                return False
        return True


@contextmanager
def connection(
    host: PrivateHost, client: str, server: str, port: int, to: tuple[str, int] | None = None
) -> Iterator[Connection]:
    """A connection from `client`, `to` that place or to the server's own address and port."""
    address = ADDRESSES[server][0]
    with inside(host, server):
        listener = socket.socket()
    with inside(host, client):
        caller = socket.socket()
    with listener, caller:
        listener.bind((address, port))
        listener.listen()
        caller.settimeout(5)
        caller.connect(to or (address, port))
        served, _ = listener.accept()
        with served:
            yield Connection(caller, served)


@pytest.fixture
def town(host: PrivateHost) -> PrivateHost:
    """Two networks and two worlds outside, and a kernel that remembers connections."""
    host.sh(TOWN)
    for version in (4, 6):
        for one in ("red1", "red2"):
            # eth0's link-local address is tentative for a second or two.
            wait_for(partial(source_seen, host, one, "internet", version), what=f"{one} online")
        host.sh(f"{PROGRAM[version]} -A FORWARD -m conntrack --ctstate INVALID -j DROP")
    return host


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("version", [4, 6])
def test_a_changed_mapping_answers_at_once_from_the_new_target(
    town: PrivateHost, stack: ExitStack, version: int, everywhere: bool
) -> None:
    asked = Resolvers(town, version, stack)
    lead(town, "red1", version)
    assert asked.answer() == "red1"
    lead(town, "red2", version)
    assert asked.answer() == "red1"  # what forgetting is for
    ip = None if everywhere else parse_address(HOST[version])
    # A run, of which port 53 is the fourth.
    new = Port(version, "udp", ip, 50, 60, RED2[0 if version == 4 else 1], 5350)
    assert gone(town, ports=[new]) == 1
    assert asked.answer() == "red2"
    assert gone(town, ports=[new]) == 0
    assert asked.answer() == "red2"
    # The same target by another port is another target.
    assert gone(town, ports=[replace(new, target_port=5351)]) == 1


def test_a_mapping_that_came_later_is_found_by_who_asked_before(
    town: PrivateHost, stack: ExitStack
) -> None:
    asked = Resolvers(town, 4, stack)
    assert asked.answer(0.2) is None  # the host has no such service, and the kernel remembers that
    lead(town, "red1", 4)
    assert asked.answer(0.2) is None
    assert gone(town, ports=[Port(4, "udp", None, 53, 53, RED1[0], 5353)]) == 1
    assert asked.answer() == "red1"


def test_a_removed_mapping_is_closed_at_once(town: PrivateHost, stack: ExitStack) -> None:
    asked = Resolvers(town, 4, stack)
    lead(town, "red1", 4)
    assert asked.answer() == "red1"
    town.run("iptables-legacy", "-t", "nat", "-F", "PREROUTING")
    assert asked.answer() == "red1"
    others = [
        Port(4, "tcp", None, 53, 53, None, 0),
        Port(6, "udp", None, 53, 53, None, 0),
        Port(4, "udp", None, 54, 65535, None, 0),
        Port(4, "udp", None, 1, 52, None, 0),
        Port(4, "udp", parse_address("203.0.113.1"), 53, 53, None, 0),
    ]
    assert gone(town, ports=others) == 0
    assert gone(town, ports=[Port(4, "udp", None, 53, 53, None, 0)]) == 1
    assert asked.answer(0.3) is None


def test_what_is_published_on_one_address_goes_before_what_is_on_all(
    town: PrivateHost, stack: ExitStack
) -> None:
    asked = Resolvers(town, 4, stack)
    lead(town, "red1", 4)
    assert asked.answer() == "red1"
    here = Port(4, "udp", parse_address(HOST[4]), 53, 53, RED1[0], 5353)
    all_else = Port(4, "udp", None, 1, 65535, RED2[0], 1)
    assert gone(town, ports=[all_else, here]) == 0
    # Runs of one place: one that names the target saves it, in whatever order.
    for pair in ([here, replace(here, target=None)], [replace(here, target=None, last=99), here]):
        assert gone(town, ports=pair) == 0
    assert gone(town, ports=[replace(here, target=RED2[0])]) == 1


def test_a_container_that_goes_takes_its_connections_and_no_others(
    town: PrivateHost, stack: ExitStack
) -> None:
    rule = "iptables-legacy -t nat -A POSTROUTING -s 10.0.0.0/8 -o eth0 -j MASQUERADE"
    published = f"iptables-legacy -t nat -A PREROUTING -d {HOST[4]} -p tcp --dport 80 -j DNAT --to {RED2[0]}:8080"
    town.sh(f"{rule}; {published}")
    asked = Resolvers(town, 6, stack)
    lead(town, "red1", 6)
    assert asked.answer() == "red1"  # red1 is a target, behind a translation
    connect = partial(connection, town)
    stack.enter_context(connect("red1", "internet", 7001))  # a source
    stack.enter_context(connect("blue1", "red1", 7002))  # a destination
    others = [
        stack.enter_context(connect("internet", "red2", 8080, (HOST[4], 80))),
        stack.enter_context(connect("red2", "internet", 7003)),
        stack.enter_context(connect("blue1", "red2", 7004)),
    ]
    before = [len(remembered(town, f"{end}={RED1[0]}")) for end in ("src", "dst")]
    assert all(before), before
    assert len(remembered(town, "udp", "dport=53")) == 1
    count = len({*remembered(town, f"src={RED1[0]}"), *remembered(town, f"dst={RED1[0]}")})
    assert gone(town, RED1[0]) == count
    assert not remembered(town, f"src={RED1[0]}") and not remembered(town, f"dst={RED1[0]}")
    assert remembered(town, "udp", "dport=53")
    assert gone(town, RED1[1]) >= 1
    assert not remembered(town, "udp", "dport=53")
    assert all(one.lives() for one in others)


def test_a_translation_into_an_address_that_went_goes(town: PrivateHost, stack: ExitStack) -> None:
    town.sh(f"iptables-legacy -t nat -A POSTROUTING -s 10.2.0.11 -p udp -j SNAT --to {RED1[0]}")
    with inside(town, "blue1"):
        caller = stack.enter_context(closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
    caller.sendto(b"x", (ADDRESSES["internet"][0], 9))
    wait_for(lambda: remembered(town, "udp", "dport=9"), what="the entry")
    assert gone(town, RED1[0]) >= 1
    assert not remembered(town, "udp", "dport=9")


def test_a_published_port_leaves_the_same_port_of_others_alone(
    town: PrivateHost, stack: ExitStack
) -> None:
    # To the internet's port 443, translated, and to a member's: neither is the host's.
    town.sh("iptables-legacy -t nat -A POSTROUTING -s 10.0.0.0/8 -o eth0 -j MASQUERADE")
    others = [
        stack.enter_context(connection(town, "red1", "internet", 443)),
        stack.enter_context(connection(town, "blue1", "red2", 443)),
    ]
    assert gone(town, ports=[Port(4, "tcp", None, 443, 443, None, 0)]) == 0
    assert all(one.lives() for one in others)
    # What such a translation is worth: with the entry gone, the far end is not heard.
    assert gone(town, RED1[0]) >= 1
    assert not others[0].lives()


def test_an_entry_of_another_zone_goes_too(town: PrivateHost, stack: ExitStack) -> None:
    asked = Resolvers(town, 4, stack)
    town.sh("iptables-legacy -t raw -A PREROUTING -j CT --zone 7")
    lead(town, "red1", 4)
    assert asked.answer() == "red1"
    assert remembered(town, "dport=53", "zone=7")
    assert forget(town, ports=[Port(4, "udp", None, 53, 53, None, 0)])["gone"] == 1
    assert not remembered(town, "dport=53")


def test_nothing_to_do_costs_one_dump_or_none(town: PrivateHost, stack: ExitStack) -> None:
    port = Port(4, "udp", None, 53, 53, None, 0)
    asked = Resolvers(town, 4, stack)
    town.run("ip", "netns", "add", "empty")
    empty = forget(town, [RED1[0]], [port], lead="ip netns exec empty")
    assert (empty["gone"], empty["dumps"]) == (0, 0)  # nothing is remembered: nothing is asked
    lead(town, "red1", 4)
    assert asked.answer() == "red1"
    found = forget(town, [parse_address("10.9.9.9")], [replace(port, first=54, last=54)])
    assert (found["gone"], found["dumps"], found["failed"]) == (0, 1, 0)
    assert found["seen"] >= 1


def test_a_kernel_without_conntrack_is_not_asked(town: PrivateHost, stack: ExitStack) -> None:
    asked = Resolvers(town, 4, stack)
    lead(town, "red1", 4)
    assert asked.answer() == "red1"
    # As it looks where the module is not loaded: the folder stands, for nf_log has made it.
    town.sh("mount -t tmpfs none /proc/sys/net/netfilter")
    found = forget(town, [RED1[0]])
    assert (found["gone"], found["dumps"]) == (0, 0)
    town.sh("umount /proc/sys/net/netfilter")
    assert gone(town, RED1[0]) == 1


def test_a_refusal_is_a_sentence(town: PrivateHost, stack: ExitStack) -> None:
    need.program("setpriv")
    asked = Resolvers(town, 4, stack)
    lead(town, "red1", 4)
    assert asked.answer() == "red1"
    found = forget(town, [RED1[0]], lead="setpriv --bounding-set -net_admin --inh-caps -net_admin")
    assert found == {
        "error": "firewall: forget stale connections: CAP_NET_ADMIN is needed (run it with sudo)"
    }


FILL = """
import socket, sys, time
from reconciler.core.model import Address
from reconciler.host.conntrack import Port, forget
caller = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for i in range(20000):
    caller.sendto(b"x", (f"127.0.{i % 4}.1", 2000 + i))
began = time.monotonic()
home = Address(4, 0x7F000001)
# Runs that all overlap, and thousands of addresses.
runs = [Port(4, "udp", None, 1, 12000, None, 0)] + [
    Port(4, "udp", None, 2000 + i, 12000, Address(4, 0x0A000000 + i), 1) for i in range(10000)]
strangers = [Address(4, 0x0A000000 + i) for i in range(10000)]
print(forget(strangers, runs), time.monotonic() - began)
"""


def test_thousands_go_quickly(host: PrivateHost) -> None:
    host.sh("iptables-legacy -A INPUT -m conntrack --ctstate ESTABLISHED")
    number, seconds = host.run(sys.executable, "-c", FILL).out.split()
    assert int(number) == 10001  # ports 2000 to 12000
    # Some 0.15 s here; a loop over runs for each entry takes a hundred million steps.
    assert float(seconds) < 1.5
    assert len(remembered(host)) == 9999
