"""`schane finetune`: train on train, choose the epoch on val, read test once."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from schane_cli.commands.calibration import calibrate_on, keep
from schane_cli.commands.evaluate import score, write_results
from schane_cli.datasets.load import load_splits, reading_once
from schane_cli.distributed import on_first
from schane_cli.errors import BadRequest
from schane_cli.metrics.intervals import t_interval
from schane_cli.metrics.registry import metric
from schane_cli.models.checkpoint import load_checkpoint
from schane_cli.preflight import require_epochs
from schane_cli.recipe import Recipe
from schane_cli.run import RunFolder, new_run_path, recipe_label
from schane_cli.terminal import Terminal
from schane_cli.training.interruption import Interrupted
from schane_cli.training.job import announce, describe, prepare, train
from schane_cli.training.sizing import estimated_seconds, in_words, sized


def finetune(recipe: Recipe, *, out: Path | None, terminal: Terminal, resume: Path | None = None) -> dict[str, Any]:
    """Fine-tune by `recipe` into a run folder; returns the content of its summary.json.

    Raises:
        BadRequest: anything in the request that cannot be done, before the first batch.
        SchaneError: a run that failed on the way.
    """
    started = time.perf_counter()
    require_epochs(recipe)
    splits = load_splits(recipe.data)
    recipe = sized(recipe, len(splits.train))
    done = finished_before(recipe, resume or out)
    if done is not None:
        return done
    others = {"test": splits.test}
    job = prepare(
        recipe, splits.train, splits.val, "finetune", out=out, terminal=terminal, resume=resume, others=others
    )
    announce(job, splits.notes, splits.test)
    if recipe.train.seen_images is not None and job.stored is None:
        epochs = "1 epoch" if recipe.train.epochs == 1 else f"{recipe.train.epochs} epochs"
        terminal.say(f"estimate  {epochs}, about {in_words(estimated_seconds(job))}")
    with closing(job.run):
        outcome = train(job)
        best = load_checkpoint(job.run.path)
        test = score(best, splits.test, device=job.device, terminal=terminal)
        if recipe.data.train_on == "train":  # what schane predict needs of val, so that it needs none of the data
            keep(best, calibrate_on(best, splits.val, job.device, terminal))
        summary = {
            **describe(job, outcome),
            **test.summary("test"),
            "test_sha256": splits.test.identity(),
            "split_notes": splits.notes,
            "images_left_out": splits.left_out,
            "total_seconds": time.perf_counter() - started,
            "run": str(job.run.path),
        }
        on_first(lambda: write_results(job.run, test, splits.test, summary))
    return summary


def finished_before(recipe: Recipe, path: Path | None) -> dict[str, Any] | None:
    """The summary of this very run where it came to its end but not to its page; None where it is still to be made."""

    def summary() -> dict[str, Any] | None:
        run = RunFolder(path) if path is not None else None
        if run is None or run.state != "finished" or run.read_recipe() != recipe:
            return None
        run.tidy()
        return {**run.read_summary(), "run": str(run.path)}  # it may have been moved

    return on_first(summary)


@reading_once()
def finetune_seeds(
    recipe: Recipe, seeds: Sequence[int], *, out: Path | None, terminal: Terminal, resume: Path | None = None
) -> dict[str, Any]:
    """One run per seed in folders s<seed> below `out`, and a summary of their means with 95 % intervals.

    Finished seeds are kept and a stopped one is resumed, so that `resume` is the folder of an earlier call.
    """
    require_epochs(recipe)
    recipe = recipe.model_copy(update={"seed": seeds[0]})
    path = on_first(lambda: resume or out or new_run_path("finetune", f"{recipe_label(recipe)}-seeds"))
    done = finished_before(recipe, path)
    if done is not None and done.get("seeds") == list(seeds):
        return done
    listed = ",".join(map(str, seeds))
    parent = RunFolder(path)
    on_first(lambda: _open_seeds(parent, recipe, f"finetune --seeds {listed}", resuming=resume is not None))
    summaries = []
    with closing(parent):
        for number, seed in enumerate(seeds, 1):
            terminal.say(f"seed {seed} ({number} of {len(seeds)})", style="bold")
            try:
                seeded = recipe.model_copy(update={"seed": seed})
                summaries.append(run_or_resume(finetune, seeded, parent.path / f"s{seed}", terminal))
            except Interrupted as stopped:
                raise stopped.resumed_by(f"finetune --seeds {listed} --resume {parent.path}") from None
        summary = summarise_seeds(summaries, parent.path)
        on_first(lambda: parent.finish(summary))
    return summary


def _open_seeds(parent: RunFolder, recipe: Recipe, command: str, *, resuming: bool) -> None:
    """Make the folder of several seeds, or lock the one of an earlier call."""
    if resuming and (not parent.exists or parent.read_recipe() != recipe):
        raise BadRequest(
            f"{parent.path} is not a folder of these seeds and this recipe; resume with the flags of the first call"
        )
    if not resuming:
        parent.create(recipe, command)
        return
    try:
        parent.lock()
    except OSError as error:
        raise BadRequest(f"{parent.path} cannot be written: {error.strerror or error}") from None


def run_or_resume(run: Callable[..., dict[str, Any]], recipe: Recipe, path: Path, terminal: Terminal) -> dict[str, Any]:
    """The run of a recipe in its folder: kept where it is finished, resumed where it was stopped, started otherwise.

    `run` is a command that trains: finetune, or few-shot base training.
    """
    folder = RunFolder(path)

    def kept() -> dict[str, Any] | None:
        if not folder.finished:
            return None
        folder.tidy()
        return folder.read_summary()

    summary = on_first(kept)
    if summary is not None:
        return summary
    resuming = on_first(lambda: folder.resumable)
    return run(recipe, out=None if resuming else path, terminal=terminal, resume=path if resuming else None)


def summarise_seeds(summaries: Sequence[Mapping[str, Any]], path: Path) -> dict[str, Any]:
    """Means over the seeds with t-intervals, and each seed's own test accuracy with its n."""
    means: dict[str, Any] = {}
    for name in ("test_accuracy", "test_nll", "test_ece", "val_accuracy", "total_seconds"):
        estimate = t_interval([summary[name] for summary in summaries], metric(name).bounds)
        means |= {name: estimate.value, f"{name}_ci95": list(estimate.ci95 or ())}
    shared = {
        key: summaries[0][key] for key in ("command", "dataset", "backbone", "loss", "epochs", "device", "test_n")
    }
    return {
        **shared,
        "seeds": [summary["seed"] for summary in summaries],
        **means,
        "test_accuracy_by_seed": [summary["test_accuracy"] for summary in summaries],
        "runs": [summary["run"] for summary in summaries],
        "run": str(path),
    }
