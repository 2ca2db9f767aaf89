"""The policy as chains: what a packet meets, and how any state of the tables is mended."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core import xtables
from reconciler.core.model import parse_subnet
from reconciler.core.policy import NetworkPolicy, Policy
from reconciler.core.xtables import Edit, Rule

SUBNETS = {
    name: (parse_subnet(f"10.{i}.0.0/16"), parse_subnet(f"fd0{i}::/64"))
    for i, name in enumerate(["alpha", "beta", "gamma", "host"])
}
LINKS = [*(f"{name}0" for name in SUBNETS), "eth0", "eth1"]


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
    )


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Any policy; networks that are kept are not among the declared."""
    drawn = draw(st.lists(networks(), max_size=4, unique_by=lambda n: n.name))
    kept = draw(st.frozensets(st.sampled_from(sorted(SUBNETS))))
    return Policy(
        networks=tuple(sorted(drawn, key=lambda n: n.name)),
        guards=tuple(draw(st.lists(st.sampled_from([4, 6]), unique=True))),
        kept=kept - {n.name for n in drawn},
    )


def rules(targets: list[str]) -> st.SearchStrategy[Rule]:
    """Rules as anybody may have written them, ours among them."""
    return st.builds(
        Rule,
        target=st.sampled_from(targets),
        comment=st.sampled_from(["", "theirs", "runcnet:host", "runcnet:alpha", "runcnet:beta"]),
        in_link=st.sampled_from(["", *LINKS]),
        out_link=st.sampled_from(["", *LINKS]),
        replies=st.booleans(),
        other=st.sampled_from([b"", b"", b"tcp dpt:80"]),
    )


@st.composite
def tables(draw: st.DrawFn, table: str) -> dict[str, tuple[Rule, ...]]:
    """A table in any state: chains of ours half made, doubled jumps, chains of others."""
    ours = {
        "filter": ["RUNCNET-FORWARD", "RUNCNET-CROSS", "RUNCNET-USER", "RUNCNET-OLD"],
        "nat": ["RUNCNET-POSTROUTING", "RUNCNET-USER"],
    }
    names = draw(st.lists(st.sampled_from([*ours[table], "DOCKER-USER", "THEIRS"]), unique=True))
    chains = {}
    for name in [xtables.BASE[table], "INPUT", *names]:
        # A chain cannot jump to itself or in a circle: only to those after it.
        later = names if name not in names else names[names.index(name) + 1 :]
        if not name.startswith("RUNCNET-"):
            later = [n for n in later if name == xtables.BASE[table] or n == "RUNCNET-USER"]
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


@pytest.mark.parametrize("table", ["filter", "nat"])
@settings(max_examples=80)
@given(data=st.data(), policy=policies(), version=st.sampled_from([4, 6]), bridged=st.booleans())
def test_any_state_is_mended_in_one_commit_and_what_is_foreign_stays(
    table: str, data: st.DataObject, policy: Policy, version: int, bridged: bool
) -> None:
    have = data.draw(tables(table))
    want = xtables.wanted(policy, version=version, table=table, have=have, bridged=bridged)
    steps = xtables.edits(want, have, table=table)
    after = applied(have, steps)
    settled = {name: tuple(found) for name, found in after.items()}

    base = xtables.BASE[table]
    assert (
        xtables.wanted(policy, version=version, table=table, have=settled, bridged=bridged) == want
    )
    assert xtables.edits(want, settled, table=table) == []
    assert xtables.differences(want, settled, version=version, table=table) == []
    assert bool(steps) == bool(xtables.differences(want, have, version=version, table=table))
    assert {name: settled[name] for name in want} == dict(want)
    for name, found in have.items():
        if name == base:
            theirs = [r for r in found if not r.target.startswith("RUNCNET-")]
            assert [r for r in after[base] if not r.target.startswith("RUNCNET-")] == theirs
        elif not name.startswith("RUNCNET-"):
            assert settled[name] == found
    if have.get("RUNCNET-USER"):
        assert settled["RUNCNET-USER"] == have["RUNCNET-USER"]
    jumps = [r for r in after[base] if r.target.startswith("RUNCNET-")]
    assert jumps == ([xtables.JUMPS[table]] if xtables.TOP[table] in want else [])


def verdict(chains: xtables.Chains, start: str, source: str, to: str, *, reply: bool) -> str:
    """What happens to a routed packet: the rules read as the kernel reads them."""
    for rule in chains[start]:
        met = rule.in_link in ("", source) and rule.out_link in ("", to)
        if not met or rule.bridged or (rule.replies and not reply):
            continue
        result = rule.target
        if result in chains:
            result = verdict(chains, result, source, to, reply=reply)
        if result in ("ACCEPT", "DROP"):
            return result
        if result == "RETURN" and rule.target == "RETURN":
            return "RETURN"
    return "RETURN"


