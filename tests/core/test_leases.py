"""Addresses: never two alike, never a change without a reason, the longest freed one first."""

import json
import multiprocessing
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.attached import Attachment
from reconciler.core.leases import Assignment, Book, Key, assign
from reconciler.core.model import Spec, parse_address
from reconciler.host.store import Store
from tests.core.documents import loaded

EMPTY = Book(held={}, freed={}, serial=0)


def spec(names: list[str], net: str = "10.0.0.0/28", extra: str = "") -> Spec:
    body = {n: {"interfaces": "n"} for n in names}
    text = f"networks: {{n: {{subnets: {net}{extra}}}}}\ncontainers: {json.dumps(body)}\n"
    result = loaded(f=text)
    assert not result.rejections, result.rejections
    return result.spec


def give(names: list[str], book: Book = EMPTY, **more: object) -> Assignment:
    options = {"standing": {}, "busy": lambda name: False, "kept": set(), **more}
    return assign(spec(names), book, **options)  # type: ignore[arg-type]


def shown(result: Assignment) -> dict[str, str]:
    return {key.container: str(address) for key, address in result.addresses.items()}


def test_never_used_addresses_first_then_the_longest_freed() -> None:
    one = give(["a", "b", "c"])
    assert shown(one) == {"a": "10.0.0.2", "b": "10.0.0.3", "c": "10.0.0.4"}
    two = give(["c"], give(["b", "c"], one.book).book)
    three = give(["c", *(f"x{i}" for i in range(12))], two.book)
    given_ = shown(three)
    assert given_["c"] == "10.0.0.4" and given_["x0"] == "10.0.0.5"
    assert (given_["x10"], given_["x11"]) == ("10.0.0.2", "10.0.0.3")


def test_an_address_that_is_freed_just_now_comes_after_all_others() -> None:
    assert shown(give(["x"], give(["a"]).book)) == {"x": "10.0.0.3"}


def test_a_lost_book_is_read_back_from_the_kernel() -> None:
    key = Key("b", "n", "eth0", 4)
    result = give(["a", "b"], standing={key: parse_address("10.0.0.2")})
    assert shown(result) == {"a": "10.0.0.3", "b": "10.0.0.2"}


def test_a_new_name_keeps_the_address_though_the_book_is_lost() -> None:
    text = (
        "networks: {n: {subnets: 10.0.0.0/28}}\ncontainers:\n  a: {interfaces: n}\n"
        "  b: {interfaces: [{network: n, name: one}, {network: n, name: lan, default_route: false}, "
        "{network: n, name: two, default_route: false}]}\n"
    )
    old, kept, gone = (parse_address(f"10.0.0.{n}") for n in (2, 7, 9))
    seen = {Key("b", "n", name, 4): a for name, a in (("eth0", old), ("lan", kept), ("eth2", gone))}
    found = loaded(f=text)
    assert not found.rejections, found.rejections
    for book in (EMPTY, Book(held=seen, freed={}, serial=0)):
        result = assign(found.spec, book, standing=seen, busy=lambda name: False, kept=set())
        assert {k.interface: a for k, a in result.addresses.items() if k.container == "b"} == {
            "one": old, "lan": kept, "two": gone
        }  # fmt: skip
        assert shown(result)["a"] == "10.0.0.3" and not result.moves


def test_what_still_stands_keeps_its_address_reserved() -> None:
    before = give(["old", "a"])
    after = give(["a", "new"], before.book, kept={"old"})
    assert shown(after) == {"a": "10.0.0.3", "new": "10.0.0.4"}
    assert Key("old", "n", "eth0", 4) in after.book.held


def test_an_exhausted_range_is_a_problem_of_those_left_out() -> None:
    crowd = spec(["a"], extra=", ranges: 10.0.0.5-10.0.0.5")
    held = Book(held={Key("gone", "n", "eth0", 4): parse_address("10.0.0.5")}, freed={}, serial=0)
    result = assign(crowd, held, standing={}, busy=lambda name: False, kept={"gone"})
    assert "no free IPv4 address" in result.problems["a"] and not result.addresses


