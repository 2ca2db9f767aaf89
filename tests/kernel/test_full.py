"""Folders of the books on a full file system: nothing is taken for damaged, and all goes on later."""

import sqlite3
from pathlib import Path

import pytest

from tests.kernel.test_daemon import BASE, EXTRA, stands
from tests.support.host import PrivateHost, wait_for

MANY = "containers: {many: {mode: none, replicas: 250}}\n"
"""More than fits into what is left of a page."""


@pytest.mark.parametrize("lost", ["state", "run"])
def test_a_full_file_system_takes_no_books_away(bare: PrivateHost, lost: str) -> None:
    folder = bare.state if lost == "state" else Path("/run/runcnet")
    name = {"state": "state.db", "run": "record.db"}[lost]
    bare.sh(f"mkdir -p {folder}; mount -t tmpfs -o size=4m,mode=755 none {folder}")
    bare.write("a.yaml", BASE)
    bare.reconcile()
    # As an older release has left it: a table is still to be made.
    table = {"state": "young", "run": "mishap"}[lost]
    drop = f"import sqlite3; sqlite3.connect('{folder}/{name}').execute('DROP TABLE {table}')"
    bare.run("python3", "-c", drop)
    inode = bare.run("stat", "-c", "%i", f"{folder}/{name}").out
    fill = f"dd if=/dev/zero of={folder}/fill bs=4k 2>/dev/null || true"
    bare.sh(fill)
    bare.write("many.yaml", MANY)
    for _ in range(2):
        run = bare.reconcile("--once", check=False)
        assert run.code == 1 and "--" + lost + "-dir" in run.err, run
    assert bare.run("stat", "-c", "%i", f"{folder}/{name}").out == inode
    assert "broken" not in bare.run("ls", str(folder)).out
    bare.sh(f"rm {folder}/fill")
    bare.drop("many.yaml")
    assert bare.reconcile().report["converged"]
    with bare.daemon("--resync", "3600") as daemon:
        bare.sh(fill)
        bare.write("many.yaml", MANY)
        daemon.says("disk is full")
        bare.sh(f"ip -n a link set eth0 down; rm {folder}/fill")
        bare.write("z.yaml", EXTRA)
        wait_for(lambda: stands(bare, "extra") and stands(bare, "many-249"), 30.0, daemon.log)
        wait_for(lambda: bare.reconcile("--check", check=False).code == 0)


def test_what_is_damaged_is_told_from_what_cannot_be_had() -> None:
    from reconciler.host.damage import damaged

    def error(code: int) -> sqlite3.DatabaseError:
        found = sqlite3.OperationalError("...")
        found.sqlite_errorcode = code
        return found

    assert damaged(sqlite3.DatabaseError("quick_check failed"))
    assert damaged(error(sqlite3.SQLITE_CORRUPT)) and damaged(error(sqlite3.SQLITE_NOTADB))
    assert not damaged(error(sqlite3.SQLITE_FULL)) and not damaged(error(sqlite3.SQLITE_BUSY))
    assert not damaged(error(sqlite3.SQLITE_IOERR_SHMSIZE))
