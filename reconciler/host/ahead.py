"""Work begun in a thread, to be waited for later.

concurrent.futures would do; importing it costs 10 ms, which a pass that changes nothing feels.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Runs `work` in a thread from now on. What it raises, `result` raises."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._done: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._done.append(self._work())
        except BaseException as error:  # it is raised again where the result is asked for
            self._error = error

    def result(self) -> T:
        """Wait for the end of it."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._done[0]
