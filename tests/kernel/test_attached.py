"""Attachments without a runtime: processes in namespaces of their own, and the state that OCI defines."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.support.host import CLIENT, RUNCNET, PrivateHost, Run, page, wait_for

NETWORKS = 'networks: {n: {subnets: [10.88.0.0/24, "fd00:88::/64"]}, flat: {type: routed, subnets: 10.89.0.0/24}}\n'


class Guest:
    """A process in a network namespace of its own."""

    def __init__(self, host: PrivateHost, name: str) -> None:
        self.host = host
        self.name = name
        self.child = host.start("unshare", "--net", "sleep", "infinity")
        self.pid = self.child.pid
        hosts = os.readlink(f"/proc/{host.holder}/ns/net")
        mine = os.readlink("/proc/self/ns/net")
        wait_for(lambda: os.readlink(f"/proc/{self.pid}/ns/net") not in (hosts, mine))

    def state(self, **more: object) -> str:
        """What a runtime would write to the hook's stdin."""
        return json.dumps(
            {"ociVersion": "1.0.2", "id": self.name, "status": "created", "pid": self.pid,
             "bundle": str(self.host.dir), **more}
        )  # fmt: skip

    def hook(
        self, stage: str = "createRuntime", *flags: str, state: str = "", fast: bool = False
    ) -> Run:
        """Call the hook; `fast`: by the program that asks a daemon."""
        host = self.host
        words = host.command("runcnet", "hook", stage, *host.options, *flags)
        if fast:
            words = ["sh", "-c", f'exec -a {RUNCNET} {CLIENT} "$@"', "sh", "hook", stage]
            words = ["bash", *words[1:], *host.options, *flags]
        done = host.run(*words, check=False, stdin=state or self.state())
        assert "Traceback" not in done.err, done.err
        return done

    def attach(self, *flags: str) -> None:
        done = self.hook("createRuntime", *(flags or ("--network", "n")))
        assert done.code == 0, done.err

    def carried(self, link: str = "eth0") -> list[str]:
        """The addresses of an interface."""
        text = self.host.run("nsenter", "-t", str(self.pid), "-n", "ip", "-j", "addr", "show", link)
        found = json.loads(text.out)[0]["addr_info"]
        return [a["local"] for a in found if a["scope"] == "global"]

    def links(self) -> str:
        """What `ip link` shows inside."""
        return self.host.run("nsenter", "-t", str(self.pid), "-n", "ip", "-br", "link").out

    def end(self) -> None:
        self.host.stop(self.child)


@pytest.fixture
def guest(host: PrivateHost) -> Iterator[Guest]:
    host.write("n.yaml", NETWORKS)
    host.reconcile()
    one = Guest(host, "guest")
    yield one
    one.end()


def shown(host: PrivateHost) -> dict[str, dict[str, object]]:
    found = json.loads(host.runcnet("status", "--json", check=False).out)
    return {c["name"]: c for c in found["containers"]}


def test_annotations_say_what_flags_say_and_win(host: PrivateHost, guest: Guest) -> None:
    notes = {
        "runcnet.networks": "flat n:ip=10.88.0.77,interface_name=lan0",
        "runcnet.ports": "81:80",
    }
    state = guest.state(annotations=notes)
    assert guest.hook("createRuntime", "--network", "n", state=state).code == 0
    assert (guest.carried("eth0"), guest.carried("lan0")) == (
        ["10.89.0.2"],
        ["10.88.0.77", "fd00:88::2"],
    )
    assert shown(host)["guest"]["ports"] == ["81:80"]
    assert (
        "guest" not in host.runcnet("show").out
        and "10.88.0.77" in host.runcnet("show", "guest").out
    )
    assert "10.88.0.77" in host.runcnet("exec", "guest", "--", "ip", "addr", "show", "lan0").out
    assert guest.hook("poststop", state=state).code == 0
    done = guest.hook("createRuntime", "--network", "n", "--no-annotations", state=state)
    assert done.code == 0, done.err
    assert guest.carried() == ["10.88.0.2", "fd00:88::3"] and not shown(host)["guest"]["ports"]


