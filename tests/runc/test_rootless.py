"""Without root: the whole tool in a user namespace, rootless bundles, and what cannot work there."""

import json
import re
import subprocess

import pytest

from tests.support import need
from tests.support.host import ROOT, PrivateHost, wait_for
from tests.support.rootless import User, inside

DECLARED = """
networks:
  runc0: {{subnets: [176.10.0.0/16, "fd00:10::/64"]}}
  flat: {{type: routed, subnets: 176.11.0.0/16}}
containers:
  web:
    interfaces: runc0
    ports: "8080:80"
    # The container's own user namespace has no rights over this network namespace.
    sysctls: {{net.ipv4.ip_unprivileged_port_start: 0}}
    bundle: {bundle}
  db: {{interfaces: {{network: runc0, addresses: [176.10.0.7, "fd00:10::7"]}}}}
  far: {{interfaces: {{network: flat, addresses: 176.11.0.7}}}}
"""
LOCK = "XTABLES_LOCKFILE=/run/home/run/xtables.lock"


@pytest.mark.parametrize("firewall", ["iptables", "nftables"])
def test_a_rootless_container_in_a_user_namespace_has_its_network(
    bare: PrivateHost, firewall: str
) -> None:
    need.program("runc")
    if firewall == "iptables":
        need.legacy_tables()
    before = bare.ours()
    with inside(bare) as user:
        # runc joins the namespace by path before it makes the container's own user namespace.
        bundle = user.bundle("web", "sh", "-c", "ip addr >/tmp/shown; exec httpd -f -p 80 -h /tmp")
        bare.run("ln", "-s", "busybox", f"{bundle}/rootfs/bin/httpd")
        user.sh("ip link set lo up; ip link add up0 type veth peer name up1; ip link set up1 up")
        user.sh("ip addr add 192.0.2.9/24 dev up0; ip link set up0 up")
        user.write(DECLARED.format(bundle=bundle))
        command = bare.command("runcnet-reconcile", "--once", "--json", *user.options)
        first = user.run("env", LOCK, *command, "--firewall", firewall, check=False)
        assert first.code == 0, first.out + first.err
        assert user.reconcile("--firewall", firewall).changes == []

        # runc keeps the pipes of who starts it.
        start = f"runc --root /run/home/oci run -d -b {bundle} {user.id} >log 2>&1 </dev/null"
        assert user.sh(start, check=False).code == 0, user.sh("cat log").out
        for fellow, target in (("db", "176.10.0.2"), ("db", "fd00:10::2"), ("far", "176.11.0.1")):
            netns = f"--net=/run/home/netns/{fellow}"
            user.run("nsenter", netns, "ping", "-c1", "-W2", target)

        def shown(url: str) -> str:
            words = ["curl", "-s", "--max-time", "3", "--noproxy", "*", f"http://{url}/shown"]
            return user.run(*words, check=False).out

        found = wait_for(lambda: shown("127.0.0.1:8080"), what="the published port")
        assert "inet 176.10.0.2/16" in found and "inet6 fd00:10::2/64" in found
        assert shown("192.0.2.9:8080") == found
        status = json.loads(user.runcnet("status", "--json", "--firewall", firewall).out)
        assert {one["name"]: one["state"] for one in status["containers"]} == dict.fromkeys(
            ("web", "db", "far"), "ok"
        )
        assert any(one["pids"] for one in status["containers"])

        group = user.run("nsenter", "--net=/run/home/netns/db", "cat",
                         "/proc/sys/net/ipv4/ping_group_range")  # fmt: skip
        assert group.out.split() == ["0", "0"], "the one group that there is may ping"
        # By hooks the namespace belongs to the container's own user namespace, and so do its rights.
        own = user.bundle("own", "ping", "-c1", "-W2", "176.10.0.7")
        user.runcnet("bundle", str(own), "--network", "runc0", "--firewall", firewall)
        assert "is fine" in user.runcnet("bundle", str(own), "--check").out
        run = user.run("runc", "--root", "/run/home/oci", "run", "-b", str(own), f"{user.id}-own")
        assert "1 packets received" in run.out
        assert bare.ours() == before, "nothing is seen or changed outside"

        user.run("runc", "--root", "/run/home/oci", "delete", "-f", user.id)
        user.run("env", LOCK, *bare.command("runcnet", "teardown", "--yes", *user.options))
        assert user.run("ls", "/run/home/netns").out == ""


