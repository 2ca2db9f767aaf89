"""Sabotage inside a private host, and how long it lasts: run as a program by `daemon.py`.

A change is made by one system call or netlink request in a thread of its own, while the main thread
listens. The time runs from the notification that something is broken to the last notification of
what makes it whole again. Between two trials the daemon comes to rest.
"""

import contextlib
import ctypes
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.ears import HOST, Ears, Fact, Times, is_namespace
from reconciler.core.model import Address, InterfaceAddress, Subnet
from reconciler.core.rows import Space
from reconciler.host import events, rtnl
from reconciler.host.batch import Batch

NETNS = "/run/netns"
DETACH = 2
PATIENCE_S = 5.0
REST_S = 0.05
"""The daemon rests once it was not on a core for so long."""
FORWARD = "/proc/sys/net/ipv4/ip_forward"
LIBC = ctypes.CDLL(None, use_errno=True)


class Place(NamedTuple):
    """A container as it stands."""

    name: str
    path: str
    nsid: int
    host_end: str
    index: int
    address: Address
    neighbour: bytes
    network: str


class Sabotage(NamedTuple):
    """What is done, and what must be heard to hold behind it."""

    do: Callable[[], None]
    whole: frozenset[Fact]


def place(host: Space, name: str) -> Place:
    """Where a container with one interface is found."""
    path = f"{NETNS}/{name}"
    end = next(link for link in host.links if link.alias.endswith(f"/{name}/eth0"))
    space = rtnl.scan([path])[0]
    inner = next(link for link in space.links if link.name == "eth0")
    held = next(a.address for a in space.addresses if a.index == inner.index and a.scope == 0)
    return Place(
        name, path, end.peer_nsid, end.name, end.index, Address(4, held.value),
        held.value.to_bytes(4, "big"), end.alias.split(":")[1].split("/")[0],
    )  # fmt: skip


def _run(fill: Callable[[Batch], None], path: str = "") -> Callable[[], None]:
    def do() -> None:
        batch = Batch()
        if path:
            batch.enter(path)
        else:
            batch.host()
        fill(batch)
        for result in batch.run():
            if result.failures:
                raise OSError(result.failures[0].errno, result.failures[0].action)

    return do


def _unmount(path: str) -> None:
    if LIBC.umount2(path.encode(), DETACH):
        raise OSError(ctypes.get_errno(), path)


def _member(p: Place) -> frozenset[Fact]:
    """All that is heard of a bridge's member that is made anew behind a living namespace."""
    return frozenset(
        {("up", HOST, p.host_end), ("port", HOST, p.host_end), ("up", p.nsid, "eth0"),
         ("address", p.nsid, p.neighbour), ("route", p.nsid, 0, b"")}
    )  # fmt: skip


def host_end_down(host: Space, p: Place) -> Sabotage:
    """`ip link set HOST_END down`."""
    whole = {("up", HOST, p.host_end)}
    if not p.network.startswith("n"):
        whole |= {("route", HOST, 32, p.neighbour), ("neighbour", HOST, p.neighbour)}
    return Sabotage(_run(lambda b: b.link(p.index, inside=False, up=False)), frozenset(whole))


def host_end_deleted(host: Space, p: Place) -> Sabotage:
    """`ip link del HOST_END`."""
    return Sabotage(_run(lambda b: b.delete_link(p.index, inside=False)), _member(p))


def out_of_bridge(host: Space, p: Place) -> Sabotage:
    """`ip link set HOST_END nomaster`."""
    return Sabotage(
        _run(lambda b: b.link(p.index, inside=False, master=0)),
        frozenset({("port", HOST, p.host_end)}),
    )


def inner_end_down(host: Space, p: Place) -> Sabotage:
    """`ip -n NAME link set eth0 down`: its routes go with it."""
    return Sabotage(
        _run(lambda b: b.link("eth0", inside=True, up=False), p.path),
        frozenset({("up", p.nsid, "eth0"), ("route", p.nsid, 0, b"")}),
    )


def inner_address(host: Space, p: Place) -> Sabotage:
    """`ip -n NAME addr del`: with the only address go the routes."""
    prefix = 16 if p.network.startswith("n") else 32
    held = InterfaceAddress(4, p.address.value, prefix)
    return Sabotage(
        _run(lambda b: b.address("eth0", held, inside=True, delete=True), p.path),
        frozenset({("address", p.nsid, p.neighbour), ("route", p.nsid, 0, b"")}),
    )