def test_calls_again_too_late_or_in_vain_are_content(host: PrivateHost, guest: Guest) -> None:
    before = host.ours()
    assert guest.hook("poststop").code == 0
    guest.attach()
    kept = guest.carried()
    guest.attach()
    assert guest.carried() == kept and host.reconcile().changes == []
    for _ in range(2):
        done = guest.hook("poststop", state=guest.state(pid=0, status="stopped"))
        assert (done.code, done.err) == (0, "")
    assert host.ours() == before and host.reconcile().changes == []


@pytest.mark.parametrize("lost", ["state", "record", "both"])
def test_a_lost_memory_loses_no_attachment(host: PrivateHost, guest: Guest, lost: str) -> None:
    other = Guest(host, "other")
    guest.attach("--network", "n:ip=10.88.0.9,mac=02:00:00:00:00:09", "--network", "flat")
    other.attach("--network", "flat", "--port", "82:80")
    before = shown(host)
    was = (guest.carried(), guest.carried("eth1"), other.carried())
    if lost != "record":
        host.sh(f"rm -rf {host.state}")
    if lost != "state":
        host.sh("rm -rf /run/runcnet")
    report = host.reconcile().report
    assert report["converged"] and not report["removed"], report
    after = shown(host)
    for name in ("guest", "other"):
        assert after[name]["interfaces"] == before[name]["interfaces"]
        assert (after[name]["declared"], after[name]["state"]) == ("hook", "ok"), after[name]
    assert after["other"]["ports"] == ["82:80"]
    assert "--dport 82" in host.run("iptables-legacy-save").out
    assert was == (guest.carried(), guest.carried("eth1"), other.carried())
    # They are attachments as before: repaired, and taken away when their time comes.
    host.sh(f"nsenter -t {guest.pid} -n ip addr flush dev eth0")
    assert host.reconcile().report["converged"] and guest.carried() == was[0]
    for one in (guest, other):
        assert one.hook("poststop").code == 0
    assert not shown(host) and host.reconcile().changes == []
    assert "--dport 82" not in host.run("iptables-legacy-save").out


def test_an_end_without_poststop_is_noticed(host: PrivateHost, guest: Guest) -> None:
    before = host.ours()
    guest.attach("--network", "n", "--port", "83:80")
    # The process is gone and the namespace lives on by another one: nothing is over.
    mate = host.start("nsenter", "-t", str(guest.pid), "-n", "sleep", "infinity")
    inside = os.readlink(f"/proc/{guest.pid}/ns/net")
    wait_for(lambda: os.readlink(f"/proc/{mate.pid}/ns/net") == inside)
    guest.end()
    assert host.reconcile().changes == []
    host.sh(f"nsenter -t {mate.pid} -n ip link del eth0")
    assert host.reconcile().report["converged"]
    host.run("nsenter", "-t", str(mate.pid), "-n", "ip", "addr", "show", "eth0")
    host.stop(mate)
    report = host.reconcile().report
    assert report["converged"]
    assert host.ours() == before and not shown(host)
    assert host.reconcile().changes == []


def test_a_mount_pins_nothing(host: PrivateHost, guest: Guest) -> None:
    before = host.ours()
    guest.attach()
    host.sh(f"touch /run/pin && mount --bind /proc/{guest.pid}/ns/net /run/pin")
    guest.end()
    assert host.reconcile().report["converged"]
    assert host.ours() == before and not shown(host)


def test_after_a_reboot_nothing_is_left(host: PrivateHost, guest: Guest) -> None:
    guest.attach()
    # As a reboot leaves it: the state dir tells of another start, and all else is gone.
    [end] = [link for link in host.ours()["links"] if link != "n"]
    host.run("ip", "link", "del", end)
    program = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]);"
        "db.execute(\"UPDATE attachment SET boot='another'\"); db.commit()"
    )
    host.run("python3", "-c", program, f"{host.state}/state.db")
    host.sh("rm -rf /run/runcnet")
    assert host.reconcile().report["converged"]
    assert not shown(host)
    assert not guest.host.run(
        "nsenter", "-t", str(guest.pid), "-n", "ip", "link", "show", "eth0", check=False
    ).out


