"""The systemd side: the units, what is said over the notification socket, and which mounts pid 1 sees."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.host import propagation
from reconciler.host.service import Service
from tests.support import need, unitfile
from tests.support.host import ROOT, PrivateHost, Run

# -- the units ------------------------------------------------------------------------------------

MOUNT_NAMESPACE = re.compile(
    r"(Private|Protect|ReadOnly|ReadWrite|Inaccessible|Bind|Mount|Root|Extension)\w*"
    r"|(No)?ExecPaths|TemporaryFileSystem|ProcSubset|DynamicUser|LogNamespace|IPCNamespacePath"
    r"|NetworkNamespacePath|JoinsNamespaceOf"
)
"""Options with which systemd gives a service a mount namespace of its own (systemd.exec(5))."""


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    need.program("systemd-analyze")
    units = {path.name: path.read_text() for path in (unitfile.SERVICE, unitfile.TARGET)}
    done = unitfile.verify(tmp_path, units)
    assert (done.code, done.err) == (0, "")


def test_a_mistake_in_a_unit_would_be_found(tmp_path: Path) -> None:
    need.program("systemd-analyze")
    text = unitfile.SERVICE.read_text().replace("KillMode=mixed", "KillMode=mixd")
    done = unitfile.verify(tmp_path, {"runcnet.service": text})
    assert done.code != 0 and "mixd" in done.err


def test_no_option_gives_the_service_a_mount_namespace() -> None:
    found = [key for key in unitfile.settings() if MOUNT_NAMESPACE.fullmatch(key)]
    assert found == []


def test_the_daemon_holds_no_capability_beyond_what_it_needs() -> None:
    assert sorted(unitfile.capabilities()) == [
        "chown", "dac_override", "fowner", "net_admin", "net_broadcast", "net_raw", "sys_admin",
        "sys_ptrace",
    ]  # fmt: skip
    assert not any(v.startswith("~") for v in unitfile.settings()["CapabilityBoundingSet"])


def test_a_stop_or_a_restart_of_the_daemon_leaves_containers_alone() -> None:
    """What a unit requires takes it along, and units of containers require the target."""
    for path in (unitfile.SERVICE, unitfile.TARGET):
        takes_along = {"Requires", "Requisite", "BindsTo", "PartOf", "StopPropagatedFrom"}
        assert not takes_along & unitfile.settings(path).keys(), path
    assert unitfile.settings(unitfile.TARGET)["Wants"] == ("runcnet.service",)
    assert unitfile.settings(unitfile.TARGET)["After"] == ("runcnet.service",)
    assert unitfile.settings()["KillMode"] == ("mixed",)


# -- under the unit's restrictions ----------------------------------------------------------------


def confined(host: PrivateHost, *command: str, without: str = "") -> Run:
    """Run a command with the capabilities and the filters of the unit."""
    held = [f"+{name}" for name in unitfile.capabilities() if name != without]
    return host.run(
        "setpriv", f"--bounding-set=-all,{','.join(held)}", "--no-new-privs",
        "env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "tests.support.confined", *command,
        check=False,
    )  # fmt: skip


@pytest.fixture
def shop(host: PrivateHost) -> PrivateHost:
    """A host with a bundle of another user, in a folder that nobody else may enter."""
    bundle = host.bundle("web", "sleep", "infinity")
    for path, mode in ((bundle, 0o700), (bundle / "config.json", 0o640)):
        os.chown(path, 12345, 23456)
        path.chmod(mode)
    host.write(
        "a.yaml",
        f"""
networks:
  n: {{subnets: [10.5.0.0/24, "fd00:5::/64"]}}
  r: {{type: routed, subnets: 10.6.0.0/24}}
containers:
  web: {{interfaces: n, bundle: {bundle}, sysctls: {{net.core.somaxconn: 4096}}}}
  far: {{interfaces: r}}
