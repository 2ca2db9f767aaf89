"""Namespaces in which addresses come and go while they are looked at, so that no dump of them is whole."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.host import PrivateHost, wait_for

FILE = """
networks: {n: {subnets: 10.1.0.0/24}}
containers: {web: {interfaces: n}}
"""
CHURN = """
cd "$0"
for i in $(seq 40); do for j in $(seq 100); do echo addr add 10.9.$i.$j/32 dev lo; done; done | ip -batch -
for i in $(seq 4000); do echo addr add 10.8.0.1/32 dev lo; echo addr del 10.8.0.1/32 dev lo; done >batch
: >ready
while [ ! -e enough ]; do ip -force -batch batch; done
: >over
exec sleep infinity
"""


@contextlib.contextmanager
def churned(host: PrivateHost, folder: Path, *enter: str) -> Iterator[None]:
    child = host.start(*enter, "sh", "-c", CHURN, str(folder))
    try:
        wait_for((folder / "ready").exists)
        yield
    finally:
        host.stop(child)


def forget(host: PrivateHost) -> None:
    """Lose the state folder, and the record of what stands."""
    host.sh(f"rm -r {host.state} /run/runcnet/*")


@pytest.mark.parametrize("where", ["process", "file"])
def test_the_busy_namespace_of_another_is_no_matter_of_ours(
    host: PrivateHost, tmp_path: Path, where: str
) -> None:
    """Nothing is known yet, or a path is missing, so that the namespaces of all processes are looked at;
    that one has a veth pair to the host, and a file in the netns dir or none."""
    host.write("n.yaml", FILE)
    host.sh("ip netns add foreign; ip link add their0 type veth peer name eth0 netns foreign")
    with churned(host, tmp_path, "ip", "netns", "exec", "foreign"):
        if where == "process":
            host.sh("umount /run/netns/foreign; rm /run/netns/foreign")
        for _ in range(2):
            host.reconcile()
            host.sh("umount /run/netns/web; rm /run/netns/web")
            host.reconcile()
            host.sh("umount /run/netns/web; rm /run/netns/web")
            forget(host)


def test_what_is_ours_is_not_judged_by_half_a_look(host: PrivateHost, tmp_path: Path) -> None:
    host.write("n.yaml", FILE)
    host.reconcile()
    with churned(host, tmp_path, "ip", "netns", "exec", "web"):
        host.sh("umount /run/netns/web; rm /run/netns/web")
        forget(host)
        run = host.reconcile(check=False)
        # A look between two batches is whole.
        assert run.code == 0 or ("EINTR" in run.err and "run it again" in run.err)
        (tmp_path / "enough").touch()
        wait_for((tmp_path / "over").exists)
        host.reconcile()
        assert host.addresses("eth0", netns="web") == ["10.1.0.2/24"]
        assert "10.9.9.9/32" in host.addresses("lo", netns="web")