def test_a_network_that_is_no_longer_declared_stays_while_it_is_used(
    host: PrivateHost, guest: Guest
) -> None:
    guest.attach()
    host.write("n.yaml", "networks: {flat: {type: routed, subnets: 10.89.0.0/24}}\n")
    run = host.reconcile(check=False)
    assert run.code == 1 and run.changes == []
    [held] = run.report["held_back"]
    assert held["object"] == "network/n" and "guest" in held["reason"]
    assert "network n, which a hook attached it to, is not declared" in run.out
    assert guest.carried() == ["10.88.0.2", "fd00:88::2"]
    assert guest.hook("poststop").code == 0
    assert host.reconcile().changes[1:] == ["network/n: bridge n"]


def test_who_comes_later_gives_way(host: PrivateHost, guest: Guest) -> None:
    guest.attach("--network", "n:ip=10.88.0.20", "--port", "84:80")
    host.write(
        "late.yaml",
        "containers:\n"
        "  guest: {interfaces: n}\n"
        "  a: {interfaces: {network: n, addresses: 10.88.0.20}}\n"
        "  b: {interfaces: n, ports: '84:80'}\n",
    )
    run = host.reconcile(check=False)
    assert run.code == 2 and run.changes == []
    for text in (
        "attached by a hook",
        "10.88.0.20 is container guest's",
        "84/tcp is container guest's",
    ):
        assert text in run.out, text
    assert shown(host)["guest"]["state"] == "ok"


