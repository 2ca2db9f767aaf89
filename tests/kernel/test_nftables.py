"""The nftables backend against the kernel: what it writes, keeps, repairs and leaves alone."""

import json
import sys

import msgspec
import pytest

from reconciler.core.errors import FirewallError
from reconciler.core.model import Address, HostPort, parse_address, parse_subnet
from reconciler.core.policy import Policy, Publication
from reconciler.host.firewall import Seen
from reconciler.host.firewall.choice import Chosen
from tests.kernel.town import BOTH, ask, network, ruleset, saved, tables
from tests.support import need
from tests.support.host import PrivateHost, wait_for

FOREIGN = """
nft add table inet fence
nft 'add chain inet fence forward { type filter hook forward priority 10; policy accept; }'
nft add rule inet fence forward tcp dport 25 drop
nft 'add chain inet fence pre { type nat hook prerouting priority -90; policy accept; }'
nft add rule inet fence pre tcp dport 81 redirect to :82
nft add table bridge mac
nft 'add set bridge mac good { type ether_addr; elements = { 02:00:00:00:00:01 } }'
iptables-nft -A INPUT -p tcp --dport 53 -j ACCEPT
"""
FILE = """
networks: {red: {subnets: [10.1.0.0/24, "fd01::/64"]}, green: {type: routed, subnets: 10.3.0.0/24}}
containers:
  web: {interfaces: red, ports: "8080:80"}
  far: {interfaces: green, ports: "8081:80/udp"}
"""
A = parse_address


@pytest.fixture
def host(host: PrivateHost) -> PrivateHost:
    """A host whose rules go to nftables."""
    need.program("nft")
    host.firewall = "nftables"
    return host


def published(count: int = 1, port: int = 8080, **changes: object) -> Publication:
    """`red/web`'s port 80, on every address."""
    values: dict[str, object] = {
        "network": "red", "container": "web", "version": 4, "protocol": "tcp", "host_ip": None,
        "host_port": port, "count": count, "target": A("10.1.0.11"), "target_port": 80,
    }  # fmt: skip
    return Publication(**{**values, **changes})  # type: ignore[arg-type]


def everything() -> Policy:
    """A policy with all that a policy can ask for."""
    routed = network(
        "green",
        link="",
        group=0x72000001,
        allow=("blue", "red"),
        host_access=(HostPort("udp", 53, 60), HostPort("udp", 50, 55), HostPort("tcp", 8, 15)),
    )
    red = network(
        "red",
        uplinks=("eth0", "eth1"),
        inbound="open",
        masquerade=(4, 6),
        denied=tuple(map(parse_subnet, ("0.0.0.0/0", "10.0.0.0/8", "fd00::/8", "::/0"))),
        allow=("blue", "green"),
    )
    sealed = network("sealed", internal=True, link="s0", host_access=False, isolate_members=True)
    sealed = msgspec.structs.replace(sealed, subnets=(parse_subnet("10.4.0.0/24"),))
    ports = (
        published(),
        published(version=6, target=A("fd01::11")),
        published(network="green", container="far", protocol="udp", count=11, port=9000,
                  host_ip=A("192.0.2.2"), target=A("10.3.0.11"), target_port=8000),
        published(network="green", container="far", protocol="udp", count=4001, port=10000,
                  target=A("10.3.0.11"), target_port=10000),
        published(network="green", container="far", protocol="tcp", count=5, port=10000, version=6,
                  host_ip=A("2001:db8::1"), target=A("fd03::11"), target_port=10000),
        published(network="green", container="far", protocol="sctp", version=6, port=9000,
                  host_ip=A("2001:db8::1"), target=A("fd03::11")),
    )  # fmt: skip
    return Policy(
        networks=(network("blue", isolate_members=True, inbound="open"), routed, red, sealed),
        guards=(4, 6),
        publications=ports,
    )


def differences(host: PrivateHost, policy: Policy = BOTH) -> list[str]:
    """What a look finds."""
    found: list[str] = ask(host, "look", policy)["differences"]
    return found


def test_a_second_run_changes_nothing_whatever_was_asked_for(host: PrivateHost) -> None:
    steps = (BOTH, everything(), BOTH, Policy(guards=(6,)), everything())
    for policy in steps:
        assert differences(host, policy)
        ask(host, "replace", policy)
        before = ruleset(host)
        assert differences(host, policy) == []
        ask(host, "replace", policy)
        assert ruleset(host) == before
    assert tables(host) == set()


