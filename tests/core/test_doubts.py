"""Doubts: what was taken back is rejected as long as a file says it, and nothing else is."""

from pathlib import Path

from reconciler.core.doubts import ABSENT, differing, digest, doubt, restored
from reconciler.core.leases import Book, Key
from reconciler.core.model import Address, parse_address
from reconciler.host.store import Store
from reconciler.host.trials import CONFIRM, TAKE_BACK, Trial

WHY = "it was not confirmed in time"


def test_a_doubt_is_about_what_a_file_says_and_names_the_way_out() -> None:
    reasons = {digest(b"new"): WHY}
    found = doubt("/etc/runcnet.d/a.yaml", b"new", reasons)
    assert found is not None and str(found).startswith(
        "/etc/runcnet.d/a.yaml:1:1: was taken back by `runcnet try`: it was not confirmed in time ("
    )
    assert "`runcnet apply`" in found.message
    assert doubt("a", b"newer", reasons) is None
    assert doubt("a", None, reasons) is None


def test_a_removal_can_be_doubted_and_an_empty_file_is_no_removal() -> None:
    gone = doubt("a", None, {ABSENT: WHY})
    assert gone is not None and gone.message.startswith("its removal was taken back")
    assert doubt("a", b"", {ABSENT: WHY}) is None
    assert digest(b"") != ABSENT


def test_what_was_remembered_before_is_put_together_again() -> None:
    now = {"kept": b"1", "changed": b"2 new", "made": b"3"}
    tried = {"changed": b"2 old", "made": None, "removed": b"4"}
    before = restored(now, tried)
    assert before == {"kept": b"1", "changed": b"2 old", "removed": b"4"}
    assert differing(now, before) == {
        "changed": digest(b"2 new"),
        "made": digest(b"3"),
        "removed": ABSENT,
    }
    assert differing(before, before) == {}


def test_the_store_gives_back_what_a_trial_changed(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    old = Book(held={key("a"): address("10.0.0.2"), key("b"): address("10.0.0.3")}, freed={})
    with store.transaction():
        store.save_book(Book(held={}, freed={}), old)
        store.remember({"kept": b"1", "changed": b"2", "removed": b"3"}, forget=[])
    serial = store.trials.serial()
    with store.transaction():
        store.trials.open(Trial(pid=1, started=2, boot="3"))
        store.remember({"changed": b"2 new", "made": b"4"}, forget=["removed"])
        store.remember({"changed": b"2 newer"}, forget=["made"])
        # `a` is gone and its address is `c`'s, as one that is declared takes it.
        now = {key("b"): address("10.0.0.9"), key("c"): address("10.0.0.2")}
        store.save_book(old, Book(held=now, freed={}))
    assert store.trials.files() == {"changed": b"2", "made": None, "removed": b"3"}
    with store.transaction():
        store.trials.undo()
    assert store.remembered() == {"kept": b"1", "changed": b"2", "removed": b"3"}
    assert store.book().held == old.held
    assert store.trial() is None and store.trials.serial() > serial
    store.close()


def test_an_answer_is_given_once(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    with store.transaction():
        assert not store.trials.answer(CONFIRM)
        store.trials.open(Trial(pid=1, started=2, boot="3"))
        assert store.trials.pending()
        assert store.trials.answer(CONFIRM) and not store.trials.answer(TAKE_BACK)
    assert not store.trials.pending()
    store.close()


def key(container: str) -> Key:
    return Key(container, "n", "eth0", 4)


def address(text: str) -> Address:
    return parse_address(text)
