"""What is heard of definition folders, without a daemon."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from select import POLLIN, poll

import pytest

from reconciler.host.watch import Watch
from tests.support.host import wait_for


class Ear:
    """A watch, and all that it has said."""

    def __init__(self, *folders: Path) -> None:
        self.words: list[str] = []
        self.watch = Watch([str(folder) for folder in folders], self.words.append)
        self.heard: set[str] = set()
        self.whole = 0
        self._poll = poll()
        self._poll.register(self.watch.fileno(), POLLIN)

    def listen(self, timeout_s: float = 0.0) -> bool:
        """Take what has rung; whether anything has."""
        if not self._poll.poll(timeout_s * 1000):
            return False
        changed = self.watch.changed()
        self.whole += changed is None
        self.heard |= changed or frozenset()
        return True

    def hears(self, path: Path, seconds: float = 5.0) -> None:
        """Wait until that file was heard of, by name or with all others."""
        self.until(lambda: str(path) in self.heard or bool(self.whole), seconds)
        self.forget()

    def until(self, true: Callable[[], bool], seconds: float = 5.0) -> None:
        wait_for(lambda: (self.listen() and False) or true(), seconds)

    def forget(self) -> None:
        """Begin anew, once it is silent."""
        while self.listen(0.1):
            pass
        self.heard.clear()
        self.whole = 0


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "deep" / "down" / "conf"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def ear(place: Path) -> Iterator[Ear]:
    ear = Ear(place)
    ear.forget()
    yield ear
    ear.watch.close()
    assert not ear.words


def test_a_file_that_is_moved_out_is_heard_of_at_once(ear: Ear, place: Path) -> None:
    file, other = place / "a.yaml", place / "b.yaml"
    file.touch()
    ear.hears(file)
    file.rename(place.parent / "elsewhere")
    other.touch()
    # Not after the half second in which another folder may tell where it went.
    ear.until(lambda: ear.heard == {str(file), str(other)}, 0.3)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_folders_on_the_way_may_be_replaced_again_and_again(
    ear: Ear, place: Path, tmp_path: Path, level: int
) -> None:
    part = [place, place.parent, place.parent.parent][level]
    file = place / "a.yaml"
    for number in range(2):
        spare = tmp_path / f"old{number}"
        part.rename(spare)
        ear.hears(file)
        place.mkdir(parents=True)
        ear.hears(file)
        file.touch()
        ear.hears(file)
        shutil.rmtree(part)
        ear.hears(file)
        spare.rename(part)
        ear.hears(file)
        file.touch()
        ear.hears(file)


def test_a_folder_may_come_where_nothing_of_its_way_was(tmp_path: Path) -> None:
    place = tmp_path / "x" / "y" / "conf"
    ear = Ear(place)
    place.mkdir(parents=True)
    ear.hears(place / "a.yaml")
    (place / "a.yaml").touch()
    ear.hears(place / "a.yaml")
    ear.watch.close()


def test_what_links_lead_to_may_be_replaced(ear: Ear, place: Path, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "x").touch()
    link = place / "a.yaml"
    link.symlink_to(real / "x")
    ear.hears(link)
    ear.watch.follow([str(link)])
    for number in range(2):
        ear.forget()
        real.rename(tmp_path / f"old{number}")
        ear.hears(link)
        real.mkdir()
        ear.hears(link)
        (real / "x").touch()
        ear.hears(link)
        (real / "x").write_text("more")
        ear.hears(link)


def test_who_may_write_to_a_folder_or_a_file_is_heard_of(ear: Ear, place: Path) -> None:
    file = place / "a.yaml"
    for mode in (0o777, 0o755):
        place.chmod(mode)
        ear.hears(file)
    file.touch()
    ear.hears(file)
    file.chmod(0o666)
    ear.hears(file)
    os.utime(place)
    file.chmod(0o644)
    ear.until(lambda: ear.heard == {str(file)})
    assert not ear.whole  # another time is no other folder


def test_what_is_written_is_heard_of_when_it_is_closed(ear: Ear, place: Path) -> None:
    file, other = place / "a.yaml", place / "b.yaml"
    file.touch()
    ear.hears(file)
    with file.open("w") as opened:
        for _ in range(20):
            opened.write("#")
            opened.flush()
        other.touch()
        ear.until(lambda: str(other) in ear.heard)
        assert ear.heard == {str(other)}
    ear.until(lambda: str(file) in ear.heard)


def test_what_else_goes_on_on_the_way_wakes_nobody(ear: Ear, place: Path) -> None:
    for number in range(50):
        (place.parent / f"{number}").touch()
        (place.parent / f"{number}").unlink()
        (place.parent.parent / "conf").touch()
    # What is heard comes in order: behind all that, one that counts.
    rings = 0
    (place / "a.yaml").touch()
    while not ear.heard:
        rings += ear.listen(5.0)
    assert ear.heard == {str(place / "a.yaml")} and not ear.whole
    assert rings == 1