def test_what_is_seen(host: PrivateHost) -> None:
    assert differences(host) == ["table inet runcnet: missing"]
    policy = everything()
    ask(host, "replace", policy)
    seen = ask(host, "look", policy)
    assert sorted(seen["networks"]) == ["blue", "green", "red", "sealed"]
    assert sorted(seen["guards"]) == [4, 6]
    want: dict[str, list[object]] = {}
    for p in policy.publications:
        want.setdefault(p.object, []).append(json.loads(msgspec.json.encode(p.lead)))
    assert seen["ports"] == want
    # Asked for nothing, it tells the same runs by itself.
    alone = ask(host, "look", Policy())["ports"]
    assert {whose: sorted(map(str, leads)) for whose, leads in alone.items()} == {
        whose: sorted(map(str, leads)) for whose, leads in want.items()
    }


def test_before_and_after_the_whole_life_the_rules_are_the_same(host: PrivateHost) -> None:
    host.sh(FOREIGN)
    before = ruleset(host)
    host.write("a.yaml", FILE)
    report = host.reconcile().report
    assert report["converged"]
    assert "the firewall is nftables: it was asked for" in report["notes"]
    assert host.reconcile().changes == []
    assert "runcnet:red/web" in ruleset(host) and "runcnet:green/far" in ruleset(host)
    assert before in ruleset(host)
    host.write("a.yaml", FILE.replace("8080", "8090").replace("8081:80/udp", "8091:80"))
    host.reconcile()
    assert "8080" not in ruleset(host)
    assert host.runcnet("status", "--json").report["firewall"] == []
    host.runcnet("teardown", "--yes")
    assert ruleset(host) == before
    assert tables(host) == set()


DRIFT = {
    "table gone": "nft delete table inet runcnet",
    "everything gone": "nft flush ruleset",
    "dormant": "nft 'add table inet runcnet { flags dormant; }'",
    "chain flushed": "nft flush chain inet runcnet forward4",
    "rule added": "nft insert rule inet runcnet leaving6 accept",
    "rule doubled": "nft add rule inet runcnet forward jump user comment '\"runcnet:host\"'",
    "comment lost": "nft replace rule inet runcnet forward handle $(nft -a list chain inet runcnet "
    "forward | sed -n 's/.*jump user.* handle //p') jump user",
    "element gone": "nft delete element inet runcnet members4 { red0 }",
    "element added": "nft add element inet runcnet members4 { eth7 }",
    "verdict changed": "nft delete element inet runcnet within4 { red0 . red0 }; "
    "nft add element inet runcnet within4 { red0 . red0 comment '\"runcnet:red\"' : drop }",
    "run widened": "nft delete element inet runcnet denied4 { red0 . 0.0.0.0/0 }; "
    "nft add element inet runcnet denied4 { red0 . 0.0.0.0/1 comment '\"runcnet:red\"' }",
    "subnet changed": "nft delete element inet runcnet subnets4 { 10.1.0.0/24 }; "
    "nft add element inet runcnet subnets4 { 10.1.0.0/25 comment '\"runcnet:red\"' }",
    "port led elsewhere": "nft delete element inet runcnet ports4 { tcp . 8080 }; nft add element inet "
    "runcnet ports4 { tcp . 8080 comment '\"runcnet:red/web\"' : 10.1.0.12 . 80 }",
    "policy drop": "nft 'add chain inet runcnet forward { policy drop; }'",
    "base chain of another": "nft 'add chain inet runcnet more { type filter hook forward priority 5; "
    "policy drop; }'",
    "set of another": "nft 'add set inet runcnet more { type ifname; }'",
    "chain led to": "nft add chain inet runcnet more; nft add rule inet runcnet more accept; "
    "nft insert rule inet runcnet forward jump more",
    "user's chain gone": "nft flush chain inet runcnet forward; nft delete chain inet runcnet user",
    "set declared otherwise": "nft flush chain inet runcnet entering4; nft delete set inet runcnet "
    "entrances4; nft 'add set inet runcnet entrances4 { type ifname . ifname; flags interval; }'",
    "no word about bridges": "nft flush chain inet runcnet forward6; nft delete set inet runcnet switched"
    " 2>/dev/null || true",
}


