"""A change in a few files comes to the same as a load of all."""

import random

import msgspec
import pytest

from reconciler.core.amend import Standing
from reconciler.core.model import Container, Loaded, Place
from reconciler.core.spec import Candidate, load
from reconciler.core.tree import Tree
from reconciler.host import yamlfile
from reconciler.load import order

NETWORKS = "networks: {n: {subnets: 10.1.0.0/24}, m: {subnets: 10.2.0.0/24, type: routed}}\n"


def tree(text: str, file: str) -> Tree:
    found, problems = yamlfile.parse(text.encode(), file)
    assert found is not None and not problems
    return found


def place(file: str) -> tuple[int, bytes]:
    return order(file, FOLDERS)


def whole(texts: dict[str, str]) -> Loaded:
    files = sorted(texts, key=place)
    return load([Candidate(file=f, tree=tree(texts[f], f)) for f in files])


NOWHERE = Place("", 0, 0)


def placeless(container: Container) -> Container:
    """Bodies that say the same share the places of their interfaces: which, is not to be compared."""
    ends = tuple(msgspec.structs.replace(i, place=NOWHERE) for i in container.interfaces)
    return msgspec.structs.replace(container, interfaces=ends)


def said(loaded: Loaded) -> tuple[object, list[tuple[str, Container]], frozenset[str]]:
    """All that was declared, in its order: that decides who gets which address."""
    containers = [(n, placeless(c)) for n, c in loaded.spec.containers.items()]
    return list(loaded.spec.networks.items()), containers, loaded.accepted


def body(dice: random.Random) -> str:
    network = dice.choice("nm")
    more = [f"network: {network}"]
    if dice.random() < 0.5:
        more.append(f"addresses: 10.{'1' if network == 'n' else '2'}.0.{dice.randint(2, 40)}")
    if dice.random() < 0.2:
        more.append(f"mac: 02:00:00:00:00:0{dice.randint(1, 9)}")
    if dice.random() < 0.2:
        more.append(f"host_interface: end{dice.randint(1, 5)}")
    ports = f", ports: '{dice.randint(8000, 8005)}:80'" if dice.random() < 0.3 else ""
    return f"{{interfaces: {{{', '.join(more)}}}{ports}}}"


def file_text(dice: random.Random) -> str:
    names = [f"c{n}" for n in dice.sample(range(30), dice.randint(0, 3))]
    lines = [f"  {name}: {body(dice)}" for name in names]
    if dice.random() < 0.3:
        # A key that replicas hide, and names that replicas may have.
        base = dice.choice(["many", "few", "c1"])
        own = dice.choice([f"replicas: {dice.randint(1, 4)}, ", ""])
        if base not in names:
            lines.append(f"  {base}: {{{own}interfaces: {dice.choice('nm')}}}")
    if dice.random() < 0.1:
        lines.append(f"  {dice.choice(['many-0', 'few-2', 'c1-1'])}: {body(dice)}")
    if dice.random() < 0.1:
        lines.append(f"  side: {{join: c{dice.randint(0, 29)}}}")
    dice.shuffle(lines)
    return "containers:\n" + "\n".join(lines) + "\n" if lines else ""


FOLDERS = ["/b", "/a"]
"""Their order is the operator's, not that of their names."""
FILES = [
    f"{folder}/{name}" for folder in FOLDERS for name in ("01.yaml", "2.yaml", "é.yaml", "Z.yml")
]


@pytest.mark.parametrize("seed", range(60))
def test_amending_comes_to_the_same_as_loading_all_or_gives_up(seed: int) -> None:
    dice = random.Random(seed)
    texts = {"/b/00.yaml": NETWORKS}
    standing = Standing(whole(texts), place)
    amended = 0
    for _ in range(60):
        before = dict(texts)
        changed: dict[str, Tree | None] = {}
        for file in dice.sample(FILES, dice.randint(1, 2)):
            if dice.random() < 0.2:
                texts.pop(file, None)
                changed[file] = None
            else:
                texts[file] = file_text(dice)
                changed[file] = tree(texts[file], file)
        expected = whole(texts)
        got = standing.amended(changed)
        if got is not None:
            amended += 1
            assert not expected.rejections
            assert said(got) == said(expected)
        elif expected.rejections:
            texts = before
            standing = Standing(whole(texts), place)
        else:
            standing = Standing(expected, place)
    assert amended > 5


def test_faults_of_every_kind_are_left_to_a_whole_load() -> None:
    texts = {"00.yaml": NETWORKS, "10.yaml": "containers: {a: {interfaces: n}, s: {join: a}}\n"}
    for text in (
        "containers: {a: {interfaces: n}}",
        "containers: {b: {interfaces: nowhere}}",
        "containers: {b: {interfaces: {network: n, addresses: 10.9.0.1}}}",
        "containers: {b: {interfaces: n, odd: 1}}",
        "containers: {b: {netns: a, interfaces: n}}",
        "containers: {b: {join: a}}",
        "networks: {o: {subnets: 10.3.0.0/24}}",
        "version: 2",
        "containers: {b: {interfaces: n, routes: {to: 10.9.0.0/16, via: 10.8.0.1}}}",
        "containers: {b: {replicas: 300, interfaces: n}}",
        "containers: {b: }",
    ):
        standing = Standing(whole(texts), place)
        assert standing.amended({"20.yaml": tree(text, "20.yaml")}) is None, text
        assert not standing.usable
    # What others refer to is theirs to judge, too.
    assert Standing(whole(texts), place).amended({"10.yaml": None}) is None
    assert Standing(whole(texts), place).amended({"00.yaml": tree(NETWORKS, "00.yaml")}) is None


@pytest.mark.parametrize(
    "here,there",
    [
        ("w: {replicas: 2, interfaces: n}", "w: {interfaces: n}"),
        ("w: {replicas: 2, interfaces: n}", "w: {replicas: 3, netns: 'x%i', interfaces: n}"),
        ("w: {replicas: 2, interfaces: n}", "w-1: {interfaces: n}"),
        ("w: {replicas: 2, interfaces: n}", "w-1: {replicas: 2, interfaces: n}"),
    ],
)
def test_a_key_and_the_names_of_replicas_are_taken_once(here: str, there: str) -> None:
    one, other = f"containers: {{{here}}}", f"containers: {{{there}}}"
    for first, second in ((one, other), (other, one)):
        standing = Standing(whole({"00.yaml": NETWORKS, "1.yaml": first}), place)
        assert whole({"00.yaml": NETWORKS, "1.yaml": first, "2.yaml": second}).rejections
        assert standing.amended({"2.yaml": tree(second, "2.yaml")}) is None
        # Once it is free, it may be taken.
        standing = Standing(whole({"00.yaml": NETWORKS, "1.yaml": first}), place)
        assert standing.amended({"1.yaml": None}) is not None
        assert standing.amended({"2.yaml": tree(second, "2.yaml")}) is not None


def test_replicas_share_ports_and_give_them_back() -> None:
    standing = Standing(whole({"00.yaml": NETWORKS}), place)
    ports = "containers: {w: {replicas: 4, interfaces: n, ports: '9000-9003:80'}}"
    other = "containers: {v: {interfaces: n, ports: '9002:80'}}"
    assert standing.amended({"1.yaml": tree(ports, "1.yaml")}) is not None
    assert standing.amended({"1.yaml": None}) is not None
    assert standing.amended({"2.yaml": tree(other, "2.yaml")}) is not None
    assert standing.amended({"1.yaml": tree(ports, "1.yaml")}) is None
