"""What the members of hundreds of containers came to, which is kept from one pass to the next."""

from pathlib import Path

import msgspec
import pytest

from reconciler.core.desired import desired_state, resolved
from reconciler.core.leases import Book, assign
from reconciler.core.rows import Space
from reconciler.core.spec import Candidate, load
from reconciler.host import derived, yamlfile
from reconciler.host.derived import FILE, MANY, Derived
from tests.support.host import PrivateHost

FILE_TEXT = """
networks:
  red: {subnets: [10.1.0.0/22, "fd01::/64"], routes: {to: 10.99.0.0/16, via: 10.1.0.9}}
  far: {type: routed, subnets: [10.2.0.0/22, "fd02::/64"], egress: {deny: 10.77.0.0/16}}
  in: {subnets: 10.3.0.0/22, internal: true, isolate_members: true, antispoof: false}
containers:
  all:
    interfaces: [{network: red, mac: "02:00:00:00:00:09"}, {network: far, addresses: 10.2.0.77}, in]
    routes: [{to: 10.98.0.0/16, via: 10.1.0.8}]
    sysctls: {net.core.somaxconn: 99}
    ports: ["8080:80", "[2001:db8::1]:53:53/udp"]
  w: {interfaces: red, replicas: 300}
"""
EVERYONE = {"machine": "m", "groups": "0 9"}


@pytest.fixture
def inputs() -> tuple:  # type: ignore[type-arg]
    tree, problems = yamlfile.parse(FILE_TEXT.encode(), "a.yaml")
    loaded = load([Candidate(file="a.yaml", tree=tree, rejections=problems, remembered=None)])
    assert not loaded.rejections
    spec = loaded.spec
    book = Book(held={}, freed={})
    addresses = assign(spec, book, standing={}, busy=lambda name: False, kept=set()).addresses
    return resolved(spec, machine="m", host=Space(cookie=1)), spec, addresses


def _anew(*_: object, **__: object) -> None:
    raise LookupError


def test_what_was_kept_is_what_would_be_derived(
    inputs: tuple,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[type-arg]
) -> None:
    networks, spec, addresses = inputs
    expected = desired_state(spec, addresses, host=Space(cookie=1), **EVERYONE)
    assert Derived(str(tmp_path)).members(*inputs, **EVERYONE, keep=True) == expected
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    again = Derived(str(tmp_path))
    again.load(spec)
    # Nothing is derived a second time.
    monkeypatch.setattr(derived, "with_members", _anew)
    assert again.members(*inputs, **EVERYONE, keep=True) == expected
    # Any input that differs counts.
    first = next(iter(addresses))
    others = {**addresses, first: msgspec.structs.replace(addresses[first], value=1)}
    fewer = msgspec.structs.replace(spec, containers=dict(list(spec.containers.items())[1:]))
    bridge = msgspec.structs.replace(networks.bridges["red"], mtu=1400)
    narrow = msgspec.structs.replace(networks, bridges={**networks.bridges, "red": bridge})
    for words in (
        (networks, spec, others),
        (networks, fewer, addresses),
        (narrow, spec, addresses),
    ):
        with pytest.raises(LookupError):
            again.members(*words, **EVERYONE, keep=True)
    for change in ({"machine": "n"}, {"groups": "0 8"}):
        with pytest.raises(LookupError):
            again.members(*inputs, **{**EVERYONE, **change}, keep=True)


@pytest.mark.parametrize(
    "damage", ["cut", "junk", "no text", "another MTU", "empty", "folder", "link"]
)
def test_a_damaged_file_is_passed_over(inputs: tuple, tmp_path: Path, damage: str) -> None:  # type: ignore[type-arg]
    _, spec, _ = inputs
    expected = Derived(str(tmp_path)).members(*inputs, **EVERYONE, keep=True)
    file = tmp_path / FILE
    text = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(text)
        file.symlink_to("elsewhere")
    else:
        damaged = {
            "cut": text[: len(text) // 2],
            "junk": text[:32] + b"junk",
            "no text": text.replace(b'"netns":"w-0"', b'"netns":"w-\xff"'),
            "another MTU": text.replace(b'"mtu":1500', b'"mtu":1499'),
            "empty": b"",
        }
        assert damaged[damage] != text
        file.write_bytes(damaged[damage])
    again = Derived(str(tmp_path))
    again.load(spec)
    assert again._known is None
    assert again.members(*inputs, **EVERYONE, keep=True) == expected


def test_a_pass_over_many_goes_by_it_and_repairs_as_ever(bare: PrivateHost) -> None:
    bare.write(
        "a.yaml",
        f"networks: {{n: {{subnets: 10.1.0.0/22}}}}\ncontainers: {{w: {{interfaces: n, replicas: {MANY}}}}}\n",
    )
    bare.reconcile()
    kept = bare.run("md5sum", f"/run/runcnet/{FILE}").out
    assert bare.reconcile().changes == []
    bare.sh("ip -n w-7 addr flush dev eth0; ip netns del w-3")
    assert bare.reconcile("--check", check=False).code == 3
    assert {c.split(":")[0] for c in bare.reconcile().changes} >= {"container/w-7", "container/w-3"}
    assert bare.run("md5sum", f"/run/runcnet/{FILE}").out == kept
    bare.write(
        "a.yaml",
        f"networks: {{n: {{subnets: 10.1.0.0/22}}}}\ncontainers: {{w: {{interfaces: n, replicas: {MANY + 1}}}}}\n",
    )
    assert len(bare.reconcile().changes) == 1
    assert bare.run("md5sum", f"/run/runcnet/{FILE}").out != kept
    assert bare.addresses("eth0", f"w-{MANY}")
    assert bare.reconcile().changes == []
