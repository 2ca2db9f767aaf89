"""Containers whose namespace a runtime makes, attached by hooks."""

import contextlib
import json
import os
import random
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import need
from tests.support.host import SERVER, PrivateHost, wait_for

NETWORK = 'networks: {n: {subnets: [10.88.0.0/24, "fd00:88::/64"]}}\n'
PAGE = "a page from a container\n"


def server(host: PrivateHost, name: str) -> Path:
    """A bundle with a web server."""
    bundle = host.bundle(name, "httpd", "-f", "-p", "80", "-h", "/tmp")
    (bundle / "rootfs" / "bin" / "httpd").symlink_to("busybox")
    (bundle / "rootfs" / "tmp" / "index.html").write_text(PAGE)
    return bundle


def page(host: PrivateHost, url: str, netns: str = "internet") -> bool:
    lead = ["ip", "netns", "exec", netns] if netns else []
    return host.run(*lead, "curl", "-s", "--max-time", "3", url, check=False).out == PAGE


@pytest.fixture(params=["alone", "daemon"])
def served(request: pytest.FixtureRequest, host: PrivateHost) -> Iterator[bool]:
    """Whether a daemon serves the hooks."""
    with contextlib.ExitStack() as stack:
        host.write("n.yaml", NETWORK)
        if request.param == "daemon":
            stack.enter_context(host.daemon())
        else:
            host.reconcile()
        yield request.param == "daemon"


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_hooks_alone_make_a_network(host: PrivateHost, served: bool, runtime: str) -> None:
    need.program(runtime)
    need.program("curl")
    before = host.ours()
    bundle = host.hooked(
        server(host, "web"), "--network", "n", "--port", "8080:80", "--ip-file", fast=served
    )
    with host.container("web", bundle, runtime) as pid:
        for target in ("10.88.0.1", SERVER):
            host.runc("exec", "web", "ping", "-c1", "-W2", target, runtime=runtime)
        assert (bundle / ".ip").read_text() == "10.88.0.2\n"
        wait_for(lambda: page(host, "http://192.0.2.2:8080/"), what="the published port")
        [one] = json.loads(host.runcnet("status", "--json").out)["containers"]
        assert (one["name"], one["state"], one["declared"]) == ("web", "ok", "hook")
        assert one["netns"] == f"/proc/{pid}/ns/net" and one["ports"] == ["8080:80"]
        assert served or host.reconcile().changes == []

        # A veth that somebody deletes comes back as it was.
        [seen] = one["interfaces"]
        host.sh(f"ip link del {seen['host_interface']}")
        if not served:
            made = host.reconcile().changes
            assert {change.partition(":")[0] for change in made} == {"container/web"}

        def again() -> bool:
            [now] = json.loads(host.runcnet("status", "--json").out)["containers"]
            return bool(now["interfaces"] == [seen] and now["state"] == "ok")

        wait_for(again, what="the veth to come back")
        assert page(host, "http://192.0.2.2:8080/")
    assert host.ours() == before
    assert not (bundle / ".ip").exists()
    assert host.reconcile().changes == []


def test_fifty_at_once_come_and_go(host: PrivateHost, served: bool) -> None:
    need.program("runc")
    before = host.ours()
    first = host.hooked(host.bundle("c", "sleep", "600"), "--network", "n", fast=served)
    names = [f"c{number}" for number in range(50)]
    script = "{} run -d -b {} {} >/dev/null 2>{} </dev/null"

    def start(name: str) -> int:
        log = host.dir / f"{name}.log"
        code = host.sh(script.format("runc --root /run/oci", first, name, log), check=False).code
        assert code == 0, log.read_text()
        return code

    with ThreadPoolExecutor(50) as pool:
        try:
            assert list(pool.map(start, names)) == [0] * 50
            found = json.loads(host.runcnet("status", "--json").out)["containers"]
            assert {c["name"] for c in found} == set(names)
            assert {c["state"] for c in found} == {"ok"}
            addresses = [a for c in found for i in c["interfaces"] for a in i["addresses"]]
            assert len(addresses) == len(set(addresses)) == 100
            for name in names[::10]:
                host.runc("exec", name, "ping", "-c1", "-W2", SERVER)
            assert host.reconcile().changes == []
        finally:
            gone = pool.map(lambda name: host.runc("delete", "-f", name, check=False).code, names)
            assert list(gone) == [0] * 50
    assert host.ours() == before
    assert host.reconcile().changes == []
    assert "10.88" not in host.sh(f"strings {host.state}/state.db* || true").out


