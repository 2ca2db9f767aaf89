"""The iptables backend on a real kernel: rules as iptables-legacy shows them, and real packets.

red1, red2 --- red0 ---+                   +--- eth0 --- internet
                       |  host under test  |
blue1 -------- blue0 --+                   +--- port0 -- stranger
"""

import ctypes
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from reconciler.core.errors import UsageError
from reconciler.core.model import parse_subnet
from reconciler.core.policy import NetworkPolicy, Policy
from reconciler.host.firewall import backend
from tests.support import need
from tests.support.host import SERVER, SERVER6, PrivateHost, Run, wait_for

CLONE_NEWNET = 0x40000000
DRIVER = """
import json, sys, msgspec
from reconciler.core.errors import FirewallError
from reconciler.core.policy import Policy
from reconciler.host.firewall import backend
from reconciler.host.firewall.iptables import Iptables
policy = msgspec.json.decode(sys.stdin.buffer.read(), type=Policy)
wall = Iptables(lock_timeout_s=float(sys.argv[2]))
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
    """One call of the backend, in the host."""
    run = host.run(
        *(sys.executable, "-c", DRIVER, verb, str(lock_s)),
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


def tables(host: PrivateHost) -> set[str]:
    """The legacy tables that the kernel has made."""
    script = "cat /proc/self/net/ip_tables_names /proc/self/net/ip6_tables_names"
    return set(host.sh(script).out.split())


# -- packets ------------------------------------------------------------------------------------


@contextmanager
def inside(host: PrivateHost, netns: str) -> Iterator[None]:
    """Sockets made here belong to one of the host's namespaces, and stay there."""
    libc = ctypes.CDLL(None, use_errno=True)
    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/proc/{host._holder.pid}/root/run/netns/{netns}", os.O_RDONLY)
    try:
        assert libc.setns(there, CLONE_NEWNET) == 0
        yield
    finally:
        assert libc.setns(back, CLONE_NEWNET) == 0
        os.close(there)
        os.close(back)


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


@pytest.fixture
def town(host: PrivateHost) -> PrivateHost:
    """The host with two networks and two worlds outside, forwarding, and no rules yet."""
    host.sh(TOWN)
    assert source_seen(host, "red1", "internet") == "10.1.0.11"
    for outside in ("internet", "stranger"):
        for one in ("red1", "red2", "blue1"):
            # eth0's link-local address is tentative for a second or two.
            wait_for(
                lambda a=one, b=outside: source_seen(host, a, b, 6), what=f"{one} to {outside}"
            )
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
    for program in ("iptables-legacy", "ip6tables-legacy"):
        town.run(program, "-A", "RUNCNET-USER", "-i", "red0", "-o", "blue0", "-j", "ACCEPT")
    before = saved(town)
    assert ask(town, "look")["differences"] == []
    assert passes(town, "red1", "blue1")
    ask(town, "replace", Policy(networks=(network("blue"), network("red", inbound="open"))))
    assert passes(town, "red1", "blue1")
    ask(town, "remove")
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


# -- rules --------------------------------------------------------------------------------------


def test_a_second_run_commits_nothing(host: PrivateHost) -> None:
    first = ask(host, "commit")
    tables_made = ["filter (IPv4)", "nat (IPv4)", "filter (IPv6)"]
    assert first == {"committed": tables_made, "created": tables_made, "error": ""}
    before = saved(host)
    assert ask(host, "look")["differences"] == []
    assert ask(host, "commit") == {"committed": [], "created": [], "error": ""}
    assert saved(host) == before


def test_what_is_seen(host: PrivateHost) -> None:
    seen = ask(host, "look")
    assert seen["networks"] == [] and seen["guards"] == []
    assert len(seen["differences"]) == 10
    assert "do not exist yet: filter (IPv4), nat (IPv4), filter (IPv6)" in seen["notes"][0]
    assert "created its legacy tables filter (IPv4)" in ask(host, "replace")[0]
    seen = ask(host, "look")
    assert sorted(seen["networks"]) == ["blue", "red"] and sorted(seen["guards"]) == [4, 6]
    assert seen["notes"] == []


