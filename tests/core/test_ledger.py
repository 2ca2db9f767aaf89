"""Leases by index: what is handed out from an excerpt is what nobody else has."""

import json
from collections.abc import Collection

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.leases import Book, Key, assign
from reconciler.core.ledger import Ledger
from reconciler.core.model import Address, Spec
from reconciler.host.store import Store
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


def small(ledger: Ledger, whole: Spec, names: Collection[str], store: Store) -> dict[Key, Address]:
    """A pass over a few, as in `part.py`, written to the state; answers what they have by lease."""
    some = {n: c for n, c in whole.containers.items() if n in names}
    old, found = ledger.assign(
        msgspec.structs.replace(whole, containers=some), ledger.excerpt(names), standing={},
        busy=lambda name: False, kept=(),
    )  # fmt: skip
    store.save_book(old, found.book)
    ledger.turn(old, found.book)
    return found.addresses


def everybody(whole: Spec, book: Book) -> dict[Key, Address]:
    """What a pass over all would hand out."""
    return assign(whole, book, standing={}, busy=lambda name: False, kept=()).addresses


bodies = st.dictionaries(
    st.sampled_from(NAMES), st.tuples(st.sampled_from(sorted(NETS)), st.just(0)), min_size=1
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(bodies, min_size=1, max_size=12), fixed=st.integers(9, 14))
def test_an_excerpt_hands_out_what_nobody_has(
    steps: list[dict[str, tuple[str, int]]], fixed: int
) -> None:
    now: dict[str, tuple[str, int]] = {"fixed": ("n", fixed)}
    whole = spec(now)
    ledger = Ledger(EMPTY)
    ledger.give(whole.containers.values())
    store = Store.open("/nonexistent", read_only=True)  # in memory
    for step in steps:
        book, old = store.book(), whole
        before = book.held
        # Who is asked for as it was goes.
        gone = {name for name, body in step.items() if now.get(name) == body}
        now = {name: body for name, body in (now | step).items() if name not in gone}
        whole = spec(now)
        ledger.change(step, old.containers, whole.containers)
        found = small(ledger, whole, step.keys(), store)
        held = ledger.excerpt().held
        assert ledger.says(store.book())
        if not old.containers.keys() & step.keys():
            # What is released longest ago is handed out first, by both.
            assert found == {k: a for k, a in everybody(whole, book).items() if k in found}
        assert {k: a for k, a in held.items() if k.container not in step} == {
            k: a for k, a in before.items() if k.container not in step
        }
        assert {(k.container, k.network) for k in held} == {
            (name, network) for name, (network, given_) in now.items() if not given_
        }
        values = [str(a) for a in held.values()]
        assert len(values) == len(set(values)) and f"10.0.0.{fixed}" not in values
        assert not {(k.network, a) for k, a in held.items()} & store.book().freed.keys()
        # What is kept beside the leases says the same as they do.
        again = Ledger(store.book())
        again.give(whole.containers.values())
        places = [(network, 4) for network in NETS]
        assert ledger.taken(places, but={}) == again.taken(places, but={})
        for key, address in held.items():
            assert ledger.lessee(key.network, address) == key.container
        assert ledger.lessee("n", Address(4, 0x0A000000 + fixed)) is None
    store.close()


def test_who_declares_an_address_no_longer_leaves_it_to_others() -> None:
    one, other = spec({"a": ("n", 2), "b": ("n", 3)}), spec({"a": ("n", 3), "b": ("n", 2)})
    ledger = Ledger(EMPTY)
    ledger.give(one.containers.values())
    ledger.change(["a", "b"], one.containers, other.containers)
    ledger.change(["a"], other.containers, {})
    base = 0x0A000000
    assert ledger.taken([("n", 4)], but={}) == {("n", 4): {base + 2}}
    assert ledger.taken([("n", 4)], but={"b": other.containers["b"]}) == {("n", 4): set()}
    store = Store.open("/nonexistent", read_only=True)
    found = small(ledger, spec({"b": ("n", 2), "new": ("n", 0)}), ["new"], store)
    store.close()
    assert [a.value - base for a in found.values()] == [3]
