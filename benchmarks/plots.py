"""Measurements as SVG plots."""

import html
import math

from benchmarks import record
from benchmarks.record import Group, Groups

INK, OURS, THEIRS, GRID = "#333333", "#0b6e99", "#8a8a8a", "#e4e4e4"
WIDTH = 740
HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" '
    'font-family="sans-serif" font-size="12" fill="' + INK + '">\n'
    '<rect width="{w}" height="{h}" fill="white"/>\n'
)
LEFT, RIGHT, TOP, BOTTOM = 60, 540, 44, 284
"""The frame of the growth plot; labels of its lines stand to the right of it."""
LABEL_GAP = 16
Points = list[tuple[int, float]]


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}"{more}>{html.escape(words)}</text>\n'


def _middle(x: float, y: float, words: str) -> str:
    return _text(x, y, words, ' text-anchor="middle"')


def _end(x: float, y: float, words: str) -> str:
    return _text(x, y, words, ' text-anchor="end"')


def step(top: float, lines: int = 5) -> float:
    """A round distance of grid lines, so that at most so many reach `top`."""
    least = top / lines
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * k for k in (1, 2, 5, 10) if power * k >= least)


def spread(places: list[float], gap: float, last: float) -> list[float]:
    """Ascending places moved as little as it takes to be `gap` apart, none beyond `last`."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    for i in range(len(moved) - 1, -1, -1):
        moved[i] = min(moved[i], last - gap * (len(moved) - 1 - i))
    return moved


def series(groups: Groups) -> dict[str, Points]:
    """Of each actor of the growth part: microseconds a container, over containers."""
    found: dict[str, Points] = {}
    for group in groups.values():
        for actor in group["actors"] if group["part"] == "growth" else ():
            seconds = record.middle(group, actor, "create")
            if seconds is not None:
                found.setdefault(actor, []).append((group["n"], seconds / group["n"] * 1e6))
    return {actor: sorted(points) for actor, points in found.items()}


def growth(groups: Groups, note: str) -> str:
    """Lines over the number of containers, from zero, so that flat looks flat."""
    lines = series(groups)
    points = [p for line in lines.values() for p in line]
    text = HEAD.format(w=WIDTH, h=330)
    title = f"Create: µs a container, over the number of containers{note}"
    text += _text(LEFT, 24, title, ' font-weight="bold"')
    if not points:
        return text + _text(LEFT, 60, "not measured yet") + "</svg>\n"
    top = max(y for _, y in points) * 1.05
    low, high = math.log(min(x for x, _ in points)), math.log(max(x for x, _ in points))

    def place(x: int, y: float) -> tuple[float, float]:
        share = (math.log(x) - low) / (high - low) if high > low else 0.5
        return LEFT + share * (RIGHT - LEFT), BOTTOM - y / top * (BOTTOM - TOP)

    each = step(top)
    for i in range(int(top / each) + 1):
        y = place(points[0][0], i * each)[1]
        text += f'<path d="M{LEFT} {y:.1f}H{RIGHT}" stroke="{GRID}"/>\n'
        text += _end(LEFT - 8, y + 4, f"{i * each:,.0f}")
    for x in sorted({x for x, _ in points}):
        text += _middle(place(x, 0)[0], BOTTOM + 20, f"{x:,}")
    text += _middle((LEFT + RIGHT) / 2, BOTTOM + 38, "containers (logarithmic)")
    order = sorted(lines, key=lambda actor: place(*lines[actor][-1])[1])
    labels = spread([place(*lines[a][-1])[1] + 4 for a in order], LABEL_GAP, BOTTOM + 4)
    for actor, y in zip(order, labels, strict=True):
        colour = OURS if actor.startswith("runcnet") else THEIRS
        dash = "" if actor.endswith("routed") else ' stroke-dasharray="5 3"'
        placed = [place(*p) for p in lines[actor]]
        way = " ".join(f"{px:.1f},{py:.1f}" for px, py in placed)
        text += f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>\n'
        for px, py in placed:
            text += f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>\n'
        label = actor.replace("floor", "C floor").replace("bridge", "bridges of 1,000")
        text += _text(RIGHT + 12, y, label, f' style="fill:{colour}"')
    return text + "</svg>\n"


def rows(group: Group) -> list[tuple[str, float]]:
    """What each actor takes to create a container, in milliseconds, the quickest first."""
    found = []
    for actor in group["actors"]:
        seconds = record.middle(group, actor, "create")
        if seconds is not None:
            label = actor.split(",")[0].replace("floor", "C floor")
            found.append((label, seconds / group["n"] * 1e3))
    return sorted(found, key=lambda row: row[1])


def bars(groups: Groups, note: str) -> str:
    """Bars on a logarithmic scale with its grid, and how many times runcnet each is."""
    group = groups.get("peers")
    found = rows(group) if group else []
    height = 92 + 26 * len(found)
    text = HEAD.format(w=WIDTH, h=height)
    if not group or not found:
        return text + _text(10, 24, f"not measured yet{note}") + "</svg>\n"
    title = f"Create {group['n']:,} containers on one bridge: ms a container (times runcnet){note}"
    text += _text(10, 24, title, ' font-weight="bold"')
    low = 10.0 ** math.floor(math.log10(min(value for _, value in found) * 0.9))
    high = max(value for _, value in found)
    left, wide = 180, 400
    ours = dict(found).get("runcnet")

    def place(value: float) -> float:
        return left + wide * math.log(value / low) / math.log(high / low)

    mark = low
    while mark <= high:
        for value in (mark, mark * 2, mark * 5):
            if value <= high:
                x = place(value)
                text += f'<path d="M{x:.1f} 36V{height - 42}" stroke="{GRID}"/>\n'
                text += _middle(x, height - 26, f"{value:g}")
        mark *= 10
    text += _middle(left + wide / 2, height - 8, "ms a container (logarithmic)")
    for i, (label, value) in enumerate(found):
        y = 40 + 26 * i
        colour = OURS if label.startswith("runcnet") else THEIRS
        times = f" ({value / ours:.1f} ×)" if ours and not label.startswith("runcnet") else ""
        text += _end(left - 10, y + 14, label)
        wide_bar = place(value) - left
        text += f'<rect x="{left}" y="{y}" width="{wide_bar:.1f}" height="18" fill="{colour}"/>\n'
        text += _text(place(value) + 6, y + 14, f"{value:.2f} ms{times}")
    return text + "</svg>\n"
