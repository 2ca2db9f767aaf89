"""Random edits of what is declared, and random ways of saving them."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from tests.soak.declared import Box, Declared, LeaseKey, Net, Port

ANCHOR = "anchor"
"""A container that is in use from the first to the last step, and is never edited."""
NETWORKS_FILE = "00-networks.yaml"
GUARDED_S = 0.8
"""A file that is rewritten within this time must not take anything away meanwhile (it has a second)."""


class Excused:
    """What an edit since the last quiet moment has asked to be changed."""

    def __init__(self) -> None:
        self.leases: set[LeaseKey] = set()
        self.spaces: set[str] = set()
        """Containers whose namespace may be another one."""


class Editor:
    """Draws edits and writes files. All is drawn from `rng` and the model, nothing from the world."""

    def __init__(self, rng: random.Random, folder: Path, containers: int) -> None:
        self.rng = rng
        self.folder = folder
        self.elsewhere = folder.parent / "elsewhere"
        self.elsewhere.mkdir(exist_ok=True)
        self.most = containers
        self.declared = Declared()
        self.excused = Excused()
        self.stray: set[str] = set()
        """Files that say what is wrong, or that are not to be there."""
        self.received: set[str] = set()
        """Files into which somebody has moved. As long as nobody may have read that, they stay right:
        what a rejected file is known to have declared does not have him, and the other one neither."""
        self._begin()

    def _begin(self) -> None:
        nets = [
            Net("br0", "bridge", 1),
            Net("br1", "bridge", 2, dual=True),
            Net("far0", "routed", 3),
            Net("far1", "routed", 4, dual=True),
            Net("move", "bridge", 5, moving=True),
            Net("shape", "bridge", 7, dual=True),
        ]
        self.declared.networks = {net.name: net for net in nets}
        anchor = Box(ANCHOR, 250, [Port("br1"), Port("far1")])
        self._put(anchor, "anchor.yaml")
        self._put(Box("w", 251, [Port("far0"), Port("br0")], replicas=4), "w.yaml")
        while len(self.declared.boxes) < self.most * 2 // 3:
            self.add()
        self.excused = Excused()

    def _put(self, box: Box, file: str) -> None:
        self.declared.boxes[box.name] = box
        self.declared.files.setdefault(file, []).append(box.name)

    def write_all(self) -> None:
        """Every file as it should be, and no other: what only an operator may mend."""
        texts = self.declared.texts()
        for path in self.folder.iterdir():
            if path.name not in texts:
                path.unlink()
        for file, text in texts.items():
            path = self.folder / file
            if path.is_symlink() or not path.exists() or path.read_text() != text:
                self._renamed(file, text)
            path.chmod(0o644)
        self.stray.clear()
        self.received.clear()

    # -- edits ------------------------------------------------------------------------------------

    def draw(self) -> str:
        """One edit, saved in some way; says what it was."""
        kinds: list[tuple[int, Callable[[], str]]] = [
            (6, self.add), (6, self.remove), (4, self.move_port), (3, self.rename), (4, self.give),
            (3, self.mtu), (2, self.host_name), (2, self.netns), (2, self.mode), (3, self.sysctl),
            (3, self.route), (3, self.replicas), (2, self.more_ports), (3, self.option),
            (1, self.subnet), (1, self.shape), (2, self.come_and_go), (2, self.regroup),
        ]  # fmt: skip
        edit = self.rng.choices([k for _, k in kinds], [w for w, _ in kinds])[0]
        before = self.declared.texts()
        leases = self.declared.leases()
        spaces = {m.name: (m.netns, m.box.mode) for m in self.declared.members()}
        text = edit()
        # Whatever an edit takes away or makes another may have another address or namespace.
        self.excused.leases |= leases ^ self.declared.leases()
        after = {m.name: (m.netns, m.box.mode) for m in self.declared.members()}
        self.excused.spaces |= {n for n, what in spaces.items() if after.get(n) != what}
        return f"{text}; {self.save(before)}"

    def save(self, before: dict[str, str]) -> str:
        """Write what differs."""
        said = []
        after = self.declared.texts()
        for file, text in after.items():
            if before.get(file) != text or file in self.stray:
                said.append(self._write(file, text))
        for file in before.keys() - after.keys():
            (self.folder / file).unlink(missing_ok=True)
            said.append(f"{file} removed")
        return ", ".join(said) or "no file differs"

    def any_box(self, *, replicas: bool = False) -> Box | None:
        """One that may be edited."""
        fit = [
            b
            for b in self.declared.boxes.values()
            if b.name != ANCHOR and (replicas or b.replicas is None) and b.mode != "none"
        ]
        return self.rng.choice(fit) if fit else None

    def add(self) -> str:
        free = sorted(set(range(self.most * 2)) - {b.number for b in self.declared.boxes.values()})
        if len(self.declared.boxes) >= self.most:
            return self.remove()
        number = self.rng.choice(free)
        count = self.rng.choices([1, 2, 3], [6, 3, 1])[0]
        ports = [Port(n) for n in self.rng.sample(sorted(self._joinable()), count)]
        box = Box(f"c{number}", number, ports)
        if self.rng.random() < 0.1:
            box.mode = "none"
        self._new_given(box.ports[0])
        shared = self.rng.random() < 0.3
        self._put(box, f"g{number % 5}.yaml" if shared else f"{box.name}.yaml")
        return f"add {box.name} in {[p.network for p in ports]}"

    def _joinable(self) -> list[str]:
        return [n for n in self.declared.networks if n != "come"]

    def _new_given(self, port: Port) -> None:
        fixed = self.declared.networks[port.network].moving
        port.given = None if fixed or self.rng.random() < 0.5 else self.rng.randrange(20)

    def remove(self) -> str:
        boxes = [b for b in self.declared.boxes.values() if b.name != ANCHOR and not b.replicas]
        if len(boxes) < self.most // 3:
            return "nobody is removed: few are left"
        box = self.rng.choice(boxes)
        self._strike(box.name)
        del self.declared.boxes[box.name]
        return f"remove {box.name}"

    def _strike(self, name: str) -> None:
        file = self.declared.file_of(name)
        names = self.declared.files[file]
        names.remove(name)
        if not names:
            del self.declared.files[file]

    def move_port(self) -> str:
        box = self.any_box()
        if box is None:
            return "nobody to move"
        port = self.rng.choice(box.ports)
        free = sorted(set(self._joinable()) - {p.network for p in box.ports})
        old, port.network = port.network, self.rng.choice(free)
        self._new_given(port)
        return f"move {box.name} from {old} to {port.network}"

    def rename(self) -> str:
        box = self.any_box(replicas=True)
        if box is None:
            return "nobody to rename"
        port = self.rng.choice(box.ports)
        port.name = None if port.name else f"lan{box.ports.index(port)}"
        return f"rename an interface of {box.name} to {port.name or 'its default'}"

    def give(self) -> str:
        box = self.any_box()
        if box is None:
            return "nobody to give an address"
        port = self.rng.choice(box.ports)
        self._new_given(port)
        return f"address of {box.name} in {port.network}: {port.given}"

    def mtu(self) -> str:
        box = self.any_box(replicas=True)
        if box is None:
            return "nobody to give an MTU"
        port = self.rng.choice(box.ports)
        port.mtu = self.rng.choice([None, 1280, 1300, 1350])
        return f"MTU of {box.name} in {port.network}: {port.mtu}"

    def host_name(self) -> str:
        box = self.any_box()
        if box is None:
            return "nobody to rename on the host"
        port = self.rng.choice(box.ports)
        port.host_name = not port.host_name
        return f"host_interface of {box.name} in {port.network}: {port.host_name}"

    def netns(self) -> str:
        box = self.any_box(replicas=True)
        if box is None:
            return "nobody to give a netns"
        box.own_netns = not box.own_netns
        return f"netns of {box.name}: {'its own' if box.own_netns else 'default'}"

    def mode(self) -> str:
        box = self.rng.choice([b for b in self.declared.boxes.values() if b.name != ANCHOR])
        if box.replicas is not None:
            return "replicas keep their mode"
        box.mode = "none" if box.mode == "network" else "network"
        return f"mode of {box.name}: {box.mode}"

    def sysctl(self) -> str:
        box = self.any_box(replicas=True)
        if box is None:
            return "nobody to give a sysctl"
        box.somaxconn = self.rng.choice([1000, 2000, 3000])
        return f"somaxconn of {box.name}: {box.somaxconn}"

    def route(self) -> str:
        box = self.any_box(replicas=True)
        if box is None:
            return "nobody to give a route"
        box.route = not box.route
        return f"route of {box.name}: {box.route}"

    def replicas(self) -> str:
        box = self.declared.boxes["w"]
        box.replicas = self.rng.randrange(1, 9)
        return f"replicas of w: {box.replicas}"

    def more_ports(self) -> str:
        box = self.any_box()
        if box is None:
            return "nobody to give an interface"
        free = sorted(set(self._joinable()) - {p.network for p in box.ports})
        if len(box.ports) > 1 and self.rng.random() < 0.5:
            gone = box.ports.pop()
            return f"{box.name} leaves {gone.network}"
        if len(box.ports) < 3:
            box.ports.append(Port(self.rng.choice(free)))
            return f"{box.name} joins {box.ports[-1].network}"
        return f"{box.name} has enough interfaces"

    def option(self) -> str:
        net = self.rng.choice([n for n in self.declared.networks.values() if n.name != "come"])
        key, values = self.rng.choice(
            [
                ("mtu", [1400, 1450, 1500]),
                ("isolate_members", ["true", "false"]),
                ("masquerade", ["true", "false", "ipv4"]),
                ("inbound", ["open", "established"]),
                ("internal", ["true", "false"]),
                ("uplink", ["eth0", "any"]),
            ]
        )
        net.options[key] = self.rng.choice(values)
        if net.options.get("internal") == "true":
            net.options.pop("masquerade", None)  # which would be refused
        return f"{key} of network {net.name}: {net.options.get(key, 'the default')}"

    def subnet(self) -> str:
        net = self.declared.networks["move"]
        net.number = 6 if net.number == 5 else 5
        self.excused.leases |= {k for k in self.declared.leases() if k.network == "move"}
        return f"subnets of network move: {net.subnets}"

    def shape(self) -> str:
        net = self.declared.networks["shape"]
        net.kind = "routed" if net.kind == "bridge" else "bridge"
        return f"type of network shape: {net.kind}"

    def come_and_go(self) -> str:
        if self.declared.networks.pop("come", None):
            return "network come is gone"
        kind = self.rng.choice(["bridge", "routed"])
        self.declared.networks["come"] = Net("come", kind, 8, dual=True)
        return f"network come is there, {kind}"

    def regroup(self) -> str:
        box = self.any_box()
        if box is None:
            return "nobody to declare elsewhere"
        old = self.declared.file_of(box.name)
        new = f"g{self.rng.randrange(5)}.yaml"
        if old != new:
            self._strike(box.name)
            self.declared.files.setdefault(new, []).append(box.name)
            self.received.add(new)
        return f"declare {box.name} in {new} instead of {old}"

    # -- ways of writing --------------------------------------------------------------------------

    def _write(self, file: str, text: str) -> str:
        self.stray.discard(file)
        way = self.rng.choices(
            [self._in_place, self._renamed, self._halves, self._linked], [3, 5, 2, 2]
        )[0]
        way(file, text)
        (self.folder / file).chmod(0o644)
        return f"{file} {way.__name__.strip('_')}"

    def _in_place(self, file: str, text: str) -> None:
        began = time.monotonic()
        (self.folder / file).write_text(text)  # it is empty for a moment
        if time.monotonic() - began > GUARDED_S:
            self.excuse_all()

    def _renamed(self, file: str, text: str) -> None:
        new = self.folder / f".{file}.new"
        new.write_text(text)
        new.chmod(0o644)
        new.rename(self.folder / file)

    def _halves(self, file: str, text: str) -> None:
        began = time.monotonic()
        pause = self.rng.uniform(0.0, 0.4)
        cut = self.rng.randrange(len(text))
        with (self.folder / file).open("w") as opened:
            opened.write(text[:cut])
            opened.flush()
            time.sleep(pause)  # somebody who writes slowly
            opened.write(text[cut:])
        if time.monotonic() - began > GUARDED_S:
            self.excuse_all()

    def _linked(self, file: str, text: str) -> None:
        target = self.elsewhere / f"{self.rng.randrange(1 << 30):x}-{file}"
        target.write_text(text)
        target.chmod(0o644)
        link = self.folder / f".{file}.link"
        link.symlink_to(target)
        link.rename(self.folder / file)

    # -- what no file should be ---------------------------------------------------------------------

    def spoil(self) -> str:
        """A file that cannot be right; it is put right by its next edit, or at the quiet moment."""
        fit = self.declared.texts().keys() - self.received - {f"{ANCHOR}.yaml"}
        file = self.rng.choice(sorted(fit))
        text = self.declared.text(file)
        what = self.rng.choice(["cut", "tail", "open", "double", "unknown"])
        path = self.folder / file
        if what != "double":
            self.stray.add(file)
        if what == "cut":
            # Within a line: a whole one less would be a valid file that declares less.
            start = text.index("{") + 1
            self._in_place(file, text[: self.rng.randrange(start, text.index("}", start))])
        elif what == "tail":
            self._in_place(file, text + "  - ][\n")
        elif what == "open":
            self._in_place(file, text)
            path.chmod(0o666)
        elif what == "unknown":
            self._in_place(file, text + "nonsense: 1\n")
        else:
            file = "zz-double.yaml"
            (self.folder / file).write_text(f"containers:\n  {ANCHOR}: {{mode: none}}\n")
            (self.folder / file).chmod(0o644)
        return f"{file} is spoilt: {what}"

    def empty(self) -> str:
        """No file at all for a moment."""
        side = self.folder.parent / "side"
        side.mkdir(exist_ok=True)
        pause = self.rng.uniform(0.0, 2.0)
        for path in sorted(self.folder.iterdir()):
            path.rename(side / path.name)
        time.sleep(pause)
        began = time.monotonic()
        for path in sorted(side.iterdir()):  # zz-double.yaml is to be the last one, as always
            path.rename(self.folder / path.name)
        if time.monotonic() - began > GUARDED_S:
            self.excuse_all()
        return f"no file for {pause:.1f} s"

    def anew(self) -> str:
        """The folder is another one, with the same files."""
        old = self.folder.with_name("config.old")
        new = self.folder.with_name("config.new")
        new.mkdir(mode=0o755)
        for path in self.folder.iterdir():
            if path.is_symlink():
                (new / path.name).symlink_to(os.readlink(path))
            else:
                (new / path.name).write_bytes(path.read_bytes())
                (new / path.name).chmod(path.stat().st_mode & 0o777)
        self.folder.rename(old)
        new.rename(self.folder)
        for path in old.iterdir():
            path.unlink()
        old.rmdir()
        return "the folder is another one"

    def excuse_all(self) -> None:
        """This machine was too slow for what was just tried: it proves nothing this time."""
        self.excused.leases |= self.declared.leases()
        self.excused.spaces |= {m.name for m in self.declared.members()} - {ANCHOR}
