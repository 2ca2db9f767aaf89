"""Seeing in: since when, the last errors, the watch, and where the daemon runs."""

import contextlib
import fcntl
import json
import os
import pty
import queue
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.errors import LockedError
from reconciler.host import lock
from tests.support.host import ROOT, PrivateHost, wait_for

TEXT = "networks: {n: {subnets: 10.5.0.0/24}}\ncontainers: {a: {interfaces: n}, b: {mode: none}}\n"
WRONG = TEXT.replace("mode: none", "mode: none, sysctls: {net.core.somaxconn: many}")
FOREIGN = (
    "ip -n a link add vpn type bridge; ip -n a addr add 10.200.0.1/24 dev vpn;"
    "ip -n a link set vpn up; ip -n a route replace default dev vpn"
)
MENDED = "ip -n a link del vpn"


def seen(host: PrivateHost) -> dict[str, Any]:
    return host.runcnet("status", "--json", check=False).report


def one(host: PrivateHost, name: str) -> dict[str, Any]:
    return next(c for c in seen(host)["containers"] if c["name"] == name)


class Lines:
    """What a child prints, a line at a time and with a deadline."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._lines: queue.Queue[str] = queue.Queue()
        self._thread = threading.Thread(target=self._read, args=(child,), daemon=True)
        self._thread.start()

    def _read(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout
        with contextlib.suppress(ValueError):  # it is closed when the child was stopped
            for line in child.stdout:
                self._lines.put(line.rstrip("\n"))

    def next(self, seconds: float = 20.0) -> str:
        return self._lines.get(timeout=seconds)


@contextlib.contextmanager
def watching(host: PrivateHost, *words: str) -> Iterator[tuple[subprocess.Popen[str], Lines]]:
    """`runcnet status --watch` as a child."""
    command = host.command("runcnet", "status", "--watch", "--interval", "0.05", *host.options)
    child = host.start(*command, *words)
    try:
        yield child, Lines(child)
    finally:
        host.stop(child)


# -- since when ---------------------------------------------------------------------------------


def test_since_when_is_kept_over_passes_and_ends_with_the_trouble(bare: PrivateHost) -> None:
    bare.write("a.yaml", TEXT)
    bare.reconcile()
    assert one(bare, "a")["since"] is None
    bare.sh(FOREIGN)
    assert one(bare, "a")["since"] is None  # no pass has seen it yet
    before = time.time()
    assert bare.reconcile(check=False).code == 1
    first = one(bare, "a")
    assert first["state"] == "differs"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["since"])
    assert first["since"] >= time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(before))
    written = bare.run("stat", "-c", "%.9Y", "/run/runcnet/record.db").out
    bare.reconcile(check=False)
    assert one(bare, "a")["since"] == first["since"]
    assert bare.run("stat", "-c", "%.9Y", "/run/runcnet/record.db").out == written
    assert re.search(r"^a +differs for \d+ s ", bare.runcnet("status", check=False).out, re.M)
    bare.sh(MENDED)
    bare.reconcile()
    mended = one(bare, "a")
    assert (mended["state"], mended["since"], mended["problems"]) == ("ok", None, [])
    bare.sh(FOREIGN)
    bare.reconcile(check=False)
    assert one(bare, "a")["since"] > first["since"]


def test_a_foreign_bridge_in_the_way_is_told_of_network_and_member(bare: PrivateHost) -> None:
    bare.write("a.yaml", TEXT)
    bare.sh("ip link add name n type bridge")
    bare.reconcile(check=False)
    found = seen(bare)
    network = found["networks"][0]
    assert network["state"] == "foreign" and network["since"]
    assert {c["name"]: bool(c["since"]) for c in found["containers"]} == {"a": True, "b": False}
    bare.sh("ip link del dev n")
    bare.reconcile()
    assert [n["since"] for n in seen(bare)["networks"]] == [None]


def test_what_is_held_back_has_its_time(bare: PrivateHost) -> None:
    bare.write("a.yaml", TEXT)
    bare.reconcile()
    with bare.process("a"):
        bare.write("a.yaml", TEXT.replace("a: {interfaces: n}, ", ""))
        bare.reconcile(check=False)
        held = one(bare, "a")
        assert held["state"] == "held" and held["since"]
        assert seen(bare)["errors"] == []


def test_a_pass_of_one_name_leaves_the_others_since(bare: PrivateHost) -> None:
    bare.write("a.yaml", TEXT)
    bare.reconcile()
    bare.sh(FOREIGN)
    bare.reconcile(check=False)
    since = one(bare, "a")["since"]
    bare.sh(MENDED)
    bare.runcnet("apply", "b")
    bare.sh(FOREIGN)
    assert one(bare, "a")["since"] == since


def test_a_record_of_an_older_release_still_opens(bare: PrivateHost) -> None:
    bare.write("a.yaml", TEXT)
    bare.reconcile()
    script = (
        "import sqlite3; db = sqlite3.connect('/run/runcnet/record.db'); "
        "db.executescript('DROP TABLE trouble; DROP TABLE mishap'); db.close()"
    )
    bare.run(sys.executable, "-c", script)
    assert one(bare, "a")["state"] == "ok"
    bare.sh(FOREIGN)
    bare.reconcile(check=False)
    assert one(bare, "a")["since"]


# -- the last errors ----------------------------------------------------------------------------


def test_a_failed_operation_is_among_the_errors_once_also_when_it_is_mended(
    bare: PrivateHost,
) -> None:
    bare.write("a.yaml", WRONG)
    for _ in range(3):
        assert bare.reconcile(check=False).code == 1
    found = seen(bare)
    assert [e["object"] for e in found["errors"]] == ["container/b"]
    error = found["errors"][0]
    assert "EINVAL" in error["message"]
    missing = one(bare, "b")
    assert missing["state"] == "missing" and missing["since"] == error["time"]
    assert missing["problems"] == [
        f"at the last pass: {error['message']}",
        "to be done: lo only",
    ]
    bare.write("a.yaml", TEXT)
    bare.reconcile()
    found = seen(bare)
    assert found["errors"] == [error]
    assert {c["state"] for c in found["containers"]} == {"ok"}
    lines = bare.runcnet("status").out.splitlines()
    assert lines[-1] == "daemon: not running"
    assert lines[lines.index("last errors:") + 1].endswith(f"container b: {error['message']}")
    assert bare.runcnet("status", "a", "--json").report["errors"] == []
    assert bare.runcnet("status", "b", "--json").report["errors"] == [error]


def test_a_rejected_file_is_among_the_errors_and_has_its_time(bare: PrivateHost) -> None:
    bare.write("a.yaml", TEXT)
    bare.reconcile()
    path = bare.write("b.yaml", "networks: [\n")
    for _ in range(2):
        assert bare.reconcile(check=False).code == 2
    found = seen(bare)
    assert [e["object"] for e in found["errors"]] == [f"file/{path}"]
    assert found["errors"][0]["message"].startswith(f"{path}:")
    assert [(f["name"], f["since"]) for f in found["files"]] == [
        (str(path), found["errors"][0]["time"])
    ]
    text = bare.runcnet("status").out
    assert re.search(rf"^rejected for \d+ s: {path}:", text, re.M)
    path.unlink()
    bare.reconcile()
    found = seen(bare)
    assert found["files"] == [] and len(found["errors"]) == 1


def test_a_dry_run_leaves_no_trace(bare: PrivateHost) -> None:
    bare.write("a.yaml", TEXT)
    bare.reconcile()
    bare.sh(FOREIGN)
    bare.reconcile("--dry-run", check=False)
    found = seen(bare)
    assert found["errors"] == [] and {c["since"] for c in found["containers"]} == {None}


# -- the watch ----------------------------------------------------------------------------------


def test_the_watch_says_what_changes_and_ends_with_ctrl_c(bare: PrivateHost) -> None:
    bare.write("a.yaml", TEXT)
    bare.reconcile()
    with watching(bare) as (child, lines):
        assert lines.next() == "5 ok, 0 not; a line for each change follows"
        bare.sh("ip -n a link set eth0 down")
        clock, _, rest = lines.next().partition(" ")
        assert re.fullmatch(r"\d\d:\d\d:\d\d", clock)
        assert rest.startswith("container a: ok -> differs: to be done: set eth0 up")
        bare.reconcile()
        assert lines.next().endswith("container a: differs -> ok")
        bare.write("b.yaml", "containers: {c: {mode: none}}\n")
        assert lines.next().endswith("container c: missing: to be done: lo only")
        bare.drop("b.yaml")
        assert lines.next().endswith("container c: missing -> gone")
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 0


def test_the_watch_in_json_begins_with_what_is_wrong(bare: PrivateHost) -> None:
    bare.write("a.yaml", TEXT)
    bare.reconcile()
    bare.sh(FOREIGN)
    bare.reconcile(check=False)
    with watching(bare, "a", "--json", "-q") as (child, lines):
        first = json.loads(lines.next())
        assert (first["object"], first["before"], first["state"]) == (
            "container/a", None, "differs",
        )  # fmt: skip
        assert first["since"] == one(bare, "a")["since"] and first["problems"]
        bare.sh("ip -n b link set lo down")  # not the one that is watched
        bare.sh(MENDED)
        bare.reconcile()
        found = [json.loads(lines.next())]
        while found[-1]["state"] != "ok":  # it may be seen between mending and the pass
            found.append(json.loads(lines.next()))
        assert {f["object"] for f in found} == {"container/a"}
        assert found[-1]["since"] is None and found[-1]["problems"] == []
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0
    run = bare.runcnet("status", "nobody", "--watch", check=False)
    assert run.code == 1 and "nothing of that name" in run.err


@pytest.mark.parametrize("colour", [True, False])
def test_the_watch_redraws_a_terminal_and_fits_it(bare: PrivateHost, colour: bool) -> None:
    bare.write(
        "a.yaml", "networks: {n: {subnets: 10.5.0.0/24}}\ncontainers: {w: {mode: none, replicas: 40}}\n"
    )  # fmt: skip
    bare.reconcile()
    bare.sh("ip -n w-17 link set lo down")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 10, 70, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    child = subprocess.Popen(
        bare.enter(*bare.command("runcnet", "status", "--watch", *bare.options)),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=ROOT,
        env={**kept, "TERM": "xterm", **({} if colour else {"NO_COLOR": "1"})},
        start_new_session=True,
    )
    os.close(slave)
    drawn = b""

    def read() -> bool:
        nonlocal drawn
        if select.select([master], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # EIO: the child has ended
                drawn += os.read(master, 65536)
        return b"more fine" in drawn

    try:
        wait_for(read, 20, "a screen")
        text = drawn.decode()
        assert "container w-17  differs  to be done: set lo up" in text
        # Ten lines: two of a head, one in trouble, six that are fine of 42, and this.
        assert "… and 36 more fine" in text
        assert text.count("\n") <= 10
        assert ("\x1b[31m" in text) is colour
        child.send_signal(signal.SIGINT)
        wait_for(lambda: read() and child.poll() is not None, 20, "the end")
        assert child.returncode == 0
        assert "\x1b[?1049l" in drawn.decode()  # the screen from before is back
    finally:
        if child.poll() is None:
            child.kill()
        child.wait(10)
        os.close(master)


# -- the daemon's lock --------------------------------------------------------------------------

HOLDER = """
import sys
import contextlib
from reconciler.host.lock import DaemonLock
with contextlib.closing(DaemonLock(sys.argv[1], 1)):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_status_names_the_daemon_and_leaves_it_alone(bare: PrivateHost) -> None:
    bare.write("a.yaml", TEXT)
    bare.reconcile()
    assert seen(bare)["daemon"] is None
    child = bare.start(sys.executable, "-c", HOLDER, "/run/runcnet")
    assert Lines(child).next() == "held"
    for _ in range(2):
        daemon = seen(bare)["daemon"]
        assert daemon["pid"] == child.pid and daemon["since"]
    assert re.search(rf"^daemon: pid {child.pid}, up \d+ s$", bare.runcnet("status").out, re.M)
    second = bare.run(sys.executable, "-c", HOLDER, "/run/runcnet", check=False, stdin="")
    assert second.code == 1
    assert f"a daemon (pid {child.pid}) serves /run/runcnet already" in second.err
    assert bare.reconcile().report["converged"]  # one pass beside it has locks of its own
    child.kill()
    child.wait(10)
    assert seen(bare)["daemon"] is None
    third = bare.run(sys.executable, "-c", HOLDER, "/run/runcnet", stdin="")
    assert third.out == "held\n"


def test_who_looks_never_keeps_a_daemon_out(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    folder = str(tmp_path)
    over = threading.Event()
    looked = []

    def look() -> None:
        while not over.wait(0.001):
            looked.append(lock.daemon_pid(folder))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for _ in range(50):
            with contextlib.closing(lock.DaemonLock(folder, 0)):
                assert lock.daemon_pid(folder) == os.getpid()
    finally:
        over.set()
        reader.join()
    assert set(looked) <= {None, os.getpid()}
    with (
        contextlib.closing(lock.DaemonLock(folder, 0)),
        pytest.raises(LockedError, match=f"pid {os.getpid()}"),
        contextlib.closing(lock.DaemonLock(folder, 0)),
    ):
        pass
    assert lock.daemon_pid(folder) is None
