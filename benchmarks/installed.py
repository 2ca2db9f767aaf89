"""runcnet as a user has it: with what it needs and nothing else.

The developer's environment is no measure for a program that lives for some milliseconds. The finder of
an editable install, and what msgspec loads where tools for tests are there, take longer than Python
takes to start.
"""

import compileall
import importlib.metadata
import re
import shutil
import sys
import venv
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import HERE, OUT
from tests.support.host import CLIENT, RUNCNET


def needed(name: str, found: dict[str, importlib.metadata.Distribution]) -> None:
    """Collect a distribution and what it needs, extras aside."""
    if name in found:
        return
    found[name] = importlib.metadata.distribution(name)
    for line in found[name].requires or ():
        wanted, _, condition = line.partition(";")
        if "extra" in condition or "python_" in condition:
            continue
        match = re.match(r"[A-Za-z0-9._-]+", wanted)
        assert match is not None  # PEP 508: it begins with a name
        needed(match[0], found)


class Programs(NamedTuple):
    """The paths of both."""

    runcnet: str
    client: str


def programs(place: Path = OUT / "venv") -> Programs:
    """`runcnet` and `runcnet-hook` in an environment of their own, made anew in that folder."""
    shutil.rmtree(place, ignore_errors=True)
    venv.create(place, symlinks=True)
    site = place / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    found: dict[str, importlib.metadata.Distribution] = {}
    needed("runcnet", found)
    shutil.copytree(HERE.parent / "reconciler", site / "reconciler")
    compileall.compile_dir(str(site / "reconciler"), quiet=1)
    for name in found.keys() - {"runcnet"}:
        for top in {file.parts[0] for file in found[name].files or () if file.parts[0] != ".."}:
            if not (site / top).exists() and top != "__pycache__":
                (site / top).symlink_to(Path(str(found[name].locate_file(top))))
    script = place / "bin" / "runcnet"
    _, _, body = Path(RUNCNET).read_text().partition("\n")
    script.write_text(f"#!{place}/bin/python3\n{body}")
    script.chmod(0o755)
    return Programs(str(script), str(site / "reconciler" / CLIENT.name))
