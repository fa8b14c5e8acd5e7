"""What a command shows while it works: headers, progress with rate and time left, plain lines off a terminal."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy

from rich.console import Console
from rich.progress import Progress, ProgressColumn
from rich.progress import Task as RichTask
from rich.table import Table
from rich.text import Text

PLAIN_INTERVAL_SECONDS = 10.0
# Control characters and marks of direction would move the cursor, or show a name in another order than it is written.
_VISIBLE: dict[int, int | str] = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    **{code: f"\\x{code:02x}" for code in range(0x7F, 0xA0)},
    **{code: f"\\u{code:04x}" for code in (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))},
    **{code: f"\\u{code:04x}" for code in range(0xD800, 0xE000)},  # of file names that are not UTF-8; none is printable
}


def visible(text: str, newline: bool = False) -> str:
    """The text with its control characters shown as signs, so that a name from outside cannot act on what shows it.

    A newline (and a tab) stays, or becomes a space where `newline` says that the text belongs on one line.
    """
    return (" ".join(text.split()) if newline else text).translate(_VISIBLE)


class Task:
    """One bar, or off a terminal one line every ten seconds."""

    def __init__(self, terminal: "Terminal", description: str, total: int, unit: str, done: int = 0) -> None:
        self._terminal, self.description, self.total, self.unit = terminal, description, total, unit
        self.done, self._first = done, done
        self._started = self._last_line = time.monotonic()
        self._details: tuple[str, ...] = ()
        self._bar: Progress | None = None

    def advance(self, amount: int = 1, *details: str) -> None:
        """`amount` more of `total` are done; `details` are the newest values, the most important first."""
        self.done += amount
        self._details = details
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done)
            return
        now = time.monotonic()
        if now - self._last_line >= PLAIN_INTERVAL_SECONDS:
            self._last_line = now
            self._terminal.say("  ".join([self.description, *self._essentials(), *details]))

    def line(self, width: int) -> Text:
        """What the bar shows in `width` columns: steps, rate and time left always, then what there is room for."""
        needed = self._essentials()
        room = width - sum(len(part) + 2 for part in needed)
        name = self.description if len(self.description) <= room else f"{self.description[: max(room - 1, 0)]}…"
        line = Text("  ".join([name, *needed] if room > 1 else needed), no_wrap=True, overflow="ellipsis")
        for detail in self._details:
            if len(line) + 2 + len(detail) > width:
                break
            line.append(f"  {detail}", style="dim")
        length = min(20, width - len(line) - 2)
        if length >= 6:
            filled = round(length * min(self.done / self.total, 1)) if self.total else length
            line = Text.assemble(("━" * filled, "green"), ("━" * (length - filled), "dim"), "  ", line)
        return line

    def _essentials(self) -> list[str]:
        """Steps, and as soon as one is done the rate and the time left."""
        steps = f"{self.done:,}/{self.total:,}"
        moved, seconds = self.done - self._first, max(time.monotonic() - self._started, 1e-9)
        if not moved:
            return [steps]
        rate = moved / seconds
        return [steps, f"{rate:.1f} {self.unit}/s", f"{duration((self.total - self.done) / rate)} left"]


def duration(seconds: float) -> str:
    """`42 s`, `3:07 min` or `2:15 h`."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


class _Line(ProgressColumn):
    """The one column of a bar: what fits the terminal's width, the rest dropped."""

    def __init__(self, task: Task, console: Console) -> None:
        super().__init__()
        self._task, self._console = task, console

    def render(self, task: RichTask) -> Text:
        return self._task.line(self._console.width)


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
        """One line; neither markup nor control characters in text from outside act.

        One with a long path is left to the terminal to wrap, so that the path is whole when it is copied.
        """
        shown = visible(text)
        long = any(len(word) > self.console.width // 3 for word in shown.split())
        self.console.print(shown, style=style, markup=False, soft_wrap=long or None)

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
        line = _Line(task, self._progress_console)
        with Progress(line, console=self._progress_console, transient=True) as bar:
            bar.add_task(description, total=total, completed=done)
            task._bar = bar
            yield task


def figures_table(title: str, rows: Sequence[Sequence[str]], columns: Sequence[str]) -> Table:
    """A table whose first column is text and whose others are right-aligned; no cell is taken for markup."""
    table = Table(title=Text(visible(title), "bold"), title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(Text(visible(column)), justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return table
