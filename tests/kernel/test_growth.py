"""Thousands of members: everybody is reached, nothing is leaked, the second pass finds nothing to do."""

import os
import sqlite3
import sys

import pytest

from tests.support import need
from tests.support.host import ROOT, PrivateHost, wait_for


def members(host: PrivateHost) -> list[tuple[str, str]]:
    """Netns file and IPv4 address of every container, from the state dir's leases."""
    with sqlite3.connect(f"file:{host.state}/state.db?mode=ro", uri=True) as db:
        rows = db.execute("SELECT container, address FROM lease").fetchall()

    def dotted(value: int) -> str:
        return ".".join(str(value >> shift & 255) for shift in (24, 16, 8, 0))

    return [(name, dotted(int(address, 16))) for name, address in rows]


@pytest.mark.parametrize("kind,count", [("routed", 3000), ("bridge", 1000)])
def test_the_host_reaches_every_member_and_each_reaches_another(
    bare: PrivateHost, kind: str, count: int
) -> None:
    bare.write(
        "a.yaml",
        f"networks: {{n: {{type: {kind}, subnets: 10.60.0.0/16}}}}\n"
        f"containers: {{w: {{replicas: {count}, interfaces: n}}}}\n",
    )
    report = bare.reconcile().report
    assert report["converged"] and report["changed"] == count + 2  # the network, forwarding
    everyone = members(bare)
    assert len({address for _, address in everyone}) == count
    lines = "\n".join(f"{name} {address}" for name, address in everyone)
    asked = bare.run(
        sys.executable,
        str(ROOT / "tests/support/everyone.py"),
        "7",
        *(["keep"] if kind == "routed" else []),
        stdin=lines,
    )
    assert asked.out == ""
    assert bare.reconcile().changes == []


MANY = int(os.environ.get("RUNCNET_MANY", "2000"))
"""`make growth` says 10,000."""


def test_thousands_come_change_and_go_without_a_trace(bare: PrivateHost) -> None:
    need.memory(MANY // 2)
    before = bare.ours()
    routes = bare.run("ip", "route").out
    addresses = bare.addresses("lo")
    text = "networks: {n: {type: routed, subnets: 10.64.0.0/16}}\ncontainers:\n  k: {mode: none}\n"
    many = text + f"  w: {{replicas: {MANY}, interfaces: n}}\n"
    bare.write("a.yaml", many)
    made = bare.reconcile().report
    assert made["converged"] and made["changed"] == MANY + 3
    checked = bare.reconcile().report
    assert checked["operations"] == [] and checked["unchanged"] == MANY + 2
    bare.sh("ip netns del w-77; ip -n w-78 link set eth0 down; ip -n w-79 route flush all")
    mended = bare.reconcile().report
    touched = {o["object"] for o in mended["operations"]}
    assert mended["converged"] and touched == {f"container/w-{n}" for n in (77, 78, 79)}
    # An edit that touches all of them, in place.
    bare.write(
        "a.yaml",
        many.replace("interfaces: n}", "interfaces: n, sysctls: {net.core.somaxconn: 99}}"),
    )
    changed = bare.reconcile().report
    assert changed["converged"] and changed["changed"] == MANY
    assert (
        "99" in bare.run("ip", "netns", "exec", f"w-{MANY - 1}", "sysctl", "net.core.somaxconn").out
    )
    bare.write("a.yaml", "containers: {k: {mode: none}}\n")
    gone = bare.reconcile("--once", "--max-removals", "all").report
    assert gone["converged"] and gone["removed"] == MANY + 1
    bare.drop("a.yaml")
    bare.runcnet("teardown", "--yes")
    assert bare.ours() == before and bare.addresses("lo") == addresses
    assert bare.run("ip", "route").out == routes
    wait_for(lambda: "w-" not in bare.run("cat", "/proc/self/mountinfo").out)
    with sqlite3.connect(f"file:{bare.state}/state.db?mode=ro", uri=True) as db:
        assert db.execute("SELECT count(*) FROM lease").fetchone() == (0,)
