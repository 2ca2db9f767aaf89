"""What the members of thousands of containers came to, kept in the run dir: to load that is quicker than to
derive it once more, and can be done while the kernel is looked at."""

import contextlib
import os
from collections.abc import Mapping
from functools import partial

import msgspec

from reconciler.core.desired import fingerprint, with_members
from reconciler.core.digests import blake2b
from reconciler.core.leases import Key
from reconciler.core.model import Address, Spec
from reconciler.core.wanted import Desired
from reconciler.host.files import folder, read_at, write_at

FILE = "desired"
MANY = 256
"""From so many containers on it is worth it."""
SIZE_LIMIT = 256 << 20
DIGEST = 16


class Derived:
    """The file of one run dir; nothing is concluded from one that is damaged, or of other inputs."""

    def __init__(self, run_dir: str) -> None:
        self._run_dir = run_dir
        self._known: tuple[bytes, Desired] | None = None

    def load(self, spec: Spec) -> None:
        """Have ready what was kept, if there are many containers."""
        if len(spec.containers) < MANY:
            return
        with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError):
            with folder(self._run_dir) as fd:
                text, _ = read_at(fd, FILE, SIZE_LIMIT)
            key, sum_, body = text[:DIGEST], text[DIGEST : 2 * DIGEST], text[2 * DIGEST :]
            if _sum(body) == sum_:
                self._known = key, msgspec.json.decode(body, type=Desired)

    def members(
        self,
        networks: Desired,
        spec: Spec,
        addresses: Mapping[Key, Address],
        *,
        machine: str,
        groups: str,
        keep: bool,
    ) -> Desired:
        """As `with_members`; `keep`: whether what is derived anew is kept for the next pass."""
        derive = partial(with_members, networks, spec, addresses, machine=machine, groups=groups)
        if len(spec.containers) < MANY:
            return derive()
        key = fingerprint(networks, spec, addresses, machine=machine, groups=groups)
        if self._known is not None and self._known[0] == key:
            return self._known[1]
        found = derive()
        self._known = key, found
        if keep:
            body = msgspec.json.encode(found)
            with contextlib.suppress(OSError), folder(self._run_dir) as fd:
                for left in os.listdir(fd):
                    if left.startswith(f".{FILE}."):  # who wrote it was killed
                        os.unlink(left, dir_fd=fd)
                write_at(fd, FILE, key + _sum(body) + body, 0o600)
        return found


def _sum(body: bytes) -> bytes:
    return blake2b(body, digest_size=DIGEST).digest()
