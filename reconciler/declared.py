"""What a pass has read in the folders."""

import time

import msgspec

from reconciler.core.memory import Grown, Memory
from reconciler.core.model import Loaded


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What the folders declare, and the bytes that said so."""

    loaded: Loaded
    contents: dict[str, bytes]
    """Every readable file."""
    times: dict[str, int]
    """When each of them changed (nanoseconds since the epoch)."""
    rest: dict[str, float]
    """When files and folders that changed a moment ago will have been left alone for long enough
    (seconds of the monotonic clock): most prefixes of a YAML file are valid YAML."""
    grown: Grown
    """What has become of what was remembered of files that were just being written."""
    memory: Memory
    """What is remembered, with that; nothing where it was not asked for."""

    @property
    def restless_s(self) -> float:
        """How long until the files have been left alone for long enough; 0: they have."""
        return max(0.0, max(self.rest.values(), default=0.0) - time.monotonic())

    def restless(self, file: str) -> bool:
        """Whether this file has been changed a moment ago."""
        return self.rest.get(file, 0.0) > time.monotonic()

    @property
    def news(self) -> bool:
        """Whether a file says something else than is remembered."""
        return any(self.memory.said.get(file) != said for file, said in self.contents.items())

    @property
    def unsure(self) -> str:
        """Why it is not known what is declared; empty: it is."""
        lost = sorted(self.loaded.lost)
        if lost:
            return f"{lost[0]} is rejected, and what it declared is not remembered"
        if self.loaded.stuck:
            return self.loaded.stuck
        for name, why in self.loaded.waiting.items():
            return f"{name} cannot be judged: {why}"
        return ""

    @property
    def keep(self) -> str:
        """Why nothing undeclared may be removed; empty: it may."""
        spec = self.loaded.spec
        if not self.unsure and not spec.networks and not spec.containers:
            return "no file declares anything (`runcnet teardown` removes all)"
        return self.unsure
