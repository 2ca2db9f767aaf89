"""Many containers made at once: bridges come up behind their ports, and looks overlap with the making."""

import sys

from reconciler.reconcile import FEW
from tests.support.host import PrivateHost, RunningDaemon, wait_for

COUNT = FEW + 4
"""So many that all is looked at again, and a part of it while the rest is being made."""
DEFINITION = f"""
networks: {{n0: {{subnets: 10.0.0.0/16}}}}
containers: {{c: {{replicas: {COUNT}, interfaces: n0}}}}
"""
# What `c-7` and the last one are to carry is never given to them.
CARELESS = """
import sys
from reconciler.host import steps
inner_up = steps.inner_up
def careless(batch, endpoint, link, *, ipv6):
    if endpoint.container in ("c-7", "c-LAST"):
        batch.link(link, inside=True, up=True)
    else:
        inner_up(batch, endpoint, link, ipv6=ipv6)
steps.inner_up = careless
from reconciler.cli import reconcile_entry
reconcile_entry()
""".replace("LAST", str(COUNT - 1))


def snoops(host: PrivateHost, bridge: str) -> tuple[bool, int]:
    """Whether a bridge is up, and whether it follows multicast groups."""
    link = host.link(bridge)
    return "UP" in link["flags"], link["linkinfo"]["info_data"]["mcast_snooping"]


def test_what_was_not_made_is_found_by_looking_again(bare: PrivateHost) -> None:
    bare.write("a.yaml", DEFINITION.replace("10.0.0.0/16", "10.0.0.0/16, gateways: none"))
    words = [sys.executable, "-c", CARELESS, "--once", "--json", *bare.options]
    run = bare.run(*words, check=False)
    assert run.code == 1, run
    failed = [o for o in run.report["operations"] if not o["ok"]]
    assert {o["object"] for o in failed} == {"container/c-7", f"container/c-{COUNT - 1}"}
    assert all("still to be done" in o["error"] for o in failed), failed
    assert any("add 10.0." in o["error"] for o in failed), failed
    # All else was found to be as wanted, and is not looked at again.
    changes = bare.reconcile().changes
    assert {line.split(": ")[0] for line in changes} == {o["object"] for o in failed}
    assert bare.reconcile().report["operations"] == []


def test_a_bridge_comes_up_behind_its_ports_and_whole(bare: PrivateHost) -> None:
    bare.write("a.yaml", DEFINITION)
    assert bare.reconcile().report["converged"]
    assert snoops(bare, "n0") == (True, 1)
    assert bare.ping("", "10.0.0.2") and bare.ping(f"c-{COUNT - 1}", "10.0.0.1")
    assert bare.reconcile().report["operations"] == []
    # What a kill before its end leaves.
    bare.sh(
        "ip link set n0 down; ip link set n0 type bridge mcast_snooping 0; ip addr flush dev n0"
    )
    assert bare.reconcile().report["converged"]
    assert snoops(bare, "n0") == (True, 1)
    assert bare.ping("", "10.0.0.2") and bare.ping(f"c-{COUNT - 1}", "10.0.0.1")


def test_the_daemon_makes_many_and_hears_what_becomes_of_them(bare: PrivateHost) -> None:
    bare.write("a.yaml", DEFINITION)

    def whole(daemon: RunningDaemon) -> bool:
        assert daemon.child.poll() is None, daemon.log
        return bare.ping("", "10.0.0.2")

    with bare.daemon("--resync", "3600") as daemon:
        assert snoops(bare, "n0") == (True, 1)
        wait_for(lambda: whole(daemon))
        bare.sh("ip -n c-7 addr flush dev eth0")
        wait_for(lambda: bare.addresses("eth0", "c-7"))
