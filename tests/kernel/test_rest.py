"""Files that are being written: what they say meanwhile removes nothing, and stands in for nothing."""

import contextlib
import os
import signal
import sqlite3
import stat
import time
import zlib
from pathlib import Path

import pytest

from tests.kernel.test_daemon import EXTRA, NETS, stands
from tests.support.host import PrivateHost, wait_for

TWO = "containers:\n  one: {interfaces: runc0}\n  two: {interfaces: runc0}\n"
HALF = TWO[: TWO.index("  two")]
BROKEN = TWO[: TWO.rindex("}")]
FUTURE_S = 7200.0


def remembered(host: PrivateHost, path: Path) -> str:
    """What a file is known to have said."""
    with contextlib.closing(sqlite3.connect(host.state / "state.db")) as db:
        row = db.execute("SELECT content FROM file WHERE name=?", (str(path),)).fetchone()
        return zlib.decompress(row[0]).decode() if row else ""


def test_the_half_of_a_file_does_not_stand_in_for_the_broken_rest(bare: PrivateHost) -> None:
    bare.write("a.yaml", NETS)
    path = bare.write("b.yaml", TWO)
    with bare.daemon("--resync", "3600") as daemon:
        with bare.process("two") as living:
            with path.open("w") as file:
                file.write(HALF)
                file.flush()
                # It is read as far as it goes.
                daemon.child.send_signal(signal.SIGHUP)
                daemon.says(f"in use by pid {living.pid}")
                os.utime(path)
                file.write(BROKEN.removeprefix(HALF))
            daemon.says("b.yaml:3:")
            written = time.time()
            wait_for(lambda: time.time() > written + 1.2)
        daemon.child.send_signal(signal.SIGHUP)
        bare.sh("ip -n two link set lo down")
        wait_for(lambda: "UP" in bare.link("lo", "two")["flags"], what=daemon.log)
        assert stands(bare, "one") and stands(bare, "two"), daemon.log
        assert "- container" not in daemon.log
        assert remembered(bare, path) == TWO


def test_the_half_of_a_file_does_not_stand_in_for_the_broken_rest_with_once(
    bare: PrivateHost,
) -> None:
    bare.write("a.yaml", NETS)
    path = bare.write("b.yaml", TWO)
    bare.reconcile()
    with bare.process("two"):
        for text in (HALF, BROKEN):
            # One after the other within a second, and a run just behind each.
            path.write_text(text)
            os.utime(path)
            bare.reconcile("--once", "--max-removals", "0", check=False)
    bare.age(60)
    run = bare.reconcile(check=False)
    assert run.code == 2 and run.report["removed"] == 0
    assert stands(bare, "one") and stands(bare, "two")
    assert remembered(bare, path) == TWO


def test_what_was_written_just_before_a_run_stands_in_later(bare: PrivateHost) -> None:
    bare.write("a.yaml", NETS)
    path = bare.write("b.yaml", HALF)
    bare.reconcile()
    path.write_text(TWO)
    then = time.time()
    os.utime(path, (then, then))
    bare.reconcile()
    assert stands(bare, "two")
    # It was left alone for a second, whether or not anybody looked; then somebody broke it.
    path.write_text(BROKEN)
    os.utime(path, (then + 2, then + 2))
    wait_for(lambda: time.time() > then + 3.2)
    run = bare.reconcile(check=False)
    assert run.code == 2 and run.report["removed"] == 0, run.out
    bare.sh("ip -n two link set eth0 down")
    assert bare.reconcile(check=False).report["changed"] == 1
    assert remembered(bare, path) == TWO


@pytest.mark.parametrize("how", ["once", "daemon"])
def test_a_time_that_is_still_to_come_is_no_unrest(bare: PrivateHost, how: str) -> None:
    bare.write("a.yaml", NETS)
    bare.write("b.yaml", EXTRA)
    if how == "once":
        bare.reconcile()
        bare.drop("b.yaml")
        bare.age(-FUTURE_S)
        assert bare.reconcile().report["removed"] == 1
        return
    with bare.daemon("--resync", "3600") as daemon:
        (bare.config / "b.yaml").unlink()
        bare.age(-FUTURE_S)
        wait_for(lambda: not stands(bare, "extra"), 10.0, daemon.log)


ODD = {
    "a fifo": lambda path: os.mkfifo(path),
    "a device": lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3)),
    "a link that leads nowhere": lambda path: os.symlink("/nowhere/x", path),
    "a link to itself": lambda path: os.symlink(path, path),
    "no text": lambda path: Path(path).write_bytes(bytes(100)),
    "a folder": os.mkdir,
}


def test_odd_things_in_the_folder_stop_nothing(bare: PrivateHost) -> None:
    bare.write("a.yaml", NETS)
    with bare.daemon("--resync", "3600") as daemon:
        for number, make in enumerate(ODD.values()):
            make(str(bare.config / f"odd{number}.yaml"))
        name = os.fsencode(bare.config) + b"/\xff\n.yaml"
        with open(name, "w", encoding="ascii") as file:
            file.write(EXTRA)
        (bare.config / "z.yaml").write_text(EXTRA.replace("extra", "late"))
        wait_for(lambda: stands(bare, "late"), what=daemon.log)
        daemon.says("its name is not UTF-8")
        run = bare.reconcile("--once", check=False)
        assert run.code == 2 and not stands(bare, "extra")
        files = {Path(r["file"]).name for r in run.report["rejected"]}
        assert files == {*(f"odd{n}.yaml" for n in range(5)), "\\xff\n.yaml"}
        bare.runcnet("status")
        for number in range(5):
            (bare.config / f"odd{number}.yaml").unlink()
        os.rename(name, bare.config / "y.yaml")
        wait_for(lambda: stands(bare, "extra"), what=daemon.log)
        wait_for(lambda: bare.reconcile("--check", check=False).code == 0)


def test_a_folder_that_is_gone_for_a_moment_takes_nothing_with_it(bare: PrivateHost) -> None:
    second = bare.dir / "second"
    second.mkdir(mode=0o755)
    bare.write("a.yaml", NETS)
    file = second / "b.yaml"
    file.write_text(EXTRA)
    file.chmod(0o644)
    then = time.time() - 60
    for path in (file, second):
        os.utime(path, (then, then))
    with bare.daemon("--resync", "3600", "--config-dir", str(second)) as daemon:
        assert stands(bare, "extra")
        bare.sh(
            f"mv {second} {second}.old; ip -n extra link set lo down; sleep 0.3; mv {second}.old {second}"
        )
        wait_for(lambda: "UP" in bare.link("lo", "extra")["flags"], what=daemon.log)
        changed = time.time()
        wait_for(lambda: time.time() > changed + 1.5)
        assert stands(bare, "extra") and "- container" not in daemon.log
