"""`runcnet ls`."""

import sys

from tests.support import need
from tests.support.host import PrivateHost

SEND = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(20): s.sendto(bytes(1000), ("198.51.100.1", 9))
"""


def test_ls_shows_what_is_ours_and_its_traffic(bare: PrivateHost) -> None:
    bare.write(
        "a.yaml",
        "networks: {n: {subnets: 10.5.0.0/24}}\n"
        "containers:\n  a: {interfaces: n}\n  b: {mode: none}\n  c: {join: a}\n  d: {mode: host}\n"
        "  late: {interfaces: n, netns: taken}\n",
    )
    bare.sh("ip netns add taken; ip netns add other")
    bare.reconcile(check=False)
    end = bare.host_end("a", "eth0")["ifname"]
    # One way, lest the two counters be taken for each other.
    bare.run("ip", "netns", "exec", "a", sys.executable, "-c", SEND)
    with bare.process("a") as child:
        found = bare.runcnet("ls", "--json").report
        table = [line.split() for line in bare.runcnet("ls").out.splitlines()]
    assert found["version"] == 1
    rows = {row["name"]: row for row in found["containers"]}
    assert set(rows) == {"a", "b", "c", "d", "late"}
    (one,) = rows["a"]["interfaces"]
    assert (rows["a"]["pid"], rows["a"]["state"]) == (child.pid, "ok")
    assert one == {
        "name": "eth0",
        "network": "n",
        "addresses": ["10.5.0.2/24"],
        "host_interface": end,
        "rx_bytes": one["rx_bytes"],
        "tx_bytes": one["tx_bytes"],
    }
    assert one["tx_bytes"] >= 20 * 1042 > 10 * one["rx_bytes"]
    assert rows["c"]["interfaces"] == rows["a"]["interfaces"] and rows["c"]["join"] == "a"
    assert rows["b"]["interfaces"] == [] and rows["d"]["netns"] is None
    assert rows["late"]["state"] == "foreign" and rows["late"]["interfaces"][0]["rx_bytes"] is None
    assert table[0][:3] == ["CONTAINER", "STATE", "ADDRESS"]
    assert table[1][:6] == ["a", "ok", "10.5.0.2/24", "eth0", end, str(child.pid)]


def test_ls_names_the_init_of_a_container(bare: PrivateHost) -> None:
    need.program("runc")
    bundle = bare.bundle("web", "sh", "-c", "sleep 600 & exec sleep 600")
    bare.write("a.yaml", f"containers: {{web: {{mode: none, bundle: {bundle}}}}}\n")
    bare.reconcile()
    with bare.process("web") as early, bare.container("web", bundle) as pid:
        (row,) = bare.runcnet("ls", "--json").report["containers"]
        assert early.pid < pid
        assert row["pid"] == pid and {early.pid, pid} < set(row["pids"])
