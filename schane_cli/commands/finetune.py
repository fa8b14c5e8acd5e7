"""`schane finetune`: train on train, choose the epoch on val, read test once."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from schane_cli.commands.calibration import calibrate_on, keep
from schane_cli.commands.evaluate import score, write_tables
from schane_cli.datasets.load import load_splits, reading_once
from schane_cli.distributed import rank
from schane_cli.errors import BadRequest
from schane_cli.metrics.intervals import t_interval
from schane_cli.metrics.registry import metric
from schane_cli.models.checkpoint import load_checkpoint
from schane_cli.recipe import Recipe, build_recipe, differences, set_key
from schane_cli.run import RESULTS, RunFolder, new_run_path, recipe_label
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
    refuse_no_epochs(recipe)
    splits = load_splits(recipe.data)
    recipe = sized(recipe, len(splits.train)) if resume is None else recipe
    others = {"test": splits.test}
    job = prepare(
        recipe, splits.train, splits.val, "finetune", out=out, terminal=terminal, resume=resume, others=others
    )
    announce(job, splits.notes, splits.test)
    if recipe.train.seen_images is not None and resume is None:
        terminal.say(f"estimate  {recipe.train.epochs} epochs, about {in_words(estimated_seconds(job))}")
    outcome = train(job, resume is not None)
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
    if rank() == 0:
        write_tables(job.run, test, splits.test)
        job.run.finish(summary)
    return summary


def refuse_no_epochs(recipe: Recipe) -> None:
    """BadRequest for a run whose classifier would be scored untrained."""
    if recipe.train.epochs == 0:
        raise BadRequest(
            "train.epochs 0 leaves the classifier untrained; only schane fewshot, which needs none, takes it"
        )


def parse_seeds(text: str) -> list[int]:
    """`0-4` or `0,3,7` as a list of two or more seeds."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise BadRequest(f"--seeds takes numbers and ranges like 0-4 or 0,3,7; got {text!r}")
        seeds += range(int(first), int(last if dash else first) + 1)
    if len(set(seeds)) < 2:
        raise BadRequest(f"--seeds {text} names fewer than two seeds; --seed runs one")
    return list(dict.fromkeys(seeds))


@reading_once()
def finetune_seeds(
    recipe: Recipe, seeds: Sequence[int], *, out: Path | None, terminal: Terminal, resume: Path | None = None
) -> dict[str, Any]:
    """One run a seed in folders s<seed> below `out`, and a summary of their means with 95 % intervals.

    Finished seeds are kept and a stopped one goes on, so that `resume` is the folder of an earlier call.
    """
    refuse_no_epochs(recipe)
    parent = RunFolder(resume or out or new_run_path("finetune", f"{recipe_label(recipe)}-seeds"))
    recipe = recipe.model_copy(update={"seed": seeds[0]})
    if resume is None:
        parent.create(recipe, f"finetune --seeds {','.join(map(str, seeds))}")
    elif not parent.exists or parent.read_recipe() != recipe:
        raise BadRequest(
            f"{resume} is no folder of these seeds and this recipe; resume with the flags of the first call"
        )
    summaries = []
    for number, seed in enumerate(seeds, 1):
        terminal.say(f"seed {seed} ({number} of {len(seeds)})", style="bold")
        try:
            seeded = recipe.model_copy(update={"seed": seed})
            summaries.append(run_or_resume(finetune, seeded, parent.path / f"s{seed}", terminal))
        except Interrupted as stopped:
            command = f"finetune --seeds {','.join(map(str, seeds))} --resume {parent.path}"
            raise stopped.resumed_by(command) from None
    summary = summarise_seeds(summaries, parent.path)
    parent.finish(summary)
    return summary


def run_or_resume(run: Callable[..., dict[str, Any]], recipe: Recipe, path: Path, terminal: Terminal) -> dict[str, Any]:
    """The run of a recipe in its folder: kept where it is finished, gone on with where it was stopped, begun otherwise.

    `run` is a verb that trains: finetune, or few-shot base training.
    """
    folder = RunFolder(path)
    if folder.finished:
        return folder.read_summary()
    if folder.resumable:
        return run(recipe, out=None, terminal=terminal, resume=path)
    shutil.rmtree(path, ignore_errors=True)  # stopped before its first checkpoint: nothing of worth is in it
    return run(recipe, out=path, terminal=terminal)


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


def resumed_recipe(path: Path, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe of the run to go on with; BadRequest where there is none, it is finished, or a value differs."""
    run = RunFolder(path)
    if not run.exists:
        raise BadRequest(f"nothing to resume at {path}: it holds no recipe.yaml")
    if run.finished:
        raise BadRequest(f"the run at {path} is finished; schane eval {path} scores it again")
    if not run.resumable:
        raise BadRequest(f"the run at {path} was stopped before its first checkpoint; remove it and start again")
    before = run.read_recipe()
    tree = before.model_dump(mode="json")
    for key, value in overrides.items():
        set_key(tree, key, value)
    changed = differences(before, build_recipe(tree), label="run")
    if changed:
        raise BadRequest(f"a resumed run keeps its recipe; these differ: {'; '.join(changed)}")
    return before


def unfinished_run(command: str, recipe: Recipe, out: Path | None) -> Path | None:
    """What `--resume auto` goes on with: `out`, or the newest stopped run of this very recipe; None: start anew."""
    candidates = (
        [out] if out is not None else sorted((RESULTS / command).glob("*"), key=lambda path: path.stat().st_mtime)
    )
    for path in reversed(candidates):
        if RunFolder(path).resumable and resumed_recipe(path, {}) == recipe:
            return path
    return None
