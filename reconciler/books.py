"""What files said, on its way into the state dir: it stands in for them when they break later."""

from collections.abc import Collection
from hashlib import blake2b

import msgspec

from reconciler.core.memory import Memory, Young
from reconciler.core.wanted import Desired, frame
from reconciler.host.store import Store
from reconciler.load import Declared


def write_down(
    store: Store,
    declared: Declared,
    memory: Memory,
    files: Collection[str],
    *,
    forget: Collection[str],
) -> None:
    """Remember what these good files say, and of those just being written that it is not sure yet.

    `memory`: what is remembered of them.
    """
    old = {file: declared.contents[file] for file in files if not declared.restless(file)}
    fresh = {
        file: content
        for file, content in old.items()
        if memory.said.get(file) != content or file in memory.young
    }
    young = {
        file: Young(declared.contents[file], declared.times[file])
        for file in files
        if file not in old and memory.said.get(file) != declared.contents[file]
    }
    if fresh or forget:
        store.remember(fresh, forget=forget)
    young = {file: one for file, one in young.items() if memory.young.get(file) != one}
    if young:
        store.note_young(young)


def digest_of(desired: Desired) -> bytes:
    """A digest of networks as they are resolved."""
    return blake2b(msgspec.json.encode(frame(desired)), digest_size=16).digest()
