"""`runcnet try`: what is confirmed stays; all else is taken back, whoever was cut off or killed."""

import contextlib
import json
import os
import pty
import shlex
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.host import ROOT, SERVER, PrivateHost, wait_for

NET = "networks: {n: {subnets: 10.5.0.0/24}}\n"
BASE = NET + "containers: {a: {interfaces: n}, b: {interfaces: n}}\n"
MORE = "networks: {m: {subnets: 10.6.0.0/24}}\ncontainers: {c: {interfaces: m}}\n"
DOUBTED = "was taken back by `runcnet try`"


def deadline(host: PrivateHost) -> float | None:
    """When the trial in progress ends; None: nobody waits for an answer."""
    if not (host.state / "state.db").exists():
        return None
    with contextlib.closing(sqlite3.connect(host.state / "state.db")) as db:
        row = db.execute("SELECT deadline FROM trial").fetchone()
    return row[0] if row else None


def begin(host: PrivateHost, *words: str, timeout: str = "30") -> subprocess.Popen[str]:
    """A trial without a terminal, waiting for its answer."""
    child = host.start(
        *host.command("runcnet", "try", *host.options, "--json", "--timeout", timeout, *words)
    )
    wait_for(lambda: deadline(host) or child.poll() is not None, what="the trial to wait")
    return child


