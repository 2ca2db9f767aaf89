"""What `runcnet status` says to people: tables, the lines of a watch, and its screen."""

import time
from typing import Any

from reconciler.core.troubles import FILE
from reconciler.status import moment
from reconciler.watching import Change, Condition, Look

MANY = 200
"""Up to so many containers are all shown."""
LAST = 5
"""So many errors are shown."""
ABSENT = "nothing is declared, and nothing stands"


def overview(found: dict[str, Any], *, now: float, everything: bool) -> str:
    """The whole of a status. `now`: seconds since the epoch. `everything`: however many they are."""
    parts = [_networks(found, now), *_containers(found, now, everything=everything)]
    parts += [_troubles(found, now), _errors(found["errors"][-LAST:]), [_daemon(found, now)]]
    if not found["networks"] and not found["containers"]:
        parts.insert(0, [ABSENT])
    return "\n\n".join("\n".join(part) for part in parts if part)


def _networks(found: dict[str, Any], now: float) -> list[str]:
    rows = [
        (n["name"], _state(n, now), n["bridge"] or "(routed)", ",".join(n["subnets"]),
         str(n["members"]), n["declared"] or "-")
        for n in found["networks"]
    ]  # fmt: skip
    return aligned([("NETWORK", "STATE", "BRIDGE", "SUBNETS", "MEMBERS", "DECLARED"), *rows])


def _containers(found: dict[str, Any], now: float, *, everything: bool) -> list[list[str]]:
    shown = found["containers"]
    fine = 0
    if len(shown) > MANY and not everything:
        shown = [c for c in shown if c["state"] != "ok"]
        fine = len(found["containers"]) - len(shown)
    rows = [
        (c["name"], _state(c, now), _interfaces(c), ",".join(str(p) for p in c["pids"][:3]) or "-",
         c["declared"] or "-")
        for c in shown
    ]  # fmt: skip
    table = aligned([("CONTAINER", "STATE", "INTERFACES", "PIDS", "DECLARED"), *rows])
    if not fine:
        return [table]
    lead = "1 container is" if fine == 1 else f"{fine:,} containers are"
    return [table, [f"{lead} ok (name one, or --all or --json)"]]


def _troubles(found: dict[str, Any], now: float) -> list[str]:
    lines = [
        _line(f"{kind}/{one['name']}", text)
        for kind in ("network", "container")
        for one in found[f"{kind}s"]
        for text in one["problems"]
    ]
    for name in ("firewall", "host"):
        since = found[f"{name}_since"]
        lead = f"{name} (for {span(now - moment(since))})" if since else name
        lines += [_line(lead, text) for text in found[name]]
    lines += [
        plain(f"{_state(one, now)}: {text}") for one in found["files"] for text in one["problems"]
    ]
    return lines


def _errors(errors: list[dict[str, Any]]) -> list[str]:
    """The errors given, below a heading."""
    lines = [f"{_day(e['time'])}  {_line(e['object'], e['message'])}" for e in errors]
    return ["last errors:", *lines] if lines else []


def _daemon(found: dict[str, Any], now: float) -> str:
    daemon = found["daemon"]
    if not daemon:
        return "daemon: not running"
    return f"daemon: pid {daemon['pid']}, up {span(now - moment(daemon['since']))}"


def _state(one: dict[str, Any], now: float) -> str:
    return _lasting(one["state"], moment(one["since"]) if one["since"] else None, now)


def _lasting(state: str, since: float | None, now: float) -> str:
    return state if since is None else f"{state} for {span(now - since)}"


def _interfaces(container: dict[str, Any]) -> str:
    if container["mode"] != "network":
        return container["mode"]  # type: ignore[no-any-return]
    return "; ".join(
        " ".join([i["name"], *i["addresses"], "in", i["network"]]) for i in container["interfaces"]
    )


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """A heading and its rows as columns; nothing where there is no row."""
    if len(rows) == 1:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        plain("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
        for row in rows
    ]


def _line(name: str, text: str) -> str:
    """`container web: ...`; of a file, the text names it."""
    return plain(text if name.startswith(FILE) else f"{_named(name)}: {text}")


def plain(text: str) -> str:
    """One line without anything that a terminal would obey: a workload names its own links."""
    return "".join(c if c.isprintable() else "?" for c in text).rstrip()


def span(duration_s: float) -> str:
    """`12 s`, `4 min`, `3 h` or `5 d`."""
    whole = max(0, int(duration_s))
    for from_s, size_s, unit in ((172_800, 86_400, "d"), (3_600, 3_600, "h"), (60, 60, "min")):
        if whole >= from_s:
            return f"{whole // size_s} {unit}"
    return f"{whole} s"


def _day(text: str) -> str:
    """An RFC 3339 text in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment(text)))


def _clock(when: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when))


# -- a watch ----------------------------------------------------------------------------------


def change_line(change: Change, when: float) -> str:
    """`12:03:04 container web: ok -> differs: ...`"""
    one = change.now
    lead = f"{change.before} -> {one.state}" if change.before else one.state
    more = len(one.problems) - 1
    text = ": ".join([lead, *one.problems[:1]]) + (f" (and {more} more)" if more > 0 else "")
    return f"{_clock(when)} {plain(f'{_named(change.object)}: {text}')}"


def summary(look: Look) -> str:
    """`4,000 ok, 2 not`."""
    bad = sum(one.state != "ok" for one in look.conditions.values())
    return f"{len(look.conditions) - bad:,} ok, {bad:,} not"


def board(look: Look, height: int) -> list[tuple[str, str]]:
    """The lines of a screen so high, each with its colour: `bad`, `dim` or none.

    Troubles come first; the last errors and what is fine have what room is left.
    """
    daemon = _daemon({"daemon": look.daemon}, look.time)
    lines = [(f"{_clock(look.time)}  {summary(look)}; {daemon}", ""), ("", "")]
    bad = [(name, one) for name, one in look.conditions.items() if one.state != "ok"]
    fine = [(name, one) for name, one in look.conditions.items() if one.state == "ok"]
    room = max(0, height - len(lines) - 1)
    bad_shown = bad[:room]
    room -= len(bad_shown)
    errors = _errors(look.errors[-min(LAST, room - 2) :]) if room > 2 else []
    fine_shown = fine[: max(0, room - len(errors) - bool(errors))]
    rows = aligned([("", "", ""), *(_row(*pair, look.time) for pair in bad_shown + fine_shown)])
    colours = ["bad"] * len(bad_shown) + [""] * len(fine_shown)
    lines += zip(rows[1:], colours, strict=True)
    hidden, more = len(bad) - len(bad_shown), len(fine) - len(fine_shown)
    if hidden:
        lines.append((f"… and {hidden:,} more that are not ok, {more:,} fine", "bad"))
    elif more:
        lines.append((f"… and {more:,} more fine", "dim"))
    if errors:
        lines += [("", ""), *((line, "dim") for line in errors)]
    return lines


def _row(name: str, one: Condition, now: float) -> tuple[str, ...]:
    text = "; ".join(one.problems)
    return (_named(name), _lasting(one.state, one.since, now), text)


def _named(name: str) -> str:
    return name.replace("/", " ", 1)