def promised(policy: Policy, version: int, source: str, to: str, *, reply: bool) -> str:
    """What the declaration promises, said without chains."""
    present = [n for n in policy.networks if any(s.version == version for s in n.subnets)]
    by_link = {n.link: n for n in present}
    from_, into = by_link.get(source), by_link.get(to)
    if into and reply and not into.internal:
        return "ACCEPT"
    if from_ and from_ is into:
        return "DROP" if into.isolate_members else "ACCEPT"
    if from_ and into:
        return "DROP"
    if into:
        entrance = not into.uplinks or source in into.uplinks
        opened = into.inbound == "open" and not into.internal and entrance
        return "ACCEPT" if opened else "DROP"
    if from_:
        exit_ = not from_.uplinks or to in from_.uplinks
        return "ACCEPT" if exit_ and not from_.internal else "DROP"
    return "DROP" if version in policy.guards else "RETURN"


@settings(max_examples=80)
@given(policy=policies(), version=st.sampled_from([4, 6]), bridged=st.booleans())
def test_a_packet_meets_what_was_declared(policy: Policy, version: int, bridged: bool) -> None:
    chains = xtables.wanted(policy, version=version, table="filter", have={}, bridged=bridged)
    for source, to, reply in itertools.product(LINKS, LINKS, [False, True]):
        top = "RUNCNET-FORWARD"
        found = verdict(chains, top, source, to, reply=reply) if chains else "RETURN"
        assert found == promised(policy, version, source, to, reply=reply), (source, to, reply)


def test_rules_grow_with_networks_and_not_with_pairs() -> None:
    def count(number: int) -> int:
        many = tuple(
            network("alpha", name=f"n{i:03}", link=f"n{i}", inbound="open") for i in range(number)
        )
        return sum(
            len(found)
            for table in xtables.BASE
            for found in xtables.wanted(
                Policy(networks=many), version=4, table=table, have={}, bridged=False
            ).values()
        )

    assert count(200) - count(100) == count(100) - count(0) - 1


def test_kept_rules_stay_among_the_others_in_their_phase() -> None:
    both = Policy(networks=(network("alpha"), network("beta", inbound="open")), guards=(4,))
    have = xtables.wanted(both, version=4, table="filter", have={}, bridged=True)
    kept = Policy(
        networks=(network("beta", inbound="open"),), guards=(4,), kept=frozenset({"alpha"})
    )
    assert xtables.wanted(kept, version=4, table="filter", have=have, bridged=True) == have
    nat = xtables.wanted(both, version=4, table="nat", have={}, bridged=True)
    assert xtables.wanted(kept, version=4, table="nat", have=nat, bridged=True) == nat


def test_a_network_named_host_is_told_from_the_host() -> None:
    policy = Policy(networks=(network("host"),), guards=(4,))
    have = xtables.wanted(policy, version=4, table="filter", have={}, bridged=True)
    assert xtables.networks_in(have) == {"host"}
    kept = Policy(guards=(4,), kept=frozenset({"host"}))
    assert xtables.wanted(kept, version=4, table="filter", have=have, bridged=True) == have


def test_an_empty_policy_asks_for_no_chain() -> None:
    for table in xtables.BASE:
        assert xtables.wanted(Policy(), version=4, table=table, have={}, bridged=True) == {}


def test_a_network_without_a_subnet_of_a_version_has_no_rules_there() -> None:
    policy = Policy(networks=(network("alpha", subnets=SUBNETS["alpha"][:1]),))
    assert xtables.wanted(policy, version=6, table="filter", have={}, bridged=True) == {}
    assert xtables.wanted(policy, version=6, table="nat", have={}, bridged=True) == {}


def test_jumps_of_other_tools_may_stand_before_ours_but_nothing_else() -> None:
    policy = Policy(networks=(network("alpha"),))
    want = dict(xtables.wanted(policy, version=4, table="filter", have={}, bridged=False))
    jump = xtables.JUMPS["filter"]
    docker = Rule("DOCKER-USER")
    fine = {**want, "DOCKER-USER": (), "FORWARD": (docker, jump, Rule("ACCEPT"))}
    assert xtables.edits(want, fine, table="filter") == []
    for first in (Rule("ACCEPT"), Rule("DOCKER-USER", in_link="eth0"), Rule("DROP", other=b"x")):
        bad = {**fine, "FORWARD": (first, jump)}
        after = applied(bad, xtables.edits(want, bad, table="filter"))
        assert after["FORWARD"] == [jump, first]


def test_differences_are_readable() -> None:
    policy = Policy(networks=(network("alpha"),))
    want = dict(xtables.wanted(policy, version=4, table="filter", have={}, bridged=False))
    first, *rest = want["RUNCNET-FORWARD"]
    have = {
        **want,
        "RUNCNET-FORWARD": (*rest, first),
        "RUNCNET-CROSS": (Rule("ACCEPT"),),
        "FORWARD": (xtables.JUMPS["filter"],) * 2,
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
        Edit("insert", "FORWARD", xtables.JUMPS["filter"], 1),
        Edit("delete", "FORWARD", xtables.JUMPS["filter"], 3),
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