def test_the_daemon_hears_and_repairs_in_a_user_namespace(bare: PrivateHost) -> None:
    with inside(bare) as user:
        user.write(
            "networks: {runc0: {subnets: 176.10.0.0/16}}\ncontainers: {db: {interfaces: runc0}}\n"
        )
        words = bare.command("runcnet-reconcile", *user.options, "--firewall", "none")
        log = bare.dir / "daemon.log"
        with log.open("w") as file:
            command = bare.enter(*user.lead(), "env", "PYTHONDONTWRITEBYTECODE=1", *words)
            child = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT)

        def end() -> str:
            links = json.loads(user.run("ip", "-j", "link", "show", "master", "runc0").out or "[]")
            return links[0]["ifindex"] if links else ""

        try:
            wait_for(lambda: "watching" in log.read_text(), 30.0, "the daemon")
            first = end()
            user.run("ip", "link", "del", "dev", "runc0")
            wait_for(lambda: user.run("ip", "link", "show", "runc0", check=False).code == 0)
            wait_for(end, what="the port of the new bridge")
            user.sh("nsenter --net=netns/db ip link del eth0")
            wait_for(lambda: end() not in ("", first), what="another host end")
        finally:
            child.terminate()
            child.wait(10)
        assert "Traceback" not in log.read_text(), log.read_text()


def test_what_cannot_work_without_root_is_said_in_a_sentence(bare: PrivateHost) -> None:
    def said(user: User, *words: str, name: str = "runcnet-reconcile") -> str:
        run = user.run(*bare.command(name, *words), check=False)
        assert run.code != 0
        lines = [line for line in run.err.splitlines() if not line.startswith(("note", "changed"))]
        assert len(lines) == 1, run.err
        return lines[0]

    plain = User(bare)
    assert re.fullmatch(
        r"this needs CAP_NET_ADMIN and CAP_SYS_ADMIN: .* \(unshare -Urnm\)", said(plain, "--once")
    )
    with inside(bare, "-Ur") as user:
        assert "this network namespace belongs to a user namespace around" in said(user, "--once")
    with inside(bare, "-Urn") as user:
        assert "this mount namespace belongs to a user namespace around" in said(user, "--once")
    with inside(bare) as user:
        user.write("networks: {runc0: {subnets: 176.10.0.0/16}}\n")
        config, state, run, netns = (user.options[i : i + 2] for i in range(0, 8, 2))
        text = said(user, "--once", "--firewall", "none", *config)
        assert re.match(r"host: (make|use) /(run|var/lib)/runcnet: ", text)
        assert "--state-dir, --run-dir, --netns-dir" in text
        bare.run("install", "-d", "-m", "755", "/run/theirs")
        bare.run("install", "-m", "644", "/dev/null", "/run/theirs/b.yaml")
        done = user.run(
            *bare.command("runcnet-reconcile", "--once", "--firewall", "none",
                          *state, *run, *netns, "--config-dir", "/run/theirs"),
            check=False,
        )  # fmt: skip
        assert done.code == 2 and "an id that this user namespace does not know" in done.err
        if need.has_legacy_tables():
            bare.run("install", "-m", "600", "/dev/null", "/run/xtables.lock")
            done = user.reconcile("--firewall", "iptables", check=False)
            assert "/run/xtables.lock" in done.out and "XTABLES_LOCKFILE" in done.out


def test_a_rootless_bundle_in_mode_host_runs_without_root(bare: PrivateHost) -> None:
    need.program("runc")
    user = User(bare)
    bundle = user.bundle("shared", "ip", "addr")
    before = bare.run("cat", f"{bundle}/config.json").out
    bare.write("a.yaml", f"containers: {{shared: {{mode: host, bundle: {bundle}}}}}\n")
    assert bare.reconcile().changes == []
    assert bare.run("cat", f"{bundle}/config.json").out == before
    out = user.run("runc", "--root", "/run/home/oci", "run", "-b", str(bundle), user.id).out
    assert "192.0.2.2/24" in out
