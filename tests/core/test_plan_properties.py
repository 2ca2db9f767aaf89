"""plan() against a simulated kernel: it converges from anywhere, and leaves foreign objects alone."""

import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from reconciler.core import ops
from reconciler.core.desired import desired_state
from reconciler.core.leases import Book, assign
from reconciler.core.limits import removal_limit
from reconciler.core.model import Address, InterfaceAddress, Spec, parse_subnet
from reconciler.core.names import host_interface, member_mac, parse_alias
from reconciler.core.netplan import Options, Scene
from reconciler.core.observed import Witness
from reconciler.core.plan import Plan, plan
from reconciler.core.rows import LinkAddress, RouteRow, RuleRow
from reconciler.core.wanted import Desired
from tests.core.documents import loaded
from tests.core.simulated import Kernel, Room, new_link

SYSCTLS = ("net.core.somaxconn", "net.ipv4.ping_group_range")
NETWORKS = {
    "a": "{subnets: 10.1.0.0/24}",
    "b": "{subnets: [10.2.0.0/24, 'fd00:2::/64'], mtu: 1400}",
    "c": "{subnets: 'fd00:3::/64', isolate_members: true}",
    "r": "{type: routed, subnets: [10.5.0.0/24, 'fd00:5::/64']}",
    "d": "{subnets: 10.4.0.0/24, internal: true, routes: {to: 10.99.0.0/16, via: 10.4.0.9}}",
}
BODIES = [
    "{mode: none}", "{interfaces: a}", "{interfaces: b, sysctls: {net.core.somaxconn: 7}}",
    "{interfaces: [a, b]}", "{interfaces: [b, c, d]}", "{interfaces: [{network: a, name: x0}]}",
    "{interfaces: [{network: c, name: eth1}, {network: a, name: eth0, mtu: 1300}]}",
    "{interfaces: {network: a, antispoof: false}}", "{interfaces: {network: r}}", "{interfaces: [a, {network: r, addresses: 10.5.0.77}]}",
    "{interfaces: {network: a, mac: '02:00:00:00:00:01', host_interface: h0}, netns: other}",
]  # fmt: skip


def declare(bodies: dict[str, int]) -> tuple[Spec, Desired, Scene]:
    text = "networks:\n" + "".join(f"  {n}: {body}\n" for n, body in NETWORKS.items())
    used: set[int] = set()
    lines = []
    for name, number in sorted(bodies.items()):
        if number >= 9 and number in used:
            number = 1
        used.add(number)
        lines.append(f"  {name}: {BODIES[number]}\n")
    result = loaded(f=text + ("containers:\n" + "".join(lines) if lines else ""))
    assert not result.rejections, result.rejections
    spec = result.spec
    given_ = assign(spec, Book(held={}, freed={}), standing={}, busy=lambda name: False, kept=set())
    host = Kernel().host.space(())
    desired = desired_state(spec, given_.addresses, machine="m", host=host)
    modes = {name: c.mode for name, c in spec.containers.items()}
    return (
        spec,
        desired,
        Scene(declared=modes, networks=frozenset(spec.networks), busy=lambda n: ()),
    )


def planned(kernel: Kernel, desired: Desired, scene: Scene, **more: Any) -> Plan:
    options = Options(**{"max_removals": "all", **more})
    return plan(desired, kernel.observe(SYSCTLS), scene, options)


