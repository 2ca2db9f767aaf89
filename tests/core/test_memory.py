"""What was read while a file was being written counts only once it is known that it was all of it."""

import pytest

from reconciler.core.memory import QUIET_NS, Now, Young, grown

YOUNG = {"f": Young(b"young", 10 * QUIET_NS)}


@pytest.mark.parametrize(
    "now,restless,kept,dropped",
    [
        (Now(b"young", 10 * QUIET_NS), True, False, False),
        (Now(b"young", 10 * QUIET_NS), False, True, False),
        (Now(b"young", 11 * QUIET_NS), False, True, False),  # touched
        (Now(b"other", 10 * QUIET_NS), True, False, True),  # in the same tick of the clock
        (Now(b"other", 10 * QUIET_NS + 1), True, False, True),
        (Now(b"other", 11 * QUIET_NS - 1), False, False, True),
        (Now(b"other", 11 * QUIET_NS), True, True, False),
        (Now(b"other", 9 * QUIET_NS), False, True, False),  # an older file was put in its place
        (Now(None, 10 * QUIET_NS), False, True, False),  # it cannot be read any more
        (Now(None, None), False, True, False),  # it is gone
    ],
)
def test_young(now: Now, restless: bool, kept: bool, dropped: bool) -> None:
    found = grown(YOUNG, lambda file: now, restless=lambda file: restless)
    assert found.kept == ({"f": b"young"} if kept else {})
    assert found.dropped == ({"f"} if dropped else set())
