"""Who could be taken for somebody else: ids, marks, threads and mounts of what hooks attached."""

import contextlib
import errno
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import installed
from reconciler.core.attached import Attachment
from reconciler.core.errors import ObjectError
from reconciler.core.observed import Witness
from reconciler.core.rows import Space
from reconciler.host import observe, rtnl
from tests.kernel.test_attached import NETWORKS, Guest, shown
from tests.support.host import CLIENT, PrivateHost, wait_for


@pytest.mark.parametrize("fast", [False, True], ids=["alone", "daemon"])
def test_the_id_of_one_who_stands_takes_nothing_from_him(host: PrivateHost, fast: bool) -> None:
    host.write("n.yaml", NETWORKS)
    host.write("w.yaml", "containers: {web: {interfaces: n}, known: {interfaces: n}}\n")
    host.reconcile()
    with host.process("web"):
        # `web` is held back while it is in use; `known` is declared still.
        host.write("w.yaml", "containers: {known: {interfaces: n}}\n")
        assert host.reconcile(check=False).code == 1
        if not fast:
            host.sh("rm -rf /run/runcnet")
        before = host.ours()
        guests = [Guest(host, name) for name in ("web", "known")]
        if fast:
            with host.daemon():
                errors = [one.hook("createRuntime", "--network", "n", fast=True) for one in guests]
        else:
            errors = [one.hook("createRuntime", "--network", "n") for one in guests]
        assert [done.code for done in errors] == [1, 1]
        assert "another container of that name stands" in errors[0].err
        assert f"known is declared at {host.config}/w.yaml:1 already" in errors[1].err
        run = host.reconcile(check=False)
        assert run.changes == [] and host.ours() == before
        assert {name: c["state"] for name, c in shown(host).items()} == {
            "known": "ok",
            "web": "held",
        }
        assert "10.88.0.2/24" in host.addresses("eth0", netns="web")


def test_marks_make_no_hooks_container_of_a_declared_one(bare: PrivateHost) -> None:
    bare.write("n.yaml", NETWORKS + "containers: {web: {interfaces: n}}\n")
    bare.reconcile()
    end = bare.host_end("web", "eth0")["ifname"]
    # As a container can that has CAP_NET_ADMIN and no user namespace of its own.
    bare.run("ip", "link", "set", end, "alias", "runcnet:n/web/eth0 hook")
    run = bare.reconcile()
    assert run.changes == [f"container/web: set {end} alias runcnet:n/web/eth0"]
    assert str(shown(bare)["web"]["declared"]).endswith("n.yaml:2")


def test_what_a_mount_keeps_goes_with_its_attachment(bare: PrivateHost) -> None:
    bare.write("n.yaml", NETWORKS)
    bare.reconcile()
    before = bare.ours()
    one, other = Guest(bare, "one"), Guest(bare, "other")
    one.attach()
    [address, _] = one.carried()
    bare.sh(f"touch /run/pin && mount --bind /proc/{one.pid}/ns/net /run/pin")
    one.end()
    # The next one to come has another address than what still stands, and a pass hears of the end.
    other.attach()
    assert bare.reconcile().report["converged"]
    assert len(bare.ours()["links"]) == len(before["links"]) + 1
    assert address not in other.carried()
    assert bare.reconcile().changes == []
    # A kill between the books and the kernel.
    bare.sh(f"umount /run/pin && mount --bind /proc/{other.pid}/ns/net /run/pin")
    other.end()
    program = "import sqlite3, sys; sqlite3.connect(sys.argv[1], isolation_level=None).execute('DELETE FROM attachment')"
    bare.run("python3", "-c", program, f"{bare.state}/state.db")
    assert bare.reconcile().report["converged"]
    assert bare.ours() == before and bare.reconcile().changes == []


def test_a_namespace_that_others_have_named_stays_theirs(bare: PrivateHost) -> None:
    bare.write("n.yaml", NETWORKS)
    bare.reconcile()
    guest = Guest(bare, "guest")
    bare.run("ip", "netns", "attach", "guest", str(guest.pid))
    for fast in (False, True):
        with bare.daemon() if fast else contextlib.nullcontext():
            assert guest.hook("createRuntime", "--network", "n", fast=fast).code == 0
            assert guest.hook("poststop", fast=fast).code == 0
        assert bare.run("ip", "-n", "guest", "-o", "link").out.count("\n") == 1  # lo
    assert bare.reconcile().changes == []


