"""What stands in config/runcnet.service, and systemd's own judgement of unit files."""

import functools
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.host import ROOT, Run

SERVICE = ROOT / "config" / "runcnet.service"
TARGET = ROOT / "config" / "runcnet.target"


@functools.cache
def settings(path: Path = SERVICE) -> Mapping[str, tuple[str, ...]]:
    """Each key with its values, in their order."""
    found: dict[str, tuple[str, ...]] = {}
    for line in path.read_text().splitlines():
        if re.match(r"[A-Za-z]+=", line):
            key, _, value = line.partition("=")
            found[key] = (*found.get(key, ()), value)
    return found


def words(key: str) -> list[str]:
    """The words of a list that may stand on several lines."""
    return [word for value in settings().get(key, ()) for word in value.split()]


def capabilities() -> list[str]:
    """The bounding set as setpriv writes it: `net_admin`."""
    return [word.removeprefix("CAP_").lower() for word in words("CapabilityBoundingSet")]


@functools.cache
def _groups() -> Mapping[str, tuple[str, ...]]:
    out = subprocess.run(
        ["systemd-analyze", "--no-pager", "syscall-filter"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    parts = re.split(r"^(?=@)", out, flags=re.M)
    return {
        part.split("\n", 1)[0]: tuple(re.findall(r"^ +([@a-z][a-z0-9_-]+)$", part, re.M))
        for part in parts
        if part.startswith("@")
    }


def group(name: str) -> frozenset[str]:
    """The system calls of `@name`, as the systemd of this machine has them."""
    found: set[str] = set()
    for word in _groups()[name]:
        found |= group(word) if word.startswith("@") else {word}
    return frozenset(found)


def syscalls() -> frozenset[str]:
    """What SystemCallFilter= allows; systemd adds @default to each list of what is allowed."""
    found = set(group("@default"))
    for value in settings()["SystemCallFilter"]:
        named: set[str] = set()
        for word in value.removeprefix("~").split():
            named |= group(word) if word.startswith("@") else {word}
        found = found - named if value.startswith("~") else found | named
    return frozenset(found)


def verify(folder: Path, units: Mapping[str, str]) -> Run:
    """`systemd-analyze verify` of unit files and drop-ins, `NAME.service.d/NAME.conf`.

    Programs of runcnet count as installed, wherever the units look for them.
    """
    stub = folder / "bin" / "runcnet"
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\n")
    stub.chmod(0o755)
    for name, text in units.items():
        path = folder / "units" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(re.sub(r"/[a-z/]*/bin/runcnet(-reconcile)?\b", str(stub), text))
    names = [str(folder / "units" / name) for name in units if "/" not in name]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *names],
        capture_output=True,
        text=True,
        check=False,
    )
    return Run(done.returncode, done.stdout, done.stderr)
