"""A pass over a few containers in a process of its own: when it is small, and that it then does the same."""

import os
import sqlite3

import msgspec
import pytest

from reconciler.core.wanted import Desired
from reconciler.host import index
from tests.kernel.test_sandboxes import NETS, addresses, call, folder
from tests.support import need
from tests.support.host import SERVER, PrivateHost, Run

WIDE = "everything was looked at: "


def why(run: Run) -> str:
    """Why everything was looked at; empty: it was not."""
    return run.err.partition(WIDE)[2].strip()


def small(host: PrivateHost, *words: str, check: bool = True) -> Run:
    run = call(host, *words, check=check)
    assert not why(run), why(run)
    return run


def settled(host: PrivateHost) -> None:
    """A look at everything finds nothing to do."""
    run = host.reconcile("--check", "--config-dir", str(folder(host)), check=False)
    assert run.changes == [] and run.code == 0, run.out


def test_small_passes_do_what_a_look_at_everything_would(either: PrivateHost) -> None:
    need.program("nft")
    either.write("10.yaml", NETS + "containers: {a: {interfaces: red}, b: {interfaces: far}}\n")
    either.reconcile()
    assert why(call(either, "add", "s1", "--network", "red"))
    for name, net in (("s2", "red"), ("s3", "far")):
        run = small(either, "add", name, "--network", net)
        assert "ok" in run.out
        assert either.ping(name, SERVER), run.out
        settled(either)
    assert not why(call(either, "add", "s2", "--network", "red:ip=10.1.0.99", "--network", "far"))
    settled(either)
    assert either.ping("s2", SERVER) and either.ping("s2", "10.1.0.2")
    small(either, "rm", "s2", "s3")
    settled(either)
    if either.firewall == "nftables":
        table = either.run("nft", "list", "table", "bridge", "runcnet").out
        assert "/s1" in table and "/s2" not in table
    # A published port is a matter for rules: everything is looked at, and it leads there.
    run = call(either, "add", "p", "--network", "red", "--port", "8088:80")
    assert "published ports" in why(run)
    assert "published ports" in why(call(either, "rm", "p"))
    settled(either)


def test_who_has_no_namespace_of_his_own_goes_by_a_small_pass(bare: PrivateHost) -> None:
    bare.write("10.yaml", NETS)
    bare.reconcile()
    call(bare, "add", "s1", "--network", "red")
    call(bare, "add", "plain", "--mode", "host")
    small(bare, "rm", "plain")
    settled(bare)


def test_addresses_are_handed_out_in_the_same_order(bare: PrivateHost) -> None:
    bare.write(
        "10.yaml",
        "networks: {n: {subnets: [10.7.0.0/28, 'fd07::/64'], ranges: 10.7.0.3-10.7.0.8}}\n"
        "containers: {fix: {interfaces: {network: n, addresses: 10.7.0.4}}, auto: {interfaces: n}}\n",
    )
    bare.reconcile()

    def given(name: str) -> list[str]:
        run = call(bare, "add", name, "--network", "n", "--json")
        if name != "s1":
            assert not why(run)
        return addresses(run)

    assert given("s1") == ["10.7.0.5/28", "fd07::4/64"]
    assert given("s2") == ["10.7.0.6/28", "fd07::5/64"]
    small(bare, "rm", "s2")
    small(bare, "rm", "s1")
    # Never-used ones first, then the one freed longest ago.
    assert [given(n)[0] for n in ("s3", "s4")] == ["10.7.0.7/28", "10.7.0.8/28"]
    assert given("s5")[0] == "10.7.0.6/28"
    assert given("s6")[0] == "10.7.0.5/28"
    full = call(bare, "add", "s7", "--network", "n", check=False)
    assert full.code == 2 and "want an IPv4 address and 5 are there" in full.err
    settled(bare)
    with sqlite3.connect(bare.state / "state.db") as db:
        held = db.execute("SELECT count(*), count(DISTINCT address) FROM lease WHERE version=4")
        assert held.fetchone() == (5, 5)
        assert db.execute("SELECT count(*) FROM freed WHERE version=4").fetchone() == (0,)


