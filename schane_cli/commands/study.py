"""`schane study`: every trial of a study file, run by any number of workers, stopped and resumed at any time."""

import shutil
import statistics
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from schane_cli.commands.compare import make_run
from schane_cli.commands.fewshot import fewshot
from schane_cli.commands.finetune import finetune, run_or_resume
from schane_cli.commands.study_file import Setting, StudyFile, read_study, recipes_of, settings, study_recipe
from schane_cli.datasets.load import load_fewshot_splits, load_splits, reading_once
from schane_cli.errors import BadRequest, SchaneError
from schane_cli.metrics.registry import metric
from schane_cli.recipe import Recipe
from schane_cli.run import RESULTS, RunFolder, pick_device, plain, remove_dead, temporary, write_text
from schane_cli.terminal import Terminal
from schane_cli.training.interruption import Interrupted

NO_ROOM_BYTES = 2**26  # on the disk of a study, below which a trial that fails is thought to have failed of it
POLL_SECONDS = 5.0  # while other workers run the last trials


@reading_once()
def study(
    path: Path,
    *,
    out: Path | None,
    storage: str | None,
    machine: Mapping[str, Any],
    retry_failed: bool,
    writes_summary: bool,
    terminal: Terminal,
) -> dict[str, Any]:
    """Work on a study until no trial is left; returns the content of its summary.json.

    Of several workers of one launch only one `writes_summary`: a second would write over what the report adds to it.
    `storage` is an Optuna URL; None means a SQLite file in the study's folder. `machine` holds recipe values of
    this computer (data.root, model.weights, device), which are not part of the study.

    Raises:
        BadRequest: a bad study file, data that cannot be read, a study begun with another file; before any trial.
        SchaneError: the storage did not come back; nothing is lost.
        Interrupted: a signal came; the current trial is saved and queued again.
    """
    from schane_cli.commands.study_queue import Queue  # Optuna is an extra

    file = read_study(path)
    folder = out or RESULTS / "study" / path.stem
    check_trials(file, machine)
    try:
        if storage is None:
            folder.mkdir(parents=True, exist_ok=True)
        url = storage or f"sqlite:///{(folder / 'study.db').absolute()}"
        queue = Queue(file, path.stem, url, terminal.say)
        folder.mkdir(parents=True, exist_ok=True)
        remove_dead(folder)
        write_text(folder / "study.yaml", path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRequest(f"study folder {folder} cannot be written: {error.strerror or error}") from None
    if retry_failed:
        terminal.say(f"{queue.retry_failed()} failed trials are queued again")
    counts = queue.counts()
    terminal.say(f"study     {folder}, storage {queue.shown_url}")
    terminal.say(
        f"trials    {sum(counts.values())}: {', '.join(f'{n} {state}' for state, n in sorted(counts.items()))}"
    )
    Worker(file, queue, folder, machine, f"study {path} --out {folder}", terminal).work()
    summary = summarise(file, queue, folder)
    if writes_summary:
        RunFolder(folder).finish(summary)
    return summary


def check_trials(file: StudyFile, machine: Mapping[str, Any]) -> None:
    """BadRequest for a trial whose recipe is not valid, or whose data cannot be read, before any trial runs."""
    recipes = recipes_of(file, machine)
    load = load_fewshot_splits if file.command == "fewshot" else load_splits
    for data in dict.fromkeys(recipe.data.model_dump_json() for recipe in recipes):
        load(next(recipe.data for recipe in recipes if recipe.data.model_dump_json() == data))
    pick_device(recipes[0].device)


class Worker:
    """One process that takes trials from the queue until none is left."""

    def __init__(
        self, file: StudyFile, queue: Any, folder: Path, machine: Mapping[str, Any], command: str, terminal: Terminal
    ) -> None:
        self.file, self.queue, self.folder, self.machine = file, queue, folder, machine
        self.command, self.terminal = command, terminal
        self.plan = settings(file)
        self._seconds: list[float] = []

    def work(self) -> None:
        """Run trials; then wait for those of other workers, and take over from one that dies."""
        announced = False
        while True:
            claimed = self.queue.claim()
            if claimed is not None:
                self._run(claimed)
                continue
            running = self.queue.counts()["running"]
            if not running:
                return
            if not announced:
                self.terminal.say(f"waiting for {running} trials that other workers run")
                announced = True
            time.sleep(min(POLL_SECONDS, self.file.heartbeat_seconds))

    def _run(self, claimed: Any) -> None:
        setting = self.plan[claimed.index]
        began = time.perf_counter()
        with self.queue.beating(claimed):
            try:
                summaries = [self._one(setting, claimed.values, seed) for seed in setting.seeds]
                value = statistics.fmean(_figure(summary, self.file.objective) for summary in summaries)
            except Interrupted as stopped:
                self.queue.give_back(claimed)
                raise stopped.resumed_by(self.command) from None
            except Exception as error:  # whatever a trial fails of, the others run
                reason = str(error) if isinstance(error, SchaneError) else f"{type(error).__name__}: {error}"
                if not _can_be_written(self.folder):  # which every other trial would die of, too
                    self.queue.give_back(claimed)
                    raise SchaneError(f"{reason}; the trial is queued again for the same command") from None
                self.queue.fail(claimed, reason)
                self.terminal.say(f"{_title(setting)} failed: {reason}")
                return
        self.queue.finish(claimed, [plain(summary) for summary in summaries], value)
        self._seconds.append(time.perf_counter() - began)
        self.terminal.say(self._progress(setting, value))

    def _one(self, setting: Setting, values: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """The run of one setting and seed, in its own folder; a finished one is kept, a stopped one resumes."""
        recipe = study_recipe(self.file, {**setting.values, **values}, seed, self.machine)
        path = self.folder / "runs" / folder_name(setting.label) / f"s{seed}"
        run = run_fewshot if self.file.command == "fewshot" else finetune
        return run_or_resume(run, recipe, path, self.terminal.without_text())

    def _progress(self, setting: Setting, value: float) -> str:
        counts = self.queue.counts()
        left, total = counts["waiting"] + counts["running"], sum(counts.values())
        minutes = statistics.fmean(self._seconds) * left / max(counts["running"] + 1, 1) / 60
        objective = metric(self.file.objective)
        scored = f"{objective.label} {objective.text(value)}, {self._seconds[-1]:.0f} s"
        done = f"{total - left}/{total} {_title(setting)}: {scored}"
        return f"{done}, about {minutes:.0f} min left" if left else done


def _can_be_written(folder: Path) -> bool:
    """Whether the disk of a folder is there, has room for more than small files, and can be written."""
    probe = temporary(folder / "probe")
    try:
        probe.write_bytes(b"room")
        if shutil.disk_usage(folder).free < NO_ROOM_BYTES:
            return False
    except OSError:
        return False
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return True


def run_fewshot(recipe: Recipe, *, out: Path | None, terminal: Terminal, resume: Path | None = None) -> dict[str, Any]:
    """Base training and episodes, as `schane fewshot` without a checkpoint."""
    return fewshot([], recipe, allow_seen_classes=False, out=out, terminal=terminal, resume=resume)


def folder_name(label: str) -> str:
    """A label as a folder's name: `schane train.lr=0.002` as `schane-train.lr=0.002`."""
    return "".join(letter if letter.isalnum() or letter in "._=-" else "-" for letter in label)


def _title(setting: Setting) -> str:
    seeds = ",".join(map(str, setting.seeds))
    return f"{setting.label}, seed {seeds}"


def _figure(summary: Mapping[str, Any], name: str) -> float:
    values = make_run("", {}, summary).values
    if name not in values:
        raise BadRequest(f"the study's metric {name!r} is not one of its runs' metrics, which are {', '.join(values)}")
    return values[name]


def summarise(file: StudyFile, queue: Any, folder: Path) -> dict[str, Any]:
    """The content of a study's summary.json: every trial with its state, the best of a search, why others failed."""
    plan = settings(file)
    trials = [
        {
            "label": plan[entry.index].label,
            "seeds": list(plan[entry.index].seeds),
            "state": entry.state,
            "values": {**plan[entry.index].values, **entry.values},
            "error": entry.error,
            "runs": entry.summaries,
        }
        for entry in queue.entries()
    ]
    counts = queue.counts()
    summary = {
        "command": "study",
        "study": file.model_dump(mode="json"),
        "trials": trials,
        **{f"trials_{state}": counts[state] for state in ("done", "failed", "running", "waiting")},
        "run": str(folder),
    }
    if file.search and counts["done"]:
        best = queue.study.best_trial
        summary["best"] = {"label": plan[best.user_attrs["index"]].label, file.objective: best.value, **best.params}
    return plain(summary)
