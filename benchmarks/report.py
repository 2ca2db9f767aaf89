"""Measurements as a Markdown table and as SVG plots."""

import math
import re
import statistics
from pathlib import Path

Results = dict[str, dict[str, list[float]]]
INK, OURS, THEIRS = "#333333", "#0b6e99", "#b0b0b0"
HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" '
    'font-family="sans-serif" font-size="12" fill="' + INK + '">\n'
    '<rect width="{w}" height="{h}" fill="white"/>\n'
)


def size(name: str) -> int:
    """How many containers an actor made; peers made as many as the floor beside them."""
    found = re.search(r", (\d+)$", name)
    return int(found[1]) if found else 0


def markdown(found: Results) -> str:
    """Every case, with its median, its spread and, for times, what that is for one container."""
    lines = ["| | case | median | least to most | µs a container | against the floor |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    peers_n = max((size(n) for n in found if n.startswith("floor, bridge")), default=0)
    for name, cases in found.items():
        count = size(name) or peers_n
        floor = found.get(f"floor, {'routed' if 'routed' in name else 'bridge'}, {count}", {})
        for case, values in cases.items():
            middle = statistics.median(values)
            spread = f"{min(values):.3f} to {max(values):.3f}"
            if case.endswith("MiB"):
                text = case.removesuffix(": MiB")
                lines.append(f"| {name} | {text}: peak memory | {middle:.0f} MiB | | | |")
                continue
            beside = floor.get({"nothing to do": "scan"}.get(case, case))
            ratio = f"{middle / statistics.median(beside):.2f} ×" if beside else ""
            each = f"{middle / count * 1e6:.0f}" if case in ("create", "remove") and count else ""
            lines.append(f"| {name} | {case} | {middle:.3f} s | {spread} | {each} | {ratio} |")
    return "\n".join(lines) + "\n"


def plots(found: Results, folder: Path) -> None:
    """`growth.svg`: time a container over N; `peers.svg`: bars against the peers."""
    (folder / "growth.svg").write_text(growth(found))
    (folder / "peers.svg").write_text(bars(found))


def growth(found: Results) -> str:
    """Lines of microseconds a container over the number of containers."""
    series: dict[str, list[tuple[int, float]]] = {}
    for name, cases in found.items():
        kind, count = name.rsplit(", ", 1)[0], size(name)
        if count and "create" in cases and "masquerade" not in name:
            each = statistics.median(cases["create"]) / count * 1e6
            series.setdefault(kind, []).append((count, each))
    points = [p for line in series.values() for p in line]
    if not points:
        return HEAD.format(w=10, h=10) + "</svg>\n"
    top = max(y for _, y in points) * 1.1
    low, high = math.log(min(x for x, _ in points)), math.log(max(x for x, _ in points))

    def place(x: int, y: float) -> tuple[float, float]:
        share = (math.log(x) - low) / (high - low) if high > low else 0.5
        return 60 + share * 400, 280 - y / top * 240

    text = HEAD.format(w=640, h=320)
    text += (
        '<text x="60" y="24" font-weight="bold">Create: µs a container, over containers</text>\n'
    )
    for i in range(5):
        y = 280 - i * 60
        text += (
            f'<path d="M60 {y}H460" stroke="#dddddd"/><text x="52" y="{y + 4}" text-anchor="end">'
        )
        text += f"{top * i / 4:.0f}</text>\n"
    for x in sorted({x for x, _ in points}):
        text += f'<text x="{place(x, 0)[0]:.0f}" y="300" text-anchor="middle">{x}</text>\n'
    labels = sorted(((place(*max(line))[1], kind) for kind, line in series.items()))
    last = 0.0
    for y, kind in labels:
        line = sorted(series[kind])
        colour = OURS if kind.startswith("runcnet") else THEIRS
        dash = "" if "routed" in kind else ' stroke-dasharray="5 3"'
        way = " ".join(f"{px:.1f},{py:.1f}" for px, py in (place(*p) for p in line))
        text += f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>\n'
        last = max(y + 4, last + 15)
        end = place(*line[-1])[0]
        text += f'<text x="{max(end, 460) + 8:.0f}" y="{last:.0f}" fill="{colour}">{kind}</text>\n'
    return text + "</svg>\n"


def bars(found: Results) -> str:
    """Bars of milliseconds a container, on a logarithmic scale."""
    count = max((size(n) for n in found if n.startswith("floor, bridge")), default=1)
    rows = []
    for name, cases in found.items():
        if "create" not in cases or (size(name) and name.rsplit(", ", 1)[0] not in (
            "floor, bridge", "runcnet, bridge", "runcnet with masquerade, bridge")):  # fmt: skip
            continue
        if size(name) in (0, count):
            label = name.split(",")[0].replace("floor", "C floor")
            rows.append((statistics.median(cases["create"]) / count * 1e3, label))
    rows.sort()
    height = 50 + 26 * len(rows)
    text = HEAD.format(w=640, h=height)
    title = f"Create {count} containers on one bridge: ms a container (logarithmic)"
    text += f'<text x="10" y="24" font-weight="bold">{title}</text>\n'
    low, high = 0.3, max([1.0, *(value for value, _ in rows)])
    for i, (value, label) in enumerate(rows):
        y = 40 + 26 * i
        width = 380 * math.log(value / low) / math.log(high / low)
        colour = OURS if label.startswith("runcnet") else THEIRS
        text += f'<text x="170" y="{y + 14}" text-anchor="end">{label}</text>\n'
        text += f'<rect x="180" y="{y}" width="{max(width, 1):.0f}" height="18" fill="{colour}"/>\n'
        text += f'<text x="{186 + max(width, 1):.0f}" y="{y + 14}">{value:.2f}</text>\n'
    return text + "</svg>\n"
