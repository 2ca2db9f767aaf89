"""What a pass does beside and after its changes: it looks again, and writes down what it has come to."""

from collections.abc import Collection

from reconciler.core.model import Spec
from reconciler.core.netplan import Options, Scene
from reconciler.core.observed import FileState, Observed
from reconciler.core.plan import Plan, plan
from reconciler.core.seal import fresh_seals
from reconciler.core.standing import renamed_ends
from reconciler.host.apply import Outcome
from reconciler.host.observe import busy_in
from reconciler.host.removal import clear_points
from reconciler.looking import Looking
from reconciler.prospect import Prospect

FEW = 256
"""Up to so many touched objects, only they are looked at again after a change."""


class Settling(Looking):
    """The part of a pass that keeps the record; see `reconcile.py` for the rest."""

    names: Collection[str] | None = None
    """The containers that are looked at; None: all."""
    left: Plan | None
    """What the look after the changes found of what was changed."""

    def prune(self, spec: Spec, observed: Observed) -> None:
        """Strike out of the record what is no more: it went with a kill, or by somebody's hand.

        Not what is declared: it may stand in another netns dir, which this run was not given.
        """
        links = {link.index for link in observed.host.links}
        gateways = {str(address) for address in observed.gateways}
        kept = observed.containers.keys() | spec.containers.keys()
        self.record.forget(
            containers=[n for n in self.record.spaces(self.names) if n not in kept],
            # A deleted end of a container that stands says that it had one.
            ends=[
                index
                for index, (_, container, _) in self.record.ends(self.names).items()
                if index not in links and container not in observed.containers
            ],
            gateways=self.record.gateways().keys() - gateways if self.names is None else (),
        )

    def tidy(self, spec: Spec, observed: Observed) -> None:
        """Clear what an unmounted path has left."""
        if FileState.PLACEHOLDER in observed.files.values():
            wanted = {c.netns for c in spec.containers.values() if c.mode in ("network", "none")}
            files = {f: s for f, s in observed.files.items() if f not in wanted}
            clear_points(self.record, self.settings.netns_dir, files)

    def verify(self, prospect: Prospect, outcomes: list[Outcome]) -> list[Outcome]:
        """Look again: what is still to be done failed, whatever the kernel answered."""
        done = {outcome.operation.object for outcome in outcomes}
        broken = {outcome.operation.object for outcome in outcomes if outcome.error}
        files = {outcome.operation.object: outcome.operation.netns for outcome in outcomes}
        observed = self.observe(prospect.spec, touched=files if len(done) <= FEW else None)
        left = plan(
            prospect.desired,
            observed,
            Scene(
                declared={name: c.mode for name, c in prospect.spec.containers.items()},
                networks=frozenset(prospect.spec.networks),
                busy=busy_in(observed),
                keep="verifying",
                unfit=prospect.plan.unfit,
            ),
            Options(only=frozenset(done)),
        )
        wrong = [
            Outcome(op, f"still to be done after the change: {op.describe()}")
            for op in left.operations
            if op.object in done and op.object not in broken
        ]
        self.seal(prospect, observed, done - {outcome.operation.object for outcome in wrong}, left)
        self.left = left
        return wrong

    def seal(
        self, prospect: Prospect, observed: Observed, objects: Collection[str], found: Plan
    ) -> None:
        """Write down which of these are as wanted, so that the next pass need not look closer."""
        old = self.record.seals(self.names)
        fine = [
            name.partition("/")[2]
            for name in objects
            if name.startswith("container/") and found.states.get(name) == "ok"
        ]
        gone = old.keys() - prospect.desired.members.keys()
        self.record.note_seals(fresh_seals(prospect.desired, observed, fine, old), gone)
        self.record.note_ends(renamed_ends(prospect.desired, observed, fine))
