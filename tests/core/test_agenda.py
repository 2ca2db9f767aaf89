"""When what is heard becomes a pass."""

from reconciler.core.agenda import ALL, LAST_PAUSE_S, PATIENCE_S, QUIET_S, Agenda

WEB, SHOP = "container/web", "container/shop"


def agenda() -> Agenda:
    return Agenda(lambda: 0.5)


def test_a_mark_is_due_after_a_moment_of_quiet() -> None:
    a = agenda()
    assert a.next(0.0) is None and not a.due(100.0)
    a.mark([WEB], 10.0)
    assert not a.due(10.0)
    assert a.next(10.0) == 10.0 + QUIET_S
    assert a.due(10.0 + QUIET_S) == {WEB}


def test_a_burst_is_one_pass_and_does_not_put_it_off_for_ever() -> None:
    a = agenda()
    step = QUIET_S / 2
    now = 10.0
    while not a.due(now):
        a.mark([f"container/{now}"], now)
        now += step
    assert PATIENCE_S <= now - 10.0 < PATIENCE_S + 2 * step
    assert len(a.due(now)) > 20


def test_who_is_looked_at_is_marked_no_more_and_the_oldest_mark_is_told() -> None:
    a = agenda()
    a.mark([WEB], 10.0)
    a.mark([SHOP], 11.0)
    a.mark([WEB], 12.0)
    assert a.seen([WEB, SHOP]) == 10.0
    assert a.seen([WEB, SHOP]) is None
    assert not a.due(20.0) and a.next(20.0) is None


def test_what_fails_rests_longer_each_time_and_the_others_do_not_wait() -> None:
    a = agenda()
    pauses, now = [], 0.0
    for _ in range(12):
        a.seen(None)
        a.failed([WEB], now)
        due = a.next(now)
        assert due is not None
        pauses.append(due - now)
        # Marks do not wake it, but wake the others.
        a.mark([WEB, SHOP], now)
        assert a.due(now + QUIET_S) == {SHOP}
        a.seen([SHOP])
        now = due
        assert a.due(now) == {WEB}
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert pauses[-1] == LAST_PAUSE_S


def test_pauses_are_spread() -> None:
    ends = set()
    for dice in (0.0, 0.5, 1.0):
        a = Agenda(lambda dice=dice: dice)  # type: ignore[misc]
        a.failed([WEB], 0.0)
        ends.add(a.next(0.0))
    assert ends == {0.75, 1.0, 1.25}


def test_who_is_fine_again_begins_anew_and_a_new_declaration_wakes() -> None:
    a = agenda()
    for _ in range(5):
        a.failed([WEB], 0.0)
    a.mark([WEB], 1.0)
    assert not a.due(2.0)
    a.wake([WEB])
    assert a.due(2.0) == {WEB}
    a.fine([WEB])
    a.seen([WEB])
    a.failed([WEB], 5.0)
    assert a.next(5.0) == 6.0


def test_what_is_postponed_is_due_then_without_a_mark() -> None:
    a = agenda()
    a.postpone([ALL], 7.0)
    a.postpone([ALL], 9.0)
    assert a.next(0.0) == 7.0 and not a.due(6.9) and a.due(7.0) == {ALL}
