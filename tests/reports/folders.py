"""Run folders written by hand: every page from plain files, without a training."""

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from schane_cli.recipe import Recipe, build_recipe
from schane_cli.run import RunFolder

# What a folder, a CSV or a careless script may call a class.
HOSTILE = ("<script>alert(1)</script>", "[/red]", "\x1b[31mred\x1b[0m", "two\nlines", "$x^{", "a" * 120)


def share(name: str, value: float, spread: float = 0.02) -> dict[str, Any]:
    return {name: value, f"{name}_ci95": [value - spread, value + spread]}


def finetune_run(
    path: Path,
    class_names: Sequence[str] = HOSTILE,
    *,
    seed: int = 0,
    recipe: Mapping[str, Any] | None = None,
    accuracy: float = 0.8,
    tables: bool = True,
) -> Path:
    """A finished fine-tuning run; without `tables` as 0.1.0 wrote it."""
    run = RunFolder(path)
    run.create(build_recipe({"seed": seed}, recipe or {}), "finetune")
    for step in range(1, 21):
        run.log("step", step=step, epoch=step / 10, contrastive=5 / step, cross_entropy=2 / step)
    for epoch in (1, 2):
        run.log("epoch", epoch=epoch, val_accuracy=0.4 + 0.1 * epoch, val_n=50, best=True)
    scores = {**share("test_accuracy", accuracy), **share("test_ece", 0.05), **share("test_nll", 0.6)}
    counts = {"val_accuracy": 0.6, "val_n": 50, "test_n": 60, "best_epoch": 2, "seed": seed, "epochs": 2}
    costs = {"total_seconds": 9.0, "train_seconds": 8.0, "images_per_second": 100.0, "data_wait_percent": 5.0}
    named = {"command": "finetune", "dataset": "digits", "backbone": "test_resnet", "loss": "schane", "device": "cpu"}
    run.finish({**named, **scores, **counts, **costs, "split_notes": ["a <b> note"], "run": str(path)})
    run.checkpoints.mkdir()
    run.best.touch()
    if tables:
        prediction_tables(run, class_names)
    return path


def prediction_tables(run: RunFolder, class_names: Sequence[str]) -> None:
    """per_class.csv, confusion.csv and mistakes.parquet: each class is taken for the next in two of ten images."""
    names, n = list(class_names), len(class_names)
    counts = 8 * np.eye(n, dtype=int) + 2 * np.roll(np.eye(n, dtype=int), 1, axis=1)
    pd.DataFrame(counts, index=pd.Index(names, name="label"), columns=names).to_csv(run.confusion_table)
    rows = [{"class": name, "n": 10, "accuracy": 0.8, "ci95_low": 0.5, "ci95_high": 0.9} for name in names]
    pd.DataFrame(rows).to_csv(run.per_class_table, index=False)
    buffer = BytesIO()
    Image.new("RGB", (12, 8), "teal").save(buffer, "png")
    picture = buffer.getvalue()
    wrong = [
        {
            "id": f"{i}<i>.png",
            "label": names[i],
            "prediction": names[i - 1],
            "confidence": 0.9,
            "picture": picture,
        }
        for i in range(n)
    ]
    pd.DataFrame(wrong).to_parquet(run.mistakes_table, index=False)


def eval_run(path: Path, of: Path, class_names: Sequence[str] = HOSTILE) -> Path:
    """An evaluation of the run `of`."""
    run = RunFolder(path)
    run.create(Recipe(), "eval")
    bins = [{"low": 0.9, "high": 1.0, "n": 60, "confidence": 0.95, "accuracy": 0.8, "accuracy_ci95": [0.7, 0.9]}]
    scores = {f"test_{name}": value for name, value in (("accuracy", 0.8), ("ece", 0.05), ("nll", 0.6), ("brier", 0.3))}
    intervals = {f"{name}_ci95": [value - 0.01, value + 0.01] for name, value in scores.items()}
    named = {"command": "eval", "checkpoint": str(RunFolder(of).best), "dataset": "digits", "split": "test"}
    machine = {"images_per_second": 500.0, "device": "cpu", "reliability": bins, "test_n": 60, "split_notes": []}
    run.finish({**named, **scores, **intervals, **machine, "run": str(path)})
    prediction_tables(run, class_names)
    return path


def seeds_run(path: Path, seeds: Sequence[int] = (0, 1, 2)) -> Path:
    """Several seeds with a page above them."""
    run = RunFolder(path)
    run.create(Recipe(), "finetune --seeds 0-2")
    folders = [finetune_run(path / f"s{seed}", seed=seed) for seed in seeds]
    first = json.loads(RunFolder(folders[0]).summary_file.read_text())
    shared = {key: first[key] for key in ("command", "dataset", "backbone", "loss", "epochs", "device", "test_n")}
    run.finish(
        {
            **shared,
            "seeds": list(seeds),
            **share("test_accuracy", 0.8),
            "test_accuracy_by_seed": [0.79, 0.8, 0.81][: len(seeds)],
            "runs": [str(folder) for folder in folders],
            "run": str(path),
        }
    )
    return path