def test_a_kill_at_any_instant_leaves_nothing_that_the_next_pass_does_not_mend(
    host: PrivateHost, guest: Guest
) -> None:
    before = host.ours()
    dice = random.Random(20)
    guests = [Guest(host, f"g{number}") for number in range(30)]
    try:
        for one in guests:
            words = host.command("runcnet", "hook", "createRuntime", *host.options)
            child = subprocess.Popen(
                host.enter(*words, "--network", "n", "--port", f"{one.pid}:80"),
                stdin=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            assert child.stdin
            child.stdin.write(one.state().encode())
            child.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(dice.uniform(0.05, 0.5))
            child.send_signal(signal.SIGKILL)
            child.wait(10)
        for one in guests[::2]:
            one.end()
        report = host.reconcile().report
        assert report["converged"], report
        assert host.reconcile().changes == []
        states = shown(host)
        assert set(states) <= {one.name for one in guests[1::2]}
        assert {c["state"] for c in states.values()} <= {"ok"}
        for one in guests[1::2]:
            assert bool(states.get(one.name)) == ("eth0@" in one.links())
        for one in guests:
            one.end()
        assert host.reconcile().report["converged"]
        assert host.ours() == before and not shown(host)
    finally:
        for one in guests:
            one.end()


HOSTILE = """
import io, json, sys
from contextlib import redirect_stderr
from reconciler.cli import main
words = sys.argv[1:]
for line in sys.stdin.buffer:
    stage, state = json.loads(line)
    error = io.StringIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO(state.encode("latin-1")))
    with redirect_stderr(error):
        try:
            code = main(["hook", *words, *stage])
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, error.getvalue()]))
"""


def hostile(host: PrivateHost, guest: Guest) -> Iterator[tuple[list[str], str]]:
    """Flags and stdin of calls that must be refused."""
    dice = random.Random(200)
    good = json.loads(guest.state())
    flags = ["createRuntime", "--network", "n"]

    def state(**more: object) -> str:
        return json.dumps({**good, **more})

    dead = host.start("true")
    dead.wait(10)
    for pid in (0, -1, 1, 2, dead.pid, host.holder, 1 << 31, 1 << 70, "7", None, 1.5, True, [], {}):
        yield flags, state(pid=pid)
    for name in (
        "",
        "/",
        "a/b",
        "..",
        ".",
        "-x",
        "a b",
        "a\n",
        "\u0000",
        "ä",
        "x" * 129,
        None,
        7,
        ["a"],
    ):
        yield flags, state(id=name)
    yield [*flags, "--ip-file"], state(bundle="/run/a\0b")
    for stage in (
        ["start"],
        ["createRuntime", "--ip-file=../x"],
        ["createRuntime", "--nonsense"],
        [],
    ):
        yield stage, guest.state()
    yield ["createRuntime"], guest.state()
    for network in ("", "absent", "n:ip=1", "n:ip=10.99.0.1", "n:mac=zz", "n:x=1", "n:ip=10.88.0.1",
                    "n:ip=10.88.0.5,ip=10.88.0.6", "n:interface_name=lo", "n:interface_name=a/b",
                    "n:mac=01:00:00:00:00:01", "n:ip=10.88.0.255", "../n"):  # fmt: skip
        yield ["createRuntime", "--network", network], guest.state()
        yield flags, state(annotations={"runcnet.networks": network or "/"})
    for port in ("x", "0:80", "80", "70000:1", "1:2:3:4", "80:80/icmp", "1.2.3:80:80", "80-70:1-2"):
        yield [*flags, "--port", port], guest.state()
    for notes in (7, "text", ["runcnet.networks"], {"runcnet.networks": 7}, {"runcnet.ports": {}},
                  {"runcnet.networks": "n " * 300}, {"runcnet.networks": "n:" + "ip=10.88.0.9," * 99999},
                  {"x": "y" * 2_000_000}):  # fmt: skip
        yield flags, state(annotations=notes)
    for text in (
        "",
        " ",
        "null",
        "[]",
        "7",
        '"text"',
        "{",
        "{}",
        "[" * 50_000,
        "\xff\xfe",
        "{'id': 1}",
    ):
        yield flags, text
    whole = guest.state()
    for _ in range(120):
        cut = dice.randrange(1, len(whole) - 1)
        yield flags, whole[:cut]


def test_hostile_states_are_refused_with_a_sentence(host: PrivateHost, guest: Guest) -> None:
    calls = list(hostile(host, guest))
    assert len(calls) >= 200
    before = (host.ours(), host.run("ip", "addr").out)
    lines = "\n".join(json.dumps(call) for call in calls)
    done = host.run(sys.executable, "-c", HOSTILE, *host.options, stdin=lines)
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert len(answers) == len(calls)
    for call, (code, error) in zip(calls, answers, strict=True):
        assert code in (1, 64), (call, code, error)
        last = error.splitlines()[-1] if error else ""
        assert len(last) > 10 and "Traceback" not in error and len(error) < 2000, (
            call[0],
            error[:500],
        )
    assert host.reconcile().changes == [] and not shown(host)
    assert (host.ours(), host.run("ip", "addr").out) == before


def test_a_daemon_serves_hooks_and_notices_an_end(host: PrivateHost, guest: Guest) -> None:
    before = host.ours()
    with host.daemon() as daemon:
        done = guest.hook("createRuntime", "--network", "n", "--port", "85:80", fast=True)
        assert done.code == 0, done.err
        address = guest.carried()
        # The same again is content; somebody else's namespace is not to be had.
        assert guest.hook("createRuntime", "--network", "n", "--port", "85:80", fast=True).code == 0
        other = guest.hook("createRuntime", "--network", "n", state=guest.state(id="b"), fast=True)
        assert other.code == 1 and "attached already, as guest" in other.err
        host.run("nsenter", "-t", str(guest.pid), "-n", "ip", "addr", "flush", "dev", "eth0")
        wait_for(lambda: guest.carried() == address, what="the address to come back")
        guest.end()
        wait_for(lambda: not shown(host), what="the end to be noticed")
        wait_for(lambda: host.ours() == before, what="all of it to go")
        # It never left its work to a process of its own.
        assert "another run" not in daemon.log and daemon.log.count("container guest") >= 2
    assert host.reconcile().changes == []


@pytest.mark.parametrize("firewall", ["iptables", "nftables"])
def test_small_passes_do_with_ports_and_without(
    host: PrivateHost, guest: Guest, firewall: str
) -> None:
    host.firewall = firewall
    host.write("w.yaml", "containers: {w: {interfaces: n, ports: '90:80'}}\n")
    other = Guest(host, "other")
    with host.daemon("--metrics", f"{host.dir}/metrics"):
        before = host.ours()

        def whole() -> list[str]:
            text = page(host.dir / "metrics")
            return re.findall(r'runcnet_passes_total\{kind="full",result="\w+"\} .*', text)

        at_first = whole()
        for flags in (["--network", "n"], ["--network", "n", "--port", "91:80"],
                      ["--network", "flat", "--port", "92:80"]):  # fmt: skip
            done = guest.hook("createRuntime", *flags, fast=True)
            assert done.code == 0, done.err
            assert other.hook("createRuntime", "--network", "n", fast=True).code == 0
            assert {c["state"] for c in shown(host).values()} == {"ok"}
            if "--port" in flags:
                host.start("nsenter", "-t", str(guest.pid), "-n", sys.executable, "-c", SERVE)
                wait_for(partial(answers, host, flags[-1].partition(":")[0]), what="an answer")
            for one in (guest, other):
                assert one.hook("poststop", fast=True).code == 0
            assert host.ours() == before
        assert whole() == at_first
    assert host.reconcile().changes == []


SERVE = """
import socket
with socket.create_server(("", 80)) as server:
    while True:
        server.accept()[0].sendall(b"here")
"""
ASK = "import socket, sys; print(socket.create_connection(('192.0.2.2', int(sys.argv[1])), 2).recv(4))"


def answers(host: PrivateHost, port: str) -> bool:
    words = ["ip", "netns", "exec", "internet", sys.executable, "-c", ASK, port]
    return "here" in host.run(*words, check=False).out


def test_where_no_daemon_serves_the_client_does_it_by_itself(
    host: PrivateHost, guest: Guest
) -> None:
    assert guest.hook("createRuntime", "--network", "n", fast=True).code == 0
    address = guest.carried()
    assert guest.hook("poststop", fast=True).code == 0 and not shown(host)
    with host.daemon("--firewall", "none"):
        # Another firewall than the daemon's was asked for.
        assert guest.hook("createRuntime", "--network", "n", fast=True).code == 0
        assert guest.carried() not in ([], address)


def test_noise_at_the_door_disturbs_nobody(host: PrivateHost, guest: Guest) -> None:
    program = r"""
import os, socket, sys
kept = []
for data in (b"", b"\0", b"x\0", b"99\0a\0", b"1\0hook\0", b"3\0" + b"\0" * 3, b"7" * 100,
             b"1\0plan\0{}", b"2\0hook\0teardown\0{}", b"2\0hook\0poststop\0\xff", b"1" * 2_000_000):
    one = socket.socket(socket.AF_UNIX)
    one.connect("/run/runcnet/daemon.sock")
    try:
        one.sendall(data)
        one.shutdown(socket.SHUT_WR)
        answer = one.recv(1000)
    except OSError:
        answer = b""
    assert answer[:2] in (b"", b"1\n", b"75"), answer
for _ in range(20):
    one = socket.socket(socket.AF_UNIX)
    one.connect("/run/runcnet/daemon.sock")
    kept.append(one)
os.seteuid(65534)
try:
    socket.socket(socket.AF_UNIX).connect("/run/runcnet/daemon.sock")
    raise SystemExit("anybody may knock")
except PermissionError:
    pass
print("ready", flush=True)
sys.stdin.read()
"""
    with host.daemon():
        noise = host.start(sys.executable, "-c", program)
        assert noise.stdout
        assert noise.stdout.readline() == "ready\n"
        done = guest.hook("createRuntime", "--network", "n", fast=True)
        assert done.code == 0, done.err
        assert guest.hook("poststop", fast=True).code == 0


def test_hooks_of_all_kinds_a_run_and_a_daemon_at_once(host: PrivateHost, guest: Guest) -> None:
    guests = [Guest(host, f"g{number}") for number in range(16)]
    try:
        with host.daemon(), ThreadPoolExecutor(20) as pool:
            runs = [pool.submit(host.reconcile, "--once", check=False) for _ in range(2)]
            calls = [
                pool.submit(one.hook, "createRuntime", "--network", "n", fast=number % 2 == 0)
                for number, one in enumerate(guests)
            ]
            host.write("more.yaml", "containers: {w: {replicas: 4, interfaces: n}}\n")
            assert [(c.result().code, c.result().err) for c in calls] == [(0, "")] * 16
            assert {run.result().code for run in runs} == {0}
            wait_for(lambda: len(shown(host)) == 20, what="the file to be read")
            wait_for(lambda: {c["state"] for c in shown(host).values()} == {"ok"})
            found = [a for one in guests for a in one.carried()]
            assert len(found) == len(set(found)) == 32
        assert host.reconcile().changes == []
    finally:
        for one in guests:
            one.end()


NOT_NEEDED = """commands load options scoped core.declare core.doubts core.overlap core.sandbox
    core.spec core.splice host.derived host.fresh host.yamlfile"""


def test_an_attach_ends_in_a_hurry_and_a_detach_does_not(host: PrivateHost, guest: Guest) -> None:
    """To close the state takes a flush to disk more, for which a container's start would wait."""
    other = Guest(host, "other")
    for one in (guest, other):
        assert one.hook("createRuntime", "--network", "n", fast=True).code == 0
        assert (host.state / "state.db-wal").stat().st_size > 0
    assert list(shown(host)) == ["guest", "other"]
    assert guest.hook("poststop", fast=True).code == 0
    assert not (host.state / "state.db-wal").exists()
    assert list(shown(host)) == ["other"]
    other.end()


def test_a_pack_that_cannot_be_written_fails_no_hook(host: PrivateHost, guest: Guest) -> None:
    """A package may be half replaced when a hook that has done its work comes to that."""
    code = """
import sys; sys.path += sys.argv.pop(1).split(":")
from reconciler import bytecode
bytecode.Pack.keep = lambda pack: compile("half a", "source", "exec")
bytecode.entry()
"""
    path = ":".join(place for place in sys.path if place)
    words = [sys.executable, "-I", "-S", "-c", code, path, "hook", "createRuntime"]
    done = host.run(*words, *host.options, "--network", "n", stdin=guest.state())
    assert (done.code, done.err) == (0, "")
    assert list(shown(host)) == ["guest"]


def test_a_hook_loads_no_more_than_it_needs(host: PrivateHost, guest: Guest) -> None:
    """A container's start waits for each module; the first call has left an index, so files are not read."""
    other = Guest(host, "other")
    guest.attach()
    for one, stage in ((other, "createRuntime"), (other, "poststop"), (guest, "poststop")):
        words = host.command("runcnet", "hook", stage, *host.options, "--network", "n")
        words.insert(1, "-Ximporttime")
        done = host.run(*words, check=False, stdin=one.state())
        assert done.code == 0, done.err
        loaded = {line.rpartition("|")[2].strip() for line in done.err.splitlines()}
        assert "reconciler.joining" in loaded
        heavy = {"argparse", "iptc", "rich", "ssl", "watchdog", "yaml", "_hashlib"}
        heavy |= {f"reconciler.{one}" for one in NOT_NEEDED.split()}
        if stage == "createRuntime":
            heavy |= {"reconciler.core.resolver", "reconciler.host.conntrack"}
        assert not heavy & loaded, (stage, heavy & loaded)
    assert not shown(host) and host.reconcile().changes == []
    other.end()