def test_a_start_that_is_refused_leaves_nothing(host: PrivateHost) -> None:
    need.program("runc")
    host.write("n.yaml", NETWORK + "containers: {known: {interfaces: n, ports: '8080:80'}}\n")
    host.reconcile()
    before = host.ours()

    def refused(name: str, *flags: str) -> str:
        bundle = host.hooked(host.bundle(name, "sleep", "600"), *flags)
        done = host.runc("run", "-d", "-b", str(bundle), name, check=False)
        assert done.code != 0
        host.runc("delete", "-f", name, check=False)
        assert host.ours() == before and host.reconcile().changes == []
        return done.err

    assert f"known is declared at {host.config}/n.yaml:2 already" in refused(
        "known", "--network", "n"
    )
    assert "unknown network 'absent' (known: n)" in refused("a", "--network", "absent")
    assert "host port 8080/tcp is container known's" in refused(
        "b", "--network", "n", "--port", "8080:80"
    )
    assert "10.99.0.1 is outside 10.88.0.0/24" in refused("c", "--network", "n:ip=10.99.0.1")


def test_a_runtime_that_is_killed_in_the_middle_leaves_nothing(
    host: PrivateHost, served: bool
) -> None:
    need.program("runc")
    before = host.ours()
    dice = random.Random(7)
    bundle = host.hooked(host.bundle("k", "sleep", "600"), "--network", "n", fast=served)
    names = [f"k{number}" for number in range(10)]
    for name in names:
        words = host.enter("runc", "--root", "/run/oci", "run", "-d", "-b", str(bundle), name)
        with open(os.devnull, "r+b") as null:
            child = subprocess.Popen(words, stdin=null, stdout=null, stderr=null)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(dice.uniform(0.02, 0.1 if served else 0.4))
        child.kill()
        child.wait(10)
    for name in names:
        host.runc("delete", "-f", name, check=False)
    wait_for(lambda: not callers(host), what="what is half made to end")
    if served:
        wait_for(lambda: host.ours() == before, what="the daemon to clear up")
    assert host.reconcile().report["converged"]
    assert host.ours() == before
    assert host.reconcile().changes == []


def callers(host: PrivateHost) -> list[str]:
    """Hooks and half-made containers that still run in the host."""
    lines = host.run("ps", "-eo", "mntns,args").out.splitlines()
    own = os.readlink(f"/proc/{host.holder}/ns/mnt")[5:-1]
    calls = [line.split() for line in lines]
    programs = ("runc", "runcnet-hook")
    return [
        " ".join(words)
        for words in calls
        if words[0] == own and ("hook" in words or words[1].rpartition("/")[2] in programs)
    ]


def test_a_container_with_a_user_namespace_of_its_own(host: PrivateHost) -> None:
    need.program("runc")
    host.write("n.yaml", NETWORK)
    host.reconcile()
    bundle = host.hooked(host.bundle("u", "sleep", "600"), "--network", "n")
    config = json.loads((bundle / "config.json").read_text())
    config["linux"]["namespaces"].append({"type": "user"})
    for key in ("uidMappings", "gidMappings"):
        config["linux"][key] = [{"containerID": 0, "hostID": 100_000, "size": 65_536}]
    (bundle / "config.json").write_text(json.dumps(config))
    host.sh(
        f"chown -R 100000:100000 {bundle}/rootfs; chmod 711 {host.dir} {host.dir}/bundles {bundle}"
    )
    with host.container("u", bundle):
        host.runc("exec", "u", "ping", "-c1", "-W2", SERVER)
        assert host.reconcile().changes == []
