"""Work begun in a thread, to be waited for later.

concurrent.futures or threading would do; importing them costs 10 ms and 1 ms, which a pass that changes
nothing feels.
"""

from _thread import allocate_lock, start_new_thread
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Runs `work` in a thread from now on. What it raises, `result` raises."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._done: list[T] = []
        self._error: BaseException | None = None
        self._over = allocate_lock()
        self._over.acquire()
        start_new_thread(self._run, ())

    def _run(self) -> None:
        try:
            self._done.append(self._work())
        except BaseException as error:  # it is raised again where the result is asked for
            self._error = error
        finally:
            self._over.release()

    def result(self) -> T:
        """Wait for the end of it."""
        with self._over:
            pass
        if self._error is not None:
            raise self._error
        return self._done[0]
