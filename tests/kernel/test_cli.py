"""The commands: exit codes, JSON, and what people read."""

import fcntl
import json
import os
import sys

from tests.support.host import PrivateHost

TEXT = "networks: {n: {subnets: 10.5.0.0/24}}\ncontainers: {a: {interfaces: n}, b: {mode: none}}\n"


def test_check_and_dry_run_change_nothing_and_say_what_would(bare: PrivateHost) -> None:
    bare.write("a.yaml", TEXT)
    run = bare.reconcile("--check", check=False)
    assert run.code == 3 and run.report["changed"] == 4  # the network, forwarding, two containers
    assert all(o["ok"] is None for o in run.report["operations"])
    assert bare.reconcile("--dry-run").report["converged"] is False
    assert bare.ours()["links"] == [] and not bare.state.exists()
    bare.reconcile()
    run = bare.reconcile("--check")
    assert run.code == 0 and run.report["converged"] is True


def test_the_plan_reads_well(bare: PrivateHost) -> None:
    bare.write("a.yaml", TEXT)
    lines = bare.runcnet("plan").out.splitlines()
    assert "+ container a  eth0 10.5.0.2/24 in n" in lines
    assert "+ container b  lo only" in lines
    assert lines[-1].startswith("would change: 4, removed: 0")


def test_apply_of_one_name_leaves_the_others(bare: PrivateHost) -> None:
    bare.write("a.yaml", TEXT)
    bare.runcnet("apply", "a")
    assert bare.ours()["netns"] == ["a"]
    run = bare.runcnet("apply", "c", check=False)
    assert run.code == 64 and "unknown name 'c'" in run.err


def test_status_is_as_promised(bare: PrivateHost) -> None:
    path = bare.write("a.yaml", TEXT)
    missing = bare.runcnet("status", "--json", check=False)
    assert missing.code == 1
    assert {c["state"] for c in missing.report["containers"]} == {"missing"}
    bare.reconcile()
    with bare.process("a") as child:
        found = bare.runcnet("status", "--json").report
    one = found["containers"][0]
    assert found["version"] == 1 and one["pids"] == [child.pid]
    assert one["interfaces"][0]["addresses"] == ["10.5.0.2/24"]
    assert set(one["interfaces"][0]) == {
        "name",
        "network",
        "host_interface",
        "mac",
        "mtu",
        "addresses",
    }
    assert (
        one["declared"] == f"{path}:2" and one["state"] == "ok" and one["netns"] == "/run/netns/a"
    )
    assert found["networks"][0] == {
        "name": "n", "type": "bridge", "bridge": "n", "subnets": ["10.5.0.0/24"], "members": 1,
        "state": "ok", "since": None, "declared": f"{path}:1", "problems": [],
    }  # fmt: skip
    bare.sh("ip -n a link set eth0 down")
    differs = bare.runcnet("status", "a", "--json", check=False).report["containers"][0]
    assert differs["state"] == "differs" and "set eth0 up" in differs["problems"][0]


def test_wait_show_and_exec(bare: PrivateHost) -> None:
    bare.write("a.yaml", TEXT)
    late = bare.runcnet("wait", "a", "--timeout", "0.2", check=False)
    assert late.code == 1 and "a is missing" in late.err
    bare.reconcile()
    bare.runcnet("wait", "a", "b", "n")
    shown = bare.runcnet("show").out
    assert '"10.5.0.2"' in shown
    assert bare.run(*bare.command("runcnet", "validate", "-"), stdin=shown).code == 0
    assert "10.5.0.2/24" in bare.runcnet("exec", "a", "--", "ip", "-br", "addr").out
    assert bare.runcnet("exec", "a", "--", "sh", "-c", "exit 7", check=False).code == 7
    assert bare.runcnet("exec", "a", "--", "sh", "-c", "kill -9 $$", check=False).code == 137
    assert bare.runcnet("exec", "nobody", "--", "true", check=False).code == 1


def test_exec_shows_the_containers_own_files(bare: PrivateHost) -> None:
    bare.write("a.yaml", TEXT)
    bare.reconcile()
    bare.sh(
        "mount -t tmpfs none /etc/netns 2>/dev/null || { cp -a /etc /run/etc; mount --bind /run/etc /etc; mkdir -p /etc/netns; }"
    )
    bare.sh("mkdir -p /etc/netns/a; echo nameserver 10.5.0.1 > /etc/netns/a/resolv.conf")
    assert bare.runcnet("exec", "a", "--", "cat", "/etc/resolv.conf").out == "nameserver 10.5.0.1\n"


