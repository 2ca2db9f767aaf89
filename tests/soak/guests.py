"""Containers that nobody declares: processes in namespaces of their own, attached by hooks.

Whether a hook may attach depends on what files say at that moment, so its answer is not judged; what is
judged is that a quiet moment after all of them have ended finds nothing of them.
"""

import json
import random
import subprocess
from typing import NamedTuple

from tests.soak.declared import Declared
from tests.support.host import CLIENT, RUNCNET, PrivateHost

MOST = 6
QUIET = subprocess.DEVNULL


class Guest(NamedTuple):
    """A process, and the name that it is attached by."""

    name: str
    child: "subprocess.Popen[bytes]"


class Guests:
    """Those that live now."""

    def __init__(self, host: PrivateHost, rng: random.Random, declared: Declared) -> None:
        self.host = host
        self.rng = rng
        self.declared = declared
        self.living: list[Guest] = []
        self._number = 0

    def comes(self) -> str:
        """One more, attached; now and then the hook is killed in the middle."""
        if len(self.living) >= MOST:
            return self.leaves()
        self._number += 1
        words = self.host.enter("unshare", "--net", "sleep", "infinity")
        child = subprocess.Popen(words, stdin=QUIET, stdout=QUIET, stderr=QUIET)
        guest = Guest(f"guest{self._number}", child)
        self.living.append(guest)
        networks = self.rng.sample(
            sorted(self.declared.networks),
            self.rng.choice([1, 1, min(2, len(self.declared.networks))]),
        )
        flags = [word for network in networks for word in ("--network", network)]
        if self.rng.random() < 0.3:
            flags += ["--port", f"{31_000 + self._number}:80"]
        return self._call("createRuntime", guest, flags, killed=self.rng.random() < 0.2)

    def leaves(self) -> str:
        """One ends: as a runtime ends it, or just so."""
        if not self.living:
            return "no guest to leave"
        guest = self.living.pop(self.rng.randrange(len(self.living)))
        told = self.rng.random()
        text = self._call("poststop", guest, [], killed=False) if told < 0.3 else "nobody is told"
        guest.child.kill()
        guest.child.wait(10)
        if told > 0.7:
            text = self._call("poststop", guest, [], killed=False)
        return f"{guest.name} ends; {text}"

    def close(self) -> None:
        """All end, and nobody is told."""
        while self.living:
            guest = self.living.pop()
            guest.child.kill()
            guest.child.wait(10)

    def _call(self, stage: str, guest: Guest, flags: list[str], *, killed: bool) -> str:
        program = str(CLIENT) if self.rng.random() < 0.6 else RUNCNET
        words = ["bash", "-c", f'exec -a {RUNCNET} {program} "$@"', "bash"]
        if program == RUNCNET:
            words = [RUNCNET]
        state = {
            "ociVersion": "1.0.2",
            "id": guest.name,
            "pid": guest.child.pid,
            "status": "created",
        }
        hook = subprocess.Popen(
            self.host.enter(*words, "hook", stage, *self.host.options, *flags),
            stdin=subprocess.PIPE,
            stdout=QUIET,
            stderr=subprocess.PIPE,
        )
        try:
            _, error = hook.communicate(
                json.dumps(state).encode(), self.rng.random() * 0.3 if killed else 60
            )
        except subprocess.TimeoutExpired:
            assert killed, f"{stage} of {guest.name} does not end"
            hook.kill()
            hook.communicate()
            return f"{stage} of {guest.name}, killed"
        assert b"Traceback" not in error, error.decode()
        shown = " ".join([stage, guest.name, *flags])
        return f"{shown}: {hook.returncode} {error.decode().strip()}".rstrip()