@pytest.mark.parametrize(
    ("edit", "words", "code"),
    [
        ("b: {interfaces: {network: red, addresses: 10.1.0.9}}", ["--network", "red:ip=10.1.0.9"], 2),
        ("b: {interfaces: {network: red, mac: '02:42:00:00:00:09'}}", ["--network", "red:mac=02:42:00:00:00:09"], 2),
        ("b: {mode: none, netns: x}", ["--network", "red"], 2),
        ("x: {mode: none}", ["--network", "red"], 1),
        ("x: {replicas: 2, mode: none}", ["--network", "red"], 2),
        ("b: {interfaces: red, bundle: /srv/x}", ["--network", "red", "--bundle", "/srv/x"], 2),
        ("b: {interfaces: nowhere}", ["--network", "red"], 0),
    ],
)  # fmt: skip
def test_what_was_edited_meanwhile_counts(
    bare: PrivateHost, edit: str, words: list[str], code: int
) -> None:
    path = bare.write("10.yaml", NETS + "containers:\n  a: {mode: none}\n")
    call(bare, "add", "s", "--mode", "none")
    small(bare, "add", "t", "--mode", "none")
    # Written in place: the folder says nothing of it.
    with path.open("a") as file:
        file.write(f"  {edit}\n")
    assert bare.runcnet("validate", str(path), check=False).code == (2 if code == 0 else 0)
    run = call(bare, "add", "x", *words, check=False)
    assert run.code == code, run.err
    assert ("x" in bare.ours()["netns"]) == (code == 0)
    # And what is in conflict is found by a small pass as well.
    again = call(bare, "add", "x", *words, check=False)
    assert again.code == code, again.err


def test_whoever_stands_and_is_not_declared_keeps_what_it_has(bare: PrivateHost) -> None:
    path = bare.write(
        "10.yaml",
        NETS + "containers:\n  a: {interfaces: {network: red, addresses: 10.1.0.7}}\n",
    )
    bare.reconcile()
    call(bare, "add", "s", "--network", "red")
    with bare.process("a"):
        path.write_text(NETS)
        bare.age(5)
        call(bare, "add", "t", "--network", "red")
        run = call(bare, "add", "x", "--network", "red:ip=10.1.0.7", check=False)
        assert bare.addresses("eth0", "a") == ["10.1.0.7/24"]
        assert run.code != 0 and "a" in bare.ours()["netns"]
        assert "x" not in bare.ours()["netns"] or not bare.addresses("eth0", "x")


def test_a_file_changed_by_hand_is_seen_whatever_its_times_say(bare: PrivateHost) -> None:
    path = bare.write("10.yaml", NETS + "containers: {a: {mode: none}}\n")
    call(bare, "add", "s", "--mode", "none")
    small(bare, "add", "s", "--mode", "none")
    found = path.stat()
    text = path.read_text()
    path.write_text(text.replace("a:", "b:"))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert why(call(bare, "add", "s", "--mode", "none"))
    # A damaged index is made anew.
    bare.sh("echo nonsense > /run/runcnet/index.db")
    assert why(call(bare, "add", "s", "--mode", "none"))
    small(bare, "add", "s", "--mode", "none")
    bare.sh("rm /run/runcnet/record.db*")
    assert why(call(bare, "add", "s", "--mode", "none"))
    found_out = bare.reconcile("--once", "--config-dir", str(folder(bare))).changes
    assert [c for c in found_out if c.startswith("container/")] == ["container/b: lo only"]


def test_the_index_reads_back_all_of_a_frame() -> None:
    kept = {field.name for field in msgspec.structs.fields(index._Frame)}
    assert kept == {field.name for field in msgspec.structs.fields(Desired)} - {"members"}