def drift(kernel: Kernel, dice: random.Random) -> None:
    """One thing goes wrong."""
    room = dice.choice([kernel.host, *kernel.rooms.values()])
    links = [
        link for link in room.links.values() if link.kind in ("veth", "bridge") or link.index == 1
    ]
    if room is kernel.host:
        links = [link for link in links if link.index != 1]
    if not links:
        return
    link = dice.choice(links)
    change = dice.randrange(12)
    if change == 0:
        room.links[link.index] = replace(link, flags=0)
    elif change == 1:
        room.links[link.index] = replace(link, mtu=link.mtu - 7)
    elif change == 2 and link.index != 1:
        room.links[link.index] = replace(link, mac=b"\2\0\0\0\0\7")
    elif change == 3 and link.kind == "veth" and link.master:
        room.unplug(link.index)
        room.links[link.index] = replace(link, master=0, port=link.port ^ 1)
    elif change == 4 and room.addresses:
        room.addresses.remove(dice.choice(room.addresses))
    elif change == 5 and link.index != 1:
        extra = InterfaceAddress(4, (10 << 24) + dice.randrange(1 << 20), 24)
        room.addresses.append(LinkAddress(link.index, extra, 0, 0, 0x72))
    elif change == 6 and room.routes:
        room.routes.remove(dice.choice(room.routes))
    elif change == 7 and room is not kernel.host:
        room.sysctls["net.ipv4.ping_group_range"] = "1 0"
        room.rules.clear()
    elif change == 8 and link.kind == "veth" and room is kernel.host:
        kernel._delete(link.index)
    elif change == 9 and kernel.host.told:
        del kernel.host.told[dice.choice(list(kernel.host.told))]
    elif change == 10 and link.master:
        kernel.host.told[link.master, b"\2\0\0\0\0\7"] = link.index
    elif change == 11 and link.kind == "veth" and room is not kernel.host:
        kernel._manner(
            room, link.name, dice.choice(["accept_ra", "disable_ipv6"]), dice.randrange(2)
        )


BODY_MAPS = st.dictionaries(st.sampled_from("pqrstu"), st.integers(0, len(BODIES) - 1), max_size=5)


@settings(max_examples=150)
@example({"p": 0, "q": 1}, {"p": 0, "q": 5}, 8527, 4)
@given(BODY_MAPS, BODY_MAPS, st.integers(0, 2**32), st.integers(0, 8))
def test_any_plan_converges_and_a_second_is_empty(
    before: dict[str, int], after: dict[str, int], seed: int, damage: int
) -> None:
    kernel = Kernel()
    _, desired, scene = declare(before)
    kernel.apply(planned(kernel, desired, scene).operations)
    assert planned(kernel, desired, scene).operations == ()
    dice = random.Random(seed)
    for _ in range(damage):
        drift(kernel, dice)
    _, desired, scene = declare(after)
    # A removal that waits for another one may take a second pass, as ports that go before a bridge.
    for _ in range(2):
        result = planned(kernel, desired, scene)
        assert not result.problems
        kernel.apply(result.operations)
    assert planned(kernel, desired, scene).operations == ()
    assert set(kernel.rooms) == {m.netns for m in desired.members.values()}
    for member in desired.members.values():
        carried = {a.address for a in kernel.rooms[member.netns].addresses}
        assert carried == {a for e in member.endpoints for a in e.addresses}


@settings(max_examples=100)
@given(BODY_MAPS, BODY_MAPS)
def test_foreign_objects_are_left_alone(before: dict[str, int], after: dict[str, int]) -> None:
    kernel = Kernel()
    _, desired, scene = declare(before)
    kernel.apply(planned(kernel, desired, scene).operations)
    host = kernel.host
    host.links[900] = new_link(900, "docker0", kind="bridge")
    host.links[901] = new_link(901, "vethx", kind="veth", peer=77, master=900)
    host.addresses.append(LinkAddress(900, InterfaceAddress(4, (172 << 24) + 1, 16), 0, 0, 0))
    kernel.rooms["mine"] = Room(5000, links={1: new_link(1, "lo", flags=0)})
    inside = {}
    for name, room in list(kernel.rooms.items()):
        if name == "mine":
            continue
        room.links[800] = new_link(800, "tun0", kind="tun", flags=0)
        room.addresses.append(LinkAddress(800, InterfaceAddress(4, 1 << 24, 24), 0, 0, 0))
        room.routes.append(RouteRow(parse_subnet("9.0.0.0/8"), None, 800, 254, 4, 0, 0, None, 1))
        room.rules.append(RuleRow(4, 5, parse_subnet("1.0.0.0/24"), 77, 0, True))
        inside[name] = room
    _, desired, scene = declare(after)
    kernel.apply(planned(kernel, desired, scene).operations)
    assert host.links[900].name == "docker0" and host.links[901].master == 900
    assert kernel.rooms["mine"].links[1].flags == 0
    for name, room in inside.items():
        if kernel.rooms.get(name) is room:
            assert 800 in room.links and any(r.index == 800 for r in room.routes)
            assert any(r.table == 77 for r in room.rules)


