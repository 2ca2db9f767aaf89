"""The course of a soak: steps drawn from a seed, and quiet moments at which all must be as declared."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.soak.declared import LeaseKey
from tests.soak.edits import ANCHOR, Editor
from tests.soak.guests import Guests
from tests.soak.keeper import Served, Weight
from tests.soak.oracle import FOREIGN, FOREIGN_INSIDE, FOREIGN_RULES, GUARD, Oracle, foreign
from tests.soak.sabotage import Saboteur
from tests.support.host import PrivateHost, wait_for

ROUND = 50
"""Steps between two quiet moments."""
SETTLE_S = 90.0
"""How long it may take until nothing differs: a whole pass (60 s) is the safety net."""
MORE_THREADS = 1
"""The folder that links lead to is watched while there are such links."""
PROMPT_S = 25.0
"""What is later than this was not heard, and not found by the check every 10 s: it is reported."""
LOOKS_S = 20.0
"""Dying links and namespaces are not gone at once."""
MORE_FILES = 4
MORE_RSS_KIB = 40 * 1024
INHABITANTS = 8


class Soaked(NamedTuple):
    """How it went."""

    steps: int
    quiet: int
    lives: int
    findings: list[str]
    late: list[str]
    """What only a whole pass has found."""
    weights: list[Weight]


class WrongError(AssertionError):
    """Something is not as it must be, with the step after which that was seen."""


class Course:
    """One soak in one private host."""

    def __init__(
        self,
        host: PrivateHost,
        *,
        seed: int,
        containers: int,
        say: Callable[[str], None],
    ) -> None:
        self.host = host
        self.say = say
        self.rng = random.Random(seed)
        self.editor = Editor(self.rng, host.config, containers)
        self.saboteur = Saboteur(self.rng, self.editor.declared, firewall=host.firewall)
        self.oracle = Oracle(host, self.editor.declared)
        self.served = Served(host)
        self.guests = Guests(host, self.rng, self.editor.declared)
        self.inhabitants: list[subprocess.Popen[bytes]] = []
        self.anchor: subprocess.Popen[bytes] | None = None
        self.running = True
        """Whether a daemon is meant to run."""
        self.lost: set[str] = set()
        self.unseen: set[LeaseKey] = set()
        """Leases that the kernel did not show when the state was lost: they cannot be read back."""
        self.ended = False
        """Whether a daemon has ended since the last quiet moment."""
        self.late: list[str] = []
        self.weights: list[Weight] = []
        self.step = 0
        self.quiets = 0

    # -- from the first to the last -----------------------------------------------------------------

    def run(self, *, seconds: float, steps: int | None = None) -> Soaked:
        """Go on for so long, or for so many steps. Raises WrongError."""
        deadline = time.monotonic() + seconds
        try:
            self._begin()
            while self.step < steps if steps is not None else time.monotonic() < deadline:
                self.step += 1
                self.say(f"{self.step}: {self._take()}")
                self._look_in()
                if self.step % ROUND == 0:
                    self._quiet()
            self._quiet()
            return Soaked(
                self.step, self.quiets, self.served.lives, [], self.late, self.weights
            )  # fmt: skip
        finally:
            self.served.close()
            self.guests.close()
            anchor = [self.anchor] if self.anchor else []
            for child in [*self.inhabitants, *anchor]:
                child.kill()
                child.wait(10)

    def _begin(self) -> None:
        self.editor.write_all()
        self.host.sh(FOREIGN)
        self.host.sh(FOREIGN_RULES[self.host.firewall])
        self.served.start()
        self.served.wait_until_it_watches()
        self.host.sh(FOREIGN_INSIDE)
        self._live_in(ANCHOR)
        anchor = self.anchor = self.inhabitants.pop()
        wait_for(lambda: self._space(anchor.pid) == self._inode(ANCHOR), what="the anchor")
        self.theirs = foreign(self.host)
        self._quiet()

    def _space(self, pid: int) -> int:
        return os.stat(f"/proc/{pid}/ns/net").st_ino

    def _inode(self, netns: str) -> int:
        return int(self.host.run("stat", "-Lc%i", f"/run/netns/{netns}").out)

    def _look_in(self) -> None:
        try:
            self.served.up()
            text = self.served.said()
        except AssertionError as error:
            raise WrongError(f"step {self.step}: {error}\n{self.served.said()[-3000:]}") from error
        if "Traceback" in text:
            raise WrongError(f"step {self.step}: {text[text.index('Traceback') - 500 :][:5000]}")

    # -- a step ---------------------------------------------------------------------------------------

    def _take(self) -> str:
        kinds: list[tuple[int, Callable[[], str]]] = [
            (30, self.editor.draw), (4, self.editor.spoil), (1, self.editor.empty), (1, self.editor.anew),
            (40, self._sabotage), (6, self._someone_comes), (5, self._someone_leaves),
            (4, self._kill), (3, self._stop), (6, self._start), (2, self._hang_up), (3, self._once),
            (2, self._apply), (2, self._status), (2, self._lose),
            (6, self.guests.comes), (4, self.guests.leaves),
        ]  # fmt: skip
        act = self.rng.choices([act for _, act in kinds], [weight for weight, _ in kinds])[0]
        pause_s = self.rng.choices([0.0, 0.1, 0.5, 1.5], [6, 4, 2, 1])[0] * self.rng.random()
        text = act()
        time.sleep(pause_s)  # what comes next comes at any moment of the daemon's work
        return text

    def _sabotage(self) -> str:
        text, script = self.saboteur.draw(may_unmark="run" not in self.lost)
        self.host.sh(script, check=False)
        return text

    def _live_in(self, netns: str) -> None:
        words = self.host.enter("ip", "netns", "exec", netns, "sleep", "infinity")
        quiet = subprocess.DEVNULL
        self.inhabitants.append(
            subprocess.Popen(words, stdin=quiet, stdout=quiet, stderr=quiet)
        )  # fmt: skip

    def _someone_comes(self) -> str:
        if len(self.inhabitants) >= INHABITANTS:
            return self._someone_leaves()
        member = self.rng.choice(list(self.editor.declared.members()))
        self._live_in(member.netns)
        return f"a process in {member.name}"

    def _someone_leaves(self) -> str:
        if not self.inhabitants:
            return "nobody to leave"
        child = self.inhabitants.pop(self.rng.randrange(len(self.inhabitants)))
        child.kill()
        child.wait(10)
        return "a process ends"

    def _kill(self) -> str:
        return self._end(signal.SIGKILL)

    def _stop(self) -> str:
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> str:
        self.running = self.rng.random() < 0.6
        self.served.end(number)
        self.ended = True
        if self.running:
            self.served.start()
        return f"signal {number}, {'and again' if self.running else 'and nobody serves'}"

    def _start(self) -> str:
        if self.running:
            return "the daemon runs"
        self.running = True
        self.served.start()
        return "the daemon is started"

    def _hang_up(self) -> str:
        if not self.running:
            return "nobody to hear SIGHUP"
        if "watching" in self.served.said().rpartition("--- life")[2]:
            assert self.served.child is not None  # it is meant to run
            self.served.child.send_signal(signal.SIGHUP)
        return "SIGHUP"

    def _once(self) -> str:
        code = self.host.reconcile("--once", check=False).code
        return f"--once beside: {code}"

    def _apply(self) -> str:
        name = self.rng.choice([m.name for m in self.editor.declared.members()])
        code = self.host.runcnet("apply", name, check=False).code
        return f"apply {name}: {code}"

    def _status(self) -> str:
        return f"status: {self.host.runcnet('status', '--json', check=False).code}"

    def _lose(self) -> str:
        which = self.rng.choice(["state", "run"])
        if which == "run" and self.saboteur.unmarked:
            return "the run dir stays: some mark is lost already"
        self.lost.add(which)
        if which == "run":
            self.host.sh("rm -f /run/runcnet/record.db*")
        else:
            self.unseen |= self.oracle.unseen()
            self.host.sh(f"rm -f {self.host.state}/state.db*")
        return f"the {which} dir's database is lost"

    # -- a quiet moment ---------------------------------------------------------------------------

    def _quiet(self) -> None:
        began = time.monotonic()
        leases, inodes = dict(self.oracle.leases), dict(self.oracle.inodes)
        while self.inhabitants:
            self.inhabitants[-1].kill()
            self.inhabitants.pop().wait(10)
        self.guests.close()
        self.editor.write_all()
        for script in self.saboteur.mends:
            self.host.sh(script, check=False)
        if not self.running:
            self.running = True
            self.served.start()
        self.served.wait_until_it_watches()
        self._settle(began)
        settled_s = time.monotonic() - began
        findings = self._findings()
        findings += self._stood_through(leases, inodes)
        theirs = foreign(self.host)
        if theirs != self.theirs:
            was, now = self.theirs.splitlines(), theirs.splitlines()
            findings += [f"not ours, and gone: {line}" for line in was if line not in now]
            findings += [f"not ours, and new: {line}" for line in now if line not in was]
        findings += self._weigh()
        self.quiets += 1
        weight = self.weights[-1]
        self.say(
            f"   quiet after {settled_s:.1f} s: {len(self.oracle.inodes)} containers, "
            f"{weight.files.total()} descriptors, {weight.rss_kib} KiB"
        )
        if findings:
            lines = "\n".join(findings)
            raise WrongError(f"step {self.step}: {lines}\n{self.served.said()[-4000:]}")
        self.editor.excused.__init__()  # type: ignore[misc]
        self.saboteur.quiet()
        self.lost.clear()
        self.unseen.clear()
        self.ended = False

    def _settle(self, began: float) -> None:
        """Until nothing differs by the program's own judgement, which the oracle does not trust."""
        late = False
        while True:
            self._look_in()
            run = self.host.reconcile("--check", check=False)
            if run.code == 0:
                return
            waited_s = time.monotonic() - began
            if waited_s > PROMPT_S and not late:
                late = True
                self.late.append(f"step {self.step}: {self._left(run.report)}")
                self.say(f"   late: {self.late[-1]}")
            if waited_s > SETTLE_S:
                raise WrongError(
                    f"step {self.step}: after {waited_s:.0f} s there is still {self._left(run.report)}\n"
                    f"{self.served.said()[-4000:]}"
                )
            time.sleep(0.5)  # `--check` costs as much as what it waits for

    @staticmethod
    def _left(report: dict) -> str:  # type: ignore[type-arg]
        keys = ("operations", "held_back", "rejected", "problems")
        return "; ".join(f"{key}: {report[key]}" for key in keys if report.get(key))

    def _findings(self) -> list[str]:
        deadline = time.monotonic() + LOOKS_S
        while True:
            found = list(self.oracle.findings())
            findings = [f for f in found if not self._forgotten(f)]
            if not findings or time.monotonic() > deadline:
                break
        if len(found) > len(findings):
            # Turned on again it is known, and guarded.
            self.host.sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
        return findings

    def _forgotten(self, finding: str) -> bool:
        """Whether nobody can know that it was the program that turned forwarding on: the state says so,
        the guard, and a daemon that lived through the loss of both."""
        nobody = "state" in self.lost and self.saboteur.unguarded and self.ended
        return nobody and finding.endswith("is missing") and any(g in finding for g in GUARD)

    def _stood_through(self, leases: dict, inodes: dict) -> list[str]:  # type: ignore[type-arg]
        """Nobody has another address or namespace without a reason."""
        excused, hit = self.editor.excused, self.saboteur
        found = [
            f"the address of {key} was {old} and is {self.oracle.leases[key]}"
            for key, old in leases.items()
            if self.oracle.leases.get(key, old) != old
            and key not in excused.leases
            and not ("state" in self.lost and key.container in hit.wounded | excused.spaces)
            and key not in self.unseen
        ]
        other = [name for name, old in inodes.items() if self.oracle.inodes.get(name, old) != old]
        reasons = (excused.spaces | hit.killed) - {ANCHOR}
        return found + [f"{name} has another namespace" for name in other if name not in reasons]

    def _weigh(self) -> list[str]:
        weight = self.served.weight()
        self.weights.append(weight)
        first = self.weights[0]
        findings = []
        if weight.files.total() > first.files.total() + MORE_FILES:
            findings.append(f"descriptors: {weight.files - first.files} more")
        if weight.threads > first.threads + MORE_THREADS:
            findings.append(f"threads: {weight.threads}, first {first.threads}")
        if weight.rss_kib > first.rss_kib + MORE_RSS_KIB:
            findings.append(f"memory: {weight.rss_kib} KiB, first {first.rss_kib}")
        if weight.mounts != first.mounts:
            findings.append(f"mounts: {weight.mounts}, first {first.mounts}")
        members = len(list(self.editor.declared.members()))
        # Those of the internet and of a stranger are there, too.
        if weight.namespaces != members + 2:
            findings.append(f"{weight.namespaces} mounts of namespaces for {members} containers")
        if weight.children:
            findings.append(f"children: {weight.children}")
        with contextlib.suppress(ProcessLookupError):
            assert self.anchor is not None  # `_begin` has put it there
            known = {self.anchor.pid, self.served.child.pid if self.served.child else 0}
            left = set(self.host._inhabitants()) - known
            findings += [f"a process is left: {pid}" for pid in left]
        return findings
