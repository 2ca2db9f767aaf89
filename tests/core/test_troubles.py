"""From one pass's report to the next: since when, and what is news."""

from reconciler.core import ops
from reconciler.core.model import Place, Rejection
from reconciler.core.netplan import Held
from reconciler.core.report import Done, Report
from reconciler.core.troubles import A_PASS, News, Trouble, news

FILE = "/etc/runcnet.d/a.yaml"


def failed(name: str, error: str) -> Done:
    op = ops.SetSysctl(object=name, name="net/core/somaxconn", value="x")
    return Done(operation=op, ok=False, error=error)


def done(name: str) -> Done:
    op = ops.SetSysctl(object=name, name="net/core/somaxconn", value="1")
    return Done(operation=op, ok=True)


def report(
    *operations: Done,
    problems: dict[str, list[str]] | None = None,
    held: tuple[Held, ...] = (),
    rejected: tuple[str, ...] = (),
    stopped: bool = False,
) -> Report:
    return Report(
        operations=operations,
        problems=problems or {},
        held=held,
        rejections=tuple(
            Rejection(place=Place(file=FILE, line=1, column=1), path="", message=text)
            for text in rejected
        ),
        notes=(),
        declared=frozenset(),
        duration_s=0.0,
        stopped=stopped,
    )


class Record:
    """What a record keeps, in memory."""

    def __init__(self) -> None:
        self.troubles: dict[str, Trouble] = {}
        self.mishaps: list[str] = []
        self.now = 100.0

    def note(
        self, found: Report, scope: frozenset[str] | None = None, accepted: tuple[str, ...] = ()
    ) -> News:
        self.now += 1
        fresh = news(self.troubles, found, scope=scope, accepted=accepted, now=self.now)
        self.troubles |= fresh.troubles
        for name in fresh.mended:
            del self.troubles[name]
        self.mishaps += [f"{one.object} {one.text}" for one in fresh.mishaps]
        return fresh


def test_a_trouble_keeps_its_beginning_and_takes_the_newest_reason() -> None:
    record = Record()
    record.note(report(problems={"container/a": ["foreign"]}))
    assert not record.note(report(problems={"container/a": ["foreign"]}))
    record.note(report(problems={"container/a": ["another\nreason"]}))
    assert record.troubles == {"container/a": Trouble(since=101.0, text="another reason")}
    record.note(report(done("container/a")))
    assert record.troubles == {}
    assert not record.note(report())
    assert record.mishaps == ["container/a foreign", "container/a another reason"]


def test_an_operation_that_fails_alike_at_every_pass_is_one_mishap() -> None:
    record = Record()
    for _ in range(5):
        record.note(report(failed("container/a", "EINVAL"), done("container/b")))
    assert len(record.mishaps) == 1 and record.mishaps[0].endswith(": EINVAL")
    record.note(report(failed("container/a", "ENOMEM")))
    record.note(report())
    record.note(report(failed("container/a", "ENOMEM")))
    assert [text.rpartition(" ")[2] for text in record.mishaps] == ["EINVAL", "ENOMEM", "ENOMEM"]


def test_what_is_held_back_is_a_trouble_and_no_mishap() -> None:
    record = Record()
    held = (Held(object="container/a", reason="in use by pid 7"),)
    record.note(report(held=held))
    assert record.troubles["container/a"].text == "held back: in use by pid 7"
    assert record.mishaps == []


def test_a_scoped_pass_speaks_of_its_objects_alone() -> None:
    record = Record()
    record.note(report(problems={"container/a": ["x"], "container/b": ["y"]}, rejected=("bad",)))
    scope = frozenset({"container/a"})
    record.note(report(problems={"container/c": ["z"]}), scope)
    assert set(record.troubles) == {"container/b", f"file/{FILE}"}
    record.note(report(failed("firewall", "held")), scope)
    assert "firewall" in record.troubles
    record.note(report(done("firewall")), scope, accepted=(FILE,))
    assert set(record.troubles) == {"container/b"}


def test_a_pass_that_was_ended_early_mends_nothing() -> None:
    record = Record()
    record.note(report(problems={"container/a": ["x"]}))
    record.note(report(stopped=True))
    assert "container/a" in record.troubles


def test_a_thousand_that_fail_alike_leave_room_for_others() -> None:
    record = Record()
    record.note(report(*(failed(f"container/{n}", "ENOSPC") for n in range(1000))))
    assert len(record.mishaps) == A_PASS and len(record.troubles) == 1000
    assert record.mishaps[-1].endswith("ENOSPC (and 980 more of the same pass)")


def test_every_error_of_a_rejected_file_is_a_mishap_once() -> None:
    record = Record()
    for _ in range(2):
        record.note(report(rejected=("one", "two")))
    assert record.mishaps == [f"file/{FILE} {FILE}:1:1: {text}" for text in ("one", "two")]
