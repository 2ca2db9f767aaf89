"""Wheel and sdist build, and what is built works in an empty virtual environment."""

import subprocess
import sys
from pathlib import Path

from tests.support import need
from tests.support.host import ROOT


def test_wheel_and_sdist_build_and_install(tmp_path: Path) -> None:
    need.program("gcc")
    out = tmp_path / "dist"
    words = [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)]
    subprocess.run(words, check=True, capture_output=True, timeout=300)
    names = sorted(p.name for p in out.iterdir())
    assert len(names) == 2 and "cp311-abi3" in names[0] and names[1].endswith(".tar.gz")
    empty = tmp_path / "empty"
    subprocess.run([sys.executable, "-m", "venv", str(empty)], check=True, timeout=120)
    pip = [str(empty / "bin" / "pip"), "install", "-q", str(out / names[0])]
    subprocess.run(pip, check=True, timeout=300)
    program = str(empty / "bin" / "runcnet")
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, cwd="/", check=True
    )
    assert done.stdout.startswith("runcnet ")
    code = "from reconciler.host import rtnl; print(rtnl.cookie() > 0)"
    done = subprocess.run(
        [str(empty / "bin" / "python"), "-c", code],
        capture_output=True,
        text=True,
        cwd="/",
        check=True,
    )
    assert done.stdout == "True\n"
    # What a hook has written there goes with the package.
    (pack,) = empty.glob("lib/python*/site-packages/reconciler/hook.pack")
    pack.write_bytes(b"as of a hook")
    pip[1:] = ["uninstall", "-q", "-y", "runcnet"]
    subprocess.run(pip, check=True, timeout=120)
    assert not pack.parent.exists()
