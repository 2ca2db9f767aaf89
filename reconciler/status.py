"""What is, what differs, since when, where it was declared: the answer of `runcnet status`."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from reconciler.core.errors import RuncnetError
from reconciler.core.model import Container
from reconciler.core.names import mac_text
from reconciler.core.rows import Space
from reconciler.core.troubles import FILE, Mishap, Trouble
from reconciler.host.lock import Serving, serving
from reconciler.host.observe import busy_in
from reconciler.once import opened
from reconciler.prospect import Prospect, Settings
from reconciler.reconcile import Pass


class History(msgspec.Struct, frozen=True):
    """What the passes before have left, and whether a daemon makes them."""

    troubles: Mapping[str, Trouble]
    mishaps: tuple[Mishap, ...]
    daemon: Serving | None


def look(settings: Settings) -> dict[str, Any]:
    """The object of `status --json`, from a fresh look at files and kernel; no lock is taken."""
    with opened(settings, change=False) as (store, record):
        history = History(
            troubles=record.troubles(),
            mishaps=tuple(record.mishaps()),
            daemon=serving(settings.run_dir),
        )
        prospect = Pass(settings, store=store, record=record, changing=False).prospect()
        return status(prospect, history)


def rfc3339(when: float) -> str:
    """Seconds since the epoch as `2026-01-31T12:03:04.567Z`."""
    text = datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def moment(text: str) -> float:
    """The same the other way round."""
    return datetime.fromisoformat(text).timestamp()


class _Judge:
    """The state of every object, why, and since when."""

    def __init__(self, prospect: Prospect, history: History) -> None:
        self._prospect = prospect
        self._history = history
        self._waiting: dict[str, list[str]] = {}
        for op in prospect.operations:
            self._waiting.setdefault(op.object, []).append(f"to be done: {op.describe()}")
        self._held: dict[str, list[str]] = {}
        for one in prospect.plan.held:
            self._held.setdefault(one.object, []).append(f"held back: {one.reason}")

    def problems(self, name: str) -> list[str]:
        """Why it is not as declared, causes first: also what the last pass met that tried."""
        causes = list(self._prospect.problems.get(name, ()))
        rest = [*self._held.get(name, ()), *self._waiting.get(name, ())]
        trouble = self._history.troubles.get(name)
        if trouble is not None and (causes or rest):
            known = {" ".join(text.split()) for text in causes}
            causes += [
                f"at the last pass: {text}"
                for text in trouble.text.split("\n")
                if text not in known and not text.startswith("held back: ")
            ]
        return list(dict.fromkeys(causes + rest))

    def verdict(self, name: str, default: str | None = None) -> dict[str, Any]:
        """The keys `state`, `since` and `problems` of an object.

        `default`: its state where the plan has none; None: that of something declared.
        """
        problems = self.problems(name)
        planned = self._prospect.plan.states.get(name, default)
        if planned is None:
            planned = "failed" if problems and name.startswith("container/") else "ok"
        state = "differs" if planned == "ok" and problems else planned
        return {"state": state, "since": self.since(name, state), "problems": problems}

    def since(self, name: str, state: str) -> str | None:
        """Since when it is not as declared, as far as a pass has found it so."""
        trouble = self._history.troubles.get(name)
        return rfc3339(trouble.since) if trouble is not None and state != "ok" else None


def status(prospect: Prospect, history: History) -> dict[str, Any]:
    """The object of `status --json`."""
    judge = _Judge(prospect, history)
    firewall, host = judge.problems("firewall"), judge.problems("host")
    rejected: dict[str, list[str]] = {}
    for rejection in prospect.rejections:
        rejected.setdefault(rejection.place.file, []).append(str(rejection))
    daemon = history.daemon
    return {
        "version": 1,
        "daemon": {"pid": daemon.pid, "since": rfc3339(daemon.since)} if daemon else None,
        "networks": _networks(prospect, judge.verdict),
        "containers": _containers(prospect, judge.verdict),
        "firewall": firewall,
        "firewall_since": judge.since("firewall", "differs") if firewall else None,
        "host": host,
        "host_since": judge.since("host", "differs") if host else None,
        "files": [
            {
                "name": file,
                "state": "rejected",
                "since": judge.since(FILE + file, "rejected"),
                "problems": texts,
            }
            for file, texts in rejected.items()
        ],
        "rejected": [str(r) for r in prospect.rejections],
        "notes": [*prospect.notes, *prospect.wall.told, *prospect.wall.notes],
        "errors": [
            {"time": rfc3339(one.time), "object": one.object, "message": one.text}
            for one in history.mishaps
        ],
    }


def named(found: dict[str, Any], name: str) -> dict[str, Any]:
    """That part of a status which is about the container or network of that name.

    Raises RuncnetError where there is none.
    """
    part: dict[str, Any] = {
        **found, "firewall": [], "firewall_since": None, "host": [], "host_since": None, "files": [],
    }  # fmt: skip
    for kind in ("networks", "containers"):
        part[kind] = [one for one in found[kind] if one["name"] == name]
    if not part["networks"] and not part["containers"]:
        raise absent(name)
    part["errors"] = [error for error in found["errors"] if about(error["object"], name)]
    return part


def about(object_: str, name: str | None) -> bool:
    """Whether an object (`container/web`) is the container or network of that name; None: any is."""
    return name is None or object_ in (f"network/{name}", f"container/{name}")


def absent(name: str | None) -> RuncnetError:
    """The error for a name that nothing has."""
    return RuncnetError(f"{name}: nothing of that name is declared or stands")


_Verdict = Callable[..., dict[str, Any]]


def _networks(prospect: Prospect, verdict: _Verdict) -> list[dict[str, Any]]:
    result = [_network(prospect, name, verdict) for name in sorted(prospect.spec.networks)]

    def lost(name: str, kind: str, bridge: str | None) -> None:
        result.append(
            {"name": name, "type": kind, "bridge": bridge, "subnets": [], "members": 0,
             "declared": None, **verdict(f"network/{name}", "held")}
        )  # fmt: skip

    for name, link in prospect.observed.bridges.items():
        if name not in prospect.spec.networks:
            lost(name, "bridge", link.name)
    for name in sorted(_lost_routed(prospect)):
        lost(name, "routed", None)
    return result


def _lost_routed(prospect: Prospect) -> set[str]:
    """Routed networks that stand and are not declared, by name or by their gateway."""
    names = {n or str(a.address) for a, n in prospect.observed.gateways.items()}
    wanted = {str(a.address) for r in prospect.desired.routed.values() for a in r.addresses}
    return names - prospect.spec.networks.keys() - wanted


def _network(prospect: Prospect, name: str, verdict: _Verdict) -> dict[str, Any]:
    network = prospect.spec.networks[name]
    members = sum(
        any(i.network == name for i in c.interfaces) for c in prospect.spec.containers.values()
    )
    return {
        "name": name,
        "type": network.type,
        "bridge": network.bridge or None,
        "subnets": [str(s) for s in network.subnets],
        "members": members,
        "declared": str(network.place),
        **verdict(f"network/{name}"),
    }


def _containers(prospect: Prospect, verdict: _Verdict) -> list[dict[str, Any]]:
    busy = busy_in(prospect.observed)
    result = []
    for container in prospect.spec.containers.values():
        name = f"container/{container.name}"
        own = container.mode in ("network", "none")
        result.append(
            {
                "name": container.name,
                "netns": _path(prospect, container) if own else None,
                "mode": container.mode,
                "join": container.join,
                "interfaces": _interfaces(prospect, container.name),
                "ports": [str(p) for p in container.ports],
                "declared": str(container.place),
                "pids": list(busy(container.name)),
                **verdict(name),
            }
        )
    for seen in prospect.observed.containers.values():
        if seen.name in prospect.spec.containers:
            continue
        name = f"container/{seen.name}"
        result.append(
            {
                "name": seen.name,
                "netns": f"{prospect.observed.netns_dir}/{seen.netns}" if seen.netns else None,
                "mode": "network",
                "join": None,
                "interfaces": _interfaces(prospect, seen.name),
                "ports": [],
                "declared": None,
                "pids": list(busy(seen.name)),
                **verdict(name, "held"),
            }
        )
    return result


def _path(prospect: Prospect, container: Container) -> str | None:
    """Where its namespace is, or is to be."""
    if not container.hooked:
        return f"{prospect.observed.netns_dir}/{container.netns}"
    seen = prospect.observed.containers.get(container.name)
    return (seen.source or None) if seen is not None else None


def _interfaces(prospect: Prospect, name: str) -> list[dict[str, Any]]:
    """What stands in the kernel; for a container that is missing, what is to come."""
    seen = prospect.observed.containers.get(name)
    if seen is not None and seen.space is not None:
        return [
            {
                "name": end.inner.name if end.inner else end.name,
                "network": end.network,
                "host_interface": end.host.name,
                "mac": mac_text(end.inner.mac) if end.inner else None,
                "mtu": end.inner.mtu if end.inner else None,
                "addresses": _carried(seen.space, end.inner.index) if end.inner else [],
            }
            for end in sorted(seen.ends, key=lambda e: e.name)
        ]
    member = prospect.desired.members.get(name)
    return [
        {
            "name": e.name,
            "network": e.network,
            "host_interface": e.host_name,
            "mac": mac_text(e.mac),
            "mtu": e.mtu,
            "addresses": [str(a) for a in e.addresses if not a.is_link_local],
        }
        for e in (member.endpoints if member else ())
    ]


def _carried(space: Space, index: int) -> list[str]:
    return [
        str(a.address) for a in space.addresses if a.index == index and not a.address.is_link_local
    ]
