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
try:
    backend.admit(Policy(), second)
    backend.dismiss(gone)
except FirewallError as error:
    print(error)
read = nftables.read(nfnl.BRIDGE).elements
stays = [s for s in {s.link: s for s in first + second}.values() if s not in gone]
wanted = nftbridge.elements(stays)
assert read == wanted, (read, wanted)
"""
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


@pytest.mark.parametrize("count", [127, 128, 129, 2000])
def test_many_at_once(bare: PrivateHost, count: int) -> None:
    long = "c" * 64
    many = [[f"{long}{n}", f"rn{n:013}", [f"10.1.{n >> 8}.{n & 255}", f"fd00::{n:x}"]]
            for n in range(count)]  # fmt: skip
    assert run(bare, HANDED, many, many[: count // 2]) == ""


def test_nothing_is_done_where_something_cannot_be(bare: PrivateHost) -> None:
    """The sets were declared otherwise by somebody, or one is gone."""
    run(bare, HANDED, [], [])
    bare.run("nft", "flush", "chain", "bridge", "runcnet", "checked")
    bare.run("nft", "delete", "set", "bridge", "runcnet", "targets6")
    before = bare.run("nft", "list", "table", "bridge", "runcnet").out
    code = PROGRAM.replace("backend.replace(Policy(senders=first))\n", "").partition("read =")[0]
    new = [["c", "veth-c", ["10.0.0.9", "fd00::9"]]]
    done = bare.run(sys.executable, "-c", code, stdin=json.dumps([[], new, []]))
    assert done.out == "firewall: admit addresses: ENOENT: No such file or directory\n"
    assert bare.run("nft", "list", "table", "bridge", "runcnet").out == before


def test_it_works_in_a_user_namespace(bare: PrivateHost) -> None:
    many = [[f"c{n}", f"rn{n:013}", [f"10.1.{n >> 8}.{n & 255}"]] for n in range(600)]
    done = subprocess.run(
        ["unshare", "-Urn", sys.executable, "-c", PROGRAM],
        input=json.dumps([HANDED, many, []]), text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