def test_validate_looks_references_up(bare: PrivateHost) -> None:
    bare.write("a.yaml", "networks: {n: {subnets: 10.5.0.0/24}}\n")
    loose = bare.dir / "new.txt"
    loose.write_text("containers: {c: {interfaces: n}}\n")
    assert bare.runcnet("validate", str(loose)).code == 0
    loose.write_text("containers: {c: {interfaces: m}}\n")
    run = bare.runcnet("validate", str(loose), check=False)
    assert (
        run.code == 2 and f"{loose}:1:30: containers.c.interfaces: unknown network 'm'" in run.err
    )


def test_teardown_takes_all_that_is_owned_and_nothing_else(host: PrivateHost) -> None:
    host.write("a.yaml", TEXT)
    host.reconcile()
    host.sh("ip link add mine type bridge; iptables-legacy -N MINE")
    asked = host.runcnet("teardown", check=False)
    assert asked.code == 1 and len(host.ours()["netns"]) == 2
    with host.process("a"):
        host.runcnet("teardown", "--yes")
        assert host.ours() == {"links": [], "netns": [], "rules": []}
    assert host.link("mine")["ifname"] == "mine"
    assert "MINE" in host.run("iptables-legacy", "-S").out


def test_a_lock_that_is_held_is_waited_for_and_named(bare: PrivateHost) -> None:
    bare.write("a.yaml", TEXT)
    bare.reconcile()
    bare.run("touch", "/run/runcnet/lock")
    descriptor = os.open(bare.state / "lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        run = bare.reconcile("--once", "--lock-timeout", "0.2", check=False)
        assert run.code == 4 and "is held by another run" in run.err
        assert bare.reconcile("--dry-run").code == 0
    finally:
        os.close(descriptor)
    assert bare.reconcile().code == 0


def test_wrong_command_lines_are_64(bare: PrivateHost) -> None:
    for words in (["--resync", "0"], ["--once", "--firewall", "pf"], ["--once", "--max-removals", "x"], ["--what"]):  # fmt: skip
        run = bare.run(*bare.command("runcnet-reconcile", *words), check=False)
        assert run.code == 64 and run.err and "Traceback" not in run.err
    for words in ([], ["what"], ["add", "x"], ["hook", "start"], ["bundle"]):
        assert bare.run(*bare.command("runcnet", *words), check=False).code == 64


def test_without_privileges_one_sentence(bare: PrivateHost) -> None:
    run = bare.run(
        "setpriv", "--bounding-set=-all", "--inh-caps=-all", *bare.command("runcnet-reconcile", "--once"),
        check=False,
    )  # fmt: skip
    assert run.code == 1
    assert run.err.startswith("this needs CAP_NET_ADMIN and CAP_SYS_ADMIN: run it as root")
    assert run.err.count("\n") == 1


def test_json_logs_and_quiet(bare: PrivateHost) -> None:
    bare.write("a.yaml", "x: [")
    words = bare.command("runcnet-reconcile", "--once", "--log-format", "json", *bare.options)
    run = bare.run(*words, check=False)
    assert json.loads(run.err.splitlines()[0])["level"] == "error"
    bare.write("a.yaml", TEXT)
    assert bare.run(*bare.command("runcnet-reconcile", "--once", "-q", *bare.options)).out == ""


def test_nothing_to_do_imports_nothing_heavy(bare: PrivateHost) -> None:
    bare.write("a.yaml", TEXT)
    bare.reconcile()
    code = (
        "import sys; from reconciler.cli import reconcile_main; reconcile_main(); "
        "print(sorted({'iptc', 'watchdog', 'rich', 'asyncio'} & set(sys.modules)), file=sys.stderr)"
    )
    done = bare.run(sys.executable, "-c", code, "--once", "-q", *bare.options)
    assert done.err.strip() == "[]"


def test_files_that_others_can_write_are_refused_with_the_command_that_mends_it(
    bare: PrivateHost,
) -> None:
    path = bare.write("a.yaml", TEXT)
    path.chmod(0o666)
    run = bare.reconcile(check=False)
    assert run.code == 2 and run.report["rejected"][0]["message"].endswith(f"chmod go-w {path}")
    path.chmod(0o644)
    os.chown(path, 12345, 0)
    assert "chown root" in bare.reconcile(check=False).report["rejected"][0]["message"]
    os.chown(path, 0, 0)
    os.mkfifo(bare.config / "fifo.yaml")
    (bare.config / "ignored.yaml~").write_text("x: [")
    (bare.config / ".hidden.yaml").write_text("x: [")
    (bare.config / "folder.yaml").mkdir()
    run = bare.reconcile(check=False)
    assert [r["file"] for r in run.report["rejected"]] == [str(bare.config / "fifo.yaml")]
