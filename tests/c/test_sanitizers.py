"""The C layer under AddressSanitizer and UndefinedBehaviorSanitizer, at work and fed with garbage."""

import subprocess
from pathlib import Path

import pytest

from tests.support import need
from tests.support.host import ROOT, PrivateHost

SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need.program("gcc")
    program = tmp_path_factory.mktemp("harness") / "harness"
    sources = [p for p in (ROOT / "_netlink").glob("*.c") if p.name not in ("_rtnl.c", "client.c")]
    words = [
        "gcc",
        "-std=gnu11",
        "-g",
        "-O1",
        *SANITIZE,
        "-pthread",
        f"-I{ROOT}/_netlink",
        "-Wl,--wrap=recvfrom",
    ]
    subprocess.run([*words, "-o", program, ROOT / "tests/c/harness.c", *sources], check=True)
    return program


@pytest.mark.parametrize("what", ["work", "fuzz"])
def test_nothing_is_found(bare: PrivateHost, harness: Path, what: str) -> None:
    bare.sh("mkdir -p /run/made")
    assert bare.run(str(harness), what, "/run/made").out == "fine\n"


def test_nothing_is_found_in_connections(host: PrivateHost, harness: Path) -> None:
    for program in ("iptables-legacy", "ip6tables-legacy"):
        host.run(program, "-A", "INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED")
    assert host.run(str(harness), "conntrack", "/run").out == "fine\n"