def test_looking_creates_no_table(host: PrivateHost) -> None:
    ask(host, "look")
    ask(host, "commands")
    ask(host, "warnings")
    ask(host, "remove")
    assert ask(host, "commit", Policy()) == {"committed": [], "created": [], "error": ""}
    assert tables(host) == set()
    ask(host, "replace", Policy(guards=(6,)))
    assert tables(host) == {"filter"}


DRIFT = {
    "flushed": "iptables-legacy -F RUNCNET-FORWARD",
    "all flushed": "iptables-legacy -F; iptables-legacy -t nat -F; ip6tables-legacy -F",
    "all gone": "iptables-legacy -F; iptables-legacy -X; ip6tables-legacy -F; ip6tables-legacy -X",
    "rule removed": "ip6tables-legacy -D RUNCNET-FORWARD 3",
    "rule doubled": "iptables-legacy -A RUNCNET-CROSS -o red0 -m comment --comment runcnet:red -j DROP",
    "order": "iptables-legacy -D RUNCNET-FORWARD 1;"
    " iptables-legacy -A RUNCNET-FORWARD -m comment --comment runcnet:host -j RUNCNET-USER",
    "foreign rule in ours": "iptables-legacy -I RUNCNET-FORWARD -p tcp --dport 80 -j ACCEPT",
    "goto": "iptables-legacy -R FORWARD 1 -m comment --comment runcnet:host -g RUNCNET-FORWARD",
    "jump removed": "iptables-legacy -D FORWARD 1",
    "jump doubled": "iptables-legacy -A FORWARD -j RUNCNET-FORWARD",
    "jump narrowed": "iptables-legacy -R FORWARD 1 -i eth0"
    " -m comment --comment runcnet:host -j RUNCNET-FORWARD",
    "jump behind an accept": "iptables-legacy -I FORWARD -j ACCEPT",
    "nat jump removed": "iptables-legacy -t nat -D POSTROUTING 1",
    "masquerade with ports": "iptables-legacy -t nat -R RUNCNET-POSTROUTING 6 -s 10.1.0.0/24"
    " -m comment --comment runcnet:red -j MASQUERADE --random",
    "negated": "iptables-legacy -R RUNCNET-CROSS 1 ! -o blue0"
    " -m comment --comment runcnet:blue -j DROP",
    "pattern": "iptables-legacy -R RUNCNET-CROSS 1 -o blue+"
    " -m comment --comment runcnet:blue -j DROP",
    "other states": "iptables-legacy -R RUNCNET-FORWARD 2 -o blue0 -m conntrack --ctstate NEW"
    " -m comment --comment runcnet:blue -j ACCEPT",
    "no target": "iptables-legacy -R RUNCNET-FORWARD 2 -o blue0",
    "old chain": "iptables-legacy -N RUNCNET-OLD; iptables-legacy -A RUNCNET-OLD -j RUNCNET-CROSS",
    "user chain gone": "iptables-legacy -D RUNCNET-FORWARD 1; iptables-legacy -X RUNCNET-USER",
}


@pytest.mark.parametrize("script", DRIFT.values(), ids=DRIFT)
def test_drift_is_seen_and_repaired(host: PrivateHost, script: str) -> None:
    ask(host, "replace")
    before = saved(host)
    host.sh(script)
    assert ask(host, "look")["differences"]
    ask(host, "replace")
    assert ask(host, "look")["differences"] == []
    foreign = ["-A FORWARD -j ACCEPT"] if "-I FORWARD -j ACCEPT" in script else []
    assert sorted(saved(host)) == sorted([*before, *foreign])


def test_what_others_wrote_stays(host: PrivateHost) -> None:
    host.sh(
        """
        for p in iptables-legacy ip6tables-legacy; do
            $p -N DOCKER-USER; $p -A DOCKER-USER -p tcp -m multiport --dports 80,443 -j RETURN
            $p -A FORWARD -j DOCKER-USER; $p -P FORWARD DROP
            $p -A FORWARD -m limit --limit 5/min -j LOG --log-prefix "gone: "
            $p -A INPUT -i eth0 -p udp --dport 53 -j REJECT
            $p -t nat -A POSTROUTING -o eth1 -j MASQUERADE --random
            $p -t nat -A PREROUTING -p tcp --dport 81 -j REDIRECT --to-ports 82
            $p -t mangle -A POSTROUTING -j MARK --set-mark 7
        done
        """
    )
    before = saved(host)
    ask(host, "replace")
    assert [line for line in saved(host) if "RUNCNET" not in line] == before
    ask(host, "replace", Policy(networks=(network("red", internal=True),)))
    ask(host, "remove")
    assert saved(host) == before


