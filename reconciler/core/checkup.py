"""What a host's limits mean for what is declared: which would be met, and the command that lifts each.

Pure: the shell reads the values, this file judges them.
"""

from collections.abc import Iterator, Mapping

import msgspec

from reconciler.core.model import Spec

SPACE_KB = 350
"""Kernel memory of one namespace with a veth pair, measured on Linux 6.18 with 10,000 of them."""
TASKS = 4
"""Processes and threads that a small container brings, its runtime's included."""
FLOWS = 64
"""Connections at once that one container may well have."""
OWN_FILES = 256
"""Descriptors that a pass has open at most, with room."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that will go wrong, or may."""

    topic: str
    serious: bool
    """Whether it stops what is declared from working; else it is good to know."""
    text: str
    command: str = ""
    """What lifts it; empty: nothing that one line could say."""


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What the declaration asks of the host."""

    spaces: int
    """Network namespaces of one's own."""
    missing: int
    """Of these, still to be made."""
    routes6: int
    """IPv6 routes of the host to members of routed networks."""
    tracked: bool
    """Whether a network is masqueraded or lets replies in only: both need connection tracking."""
    bridges: bool
    uplinks: tuple[str, ...]
    """The uplinks of networks that name several."""


def needs_of(spec: Spec, *, standing: int) -> Needs:
    """What `spec` asks for, where `standing` namespaces of it are there."""
    spaces = sum(c.mode in ("network", "none") for c in spec.containers.values())
    routed = {n.name for n in spec.networks.values() if n.type == "routed" and n.subnet(6)}
    several = {u for n in spec.networks.values() if len(n.uplinks) > 1 for u in n.uplinks}
    return Needs(
        spaces=spaces,
        missing=max(0, spaces - standing),
        routes6=sum(i.network in routed for c in spec.containers.values() for i in c.interfaces),
        tracked=any(
            n.masquerade or (n.inbound == "established" and not n.internal)
            for n in spec.networks.values()
        ),
        bridges=any(n.type == "bridge" for n in spec.networks.values()),
        uplinks=tuple(sorted(several)),
    )


class _Sysctl(msgspec.Struct, frozen=True):
    name: str
    wanted: int
    what: str


def findings(needs: Needs, values: Mapping[str, str]) -> list[Finding]:
    """Judge the host.

    `values`: sysctls by name with dots, as far as they exist, and `open_files` (the soft limit),
    `available_kb` (memory), `spaces` and `mounts` (how many the machine has now).
    """
    return [*_sysctls(needs, values), *_memory(needs, values), *_manners(needs, values)]


def _number(values: Mapping[str, str], name: str) -> int | None:
    text = values.get(name, "").strip()
    return int(text) if text.isdigit() else None


def _sysctls(needs: Needs, values: Mapping[str, str]) -> Iterator[Finding]:
    more = needs.missing
    limits = [
        _Sysctl("user.max_net_namespaces", (_number(values, "spaces") or 0) + more,
                "network namespaces that a user may have"),
        _Sysctl("fs.mount-max", (_number(values, "mounts") or 0) + more,
                "mounts in a mount namespace; each netns file is one"),
        _Sysctl("kernel.pid_max", TASKS * needs.spaces, "process numbers"),
        _Sysctl("kernel.threads-max", TASKS * needs.spaces, "threads on the machine"),
        _Sysctl("fs.inotify.max_user_instances", needs.spaces,
                "inotify instances of a user, one for each container that watches a file"),
        _Sysctl("net.ipv6.route.max_size", 2 * needs.routes6, "IPv6 routes"),
    ]  # fmt: skip
    if needs.tracked:
        limits.append(
            _Sysctl("net.netfilter.nf_conntrack_max", FLOWS * needs.spaces, "tracked connections")
        )
    for limit in limits:
        now = _number(values, limit.name)
        if now is not None and now < limit.wanted:
            yield Finding(
                topic=limit.name,
                serious=limit.name.startswith(("user.", "fs.mount", "kernel.", "net.ipv6")),
                text=f"{now} {limit.what}; what is declared may need {limit.wanted}",
                command=f"sysctl -w {limit.name}={1 << (limit.wanted - 1).bit_length()}",
            )
    files = _number(values, "open_files")
    if files is not None and files < OWN_FILES:
        yield Finding(
            topic="open files",
            serious=True,
            text=f"{files} open files are allowed; a pass may need {OWN_FILES}",
            command=f"ulimit -n {OWN_FILES * 4}",
        )


def _memory(needs: Needs, values: Mapping[str, str]) -> Iterator[Finding]:
    free = _number(values, "available_kb")
    wanted = SPACE_KB * needs.missing
    if free is not None and wanted > free:
        yield Finding(
            topic="memory",
            serious=True,
            text=f"{needs.missing} more namespaces take some {wanted // 1024} MiB in the kernel, and "
            f"{free // 1024} MiB are available (declare fewer, or add memory)",
        )


def _manners(needs: Needs, values: Mapping[str, str]) -> Iterator[Finding]:
    for name in ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"):
        if needs.bridges and values.get(name, "").strip() == "1":
            yield Finding(
                topic=name,
                serious=False,
                text="br_netfilter sends what members of one bridge say to each other through "
                "iptables; rules of others can drop it, and it costs time",
                command=f"sysctl -w {name}=0",
            )
    for uplink in needs.uplinks:
        modes = [
            _number(values, f"net.ipv4.conf.{name}.rp_filter") or 0 for name in ("all", uplink)
        ]
        if max(modes) == 1:
            yield Finding(
                topic=f"rp_filter on {uplink}",
                serious=False,
                text="strict reverse path filtering, and several uplinks: an answer that comes in "
                "where the question did not go out is dropped",
                command=f"sysctl -w net.ipv4.conf.{uplink}.rp_filter=2",
            )
