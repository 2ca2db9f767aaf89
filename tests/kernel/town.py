"""What the firewall's tests share: a policy, calls of the backend, and a town to send packets in.

red1, red2 --- red0 ---+                   +--- eth0 --- internet
                       |  host under test  |
blue1 -------- blue0 --+                   +--- port0 -- stranger
"""

import json
import socket
import sys
from typing import Any

import msgspec

from reconciler.core.model import parse_subnet
from reconciler.core.policy import NetworkPolicy, Policy
from tests.support.host import SERVER, SERVER6, PrivateHost
from tests.support.talk import inside

CLONE_NEWNET = 0x40000000
DRIVER = """
import json, sys, msgspec
from reconciler.core.errors import FirewallError
from reconciler.core.policy import Policy
from reconciler.host.firewall.iptables import Iptables
from reconciler.host.firewall.nftables import Nftables
policy = msgspec.json.decode(sys.stdin.buffer.read(), type=Policy)
nftables = sys.argv[3:] == ["nftables"]
wall = Nftables() if nftables else Iptables(lock_timeout_s=float(sys.argv[2]))
try:
    asked = getattr(wall, sys.argv[1])
    answer = asked() if sys.argv[1] == "remove" else asked(policy)
    print(msgspec.json.encode(answer).decode())
except FirewallError as error:
    print(json.dumps({"error": str(error)}))
"""
TOWN = """
ip netns add red1; ip netns add red2; ip netns add blue1; ip netns add stranger
sysctl -qw net.ipv6.conf.default.accept_dad=0
for n in red1 red2 blue1 stranger; do
    ip netns exec $n sysctl -qw net.ipv6.conf.default.accept_dad=0
    ip -n $n link set lo up
done
member() { # name bridge number subnet6
    ip link add v$1 type veth peer name e0 netns $1
    ip link set v$1 master $2 up
    ip -n $1 link set e0 up
    ip -n $1 addr add 10.$4.0.$3/24 dev e0
    ip -n $1 addr add fd0$4::$3/64 dev e0 nodad
    ip -n $1 route add default via 10.$4.0.1
    ip -n $1 -6 route add default via fd0$4::1
}
for pair in red0:1 blue0:2; do
    link=${pair%:*}; number=${pair#*:}
    ip link add $link type bridge
    ip link set $link up
    ip addr add 10.$number.0.1/24 dev $link
    ip addr add fd0$number::1/64 dev $link nodad
done
member red1 red0 11 1
member red2 red0 12 1
member blue1 blue0 11 2
ip link add port0 type veth peer name e0 netns stranger
ip link set port0 up; ip -n stranger link set e0 up
ip addr add 203.0.113.1/24 dev port0; ip -n stranger addr add 203.0.113.2/24 dev e0
ip addr add fd09::1/64 dev port0 nodad; ip -n stranger addr add fd09::2/64 dev e0 nodad
ip -n stranger route add default via 203.0.113.1; ip -n stranger -6 route add default via fd09::1
ip -n internet route add 10.0.0.0/8 via 192.0.2.2
ip -n internet route add 203.0.113.0/24 via 192.0.2.2
ip -n internet -6 route add fd00::/8 via 2001:db8:ffff::2
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
"""
ADDRESSES = {
    "internet": (SERVER, SERVER6),
    "stranger": ("203.0.113.2", "fd09::2"),
    "red1": ("10.1.0.11", "fd01::11"),
    "red2": ("10.1.0.12", "fd01::12"),
    "blue1": ("10.2.0.11", "fd02::11"),
}


def network(name: str, **changes: object) -> NetworkPolicy:
    """`red` or `blue` with every default, but for what the test is about."""
    number = {"red": 1, "blue": 2}.get(name, 3)
    defaults: dict[str, object] = {
        "name": name,
        "link": f"{name}0",
        "subnets": (parse_subnet(f"10.{number}.0.0/24"), parse_subnet(f"fd0{number}::/64")),
        "uplinks": (),
        "masquerade": (4,),
        "inbound": "established",
        "internal": False,
        "isolate_members": False,
    }
    return NetworkPolicy(**{**defaults, **changes})  # type: ignore[arg-type]


BOTH = Policy(networks=(network("blue"), network("red")), guards=(4, 6))


def ask(host: PrivateHost, verb: str, policy: Policy = BOTH, *, lock_s: float = 10.0) -> Any:
    """One call of the host's backend, in the host."""
    run = host.run(
        *(sys.executable, "-c", DRIVER, verb, str(lock_s), host.firewall),
        stdin=msgspec.json.encode(policy).decode(),
    )
    return json.loads(run.out)


def saved(host: PrivateHost) -> list[str]:
    """All legacy tables, without counters and dates. (To look is to create them.)"""
    return [
        line.split(" [")[0]
        for program in ("iptables-legacy-save", "ip6tables-legacy-save")
        for line in host.run(program).out.splitlines()
        if not line.startswith("#")
    ]


def ruleset(host: PrivateHost) -> str:
    """All nftables, without handles."""
    return host.run("nft", "list", "ruleset").out


def tables(host: PrivateHost) -> set[str]:
    """The legacy tables that the kernel has made."""
    script = "cat /proc/self/net/ip_tables_names /proc/self/net/ip6_tables_names"
    return set(host.sh(script).out.split())


# -- packets ------------------------------------------------------------------------------------


def source_seen(host: PrivateHost, client: str, server: str, version: int = 4) -> str | None:
    """Where `server` sees a TCP connection of `client` come from; None: it does not come through."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    address = ADDRESSES[server][0 if version == 4 else 1]
    with inside(host, server):
        listener = socket.socket(family, socket.SOCK_STREAM)
    with inside(host, client):
        caller = socket.socket(family, socket.SOCK_STREAM)
    with listener, caller:
        listener.bind((address, 0))
        listener.listen()
        caller.settimeout(0.6)
        try:
            caller.connect(listener.getsockname()[:2])
        except OSError:
            return None
        served, peer = listener.accept()
        with served:
            served.sendall(b"x")
            assert caller.recv(1) == b"x"
        return str(peer[0])


def passes(host: PrivateHost, client: str, server: str) -> bool:
    """Whether a connection is made, which must be the same with both IP versions."""
    four, six = (source_seen(host, client, server, version) for version in (4, 6))
    assert (four is None) == (six is None), (four, six)
    return four is not None