@settings(max_examples=60)
@given(BODY_MAPS, BODY_MAPS)
def test_plans_are_deterministic_and_every_line_is_one_line(
    before: dict[str, int], after: dict[str, int]
) -> None:
    kernel = Kernel()
    _, desired, scene = declare(before)
    kernel.apply(planned(kernel, desired, scene).operations)
    _, desired, scene = declare(after)
    one, two = planned(kernel, desired, scene), planned(kernel, desired, scene)
    assert one.operations == two.operations
    for op in one.operations:
        assert op.describe() and "\n" not in op.describe()
        assert all("\n" not in line for line in op.commands())


@settings(max_examples=60)
@given(BODY_MAPS, BODY_MAPS, st.sampled_from("pqrstu"))
def test_a_scoped_plan_touches_its_scope_alone(
    before: dict[str, int], after: dict[str, int], name: str
) -> None:
    kernel = Kernel()
    _, desired, scene = declare(before)
    kernel.apply(planned(kernel, desired, scene).operations)
    _, desired, scene = declare(after)
    only = frozenset({f"container/{name}"})
    assert {op.object for op in planned(kernel, desired, scene, only=only).operations} <= only


def test_who_is_in_use_stays() -> None:
    kernel = Kernel()
    _, desired, scene = declare({"p": 1, "q": 2})
    kernel.apply(planned(kernel, desired, scene).operations)
    _, desired, scene = declare({"q": 2})
    busy = Scene(declared=scene.declared, networks=scene.networks, busy=lambda n: (77, 78))
    result = planned(kernel, desired, busy)
    assert result.operations == () and "pids 77, 78" in result.held[0].reason


def test_without_a_record_two_links_with_one_mark_are_a_problem_and_stay() -> None:
    kernel = Kernel()
    _, desired, scene = declare({"p": 1})
    kernel.apply(planned(kernel, desired, scene).operations)
    end = next(link for link in kernel.host.links.values() if link.kind == "veth")
    kernel.host.links[950] = replace(end, index=950, name="forged", peer=66)
    result = planned(kernel, desired, scene)
    assert "container/p" in result.problems and result.operations == ()
    _, desired, scene = declare({})
    removed = planned(kernel, desired, scene).operations
    assert not any(isinstance(op, ops.RemoveContainer) and 950 in op.ends for op in removed)


def test_with_a_record_a_forged_mark_counts_for_nothing() -> None:
    kernel = Kernel()
    _, desired, scene = declare({"p": 1})
    kernel.apply(planned(kernel, desired, scene).operations)
    room = kernel.rooms["p"]
    end = next(link for link in kernel.host.links.values() if link.kind == "veth")
    bridges = {n: kernel.host.index(n) for n in NETWORKS if n != "r"}
    witness = Witness(
        present=True,
        spaces={"p": room.cookie},
        ends={end.index: ("a", "p", "eth0")},
        bridges=bridges,
    )
    kernel.host.links[950] = replace(end, index=950, name="forged", peer=66)
    kernel.rooms["q"] = Room(6000, links={1: new_link(1, "lo", alias="runcnet:p")})
    seen = kernel.observe(SYSCTLS, witness)
    assert list(seen.containers) == ["p"] and not seen.doubles
    assert [e.host.index for e in seen.containers["p"].ends] == [end.index]


@pytest.mark.parametrize(
    "text,owned,limit",
    [("50%", 4, 3), ("50%", 100, 50), ("all", 9, 9), ("7", 100, 7), ("0%", 9, 3)],
)
def test_the_limit_of_removals(text: str, owned: int, limit: int) -> None:
    assert removal_limit(text, owned) == limit


def test_names_do_not_collide_over_a_hundred_thousand_containers() -> None:
    names = {host_interface("n", f"worker-{i}", "eth0") for i in range(100_000)}
    assert len(names) == 100_000 and all(len(name) == 15 for name in names)
    macs = {member_mac("m", "n", Address(4, i)) for i in range(100_000)}
    assert len(macs) == 100_000 and all(mac[0] & 3 == 2 for mac in macs)
    assert member_mac("m", "n", Address(4, 1)) != member_mac("k", "n", Address(4, 1))


@given(st.text(max_size=60))
def test_any_alias_parses(text: str) -> None:
    parse_alias("runcnet:" + text)
    parse_alias(text)