THREAD = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
assert ctypes.CDLL(None).unshare(0x40000000) == 0  # CLONE_NEWNET, of this thread alone
print("moved", flush=True)
time.sleep(600)
"""


def test_a_thread_keeps_a_namespace_whose_process_has_moved(bare: PrivateHost) -> None:
    bare.write("n.yaml", NETWORKS)
    bare.reconcile()
    guest = Guest(bare, "guest")
    guest.attach()
    moved = bare.start("nsenter", "-t", str(guest.pid), "-n", sys.executable, "-c", THREAD)
    assert moved.stdout
    assert moved.stdout.readline() == "moved\n"
    guest.end()
    assert bare.reconcile().changes == []
    assert shown(bare)["guest"]["state"] == "ok"


def test_a_refused_call_leaves_what_was_attached_before(bare: PrivateHost) -> None:
    bare.write("n.yaml", NETWORKS)
    guest = Guest(bare, "guest")
    with bare.daemon():
        assert guest.hook("createRuntime", "--network", "n", "--ip-file", fast=True).code == 0
        address = guest.carried()
        for network in ("absent", "n:ip=10.99.0.1"):
            assert guest.hook("createRuntime", "--network", network, fast=True).code == 1
        assert guest.carried() == address
    assert bare.reconcile().changes == []
    # What is written into bundles goes with a teardown, too.
    assert (bare.dir / ".ip").read_text() == f"{address[0]}\n"
    bare.runcnet("teardown", "--yes")
    assert not (bare.dir / ".ip").exists()


GIVE_UP = r"""
import os, signal, socket, sys
daemon = int(sys.argv[1])
os.kill(daemon, signal.SIGSTOP)
words = "".join(f"{word}\0" for word in ["hook", "createRuntime", *sys.argv[2:]])
one = socket.socket(socket.AF_UNIX)
one.connect("/run/runcnet/daemon.sock")
one.sendall(f"{len(sys.argv)}\0{words}".encode() + sys.stdin.buffer.read())
one.close()
os.kill(daemon, signal.SIGCONT)
"""


def test_whoever_has_given_up_is_not_served(bare: PrivateHost) -> None:
    bare.write("n.yaml", NETWORKS)
    guest, next_one = Guest(bare, "guest"), Guest(bare, "next")
    with bare.daemon() as daemon:
        words = [str(daemon.child.pid), *bare.options, "--network", "n"]
        # A door that somebody takes away comes back.
        bare.sh("rm /run/runcnet/daemon.sock")
        wait_for(lambda: "daemon.sock" in bare.run("ls", "/run/runcnet").out, what="the door")
        bare.run(sys.executable, "-c", GIVE_UP, *words, stdin=guest.state())
        assert next_one.hook("createRuntime", "--network", "n", fast=True).code == 0
        assert list(shown(bare)) == ["next"]


def test_the_client_does_not_call_itself() -> None:
    done = subprocess.run(
        [CLIENT, "hook", "poststop", "--run-dir", "/nowhere"],
        capture_output=True,
        input=b"{}",
        timeout=30,
        check=False,
    )
    assert done.returncode == 64 and b"args[0] is to be runcnet" in done.stderr


def test_the_client_skips_the_search_for_packages_only_where_they_lie_beside_it(
    bare: PrivateHost, tmp_path: Path
) -> None:
    """Without a daemon it runs the interpreter of `runcnet` at once, and else `runcnet` as it is."""
    bare.write("n.yaml", NETWORKS)
    bare.reconcile()
    runcnet, client = installed.programs(tmp_path / "venv")
    (tmp_path / "sitecustomize.py").write_text("import sys; print('searched', file=sys.stderr)")
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/sh\nexec {runcnet} "$@"\n')
    wrapper.chmod(0o755)

    guest = Guest(bare, "one")

    def said(program: str | Path, stage: str) -> str:
        call = f'PYTHONPATH={tmp_path} exec -a "$0" {client} "$@"'
        words = ["hook", stage, *bare.options, *(["--network", "n"] if stage != "poststop" else [])]
        done = bare.run("bash", "-c", call, str(program), *words, stdin=guest.state())
        return done.err

    link = tmp_path / "link"
    link.symlink_to(runcnet)
    elsewhere = installed.programs(tmp_path / "elsewhere")
    assert said(link, "createRuntime") == ""
    (pack,) = (tmp_path / "venv").glob("lib/*/site-packages/reconciler/hook.pack")
    assert b"reconciler.joining" in pack.read_bytes()
    for program in (runcnet, wrapper, elsewhere.runcnet):
        assert list(shown(bare)) == ["one"]
        assert said(program, "poststop") == ("" if program == runcnet else "searched\n")
        assert shown(bare) == {}
        assert said(runcnet, "createRuntime") == ""
    said(runcnet, "poststop")
    yaml = next((tmp_path / "venv").glob("lib/*/site-packages/yaml"))
    yaml.rename(tmp_path / "yaml")
    assert said(runcnet, "createRuntime") == "searched\n"
    assert list(shown(bare)) == ["one"]


def test_nothing_is_concluded_from_a_look_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Attachment(name="a", body="{}", boot="", host=1, cookie=2, pid=3, started=4)
    failed = Space(error=errno.EMFILE)
    monkeypatch.setattr(rtnl, "scan", lambda paths, **_: [failed for _ in paths])
    with pytest.raises(ObjectError, match="look into /proc/3/ns/net: EMFILE: Too many open files"):
        observe.dump(str(tmp_path), (), key=rtnl.NO_KEY, attached=[one])


def test_somebody_elses_namespace_in_motion_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    torn = Space(error=errno.EINTR, cookie=9)
    monkeypatch.setattr(rtnl, "scan", lambda paths, **_: [torn for _ in paths])
    host = Space(cookie=1)
    dumps = observe.Dumps(host, {}, {}, (), rtnl.NO_KEY, {})

    def look(cookie: int) -> object:
        witness = Witness(present=True, spaces={"a": cookie}, ends={}, bridges={})
        return observe._living(dumps, witness, ["a"])

    assert look(cookie=2) == {}
    with pytest.raises(ObjectError, match="EINTR"):
        look(cookie=9)
