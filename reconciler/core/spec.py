"""Trees → Spec, with all errors at once.

A file is taken whole or not at all: one error rejects it, what it said when it last loaded stands in
for it, and everything is judged again until nothing changes any more.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from reconciler.core import declare, members, rules
from reconciler.core.model import Container, Loaded, Network, Rejection, Spec
from reconciler.core.reader import Trouble
from reconciler.core.schema import RawContainer, RawFile, RawNetwork, shape_errors, unknown
from reconciler.core.tree import Map, Path, Tree, path_text


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A file as it was read; `tree` None: it was rejected before it became one."""

    file: str
    tree: Tree | None
    rejections: tuple[Rejection, ...] = ()
    remembered: Tree | None = None
    """What it said when it last loaded."""


class _Judge:
    """One attempt: the files of `trees`, remembered ones first in every conflict."""

    def __init__(self, trees: Sequence[tuple[Tree, bool]], *, incomplete: bool) -> None:
        self.trees = trees
        self.incomplete = incomplete
        self.errors: list[Rejection] = []
        self.networks: dict[str, Network] = {}
        self.containers: dict[str, Container] = {}
        self.waiting: dict[str, str] = {}
        self.stuck = ""
        self.orphans: dict[str, str] = {}
        self.raw: dict[str, RawFile] = {}
        """Loaded files whose shape is right."""
        self.templates: members.Templates = {}
        self.homes: dict[tuple[str, str], tuple[Tree, Path, bool]] = {}

    def run(self) -> None:
        loaded = [tree for tree, standing_in in self.trees if not standing_in]
        kept = [tree for tree, standing_in in self.trees if standing_in]
        for tree in loaded:
            self._shape(tree)
        raw = list(self._objects(loaded, standing_in=False))
        raw += list(self._objects(kept, standing_in=True))
        for tree, path, body, standing_in in raw:
            if path[0] == "networks":
                self._network(tree, path, body, standing_in)
        for tree, path, body, standing_in in raw:
            if path[0] == "containers":
                self._containers(tree, path, body, standing_in)
        self._relations()

    def _shape(self, tree: Tree) -> None:
        root = tree.root
        if root is None:
            return
        if isinstance(root, Map):
            # An empty section, or the body of an object that is all defaults, is no mistake.
            cleaned: dict[str, Any] = {k: v for k, v in root.items() if v is not None}
            if cleaned.get("version", "1") != "1":
                self._note(tree, ("version",), f"{cleaned['version']!r} is unknown (1 is built)")
            root = cleaned
        if isinstance(root, dict):
            view = Map()
            view.update(root)
            root = view
        # Almost always all is well, which one conversion in C tells.
        with contextlib.suppress(msgspec.ValidationError):
            whole = msgspec.convert(root, RawFile)
            if not tree.nulls:
                self.raw[tree.file] = whole
                return
        for error in shape_errors(root, RawFile, ()):
            at = tree.place(error.path, key=error.key)
            self._add(Rejection(place=at, path=path_text(error.path), message=error.message))

    def _note(self, tree: Tree, path: Path, message: str, *, key: bool = False) -> None:
        place = tree.place(path, key=key)
        self._add(Rejection(place=place, path=path_text(path), message=message))

    def _add(self, rejection: Rejection) -> None:
        self.errors.append(rejection)

    def _objects(
        self, trees: Iterable[Tree], *, standing_in: bool
    ) -> Iterator[tuple[Tree, Path, Any, bool]]:
        for tree in trees:
            if not isinstance(tree.root, Map):
                continue
            for kind in ("networks", "containers"):
                section = tree.root.get(kind)
                if not isinstance(section, Map):
                    continue
                for name, body in section.items():
                    if isinstance(body, Map):
                        yield tree, (kind, name), body, standing_in

    def _taken(self, tree: Tree, path: Path, standing_in: bool) -> bool:
        key = (str(path[0]), str(path[1]))
        home = self.homes.setdefault(key, (tree, path, standing_in))
        if home[0] is tree and home[1] == path:
            return False
        if not standing_in:
            kind = str(path[0])[:-1]
            where = home[0].place(home[1], key=True)
            text = f"{kind} {path[1]} is declared at {where} already"
            if home[0].hook:
                text = f"{kind} {path[1]} was attached by a hook (stop it, or take another name)"
            self._note(tree, path, text, key=True)
        return True

    def _network(self, tree: Tree, path: Path, body: Any, standing_in: bool) -> None:
        if self._taken(tree, path, standing_in):
            return
        name = str(path[1])
        try:
            whole = None if standing_in else self.raw.get(tree.file)
            raw = whole.networks[name] if whole else msgspec.convert(body, RawNetwork)
            self.networks[name] = declare.network(tree, path, name, raw)
        except msgspec.ValidationError:
            return  # shape_errors has said it, with its place
        except Trouble as trouble:
            self._troubles(tree, trouble, standing_in)

    def _troubles(self, tree: Tree, trouble: Trouble, standing_in: bool) -> None:
        if standing_in:
            path, message = trouble.errors[0]
            self.stuck = self.stuck or f"{path_text(path)} as remembered: {message}"
            return
        for path, message in trouble.errors:
            where = _existing(tree, path)
            self._note(tree, where, message, key=len(where) <= 2)

    def _containers(self, tree: Tree, path: Path, body: Any, standing_in: bool) -> None:
        if self._taken(tree, path, standing_in):
            return
        name = str(path[1])
        try:
            whole = None if standing_in else self.raw.get(tree.file)
            raw = whole.containers[name] if whole else msgspec.convert(body, RawContainer)
        except msgspec.ValidationError:
            return
        missing = [(n, where) for n, where in _referred(raw) if n not in self.networks]
        for network, where in missing:
            if tree.hook:
                self.orphans[name] = (
                    f"network {network}, which a hook attached it to, is not declared"
                )
            elif self.incomplete or standing_in:
                self.waiting[name] = f"network {network} is not readable at present"
            elif ("networks", network) not in self.homes:
                self._note(tree, (*path, *where), unknown("network", network, self.networks))
        try:
            found = members.containers(tree, path, name, raw, self.networks, self.templates)
        except Trouble as trouble:
            self._troubles(tree, trouble, standing_in)
            return
        if missing:
            return
        for container in found:
            if container.name != name:
                home = self.homes.get(("containers", container.name))
                if home is not None:
                    text = f"its replica {container.name} is declared at {home[0].place(home[1], key=True)}"
                    if home[0].hook:
                        text = (
                            f"its replica {container.name} was attached by a hook (stop it first)"
                        )
                    self._note(tree, path, text, key=True)
                    return
                self.homes["containers", container.name] = (tree, path, standing_in)
            self.containers[container.name] = container

    def _relations(self) -> None:
        claims = rules.Claims()
        # What stands in for a broken file keeps what it has; whoever was loaded gives way.
        networks = sorted(
            self.networks.values(), key=lambda n: not self._stands_in("networks", n.name)
        )
        seen: dict[str, Network] = {}
        for network in networks:
            for clash in rules.network_clashes(network, claims, seen):
                self._clash(clash)
            seen[network.name] = network
        bridges = {n.bridge: n.name for n in networks if n.bridge}
        for network in networks:
            for clash in rules.uplink_clashes(network, bridges):
                self._clash(clash)
            for clash in rules.allow_clashes(network, self.networks):
                if not (self.incomplete and network.allow[int(clash.path[1])] not in self.networks):
                    self._clash(clash)
        containers = sorted(
            self.containers.values(), key=lambda c: not self._stands_in("containers", c.name)
        )
        for container in containers:
            for clash in rules.container_clashes(container, claims, self.networks):
                self._clash(clash)
            joined = rules.join_clash(container, self.containers)
            if joined is not None:
                if self.incomplete and container.join not in self.containers:
                    self.waiting[container.name] = f"{container.join} is not readable at present"
                else:
                    self._clash(joined)
        for clash in rules.derived_clashes(claims, containers):
            self._clash(clash)
        crowd = rules.Crowd()
        for container in self.containers.values():
            crowd.count(container)
        for clash in crowd.clashes(self.networks):
            self._clash(clash)
        for name in self.waiting:
            self.containers.pop(name, None)

    def _stands_in(self, kind: str, name: str) -> bool:
        home = self.homes.get((kind, name))
        return home is not None and home[2]

    def _clash(self, clash: rules.Clash) -> None:
        tree, path, standing_in = self.homes[clash.kind, clash.name]
        if standing_in:
            # Nobody loaded can be blamed: the object is left as it stands.
            if clash.kind == "containers":
                self.waiting[clash.name] = clash.message
            self.stuck = self.stuck or f"{clash.name} as remembered: {clash.message}"
            return
        where = _existing(tree, (*path, *clash.path))
        self._note(tree, where, clash.message, key=len(where) <= 2)


