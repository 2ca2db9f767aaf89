"""What a pass leaves in the record for `runcnet status`: what is wrong, since when, and what was."""

from reconciler.core.report import Report
from reconciler.core.troubles import news
from reconciler.host.record import Record
from reconciler.prospect import Prospect


def note_troubles(
    record: Record,
    report: Report,
    prospect: Prospect,
    *,
    scope: frozenset[str] | None,
    now: float,
) -> None:
    """Write down what a pass that was carried out found new; nothing where nothing changed.

    `scope`: the objects that it looked at (None: all); of no other is anything noted or struck out,
    rejected files aside. `now`: seconds since the epoch.
    """
    accepted = prospect.declared.loaded.accepted
    record.note_news(news(record.troubles(), report, scope=scope, accepted=accepted, now=now))
