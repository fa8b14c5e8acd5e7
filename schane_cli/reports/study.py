"""A study as people read it: what ran, what failed, and the comparison of its settings."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from schane_cli.commands.compare import TRAIN_SET, Run, compare_runs, make_run
from schane_cli.commands.study_file import StudyFile, study_recipe
from schane_cli.errors import BadRequest
from schane_cli.metrics.registry import metric as registered
from schane_cli.reports.compare import write_comparison
from schane_cli.reports.pages import write_page
from schane_cli.run import RunFolder
from schane_cli.terminal import Terminal, figures_table

_OF_TRAIN_SET = {key.rsplit(".", 1)[-1] for key in TRAIN_SET}


def study_report(folder: Path, terminal: Terminal) -> None:
    """Tables, figure and page of a study folder; of an unfinished study what there is."""
    summary = RunFolder(folder).read_summary()
    file = StudyFile.model_validate(summary["study"])
    failed = [
        (trial["label"], ", ".join(map(str, trial["seeds"])), trial["error"])
        for trial in summary["trials"]
        if trial["state"] == "failed"
    ]
    if file.search:
        _search_report(file, summary, folder, terminal)
    else:
        _grid_report(file, summary, folder, terminal)
    if failed:
        terminal.table(figures_table("failed", failed, ("setting", "seed", "why")))
        terminal.say("schane study --retry-failed runs them again")


def _grid_report(file: StudyFile, summary: Mapping[str, Any], folder: Path, terminal: Terminal) -> None:
    runs = [run for trial in summary["trials"] for run in _runs(file, trial)]
    left = summary["trials_failed"] + summary["trials_waiting"] + summary["trials_running"]
    unfinished = f"{left} of {len(summary['trials'])} trials have no result; seeds common to all are compared"
    notes = [unfinished] if left else []
    try:
        blocks = compare_runs(runs, metric=file.metric, baseline=file.baseline, common_seeds=bool(left))
    except BadRequest as reason:  # one setting, or too few finished runs to compare
        terminal.say(str(reason))
        return
    write_comparison(blocks, notes, RunFolder(folder), terminal, study=summary)


def _runs(file: StudyFile, trial: Mapping[str, Any]) -> list[Run]:
    """The finished runs of a trial, called by what varies within a training set."""
    label = " ".join(part for part in trial["label"].split(" ") if part.split("=")[0] not in _OF_TRAIN_SET)
    return [
        make_run(run["run"], study_recipe(file, trial["values"], run["seed"], {}).flat(), run, label or "base")
        for run in trial["runs"]
    ]


def _search_report(file: StudyFile, summary: Mapping[str, Any], folder: Path, terminal: Terminal) -> None:
    """The trials of a search, best first."""
    done = [trial for trial in summary["trials"] if trial["state"] == "done"]
    objective = registered(file.objective)
    scored = sorted(done, key=lambda trial: _mean(trial, objective.name), reverse=objective.direction != "lower")
    columns = ("trial", objective.heading, *file.search)
    rows = [
        (
            trial["label"],
            objective.number(_mean(trial, objective.name)),
            *(_value(trial["values"][key]) for key in file.search),
        )
        for trial in scored
    ]
    note = f"Each value is a mean over seeds {file.seeds}; the best of many draws is optimistic: score it on test once."
    page = write_page(folder, "study", title=folder.name, columns=columns, rows=rows, note=note)
    terminal.table(figures_table(f"{folder.name}: best of {len(done)}", rows[:10], columns))
    terminal.say(note)
    terminal.say(f"report: {page}")


def _mean(trial: Mapping[str, Any], metric: str) -> float:
    return fmean(make_run("", {}, run).values[metric] for run in trial["runs"])


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