def test_an_ipv6_subnet_is_not_walked_through() -> None:
    result = assign(
        spec(["a"], net="'fd00::/16'"), EMPTY, standing={}, busy=lambda name: False, kept=set()
    )
    assert shown(result) == {"a": "fd00::2"}


@settings(max_examples=150)
@given(st.lists(st.sets(st.sampled_from("abcdefghijkl")), min_size=1, max_size=8))
def test_no_two_alike_and_no_change_without_a_reason(steps: list[set[str]]) -> None:
    book = EMPTY
    before: dict[str, str] = {}
    for names in steps:
        result = give(sorted(names), book)
        now = shown(result)
        assert len(set(now.values())) == len(now) == len(names)
        assert all(now[name] == before[name] for name in names & set(before))
        assert not result.moves
        assert not {a for _, a in result.book.freed} & set(result.book.held.values())
        book, before = result.book, now


def test_the_store_holds_a_book_to_the_letter(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    book = give(["b"], give(["a", "b"]).book).book
    with store.transaction():
        store.save_book(store.book(), book)
    assert store.book() == book
    with store.transaction():
        store.save_book(book, EMPTY)
    assert store.book() == EMPTY
    store.close()


def _take(folder: str, number: int) -> None:
    for turn in range(5):
        store = Store.open(folder)
        with store.transaction():
            old = store.book()
            names = {key.container for key in old.held} | {f"p{number}-{turn}"}
            result = assign(
                spec(sorted(names), net="10.0.0.0/24"), old, standing={}, busy=lambda name: False,
                kept=set(),
            )  # fmt: skip
            store.save_book(old, result.book)
        store.close()


def test_two_processes_never_hand_out_one_address_twice(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_take, args=(str(tmp_path), n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    store = Store.open(str(tmp_path), read_only=True)
    held = store.book().held
    store.close()
    assert len(held) == 15 == len(set(held.values()))


def test_a_damaged_database_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"no database at all" * 100)
    store = Store.open(str(tmp_path))
    assert store.notes and store.book() == EMPTY
    store.close()
    assert (tmp_path / "state.db.broken-1").exists()


def test_what_was_written_last_is_put_aside_with_a_damaged_database(tmp_path: Path) -> None:
    """Whoever ends in a hurry leaves it in the log."""
    Store.open(str(tmp_path)).close()
    left = Store.open(str(tmp_path))
    left.put("last", "word")
    log = (tmp_path / "state.db-wal").read_bytes()
    assert b"word" in log
    with (tmp_path / "state.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"no page at all" * 3000)
    (tmp_path / "state.db-shm").unlink()
    store = Store.open(str(tmp_path))
    assert store.notes and store.get("last") is None
    assert (tmp_path / "state.db.broken-1-wal").read_bytes() == log
    store.close()
    left.close()


def test_attachments_are_told_apart_by_one_text(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    assert store.attached_text() == ""
    a = Attachment(name="a", body="{}", boot="b", host=1, cookie=2**64 - 1, pid=3, started=4)
    store.save_attachment(a)
    alone = store.attached_text()
    assert alone and store.attached_as(2**64 - 1) == ["a"] and store.attached_as(1) == []
    store.save_attachment(msgspec.structs.replace(a, name="b"))
    assert store.attached_text() not in ("", alone)
    store.drop_attachments(["b", "absent"])
    assert store.attached_text() == alone
    for change in ({"pid": 5}, {"body": '{"x":"\'"}'}, {"ip_file": "/a,b"}, {"cookie": 7}):
        store.save_attachment(msgspec.structs.replace(a, **change))
        assert store.attached_text() != alone, change
    store.close()


def test_a_reader_writes_nothing(tmp_path: Path) -> None:
    Store.open(str(tmp_path / "none"), read_only=True).close()
    assert not (tmp_path / "none").exists()
    store = Store.open(str(tmp_path))
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()