""",
    )
    return host


def test_a_pass_works_under_the_restrictions_of_the_unit(shop: PrivateHost) -> None:
    need.program("systemd-analyze")
    command = [*shop.command("runcnet-reconcile", "--once", "--json"), *shop.options]
    run = confined(shop, *command)
    assert (run.code, run.err) == (0, ""), run.out
    assert shop.ping("web", "192.0.2.1") and shop.ping("far", "192.0.2.1")  # masqueraded
    assert shop.ours()["rules"]
    config = shop.dir / "bundles" / "web" / "config.json"
    found = config.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (12345, 23456, 0o640)
    spaces = json.loads(config.read_text())["linux"]["namespaces"]
    assert {"type": "network", "path": "/run/netns/web"} in spaces
    assert confined(shop, *command).report["changed"] == 0
    # A container of another user, no longer declared, in use: seen, and so kept; then removed.
    shop.write("a.yaml", "networks: {n: {subnets: 10.5.0.0/24}}\n")
    command += ["--max-removals", "all"]
    user = ("setpriv", "--reuid=12345", "--clear-groups", "sleep", "infinity")
    with shop.process("web", *user) as child:
        run = confined(shop, *command)
        assert [h["object"] for h in run.report["held_back"]] == ["container/web"], run.err
        assert str(child.pid) in run.report["held_back"][0]["reason"]
    run = confined(shop, *command)
    assert (run.code, run.err) == (0, "") and shop.ours()["netns"] == []


def test_every_capability_of_the_unit_is_needed(shop: PrivateHost) -> None:
    """Without any one of them a pass fails, takes away what is in use, or goes deaf."""
    need.program("systemd-analyze")
    command = [*shop.command("runcnet-reconcile", "--once", "--json"), *shop.options]
    bundle = shop.dir / "bundles" / "web" / "config.json"
    unwired = bundle.read_bytes()
    for name in ("net_admin", "sys_admin"):
        run = confined(shop, *command, without=name)
        assert run.code == 1 and f"CAP_{name.upper()}" in run.err
    for name, wrong in (
        ("net_raw", {"firewall", "host"}),
        ("dac_override", {"container/web"}),
        ("chown", {"container/web"}),
        ("fowner", {"container/web"}),
    ):
        bundle.write_bytes(unwired)
        os.chown(bundle, 12345, 23456)
        run = confined(shop, *command, without=name)
        failed = {o["object"] for o in run.report["operations"] if not o["ok"]}
        assert failed | {p["object"] for p in run.report["problems"]} == wrong, name
        assert run.code == 1
    hear = "import socket; s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); s.setsockopt(270, 8, 1)"
    look = "from reconciler.host.procs import pids_by_inode as p; import sys, os; "
    look += "raise SystemExit(not any(int(sys.argv[1]) in pids for pids in p().values()))"
    user = ("setpriv", "--reuid=12345", "--clear-groups", "sleep", "infinity")
    with shop.process("internet", *user) as child:
        for name, words in (("net_broadcast", [hear]), ("sys_ptrace", [look, str(child.pid)])):
            assert confined(shop, sys.executable, "-c", *words).code == 0, name
            assert confined(shop, sys.executable, "-c", *words, without=name).code == 1, name


# -- sd_notify ------------------------------------------------------------------------------------


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A notification socket and its name as it stands in the environment."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        if request.param == "path":
            name = str(tmp_path / "notify")
            sock.bind(name)
        else:
            sock.bind(f"\0runcnet-test-{os.getpid()}")
            name = f"@runcnet-test-{os.getpid()}"
        sock.setblocking(False)
        yield sock, name


def said(sock: socket.socket) -> list[str]:
    """All that was sent until now."""
    found = []
    while True:
        try:
            found.append(sock.recv(4096).decode())
        except BlockingIOError:
            return found


def test_what_is_told_to_systemd(manager: tuple[socket.socket, str]) -> None:
    sock, name = manager
    environ = {"NOTIFY_SOCKET": name, "HOME": "/"}
    service = Service(environ)
    assert environ == {"HOME": "/"}
    service.ready("2 containers\nare ok")
    service.status("2 containers are ok")
    service.status("1 of 2 containers failed")
    service.status("1 of 2 containers failed")
    service.reloading()
    service.ready("2 containers are ok")
    service.stopping()
    *lines, reloading, ready, stopping = said(sock)
    assert lines == ["READY=1\nSTATUS=2 containers are ok", "STATUS=1 of 2 containers failed"]
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*", reloading)
    assert (ready, stopping) == ("READY=1\nSTATUS=2 containers are ok", "STOPPING=1")


def test_the_watchdog_is_fed_often_enough_and_no_oftener(
    manager: tuple[socket.socket, str],
) -> None:
    sock, name = manager
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid())}
    service = Service(environ)
    assert environ == {} and service.keep_alive_s == 5.0
    times = [100.0, 101.0, 109.9, 110.0, 119.9, 124.9]
    fed = []
    for now in times:
        service.alive(now)
        fed += [now] * len(said(sock))
    assert fed == [100.0, 110.0, 124.9]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
    ],
)
def test_without_a_watchdog_nothing_is_fed(
    manager: tuple[socket.socket, str], more: dict[str, str]
) -> None:
    sock, name = manager
    service = Service({"NOTIFY_SOCKET": name, **more})
    service.alive(100.0)
    assert service.keep_alive_s is None and said(sock) == []


def test_a_manager_that_is_away_is_told_again_when_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    service = Service({"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "20000000"})
    service.ready("up")
    service.reloading()
    service.alive(100.0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.setblocking(False)
        service.alive(101.0)
        service.status("up")
        assert said(sock) == ["WATCHDOG=1", "STATUS=up"]


def test_a_manager_that_does_not_listen_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reconciler.host.service.PATIENCE_S", 0.05)
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.setblocking(False)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, pytest.raises(OSError):
            other.setblocking(False)
            while True:
                other.sendto(b"x", str(path))
        service = Service({"NOTIFY_SOCKET": str(path)})
        service.status("up")
        said(sock)
        service.status("up")
        assert said(sock) == ["STATUS=up"]


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": "vsock:2:1"}, {"NOTIFY_SOCKET": ""}])
def test_without_a_manager_nothing_happens(environ: dict[str, str]) -> None:
    service = Service({**environ, "WATCHDOG_USEC": "20000000"})
    service.ready("up")
    service.reloading()
    service.status("up")
    service.alive(100.0)
    service.stopping()
    assert service.keep_alive_s is None


def test_children_do_not_inherit_the_variables(tmp_path: Path) -> None:
    code = (
        "import os, subprocess; from reconciler.host.service import Service; Service(); "
        "subprocess.run(['env'], check=True)"
    )
    words = {"NOTIFY_SOCKET": str(tmp_path / "no"), "WATCHDOG_USEC": "5", "WATCHDOG_PID": "6"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **words},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "PATH=" in done.stdout
    assert not [line for line in done.stdout.splitlines() if line.split("=")[0] in words]


# -- which mounts pid 1 sees ----------------------------------------------------------------------

PID_1 = """\
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
31 27 0:24 / /run rw,nosuid shared:5 - tmpfs tmpfs rw
"""
SEEN = {
    "a copy whose mounts are peers": """\
