"""The code of modules out of one file: the same modules as without it, whatever has become of the file."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reconciler import bytecode
from reconciler.bytecode import LEAD
from tests.support import need

ROOT = Path(bytecode.__file__).parent.parent
PROGRAM = """
import sys
sys.path += sys.argv[2:]
from reconciler.bytecode import Pack
pack = Pack(sys.argv[1])
sys.meta_path.insert(0, pack)
import toy.one, _json, string
found = toy.one
print(found.VALUE, type(found.__spec__.loader).__name__, found.__file__, found.__package__, *toy.__path__)
try:
    pack.keep()
except FileNotFoundError:
    pass  # another one writes it
"""
Run = Callable[..., list[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a package whose `one.VALUE` is `first`."""
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/__init__.py").write_text("")
    source = tmp_path / "toy/one.py"
    source.write_text("VALUE = 'first'\n")
    long_ago = time.time() - 1000
    os.utime(source, (long_ago, long_ago))
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Run:
    """Loads `toy.one` in an interpreter of its own: its value, by whom it was loaded, and its places."""

    def started(*more: str) -> list[str]:
        words = ["-I", "-S", "-c", PROGRAM, str(folder / "pack"), str(ROOT), str(folder), *more]
        done = subprocess.run(
            [sys.executable, *words], check=True, capture_output=True, text=True, timeout=60
        )
        assert done.stderr == ""
        return done.stdout.split()

    return started


def test_a_module_is_the_same_out_of_the_pack(run: Run, folder: Path) -> None:
    first, second = run(), run()
    assert first[:2] == ["first", "SourceFileLoader"]
    assert second == ["first", "Pack", *first[2:]]
    assert first[2:] == [str(folder / "toy/one.py"), "toy", str(folder / "toy")]


def test_it_is_written_once_and_again_when_something_is_new(run: Run, folder: Path) -> None:
    run()
    before = (folder / "pack").stat()
    assert (before.st_mode & 0o7777, before.st_uid) == (0o644, os.geteuid())
    run()
    assert (folder / "pack").stat().st_ino == before.st_ino
    (folder / "toy/one.py").write_text("VALUE = 'other'\n")
    assert run()[:2] == ["other", "SourceFileLoader"]
    assert (folder / "pack").stat().st_ino != before.st_ino
    assert run()[:2] == ["other", "Pack"]
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_another_file_of_the_same_size_and_time_is_another(run: Run, folder: Path) -> None:
    run()
    source = folder / "toy/one.py"
    old = source.stat()
    for step in ("in place", "by rename"):
        value = f"VALUE = '{step[:2]}sed'\n"
        if step == "in place":
            source.write_text(value)
        else:
            (folder / "next").write_text(value)
            (folder / "next").rename(source)
        os.utime(source, ns=(old.st_atime_ns, old.st_mtime_ns))
        assert source.stat().st_size == old.st_size
        for pyc in (folder / "toy/__pycache__").iterdir():
            pyc.unlink()
        assert run()[:2] == [value[9:14], "SourceFileLoader"]
        assert run()[:2] == [value[9:14], "Pack"]


def test_a_source_that_is_gone_is_gone(run: Run, folder: Path) -> None:
    run()
    (folder / "toy/one.py").unlink()
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run()
    assert "No module named 'toy.one'" in failed.value.stderr


@pytest.mark.parametrize("left", [0, 3, 4, 50, 2000, -1])
def test_a_pack_that_was_cut_off_stands_in_nobodys_way(run: Run, folder: Path, left: int) -> None:
    run()
    whole = (folder / "pack").read_bytes()
    (folder / "pack").write_bytes(whole[:left])
    assert run()[0] == "first"
    assert run()[:2] == ["first", "Pack"]


@pytest.mark.parametrize("content", [b"\xff" * 5000, b"\x04\x00\x00\x00N...", b"text\n" * 100])
def test_what_is_no_pack_is_replaced(run: Run, folder: Path, content: bytes) -> None:
    (folder / "pack").write_bytes(content)
    assert run()[:2] == ["first", "SourceFileLoader"]
    assert run()[:2] == ["first", "Pack"]


@pytest.mark.parametrize("where", ["the lead", "the table", "the code"])
def test_damage_anywhere_stands_in_nobodys_way(run: Run, folder: Path, where: str) -> None:
    run()
    whole = (folder / "pack").read_bytes()
    table = LEAD + int.from_bytes(whole[:4], "little")
    first, after = {
        "the lead": (0, LEAD),
        "the table": (LEAD, table),
        "the code": (table, len(whole)),
    }[where]
    odd = random.Random(1)
    for _ in range(20):
        content = bytearray(whole)
        for _ in range(200 if where == "the code" else odd.randint(1, 8)):
            content[odd.randrange(first, after)] ^= odd.randint(1, 255)
        (folder / "pack").write_bytes(content)
        assert run()[0] == "first"
        assert run()[:2] == ["first", "Pack"]  # it has been written anew


def test_several_write_it_at_once(run: Run, folder: Path) -> None:
    (folder / ".pack.0123abcd").write_bytes(b"of one that was killed")
    with ThreadPoolExecutor(6) as pool:
        assert {tuple(found) for found in pool.map(lambda _: run(), range(12))} <= {
            tuple(run()), ("first", "SourceFileLoader", *run()[2:])
        }  # fmt: skip
    assert run()[:2] == ["first", "Pack"]
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_what_others_may_write_is_not_run(run: Run, folder: Path) -> None:
    run()
    for mode in (0o666, 0o664):
        (folder / "pack").chmod(mode)
        # It loads nothing, and so all of it is new: the next one is our own again.
        assert run()[:2] == ["first", "SourceFileLoader"]
        assert run()[:2] == ["first", "Pack"]
    (folder / "pack").rename(folder / "elsewhere")
    (folder / "pack").symlink_to(folder / "elsewhere")
    assert run()[:2] == ["first", "SourceFileLoader"]
    assert not (folder / "pack").is_symlink()
    if os.geteuid() == 0:
        os.chown(folder / "pack", 1234, 1234)
        assert run()[:2] == ["first", "SourceFileLoader"]


def test_it_serves_those_who_look_in_the_same_folders(run: Run, folder: Path) -> None:
    run()
    (folder / "more").mkdir()
    assert run(str(folder / "more"))[:2] == ["first", "SourceFileLoader"]
    assert run(str(folder / "more"))[:2] == ["first", "Pack"]


def test_a_folder_that_cannot_be_written_stays_as_it_is(run: Run, folder: Path) -> None:
    need.root()
    run()
    (folder / "toy/one.py").write_text("VALUE = 'other'\n")
    before = (folder / "pack").read_bytes()
    words = ["-I", "-S", "-c", PROGRAM, str(folder / "pack"), str(ROOT), str(folder)]
    shell = f'mount --bind {folder} {folder} && mount -o remount,bind,ro {folder} && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", shell, "sh", sys.executable, *words],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split()[:2] == ["other", "SourceFileLoader"] and not done.stderr
    assert (folder / "pack").read_bytes() == before


def test_where_there_is_no_folder_there_is_none(folder: Path) -> None:
    words = ["-I", "-S", "-c", PROGRAM, str(folder / "absent/pack"), str(ROOT), str(folder)]
    done = subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True)
    assert done.stdout.split()[0] == "first"
