"""The only importer of iptc: a short-lived child. Tables as JSON on stdin, what it saw on stdout.

A child of its own because iptc is bound to one network namespace, points into freed memory after a
refresh, redirects descriptor 1 and can longjmp over Python frames.
"""

import fcntl
import json
import os
import sys
import time
from typing import Any

LOCK = "/run/xtables.lock"
PREFIX = "RUNCNET-"
USER = "RUNCNET-USER"


class Refused(Exception):  # noqa: N818 - becomes one sentence on the other side
    """Something that the operator must know."""


def lock(timeout_s: float) -> int:
    """Hold the lock that iptables itself holds; for as long as this process lives."""
    fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Refused(
                    f"{LOCK} was held by another program for {timeout_s:g} s (try again)"
                ) from None
        time.sleep(0.02)


def load() -> Any:
    """Import iptc; raises Refused where its libraries are missing."""
    try:
        import iptc
    except Exception as error:  # noqa: BLE001 - it raises whatever its loader met
        raise Refused(
            f"python-iptables cannot be used: {error} "
            "(install iptables and its libraries, or use --firewall none)"
        ) from None
    return iptc


def open_table(iptc: Any, version: int, name: str) -> Any:
    """A fresh view of a table; makes the kernel load it."""
    kind = iptc.Table if version == 4 else iptc.Table6
    try:
        table = kind(name, autocommit=False)
        table.refresh()
    except Exception as error:  # noqa: BLE001 - iptc raises its own and bare ones
        raise Refused(
            f"the kernel has no legacy {name} table for IPv{version}: {error} "
            "(use --firewall none and filter by other means)"
        ) from None
    return table


def _plain(address: str | None) -> str:
    """`10.0.0.0/255.0.0.0` → `10.0.0.0/8`; nothing for every address."""
    import ipaddress

    if not address:
        return ""
    net = ipaddress.ip_network(address.lstrip("!"), strict=False)
    if net.prefixlen == 0:
        return ""
    return ("!" if address.startswith("!") else "") + str(net)


def read_rule(rule: Any) -> list[str]:
    """A rule as the list that `xtables.Rule` is made of. Copies at once."""
    other: list[str] = []
    comment = states = ""
    for match in rule.matches:
        parameters = dict(match.get_all_parameters())
        if match.name == "comment" and set(parameters) == {"comment"}:
            comment = " ".join(parameters["comment"])
        elif match.name == "conntrack" and set(parameters) == {"ctstate"}:
            states = ",".join(parameters["ctstate"])
        else:
            other.append(f"{match.name} {parameters}")
    target = rule.target
    name = target.name if target is not None else ""
    extra = dict(target.get_all_parameters()) if target is not None else {}
    if extra:
        other.append(f"target {extra}")
    protocol = str(rule.protocol)
    if protocol not in ("ip", "0", "all", "ipv6", "hopopt"):
        other.append(f"protocol {protocol}")
    if getattr(rule, "fragment", False):
        other.append("fragment")
    links = [rule.in_interface or "", rule.out_interface or ""]
    ends = [_plain(rule.src), _plain(rule.dst)]
    order = {"NEW": 0, "RELATED": 1, "ESTABLISHED": 2}
    states = ",".join(sorted(states.split(","), key=lambda s: order.get(s, 9))) if states else ""
    return [name, comment, *links, *ends, states, "; ".join(other)]


def read(iptc: Any, table: Any, builtin: str, jump: str) -> dict[str, Any]:
    """Chains of ours in a table, and where the jumps to them stand."""
    chains = {
        chain.name: [read_rule(rule) for rule in chain.rules]
        for chain in table.chains
        if chain.name.startswith(PREFIX)
    }
    jumps = []
    before = []
    for position, rule in enumerate(iptc.Chain(table, builtin).rules):
        target = rule.target.name if rule.target is not None else ""
        if target.startswith(PREFIX):
            jumps.append([position, read_rule(rule)])
        elif not jumps:
            before.append(target)
    return {"chains": chains, "jumps": jumps, "before": before}


def build(iptc: Any, version: int, fields: list[str]) -> Any:
    """A rule from its fields."""
    target, comment, link_in, link_out, source, destination, states, _ = fields
    rule = iptc.Rule() if version == 4 else iptc.Rule6()
    if source:
        rule.src = source
    if destination:
        rule.dst = destination
    if link_in:
        rule.in_interface = link_in
    if link_out:
        rule.out_interface = link_out
    if states:
        rule.create_match("conntrack").ctstate = states.split(",")
    rule.create_match("comment").comment = comment
    rule.target = iptc.Target(rule, target)
    return rule


def replace(iptc: Any, table: Any, version: int, order: dict[str, Any]) -> None:
    """Put chains and the jump in place; nothing is in the kernel before the one commit."""
    wanted, jump, builtin = order["chains"], order["jump"], order["builtin"]
    names = [chain.name for chain in table.chains]
    if wanted and order["user"] and USER not in names:
        table.create_chain(USER)
    for name in wanted:
        if name not in names:
            table.create_chain(name)
    top = iptc.Chain(table, builtin)
    for rule in list(top.rules):
        if rule.target is not None and rule.target.name.startswith(PREFIX):
            top.delete_rule(rule)
    if wanted:
        top.insert_rule(build(iptc, version, jump), position=order["position"])
    stale = [n for n in names if n.startswith(PREFIX) and n not in wanted and n != USER]
    for name in [*wanted, *stale]:
        chain = iptc.Chain(table, name)
        if name in names:
            chain.flush()
        for fields in wanted.get(name, ()):
            chain.append_rule(build(iptc, version, fields))
    for name in stale:
        table.delete_chain(name)
    if not wanted and USER in names and not iptc.Chain(table, USER).rules:
        table.delete_chain(USER)
    table.commit()
    table.refresh()


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Answer one request: read tables and, where asked, replace what is ours in them."""
    held = lock(request["lock_timeout_s"])
    try:
        iptc = load()
        seen = {}
        for key, order in request["tables"].items():
            version, name = int(key[0]), key[2:]
            table = open_table(iptc, version, name)
            if order.get("replace"):
                replace(iptc, table, version, order)
            seen[key] = read(iptc, table, order["builtin"], order["jump"][0])
        return {"seen": seen}
    finally:
        os.close(held)


def main() -> int:
    """Speak JSON; descriptor 1 is kept aside, for libraries print to it."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    try:
        answer = serve(request)
    except Refused as error:
        answer = {"error": str(error)}
    json.dump(answer, out)
    out.flush()
    # iptc's finalizers would walk over handles of tables that are gone.
    os._exit(0)


if __name__ == "__main__":
    main()
