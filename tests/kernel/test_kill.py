"""A kill at any instant leaves nothing half-made; a signal ends the run between two batches."""

import contextlib
import os
import random
import signal
import sqlite3
import time

import pytest

from tests.support.host import PrivateHost, wait_for

COUNT = 300
NET = "networks: {n: {subnets: 10.5.0.0/16}, keep: {subnets: 10.6.0.0/24}}\n"
MANY = NET + f"containers: {{w: {{replicas: {COUNT}, interfaces: n}}, k: {{interfaces: keep}}}}\n"
FEW = NET + "containers: {k: {interfaces: keep}}\n"


def start(host: PrivateHost) -> int:
    """Begin a pass; the pid of the program itself, in the host (nsenter executes it in its place)."""
    words = host.command(
        "runcnet-reconcile", "--once", "-q", "--max-removals", "all", *host.options
    )
    return host.start(*words).pid


def whole(host: PrivateHost) -> None:
    """Every namespace at its path is complete."""
    for name in host.ours()["netns"]:
        if host.run("stat", "-fc%T", f"/run/netns/{name}").out.strip() != "nsfs":
            assert host.run("stat", "-c%a %s", f"/run/netns/{name}").out.strip() == "0 0"
    broken = host.sh(
        "cd /run/netns; for f in w-*; do [ \"$(stat -fc%T $f)\" = nsfs ] || continue; "
        "ip -n $f -br addr show dev eth0 | grep -q 10.5. && ip -n $f route | grep -q default "
        "|| echo $f; done", check=False,
    )  # fmt: skip
    assert broken.out == ""


def exact(host: PrivateHost, containers: int) -> None:
    wait_for(lambda: len(host.ours()["links"]) == 2 + containers, what="dying links to go")
    assert len(host.ours()["netns"]) == containers
    assert host.reconcile().changes == []
    with contextlib.closing(sqlite3.connect(host.state / "state.db")) as db:
        assert db.execute("SELECT count(*) FROM lease").fetchone() == (containers,)


@pytest.mark.parametrize("seed", range(15))
def test_kill_at_a_random_instant_of_making_and_removing(bare: PrivateHost, seed: int) -> None:
    instants = random.Random(seed)
    bare.write("a.yaml", FEW)
    bare.reconcile()
    for text, containers in ((MANY, COUNT + 1), (FEW, 1)):
        bare.write("a.yaml", text)
        pid = start(bare)
        # The instant is random by design: anywhere from the start of Python to the report.
        time.sleep(instants.uniform(0.05, 0.9 if text is MANY else 0.4))
        os.kill(pid, signal.SIGKILL)
        whole(bare)
        bare.reconcile("--once", "--max-removals", "all")
        exact(bare, containers)


def test_sigterm_ends_the_batch_and_prints_the_report(bare: PrivateHost) -> None:
    bare.write("a.yaml", NET + "containers: {w: {replicas: 900, interfaces: n}}\n")
    child = bare.start(*bare.command("runcnet-reconcile", "--once", "--json", *bare.options))
    wait_for(lambda: bare.ours()["netns"], what="the first containers")
    os.kill(child.pid, signal.SIGTERM)
    assert child.stdout
    out = child.stdout.read()
    assert child.wait(30) == 1
    assert '"converged": false' in out and "Traceback" not in out
    made = len(bare.ours()["netns"])
    assert 0 < made < 900
    assert bare.reconcile().report["changed"] >= 900 - made
    assert len(bare.ours()["netns"]) == 900


KEEP = "keep: {subnets: 10.6.0.0/24}}\n"
ONE = "k: {interfaces: {network: keep, addresses: 10.6.0.5}}}\n"


def flat(network: str, *subnets: str) -> str:
    """Forty members of a network, beside one that stays; their addresses depend on nothing before."""
    members = "".join(
        f"w-{i}: {{interfaces: {{network: n, addresses: [{addresses}]}}}}, "
        for i in range(40)
        for addresses in [", ".join(f'"{subnet}{20 + i}"' for subnet in subnets)]
    )
    return f"networks: {{n: {network}, {KEEP}containers: {{{members}{ONE}"


FIVE, SEVEN = ("10.5.0.", "fd00:5::"), ("10.7.0.", "fd00:7::")
STATES = {
    "routed": flat('{type: routed, subnets: [10.5.0.0/24, "fd00:5::/64"]}', *FIVE),
    "elsewhere": flat('{type: routed, subnets: [10.7.0.0/24, "fd00:7::/64"]}', *SEVEN),
    "gateway": flat(
        '{type: routed, subnets: [10.5.0.0/24, "fd00:5::/64"], gateways: [10.5.0.9, "fd00:5::9"]}',
        *FIVE,
    ),
    "IPv6 only": flat('{type: routed, subnets: "fd00:5::/64"}', FIVE[1]),
    "bridge": flat('{subnets: [10.5.0.0/24, "fd00:5::/64"]}', *FIVE),
    "gone": f"networks: {{{KEEP}containers: {{{ONE}",
}


def traces(host: PrivateHost) -> list[str]:
    """What a routed network leaves on the host beside its links, whatever their names."""
    shown = host.run("ip", "route").out + host.run("ip", "-6", "route").out
    lines = [line.split(" dev ")[0] for line in shown.splitlines() if "proto 114" in line]
    lines += [f"lo {address}" for address in host.addresses("lo")]
    found = host.run("ip", "neigh", "show", "nud", "permanent").out + host.run(
        "ip", "-6", "neigh", "show", "nud", "permanent"
    ).out  # fmt: skip
    return sorted({*lines, *(line.split()[0] for line in found.splitlines() if "proto" in line)})


@pytest.mark.parametrize("seed", range(6))
def test_kill_among_changes_of_a_routed_network(bare: PrivateHost, seed: int) -> None:
    """Whatever state a kill interrupts, the next pass ends where one from scratch would."""
    dice = random.Random(seed)
    course = dice.sample(list(STATES), 4)
    for name in course:
        bare.write("a.yaml", STATES[name])
        pid = start(bare)
        # The instant is random by design, as above.
        time.sleep(dice.uniform(0.1, 0.6))
        os.kill(pid, signal.SIGKILL)
    bare.reconcile("--once", "--max-removals", "all")
    assert bare.reconcile().changes == [], course
    found = traces(bare), len(bare.ours()["links"]), len(bare.ours()["netns"])
    bare.runcnet("teardown", "--yes")
    bare.reconcile()
    assert found == (traces(bare), len(bare.ours()["links"]), len(bare.ours()["netns"])), course