def end(child: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """What it printed: the report of its pass, and how it ended."""
    assert child.stdout
    out = child.stdout.read()
    assert "Traceback" not in out, out
    child.wait(30)
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


class Shell:
    """`runcnet try` on a terminal of its own."""

    def __init__(self, host: PrivateHost, *words: str) -> None:
        self.master, slave = pty.openpty()
        command = host.command("runcnet", "try", *host.options, *words)
        self.child = subprocess.Popen(
            ["setsid", "--ctty", *host.enter(*command)], stdin=slave, stdout=slave, stderr=slave,
            cwd=ROOT,
        )  # fmt: skip
        os.close(slave)
        os.set_blocking(self.master, False)
        self.seen = ""

    def shows(self, text: str) -> bool:
        with contextlib.suppress(BlockingIOError, OSError):
            self.seen += os.read(self.master, 65536).decode()
        return text in self.seen

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def hang_up(self) -> None:
        if self.master >= 0:
            os.close(self.master)
        self.master = -1

    def wait(self) -> int:
        def over() -> bool:
            self.shows("")
            return self.child.poll() is not None

        wait_for(over, what="the trial to end")
        self.shows("")
        return self.child.wait()


@contextlib.contextmanager
def shell(host: PrivateHost, *words: str) -> Iterator[Shell]:
    one = Shell(host, *words)
    try:
        yield one
    finally:
        one.hang_up()
        if one.child.poll() is None:
            one.child.kill()
        one.child.wait(10)


def prepared(host: PrivateHost) -> dict[str, Any]:
    """`a` and `b` stand, and a file with `c` waits; what stands."""
    host.write("a.yaml", BASE)
    host.reconcile()
    before = host.ours()
    host.write("c.yaml", MORE)
    return before


@pytest.mark.parametrize("key", ["\n", "what?\nyes\n"])
def test_what_is_confirmed_on_the_terminal_stays(bare: PrivateHost, key: str) -> None:
    prepared(bare)
    with shell(bare, "--timeout", "30") as one:
        wait_for(lambda: one.shows("Enter or y keeps it"), what="the question")
        assert bare.ours()["netns"] == ["a", "b", "c"]
        one.type(key)
        assert one.wait() == 0, one.seen
        assert one.seen.rstrip().endswith("confirmed")
    assert bare.ours()["netns"] == ["a", "b", "c"]
    assert bare.reconcile().changes == []


@pytest.mark.parametrize("way", ["n", "Ctrl-C", "SIGHUP", "SIGTERM", "a hang-up"])
def test_every_other_answer_takes_it_back_at_once(bare: PrivateHost, way: str) -> None:
    before = prepared(bare)
    with shell(bare, "--timeout", "60") as one:
        wait_for(lambda: one.shows("Enter or y keeps it"), what="the question")
        if way == "n":
            one.type("what?\nn\n")
        elif way == "Ctrl-C":
            one.type("\x03")
        elif way == "a hang-up":
            one.hang_up()
        else:
            os.kill(one.child.pid, signal.Signals[way])
            # Whoever is impatient does not break off the take-back.
            with contextlib.suppress(ProcessLookupError):
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    os.kill(one.child.pid, number)
        wait_for(lambda: bare.ours() == before, what="the take-back")
        if way != "a hang-up":
            assert one.wait() == 1, one.seen
            assert "taken back: it" in one.seen, one.seen
    run = bare.reconcile(check=False)
    assert run.code == 2 and run.changes == [] and DOUBTED in run.err
    assert deadline(bare) is None


def test_a_new_file_is_taken_back_in_time_and_stays_doubted(host: PrivateHost) -> None:
    before = prepared(host)
    child = begin(host, timeout="2")
    assert host.ping("c", SERVER)
    tried, outcome = end(child)
    assert child.returncode == 1 and tried["converged"] is True
    assert (outcome["outcome"], outcome["reason"]) == ("taken back", "it was not confirmed in time")
    assert outcome["taken_back"]["removed"] == 2 and outcome["taken_back"]["held_back"] == []
    assert host.ours() == before
    for _ in range(2):
        run = host.reconcile(check=False)
        assert run.code == 2 and run.changes == []
        assert run.report["rejected"][0]["message"].startswith(DOUBTED)
    assert "c.yaml:1:1: was taken back" in host.runcnet("plan", check=False).err


def test_the_very_first_file_is_taken_back_to_nothing(host: PrivateHost) -> None:
    host.write("a.yaml", "# nothing yet\n")
    host.reconcile()
    host.write("b.yaml", BASE)
    assert end(begin(host, timeout="0.5"))[1]["outcome"] == "taken back"
    ours = host.ours()
    assert (ours["links"], ours["netns"]) == ([], [])
    assert not [rule for rule in ours["rules"] if "10.5.0" in rule or "runcnet:n" in rule]


def test_an_address_comes_back_with_its_mac_and_its_traffic(bare: PrivateHost) -> None:
    text = (
        NET
        + "containers: {a: {interfaces: {network: n, addresses: 10.5.0.7}}, b: {interfaces: n}}\n"
    )
    bare.write("a.yaml", text)
    bare.reconcile()
    mac = bare.link("eth0", "a")["address"]
    assert bare.ping("b", "10.5.0.7")
    with bare.process("a"):
        bare.write("a.yaml", text.replace("10.5.0.7", "10.5.0.8"))
        child = begin(bare)
        assert bare.addresses("eth0", "a") == ["10.5.0.8/24"]
        assert not bare.ping("b", "10.5.0.7", "-W1") and bare.ping("b", "10.5.0.8")
        bare.runcnet("try", "--take-back")
        end(child)
        assert child.returncode == 1
        assert bare.addresses("eth0", "a") == ["10.5.0.7/24"]
        assert bare.link("eth0", "a")["address"] == mac
        assert bare.ping("b", "10.5.0.7")


def test_a_deleted_file_still_counts_and_its_containers_keep_their_leases(
    bare: PrivateHost,
) -> None:
    bare.write("a.yaml", NET + "containers: {b: {interfaces: n}}\n")
    bare.write("b.yaml", "containers: {a: {interfaces: n}, z: {interfaces: n}}\n")
    bare.reconcile()
    held = {
        name: (bare.addresses("eth0", name), bare.link("eth0", name)["address"]) for name in "abz"
    }
    bare.drop("b.yaml")
    child = begin(bare, timeout="0.8")
    assert bare.ours()["netns"] == ["b"]
    end(child)
    assert held == {
        name: (bare.addresses("eth0", name), bare.link("eth0", name)["address"]) for name in "abz"
    }
    run = bare.reconcile(check=False)
    assert run.code == 2 and run.changes == []
    assert run.report["rejected"][0]["message"].startswith("its removal was taken back")
    # Put back, and deleted again: that is a new decision.
    bare.write("b.yaml", "containers: {a: {interfaces: n}, z: {interfaces: n}}\n")
    assert bare.reconcile().changes == []
    bare.drop("b.yaml")
    bare.reconcile()
    assert bare.ours()["netns"] == ["b"]


def test_killed_the_next_pass_takes_it_back(bare: PrivateHost) -> None:
    before = prepared(bare)
    child = begin(bare)
    # While it lives, every pass goes by what is tried.
    bare.sh("ip link del dev n")
    assert bare.reconcile().code == 0 and bare.ours()["netns"] == ["a", "b", "c"]
    os.kill(child.pid, signal.SIGKILL)
    seen = bare.runcnet("plan", "--json", check=False)
    assert {o["action"] for o in seen.report["operations"]} == {"remove"}
    assert bare.ours()["netns"] == ["a", "b", "c"]
    run = bare.reconcile(check=False)
    assert run.code == 2 and bare.ours() == before
    assert f"pid {child.pid}, a `runcnet try`, ended" in run.report["notes"][0]
    assert bare.reconcile(check=False).report["notes"] == []


def test_killed_at_work_the_next_pass_takes_it_back(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    bare.reconcile()
    before = bare.ours()
    bare.write("w.yaml", "containers: {w: {replicas: 200, interfaces: n}}\n")
    child = bare.start(*bare.command("runcnet", "try", *bare.options, "--json"))
    wait_for(lambda: len(bare.ours()["netns"]) > 2, what="the first of them")
    os.kill(child.pid, signal.SIGKILL)
    child.wait(10)
    # What a trial made is no surprise, however much it is, whatever else is in motion.
    future = time.time() + 3600
    os.utime(bare.config / "a.yaml", (future, future))
    run = bare.reconcile("--once", "--max-removals", "0", check=False)
    assert run.code == 2 and run.report["held_back"] == []
    wait_for(lambda: bare.ours() == before, what="dying links to go")


@pytest.mark.parametrize("answer", ["--confirm", "--take-back"])
def test_another_process_answers(bare: PrivateHost, answer: str) -> None:
    before = prepared(bare)
    assert "there is no trial" in bare.runcnet("try", answer, check=False).err
    child = begin(bare)
    said = bare.runcnet("try", answer)
    assert str(child.pid) in said.out and child.wait(10) is not None
    if answer == "--confirm":
        assert child.returncode == 0 and bare.ours()["netns"] == ["a", "b", "c"]
        assert bare.reconcile().changes == []
    else:
        assert child.returncode == 1 and bare.ours() == before


def test_a_container_in_use_is_held_back_until_it_is_idle(bare: PrivateHost) -> None:
    before = prepared(bare)
    child = begin(bare)
    with bare.process("c") as living:
        bare.runcnet("try", "--take-back")
        outcome = end(child)[1]
        assert child.returncode == 1
        held = {h["object"]: h["reason"] for h in outcome["taken_back"]["held_back"]}
        assert f"in use by pid {living.pid}" in held["container/c"] and "network/m" in held
        assert bare.ping("c", "10.6.0.1")
    run = bare.reconcile("--once", "--max-removals", "0", check=False)
    assert run.code == 2 and run.report["held_back"] == []
    assert bare.ours() == before


def test_what_is_not_the_trials_own_is_held_back_as_ever(bare: PrivateHost) -> None:
    names = ", ".join(f"x{i}: {{interfaces: n}}" for i in range(8))
    bare.write("a.yaml", NET + f"containers: {{a: {{interfaces: n}}, {names}}}\n")
    bare.reconcile()
    bare.write("a.yaml", NET + "containers: {a: {interfaces: n}}\n")
    assert bare.reconcile(check=False).report["held_back"]
    bare.write("c.yaml", MORE)
    outcome = end(begin(bare, timeout="0.5"))[1]
    assert outcome["taken_back"]["removed"] == 2
    assert "x0" in bare.ours()["netns"] and "c" not in bare.ours()["netns"]


def test_a_rejected_file_is_no_rehearsal(bare: PrivateHost) -> None:
    before = prepared(bare)
    bare.write("d.yaml", "networks: {d: {subnets")
    child = begin(bare)
    tried, outcome = end(child)
    assert child.returncode == 2 and outcome["outcome"] == "rejected"
    assert tried["rejected"] and all(o["ok"] is None for o in tried["operations"])
    assert bare.ours() == before
    bare.drop("d.yaml")
    # Nothing of it was remembered: all of it is still to be tried.
    end(begin(bare, timeout="0.5"))
    assert bare.ours() == before


def test_one_trial_at_a_time_and_nothing_to_try(bare: PrivateHost) -> None:
    prepared(bare)
    child = begin(bare)
    second = bare.runcnet("try", check=False)
    assert second.code == 1 and f"a trial of pid {child.pid} is open" in second.err
    bare.runcnet("try", "--confirm")
    assert end(child)[1]["outcome"] == "confirmed"
    bare.write("c.yaml", MORE + "# a word\n")
    for _ in range(2):
        none = bare.runcnet("try")
        assert none.out.endswith("nothing to try\n")
    bare.sh("ip link del dev m")
    assert "nothing to try" in bare.runcnet("try").out and bare.link("m")


@pytest.mark.parametrize("way", ["an edit", "apply", "try", "its removal"])
def test_how_a_doubted_file_is_accepted(bare: PrivateHost, way: str) -> None:
    before = prepared(bare)
    end(begin(bare, timeout="0.3"))
    if way == "an edit":
        bare.write("c.yaml", MORE.replace("10.6", "10.7"))
        bare.reconcile()
        assert bare.addresses("eth0", "c") == ["10.7.0.2/24"]
        bare.write("c.yaml", MORE)  # the doubt is over
    elif way == "apply":
        bare.runcnet("apply")
    elif way == "try":
        child = begin(bare)
        bare.runcnet("try", "--confirm")
        assert child.wait(10) == 0
    else:
        bare.drop("c.yaml")
        assert bare.reconcile().changes == []
        assert bare.ours() == before
        bare.write("c.yaml", MORE)
    bare.reconcile()
    assert bare.addresses("eth0", "c")[0].startswith("10.6.0.")
    assert bare.reconcile().changes == []


def test_a_doubted_file_that_is_edited_away_and_a_vanished_folder(bare: PrivateHost) -> None:
    before = prepared(bare)
    end(begin(bare, timeout="0.3"))
    aside = bare.dir / "aside"
    bare.config.rename(aside)
    run = bare.reconcile(check=False)
    assert run.report["removed"] == 0 and bare.ours() == before
    aside.rename(bare.config)
    assert bare.reconcile(check=False).code == 2 and bare.ours() == before
    # With the doubted file alone left, what was declared beside it is not removed.
    bare.write("a.yaml", "")
    run = bare.reconcile("--once", "--max-removals", "all", check=False)
    assert run.report["removed"] == 0 and bare.ours() == before


def test_what_is_edited_meanwhile_is_part_of_the_trial(bare: PrivateHost) -> None:
    before = prepared(bare)
    child = begin(bare)
    bare.write("c.yaml", MORE.replace("c:", "d:"))
    bare.write("e.yaml", "containers: {e: {interfaces: m}}\n")
    bare.reconcile()
    assert bare.ours()["netns"] == ["a", "b", "d", "e"]
    bare.write("f.yaml", "containers: {f: {interfaces: n}}\n")  # which no pass has seen
    bare.runcnet("try", "--take-back")
    assert end(child)[1]["outcome"] == "taken back"
    assert bare.ours() == before
    run = bare.reconcile(check=False)
    assert {os.path.basename(r["file"]) for r in run.report["rejected"]} == {
        "c.yaml", "e.yaml", "f.yaml",
    }  # fmt: skip


def test_what_is_confirmed_covers_what_was_edited_meanwhile(bare: PrivateHost) -> None:
    prepared(bare)
    child = begin(bare)
    bare.write("c.yaml", MORE.replace("c:", "d:"))
    bare.runcnet("try", "--confirm")
    assert end(child)[1]["outcome"] == "confirmed"
    assert bare.ours()["netns"] == ["a", "b", "c"]
    bare.reconcile()
    assert bare.ours()["netns"] == ["a", "b", "d"]


def test_edits_made_by_a_command_in_the_trial(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    bare.reconcile()
    before = bare.ours()
    new = bare.dir / "new.yaml"
    new.write_text(MORE)
    # Another run applies the edit as soon as it is made, as the daemon does.
    once = shlex.join(bare.command("runcnet-reconcile", "--once", *bare.options))
    script = f"cp {new} {bare.config}/c.yaml; {once} >/dev/null"
    child = begin(bare, "--", "sh", "-c", script, timeout="0.5")
    tried, outcome = end(child)
    assert tried["operations"] == [] and outcome["outcome"] == "taken back"
    assert bare.ours() == before
    (bare.config / "c.yaml").unlink()
    bare.age(5)
    failed = begin(bare, "--", "sh", "-c", f"cp {new} {bare.config}/c.yaml; exit 7")
    assert end(failed)[0]["reason"] == "sh ended with 7" and bare.ours() == before
    (bare.config / "c.yaml").unlink()
    bare.age(5)
    quiet = begin(bare, "--", "true")
    assert end(quiet)[1]["outcome"] == "nothing to try"


def test_nobody_reads_the_terminal_and_it_is_taken_back_in_time(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    bare.reconcile()
    before = bare.ours()
    bare.write(
        "w.yaml",
        "networks: {w: {subnets: 10.8.0.0/16}}\ncontainers: {w: {replicas: 600, interfaces: w}}\n",
    )
    with shell(bare, "--timeout", "1"):
        wait_for(lambda: len(bare.ours()["netns"]) == 602, 30, what="the trial")
        wait_for(lambda: bare.ours() == before, 30, what="the take-back")


def test_without_a_memory_nothing_is_tried(bare: PrivateHost) -> None:
    before = prepared(bare)
    shutil.rmtree(bare.state)
    for words in ((), ("--", "true")):
        run = bare.runcnet("try", *words, check=False)
        assert run.code == 1 and "is not remembered" in run.err
        assert bare.ours() == before and deadline(bare) is None


def test_a_lost_state_dir_ends_the_trial(bare: PrivateHost) -> None:
    prepared(bare)
    child = begin(bare, timeout="4")
    shutil.rmtree(bare.state)
    bare.reconcile()
    assert end(child)[1]["outcome"] == "ended" and child.returncode == 1
    assert bare.ours()["netns"] == ["a", "b", "c"]
    assert bare.reconcile().changes == []


def test_teardown_ends_the_trial(bare: PrivateHost) -> None:
    prepared(bare)
    child = begin(bare, timeout="1")
    bare.runcnet("teardown", "--yes")
    assert end(child)[1]["outcome"] == "ended" and child.returncode == 1
    assert bare.ours()["netns"] == []
