"""What the members of thousands of containers came to, kept in the run dir: to load that is quicker than to
derive it once more, and can be done while the kernel is looked at."""

import contextlib
from collections.abc import Mapping
from functools import partial

import msgspec

from reconciler.core.desired import fingerprint, with_members
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
        with contextlib.suppress(OSError, msgspec.DecodeError), folder(self._run_dir) as fd:
            text, _ = read_at(fd, FILE, SIZE_LIMIT)
            self._known = text[:DIGEST], msgspec.json.decode(text[DIGEST:], type=Desired)

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
            with contextlib.suppress(OSError), folder(self._run_dir) as fd:
                write_at(fd, FILE, key + msgspec.json.encode(found), 0o600)
        return found
