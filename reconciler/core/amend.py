"""A few files changed: the spec that follows, without a second look at all the others.

What a change in one file can touch beyond its own containers is rare: a network, a name or an address
that another file has too, a `join`. All that is left to a whole load; `amended` then answers None.
"""

from bisect import insort
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from reconciler.core import names, rules
from reconciler.core.members import containers
from reconciler.core.model import Container, Loaded, Network, Place, Spec
from reconciler.core.reader import Trouble
from reconciler.core.schema import RawContainer
from reconciler.core.tree import Map, Tree


class Standing:
    """What a spec without any fault has taken: names, addresses, ports, places on bridges."""

    def __init__(self, loaded: Loaded, order: Callable[[str], tuple[int, bytes]]) -> None:
        """`order`: by what files are sorted."""
        self.loaded = loaded
        self._order = order
        self._homes: dict[str, Place] = {}
        """Names of containers, and keys that stand for replicas → where they are declared."""
        self.claims = rules.Claims()
        self.crowd = rules.Crowd()
        self._blocks: dict[str, dict[str, Container]] = {}
        """File → the containers that it declares, where there are any."""
        self._joined: Counter[str] = Counter()
        """Containers in whose namespace others live."""
        faults = loaded.rejections or loaded.waiting or loaded.lost or loaded.stuck
        self.usable = not (faults or loaded.orphans)
        if not self.usable:
            return
        spec = loaded.spec
        for container in spec.containers.values():
            self._homes[container.name] = self._homes[key_of(container)] = container.place
            self._blocks.setdefault(container.place.file, {})[container.name] = container
            self._joined.update([container.join] if container.join else ())
        self._files = sorted(self._blocks, key=order)
        for network in spec.networks.values():
            self.usable &= not any(rules.network_clashes(network, self.claims, {}))
        for container in spec.containers.values():
            self.usable &= self._take(container, spec.networks)

    def _take(self, container: Container, networks: Mapping[str, Network]) -> bool:
        """Count a container in; False where that would need a look at all others."""
        self.crowd.count(container)
        derived = any(
            i.host_interface is not None and names.looks_derived(i.host_interface)
            for i in container.interfaces
        )
        return not derived and not any(rules.container_clashes(container, self.claims, networks))

    def amended(self, changed: Mapping[str, Tree | None]) -> Loaded | None:
        """What is declared now that these files say this (None: the file is gone).

        None: all files are to be judged together; this object is then of no use any more.
        """
        spec = self.loaded.spec
        if not self.usable or any(n.place.file in changed for n in spec.networks.values()):
            return None
        self.usable = False
        fresh: dict[str, Container] = {}
        gone: dict[str, Container] = {}
        blocks: dict[str, dict[str, Container]] = {}
        for file, tree in changed.items():
            found = containers_of(tree, spec.networks) if tree is not None else {}
            if found is None or fresh.keys() & found.keys():
                return None
            blocks[file] = found
            fresh |= found
            gone |= self._blocks.get(file, {})
        if any(name in spec.containers and name not in gone for name in fresh):
            return None
        if any(self._joined[name] for name in (*gone, *fresh)):
            return None
        if any(c.join for c in fresh.values()):
            return None
        for container in gone.values():
            self._homes.pop(container.name, None)
            self._homes.pop(key_of(container), None)
        for container in fresh.values():
            for name in (container.name, key_of(container)):
                if self._homes.setdefault(name, container.place) != container.place:
                    return None
        self.claims.release(gone.keys())
        for container in gone.values():
            self.crowd.count(container, -1)
            self._joined.subtract([container.join] if container.join else ())
        if not all([self._take(container, spec.networks) for container in fresh.values()]):
            return None
        if any(self.crowd.clashes(spec.networks)):
            return None
        self.usable = True
        files = {file for file, tree in changed.items() if tree is not None and not tree.hook}
        self.loaded = msgspec.structs.replace(
            self.loaded,
            spec=Spec(networks=spec.networks, containers=self._merged(blocks)),
            accepted=self.loaded.accepted - changed.keys() | files,
        )
        return self.loaded

    def _merged(self, changed: Mapping[str, dict[str, Container]]) -> dict[str, Container]:
        """All containers, those of each file at the place of the file; empty: it has none any more."""
        for file, found in changed.items():
            known = file in self._blocks
            if found:
                self._blocks[file] = found
                if not known:
                    insort(self._files, file, key=self._order)
            elif known:
                del self._blocks[file]
                self._files.remove(file)
        merged: dict[str, Container] = {}
        for file in self._files:
            merged.update(self._blocks[file])
        return merged


def key_of(container: Container) -> str:
    """What the file calls it: replicas have one key together."""
    # Of the shape, which is JSON: inside a string these quotes would be escaped.
    return (
        container.name.rpartition("-")[0] if b'"replicas":"' in container.shape else container.name
    )


def containers_of(tree: Tree, networks: Mapping[str, Network]) -> dict[str, Container] | None:
    """The containers of a file that declares nothing else and has no fault; else None."""
    root = tree.root
    if root is None:
        return {}
    if not isinstance(root, Map) or tree.nulls or root.get("networks") is not None:
        return None
    if root.get("version", "1") != "1" or root.keys() - {"version", "networks", "containers"}:
        return None
    try:
        raw = msgspec.convert(root.get("containers", {}), dict[str, RawContainer])
    except msgspec.ValidationError:
        return None
    found: dict[str, Container] = {}
    for name, body in raw.items():
        items = body.interfaces if isinstance(body.interfaces, list) else [body.interfaces]
        if any((i if isinstance(i, str) else i.network) not in networks for i in items):
            return None
        try:
            several = containers(tree, ("containers", name), name, body, networks, {})
        except Trouble:
            return None
        for container in several:
            if container.name in found or (container.name != name and container.name in raw):
                return None
            found[container.name] = container
    return found
