"""What a small pass asks of the firewall on its own behalf: its containers' addresses, and no more."""

from pathlib import Path
from typing import Any

from reconciler.core.desired import desired_state
from reconciler.core.leases import Book, assign
from reconciler.core.policy import Policy, Sender
from reconciler.core.wanted import Member
from reconciler.host.store import Store
from reconciler.wall import Wall
from tests.core.documents import loaded
from tests.core.simulated import Kernel

NETS = "networks: {red: {subnets: 10.60.0.0/24}, blue: {subnets: 10.61.0.0/24}}\n"


def members(interfaces: str) -> list[Member]:
    found = loaded(
        f=NETS + f"containers: {{a: {{interfaces: [{interfaces}]}}, b: {{interfaces: red}}}}\n"
    )
    assert not found.rejections, found.rejections
    empty = Book(held={}, freed={})
    given = assign(found.spec, empty, standing={}, busy=lambda name: False, kept=())
    host = Kernel().host.space(())
    desired = desired_state(found.spec, given.addresses, machine="m", host=host)
    return list(desired.members.values())


def test_what_a_container_had_elsewhere_is_wanted_no_more(tmp_path: Path) -> None:
    asked: list[tuple[Sender, ...]] = []

    class Firewall:
        def admit(self, policy: Policy, new: tuple[Sender, ...]) -> None:
            asked.append(new)

    store = Store.open(str(tmp_path))
    wall = Wall("none", store)
    backend: Any = Firewall()
    wall.backend = backend

    def admitted(interfaces: str) -> set[tuple[str, str]]:
        """Who may send after `a` was told to have these, when `b` is none of the pass's business."""
        asked.clear()
        wall.admit([m for m in members(interfaces) if m.name == "a"])
        return {(s.network, s.container) for s in wall.policy.senders}

    wall.admit(members("red"))
    assert admitted("red") == {("red", "a"), ("red", "b")} and not asked
    assert admitted("blue") == {("blue", "a"), ("red", "b")} and len(asked[0]) == 1
    assert (
        admitted("blue, red") == {("blue", "a"), ("red", "a"), ("red", "b")} and len(asked[0]) == 1
    )
    assert admitted("blue") == {("blue", "a"), ("red", "b")} and not asked
    store.close()
