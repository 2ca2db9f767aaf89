"""Elements of sets that are written by netlink, as nft and we read them."""

import json
import subprocess
import sys

import pytest

from reconciler.core import nftbridge
from tests.support.host import PrivateHost

PROGRAM = """
import json, sys
from reconciler.core import nftbridge
from reconciler.core.errors import FirewallError
from reconciler.core.model import parse_address
from reconciler.core.policy import Policy, Sender
from reconciler.host.firewall import nftables, nfnl
def senders(given):
    return tuple(Sender("n", c, link, tuple(map(parse_address, found))) for c, link, found in given)
backend = nftables.Nftables()
first, second, gone = (senders(given) for given in json.load(sys.stdin))
backend.replace(Policy(senders=first))
for step, given in ((lambda senders: backend.admit(Policy(), senders), second), (backend.dismiss, gone)):
    try:
        step(given)
    except FirewallError as error:
        print(error)
read = nftables.read(nfnl.BRIDGE).elements
stays = [s for s in {s.link: s for s in first + second}.values() if s not in gone]
wanted = nftbridge.elements(stays)
assert read == wanted, (read, wanted)
"""
BARE = PROGRAM.replace("backend.replace(Policy(senders=first))\n", "").partition("read =")[0]
HANDED = [["a", "rnaaaaaaaaaaaaa", ["10.0.0.2", "fd00::2", "fe80::1"]], ["b", "veth-b", []]]


def run(host: PrivateHost, *given: object) -> str:
    return host.run(sys.executable, "-c", PROGRAM, stdin=json.dumps(given)).out


def listed(host: PrivateHost, name: str) -> list[str]:
    """What nft lists, which reads what was written by others as it reads its own."""
    text = host.run("nft", "list", "set", "bridge", "runcnet", name).out
    _, _, body = text.partition("elements = {")
    return sorted(part.strip() for part in body.partition("}")[0].split(",") if part.strip())


def test_what_is_written_is_what_nft_would_write(bare: PrivateHost) -> None:
    run(bare, HANDED, [], [])
    by_nft = {name: listed(bare, name) for name in nftbridge.SHAPES}
    assert by_nft["addresses6"] and by_nft["checked"]
    bare.run("nft", "delete", "table", "bridge", "runcnet")
    run(bare, HANDED[1:], HANDED[:1], [])
    assert {name: listed(bare, name) for name in nftbridge.SHAPES} == by_nft


def test_what_is_there_may_be_added_and_what_is_not_taken_away(bare: PrivateHost) -> None:
    absent = ["c", "veth-c", ["10.0.0.9", "fd00::9"]]
    assert run(bare, HANDED, HANDED, [absent, HANDED[1]]) == ""
    assert listed(bare, "checked") == ['"rnaaaaaaaaaaaaa" comment "runcnet:n/a"']


def test_nobody_runs_nft_for_a_few_elements(bare: PrivateHost) -> None:
    run(bare, HANDED[:1], [], [])
    code = BARE.replace("for step,", "import os; os.environ['PATH'] = '/nowhere'\nfor step,")
    done = bare.run(sys.executable, "-c", code, stdin=json.dumps([[], HANDED[1:], HANDED[:1]]))
    assert done.out == ""
    assert listed(bare, "checked") == ['"veth-b" comment "runcnet:n/b"']


@pytest.mark.parametrize("count", [127, 128, 129, 2000])
def test_many_at_once(bare: PrivateHost, count: int) -> None:
    long = "c" * 64
    many = [[f"{long}{n}", f"rn{n:013}", [f"10.1.{n >> 8}.{n & 255}", f"fd00::{n:x}"]]
            for n in range(count)]  # fmt: skip
    assert run(bare, HANDED, many, many[: count // 2]) == ""


OTHERWISE = {
    "one is gone": "delete set bridge runcnet targets6",
    "its key is turned round": "delete set bridge runcnet addresses4; "
    "add set bridge runcnet addresses4 { type ipv4_addr . ifname; }",
    "it holds runs": "delete set bridge runcnet checked; "
    "add set bridge runcnet checked { type ifname; flags interval; }",
    "it forgets": "delete set bridge runcnet addresses6; "
    "add set bridge runcnet addresses6 { type ifname . ipv6_addr; timeout 1h; }",
}


@pytest.mark.parametrize("how", OTHERWISE)
def test_nothing_is_done_where_a_set_is_another(bare: PrivateHost, how: str) -> None:
    """The kernel would take what has the right length."""
    run(bare, HANDED, [], [])
    bare.run("nft", "flush table bridge runcnet; " + OTHERWISE[how])
    before = bare.run("nft", "list", "table", "bridge", "runcnet").out
    new = [["c", "veth-c", ["10.0.0.9", "fd00::9"]]]
    said = bare.run(sys.executable, "-c", BARE, stdin=json.dumps([[], new, new])).out.splitlines()
    assert len(said) == 2
    assert all("of the table bridge runcnet is not as it is declared here" in one for one in said)
    assert bare.run("nft", "list", "table", "bridge", "runcnet").out == before
    assert run(bare, HANDED, new, []) == ""  # a look at everything mends it


def test_an_error_leaves_nothing_behind_for_who_asks_next(bare: PrivateHost) -> None:
    """What is refused has as many answers as messages; none is taken for that of another request."""
    code = (
        BARE
        + """
from reconciler.host.firewall import elements
many = nftbridge.elements(Sender("n", "c" * 100 + str(n), f"rn{n:013}", ()) for n in range(900))
backend.replace(Policy(senders=first or second))
for _ in range(3):
    try:
        elements.change("dismiss addresses", add={}, remove=many)
        print("it was there")
    except FirewallError as error:
        print(error)
    assert nfnl.generation() > 0
    assert nftables.read(nfnl.BRIDGE).elements == nftbridge.elements(first or second)
"""
    )
    done = bare.run(sys.executable, "-c", code, stdin=json.dumps([HANDED, [], []]))
    said = (
        "firewall: dismiss addresses of bridge runcnet: ENOENT: No such file or directory "
        "(runcnet-reconcile --once looks at the whole table)\n"
    )
    assert done.out == said * 3


@pytest.mark.parametrize("refused", [False, True])
def test_as_many_as_a_small_pass_has_in_a_user_namespace(bare: PrivateHost, refused: bool) -> None:
    """The kernel takes less at once there."""
    many = [[f"{'c' * 90}{n}", f"rn{n:013}", [f"10.1.{n >> 8}.{n & 255}", f"fd00::{n:x}"]]
            for n in range(256)]  # fmt: skip
    code = PROGRAM
    if refused:
        code = (
            BARE
            + """
from reconciler.host.firewall import elements
backend.replace(Policy(senders=first))
elements.change("take", add={}, remove=nftbridge.elements(senders(json.loads(sys.argv[1]))))
"""
        )
    done = subprocess.run(
        ["unshare", "-Urn", sys.executable, "-c", code, json.dumps(many)],
        input=json.dumps([HANDED, [] if refused else many, [] if refused else many]),
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    if refused:
        assert "FirewallError: firewall: take of bridge runcnet: " in done.stderr, done.stderr
    else:
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
