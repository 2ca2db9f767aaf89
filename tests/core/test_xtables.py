"""The policy as chains: what a packet meets, and how any state of the tables is mended."""

import itertools
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core import xtables
from reconciler.core.chains import networks_in, ports_in, wanted
from reconciler.core.model import Address, HostPort, parse_address, parse_subnet
from reconciler.core.policy import NetworkPolicy, Policy, Publication
from reconciler.core.xtables import Edit, Rule

SUBNETS = {
    name: (parse_subnet(f"10.{i}.0.0/16"), parse_subnet(f"fd0{i}::/64"))
    for i, name in enumerate(["alpha", "beta", "gamma", "host"])
}
LINKS = [*(f"{name}0" for name in SUBNETS), "eth0", "eth1"]
JUMP = xtables.JUMPS["filter"]["FORWARD"]
FAR = {4: (parse_address("10.2.7.7"), parse_address("198.51.100.1")),
       6: (parse_address("fd02::77"), parse_address("2001:db8::1"))}  # fmt: skip
DENIED = (parse_subnet("10.2.0.0/16"), parse_subnet("198.51.100.0/24"), parse_subnet("fd02::/64"))


def network(name: str, /, **changes: object) -> NetworkPolicy:
    """A network with every default, but for what the test is about."""
    defaults: dict[str, object] = {
        "name": name,
        "link": f"{name}0",
        "subnets": SUBNETS[name],
        "uplinks": (),
        "masquerade": (4,),
        "inbound": "established",
        "internal": False,
        "isolate_members": False,
    }
    return NetworkPolicy(**{**defaults, **changes})  # type: ignore[arg-type]


@st.composite
def networks(draw: st.DrawFn) -> NetworkPolicy:
    """Any network that the files can declare."""
    name = draw(st.sampled_from(sorted(SUBNETS)))
    return network(
        name,
        subnets=tuple(draw(st.lists(st.sampled_from(SUBNETS[name]), min_size=1, unique=True))),
        uplinks=tuple(draw(st.lists(st.sampled_from(["eth0", "eth1"]), unique=True))),
        masquerade=tuple(draw(st.lists(st.sampled_from([4, 6]), unique=True))),
        inbound=draw(st.sampled_from(["established", "open"])),
        internal=draw(st.booleans()),
        isolate_members=draw(st.booleans()),
        allow=tuple(draw(st.lists(st.sampled_from(sorted(SUBNETS)), max_size=2, unique=True))),
        denied=tuple(draw(st.lists(st.sampled_from(DENIED), max_size=2, unique=True))),
        host_access=draw(st.sampled_from([True, False, (), (HostPort("udp", 53, 53),)])),
    )