def _existing(tree: Tree, path: Path) -> Path:
    """`path` as the file writes it: a single word stands for a list of one."""
    result: list[str | int] = []
    node = tree.root
    for part in path:
        if isinstance(part, int) and not isinstance(node, list):
            continue
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            break
        result.append(part)
    return tuple(result)


def _referred(raw: RawContainer) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    several = isinstance(raw.interfaces, list)
    items = raw.interfaces if isinstance(raw.interfaces, list) else [raw.interfaces]
    for number, item in enumerate(items):
        where: tuple[str | int, ...] = ("interfaces", number) if several else ("interfaces",)
        if isinstance(item, str):
            yield item, where
        else:
            yield item.network, (*where, "network")


def load(candidates: Sequence[Candidate]) -> Loaded:
    """Judge all files together. Never raises for what a file says."""
    broken: dict[str, list[Rejection]] = {
        c.file: list(c.rejections) for c in candidates if c.tree is None or c.rejections
    }
    hooks = {c.file for c in candidates if c.tree is not None and c.tree.hook}
    while True:
        trees: list[tuple[Tree, bool]] = []
        for c in candidates:
            if c.file not in broken and c.tree is not None:
                trees.append((c.tree, False))
            elif c.file in broken and c.remembered is not None:
                trees.append((c.remembered, True))
        lost = frozenset(broken.keys() - hooks - {c.file for c in candidates if c.remembered})
        judge = _Judge(trees, incomplete=bool(lost))
        judge.run()
        fresh = {e.place.file for e in judge.errors} - set(broken)
        for error in judge.errors:
            if error.place.file in fresh:
                broken.setdefault(error.place.file, []).append(error)
        if not fresh:
            break
    every = [r for file, found in broken.items() for r in found if file not in hooks]
    orphans = {
        file.partition(":")[2]: "; ".join(dict.fromkeys(r.message for r in broken[file]))
        for file in hooks & broken.keys()
    }
    return Loaded(
        spec=_spec(judge, candidates),
        rejections=tuple(sorted(set(every), key=lambda r: (r.place, r.path, r.message))),
        accepted=frozenset(c.file for c in candidates if c.file not in broken) - hooks,
        remembered=frozenset(broken) - lost - hooks,
        lost=lost,
        waiting=judge.waiting,
        stuck=judge.stuck,
        orphans={**judge.orphans, **orphans},
    )


def _spec(judge: _Judge, candidates: Sequence[Candidate]) -> Spec:
    order = {c.file: number for number, c in enumerate(candidates)}

    def position(kind: str, names: Mapping[str, Any]) -> list[str]:
        return sorted(names, key=lambda name: order.get(judge.homes[kind, name][0].file, 0))

    return Spec(
        networks={name: judge.networks[name] for name in position("networks", judge.networks)},
        containers={
            name: judge.containers[name] for name in position("containers", judge.containers)
        },
    )
