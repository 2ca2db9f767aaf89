"""The code of modules out of one file: the same modules as without it, whatever has become of the file."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler import bytecode

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
pack.keep()
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


def test_where_none_can_be_written_there_is_none(folder: Path) -> None:
    words = ["-I", "-S", "-c", PROGRAM, str(folder / "absent/pack"), str(ROOT), str(folder)]
    done = subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True)
    assert done.stdout.split()[0] == "first"
