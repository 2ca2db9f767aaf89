"""`python -m reconciler.host.firewall.worker`: one commit a table, through python-iptables.

One process serves one IP version: once libxtables has looked an extension up for one of them, it
may not find it for the other (MASQUERADE of iptables 1.8.9). The worker reads a Request from stdin
and writes an Answer to stdout. The tables are read by `kernel`: before the commit to know what
differs, and after it to see that the kernel holds what was meant. Nothing of this file is imported
by the rest of the program.
"""

import contextlib
import ctypes
import ctypes.util
import fcntl
import importlib.util
import os
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from reconciler.core import xtables
from reconciler.core.errors import FirewallError
from reconciler.host import userns
from reconciler.host.firewall import kernel, legacy
from reconciler.host.firewall.iptables import Answer, Request, State, state

LOCK = os.environ.get("XTABLES_LOCKFILE") or "/run/xtables.lock"
"""iptables(8) knows the variable, too."""
LIBRARIES = {
    "c": ("libc.so.6",),
    "ip4tc": ("libip4tc.so.2",),
    "ip6tc": ("libip6tc.so.2",),
    "xtables": ("libxtables.so.12",),
}
"""Where they are by another name, they are searched for."""


@contextmanager
def locked(timeout_s: float) -> Iterator[None]:
    """Hold the lock that every iptables program takes."""

    def expire(number: int, frame: object) -> None:
        raise TimeoutError

    try:
        descriptor = os.open(LOCK, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        remedy = " (mount a tmpfs at /run, set XTABLES_LOCKFILE, or take --firewall nftables)"
        raise FirewallError(
            f"firewall: open {LOCK}: {error.strerror}{remedy if userns.inner() else ''}"
        ) from error
    signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except TimeoutError:
        raise FirewallError(
            f"firewall: lock {LOCK}: another program held it for {timeout_s:g} s "
            f"(see who with `fuser -v {LOCK}`; the next run tries again)"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        os.close(descriptor)


def _found_at_once() -> None:
    """Spare python-iptables the programs that it starts to find libraries and to load modules.

    It asks ctypes, which runs ldconfig and gcc; the loader itself knows where a library is. And it
    runs modprobe, also where the tables are there already.
    """
    search = ctypes.util.find_library

    def find(name: str) -> str | None:
        for library in LIBRARIES.get(name, ()):
            with contextlib.suppress(OSError):
                ctypes.CDLL(library)
                return library
        # Its own helper lies beside it, where it looks by itself.
        return None if "xtwrapper" in name else search(name)

    ctypes.util.find_library = find
    package = importlib.util.find_spec("iptc")
    if package is None or package.submodule_search_locations is None:
        return
    path = os.path.join(package.submodule_search_locations[0], "util.py")
    spec = importlib.util.spec_from_file_location("iptc.util", path)
    if spec is None or spec.loader is None:
        return
    util = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(util)
    real = util.load_kernel

    def load_kernel(name: str, exc_if_failed: bool = False) -> None:
        if not os.path.exists(f"/proc/thread-self/net/{name}_names"):
            real(name, exc_if_failed)

    util.load_kernel = load_kernel  # type: ignore[attr-defined]
    sys.modules["iptc.util"] = util


def load() -> Any:
    """Import python-iptables, which loads libraries and kernel modules."""
    try:
        _found_at_once()
        import iptc
    except (ImportError, OSError, AttributeError, TypeError) as error:
        # Absent C libraries show as None, on which it then looks up a function.
        raise FirewallError(
            f"firewall: load python-iptables: {error} "
            "(install python-iptables and the iptables libraries, or run with --firewall none)"
        ) from error
    # To tell a chain from an extension it opens every table it does not know to be unavailable,
    # and opening one creates it in the kernel, for good.
    for kind in (iptc.Table, iptc.Table6):
        kind.existing_table_names.update({name: False for name in kind.ALL})
    return iptc


def commit(iptc: Any, s: State) -> None:
    """Edit one table, in one commit."""
    kind, low = (iptc.Table, iptc.ip4tc.iptc) if s.version == 4 else (iptc.Table6, iptc.ip6tc.ip6tc)
    where = f"IPv{s.version} table {s.table}"
    try:
        table = kind(s.table, autocommit=False)
        kind.existing_table_names[s.table] = True
        for edit in s.edits:
            if edit.verb == "new":
                table.create_chain(edit.chain)
            elif edit.verb == "flush":
                table.flush_entries(edit.chain)
            elif edit.verb == "append":
                assert edit.rule is not None
                table.append_entry(edit.chain, entry(iptc, s.version, edit.rule))
            elif edit.verb == "insert":
                assert edit.rule is not None
                table.insert_entry(edit.chain, entry(iptc, s.version, edit.rule), edit.number - 1)
            elif edit.verb == "delete":
                name = edit.chain.encode()
                if low.iptc_delete_num_entry(name, edit.number - 1, table._handle) != 1:
                    raise iptc.IPTCError(table.strerror())
            else:
                table.delete_chain(edit.chain)
        table.commit()
        kind.existing_table_names[s.table] = False
    except (iptc.IPTCError, iptc.XTablesError) as error:
        raise FirewallError(
            f"firewall: change {where}: {error} (see `{xtables.PROGRAM[s.version]}-save`)"
        ) from error


def entry(iptc: Any, version: int, rule: xtables.Rule) -> Any:
    """The rule as libiptc takes it."""
    if rule.other:
        return written_back(rule, version)
    made = iptc.Rule() if version == 4 else iptc.Rule6()
    ip = made.get_ip()
    # Not through in_interface: for IPv6 it writes a mask of 0x01 bytes, so that the kernel compares
    # one bit of each character, and a rule for eth0 meets eth2 as well.
    for attribute, link in (("iniface", rule.in_link), ("outiface", rule.out_link)):
        if link:
            setattr(ip, attribute, link.encode())
            setattr(ip, f"{attribute}_mask", b"\xff" * (len(link) + 1))
    if rule.not_in_link:
        ip.iniface = rule.not_in_link.encode()
        ip.iniface_mask = b"\xff" * (len(rule.not_in_link) + 1)
        ip.invflags |= 1
    if rule.protocol:
        number = next(n for n, name in kernel.PROTOCOLS.items() if name == rule.protocol)
        ip.proto = number
        if version == 6:
            ip.flags |= 1  # IP6T_F_PROTO: without it the number is not looked at
    if rule.source is not None:
        made.src = str(rule.source)
    if rule.destination is not None:
        made.dst = str(rule.destination)
    if rule.ports != (0, 0):
        run = xtables.port_run(*rule.ports, ":")
        made.create_match(rule.protocol).set_parameter("dport", run)
    if rule.icmp:
        made.create_match("icmp6").set_parameter("icmpv6-type", str(rule.icmp))
    if rule.local:
        made.create_match("addrtype").set_parameter("dst-type", "LOCAL")
    if rule.in_group or rule.out_group:
        groups = made.create_match("devgroup")
        if rule.in_group:
            groups.set_parameter("src-group", f"{rule.in_group:#x}")
        if rule.out_group:
            groups.set_parameter("dst-group", f"{rule.out_group:#x}")
    if rule.astray:
        made.create_match("rpfilter").set_parameter("invert")
    if rule.bridged:
        made.create_match("physdev").set_parameter("physdev-is-bridged")
    if rule.replies:
        made.create_match("conntrack").set_parameter("ctstate", "RELATED,ESTABLISHED")
    if rule.translated:
        made.create_match("conntrack").set_parameter("ctstate", "DNAT")
    if rule.comment:
        made.create_match("comment").set_parameter("comment", rule.comment)
    target = made.create_target(rule.target)
    if rule.to is not None:
        target.set_parameter("to-destination", rule.goal)
        target._final_check()
    if rule.target == "MASQUERADE":
        # The extension fills its data in at this check. The public one around it would print and
        # parse the rule anew, through descriptor 1.
        target._final_check()
    return made.rule


def written_back(rule: xtables.Rule, version: int) -> Any:
    """A rule that is not in our words, as the kernel had it."""
    data = bytearray(rule.other)
    place = struct.unpack_from("=H", data, legacy.LAYOUTS[version].cache + 4)[0]
    name = rule.target.encode("utf-8", "surrogateescape")
    # libiptc wants a verdict or a chain by its name, where the kernel has a number.
    data[place + 2 : place + 31] = name.ljust(29, b"\0")
    return (ctypes.c_ubyte * len(data)).from_buffer_copy(bytes(data))


def work(request: Request) -> Answer:
    """Lock, compare, commit what differs, and look again."""
    iptc = load()
    version, committed = request.version, []
    before = legacy.existing(version)
    with locked(request.lock_timeout_s):
        for table in xtables.JUMPS:
            found = state(request.policy, version, table, request.beside)
            if not found.edits:
                continue
            if table not in before:
                legacy.fetch(version, table)  # Tells a kernel without legacy tables apart.
                found = state(request.policy, version, table, request.beside)
            commit(iptc, found)
            committed.append(f"{table} (IPv{version})")
            left = state(request.policy, version, table, request.beside)
            lines = left.differences
            if lines:
                raise FirewallError(
                    f"firewall: check what was committed: {lines[0]} (another program changes the "
                    "tables, or the kernel and the iptables libraries do not fit each other)"
                )
    created = sorted(legacy.existing(version) - before)
    return Answer(
        committed=tuple(committed), created=tuple(f"{table} (IPv{version})" for table in created)
    )


def main() -> None:
    """Answer one request."""
    # python-iptables and its libraries may print: what they say goes to stderr.
    out = os.dup(1)
    os.dup2(2, 1)
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    try:
        answer = work(request)
    except FirewallError as error:
        answer = Answer(error=str(error))
    with os.fdopen(out, "wb") as file:
        file.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    main()
