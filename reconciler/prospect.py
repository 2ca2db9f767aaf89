"""What a pass has read and decided before anything is changed."""

import msgspec

from reconciler.attachment import Attachments
from reconciler.core import ops
from reconciler.core.leases import Assignment
from reconciler.core.model import Rejection, Spec
from reconciler.core.netplan import Held
from reconciler.core.observed import Observed
from reconciler.core.ops import Operation
from reconciler.core.plan import Plan
from reconciler.core.wanted import Desired
from reconciler.declared import Declared
from reconciler.host import rtnl
from reconciler.localnet import Localnet
from reconciler.settings import Settings
from reconciler.wall import Wall

__all__ = ["Declined", "Prospect", "Settings", "absent_sysctls", "held_once", "taking_away"]


class Prospect(msgspec.Struct, frozen=True):
    """All that was read and decided before anything is changed."""

    declared: Declared
    spec: Spec
    observed: Observed
    desired: Desired
    assignment: Assignment
    plan: Plan
    wall: Wall
    local: Localnet
    attached: Attachments
    """Bundles and dns files, after all else."""
    moves: tuple[Operation, ...]
    problems: dict[str, list[str]]
    rejections: tuple[Rejection, ...]
    notes: tuple[str, ...]

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Everything, in the order in which it is carried out."""
        wall = (self.wall.operation,) if self.wall.operation else ()
        p = self.plan
        local = self.local
        middle = p.networks + wall + p.host + p.creations + p.repairs
        middle += tuple(local.on)
        return (
            self.moves
            + tuple(local.off)
            + p.removals
            + middle
            + tuple(self.attached.operations)
            + p.last
        )


class Declined(Exception):  # noqa: N818 - no error: the caller only wanted to know
    """A pass is not to be carried out."""


def taking_away(decided: Plan) -> frozenset[str]:
    """The objects from which a plan removes anything that a file used to declare."""
    return frozenset(
        op.object
        for op in decided.operations
        if op.action == "remove"
        or isinstance(op, ops.RemoveContainer | ops.RemoveEndpoint | ops.RemoveAddress)
    )


def absent_sysctls(spec: Spec) -> tuple[Rejection, ...]:
    """Declared sysctls that a fresh namespace does not have, found before anything is made."""
    names = sorted({name for c in spec.containers.values() for name, _ in c.sysctls})
    absent = set(rtnl.absent_sysctls(names)) if names else set()
    if not absent:
        return ()
    return tuple(
        Rejection(
            place=c.place,
            path=f"containers.{c.name}.sysctls.{name}",
            message="a fresh network namespace has no such sysctl (drop it)",
        )
        for c in spec.containers.values()
        for name, _ in c.sysctls
        if name in absent
    )


def held_once(held: tuple[Held, ...]) -> tuple[Held, ...]:
    """Each object and reason once, in order."""
    return tuple({(h.object, h.reason): h for h in held}.values())