def published(name: str, container: str, port: int, version: int = 4) -> Publication:
    """A port of a container of that network, on every address of the host."""
    subnet = next(s for s in SUBNETS[name] if s.version == version)
    return Publication(
        network=name,
        container=container,
        version=version,
        protocol="tcp",
        host_ip=None,
        host_port=port,
        count=1,
        target=Address(version, subnet.value + 7),
        target_port=80,
    )


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Any policy; networks that are kept are not among the declared."""
    drawn = draw(st.lists(networks(), max_size=4, unique_by=lambda n: n.name))
    kept = draw(st.frozensets(st.sampled_from(sorted(SUBNETS))))
    open_ = draw(st.lists(st.sampled_from(drawn), unique_by=lambda n: n.name)) if drawn else []
    ports = [
        published(n.name, "web", 8000 + i, s.version)
        for i, n in enumerate(open_)
        if not n.internal
        for s in n.subnets
    ]
    return Policy(
        publications=tuple(sorted(ports, key=lambda p: p.rank)),
        kept_ports=draw(st.frozensets(st.sampled_from(["alpha/old", "beta/old"]))),
        networks=tuple(sorted(drawn, key=lambda n: n.name)),
        guards=tuple(draw(st.lists(st.sampled_from([4, 6]), unique=True))),
        kept=kept - {n.name for n in drawn},
    )


def rules(targets: list[str]) -> st.SearchStrategy[Rule]:
    """Rules as anybody may have written them, ours among them."""
    return st.builds(
        Rule,
        target=st.sampled_from(targets),
        comment=st.sampled_from(
            ["", "theirs", "runcnet:host", "runcnet:alpha", "runcnet:beta", "runcnet:alpha/old"]
        ),
        in_link=st.sampled_from(["", *LINKS]),
        out_link=st.sampled_from(["", *LINKS]),
        replies=st.booleans(),
        other=st.sampled_from([b"", b"", b"tcp dpt:80"]),
    )


@st.composite
def tables(draw: st.DrawFn, table: str) -> dict[str, tuple[Rule, ...]]:
    """A table in any state: chains of ours half made, doubled jumps, chains of others."""
    ours = {
        "filter": [
            "RUNCNET-FORWARD",
            "RUNCNET-INPUT",
            "RUNCNET-CROSS",
            "RUNCNET-USER",
            "RUNCNET-OLD",
        ],
        "nat": ["RUNCNET-PORTS", "RUNCNET-POSTROUTING", "RUNCNET-USER"],
        "raw": ["RUNCNET-PREROUTING", "RUNCNET-USER"],
    }
    bases = xtables.JUMPS[table]
    names = draw(st.lists(st.sampled_from([*ours[table], "DOCKER-USER", "THEIRS"]), unique=True))
    chains = {}
    for name in [*bases, "SOME", *names]:
        # A chain cannot jump to itself or in a circle: only to those after it.
        later = names if name not in names else names[names.index(name) + 1 :]
        if not name.startswith("RUNCNET-"):
            later = [n for n in later if name in bases or n == "RUNCNET-USER"]
        drawn = rules([*later, "ACCEPT", "DROP", "RETURN", *["MASQUERADE"] * (table == "nat")])
        chains[name] = tuple(draw(st.lists(drawn, max_size=4)))
    return chains


def applied(have: xtables.Chains, steps: list[Edit]) -> dict[str, list[Rule]]:
    """What the kernel holds after a commit, with the refusals of libiptc."""
    chains = {name: list(found) for name, found in have.items()}
    for verb, chain, rule, number in steps:
        if verb == "new":
            assert chain not in chains
            chains[chain] = []
        elif verb == "flush":
            chains[chain] = []
        elif verb == "append":
            assert rule is not None
            chains[chain].append(rule)
        elif verb == "insert":
            assert rule is not None
            chains[chain].insert(number - 1, rule)
        elif verb == "delete":
            assert chains[chain].pop(number - 1) == rule
        else:
            assert verb == "remove"
            assert not chains.pop(chain), "libiptc refuses to remove a chain with rules"
            assert all(r.target != chain for found in chains.values() for r in found)
    for found in chains.values():
        for r in found:
            assert not r.target.startswith("RUNCNET-") or r.target in chains
    return chains


@pytest.mark.parametrize("table", xtables.JUMPS)
@settings(max_examples=80)
@given(data=st.data(), policy=policies(), version=st.sampled_from([4, 6]), bridged=st.booleans())
def test_any_state_is_mended_in_one_commit_and_what_is_foreign_stays(
    table: str, data: st.DataObject, policy: Policy, version: int, bridged: bool
) -> None:
    have = data.draw(tables(table))
    want = wanted(policy, version=version, table=table, have=have, bridged=bridged)
    steps = xtables.edits(want, have, table=table)
    after = applied(have, steps)
    settled = {name: tuple(found) for name, found in after.items()}

    bases = xtables.JUMPS[table]
    assert wanted(policy, version=version, table=table, have=settled, bridged=bridged) == want
    assert xtables.edits(want, settled, table=table) == []
    assert xtables.differences(want, settled, version=version, table=table) == []
    assert bool(steps) == bool(xtables.differences(want, have, version=version, table=table))
    assert {name: settled[name] for name in want} == dict(want)
    for name, found in have.items():
        if name in bases:
            theirs = [r for r in found if not r.target.startswith("RUNCNET-")]
            assert [r for r in after[name] if not r.target.startswith("RUNCNET-")] == theirs
        elif not name.startswith("RUNCNET-"):
            assert settled[name] == found
    if have.get("RUNCNET-USER"):
        assert settled["RUNCNET-USER"] == have["RUNCNET-USER"]
    for base, jump in bases.items():
        jumps = [r for r in after[base] if r.target.startswith("RUNCNET-")]
        assert jumps == ([jump] if jump.target in want else [])


class Packet(NamedTuple):
    """A packet that is routed through the host; of a first one nothing is known yet."""

    source: str
    to: str
    destination: Address
    reply: bool = False
    translated: bool = False


def verdict(chains: xtables.Chains, start: str, packet: Packet) -> str:
    """What happens to it: the rules read as the kernel reads them."""
    for rule in chains[start]:
        met = rule.in_link in ("", packet.source) and rule.out_link in ("", packet.to)
        met = met and (rule.destination is None or rule.destination.holds(packet.destination))
        met = met and (packet.translated or not rule.translated)
        if not met or rule.bridged or (rule.replies and not packet.reply):
            continue
        result = rule.target
        if result in chains:
            result = verdict(chains, result, packet)
        if result in ("ACCEPT", "DROP"):
            return result
        if result == "RETURN" and rule.target == "RETURN":
            return "RETURN"
    return "RETURN"


def promised(policy: Policy, version: int, packet: Packet) -> str:
    """What the declaration promises, said without chains."""
    source, to, destination, reply, translated = packet
    present = [n for n in policy.networks if any(s.version == version for s in n.subnets)]
    by_link = {n.link: n for n in present}
    from_, into = by_link.get(source), by_link.get(to)
    open_ = {p.network for p in policy.publications} | {k.split("/")[0] for k in policy.kept_ports}
    if from_ and from_.internal:
        return "ACCEPT" if from_ is into and not into.isolate_members else "DROP"
    if into and into.internal:
        return "DROP"
    if reply and (into or (from_ and from_.name in open_)):
        return "ACCEPT"
    if from_ and from_ is into:
        return "DROP" if into.isolate_members else "ACCEPT"
    if from_ and any(s.holds(destination) for s in from_.denied):
        return "DROP"
    if from_ and into:
        wanted_ = from_.name in into.allow or (translated and into.name in open_)
        return "ACCEPT" if wanted_ else "DROP"
    if into:
        entrance = not into.uplinks or source in into.uplinks
        opened = into.inbound == "open" and entrance
        return "ACCEPT" if opened or (translated and into.name in open_) else "DROP"
    if from_:
        return "ACCEPT" if not from_.uplinks or to in from_.uplinks else "DROP"
    return "DROP" if version in policy.guards else "RETURN"


@settings(max_examples=150)
@given(policy=policies(), version=st.sampled_from([4, 6]), bridged=st.booleans())
def test_a_packet_meets_what_was_declared(policy: Policy, version: int, bridged: bool) -> None:
    chains = wanted(policy, version=version, table="filter", have={}, bridged=bridged)
    either = [False, True]
    for packet in map(Packet, *zip(*itertools.product(LINKS, LINKS, FAR[version], either, either),
                                   strict=True)):  # fmt: skip
        found = verdict(chains, "RUNCNET-FORWARD", packet) if chains else "RETURN"
        assert found == promised(policy, version, packet), packet


def test_the_loopback_is_closed_to_others_as_long_as_a_port_leads_out_of_it() -> None:
    closed = Rule("DROP", "runcnet:host", not_in_link="lo", destination=parse_subnet("127.0.0.0/8"))
    policy = Policy(networks=(network("alpha"),), publications=(published("alpha", "web", 80),))
    have = wanted(policy, version=4, table="raw", have={}, bridged=False)
    assert have == {"RUNCNET-PREROUTING": (closed,)}
    assert wanted(policy, version=6, table="raw", have={}, bridged=False) == {}
    kept = Policy(networks=policy.networks, kept_ports=frozenset({"alpha/web"}))
    assert wanted(kept, version=4, table="raw", have=have, bridged=False) == have
    assert wanted(Policy(), version=4, table="raw", have=have, bridged=False) == {}


def test_ports_that_are_kept_stay_and_new_ones_come_beside_them() -> None:
    policy = Policy(networks=(network("alpha"),), publications=(published("alpha", "web", 80),))
    have = wanted(policy, version=4, table="nat", have={}, bridged=False)
    new = published("alpha", "db", 81)
    kept = Policy(
        networks=policy.networks, publications=(new,), kept_ports=frozenset({"alpha/web"})
    )
    after = wanted(kept, version=4, table="nat", have=have, bridged=False)
    assert ports_in(after, 4) == {
        "alpha/web": (policy.publications[0].lead,),
        "alpha/db": (new.lead,),
    }
    assert after["RUNCNET-POSTROUTING"] == have["RUNCNET-POSTROUTING"]
    filtered = wanted(policy, version=4, table="filter", have={}, bridged=False)
    assert wanted(kept, version=4, table="filter", have=filtered, bridged=False) == filtered


def test_one_port_among_thousands_is_one_rule() -> None:
    def chains(count: int) -> xtables.Chains:
        whole = [published("alpha", f"w-{i:04}", 1000 + i) for i in range(2000)]
        ports = tuple(p for i, p in enumerate(whole) if count == 2000 or i != 1000)
        policy = Policy(networks=(network("alpha"),), publications=ports)
        jumps = {base: (jump,) for base, jump in xtables.JUMPS["nat"].items()}
        return {**jumps, **wanted(policy, version=4, table="nat", have={}, bridged=False)}

    steps = xtables.edits(chains(2000), chains(1999), table="nat")
    assert [(step.verb, step.chain) for step in steps] == [("insert", "RUNCNET-PORTS")]
    steps = xtables.edits(chains(1999), chains(2000), table="nat")
    assert [(step.verb, step.chain) for step in steps] == [("delete", "RUNCNET-PORTS")]


def test_rules_grow_with_networks_and_not_with_pairs() -> None:
    def count(number: int) -> int:
        many = tuple(
            network("alpha", name=f"n{i:03}", link=f"n{i}", inbound="open") for i in range(number)
        )
        return sum(
            len(found)
            for table in xtables.JUMPS
            for found in wanted(
                Policy(networks=many), version=4, table=table, have={}, bridged=False
            ).values()
        )

    assert count(200) - count(100) == count(100) - count(0) - 1


def test_kept_rules_stay_among_the_others_in_their_phase() -> None:
    # That one of them lets the other in, only it says; the other's link, only the rules.
    beta = network("beta", inbound="open", allow=("alpha",))
    both = Policy(networks=(network("alpha"), beta), guards=(4,))
    have = wanted(both, version=4, table="filter", have={}, bridged=True)
    kept = Policy(networks=(beta,), guards=(4,), kept=frozenset({"alpha"}))
    assert wanted(kept, version=4, table="filter", have=have, bridged=True) == have
    nat = wanted(both, version=4, table="nat", have={}, bridged=True)
    assert wanted(kept, version=4, table="nat", have=nat, bridged=True) == nat


def test_a_network_named_host_is_told_from_the_host() -> None:
    policy = Policy(networks=(network("host"),), guards=(4,))
    have = wanted(policy, version=4, table="filter", have={}, bridged=True)
    assert networks_in(have) == {"host"}
    kept = Policy(guards=(4,), kept=frozenset({"host"}))
    assert wanted(kept, version=4, table="filter", have=have, bridged=True) == have


def test_an_empty_policy_asks_for_no_chain() -> None:
    for table in xtables.JUMPS:
        assert wanted(Policy(), version=4, table=table, have={}, bridged=True) == {}


def test_a_network_without_a_subnet_of_a_version_has_no_rules_there() -> None:
    policy = Policy(networks=(network("alpha", subnets=SUBNETS["alpha"][:1]),))
    assert wanted(policy, version=6, table="filter", have={}, bridged=True) == {}
    assert wanted(policy, version=6, table="nat", have={}, bridged=True) == {}


REJECT = Rule("REJECT", other=b"x")
HARMLESS = [
    Rule("DOCKER-USER"),
    Rule("DOCKER-USER", in_link="eth0"),
    Rule(""),
    Rule("", other=b"tcp dpt:80"),
    Rule("LOG", other=b"log"),
    Rule("ACCEPT", in_link="docker0", out_link="docker0"),
    Rule("DROP", in_link="docker0", out_link="eth0"),
    Rule("ACCEPT", in_group=5, out_link="eth0"),
    REJECT._replace(ends=("docker0", "docker1")),
]
DECISIVE = [
    Rule("ACCEPT"),
    Rule("DROP", other=b"x"),
    Rule("RETURN"),  # in a built-in chain: the policy has its word
    Rule("ACCEPT", in_link="docker0"),
    Rule("DROP", out_link="docker0"),
    Rule("ACCEPT", in_link="alpha0", out_link="docker0"),
    Rule("ACCEPT", in_link="eth0", out_group=7),
    Rule("ACCEPT", source=SUBNETS["beta"][0]),
    REJECT,
    REJECT._replace(ends=("docker0", "")),
    REJECT._replace(ends=("", "docker0")),
    Rule("DOCKER-USER", other=b"goto"),
    Rule("NFQUEUE", other=b"queue"),
]


def standing_with(
    rules: tuple[Rule, ...], jump: Rule = JUMP
) -> tuple[xtables.Chains, xtables.Chains]:
    """Wanted chains, and a table that holds them, with these rules before the jump."""
    policy = Policy(networks=(network("alpha"), network("beta", link="", group=7)))
    want = dict(wanted(policy, version=4, table="filter", have={}, bridged=False))
    have = {**want, "DOCKER-USER": (), "OTHERS": (), "FORWARD": (*rules, jump)}
    return want, have


@pytest.mark.parametrize("first", HARMLESS, ids=str)
def test_the_jump_stays_behind_rules_that_cannot_decide(first: Rule) -> None:
    want, have = standing_with((first,))
    assert xtables.edits(want, have, table="filter") == []


@pytest.mark.parametrize("first", DECISIVE, ids=str)
def test_the_jump_comes_before_rules_that_could_decide(first: Rule) -> None:
    want, have = standing_with((Rule("OTHERS"), first, Rule("LOG", other=b"l")))
    (line,) = xtables.differences(want, have, version=4, table="filter")
    assert line == "jump from FORWARD (IPv4 filter): out of place" and xtables.moves([line])
    after = applied(have, xtables.edits(want, have, table="filter"))
    assert after["FORWARD"] == [JUMP, Rule("OTHERS"), first, Rule("LOG", other=b"l")]
    assert xtables.edits(want, have, table="filter", yielding=True) == []


def test_administrators_chains_of_other_tools_are_asked_before_ours() -> None:
    docker = (Rule("DOCKER-USER"), Rule("OTHERS"), Rule("DROP"))
    want, have = standing_with(docker)
    after = applied(have, xtables.edits(want, have, table="filter"))
    assert after["FORWARD"] == [docker[0], JUMP, *docker[1:]]
    # Patience is for a jump that stands: one that is gone comes back.
    gone = {**have, "FORWARD": docker}
    after = applied(gone, xtables.edits(want, gone, table="filter", yielding=True))
    assert after["FORWARD"] == [docker[0], JUMP, *docker[1:]]


def test_a_rule_before_the_jump_of_ports_matters_where_it_meets_one() -> None:
    policy = Policy(networks=(network("alpha"),), publications=(published("alpha", "web", 8080),))
    want = dict(wanted(policy, version=4, table="nat", have={}, bridged=False))
    jumps = xtables.JUMPS["nat"]
    have = {**want, **{base: (jump,) for base, jump in jumps.items()}}
    redirect = Rule("REDIRECT", protocol="tcp", ports=(8000, 8079))
    for first, moved in (
        (redirect, False),
        (redirect._replace(ports=(8080, 8090)), True),
        (redirect._replace(ports=(0, 0)), True),
        (redirect._replace(protocol="udp", ports=(8080, 8080)), False),
        (Rule("REDIRECT", other=b"x"), True),
    ):
        found = {**have, "PREROUTING": (first, jumps["PREROUTING"])}
        assert bool(xtables.edits(want, found, table="nat")) == moved, first


def test_differences_are_readable() -> None:
    policy = Policy(networks=(network("alpha"),))
    want = dict(wanted(policy, version=4, table="filter", have={}, bridged=False))
    first, *rest = want["RUNCNET-FORWARD"]
    have = {
        **want,
        "RUNCNET-FORWARD": (*rest, first),
        "RUNCNET-CROSS": (Rule("ACCEPT"),),
        "FORWARD": (JUMP,) * 2,
        "RUNCNET-OLD": (),
    }
    assert xtables.differences(want, have, version=4, table="filter") == [
        "chain RUNCNET-FORWARD (IPv4 filter): rules out of order",
        "chain RUNCNET-CROSS (IPv4 filter): 1 rule missing, 1 rule not wanted",
        "jump from FORWARD (IPv4 filter): repeated",
        "chain RUNCNET-OLD (IPv4 filter): no longer wanted",
    ]


def test_commands_say_the_same_as_the_edits() -> None:
    steps = [
        Edit("new", "RUNCNET-FORWARD"),
        Edit("append", "RUNCNET-FORWARD", Rule("ACCEPT", "runcnet:a", out_link="a0", replies=True)),
        Edit("insert", "FORWARD", JUMP, 1),
        Edit("delete", "FORWARD", JUMP, 3),
        Edit("remove", "RUNCNET-OLD"),
    ]
    lead = "ip6tables-legacy -w -t filter"
    assert xtables.commands(steps, version=6, table="filter") == [
        f"{lead} -N RUNCNET-FORWARD",
        f"{lead} -A RUNCNET-FORWARD -o a0 -m conntrack --ctstate RELATED,ESTABLISHED"
        " -m comment --comment runcnet:a -j ACCEPT",
        f"{lead} -I FORWARD 1 -m comment --comment runcnet:host -j RUNCNET-FORWARD",
        f"{lead} -D FORWARD 3",
        f"{lead} -X RUNCNET-OLD",
    ]
