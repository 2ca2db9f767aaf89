"""Filter tables as text: nothing is lost on the way there and back, and nobody's rule passes for ours."""

import pytest
from hypothesis import given, settings

from reconciler.core import chains, xtables
from reconciler.core.policy import Policy
from reconciler.core.xtables import BESIDE_JUMPS, Rule
from reconciler.core.xtext import parsed, restored, words
from tests.core.test_xtables import applied, network, policies

HEAD = ["*filter", ":INPUT ACCEPT [0:0]", ":FORWARD DROP [3:252]", ":OUTPUT ACCEPT [0:0]"]


def saved(found: xtables.Chains) -> str:
    """What iptables-save prints of chains of ours."""
    lines = [*HEAD, *(f":{name} - [0:0]" for name in found if name != "FORWARD")]
    for name, rules in found.items():
        for rule in rules:
            text = words(rule).replace(rule.comment, f'"{rule.comment}"', 1)
            lines.append(f"-A {name} {text}")
    return "\n".join([*lines, "COMMIT"])


@settings(max_examples=80)
@given(policy=policies())
def test_our_chains_are_read_as_they_were_written(policy: Policy) -> None:
    for version in (4, 6):
        want = chains.beside(policy, version=version, have={})
        found = parsed(saved(want))
        assert found is not None and found.policies["FORWARD"] == "DROP"
        assert {name: found.chains[name] for name in want} == dict(want)


OTHERS = [
    "-i red0 -p tcp -m tcp --dport 80 -j ACCEPT",
    "! -i red0 -o red0 -j ACCEPT",
    "-o red0 -m conntrack ! --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-o red0 -m conntrack --ctstate NEW -j ACCEPT",
    "-i red+ -j ACCEPT",
    "-i red0 -g RUNCNET-CROSS",
    "-i red0 -m devgroup --src-group 0x7/0xf -j ACCEPT",
    "-i red0 -m limit --limit 5/min -j LOG --log-prefix \"a -j ACCEPT \"",
    "-i red0 -i blue0 -j ACCEPT",
    "-i red0 -j MARK --set-xmark 0x1/0xffffffff",
]  # fmt: skip


@pytest.mark.parametrize("text", OTHERS)
def test_what_our_words_cannot_say_is_kept_as_it_was(text: str) -> None:
    found = parsed("\n".join([*HEAD, f"-A FORWARD {text}", "COMMIT"]))
    assert found is not None
    (rule,) = found.chains["FORWARD"]
    assert rule.other and words(rule) == text


def test_the_links_that_such_a_rule_meets_are_known() -> None:
    text = "-i docker0 -o br-1 -p tcp -m tcp --dport 80 -j ACCEPT"
    turned = "! -i docker0 -o br-1 -p tcp -m tcp --dport 80 -j ACCEPT"
    found = parsed("\n".join([*HEAD, f"-A FORWARD {text}", f"-A FORWARD {turned}", "COMMIT"]))
    assert found is not None
    one, other = found.chains["FORWARD"]
    assert one.ends == ("docker0", "br-1") and other.ends == ("", "br-1")


def test_a_table_that_is_none_of_iptables_is_not_read() -> None:
    assert parsed("# Table `filter' is incompatible, use 'nft' tool.\n") is None
    assert parsed("\n".join(HEAD)) is None


def test_a_script_names_rules_of_others_never_and_its_own_by_their_words() -> None:
    policy = Policy(networks=(network("alpha"),))
    want = chains.beside(policy, version=4, have={})
    docker = Rule("DOCKER-USER")
    have = {"FORWARD": (docker, Rule("DROP")), "DOCKER-USER": ()}
    steps = xtables.edits(want, have, table="filter", beside=True)
    lines = restored(steps, want, have, BESIDE_JUMPS)
    assert lines[0] == "*filter" and lines[-1] == "COMMIT"
    assert "-N RUNCNET-USER" in lines and "DOCKER-USER" not in "".join(lines)
    jump = "-m comment --comment runcnet:beside -j RUNCNET-FORWARD"
    assert lines[-2] == f"-I FORWARD 2 {jump}"
    after = {name: tuple(rules) for name, rules in applied(have, steps).items()}
    steps = xtables.edits({}, after, table="filter", beside=True)
    lines = restored(steps, {}, after, BESIDE_JUMPS)
    assert f"-D FORWARD {jump}" in lines
    assert [line for line in lines if line.startswith("-X")] == [
        f"-X RUNCNET-{name}" for name in ("USER", "FORWARD", "CROSS")
    ]
