"""What a command shows while it works: headers, progress with rate and time left, plain lines off a terminal."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

PLAIN_INTERVAL_SECONDS = 10.0
# Control characters and marks of direction would move the cursor, or show a name in another order than it is written.
_VISIBLE: dict[int, int | str] = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    **{code: f"\\x{code:02x}" for code in range(0x7F, 0xA0)},
    **{code: f"\\u{code:04x}" for code in (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))},
}


def visible(text: str, newline: bool = False) -> str:
    """The text with its control characters shown as signs, so that a name from outside cannot act on what shows it.

    A newline (and a tab) stays, or becomes a space where `newline` says that the text belongs on one line.
    """
    return (" ".join(text.split()) if newline else text).translate(_VISIBLE)


class Task:
    """One bar, or off a terminal one line every ten seconds. `advance` takes the newest figures as a short text."""

    def __init__(self, terminal: "Terminal", description: str, total: int, unit: str, done: int = 0) -> None:
        self._terminal, self.description, self.total, self.unit = terminal, description, total, unit
        self.done, self._first = done, done
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None

    def advance(self, amount: int = 1, text: str = "") -> None:
        """`amount` more of `total` are done."""
        self.done += amount
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, text=text, rate=self._rate())
            return
        now = time.monotonic()
        if now - self._last_line >= PLAIN_INTERVAL_SECONDS:
            self._last_line = now
            self._terminal.say(
                f"{self.description} {self.done}/{self.total} {self._rate()}{self._left()} {text}".rstrip()
            )

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        return f"{(self.done - self._first) / seconds:.1f} {self.unit}/s"

    def _left(self) -> str:
        moved = self.done - self._first
        if not moved:
            return ""
        seconds = (time.monotonic() - self._started) / moved * (self.total - self.done)
        return f" {seconds:.0f} s left"


class Terminal:
    """Where a command speaks. With `--json` everything but the final line goes to stderr."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        quiet = quiet or os.environ.get("RANK", "0") != "0"  # of several processes the first speaks
        self.console = Console(stderr=json, quiet=quiet, highlight=False, soft_wrap=not sys.stdout.isatty())
        self._progress_console = Console(stderr=True, quiet=quiet)

    def without_text(self) -> "Terminal":
        """A terminal that shows bars alone: for the runs of a study, which says a line for each itself."""
        inner = copy(self)
        inner.console = Console(quiet=True)
        return inner

    def say(self, text: str, style: str = "") -> None:
        """One line; markup in user text is not interpreted."""
        self.console.print(text, style=style, markup=False)

    def table(self, table: Table) -> None:
        """A table, at most 80 columns."""
        self.console.print(table, width=min(80, self.console.width))

    @contextmanager
    def task(self, description: str, total: int, unit: str = "it", done: int = 0) -> Iterator[Task]:
        """A bar over `total` steps, `done` of which are behind us."""
        task = Task(self, description, total, unit, done)
        if not self._progress_console.is_terminal or self._progress_console.quiet:
            yield task
            return
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=18),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=self._progress_console,
            transient=True,
        ) as bar:
            bar.add_task(description, total=total, completed=done, text="", rate="")
            task._bar = bar
            yield task


def figures_table(title: str, rows: Sequence[Sequence[str]], columns: Sequence[str]) -> Table:
    """A table whose first column is text and whose others are right-aligned figures."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
