"""Progress with rate and ETA: a bar on a terminal, a line every 30 seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.status import Status

from tasks.launch import is_first_process
from tasks.printing import printable

_console = Console(stderr=True)
_LINE_EVERY = 30.0  # seconds between lines where there is no terminal


def print_line(message: str, *, of_any_process: bool = False) -> None:
    """Print one line on stderr; control characters and bytes that are not UTF-8 are escaped.

    Args:
        message: text of the line.
        of_any_process: whether other processes than the first print it too, as the reason for which they end.
    """
    if not (of_any_process or is_first_process()):
        return
    _console.print(printable(message, lines=True), highlight=False, markup=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Format seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Progress:
    """The display of progress over a number of steps, as a context.

    Args:
        total: number of all steps.
        done: steps done before this process began.
        items: mean number of items of a step, for the rate.
        unit: name of the items.
        enabled: False to print nothing; processes other than the first never print.
    """

    def __init__(self, total: int, done: int, items: float, *, unit: str = "images", enabled: bool = True) -> None:
        self.total, self.first, self.items, self.unit = total, done, items, unit
        self.enabled = enabled and is_first_process()
        self.start = self.printed = time.monotonic()
        self.bar: Bar | None = None
        if self.enabled and _console.is_terminal:
            self.bar = Bar(BarColumn(), TextColumn("{task.description}"), console=_console)
            self.row = self.bar.add_task("", total=total, completed=done)

    def __enter__(self) -> Progress:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, done: int, **shown: object) -> None:
        """Update the display.

        Args:
            done: steps done, including those before this process began.
            shown: values to print in front of the rate.
        """
        if not self.enabled:
            return
        now = time.monotonic()
        if self.bar is None and now - self.printed < _LINE_EVERY:
            return
        pace = (now - self.start) / max(done - self.first, 1)  # seconds per step
        values = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
        rate = self.items / max(pace, 1e-9)
        text = f"{values}  step {done}/{self.total}  {rate:.4g} {self.unit}/s  ETA {clock(pace * (self.total - done))}"
        if self.bar:
            self.bar.update(self.row, completed=done, description=text)
        else:
            self.printed = now
            print_line(text)

    def message(self, text: str) -> None:
        """Print a line that stays above the bar."""
        if self.enabled:
            print_line(text)


class StatusLine:
    """One line about work in progress, as a context: replaced on a terminal, printed now and then elsewhere.

    Args:
        every: seconds between lines where there is no terminal.
    """

    def __init__(self, every: float = _LINE_EVERY) -> None:
        self.every = every
        self.shown = time.monotonic()
        self.status: Status | None = _console.status("") if _console.is_terminal else None

    def __enter__(self) -> StatusLine:
        if self.status:
            self.status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.status:
            self.status.stop()

    def due(self) -> bool:
        """Return whether the line should be made anew: every two seconds on a terminal."""
        return time.monotonic() - self.shown >= (2.0 if self.status else self.every)

    def show(self, text: str) -> None:
        """Show a line."""
        self.shown = time.monotonic()
        if self.status:
            self.status.update(escape(printable(text)))
        else:
            print_line(text)
