"""What a host has of either firewall, without loading what writes to it."""

from collections.abc import Collection

from reconciler.core import xtables
from reconciler.core.errors import FirewallError
from reconciler.core.nftset import TABLE, USER, is_users
from reconciler.host.firewall import kernel, nfnl, programs

NAME = "runcnet"
USER_CHAIN = f"{TABLE} {USER}"


def program() -> str | None:
    """The path of the nft program, if it is installed."""
    return programs.path_of("nft")


def lacks() -> str:
    """Why there can be no nftables here; empty: there can."""
    if program() is None:
        return "there is no nft program"
    return "this kernel has no nftables" if nfnl.generation() < 0 else ""


def present(family: int = nfnl.INET) -> bool:
    """Whether there is a table of our name; asks the kernel alone."""
    return (family, NAME) in nfnl.tables()


def stands() -> bool:
    """Whether chains of ours stand; asks the kernel alone."""
    names = (
        nfnl.text(found[nfnl.CHAIN_NAME])
        for family, found in nfnl.dump(nfnl.GETCHAIN, b"", nfnl.INET)
        if family == nfnl.INET and nfnl.text(found[nfnl.CHAIN_TABLE]) == NAME
    )
    return any(not is_users(name) for name in names)


def users_rules() -> bool:
    """Whether the administrator's chain holds rules."""
    body = nfnl.attribute(nfnl.RULE_TABLE, NAME.encode() + b"\0")
    chain = USER.encode() + b"\0"
    return any(
        rule.get(nfnl.RULE_CHAIN) == chain for _, rule in nfnl.dump(nfnl.GETRULE, body, nfnl.INET)
    )


def legacy_in_use() -> list[str]:
    """The legacy tables in which somebody else has rules, or a policy that is not to accept."""
    return [
        f"{table} (IPv{version})"
        for version in (4, 6)
        for table in sorted(kernel.existing(version))
        if _is_used(version, table)
    ]


def _is_used(version: int, table: str) -> bool:
    try:
        found = kernel.read(version, table)
    except FirewallError:
        return True  # it stands, and cannot be read: somebody else's
    foreign = any(
        not xtables.is_ours(rule.target)
        for chain, rules in found.chains.items()
        if not xtables.is_ours(chain) or chain == xtables.USER
        for rule in rules
    )
    return foreign or any(policy != "ACCEPT" for policy in found.policies.values())


def legacy_users_rules(*, met: Collection[int] = ()) -> bool:
    """Whether the administrator's legacy chain holds rules, but in tables of IP versions that packets
    do meet."""
    return any(
        kernel.read(version, "filter").chains.get(xtables.USER)
        for version in (4, 6)
        if version not in met and "filter" in kernel.existing(version)
    )


def nftables_in_use() -> list[str]:
    """The nftables of others in which a packet can meet a rule."""
    names = {1: "inet", 2: "ip", 10: "ip6"}
    hooked = {
        (family, found[nfnl.CHAIN_TABLE])
        for family, found in nfnl.dump(nfnl.GETCHAIN, b"")
        if family in names and nfnl.CHAIN_HOOK in found
    }
    ruled = {(family, found[nfnl.RULE_TABLE]) for family, found in nfnl.dump(nfnl.GETRULE, b"")}
    ours = (nfnl.INET, NAME)
    tables = {(family, nfnl.text(table)) for family, table in hooked & ruled} - {ours}
    return [f"{names[family]} {table}" for family, table in sorted(tables)]
