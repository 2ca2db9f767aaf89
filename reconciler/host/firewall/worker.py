"""`python -m reconciler.host.firewall.worker`: edits of the tables, through python-iptables.

It loads the library and waits. For each turn (see `standby.py`) it forks, and the child serves it: the
lock, and one commit a table. One turn serves one IP version: once libxtables has looked an extension
up for one of them, it may not find it for the other (MASQUERADE of iptables 1.8.9). Nothing of this
file is imported by the rest of the program.
"""

import contextlib
import ctypes
import ctypes.util
import fcntl
import gc
import importlib.util
import os
import signal
import struct
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from reconciler.core import xtables
from reconciler.core.errors import FirewallError
from reconciler.host import userns
from reconciler.host.firewall import decoding
from reconciler.host.firewall.standby import Answer, Begin, Change, receive, send

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


def kind_of(iptc: Any, version: int) -> Any:
    """The library's tables of an IP version."""
    return iptc.Table if version == 4 else iptc.Table6


def commit(iptc: Any, version: int, change: Change) -> None:
    """Edit one table, in one commit."""
    kind = kind_of(iptc, version)
    low = iptc.ip4tc.iptc if version == 4 else iptc.ip6tc.ip6tc
    try:
        # The library keeps the one that was opened in this turn.
        table = kind(change.table, autocommit=False)
        kind.existing_table_names[change.table] = True
        for edit in change.steps:
            if edit.verb == "new":
                table.create_chain(edit.chain)
            elif edit.verb == "flush":
                table.flush_entries(edit.chain)
            elif edit.verb == "append":
                assert edit.rule is not None
                table.append_entry(edit.chain, entry(iptc, version, edit.rule))
            elif edit.verb == "insert":
                assert edit.rule is not None
                table.insert_entry(edit.chain, entry(iptc, version, edit.rule), edit.number - 1)
            elif edit.verb == "delete":
                name = edit.chain.encode()
                if low.iptc_delete_num_entry(name, edit.number - 1, table._handle) != 1:
                    raise iptc.IPTCError(table.strerror())
            else:
                table.delete_chain(edit.chain)
        table.commit()
        kind.existing_table_names[change.table] = False
    except (iptc.IPTCError, iptc.XTablesError) as error:
        raise FirewallError(
            f"firewall: change IPv{version} table {change.table}: {error} "
            f"(see `{xtables.PROGRAM[version]}-save`)"
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
        number = next(n for n, name in decoding.PROTOCOLS.items() if name == rule.protocol)
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
    place = struct.unpack_from("=H", data, decoding.LAYOUTS[version].cache + 4)[0]
    name = rule.target.encode("utf-8", "surrogateescape")
    # libiptc wants a verdict or a chain by its name, where the kernel has a number.
    data[place + 2 : place + 31] = name.ljust(29, b"\0")
    return (ctypes.c_ubyte * len(data)).from_buffer_copy(bytes(data))


def turn(iptc: Any, out: int) -> None:
    """Hold the lock and do as one is told, until that is enough. Raises EOFError and BrokenPipeError."""
    begin = receive(0)
    assert isinstance(begin, Begin)
    try:
        with locked(begin.lock_timeout_s):
            send(out, Answer())
            for table in begin.tables:  # while the parent reads them once more
                with contextlib.suppress(iptc.IPTCError):
                    kind_of(iptc, begin.version)(table, autocommit=False)
            while isinstance(message := receive(0), Change):
                try:
                    commit(iptc, begin.version, message)
                except FirewallError as error:
                    send(out, Answer(str(error)))
                else:
                    send(out, Answer())
    except FirewallError as error:
        send(out, Answer(str(error)))
    else:
        send(out, Answer())


def forked(iptc: Any, out: int) -> int:
    """Have a child wait for a turn and serve it; how it ended."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = CRASHED
    try:
        turn(iptc, out)
        code = SERVED
    except (EOFError, BrokenPipeError):
        code = ALONE
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


SERVED, CRASHED, ALONE = 0, 1, 3


def main() -> None:
    """Serve one turn after another, until the parent is gone."""
    # python-iptables and its libraries may print: what they say goes to stderr, and what they said
    # in a turn that went well is not kept.
    out = os.dup(1)
    os.dup2(2, 1)
    fcntl.fcntl(2, fcntl.F_SETFL, fcntl.fcntl(2, fcntl.F_GETFL) | os.O_APPEND)
    try:
        iptc = load()
    except FirewallError as error:
        with contextlib.suppress(EOFError, BrokenPipeError):
            receive(0)
            send(out, Answer(str(error)))
        return  # it may be mended: the next one looks again
    gc.freeze()  # a child copies no page of what is here only to look for garbage
    while (ended := forked(iptc, out)) == SERVED:
        os.ftruncate(2, 0)
    if ended != ALONE:
        with contextlib.suppress(BrokenPipeError):
            send(out, Answer(str(ended), broken=True))


if __name__ == "__main__":
    main()
