"""The seed scenario, and real runc containers that reach each other and the world."""

import json
import re
import shutil

import pytest

from tests.support import need
from tests.support.host import ROOT, SERVER, PrivateHost, wait_for


def seed(host: PrivateHost) -> None:
    shutil.copy(ROOT / "config" / "10-seed.yaml", host.config / "10-seed.yaml")
    host.age(5)


def check_seed(host: PrivateHost) -> None:
    assert host.addresses("eth1", "runc") == ["176.10.0.101/16"]
    assert "UP" in host.link("lo", "runc")["flags"]
    routes = host.ip("route", netns="runc")
    assert [r["gateway"] for r in routes if r["dst"] == "default"] == ["176.10.0.1"]
    assert host.ping("runc", SERVER), "the internet knows no way back: only SNAT brings replies"


def test_the_seed_scenario(host: PrivateHost) -> None:
    seed(host)
    assert host.reconcile().report["converged"]
    check_seed(host)
    host.sh("ip -n internet route add 176.10.0.0/16 via 192.0.2.2")
    assert host.ping("internet", "176.10.0.101"), "inbound: open lets new connections in"
    second = host.reconcile().report
    assert (second["changed"], second["removed"], second["failed"]) == (0, 0, 0)


def test_snat_is_seen_by_a_server_beyond_the_uplink(host: PrivateHost) -> None:
    seed(host)
    host.reconcile()
    server = host.start(
        "ip", "netns", "exec", "internet", "tcpdump", "-lni", "up0", "-c1", "icmp and icmp[0] == 8"
    )
    assert server.stdout
    for line in server.stdout:
        if "listening on" in line:
            break
    assert host.ping("runc", SERVER)
    seen = server.stdout.readline()
    assert re.search(r"192\.0\.2\.2 > 198\.51\.100\.1", seen), seen


def test_the_plan_as_commands_gives_the_same_kernel_state(host: PrivateHost) -> None:
    seed(host)
    commands = host.runcnet("plan", "--commands").out
    host.sh(commands)
    check_seed(host)
    after = host.runcnet("plan").out
    assert re.search(r"would change: 0, removed: 0", after), after


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_a_real_container_reaches_gateway_sibling_and_world(
    host: PrivateHost, runtime: str
) -> None:
    need.program(runtime)
    bundle = host.bundle("web", "sleep", "600")
    host.write(
        "10.yaml",
        f"""
networks: {{runc0: {{subnets: 176.10.0.0/16}}}}
containers:
  web: {{interfaces: runc0, bundle: {bundle}}}
  db: {{interfaces: {{network: runc0, addresses: 176.10.0.7}}}}
""",
    )
    host.reconcile()
    with host.container("web", bundle, runtime):
        for target in ("176.10.0.1", "176.10.0.7", SERVER):
            host.runc("exec", "web", "ping", "-c1", "-W2", target, runtime=runtime)
        hosts = host.runc("exec", "web", "cat", "/etc/hosts", runtime=runtime).out
        assert "176.10.0.7 db" in hosts
    assert host.reconcile().report["changed"] == 0


def test_mode_none_has_lo_alone_and_mode_host_sees_the_host(host: PrivateHost) -> None:
    need.program("runc")
    none, shared = host.bundle("none", "ip", "link"), host.bundle("shared", "ip", "link")
    host.write(
        "10.yaml",
        f"containers:\n  none: {{mode: none, bundle: {none}}}\n"
        f"  shared: {{mode: host, bundle: {shared}}}\n",
    )
    host.reconcile()
    out = host.runc("run", "-b", str(none), "none").out
    assert re.findall(r"^\d+: ([^:@]+)", out, re.M) == ["lo"] and "UP" in out
    assert "eth0" in host.runc("run", "-b", str(shared), "shared").out
    namespaces = json.loads((shared / "config.json").read_text())["linux"]["namespaces"]
    assert all(n["type"] != "network" for n in namespaces)


@pytest.mark.parametrize("way", ["ip netns del web", "umount -l /run/netns/web"])
def test_a_running_container_gets_its_path_back(host: PrivateHost, way: str) -> None:
    need.program("runc")
    bundle = host.bundle("web", "ping", "-i", "0.2", "176.10.0.1")
    host.write(
        "10.yaml",
        "networks: {runc0: {subnets: 176.10.0.0/16}}\n"
        f"containers: {{web: {{interfaces: runc0, bundle: {bundle}}}}}\n",
    )
    host.reconcile()
    address = host.addresses("eth0", "web")
    with host.container("web", bundle) as pid:
        inode = host.run("stat", "-Lc%i", f"/proc/{pid}/ns/net").out
        host.sh(way)
        assert [c.split(" again")[0] for c in host.reconcile().changes] == [
            "container/web: bind /run/netns/web"
        ]
        assert host.run("stat", "-Lc%i", "/run/netns/web").out == inode
        assert host.addresses("eth0", "web") == address
        log = host.dir / "web.log"
        before = len(log.read_text().splitlines())
        wait_for(lambda: len(log.read_text().splitlines()) > before + 2, what="the ping to go on")
        host.runc("kill", "web", "KILL")
    assert host.reconcile().changes == []