def test_a_chain_that_others_jump_to_is_emptied_and_stays(host: PrivateHost) -> None:
    ask(host, "replace")
    host.run("iptables-legacy", "-A", "INPUT", "-j", "RUNCNET-CROSS")
    ask(host, "remove")
    left = [line for line in saved(host) if "RUNCNET" in line]
    assert left == [":RUNCNET-CROSS -", "-A INPUT -j RUNCNET-CROSS"]
    assert ask(host, "look", Policy())["differences"] == []


def test_kept_rules_stay_as_they_stand(host: PrivateHost) -> None:
    ask(host, "replace")
    before = saved(host)
    # What this version cannot say, a later one may have written.
    later = "-A RUNCNET-FORWARD -d 10.1.0.11/32 ! -i red0 -p tcp -m tcp --dport 80"
    later += ' -m comment --comment "runcnet:red" -j ACCEPT'
    host.sh(f"iptables-legacy {later.replace('-A RUNCNET-FORWARD', '-I RUNCNET-FORWARD 9')}")
    kept = Policy(networks=(network("blue"),), guards=(4, 6), kept=frozenset({"red"}))
    ask(host, "replace", kept)
    after = saved(host)
    assert later in after
    assert sorted(after) == sorted([*before, later])
    host.sh("iptables-legacy -F RUNCNET-CROSS")
    changed = Policy(networks=(network("blue", internal=True),), kept=frozenset({"red"}))
    ask(host, "replace", changed)
    after = saved(host)
    assert later in after
    assert ask(host, "look", changed)["differences"] == []
    assert (
        '-A RUNCNET-POSTROUTING -s 10.1.0.0/24 -m comment --comment "runcnet:red" -j MASQUERADE'
        in after
    )
    ask(host, "replace", Policy(networks=(network("blue"),)))
    assert not [line for line in saved(host) if "runcnet:red" in line]


def test_the_commands_bring_about_the_same(host: PrivateHost) -> None:
    lines = ask(host, "commands")
    host.sh("\n".join(lines))
    by_hand = saved(host)
    assert ask(host, "look")["differences"] == []
    assert ask(host, "commands") == []
    host.sh("\n".join(ask(host, "commands", Policy())))
    assert not [line for line in saved(host) if "RUNCNET" in line]
    ask(host, "replace")
    assert sorted(saved(host)) == sorted(by_hand)


def test_many_networks(host: PrivateHost) -> None:
    many = tuple(
        network(
            f"n{i}",
            link=f"n{i}",
            subnets=(parse_subnet(f"10.{i}.0.0/16"), parse_subnet(f"fd00:{i}::/64")),
            masquerade=(4, 6),
            uplinks=("eth0", "eth1"),
        )
        for i in range(200)
    )
    ask(host, "replace", Policy(networks=many))
    assert ask(host, "look", Policy(networks=many))["differences"] == []
    assert len(ask(host, "look", Policy(networks=many))["networks"]) == 200


# -- the lock -----------------------------------------------------------------------------------


@contextmanager
def xtables_lock(host: PrivateHost) -> Iterator[None]:
    """The host's lock, held by this process."""
    path = f"/proc/{host._holder.pid}/root/run/xtables.lock"
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def test_a_lock_that_is_held_ends_in_one_sentence(host: PrivateHost) -> None:
    with xtables_lock(host):
        error = ask(host, "replace", lock_s=0.2)["error"]
    assert error.startswith("firewall: lock /run/xtables.lock: another program held it for 0.2 s")
    assert "\n" not in error
    assert ask(host, "look")["differences"]


def test_a_lock_that_is_released_is_waited_for(host: PrivateHost) -> None:
    with xtables_lock(host):
        child = host.start(sys.executable, "-c", DRIVER, "replace", "30")
        assert child.stdin is not None
        child.stdin.write(msgspec.json.encode(BOTH).decode())
        child.stdin.close()
        inode = os.stat(f"/proc/{host._holder.pid}/root/run/xtables.lock").st_ino

        def waits() -> bool:
            with open("/proc/locks") as file:
                return any("->" in line and f":{inode} " in line for line in file)

        wait_for(waits, what="the worker at the lock")
    assert child.wait(30) == 0
    assert ask(host, "look")["differences"] == []


