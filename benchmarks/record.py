"""The record of what was measured: groups of actors that took turns beside each other.

A ratio is only ever taken within a group, so between figures of the same interleaved run:

    {"groups": {GROUP: {"part": "floor", "n": 1000, "turns": 5, "about": {"kernel": ...},
                        "actors": {"floor, bridge": {"create": [a value a turn]}, ...}}}}

The name of an actor that has a floor beside it ends like the floor's: `runcnet, routed`.
"""

import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypedDict

Values = list[float]
Cases = dict[str, Values]
Turn = Mapping[str, Mapping[str, float | Values]]
"""What each actor's cases took in one turn; a list where one turn is many trials."""
FLOOR_CASE = {"create": "create", "remove": "remove", "nothing to do": "scan"}
"""What of the floor each case is held against."""


class Group(TypedDict):
    """What was measured side by side."""

    part: str
    n: int
    turns: int
    about: dict[str, str]
    actors: dict[str, Cases]


Groups = dict[str, Group]


def load(path: Path) -> Groups:
    """The groups on record; none where there is no record."""
    if not path.exists():
        return {}
    found: Groups = json.loads(path.read_text()).get("groups", {})
    return found


def save(path: Path, groups: Groups) -> None:
    """Write the record so that a crash leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with fresh.open("w") as file:
        json.dump({"groups": groups}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def goes_on(old: Group | None, names: Iterable[str], n: int, about: Mapping[str, str]) -> bool:
    """Whether further turns may stand beside those on record: same actors, size and versions."""
    return (
        old is not None
        and sorted(old["actors"]) == sorted(names)
        and old["n"] == n
        and old["about"] == about
    )


def without_strangers(groups: Groups, part: str, planned: Iterable[str]) -> Groups:
    """The record without those groups of a part that are no longer measured."""
    wanted = set(planned)
    return {k: g for k, g in groups.items() if g["part"] != part or k in wanted}


def with_turn(group: Group, turn: Turn) -> Group:
    """The group and one whole turn more."""
    actors: dict[str, Cases] = {}
    for name, cases in turn.items():
        held = group["actors"].get(name, {})
        actors[name] = {
            case: [*held.get(case, []), *(value if isinstance(value, list) else [value])]
            for case, value in cases.items()
        }
    return {**group, "turns": group["turns"] + 1, "actors": actors}


def values(group: Group | None, actor: str, case: str) -> Values:
    """All values of a case; none where it was not measured."""
    return group["actors"].get(actor, {}).get(case, []) if group else []


def middle(group: Group | None, actor: str, case: str) -> float | None:
    """The median of a case."""
    found = values(group, actor, case)
    return statistics.median(found) if found else None


def floor_of(actor: str) -> str:
    """The actor that is this one's floor."""
    return f"floor, {actor.rpartition(', ')[2]}" if ", " in actor else "floor, bridge"


def ratio(group: Group | None, over: tuple[str, str], under: tuple[str, str]) -> float | None:
    """How many times one (actor, case) takes another, by their medians."""
    above, below = middle(group, *over), middle(group, *under)
    return above / below if above is not None and below else None


def against_floor(group: Group | None, actor: str, case: str) -> float | None:
    """How many times the floor of the same run a case takes."""
    floor = floor_of(actor)
    if case not in FLOOR_CASE or actor == floor:
        return None
    return ratio(group, (actor, case), (floor, FLOOR_CASE[case]))


def difference(group: Group | None, actor: str, case: str, base: str) -> float | None:
    """By how much a case is more than another of the same turn: the median over the turns."""
    pairs = zip(values(group, actor, case), values(group, actor, base), strict=False)
    found = [a - b for a, b in pairs]
    return statistics.median(found) if found else None


def pooled(group: Group | None, actor: str) -> Values:
    """The values of all cases of an actor together."""
    cases = group["actors"].get(actor, {}) if group else {}
    return [value for found in cases.values() for value in found]


def percentile(found: Values, share: float) -> float | None:
    """The least value that so large a share (0 to 1) of all does not exceed (nearest rank)."""
    if not found:
        return None
    return sorted(found)[max(math.ceil(share * len(found)), 1) - 1]