def inner_route(host: Space, p: Place) -> Sabotage:
    """`ip -n NAME route del default`."""
    gateway = Address(4, (p.address.value & 0xFFFF0000) + 1)
    return Sabotage(
        _run(
            lambda b: b.route(
                Subnet(4, 0, 0), via=gateway, link="eth0", inside=True, delete=True
            ),
            p.path,
        ),
        frozenset({("route", p.nsid, 0, b"")}),
    )  # fmt: skip


def loopback_down(host: Space, name: str) -> Sabotage:
    """`lo` down in a namespace without a veth."""
    path = f"{NETNS}/{name}"
    return Sabotage(
        _run(lambda b: b.link(1, inside=True, up=False), path),
        frozenset({("up", events.nsid(path), "lo")}),
    )


def bridge_address(host: Space, p: Place) -> Sabotage:
    """The gateway taken from its bridge, which has no other: the kernel flushes its neighbours too."""
    bridge = next(link for link in host.links if link.name == p.network)
    held = next(a.address for a in host.addresses if a.index == bridge.index and a.scope == 0)
    return Sabotage(
        _run(lambda b: b.address(bridge.index, held, inside=False, delete=True)),
        frozenset({("address", HOST, held.value.to_bytes(4, "big"))}),
    )


def neighbour(host: Space, p: Place) -> Sabotage:
    """A permanent neighbour of the host deleted."""
    row = next(n for n in host.neighbours if n.address == p.address)
    return Sabotage(
        _run(
            lambda b: b.neighbour(row.address, row.mac, link=row.index, inside=False, delete=True)
        ),
        frozenset({("neighbour", HOST, p.neighbour)}),
    )


def host_route(host: Space, p: Place) -> Sabotage:
    """`ip route del ADDRESS/32` of a routed member."""
    to = Subnet(4, p.address.value, 32)
    return Sabotage(
        _run(lambda b: b.route(to, via=None, link=p.index, inside=False, delete=True)),
        frozenset({("route", HOST, 32, p.neighbour)}),
    )


def forwarding(host: Space, name: str) -> Sabotage:
    """`sysctl net.ipv4.ip_forward=0`."""
    return Sabotage(lambda: _write(FORWARD, "0"), frozenset({("forwarding",)}))


def _write(path: str, text: str) -> None:
    Path(path).write_text(text)


def unmounted(host: Space, p: Place) -> Sabotage:
    """`umount -l` of the path of a container in use: its namespace lives on."""
    return Sabotage(lambda: _unmount(p.path), frozenset({("bound", p.path)}))


def deleted(host: Space, p: Place) -> Sabotage:
    """`ip netns del`: the namespace is gone for good, its veth pair follows when the kernel gets to it."""

    def do() -> None:
        _unmount(p.path)
        os.unlink(p.path)

    return Sabotage(do, frozenset({("bound", p.path)}))


BRIDGED, ROUTED, BARE = "b", "r", "bare"
KINDS: dict[str, tuple[str, Callable[..., Sabotage]]] = {
    "host end down": (BRIDGED, host_end_down),
    "host end of a routed member down": (ROUTED, host_end_down),
    "host end deleted": (BRIDGED, host_end_deleted),
    "host end out of its bridge": (BRIDGED, out_of_bridge),
    "inner end down": (BRIDGED, inner_end_down),
    "inner address deleted": (BRIDGED, inner_address),
    "inner default route deleted": (ROUTED, inner_route),
    "lo down, no veth": (BARE, loopback_down),
    "bridge address deleted": (BRIDGED, bridge_address),
    "permanent neighbour deleted": (BRIDGED, neighbour),
    "host route of a routed member deleted": (ROUTED, host_route),
    "ip_forward set to 0": (BARE, forwarding),
    "path unmounted": (ROUTED, unmounted),
    "namespace deleted": (ROUTED, deleted),
}


