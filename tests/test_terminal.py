"""What a command shows while it works, in the columns that there are."""

import io
import time

import pytest
from rich.console import Console

from schane_cli.terminal import Task, Terminal, duration, figures_table, visible

DETAILS = ("val 98.6%", "con 4.490", "ce 0.960", "12345 img/s", "wait 32%")


def _task(description: str = "training", total: int = 12_000, done: int = 0) -> Task:
    task = Task(Terminal(quiet=True), description, total, "step")
    task._started = time.monotonic() - 100
    if done:
        task.advance(done, *DETAILS)
    return task


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_steps_rate_and_time_left_stay_at_any_width(width: int) -> None:
    for description in ("training", "scoring val for the temperature"):
        line = _task(description, done=3_000).line(width)
        assert len(line) <= width
        for needed in ("3,000/12,000", "30.0 step/s", "5:00 min left"):
            assert needed in line.plain


def test_details_are_dropped_from_the_last_and_the_bar_before_them() -> None:
    shown = [_task(done=3_000).line(width).plain for width in (52, 74, 200)]
    assert [sum(detail in line for detail in DETAILS) for line in shown] == [0, 2, 5]
    assert ["━" in line for line in shown] == [False, False, True]
    assert all(detail in shown[1] for detail in DETAILS[:2])


def test_nothing_is_shown_before_it_exists() -> None:
    line = _task().line(80).plain
    assert line.rstrip().endswith("0/12,000")
    assert "left" not in line
    assert "step/s" not in line


def test_on_a_terminal_of_80_columns_the_bar_is_one_line() -> None:
    terminal, file = Terminal(), io.StringIO()
    terminal._progress_console = Console(file=file, force_terminal=True, width=80, color_system=None)
    with terminal.task("scoring val for the temperature", 1_234_567, "img") as task:
        task.advance(1_000_000, *DETAILS)
        assert task._bar is not None
        task._bar.refresh()
    lines = [line for line in file.getvalue().replace("\r", "\n").split("\n") if "1,000,000/1,234,567" in line]
    assert lines
    assert all(line.rstrip().endswith("left") for line in lines)


def test_off_a_terminal_a_line_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    task = Task(Terminal(), "training", 100, "step")
    task._started = task._last_line = time.monotonic() - 20
    task.advance(50, "val 90.0%")
    assert capsys.readouterr().out == "training  50/100  2.5 step/s  20 s left  val 90.0%\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.7, "1:00 min"), (187, "3:07 min"), (8_100, "2:15 h"), (200_000, "55:33 h")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_text_from_outside_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.table(figures_table("[bold]t[/red]", [("a[/red]", "\x1b[31mb")], ("x[/]", "y")))
    terminal.say("[/red] \x1b[2J\x07 \u202e")
    out = capsys.readouterr().out
    assert "[bold]t[/red]" in out
    assert "a[/red]" in out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "␛[31mb" in out
    assert "\\u202e" in out


def test_a_long_path_stays_whole_and_prose_breaks_between_words(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    path = f"/results/{'a-long-name/' * 8}report.html"
    Terminal().say(f"report: {path}")
    assert capsys.readouterr().out == f"report: {path}\n"
    Terminal().say("word " * 30)
    assert [len(line) <= 80 for line in capsys.readouterr().out.splitlines()] == [True, True]


def test_a_name_for_one_line_has_no_line_break() -> None:
    assert visible("a\r\nb\tc", newline=True) == "a b c"
    assert visible("a\nb") == "a\nb"
