"""What a test needs of the machine. Missing: a skip with its reason; with RUNCNET_REQUIRE=all, a failure."""

import functools
import os
import shutil
import subprocess

import pytest


def missing(reason: str) -> None:
    if os.environ.get("RUNCNET_REQUIRE") == "all":
        pytest.fail(f"this machine lacks what the test needs: {reason}")
    pytest.skip(reason)


def root() -> None:
    """To be root."""
    if os.geteuid() != 0:
        missing("root is needed")


def program(name: str) -> None:
    """A program on the path."""
    if shutil.which(name) is None:
        missing(f"{name} is not installed")


@functools.cache
def _works(script: str) -> bool:
    words = ["unshare", "--net", "--mount", "sh", "-ec", script]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def kernel() -> None:
    """Namespaces, veth pairs, bridges."""
    if not _works("ip link add test0 type veth peer name test1; ip link add test2 type bridge"):
        missing("the kernel has no namespaces, veth pairs or bridges for us")


def memory(mib: int) -> None:
    """Free memory: 10,000 namespaces take 3.4 GB of the kernel."""
    with open("/proc/meminfo", encoding="ascii") as file:
        free = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
    if free < mib * 1024:
        missing(f"{mib} MiB of free memory are needed, {free // 1024} are there")


def has_legacy_tables() -> bool:
    """Whether there are the legacy xtables."""
    return shutil.which("iptables-legacy") is not None and _works(
        "mount -t tmpfs none /run; iptables-legacy -t nat -S; ip6tables-legacy -t nat -S"
    )


def legacy_tables() -> None:
    """The legacy xtables."""
    program("iptables-legacy")
    if not has_legacy_tables():
        missing("the kernel has no legacy xtables")