# -- other firewalls, other backends ------------------------------------------------------------


def test_a_dropping_chain_of_nftables_is_named_until_it_accepts(host: PrivateHost) -> None:
    need.program("nft")
    assert ask(host, "warnings") == []
    host.sh(
        """
        nft add table inet guard
        nft 'add chain inet guard pass { type filter hook forward priority 0; policy drop; }'
        nft 'add chain inet guard in { type filter hook input priority 0; policy drop; }'
        nft add table ip mild
        nft 'add chain ip mild pass { type filter hook forward priority 0; policy accept; }'
        """
    )
    (sentence,) = ask(host, "warnings")
    assert "nftables chain inet guard pass" in sentence and "blue0, red0" in sentence
    assert "nft insert rule inet guard pass iifname blue0 accept" in sentence
    host.sh("nft insert rule inet guard pass iifname blue0 accept")
    host.sh("nft add rule inet guard pass iifname red accept")
    (sentence,) = ask(host, "warnings")
    assert "traffic of red0:" in sentence
    host.sh("nft insert rule inet guard pass iifname red0 accept")
    assert ask(host, "warnings") == []
    host.sh("iptables-nft -P FORWARD DROP")
    (sentence,) = ask(host, "warnings")
    assert "nftables chain ip filter FORWARD" in sentence
    host.sh("for l in red0 blue0; do iptables-nft -A FORWARD -i $l -j ACCEPT; done")
    assert ask(host, "warnings") == []


def test_a_dropping_legacy_table_before_filter_is_named(host: PrivateHost) -> None:
    host.sh("iptables-legacy -t mangle -P FORWARD DROP; iptables-legacy -P FORWARD DROP")
    (sentence,) = ask(host, "warnings")
    assert "table mangle (IPv4)" in sentence and "-t mangle -P FORWARD ACCEPT" in sentence
    assert ask(host, "warnings", Policy(networks=(network("red", internal=True),))) == []


def plain(host: PrivateHost, script: str) -> Run:
    """A Python script in the host."""
    return host.run(sys.executable, "-c", script)


def test_none_and_a_look_import_nothing_of_iptables(host: PrivateHost) -> None:
    script = """
import sys
from reconciler.core.policy import Policy
from reconciler.host.firewall import backend
assert backend("none") is None
assert not [m for m in sys.modules if m.startswith(("iptc", "reconciler.host.firewall."))]
backend("auto").look(Policy(guards=(4, 6)))
assert "iptc" not in sys.modules
"""
    plain(host, script)


def test_a_reserved_backend_says_so() -> None:
    with pytest.raises(UsageError, match="reserved, not built yet"):
        backend("nftables")
    with pytest.raises(UsageError, match="unknown"):
        backend("pf")


def test_the_environment_and_the_folder_do_not_reach_the_worker(host: PrivateHost) -> None:
    (host.dir / "iptc.py").write_text("raise SystemExit('not this one')")
    (host.dir / "msgspec.py").write_text("raise SystemExit('not this one')")
    words = " ".join(["env", f"PYTHONSTARTUP={host.dir}/iptc.py", f"IPTABLES_LIBDIR={host.dir}"])
    script = host.dir / "driver"
    script.write_text(DRIVER)
    (host.dir / "policy").write_bytes(msgspec.json.encode(BOTH))
    root = os.getcwd()
    host.sh(
        f"cd {host.dir}; {words} PYTHONPATH={root} {sys.executable} -P driver replace 10 < policy"
    )
    assert ask(host, "look")["differences"] == []


def test_without_the_libraries_there_is_one_sentence(host: PrivateHost) -> None:
    host.sh(
        "for f in /usr/lib/*/libip4tc.so* /usr/lib/*/libip6tc.so*; do mount --bind /dev/null $f; done"
    )
    error = ask(host, "replace")["error"]
    assert error.startswith("firewall: load python-iptables: ")
    assert "--firewall none" in error and "\n" not in error