@pytest.mark.parametrize("script", DRIFT.values(), ids=DRIFT)
def test_drift_is_seen_and_repaired(host: PrivateHost, script: str) -> None:
    policy = everything()
    ask(host, "replace", policy)
    before = content(host)
    host.sh(script)
    assert differences(host, policy)
    assert ask(host, "replace", policy) == []
    assert differences(host, policy) == []
    assert content(host) == before


def content(host: PrivateHost) -> list[str]:
    """Our table, in whatever order sets and chains stand, and without handles."""
    said = json.loads(host.run("nft", "-j", "list", "table", "inet", "runcnet").out)["nftables"]
    for item in said:
        for one in item.values():
            one.pop("handle", None)
            if isinstance(one.get("elem"), list):
                one["elem"].sort(key=str)
    rules = [json.dumps(item) for item in said if "rule" in item]
    rest = sorted(json.dumps(item) for item in said if not {"rule", "metainfo"} & set(item))
    names = [json.loads(rule)["rule"]["chain"] for rule in rules]
    return [
        *rest,
        *(rule for _, rule in sorted(zip(names, rules, strict=True), key=lambda x: x[0])),
    ]


def test_counters_of_the_rest_go_on_where_one_port_is_added(host: PrivateHost) -> None:
    # A change of elements is that alone: no rule is written anew.
    many = everything()
    ask(host, "replace", many)
    handles = host.run("nft", "-a", "list", "chain", "inet", "runcnet", "forward4").out
    more = msgspec.structs.replace(many, publications=(*many.publications, published(port=8181)))
    assert differences(host, more) == ["map ports4 (nftables): 1 element missing"]
    ask(host, "replace", more)
    assert host.run("nft", "-a", "list", "chain", "inet", "runcnet", "forward4").out == handles
    assert ask(host, "commands", many) == [
        "nft -f - <<'END'", "delete element inet runcnet ports4 { tcp . 8181 }", "END",
    ]  # fmt: skip


def test_the_commands_bring_about_the_same(host: PrivateHost) -> None:
    policy = everything()
    host.sh("\n".join(ask(host, "commands", policy)))
    assert differences(host, policy) == []
    assert ask(host, "commands", policy) == []
    by_hand = content(host)
    host.sh("\n".join(ask(host, "commands", Policy())))
    assert ruleset(host) == ""
    ask(host, "replace", policy)
    assert content(host) == by_hand


def test_what_is_kept_stays_as_it_stands(host: PrivateHost) -> None:
    policy = everything()
    ask(host, "replace", policy)
    before = content(host)
    # A network's rules, with a mapping that no declaration remembers.
    host.sh(
        "nft add element inet runcnet ports4 { udp . 5353 comment '\"runcnet:red/old\"' : 10.1.0.9 . 53 }"
    )
    others = tuple(n for n in policy.networks if n.name != "red")
    ports = tuple(p for p in policy.publications if p.network != "red")
    kept = msgspec.structs.replace(
        policy, networks=others, publications=ports, kept=frozenset({"red"})
    )
    assert differences(host, kept) == []
    ask(host, "replace", kept)
    assert "5353" in ruleset(host)
    # The same by the container alone.
    one = msgspec.structs.replace(policy, kept_ports=frozenset({"red/old"}))
    assert differences(host, one) == []
    ask(host, "replace", policy)
    assert content(host) == before
    # Kept through the loss of a rule; what the kernel no longer holds cannot be kept.
    host.sh("nft flush chain inet runcnet forward4")
    ask(host, "replace", kept)
    assert content(host) == before
    fewer = msgspec.structs.replace(kept, kept=frozenset())
    ask(host, "replace", fewer)
    assert "runcnet:red" not in ruleset(host).replace("runcnet:red0", "")


def test_a_kept_element_gives_way_to_nothing(host: PrivateHost) -> None:
    ask(host, "replace", Policy(networks=(network("red"),), publications=(published(),)))
    taken = published(container="new", target=A("10.1.0.12"))
    policy = Policy(
        networks=(network("red"),), publications=(taken,), kept_ports=frozenset({"red/web"})
    )
    assert differences(host, policy) == []


