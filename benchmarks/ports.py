"""Published ports: what a translated byte costs, and what one port among thousands does.

`throughput`: iperf3 from beyond the uplink to a container, straight to its address and through a
published port, in turns, in one host a backend. `thousands`: with 2,000 ports published, how long
the firewall alone takes to compare and to commit, in a process that has it loaded.
"""

import json
import shutil
import sys

from benchmarks.measure import Times
from tests.support.host import PrivateHost, wait_for

SECONDS = 3
BACKENDS = ("iptables", "nftables")
STRAIGHT, PUBLISHED = "straight to the container: Gbit/s", "through a published port: Gbit/s"
COMPARE, ADD, CHANGE = "compare 2,000: ms", "one port more: ms", "change all 2,000: ms"
ONE = """
networks: {red: {subnets: 10.1.0.0/24, inbound: open}}
containers: {web: {interfaces: {network: red, addresses: 10.1.0.10}, ports: "5300:5201"}}
"""
DRIVER = """
import sys, time, json, msgspec
from reconciler.core.model import parse_address, parse_subnet
from reconciler.core.policy import NetworkPolicy, Policy, Publication
from reconciler.host import firewall
wall = firewall.backend(sys.argv[1])
count = int(sys.argv[2])
red = NetworkPolicy(name="red", link="red", subnets=(parse_subnet("10.1.0.0/16"),), uplinks=(),
                    masquerade=(4,), inbound="established", internal=False, isolate_members=False)
def policy(count, shift=0):
    ports = [Publication(network="red", container=f"w-{i:05}", version=4, protocol="tcp", host_ip=None,
                         host_port=10000 + i, count=1, target_port=80 + shift,
                         target=parse_address(f"10.1.{i // 250 + 1}.{i % 250 + 1}"))
             for i in range(count)]
    return Policy(networks=(red,), publications=tuple(ports))
def took(act):
    started = time.perf_counter()
    act()
    return (time.perf_counter() - started) * 1e3
some, more, other = policy(count), policy(count + 1), policy(count, 1)
wall.replace(some)
found = {"compare": [], "add": [], "change": []}
for turn in range(int(sys.argv[3])):
    found["compare"].append(took(lambda: wall.look(some)))
    found["add"].append(took(lambda: wall.replace(more)))
    wall.replace(some)
    found["change"].append(took(lambda: wall.replace(other)))
    wall.replace(some)
    assert not wall.look(some).differences
print(json.dumps(found))
"""


def absent(backend: str) -> str:
    """Why it cannot be measured here; empty: it can."""
    if shutil.which("iperf3") is None:
        return "iperf3 is not installed"
    return "nft is not installed" if backend == "nftables" and shutil.which("nft") is None else ""


def _gigabits(host: PrivateHost, address: str, port: int) -> float:
    words = ["iperf3", "-J", "-t", str(SECONDS), "-c", address, "-p", str(port)]
    run = host.run("ip", "netns", "exec", "internet", *words)
    return float(json.loads(run.out)["end"]["sum_received"]["bits_per_second"]) / 1e9


def throughput(backend: str) -> Times:
    """Both ways, one after the other."""
    host = PrivateHost()
    host.firewall = backend
    try:
        host.write("a.yaml", ONE)
        if not host.reconcile().report["converged"]:
            raise RuntimeError("the port was not published")
        host.sh("ip -n internet route add 10.1.0.0/24 via 192.0.2.2")
        host.start("ip", "netns", "exec", "web", "iperf3", "-s", "-p", "5201")
        listening = ["ip", "netns", "exec", "web", "ss", "-Hltn", "sport = :5201"]
        wait_for(lambda: host.run(*listening).out, what="iperf3 to listen")
        return {
            STRAIGHT: _gigabits(host, "10.1.0.10", 5201),
            PUBLISHED: _gigabits(host, "192.0.2.2", 5300),
        }
    finally:
        host.close()


def thousands(backend: str, count: int, turns: int) -> dict[str, float | list[float]]:
    """Milliseconds of the firewall alone."""
    host = PrivateHost()
    try:
        host.sh("ip link add red type bridge; ip addr add 10.1.0.1/16 dev red")
        words = [sys.executable, "-c", DRIVER, backend, str(count), str(turns)]
        found = json.loads(host.run(*words).out)
        return {COMPARE: found["compare"], ADD: found["add"], CHANGE: found["change"]}
    finally:
        host.close()
