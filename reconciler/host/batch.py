"""A batch of jobs for the C layer: steps are packed here and carried out there in one trip."""

import struct
from typing import Any

import msgspec

from reconciler import _rtnl  # type: ignore[attr-defined]  # built from _netlink/
from reconciler.core.model import Address, InterfaceAddress, Subnet

ffi, lib = _rtnl.ffi, _rtnl.lib

STEP = struct.Struct("=8B ii IIII BB 6s 6s Bx 16s 16s 16s 16s 16s 256s")
FAMILY = {4: 2, 6: 10}  # AF_INET, AF_INET6
BRIDGE = 7  # AF_BRIDGE
LENGTH = {4: 4, 6: 16}
SCOPE_LINK = 253
MAKING, BINDING = -1, -2


class Failure(msgspec.Struct, frozen=True):
    """Why a job stopped: errno, the kernel's own text (may be empty), and what the step was for."""

    errno: int
    text: str
    action: str


class Result(msgspec.Struct, frozen=True):
    """What became of a job; `cookie` is its namespace's (0 for host jobs)."""

    cookie: int
    failures: tuple[Failure, ...]


class Batch:
    """Jobs, each a run of steps. A step belongs to the job begun last.

    `inside` steps act in the job's namespace, the others on the host. A job ends at its first failing
    step; a namespace that was being created is then dropped whole.
    """

    def __init__(self) -> None:
        self._jobs: list[tuple[str, int, int, int]] = []
        self._steps = bytearray()
        self._kinds: list[tuple[str, object]] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def create(self, path: str) -> None:
        """Begin a job in a fresh namespace, which is bound to `path` as the last step."""
        self._jobs.append((path, lib.RCN_CREATE, len(self._kinds), 0))

    def enter(self, path: str, cookie: int = 0) -> None:
        """Begin a job in the namespace at `path` (also `/proc/PID/ns/net`).

        `cookie`: that it must have; where another one is there by now, the job fails with ESTALE.
        """
        self._jobs.append((path, lib.RCN_ENTER, len(self._kinds), cookie))

    def host(self) -> None:
        """Begin a job without a namespace of its own."""
        self._jobs.append(("", lib.RCN_HOST, len(self._kinds), 0))

    def _add(
        self,
        action: tuple[str, object],
        kind: int,
        *,
        inside: bool = False,
        family: int = 0,
        prefix: int = 0,
        remove: bool = False,
        scope: int = 0,
        via: bytes = b"",
        source: bytes = b"",
        link: int | str = 0,
        other: int = 0,
        mtu: int = 0,
        table: int = 0,
        priority: int = 0,
        set_: int = 0,
        gen_mode: int = 0,
        port: int = 0,
        mac: bytes = b"",
        peer_mac: bytes = b"",
        protocol: int = 0,
        address: bytes = b"",
        link_name: str = "",
        name: str = "",
        text: bytes = b"",
    ) -> None:
        if isinstance(link, str):
            index, link_name = 0, link
        else:
            index = link
        self._kinds.append(action)
        self._steps += STEP.pack(
            kind, inside, family, prefix, remove, scope, bool(via), bool(source), index, other, mtu,
            table, priority, set_, gen_mode, port, mac, peer_mac, protocol, address, via, source,
            _name(link_name), _name(name), _text(text),
        )  # fmt: skip

    def veth(
        self,
        *,
        name: str,
        index: int,
        mac: bytes,
        mtu: int,
        master: int,
        alias: str,
        port: int,
        peer_name: str,
        peer_index: int,
        peer_mac: bytes,
        group: int = 0,
        ipv6: bool = True,
    ) -> None:
        """A veth pair: the host's end numbered `index` and up, the other placed in the namespace.

        `master` 0: no bridge; `port`: how it treats the host's end (model.py), and with PORT_LOCKED it is
        told of the inner end's MAC; `peer_index` 0: the
        kernel numbers the inner end; `group`: the host end's device group (0: the default one);
        `ipv6`: whether the link has IPv6, which then gives it no address by itself.
        """
        self._add(
            ("add veth {} in the host", name), lib.RCN_VETH, link=index, link_name=name, mac=mac,
            mtu=mtu, other=master, text=alias.encode(), port=port, gen_mode=int(ipv6),
            name=peer_name, priority=peer_index, peer_mac=peer_mac, table=group,
        )  # fmt: skip

    def bridge(self, *, name: str, index: int, mac: bytes) -> None:
        """A bridge on the host, down and without multicast snooping."""
        self._add(("add bridge {}", name), lib.RCN_BRIDGE, link=index, link_name=name, mac=mac)

    def link(
        self,
        link: int | str,
        *,
        inside: bool,
        name: str | None = None,
        mac: bytes | None = None,
        mtu: int | None = None,
        master: int | None = None,
        up: bool | None = None,
        alias: str | None = None,
        gen_mode: int | None = None,
        port: int | None = None,
        group: int | None = None,
        flush: bool = False,
        snoop: bool = False,
    ) -> None:
        """Set what is given on a link (`master` 0: out of its bridge).

        `flush`: its bridge forgets what it has learned behind it; `snoop`: it is a bridge, and
        follows multicast groups. The flags are set before the
        address generation mode.
        """
        chosen = (
            (lib.RCN_SET_NAME if name is not None else 0)
            | (lib.RCN_SET_MAC if mac is not None else 0)
            | (lib.RCN_SET_MTU if mtu is not None else 0)
            | (lib.RCN_SET_MASTER if master is not None else 0)
            | (lib.RCN_SET_UP if up else lib.RCN_SET_DOWN if up is not None else 0)
            | (lib.RCN_SET_ALIAS if alias is not None else 0)
            | (lib.RCN_SET_GEN_MODE if gen_mode is not None else 0)
            | (lib.RCN_SET_PORT if port is not None else 0)
            | (lib.RCN_SET_GROUP if group is not None else 0)
            | (lib.RCN_SET_FLUSH if flush else 0)
            | (lib.RCN_SET_SNOOP if snoop else 0)
        )
        self._add(
            ("set link {}", link), lib.RCN_LINK, inside=inside, link=link, set_=chosen,
            name=name or "", mac=mac or b"", mtu=mtu or 0, other=master or 0,
            text=(alias or "").encode(), gen_mode=gen_mode or 0, port=port or 0, table=group or 0,
        )  # fmt: skip

    def delete_link(self, link: int | str, *, inside: bool) -> None:
        """Delete a link; a veth's other end goes with it."""
        self._add(("delete link {}", link), lib.RCN_DELETE_LINK, inside=inside, link=link)

    def address(
        self, link: int | str, address: InterfaceAddress, *, inside: bool, delete: bool = False
    ) -> None:
        """An address; IPv6 ones are usable at once (no duplicate address detection)."""
        version, value = address.version, address.value
        self._add(
            ("remove address {}" if delete else "add address {}", address), lib.RCN_ADDRESS,
            inside=inside, link=link, remove=delete, family=FAMILY[version], prefix=address.prefix,
            address=value.to_bytes(LENGTH[version], "big"), scope=SCOPE_LINK if address.is_link_local else 0,
        )  # fmt: skip

    def route(
        self,
        to: Subnet,
        *,
        via: Address | None,
        link: int | str,
        table: int = 254,
        source: Address | None = None,
        metric: int = 0,
        protocol: int = 0,
        inside: bool,
        delete: bool = False,
    ) -> None:
        """A unicast route; without `via` it is on link. `protocol` 0: ours, in the
        place of whatever led there."""
        version, value = to.version, to.value
        size = LENGTH[version]
        on_link = version == 4 and via is None
        self._add(
            ("remove route {}" if delete else "add route {}", to), lib.RCN_ROUTE, inside=inside,
            link=link, remove=delete, family=FAMILY[version], prefix=to.prefix, table=table,
            priority=metric, protocol=protocol, address=value.to_bytes(size, "big"),
            scope=SCOPE_LINK if on_link else 0,
            via=via.value.to_bytes(size, "big") if via else b"",
            source=source.value.to_bytes(size, "big") if source else b"",
        )  # fmt: skip

    def rule(
        self, source: Subnet, *, table: int, priority: int, inside: bool, delete: bool = False
    ) -> None:
        """`from SOURCE lookup TABLE`."""
        version, value = source.version, source.value
        self._add(
            ("remove rule from {}" if delete else "add rule from {}", source), lib.RCN_RULE,
            inside=inside, remove=delete, family=FAMILY[version], prefix=source.prefix, table=table,
            priority=priority, address=value.to_bytes(LENGTH[version], "big"),
        )  # fmt: skip

    def neighbour(
        self, address: Address, mac: bytes, *, link: int | str, inside: bool, delete: bool = False
    ) -> None:
        """A permanent neighbour entry: `address` is at `mac` on that link."""
        version, value = address.version, address.value
        self._add(
            ("remove neighbour {}" if delete else "add neighbour {}", address), lib.RCN_NEIGHBOUR,
            inside=inside, link=link, remove=delete, family=FAMILY[version], mac=mac,
            address=value.to_bytes(LENGTH[version], "big"),
        )  # fmt: skip

    def table(self, mac: bytes, *, port: int, delete: bool = False) -> None:
        """A bridge's entry: `mac` is behind that port, whatever is heard elsewhere."""
        self._add(
            ("forget what is behind link {}" if delete else "tell what is behind link {}", port),
            lib.RCN_NEIGHBOUR, link=port, remove=delete, family=BRIDGE, mac=mac,
        )  # fmt: skip

    def sysctl(self, name: str, value: str, *, inside: bool, if_there: bool = False) -> None:
        """Write a sysctl. Dots part the name, or slashes, where an interface's name holds dots.

        `if_there`: no error where there is no such entry.
        """
        self._add(
            ("set sysctl {}", name), lib.RCN_SYSCTL, inside=inside,
            text=name.encode() + b"\0" + value.encode(), set_=lib.RCN_SET_IF_THERE if if_there else 0,
        )  # fmt: skip

    def run(self) -> list[Result]:
        """Carry all jobs out, in order; a result for each.

        Raises OSError where not even the threads' sockets could be had.
        """
        if not self._jobs:
            return []
        count = len(self._jobs)
        jobs = ffi.new("struct rcn_job[]", count)
        keep = []
        ends = [first for _, _, first, _ in self._jobs[1:]] + [len(self._kinds)]
        for job, (path, mode, first, cookie), end in zip(jobs, self._jobs, ends, strict=True):
            if path:
                keep.append(ffi.new("char[]", path.encode()))
                job.path = keep[-1]
            job.mode, job.first, job.count, job.cookie = mode, first, end - first, cookie
        results = ffi.new("struct rcn_result[]", count)
        steps = ffi.from_buffer("struct rcn_step[]", self._steps) if self._steps else ffi.NULL
        error = lib.rcn_run(jobs, count, steps, results)
        if error:
            raise OSError(-error, "the netlink threads could not start")
        return [
            Result(r.cookie, () if not r.error else (self._failure(r, first, path),))
            for r, (path, _, first, _) in zip(results, self._jobs, strict=True)
        ]

    def _failure(self, r: Any, first: int, path: str) -> Failure:
        step, error = int(r.step), int(r.error)
        text = ffi.string(r.text).decode("utf-8", "replace")
        if step == MAKING:
            return Failure(error, text, f"enter or make the namespace of {path}")
        if step == BINDING:
            return Failure(error, text, f"bind the namespace to {path}")
        shape, what = self._kinds[first + step]
        return Failure(error, text, shape.format(what))


def _name(name: str) -> bytes:
    raw = name.encode()
    if len(raw) > 15:
        raise ValueError(f"{name!r} is longer than 15 bytes")
    return raw


def _text(text: bytes) -> bytes:
    if len(text) > 254:
        raise ValueError("longer than 254 bytes")
    return text
