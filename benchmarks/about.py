"""Names and versions of what is measured, for the record."""

import importlib.metadata
import os
import platform
import shutil
import subprocess

from benchmarks import peers


def about() -> dict[str, str]:
    """What this machine and its programs are; those that are not installed are left out."""
    found = {
        "runcnet": _distribution("runcnet"),
        "kernel": platform.release(),
        "processors": str(len(os.sched_getaffinity(0))),
        "Python": platform.python_version(),
        "iproute2": _first_line("ip", "-V").rpartition("iproute2-")[2].split(",")[0],
        "CNI plugins": _package("containernetworking-plugins") or _banner(),
        "netavark": _first_line(peers.NETAVARK, "--version").rpartition(" ")[2],
        "pyroute2": _distribution("pyroute2"),
    }
    return {name: version for name, version in found.items() if version}


def _distribution(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _first_line(program: str, *words: str) -> str:
    """What a program says first of itself, on stdout or on stderr."""
    if not program or not shutil.which(program):
        return ""
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    return next(iter((done.stdout + done.stderr).splitlines()), "")


def _package(name: str) -> str:
    """The version of a Debian package: the plugins of some builds do not know their own."""
    if not shutil.which("dpkg-query"):
        return ""
    words = ["dpkg-query", "-W", "-f", "${Version}", name]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def _banner() -> str:
    """`CNI bridge plugin v1.1.1`."""
    return _first_line(str(peers.CNI / "bridge"), "--version").rpartition(" ")[2]