127 90 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
131 127 0:24 / /run rw,nosuid shared:5 - tmpfs tmpfs rw
""",
    "a netns dir of its own that comes from a peer": """\
127 90 254:0 / / rw,relatime - ext4 /dev/vda rw
131 127 0:24 / /run rw,nosuid - tmpfs tmpfs rw
140 131 0:24 /netns /run/netns rw,nosuid shared:5 - tmpfs tmpfs rw
""",
    "a table that begins nowhere": "",
}
HIDDEN = {
    "private": """\
127 90 254:0 / / rw,relatime - ext4 /dev/vda rw
131 127 0:24 / /run rw,nosuid - tmpfs tmpfs rw
""",
    "a slave, which passes nothing on": """\
127 90 254:0 / / rw,relatime master:1 - ext4 /dev/vda rw
131 127 0:24 / /run rw,nosuid master:5 - tmpfs tmpfs rw
""",
    # As systemd makes it: a slave first, then shared among those who copy it.
    "shared, but not with pid 1": """\
127 90 254:0 / / rw,relatime shared:61 master:1 - ext4 /dev/vda rw
131 127 0:24 / /run rw,nosuid shared:62 master:5 - tmpfs tmpfs rw
""",
}


@pytest.mark.parametrize("case", SEEN)
def test_mounts_that_pid_1_sees(case: str) -> None:
    assert propagation.unseen("/run/netns", here=SEEN[case], there=PID_1) == ""


@pytest.mark.parametrize("kind", HIDDEN)
def test_mounts_that_pid_1_does_not_see(kind: str) -> None:
    sentence = propagation.unseen("/run/netns", here=HIDDEN[kind], there=PID_1)
    assert f"in which /run is {kind} (" in sentence
    assert "without unshare --mount" in sentence and "--private-mounts" in sentence
    assert "\n" not in sentence and sentence.count(". ") == 0


def test_a_shared_netns_dir_made_here_alone_is_not_seen() -> None:
    here = HIDDEN["private"] + "140 131 0:24 /netns /run/netns rw shared:99 - tmpfs tmpfs rw\n"
    sentence = propagation.unseen("/run/netns", here=here, there=PID_1)
    assert "in which /run/netns is shared, but not with pid 1 (" in sentence


def test_a_pid_1_that_is_a_slave_sees_what_is_mounted_here() -> None:
    there = PID_1.replace("shared:5", "master:5")
    assert propagation.unseen("/run/netns", here=PID_1, there=there) == ""


def test_the_same_group_at_another_place_is_not_the_netns_dir() -> None:
    there = PID_1.replace("0:24 / /run", "0:24 /sub /run")
    assert propagation.unseen("/run/netns", here=PID_1, there=there)


def test_what_is_mounted_over_a_parent_counts() -> None:
    """/run/netns was a mount; then something was mounted over /run, and that is what paths meet."""
    table = propagation.mounts(
        PID_1
        + "40 31 0:24 /netns /run/netns rw shared:7 - tmpfs tmpfs rw\n"
        + "41 31 0:29 / /run rw shared:8 - tmpfs tmpfs rw\n"
    )
    found = propagation.covering(table, "/run/netns")
    assert found is not None and found.shared == "8"
    found = propagation.covering(table, "/running")
    assert found is not None and found.point == "/"


def test_names_and_groups_are_read_as_the_kernel_writes_them() -> None:
    line = "41 27 0:24 /a\\040b /c\\134d\u2028e rw shared:5 master:6 propagate_from:7 unbindable - t - rw\n"
    (found,) = propagation.mounts(line)
    assert found == propagation.Mount(41, 27, "/a b", "/c\\d\u2028e", "5", "6")


LOOK = (
    "import sys; from reconciler.host import netns, propagation as p; "
    "print(bool(p.hidden('/run/netns'))); netns.prepare('/run/netns'); "
    "print(bool(p.hidden('/run/netns')))"
)


WAYS = [
    *[("shared", before, how) for before in ("new", "prepared") for how in ("unchanged", "private", "slave", "shared")],
    *[("private", "prepared", how) for how in ("same", "unchanged", "shared")],
]  # fmt: skip


@pytest.mark.parametrize("pid_1,before,how", WAYS)
def test_the_answer_is_what_pid_1_really_sees(pid_1: str, before: str, how: str) -> None:
    need.root()
    need.kernel()
    enter = "" if how == "same" else f"unshare --mount --propagation {how}"
    script = f"""
mount -t tmpfs none /run
mount --make-{pid_1} /run
mkdir /run/netns
[ {before} = new ] || {{ mount --bind /run/netns /run/netns; mount --make-{pid_1} /run/netns; }}
cat >/run/inner <<EOF
"{sys.executable}" -c "{LOOK}"
touch /run/netns/x
mount --bind /proc/self/ns/net /run/netns/x
EOF
{enter} sh -e /run/inner
stat -f -c %T /run/netns/x
"""
    words = ["unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork"]
    done = subprocess.run(
        [*words, "--mount-proc", "sh", "-ec", script],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second, kind = done.stdout.split()
    unseen = str(kind != "nsfs")
    assert (first, second) == (unseen, unseen)
    # The cases are what they are meant to be.
    assert (kind == "nsfs") == (
        how == "same" or (pid_1 == "shared" and how in ("unchanged", "shared"))
    )
