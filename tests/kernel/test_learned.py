"""What nft said once is known by the kernel's bytes, and never taken for something else."""

import sys

from tests.kernel.town import ask
from tests.support import need
from tests.support.host import PrivateHost

SCRIPT = """
import subprocess
from reconciler.core import nftset
from reconciler.host.firewall import nftables
calls = []
real = nftables._nft
def counted(action, *words, text=""):
    calls.append(action)
    return real(action, *words, text=text)
nftables._nft = counted
def sh(text):
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)
def read():
    calls.clear()
    return nftables.read(), len(calls)
"""


def within(host: PrivateHost, script: str) -> None:
    """Run it in the host, with the rules of two networks standing."""
    need.program("nft")
    host.firewall = "nftables"
    ask(host, "replace")
    host.run(sys.executable, "-c", SCRIPT + script)


def test_the_program_is_asked_of_what_was_never_seen_alone(host: PrivateHost) -> None:
    within(
        host,
        """
whole, asked = read()
assert asked == 1 and read() == (whole, 0)
sh("add table ip else; add chain ip else c")
assert read() == (whole, 0)
sh("flush chain inet runcnet forward4")
flushed, asked = read()
assert asked == 0 and flushed.chains["forward4"].rules == () and whole.chains["forward4"].rules
lines = subprocess.run(["nft", "list", "chain", "inet", "runcnet", "forward6"], capture_output=True,
                       text=True).stdout
sh("flush chain inet runcnet forward6\\n" + lines)
back, asked = read()
assert asked == 0 and back.chains["forward6"] == whole.chains["forward6"]
sh("add rule inet runcnet user tcp dport 80 accept")
mine, asked = read()
assert asked == 1 and len(mine.chains["user"].rules) == 1
sh("delete table inet runcnet")
assert read() == (nftset.EMPTY, 0)
""",
    )


def test_sets_without_a_name_are_told_apart(host: PrivateHost) -> None:
    within(
        host,
        """
found = []
for ports in ("{ 80, 81 }", "{ 82, 83 }", "{ 80, 81 }"):
    sh("flush chain inet runcnet user\\nadd rule inet runcnet user tcp dport " + ports + " accept")
    found.append(read()[0].chains["user"].rules)
assert found[0] == found[2] != found[1], found
""",
    )


def test_a_set_that_is_declared_otherwise_is_seen(host: PrivateHost) -> None:
    within(
        host,
        """
before = read()[0].shapes
sh("add set inet runcnet user_own { type ipv4_addr; }")
first = read()[0].shapes
sh("delete set inet runcnet user_own\\nadd set inet runcnet user_own { type ipv4_addr; flags interval; }")
second = read()[0].shapes
assert not first["user_own"].interval and second["user_own"].interval
assert set(first) == set(second) == {*before, "user_own"}
""",
    )


def test_elements_are_seen_as_they_are(host: PrivateHost) -> None:
    within(
        host,
        """
before = read()[0].elements
sh('delete element inet runcnet homes4 { "red0" }')
after, asked = read()
assert asked == 0 and len(after.elements["homes4"]) == len(before["homes4"]) - 1
""",
    )
