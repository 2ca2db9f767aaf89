"""What is, what differs, where it was declared: the answer of `runcnet status`."""

from typing import Any

from reconciler.core.names import mac_text
from reconciler.core.rows import Space
from reconciler.host.observe import busy_in
from reconciler.prospect import Prospect


def status(prospect: Prospect) -> dict[str, Any]:
    """The object of `status --json`."""
    waiting: dict[str, list[str]] = {}
    for op in prospect.operations:
        waiting.setdefault(op.object, []).append(f"to be done: {op.describe()}")
    held: dict[str, list[str]] = {}
    for one in prospect.plan.held:
        held.setdefault(one.object, []).append(f"held back: {one.reason}")

    def problems(name: str) -> list[str]:
        found = [*prospect.problems.get(name, ()), *held.get(name, ()), *waiting.get(name, ())]
        return list(dict.fromkeys(found))

    def state(name: str, default: str) -> str:
        planned = prospect.plan.states.get(name, default)
        if planned == "ok" and problems(name):
            return "differs"
        return planned

    return {
        "version": 1,
        "networks": [
            *(_network(prospect, name, state, problems) for name in sorted(prospect.spec.networks)),
            *(
                {"name": n, "type": "bridge", "bridge": link.name, "subnets": [], "members": 0,
                 "state": state(f"network/{n}", "held"), "declared": None,
                 "problems": problems(f"network/{n}")}
                for n, link in prospect.observed.bridges.items()
                if n not in prospect.spec.networks
            ),
            *(
                {"name": n, "type": "routed", "bridge": None, "subnets": [], "members": 0,
                 "state": state(f"network/{n}", "held"), "declared": None,
                 "problems": problems(f"network/{n}")}
                for n in sorted(_lost_routed(prospect))
            ),
        ],
        "containers": _containers(prospect, state, problems),
        "firewall": problems("firewall"),
        "host": problems("host"),
        "rejected": [str(r) for r in prospect.rejections],
        "notes": [*prospect.notes, *prospect.wall.notes],
    }  # fmt: skip


def _lost_routed(prospect: Prospect) -> set[str]:
    """Routed networks that stand and are not declared, by name or by their gateway."""
    names = {n or str(a.address) for a, n in prospect.observed.gateways.items()}
    wanted = {str(a.address) for r in prospect.desired.routed.values() for a in r.addresses}
    return names - prospect.spec.networks.keys() - wanted


def _network(prospect: Prospect, name: str, state: Any, problems: Any) -> dict[str, Any]:
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
        "state": state(f"network/{name}", "ok"),
        "declared": str(network.place),
        "problems": problems(f"network/{name}"),
    }


def _containers(prospect: Prospect, state: Any, problems: Any) -> list[dict[str, Any]]:
    busy = busy_in(prospect.observed)
    result = []
    for container in prospect.spec.containers.values():
        name = f"container/{container.name}"
        own = container.mode in ("network", "none")
        result.append(
            {
                "name": container.name,
                "netns": f"{prospect.observed.netns_dir}/{container.netns}" if own else None,
                "mode": container.mode,
                "interfaces": _interfaces(prospect, container.name),
                "ports": [str(p) for p in container.ports],
                "state": state(name, "failed" if problems(name) else "ok"),
                "declared": str(container.place),
                "pids": list(busy(container.name)),
                "problems": problems(name),
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
                "interfaces": _interfaces(prospect, seen.name),
                "ports": [],
                "state": state(name, "held"),
                "declared": None,
                "pids": list(busy(seen.name)),
                "problems": problems(name),
            }
        )
    return result


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


def table(found: dict[str, Any]) -> str:
    """The same for people."""
    lines: list[str] = []
    rows: list[tuple[str, ...]]
    if found["networks"]:
        rows = [("NETWORK", "STATE", "BRIDGE", "SUBNETS", "MEMBERS", "DECLARED")]
        rows += [
            (n["name"], n["state"], n["bridge"] or "(routed)", ",".join(n["subnets"]), str(n["members"]),
             n["declared"] or "-")
            for n in found["networks"]
        ]  # fmt: skip
        lines += _aligned(rows)
    if found["containers"]:
        rows = [("CONTAINER", "STATE", "INTERFACES", "PIDS", "DECLARED")]
        rows += [
            (c["name"], c["state"], _shown(c), ",".join(str(p) for p in c["pids"][:3]) or "-",
             c["declared"] or "-")
            for c in found["containers"]
        ]  # fmt: skip
        lines += ["", *_aligned(rows)]
    troubles = [
        f"{kind} {one['name']}: {text}"
        for kind in ("network", "container")
        for one in found[f"{kind}s"]
        for text in one["problems"]
    ]
    troubles += [f"{kind}: {text}" for kind in ("firewall", "host") for text in found[kind]]
    if troubles:
        lines += ["", *troubles]
    return "\n".join(lines) if lines else "nothing is declared, and nothing stands"


def _shown(container: dict[str, Any]) -> str:
    if container["mode"] != "network":
        return container["mode"]  # type: ignore[no-any-return]
    return "; ".join(
        " ".join([i["name"], *i["addresses"], "in", i["network"]]) for i in container["interfaces"]
    )


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
