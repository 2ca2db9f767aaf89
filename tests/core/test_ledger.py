"""Leases by index: what is handed out from an excerpt is what nobody else has."""

import json
from collections.abc import Collection

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.leases import Book, Key, assign
from reconciler.core.ledger import Ledger
from reconciler.core.model import Address, Spec
from tests.core.documents import loaded

EMPTY = Book(held={}, freed={})
NAMES = [f"c{number}" for number in range(8)]
NETS = {"n": "10.0.0.0/28", "m": "10.0.1.0/28"}


def spec(bodies: dict[str, tuple[str, int]]) -> Spec:
    """Container → its network, and the last byte of a declared address (0: it is handed out)."""
    boxes = {}
    for name, (network, given_) in bodies.items():
        one: dict[str, object] = {"network": network}
        if given_:
            one["addresses"] = NETS[network].replace("0/28", str(given_))
        boxes[name] = {"interfaces": one}
    nets = {name: {"subnets": subnet} for name, subnet in NETS.items()}
    result = loaded(f=json.dumps({"networks": nets, "containers": boxes}))
    assert not result.rejections, result.rejections
    return result.spec


def small(ledger: Ledger, whole: Spec, names: Collection[str]) -> dict[Key, Address]:
    """A pass over a few; answers what they have by lease. As in `part.py`."""
    some = {n: c for n, c in whole.containers.items() if n in names}
    book = ledger.excerpt(names, NETS)
    found = assign(
        msgspec.structs.replace(whole, containers=some), book, standing={}, busy=lambda name: False,
        kept=(), taken=ledger.taken([(network, 4) for network in NETS], but=some),
    )  # fmt: skip
    ledger.turn(book, found.book)
    return found.addresses


bodies = st.dictionaries(
    st.sampled_from(NAMES), st.tuples(st.sampled_from(sorted(NETS)), st.just(0)), min_size=1
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(bodies, min_size=1, max_size=8), fixed=st.integers(9, 14))
def test_an_excerpt_hands_out_what_nobody_has(
    steps: list[dict[str, tuple[str, int]]], fixed: int
) -> None:
    now: dict[str, tuple[str, int]] = {"fixed": ("n", fixed)}
    whole = spec(now)
    ledger = Ledger(EMPTY)
    ledger.give(whole.containers.values())
    for step in steps:
        before, old = dict(ledger.book.held), whole
        # Who is asked for as it was goes.
        gone = {name for name, body in step.items() if now.get(name) == body}
        now = {name: body for name, body in (now | step).items() if name not in gone}
        whole = spec(now)
        ledger.change(step, old.containers, whole.containers)
        small(ledger, whole, step.keys())
        held = ledger.book.held
        assert {k: a for k, a in held.items() if k.container not in step} == {
            k: a for k, a in before.items() if k.container not in step
        }
        assert {(k.container, k.network) for k in held} == {
            (name, network) for name, (network, given_) in now.items() if not given_
        }
        values = [str(a) for a in held.values()]
        assert len(values) == len(set(values)) and f"10.0.0.{fixed}" not in values
        assert not {(k.network, a) for k, a in held.items()} & ledger.book.freed.keys()
        # What is kept beside the leases says the same as they do.
        again = Ledger(ledger.book)
        again.give(whole.containers.values())
        places = [(network, 4) for network in NETS]
        assert ledger.taken(places, but={}) == again.taken(places, but={})
        for key, address in held.items():
            assert ledger.lessee(key.network, address) == key.container
        assert ledger.lessee("n", Address(4, 0x0A000000 + fixed)) is None


def test_who_declares_an_address_no_longer_leaves_it_to_others() -> None:
    one, other = spec({"a": ("n", 2), "b": ("n", 3)}), spec({"a": ("n", 3), "b": ("n", 2)})
    ledger = Ledger(EMPTY)
    ledger.give(one.containers.values())
    ledger.change(["a", "b"], one.containers, other.containers)
    ledger.change(["a"], other.containers, {})
    base = 0x0A000000
    assert ledger.taken([("n", 4)], but={}) == {("n", 4): {base + 2}}
    assert ledger.taken([("n", 4)], but={"b": other.containers["b"]}) == {("n", 4): set()}
    found = small(ledger, spec({"b": ("n", 2), "new": ("n", 0)}), ["new"])
    assert [a.value - base for a in found.values()] == [3]