class Bench:
    """Trials against one daemon."""

    def __init__(self, pid: int, config: Path, groups: dict[str, int]) -> None:
        self.pid = pid
        self.config = config
        self.groups = groups
        self.ears = Ears()
        self.dice = random.Random(1)
        self.late: list[str] = []

    def rest(self) -> None:
        """Wait until the daemon sleeps, and sleeps on."""
        before, since = self._on_core(), time.monotonic()
        while time.monotonic() - since < REST_S:
            time.sleep(0.01)
            now = self._on_core()
            if now != before:
                before, since = now, time.monotonic()

    def _on_core(self) -> int:
        """Nanoseconds that its threads were on a core."""
        spent = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                spent += int((task / "schedstat").read_text().split()[0])
        return spent

    def trial(self, kind: str) -> float | None:
        """Seconds from the change to the repair; None: not within PATIENCE_S."""
        group, make = KINDS[kind]
        name = f"{group}-{self.dice.randrange(self.groups[group])}"
        host = rtnl.scan_host()
        with contents_in(name, kind == "path unmounted"):
            sabotage = make(host, name if group == BARE else place(host, name))
            self.rest()
            self.ears.drain()
            times = Times(sabotage.whole)
            change = threading.Thread(target=sabotage.do)
            change.start()
            in_time = self.ears.follow(times, sabotage.whole, time.monotonic() + PATIENCE_S)
            change.join()
            self.rest()
        if not in_time or times.began is None or times.ended is None:
            self.late.append(f"{kind}: {name}: {sorted(map(str, times.left))}")
            return None
        return times.ended - times.began

    def new_file(self, number: int, *, rename: bool) -> float:
        """Seconds from the close (or the rename) of a new file to the namespace at its path."""
        name = f"fresh-{'renamed' if rename else 'closed'}-{number}"
        path = f"{NETNS}/{name}"
        final = self.config / f"{name}.yaml"
        self.rest()
        self.ears.drain()
        fd = os.open(self.config / f".{name}" if rename else final, os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(fd, f"containers: {{{name}: {{interfaces: far}}}}\n".encode())
        times = Times({("bound", path)})
        if rename:
            os.close(fd)
            times.began = time.monotonic()
            os.rename(self.config / f".{name}", final)
        else:
            times.began = time.monotonic()
            os.close(fd)
        if not self.ears.follow(times, {("bound", path)}, time.monotonic() + PATIENCE_S):
            raise AssertionError(f"{name} is not there after {PATIENCE_S} s")
        assert times.ended is not None  # it was heard
        space = rtnl.scan([path])[0]
        inner = next(link for link in space.links if link.name == "eth0")
        held = [a for a in space.addresses if a.index == inner.index and a.scope == 0]
        if not (inner.up and held and any(not route.to.prefix for route in space.routes)):
            raise AssertionError(f"{name} was at its path before it was complete")
        return times.ended - times.began


@contextmanager
def contents_in(name: str, wanted: bool) -> Iterator[None]:
    """A process that lives in a namespace, where one is wanted."""
    if not wanted:
        yield
        return
    path = f"{NETNS}/{name}"
    child = subprocess.Popen(["nsenter", f"--net={path}", "sleep", "infinity"])
    try:
        inode = os.stat(path).st_ino
        while os.stat(f"/proc/{child.pid}/ns/net").st_ino != inode:
            time.sleep(0.005)
        yield
    finally:
        child.kill()
        child.wait()


def main() -> int:
    """Read what is to be done from stdin as JSON, answer with all times in seconds."""
    sys.setswitchinterval(0.0005)  # who listens must not wait for the thread that makes the change
    asked = json.load(sys.stdin)
    bench = Bench(asked["pid"], Path(asked["config"]), asked["groups"])
    found: dict[str, list[float]] = {}
    kinds = asked.get("kinds", list(KINDS))
    for _ in range(asked["trials"]):
        for kind in kinds:
            took = bench.trial(kind)
            found.setdefault(kind, []).append(PATIENCE_S if took is None else took)
    for number in range(asked.get("files", 0)):
        for rename in (False, True):
            how = "by rename" if rename else "written and closed"
            took = bench.new_file(number, rename=rename)
            found.setdefault(f"new file, {how}", []).append(took)
    left = [n for n in os.listdir(NETNS) if not is_namespace(f"{NETNS}/{n}")]
    json.dump({"times": found, "late": bench.late, "half-made": left}, sys.stdout)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
