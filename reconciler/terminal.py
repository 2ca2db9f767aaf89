"""What people see: plan lines, colour, a progress bar, log lines on stderr."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reconciler.core.report import Report

Lines = list[tuple[str, str]]
"""Lines and the colour of each; empty: none."""
COLOURS = {"create": "32", "update": "33", "remove": "31", "bad": "31", "dim": "2"}
BAR_FROM = 200
"""Operations from which a progress bar is worth its import."""


class Terminal:
    """Where and how to print. Logs go to stderr, answers to stdout."""

    def __init__(
        self, *, log_format: str = "text", verbosity: int = 0, quiet: bool = False
    ) -> None:
        self.log_format = log_format
        self.verbosity = verbosity
        self.quiet = quiet
        self.finish: Callable[[], None] = lambda: None
        """Takes a progress bar away; to be called when the work is over, however it ended."""
        self.colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def paint(self, text: str, colour: str) -> str:
        """`text` in a colour, where there is a terminal to show it."""
        return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if self.colour else text

    def log(self, level: str, message: str, **more: Any) -> None:
        """One line on stderr."""
        if self.quiet and level != "error":
            return
        if self.log_format == "json":
            import json

            entry = {"time": round(time.time(), 3), "level": level, "message": message, **more}
            print(json.dumps(entry), file=sys.stderr)
        else:
            print(message, file=sys.stderr)

    def report(self, report: "Report") -> None:
        """A report for people."""
        from reconciler.core.report import line, summary

        for rejection in report.rejections:
            self.log("error", str(rejection), file=rejection.place.file)
        for note in report.notes:
            self.log("warning", f"note: {note}")
        for done in report.operations:
            if done.ok is False:
                print(self.paint(f"x {line(done.operation)[2:]}: {done.error}", "bad"))
            elif not self.quiet:
                print(self.paint(line(done.operation), done.operation.action))
        for name, texts in sorted(report.problems.items()):
            for text in texts:
                print(self.paint(f"x {name.replace('/', ' ', 1)}: {text}", "bad"))
        for held in report.held:
            print(f"= {held.object.replace('/', ' ', 1)}  held back: {held.reason}")
        if not self.quiet:
            print(f"{summary(report)}  ({report.duration_s:.2f} s)")

    def progress(self, total: int) -> Callable[[int], None]:
        """A bar for long work on a terminal; elsewhere nothing."""
        if total <= BAR_FROM or not sys.stderr.isatty() or "NO_COLOR" in os.environ or self.quiet:
            return lambda count: None
        from rich.console import Console
        from rich.progress import Progress

        bar = Progress(console=Console(stderr=True), transient=True)
        task = bar.add_task("applying", total=total)
        bar.start()
        self.finish = bar.stop
        return lambda count: bar.advance(task, count)

    @property
    def redraws(self) -> bool:
        """Whether stdout is a terminal that can be drawn on again and again."""
        return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")

    @contextlib.contextmanager
    def screen(self) -> Iterator[Callable[[Callable[[int], Lines]], None]]:
        """The whole terminal, given back at the end.

        Yields what draws on it: it is handed a function from the height in lines to the lines;
        each is cut at the width.
        """
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        console = Console(highlight=False)
        styles = {"bad": "red", "dim": "dim"} if self.colour else {}
        with Live(console=console, screen=True, auto_refresh=False) as live:

            def draw(compose: Callable[[int], Lines]) -> None:
                text = Text(no_wrap=True, overflow="ellipsis")
                for line, colour in compose(console.size.height):
                    text.append(f"{line}\n", style=styles.get(colour, ""))
                live.update(text, refresh=True)

            yield draw