def test_the_administrators_chain_survives_and_what_it_needs_stays(host: PrivateHost) -> None:
    ask(host, "replace", everything())
    host.sh(
        """
        nft add chain inet runcnet user_more
        nft 'add set inet runcnet user_hosts { type ipv4_addr; elements = { 10.1.0.11 }; }'
        nft add rule inet runcnet user_more accept
        nft add rule inet runcnet user ip saddr @user_hosts jump user_more
        nft add rule inet runcnet user iifname @members4 oifname @exits_nobody4 accept || true
        nft add rule inet runcnet user iifname @members4 ip daddr 10.9.9.9 accept
        """
    )
    assert differences(host, everything()) == []
    first = host.run("nft", "list", "chain", "inet", "runcnet", "forward").out.splitlines()[3]
    assert "jump user" in first
    for policy in (BOTH, Policy(guards=(4,)), everything()):
        ask(host, "replace", policy)
        assert differences(host, policy) == []
        assert "@user_hosts jump user_more" in ruleset(host)
    ask(host, "remove")
    assert differences(host, Policy()) == []
    left = ruleset(host)
    assert "runcnet:" not in left and "chain forward" not in left
    assert "@user_hosts jump user_more" in left and "10.9.9.9 accept" in left
    host.sh("nft flush chain inet runcnet user; nft delete chain inet runcnet user_more")
    host.sh("nft delete set inet runcnet user_hosts")
    ask(host, "remove")
    assert ruleset(host) == ""


def test_many_networks_and_two_thousand_ports(host: PrivateHost) -> None:
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
    ports = tuple(
        published(
            network="n1", container=f"w{i}", port=10000 + i, target=Address(4, (10 << 24) + i)
        )
        for i in range(2000)
    )
    policy = Policy(networks=many, publications=ports)
    ask(host, "replace", policy)
    assert differences(host, policy) == []
    seen = ask(host, "look", policy)
    assert len(seen["networks"]) == 200 and len(seen["ports"]) == 2000
    rules = [line for line in ruleset(host).splitlines() if "runcnet:host" in line]
    assert len(rules) < 60
    ask(host, "replace", msgspec.structs.replace(policy, publications=ports[:-1]))
    assert differences(host, policy) == ["map ports4 (nftables): 1 element missing"]


TIMES = """
import resource, sys, msgspec
from reconciler.core.policy import Policy
from reconciler.host.firewall import backend
policy = msgspec.json.decode(sys.stdin.buffer.read(), type=Policy)
wall = backend(sys.argv[1])
wall.replace(policy)
fewer = msgspec.structs.replace(policy, publications=policy.publications[:-1])
def spent():
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, whose))
def least(work, times=5):
    def once(step):
        start = spent()
        work(step)
        return spent() - start
    return min(map(once, range(times)))
print(least(lambda step: wall.look(policy)))
print(least(lambda step: wall.replace((fewer, policy)[step % 2]), 6))
"""


def test_two_thousand_ports_cost_milliseconds(host: PrivateHost) -> None:
    ports = tuple(
        published(container=f"w{i}", port=10000 + i, target=Address(4, (10 << 24) + i))
        for i in range(2000)
    )
    policy = Policy(networks=(network("red"),), publications=ports)
    run = host.run(
        *(sys.executable, "-c", TIMES, "nftables"), stdin=msgspec.json.encode(policy).decode()
    )
    look, change = map(float, run.out.split())
    # The processor's time, nft's with it: what other programs take meanwhile does not count.
    assert look < 0.05, run.out
    assert change < 0.05, run.out


def test_an_error_is_one_sentence(host: PrivateHost) -> None:
    host.sh("nft 'add table inet runcnet'; nft 'add chain inet runcnet user { type filter hook input "
            "priority 0; policy accept; }'")  # fmt: skip
    error = ask(host, "replace")["error"]
    assert error.startswith("firewall: change the rules: nft: ") and "\n" not in error


def test_without_nft_there_is_one_sentence_and_the_table_can_go(host: PrivateHost) -> None:
    ask(host, "replace")
    host.sh("mount --bind /dev/null /usr/sbin/nft")
    error = ask(host, "look")["error"]
    assert "there is no nft program (install nftables" in error and "\n" not in error
    ask(host, "remove")
    host.sh("umount /usr/sbin/nft")
    assert ruleset(host) == ""


# -- auto, and from one to the other --------------------------------------------------------------


def notes(host: PrivateHost) -> str:
    """What status has to say about the firewall."""
    return "\n".join(host.runcnet("status", "--json", check=False).report["notes"])


