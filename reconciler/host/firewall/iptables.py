"""The python-iptables backend: legacy xtables through a worker process."""

import json
import subprocess
import sys
from typing import Any

from reconciler.core import xtables
from reconciler.core.errors import FirewallError
from reconciler.core.policy import Policy
from reconciler.core.xtables import JUMPS, Chains, Rule, Tables
from reconciler.host.firewall import Seen, foreign

NAMES = {4: "/proc/thread-self/net/ip_tables_names", 6: "/proc/thread-self/net/ip6_tables_names"}
LOCK_TIMEOUT_S = 10.0
WORKER_TIMEOUT_S = 120.0
BEFORE_US = frozenset({"DOCKER-USER"})
"""Chains of administrators, whose jump may stand before ours."""


def existing(version: int) -> set[str]:
    """The tables that the kernel has already; looking creates none."""
    try:
        with open(NAMES[version], encoding="ascii") as file:
            return set(file.read().split())
    except FileNotFoundError:
        return set()


class View:
    """What was read of one table."""

    def __init__(self, raw: dict[str, Any] | None) -> None:
        raw = raw or {"chains": {}, "jumps": [], "before": []}
        self.chains: Chains = {
            name: tuple(Rule(*fields) for fields in rules) for name, rules in raw["chains"].items()
        }
        self.jumps = [(position, Rule(*fields)) for position, fields in raw["jumps"]]
        self.before: list[str] = raw["before"]

    def jump_is(self, jump: Rule) -> bool:
        """Whether the jump stands once, and nothing but an administrator's chain before it."""
        right = [rule for _, rule in self.jumps] == [jump]
        return right and all(target in BEFORE_US for target in self.before)

    def jump_position(self) -> int:
        """Where it belongs: behind those chains."""
        position = 0
        for target in self.before:
            if target not in BEFORE_US:
                break
            position += 1
        return position


def _builtin(table: str) -> tuple[str, Rule]:
    builtin, chain = next((b, c) for (t, b), c in JUMPS.items() if t == table)
    return builtin, Rule(chain, "runcnet:host")


class Iptables:
    """Own chains, replaced whole where they differ."""

    name = "iptables"

    def _ask(self, orders: dict[str, dict[str, Any]]) -> dict[str, View]:
        request = {"tables": orders, "lock_timeout_s": LOCK_TIMEOUT_S}
        done = subprocess.run(
            [sys.executable, "-m", "reconciler.host.firewall.worker"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=WORKER_TIMEOUT_S,
            check=False,
        )
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise FirewallError(
                f"the worker that speaks to python-iptables ended ({done.returncode}): {said}"
            ) from None
        if "error" in answer:
            raise FirewallError(answer["error"])
        return {key: View(raw) for key, raw in answer["seen"].items()}

    def _order(self, table: str, **more: Any) -> dict[str, Any]:
        builtin, jump = _builtin(table)
        return {"builtin": builtin, "jump": list(jump), **more}

    def _views(self) -> dict[tuple[int, str], View]:
        orders = {
            f"{version}/{table}": self._order(table)
            for version in (4, 6)
            for table in sorted(existing(version) & {"filter", "nat"})
        }
        answers = self._ask(orders) if orders else {}
        return {
            (version, table): answers.get(f"{version}/{table}", View(None))
            for version in (4, 6)
            for table in ("filter", "nat")
        }

    @staticmethod
    def _wanted(policy: Policy, views: dict[tuple[int, str], View]) -> Tables:
        return xtables.tables(policy, {key: view.chains for key, view in views.items()})

    @staticmethod
    def _differences(key: tuple[int, str], view: View, wanted: Chains) -> list[str]:
        version, table = key
        lines = xtables.describe(version, table, view.chains, wanted)
        builtin, jump = _builtin(table)
        if wanted and not view.jump_is(jump):
            lines.append(f"put the jump from {builtin} (IPv{version} {table}) in place")
        elif not wanted and view.jumps:
            lines.append(f"remove the jump from {builtin} (IPv{version} {table})")
        if wanted and table == "filter" and xtables.USER not in view.chains:
            lines.append(f"make {xtables.USER} (IPv{version} {table}) for the administrator")
        return lines

    def look(self, policy: Policy) -> Seen:
        """See Backend."""
        views = self._views()
        wanted = self._wanted(policy, views)
        lines = [
            line
            for key, view in views.items()
            for line in self._differences(key, view, wanted.get(key, {}))
        ]
        rules = [rule for view in views.values() for chain in view.chains.values() for rule in chain]
        owners = {xtables.owner(rule) for rule in rules}
        guards = {
            version
            for (version, table), view in views.items()
            if table == "filter"
            and Rule("DROP", "runcnet:host") in view.chains.get(xtables.FORWARD, ())
        }
        return Seen(
            differences=tuple(lines),
            networks=frozenset(owners - {"", "host"}),
            guards=frozenset(guards),
        )

    def replace(self, policy: Policy) -> tuple[str, ...]:
        """See Backend."""
        had = {version: existing(version) for version in (4, 6)}
        views = self._views()
        wanted = self._wanted(policy, views)
        orders = {}
        for key, view in views.items():
            version, table = key
            chains = wanted.get(key, {})
            if not self._differences(key, view, chains):
                continue
            orders[f"{version}/{table}"] = self._order(
                table,
                replace=True,
                chains={name: [list(rule) for rule in rules] for name, rules in chains.items()},
                user=table == "filter",
                position=view.jump_position(),
            )
        if not orders:
            return ()
        for name, view in self._ask(orders).items():
            key = int(name[0]), name[2:]
            left = self._differences(key, view, wanted.get(key, {}))
            if left:
                raise FirewallError(f"after the commit the kernel still differs: {'; '.join(left)}")
        made = [
            f"IPv{version} {table}"
            for version in (4, 6)
            for table in sorted(existing(version) - had[version])
        ]
        if not made:
            return ()
        return (
            f"the kernel made its legacy tables {', '.join(made)} for these rules "
            "(`iptables-legacy -S` shows them; `iptables` may be the nft variant and not)",
        )

    def remove(self) -> None:
        """See Backend."""
        self.replace(Policy())

    def commands(self, policy: Policy) -> tuple[str, ...]:
        """See Backend."""
        views = self._views()
        lines = []
        for key, chains in self._wanted(policy, views).items():
            builtin, jump = _builtin(key[1])
            missing = [] if views[key].jump_is(jump) else [builtin]
            lines += xtables.commands(key[0], key[1], chains, jump_missing=missing)
        return tuple(lines)

    def warnings(self, policy: Policy) -> tuple[str, ...]:
        """See Backend."""
        return foreign.dropping_chains() if policy.networks else ()
