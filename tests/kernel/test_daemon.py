"""The daemon: what it hears, what it repairs, and what it never does."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import need
from tests.support.host import ENTRY, ROOT, PrivateHost, RunningDaemon, page, wait_for

NETS = "networks: {runc0: {subnets: 10.1.0.0/16}, far: {type: routed, subnets: 10.2.0.0/16}}\n"
BASE = NETS + (
    "containers: {a: {interfaces: runc0}, b: {interfaces: runc0}, r: {interfaces: far}, "
    "bare: {mode: none}}\n"
)
EXTRA = "containers: {extra: {interfaces: runc0}}\n"


def stands(host: PrivateHost, name: str) -> bool:
    return name in host.run("ls", "/run/netns").out.split()


def passes(host: PrivateHost) -> int:
    """How many passes a daemon with `--metrics` has made."""
    counts = [
        float(line.split()[-1])
        for line in page(host.dir / "m.sock").splitlines()
        if line.startswith("runcnet_passes_total{")
    ]
    return int(sum(counts))


def look_again(host: PrivateHost, daemon: RunningDaemon) -> None:
    """Have everything looked at, and wait until it was."""
    before = passes(host)
    daemon.child.send_signal(signal.SIGHUP)
    wait_for(lambda: passes(host) > before, 30.0, "a pass")


def quiet(host: PrivateHost) -> None:
    """Nothing is left to be done, once the kernel has reaped what was let go."""
    wait_for(lambda: host.reconcile("--check", check=False).code == 0, what="nothing to be left")


# -- files ----------------------------------------------------------------------------------------

SAVES = {
    "written in place": "cat src > {file}",
    "copied": "cp src {file}",
    "moved here": "mv src {file}",
    "vim": "vim -u NONE -es -c '%d' -c 'r src' -c 'wq! {file}' {file} </dev/null || test -s {file}",
    "sed -i": ": > {file}; echo '# nothing' > {file}; sed -i -e '1r src' {file}",
    "a link": "cp src elsewhere; ln -s elsewhere {file}.tmp; mv -T {file}.tmp {file}",
    "what a link leads to": "mkdir away; : > away/x; ln -s {home}/away/x {file}",
    "..data": (
        "mkdir ..one ..two; : > ..one/x.yaml; cp src ..two/x.yaml; ln -s ..one ..data; "
        "ln -s ..data/x.yaml {file}; ln -s ..two ..tmp; mv -T ..tmp ..data"
    ),
}


@pytest.mark.parametrize("way", SAVES)
def test_each_way_of_saving_is_heard(bare: PrivateHost, way: str) -> None:
    if way == "vim":
        need.program("vim")
    bare.write("a.yaml", BASE)
    with bare.daemon("--resync", "3600", "--metrics", str(bare.dir / "m.sock")) as daemon:
        (bare.config / "src").write_text(EXTRA)
        script = SAVES[way].format(file="z.yaml", home=bare.config)
        bare.sh(f"umask 022; cd {bare.config}; {script}")
        if way == "what a link leads to":
            # Only a pass that has seen the link knows where it leads.
            look_again(bare, daemon)
            bare.sh(f"cd {bare.config}; cat src > away/x")
        wait_for(lambda: stands(bare, "extra"), what=f"{way}: {daemon.log}")
        (bare.config / "z.yaml").unlink()
        wait_for(lambda: not stands(bare, "extra"), what=f"its removal: {daemon.log}")


def test_editors_leftovers_ring_nothing(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    with bare.daemon("--resync", "3600") as daemon:
        for name in (".a.yaml.swp", "a.yaml~", ".#a.yaml", "#a.yaml#", "4913", "x.yaml.dpkg-new"):
            (bare.config / name).write_text("networks: [")
        bare.write("z.yaml", EXTRA)
        wait_for(lambda: stands(bare, "extra"))
        assert "no YAML" not in daemon.log


@pytest.mark.parametrize("how", ["made anew", "renamed", "covered by a mount"])
def test_a_folder_that_is_another_one_is_watched_anew(bare: PrivateHost, how: str) -> None:
    bare.write("a.yaml", BASE)
    spare = bare.dir / "spare"
    spare.mkdir(mode=0o755)
    shutil.copy(bare.config / "a.yaml", spare)
    with bare.daemon("--resync", "3600"):
        if how == "made anew":
            bare.sh(
                f"rm -r {bare.config}; mkdir -m 755 {bare.config}; cp {spare}/a.yaml {bare.config}"
            )
        elif how == "renamed":
            bare.sh(f"mv {bare.config} {bare.dir}/old; mv {spare} {bare.config}")
        else:
            bare.sh(f"mount --bind {spare} {bare.config}")
        file = bare.config / "z.yaml"
        bare.sh(f"umask 022; printf '%s' '{EXTRA}' > {file}")
        wait_for(lambda: stands(bare, "extra"))
        bare.sh(f"rm {file}")
        wait_for(lambda: not stands(bare, "extra"))
        quiet(bare)


def test_a_folder_may_come_later(bare: PrivateHost) -> None:
    shutil.rmtree(bare.config)
    with bare.daemon("--resync", "3600"):
        bare.config.mkdir(mode=0o755)
        bare.write("a.yaml", BASE)
        wait_for(lambda: stands(bare, "a"))


def test_a_thousand_files_at_once_are_few_passes(bare: PrivateHost) -> None:
    bare.write("a.yaml", "networks: {far: {type: routed, subnets: 10.2.0.0/16}}\n")
    with bare.daemon("--resync", "3600", "--metrics", str(bare.dir / "m.sock")) as daemon:
        bare.sh(
            f"umask 022; cd {bare.config}; for i in $(seq 1000); do "
            'echo "containers: {c$i: {interfaces: far}}" > c$i.yaml; done'
        )
        wait_for(lambda: daemon.log.count("+ container c") == 1000, 90, daemon.log[-500:])
        quiet(bare)
        assert 2 <= passes(bare) <= 40


def test_a_broken_file_is_named_once_and_takes_nothing_away(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    path = bare.write("z.yaml", EXTRA)
    with bare.daemon("--resync", "0.5") as daemon:
        path.write_text("containers: {extra: {interfaces: runc0")
        daemon.says("z.yaml:1:")
        bare.sh("ip -n extra link set eth0 down")
        wait_for(lambda: "UP" in bare.link("eth0", "extra")["flags"], what="repair of what is kept")
        bare.sh("ip -n a link set eth0 down")
        wait_for(lambda: "UP" in bare.link("eth0", "a")["flags"])
        daemon.says("eth0 up", 2)
        assert daemon.log.count("z.yaml:1:") == 1
        path.write_text(EXTRA)
        daemon.says(f"{path} is fine again")
        assert "- container" not in daemon.log


def test_a_half_saved_file_removes_nothing(bare: PrivateHost) -> None:
    whole = BASE + "# more\n"
    path = bare.write("a.yaml", whole)
    with bare.daemon("--resync", "3600") as daemon:
        # A prefix that is valid and declares less, and then, within the second, the rest.
        with path.open("w") as file:
            file.write(NETS)
            file.flush()
            bare.sh("ip -n bare link set lo down")
            wait_for(lambda: "UP" in bare.link("lo", "bare")["flags"], what="drift goes on")
            file.write(whole.removeprefix(NETS))
        path.with_name("z.yaml").write_text(EXTRA)
        wait_for(lambda: stands(bare, "extra"))
        assert all(stands(bare, name) for name in ("a", "b", "r", "bare"))
        assert "- container" not in daemon.log


@pytest.mark.parametrize("how", ["truncated", "emptied", "gone"])
def test_a_folder_that_says_nothing_removes_nothing(bare: PrivateHost, how: str) -> None:
    bare.write("a.yaml", "networks: {far: {type: routed, subnets: 10.2.0.0/16}}\n")
    bare.write("b.yaml", "containers: {many: {replicas: 200, interfaces: far}}\n")
    with bare.daemon("--metrics", str(bare.dir / "m.sock")) as daemon:
        if how == "truncated":
            bare.sh(f"for f in {bare.config}/*; do : > $f; done")
        elif how == "emptied":
            bare.sh(f"rm {bare.config}/*")
        else:
            shutil.rmtree(bare.config)
        daemon.says("no file declares anything")
        # Long after the second that removals wait for.
        changed = time.time()
        wait_for(lambda: time.time() > changed + 1.5)
        look_again(bare, daemon)
        look_again(bare, daemon)
        assert len(bare.run("ls", "/run/netns").out.split()) == 201
        assert "- container" not in daemon.log


def test_more_than_half_going_is_held_back_and_once_beside_lets_it_go(bare: PrivateHost) -> None:
    bare.write("a.yaml", NETS)
    path = bare.write("b.yaml", "containers: {many: {replicas: 20, interfaces: far}}\n")
    with bare.daemon("--resync", "3600") as daemon:
        bare.drop("b.yaml")
        daemon.says("--max-removals 20")
        assert stands(bare, "many-0")
        assert bare.reconcile("--once", "--max-removals", "20").report["removed"] == 20
        path.write_text("containers: {one: {interfaces: far}}\n")
        wait_for(lambda: stands(bare, "one"), what="the daemon goes on")
        quiet(bare)


# -- drift ----------------------------------------------------------------------------------------


def _address(host: PrivateHost, name: str, netns: str = "") -> Callable[[], bool]:
    return lambda: bool(host.addresses(name, netns))


def _up(host: PrivateHost, name: str, netns: str = "") -> Callable[[], bool]:
    return lambda: "UP" in host.link(name, netns)["flags"]


def _sysctl(host: PrivateHost, key: str, value: str, lead: str = "") -> Callable[[], bool]:
    return lambda: host.sh(f"{lead} sysctl -n {key}").out.split() == value.split()


DRIFT = {
    "host end down": ("ip link set {a} down", lambda h: _up(h, h.host_end("a", "eth0")["ifname"])),
    "host end deleted": ("ip link del {a}", lambda h: lambda: h.ping("a", "10.1.0.1")),
    "host end out of its bridge": (
        "ip link set {a} nomaster", lambda h: lambda: h.host_end("a", "eth0").get("master") == "runc0"
    ),
    "inner end down": ("ip -n a link set eth0 down", lambda h: _up(h, "eth0", "a")),
    "inner address": ("ip -n a addr flush dev eth0", lambda h: _address(h, "eth0", "a")),
    "inner route": ("ip -n a route del default", lambda h: lambda: bool(h.ip("route", "show", "default", netns="a"))),
    "inner MAC": ("ip -n a link set eth0 address 02:00:00:00:00:77",
                  lambda h: lambda: h.link("eth0", "a")["address"] != "02:00:00:00:00:77"),
    "lo down, no veth": ("ip -n bare link set lo down", lambda h: _up(h, "lo", "bare")),
    "bridge address": ("ip addr flush dev runc0", lambda h: _address(h, "runc0")),
    "bridge down": ("ip link set runc0 down", lambda h: _up(h, "runc0")),
    "bridge deleted": ("ip link del runc0", lambda h: lambda: h.ping("a", "10.1.0.1")),
    "host route of a routed member": (
        "ip route flush dev {r}", lambda h: lambda: h.ping("r", "10.2.0.1")
    ),
    "gateway of a routed network": (
        "ip addr del 10.2.0.1/32 dev lo", lambda h: lambda: "10.2.0.1/32" in h.addresses("lo")
    ),
    "permanent neighbour": (
        "ip neigh flush dev runc0 nud permanent",
        lambda h: lambda: len(h.ip("neigh", "show", "dev", "runc0", "nud", "permanent")) == 2,
    ),
    "unmounted path": ("umount -l /run/netns/b", lambda h: lambda: h.ping("b", "10.1.0.1")),
    "namespace deleted": ("ip netns del b", lambda h: lambda: stands(h, "b") and h.ping("b", "10.1.0.1")),
    "namespace without a veth deleted": ("ip netns del bare", lambda h: lambda: stands(h, "bare")),
    "forwarding": ("sysctl -qw net.ipv4.ip_forward=0", lambda h: _sysctl(h, "net.ipv4.ip_forward", "1")),
}  # fmt: skip


@pytest.fixture(scope="module")
def watched(request: pytest.FixtureRequest) -> tuple[PrivateHost, RunningDaemon]:
    """One daemon for all drift: each is repaired before the next is made."""
    host = PrivateHost()
    request.addfinalizer(host.close)
    host.firewall = "none"
    host.write("a.yaml", BASE)
    running = host.daemon("--resync", "3600")
    daemon = running.__enter__()
    request.addfinalizer(lambda: running.__exit__(None, None, None))
    return host, daemon


@pytest.mark.parametrize("kind", DRIFT)
def test_what_the_kernel_announces_is_repaired(
    watched: tuple[PrivateHost, RunningDaemon], kind: str
) -> None:
    host, daemon = watched
    command, fine = DRIFT[kind]
    ends = {name: host.host_end(name, "eth0")["ifname"] for name in ("a", "r")}
    host.sh(command.format(**ends))
    # Well before the next check, not to speak of the next whole pass.
    wait_for(fine(host), 5.0, f"{kind}: {daemon.log[-600:]}")
    wait_for(
        lambda: host.reconcile("--check", check=False).code == 0, 5.0, f"all else after {kind}"
    )


def test_sysctls_and_legacy_rules_are_repaired_at_the_next_check(bare: PrivateHost) -> None:
    bare.firewall = "iptables"
    bare.write("a.yaml", BASE)
    with bare.daemon("--resync", "3600"):
        bare.sh("iptables-legacy -t nat -F RUNCNET-POSTROUTING")
        ping = "net.ipv4.ping_group_range"
        bare.sh(f"ip netns exec a sysctl -qw {ping}='1 0'")
        rules = lambda: bare.run("iptables-legacy", "-t", "nat", "-S").out  # noqa: E731
        wait_for(lambda: "MASQUERADE" in rules(), 25.0)
        wait_for(_sysctl(bare, ping, "0 2147483647", "ip netns exec a"), 25.0)
        quiet(bare)


def test_what_is_not_ours_stays_and_rings_no_pass(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    with bare.daemon("--resync", "3600") as daemon:
        bare.sh(
            "ip link add dock0 type bridge; ip link set dock0 up; ip addr add 10.77.0.1/24 dev dock0; "
            "ip link add v0 type veth peer name v1; ip link set v0 master runc0; ip link set v0 up; "
            "ip -n a addr add 10.99.0.1/24 dev eth0; ip -n a route add 10.98.0.0/16 via 10.99.0.2"
        )
        bare.write("z.yaml", EXTRA)
        wait_for(lambda: stands(bare, "extra"))
        assert bare.link("v0")["master"] == "runc0" and bare.addresses("dock0")
        assert "10.99.0.1/24" in bare.addresses("eth0", "a")
        lines = daemon.log[daemon.log.index("watching") :].splitlines()[1:]
        assert [line.split("  ")[0] for line in lines] == ["+ container extra"]


# -- who lives in them --------------------------------------------------------------------------


def test_a_container_in_use_goes_with_its_last_process(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    path = bare.write("z.yaml", EXTRA)
    with bare.daemon("--resync", "3600") as daemon:
        with bare.process("extra") as first:
            with bare.process("extra") as second:
                path.unlink()
                daemon.says(f"in use by pids {min(first.pid, second.pid)}")
            bare.sh("ip -n extra link set eth0 down")
            assert stands(bare, "extra")
            wait_for(lambda: daemon.log.count("held back") >= 2 or stands(bare, "extra"))
        wait_for(lambda: not stands(bare, "extra"), what=daemon.log)
        quiet(bare)


def test_one_that_fails_rests_and_the_others_do_not_wait(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    bare.sh("ip netns add taken")
    with bare.daemon("--resync", "3600") as daemon:
        bare.write("t.yaml", "containers: {taken: {interfaces: runc0}}\n")
        daemon.says("is not runcnet's")
        bare.write("z.yaml", EXTRA)
        wait_for(lambda: stands(bare, "extra"))
        bare.sh("ip netns del taken")
        wait_for(lambda: stands(bare, "taken") and bare.ping("taken", "10.1.0.1"), 10.0)
        daemon.says("container taken is fine again")
        assert daemon.log.count("is not runcnet's") == 1


def test_who_keeps_one_in_use_may_change_and_is_said_once(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    path = bare.write("z.yaml", EXTRA)
    with bare.daemon("--resync", "3600", "--metrics", str(bare.dir / "m.sock")) as daemon:
        with bare.process("extra"):
            path.unlink()
            daemon.says("in use by pid")
            for _ in range(3):
                with bare.process("extra"), bare.process("extra"):
                    look_again(bare, daemon)
        wait_for(lambda: not stands(bare, "extra"), what=daemon.log)
        assert daemon.log.count("is held back") == 1, daemon.log


@pytest.mark.parametrize("many", [1, 5])
def test_the_leases_of_who_is_gone_are_free_at_once(bare: PrivateHost, many: int) -> None:
    def holders() -> set[str]:
        with contextlib.closing(sqlite3.connect(bare.state / "state.db")) as db:
            return {name for (name,) in db.execute("SELECT container FROM lease")}

    bare.write("a.yaml", BASE)
    bare.write("z.yaml", f"containers: {{x: {{replicas: {many}, interfaces: runc0}}}}\n")
    with bare.daemon("--resync", "3600", "--max-removals", "all"):
        assert len(holders()) == 3 + many
        bare.drop("z.yaml")
        wait_for(lambda: holders() == {"a", "b", "r"}, 5.0, "the leases to be free")


# -- its life -----------------------------------------------------------------------------------


def test_a_stop_is_quick_and_a_restart_touches_nothing(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    with bare.daemon() as daemon:
        before = bare.sh("ip -o link; ip -o addr; ip route").out
        assert daemon.stop(2.0) == 0
    assert bare.sh("ip -o link; ip -o addr; ip route").out == before
    watch = bare.start("ip", "monitor", "link", "address", "route")
    with bare.daemon(log="again.log") as again:
        again.stop()
        assert again.log.count("\n") == 2, again.log  # that it watches, and that it stopped
    watch.terminate()
    assert watch.communicate(timeout=10)[0] == ""
    assert bare.sh("ip -o link; ip -o addr; ip route").out == before


def test_a_firewall_that_another_program_works_on_holds_nothing_up(bare: PrivateHost) -> None:
    bare.firewall = "iptables"
    bare.write("a.yaml", BASE)
    with bare.daemon("--resync", "3600") as daemon:
        bare.sh("iptables-legacy -t nat -F RUNCNET-POSTROUTING")
        holder = bare.start("sh", "-c", "exec flock /run/xtables.lock sh -c 'echo held; exec cat'")
        assert holder.stdout and holder.stdout.readline() == "held\n"
        daemon.child.send_signal(signal.SIGHUP)
        daemon.says("another program held it")
        bare.sh("ip -n a link set eth0 down")
        wait_for(_up(bare, "eth0", "a"), 5.0)
        daemon.child.send_signal(signal.SIGHUP)
        assert daemon.stop(2.5) == 0


def children(daemon: RunningDaemon) -> set[str]:
    """The processes that its threads have started."""
    found: set[str] = set()
    for task in Path(f"/proc/{daemon.child.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that thread has ended
            found |= {*(task / "children").read_text().split()}
    return found


def test_what_changes_in_the_middle_of_a_pass_is_seen_after_it(bare: PrivateHost) -> None:
    bare.firewall = "iptables"
    bare.write("a.yaml", BASE)
    with bare.daemon("--resync", "3600") as daemon:
        bare.sh("iptables-legacy -t nat -F RUNCNET-POSTROUTING")
        holder = bare.start("sh", "-c", "exec flock /run/xtables.lock sh -c 'echo held; exec cat'")
        assert holder.stdin and holder.stdout and holder.stdout.readline() == "held\n"
        daemon.child.send_signal(signal.SIGHUP)
        # It has looked, and is about to work; it will look again at what it has worked on.
        wait_for(lambda: children(daemon))
        bare.sh("ip -n a link set eth0 down")
        holder.stdin.close()
        wait_for(_up(bare, "eth0", "a"), 5.0, daemon.log)
        assert "another program held it" not in daemon.log


def test_python_iptables_stands_by_while_ports_are_published(bare: PrivateHost) -> None:
    def published(port: int) -> Callable[[], bool]:
        return lambda: f"--dport {port}" in bare.run("iptables-legacy", "-t", "nat", "-S").out

    def publish(port: int) -> None:
        text = f"containers: {{p: {{interfaces: runc0, ports: '{port}:80'}}}}\n"
        bare.write("p.yaml", text)

    bare.firewall = "iptables"
    bare.write("a.yaml", BASE)
    with bare.daemon("--resync", "3600") as daemon:
        wait_for(lambda: not children(daemon), what="nobody to stand by")
        publish(8080)
        wait_for(published(8080), 5.0, daemon.log)
        workers = children(daemon)
        assert len(workers) == 1
        publish(8081)
        wait_for(published(8081), 5.0, daemon.log)
        assert children(daemon) == workers
        # Whatever becomes of the daemon, nobody is left behind.
        daemon.child.kill()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_a_second_daemon_says_who_serves(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    with bare.daemon() as daemon:
        second = bare.run(
            *bare.command("runcnet-reconcile", "--private-mounts", *bare.options),
            "--lock-timeout", "0.2", check=False,
        )  # fmt: skip
        assert second.code == 4 and f"pid {daemon.child.pid}" in second.err


def test_a_run_dir_that_is_removed_lets_no_second_one_in(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    with bare.daemon("--resync", "3600") as daemon:
        bare.sh("rm -r /run/runcnet; ip -n a link set eth0 down")
        wait_for(_up(bare, "eth0", "a"), what=daemon.log)
        second = bare.run(
            *bare.command("runcnet-reconcile", "--private-mounts", *bare.options),
            "--lock-timeout", "0.2", check=False,
        )  # fmt: skip
        assert second.code == 4 and f"pid {daemon.child.pid}" in second.err
        quiet(bare)


def test_what_breaks_a_turn_ends_no_daemon(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    log = bare.dir / "own.log"
    break_it = (
        "import sqlite3; from reconciler.keeper import Keeper; whole = Keeper.read_again\n"
        "def once(self, files):\n"
        "    Keeper.read_again = whole\n"
        "    raise sqlite3.OperationalError('disk I/O error')\n"
        "Keeper.read_again = once\n"
    )
    words = ["--private-mounts", "--resync", "3600", *bare.options]
    with log.open("w") as file:
        child = subprocess.Popen(
            bare.enter(sys.executable, "-c", break_it + ENTRY, "runcnet-reconcile", *words),
            stdout=file, stderr=file, cwd=ROOT,
        )  # fmt: skip
    try:
        wait_for(lambda: "watching" in log.read_text(), 30.0)
        bare.write("z.yaml", EXTRA)
        wait_for(lambda: stands(bare, "extra"), 20.0, log.read_text())
        assert log.read_text().count("disk I/O error") == 1
        child.terminate()
        assert child.wait(10) == 0
    finally:
        child.kill()
        child.wait(10)


def test_looks_at_everything_take_their_small_part_of_the_time_from_the_first_on(
    bare: PrivateHost,
) -> None:
    bare.write("a.yaml", "networks: {far: {type: routed, subnets: 10.2.0.0/16}}\n")
    bare.write("b.yaml", "containers: {many: {replicas: 150, interfaces: far}}\n")
    bare.reconcile()
    with bare.daemon("--resync", "0.1", "--metrics", str(bare.dir / "m.sock")):
        begun = time.time()
        wait_for(lambda: time.time() > begun + 1.0)
        # A look takes some 10 ms at least: every 2 s, then.
        assert passes(bare) == 1


def test_a_run_beside_it_is_waited_for_and_nothing_is_done_twice(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    with bare.daemon("--resync", "3600") as daemon:
        for number in range(5):
            bare.write(
                f"z{number}.yaml", f"containers: {{x{number}: {{interfaces: runc0}}}}\n", age_s=0
            )
            bare.reconcile()
        quiet(bare)
        made = daemon.log
        for number in range(5):
            assert made.count(f"+ container x{number}") <= 1
        bare.sh("ip -n x0 link set eth0 down; ip -n x4 link set eth0 down")
        wait_for(_up(bare, "eth0", "x0"))
        wait_for(_up(bare, "eth0", "x4"))


@pytest.mark.parametrize("lost", ["state", "run"])
def test_lost_books_are_begun_anew(bare: PrivateHost, lost: str) -> None:
    bare.write("a.yaml", BASE)
    addresses = None
    with bare.daemon("--resync", "3600"):
        addresses = bare.addresses("eth0", "a"), bare.addresses("eth0", "b")
        if lost == "state":
            bare.sh(f"rm {bare.state}/*.db*")
        else:
            bare.sh("rm /run/runcnet/*.db*")
        bare.sh("ip -n a link set eth0 down")
        wait_for(_up(bare, "eth0", "a"))
        bare.write("z.yaml", EXTRA)
        wait_for(lambda: stands(bare, "extra"))
        assert (bare.addresses("eth0", "a"), bare.addresses("eth0", "b")) == addresses
        quiet(bare)


def test_hangup_looks_at_everything(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    with bare.daemon("--resync", "3600") as daemon:
        bare.sh("ip netns exec a sysctl -qw net.ipv4.ping_group_range='1 0'")
        daemon.child.send_signal(signal.SIGHUP)
        wait_for(_sysctl(bare, "net.ipv4.ping_group_range", "0 2147483647", "ip netns exec a"), 5.0)


def test_without_inotify_it_polls_and_says_so(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    path = Path("/proc/sys/fs/inotify/max_user_instances")
    if not path.exists():
        pytest.skip("the kernel has no such limit")
    # In a user namespace of its own the limit is its own, too; root in it has all that is needed.
    script = 'echo 0 > /proc/sys/user/max_inotify_instances; exec "$@"'
    words = ["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c", script, "sh"]
    inner = 'mount -t tmpfs none /run; exec "$@"'
    command = bare.command("runcnet-reconcile", "--private-mounts", *bare.options)
    log = bare.dir / "poll.log"
    with log.open("w") as file:
        child = subprocess.Popen(
            [*words, "sh", "-c", inner, "sh", *command],
            stdout=file,
            stderr=file,
            env=dict(os.environ),
        )
    try:
        wait_for(lambda: "watching" in log.read_text(), 30.0, log.read_text())
        assert "no inotify" in log.read_text()
        bare.write("z.yaml", EXTRA)
        wait_for(lambda: "container extra" in log.read_text(), 10.0)
    finally:
        child.terminate()
        child.wait(10)


def test_the_log_has_a_line_a_change_and_none_for_a_pass_without_one(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    words = ["--resync", "0.2", "--log-format", "json", "--metrics", str(bare.dir / "m.sock")]
    with bare.daemon(*words) as daemon:
        before = daemon.log
        look_again(bare, daemon)
        look_again(bare, daemon)
        assert daemon.log == before
        for line in before.splitlines():
            assert line.startswith('{"time": ') and '"message": ' in line