def test_auto_takes_what_the_host_uses_and_says_why(host: PrivateHost) -> None:
    host.firewall = "auto"
    host.write("a.yaml", FILE)
    assert "the firewall is nftables: no legacy table of iptables holds a rule" in notes(host)
    assert tables(host) == set()
    # An empty legacy table is not in use; one with a policy is.
    host.run("iptables-legacy", "-S")
    assert "the firewall is nftables" in notes(host)
    host.run("iptables-legacy", "-P", "FORWARD", "DROP")
    assert (
        "the firewall is iptables: the kernel's legacy tables are in use: filter (IPv4)"
        in notes(host)
    )
    host.run("iptables-legacy", "-P", "FORWARD", "ACCEPT")
    host.run("ip6tables-legacy", "-t", "nat", "-A", "POSTROUTING", "-o", "eth9", "-j", "ACCEPT")
    assert "nat (IPv6)" in notes(host)
    host.reconcile()
    assert "inet runcnet" not in ruleset(host)
    assert [line for line in saved(host) if "RUNCNET-FORWARD" in line]
    # Where the rules stand, they stay.
    host.run("ip6tables-legacy", "-t", "nat", "-D", "POSTROUTING", "-o", "eth9", "-j", "ACCEPT")
    assert "the firewall is iptables: rules of an earlier run stand there" in notes(host)
    assert host.reconcile().changes == []
    said = host.runcnet("doctor").out
    assert "note   firewall: the firewall is iptables" in said


def test_auto_without_nft_is_iptables(host: PrivateHost) -> None:
    host.firewall = "auto"
    host.write("a.yaml", FILE)
    host.sh("mount --bind /dev/null /usr/sbin/nft")
    assert "the firewall is iptables: there is no nft program" in notes(host)
    assert host.reconcile().report["converged"]


def test_both_in_use_is_told(host: PrivateHost) -> None:
    host.write("a.yaml", FILE)
    host.run("iptables-legacy", "-A", "INPUT", "-j", "ACCEPT")
    assert "both firewalls are in use: the legacy tables filter (IPv4) hold rules" in notes(host)
    host.sh(FOREIGN)
    host.firewall = "iptables"
    said = notes(host)
    assert "both firewalls are in use: nftables hold inet fence, ip filter" in said


@pytest.mark.parametrize("first,second", [("iptables", "nftables"), ("nftables", "iptables")])
def test_rules_move_and_none_is_left(host: PrivateHost, first: str, second: str) -> None:
    host.firewall = first
    host.write("a.yaml", FILE)
    host.reconcile()
    before = host.ours()
    host.firewall = second
    report = host.reconcile().report
    assert report["converged"]
    assert f"the rules have moved from {first} to {second}" in report["notes"]
    assert host.reconcile().changes == []
    rules = " ".join(host.ours()["rules"])
    assert ("RUNCNET" in rules) == (second == "iptables")
    assert ("table inet runcnet" in rules) == (second == "nftables")
    # The plan's commands move them back.
    host.firewall = first
    host.sh(host.runcnet("plan", "--commands").out)
    assert host.reconcile().changes == []
    assert host.ours() == before
    host.firewall = second
    host.runcnet("teardown", "--yes")
    assert host.ours()["rules"] == []


class Recorder:
    """A backend that notes what is asked of it."""

    def __init__(self, name: str, log: list[str], *, stands: bool, fails: bool = False) -> None:
        self.name, self.log, self.stands, self.fails = name, log, stands, fails

    def look(self, policy: Policy) -> Seen:
        told = ("stands",) if self.stands == (policy == Policy()) else ()
        return Seen(differences=told, networks=frozenset(), guards=frozenset(), ports={}, notes=())

    def replace(self, policy: Policy) -> tuple[str, ...]:
        self.log.append(f"{self.name} replaces")
        if self.fails:
            raise FirewallError("no")
        return ()

    def remove(self) -> None:
        self.log.append(f"{self.name} removes")


@pytest.mark.parametrize("fails", [False, True])
def test_the_old_rules_go_only_once_the_new_ones_stand(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    wall = Chosen("nftables")
    monkeypatch.setattr(wall, "_iptables", Recorder("iptables", log, stands=True))
    monkeypatch.setattr(wall, "_nftables", Recorder("nftables", log, stands=False, fails=fails))
    if fails:
        with pytest.raises(FirewallError):
            wall.replace(BOTH)
        assert log == ["nftables replaces"]
    else:
        assert wall.replace(BOTH) == ("the rules have moved from iptables to nftables",)
        assert log == ["nftables replaces", "iptables removes"]


def test_the_plan_takes_the_old_rules_away_last(host: PrivateHost) -> None:
    host.write("a.yaml", FILE)
    host.reconcile()
    host.firewall = "iptables"
    lines = host.runcnet("plan", "--commands").out.splitlines()
    last_new = max(i for i, line in enumerate(lines) if line.startswith(("iptables", "ip6tables")))
    assert last_new < lines.index("delete table inet runcnet")


def test_what_is_kept_does_not_move(host: PrivateHost) -> None:
    host.firewall = "iptables"
    host.write("a.yaml", FILE)
    host.write("b.yaml", "networks: {blue: {subnets: 10.2.0.0/24}}\n")
    host.reconcile()
    host.sh(f"rm -rf {host.state}")  # nothing remembers what the broken file said
    host.write("b.yaml", "networks: {blue: {subnets: [")
    host.firewall = "nftables"
    host.reconcile(check=False)
    assert [line for line in saved(host) if "runcnet:blue" in line]
    assert "the rules of blue are kept there until their files can be read" in notes(host)
    host.write("b.yaml", "networks: {blue: {subnets: 10.2.0.0/24}}\n")
    host.reconcile()
    assert not [line for line in saved(host) if "RUNCNET" in line]
    assert "runcnet:blue" in ruleset(host)


def test_rules_of_the_administrator_that_are_left_behind_are_told(host: PrivateHost) -> None:
    host.firewall = "iptables"
    host.write("a.yaml", FILE)
    host.reconcile()
    host.run("iptables-legacy", "-A", "RUNCNET-USER", "-s", "10.9.0.0/16", "-j", "ACCEPT")
    host.firewall = "nftables"
    host.reconcile()
    assert "the legacy chain RUNCNET-USER holds rules that no packet meets" in notes(host)
    host.run("nft", "add", "rule", "inet", "runcnet", "user", "tcp", "dport", "25", "drop")
    host.firewall = "iptables"
    host.reconcile()
    assert "the nftables chain inet runcnet user holds rules that no packet meets" in notes(host)


# -- other firewalls ------------------------------------------------------------------------------


def test_a_legacy_policy_that_drops_is_named_until_it_accepts(host: PrivateHost) -> None:
    ask(host, "replace")
    assert ask(host, "warnings") == []
    host.run("ip6tables-legacy", "-P", "FORWARD", "DROP")
    (sentence,) = ask(host, "warnings")
    assert "legacy chain FORWARD in table filter (IPv6)" in sentence and "blue0, red0" in sentence
    assert "ip6tables-legacy -I FORWARD -i blue0 -j ACCEPT" in sentence
    for link in ("blue0", "red0"):
        host.run("ip6tables-legacy", "-I", "FORWARD", "-i", link, "-j", "ACCEPT")
    assert ask(host, "warnings") == []


def test_our_own_table_is_no_foreign_firewall(host: PrivateHost) -> None:
    ask(host, "replace")
    host.sh("nft 'add chain inet runcnet forward { policy drop; }'")
    assert ask(host, "warnings") == []


# -- the daemon -----------------------------------------------------------------------------------


def test_the_daemon_hears_that_a_rule_is_gone(host: PrivateHost) -> None:
    host.write("a.yaml", FILE)
    with host.daemon():
        wanted = content(host)
        for script in ("nft flush chain inet runcnet forward4", "nft delete table inet runcnet",
                       "nft delete element inet runcnet ports4 { tcp . 8080 }"):  # fmt: skip
            host.sh(script)
            # Long before the look of every ten seconds.
            wait_for(lambda: same(host, wanted), 5.0, f"the repair after {script}")


def same(host: PrivateHost, wanted: list[str]) -> bool:
    """Whether our table is there, and as it was."""
    return "table inet runcnet" in host.run("nft", "list", "tables").out and content(host) == wanted


def test_how_long_locks_are_waited_for_is_handed_on() -> None:
    wall = Chosen("auto")
    wall.lock_timeout_s = 0.25
    assert wall._iptables.lock_timeout_s == 0.25


def test_a_guard_behind_which_somebody_has_put_a_rule_is_known_as_one(host: PrivateHost) -> None:
    """It says by itself that forwarding is on by us, where the state that says so is lost."""
    ask(host, "replace", Policy(guards=(4, 6)))
    for version in (4, 6):
        host.sh(f"nft add rule inet runcnet forward{version} accept")
        host.sh(f"nft insert rule inet runcnet forward{version} counter")
    assert sorted(ask(host, "look", Policy())["guards"]) == [4, 6]
