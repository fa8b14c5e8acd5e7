"""How a run should start: the classifier's first weights and BatchNorm's statistics, compared on val.

    python benchmarks/start.py RUNS.jsonl --data-root DIR --photos DIR --init FILE
    python benchmarks/start.py RUNS.jsonl ... --markdown results/benchmarks/start.md

Small runs, one process, one thread: MobileNetV2 0.35 from ImageNet weights on 20 classes of CIFAR-100, on CIFAR-FS and
on five kinds of flowers, and timm's test_resnet from random weights on digits. Every run is a line of RUNS.jsonl; those
that are there already are not run again, and a table can be made of what there is. Learning rates are chosen for each
arm by seed 100, the table is of seeds 0 to 4; everything is scored on val after the last epoch, and test is not read.

Running, re-estimated and slow statistics (momentum 0.01) train alike, as BatchNorm normalises by the batch in all
three: one run is scored with each of them; slow ones at seed 100 alone.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from schane_cli.cli import keep_freed_memory
from schane_cli.datasets.load import load_fewshot_splits, load_splits
from schane_cli.features.extract import extract, normalise
from schane_cli.fewshot.episodes import draw_episodes
from schane_cli.fewshot.scores import evaluate_episodes
from schane_cli.images.imageset import ImageSet
from schane_cli.images.loader import eval_loader
from schane_cli.images.preprocessing import eval_transform
from schane_cli.metrics.intervals import paired_comparison, t_interval
from schane_cli.models.backbone import backbone_name
from schane_cli.models.model import SchaneModel
from schane_cli.recipe import Recipe, build_recipe, find_recipe, read_recipe
from schane_cli.run import _cpu_name
from schane_cli.terminal import Terminal
from schane_cli.training.job import prepare
from schane_cli.training.trainer import Job, Trainer

GRID_SEED, SEEDS = 100, (0, 1, 2, 3, 4)
SLOW = 0.01
STATISTICS = ("running", "reestimated")
VAL_PER_CLASS = 60  # of the few-shot val classes


@dataclass(frozen=True)
class Arm:
    """What is compared: the loss, the classifier's start, BatchNorm in training, the projection head's start."""

    loss: str
    head: str = "zero"  # zero, linear (torch's default) or timm (the library's own)
    frozen: bool = False
    projection: str = "he"  # he or torch


@dataclass(frozen=True, eq=False)
class Case:
    """A data set in a small setting: recipe values and the learning rates to choose from."""

    name: str
    recipe: str
    rates: tuple[float, ...]
    values: dict[str, Any]
    subset: tuple[int, int, int] | None = None  # of CIFAR-100: every k-th class, train and val images of each
    few_shot: bool = False
    seeds: tuple[int, ...] = SEEDS

    def rate_arm(self, arm: Arm) -> Arm:
        """The arm whose learning rate `arm` takes over: cross-entropy's of the same statistics."""
        return Arm("ce", "timm" if arm.head == "timm" else "zero", arm.frozen)


ARMS = (
    Arm("ce"),
    Arm("ce", frozen=True),
    Arm("ce", "timm"),
    Arm("schane"),
    Arm("schane", frozen=True),
    Arm("ce", "linear"),
    Arm("schane", projection="torch"),
)


def cases(arguments: argparse.Namespace) -> list[Case]:
    """The settings, the last with more images and steps than the others."""
    shared: dict[str, Any] = {"data.root": str(arguments.data_root), "data.workers": 0, "device": "cpu"}
    weights = {**shared, "model.weights": str(arguments.init), "train.warmup_epochs": 1}
    twenty = {"data.image_size": 48, "train.epochs": 4, "train.batch_size": 50}
    base = {"data.image_size": 48, "data.train_per_class": 10, "train.epochs": 2, "train.batch_size": 64}
    longer = {"data.image_size": 48, "train.epochs": 5, "train.batch_size": 100}
    flowers = {"data.dataset": f"folder:{arguments.photos / 'flowers'}", "data.image_size": 64}
    flowers |= {"data.val_fraction": 0.4, "data.train_per_class": 40, "train.epochs": 3, "train.batch_size": 25}
    scratch = {**shared, "train.ema_decay": None, "train.batch_size": 50, "train.warmup_epochs": 2}
    digits = {"data.val_fraction": 0.5, "data.train_per_class": 20, "train.epochs": 12}
    low, high = (5e-4, 2e-3), (1e-3, 4e-3)
    return [
        Case("cifar100, 20 classes", "cifar100_small", low, {**weights, **twenty}, subset=(5, 25, 30)),
        Case("cifarfs", "cifarfs_small", low, {**weights, **base}, few_shot=True),
        Case("flowers", "cifar100_small", low, {**weights, **flowers}),
        Case("digits", "digits", high, {**scratch, **digits}),
        Case(
            "cifar100, 150 steps", "cifar100_small", (1e-3, 2e-3), {**weights, **longer}, (1, 30, 10), seeds=(0, 1, 2)
        ),
    ]


def recipe_of(case: Case, arm: Arm, lr: float, seed: int) -> Recipe:
    values = {**case.values, "train.lr": lr, "seed": seed, "loss.name": arm.loss}
    values["train.batchnorm"] = "frozen" if arm.frozen else "running"
    return build_recipe(read_recipe(find_recipe(case.recipe)), values)


@cache
def image_sets(case: Case) -> tuple[ImageSet, ImageSet]:
    """The images to train on and the val images, decoded once a process."""
    data = recipe_of(case, Arm("ce"), case.rates[0], 0).data
    if case.few_shot:
        parts = load_fewshot_splits(data)
        assert parts.novel_val is not None
        return parts.base, _few(parts.novel_val, VAL_PER_CLASS)
    if case.subset is None:
        splits = load_splits(data)
        return splits.train, splits.val
    every, train_count, val_count = case.subset
    values = {"dataset": "cifar100", "train_per_class": None, "val_fraction": 0.4}
    splits = load_splits(data.model_copy(update=values))
    train, val = (part.only_classes(range(0, 100, every), part.split) for part in (splits.train, splits.val))
    return _few(train, train_count), _few(val, val_count)


def _few(images: ImageSet, per_class: int) -> ImageSet:
    """The first images of each class."""
    chosen = [np.flatnonzero(images.labels == label)[:per_class] for label in range(len(images.class_names))]
    return images.subset(np.concatenate(chosen), images.split)


def start_as(model: SchaneModel, arm: Arm, recipe: Recipe, n_classes: int) -> None:
    """Draw the heads again where the arm starts in another way than schane."""
    classifier = model.backbone.get_classifier()
    if arm.head == "linear":
        classifier.reset_parameters()
    elif arm.head == "timm":
        fresh = timm.create_model(backbone_name(recipe.model.backbone), num_classes=n_classes)
        classifier.load_state_dict(fresh.get_classifier().state_dict())
    if arm.projection == "torch":
        for layer in model.projection.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()


class SlowStatistics:
    """Beside BatchNorm's own running statistics, those that a momentum of SLOW would have kept."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self.kept = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in self.layers]  # type: ignore[union-attr, operator]
        for number, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(lambda layer, inputs, number=number: self._see(number, layer, inputs[0]))

    @torch.no_grad()
    def _see(self, number: int, layer: nn.Module, values: torch.Tensor) -> None:
        if layer.training and layer.momentum is not None:
            variance, mean = torch.var_mean(values, (0, 2, 3))
            for kept, new in zip(self.kept[number], (mean, variance), strict=True):
                kept.lerp_(new, SLOW)

    def put(self) -> None:
        """Into the layers."""
        for layer, (mean, variance) in zip(self.layers, self.kept, strict=True):
            layer.running_mean.copy_(mean)  # type: ignore[union-attr, operator]
            layer.running_var.copy_(variance)  # type: ignore[union-attr, operator]


@torch.no_grad()
def reestimate(model: SchaneModel, job: Job) -> None:
    """Replace the running statistics by the mean of those of batches of training images without augmentation.

    All layers are in eval mode but BatchNorm. The model ends in eval mode.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    model.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.train().reset_running_stats()
        layer.momentum = None  # the mean over batches
    order = np.random.default_rng(job.recipe.seed).permutation(len(job.train))
    batch_size = job.recipe.train.batch_size * job.recipe.augment.views
    order = order[: len(order) // batch_size * batch_size]
    loader = eval_loader(job.train, eval_transform(job.spec), batch_size=batch_size, workers=0, indices=order)
    for pixels, _, _ in loader:
        model(normalise(pixels, job.spec, job.device))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()


def scores(trainer: Trainer, slow: SlowStatistics | None, arm: Arm, case: Case) -> dict[str, dict[str, float]]:
    """What val says of the trained weights by each kind of statistics (of frozen ones there is one)."""
    model = trainer.model
    result = {"frozen" if arm.frozen else "running": score(trainer, model, case)}
    if not arm.frozen:
        reestimate(model, trainer.job)
        result["reestimated"] = score(trainer, model, case)
    if slow is not None:
        slow.put()
        result["slow"] = score(trainer, model, case)
    return result


def score(trainer: Trainer, model: SchaneModel, case: Case) -> dict[str, float]:
    """Accuracy and NLL on val; of few-shot classes nearest-centroid accuracy, 5-way, 600 episodes."""
    job = trainer.job
    features = extract(model, job.val, job.spec, device=job.device, batch_size=100, workers=0)
    if not case.few_shot:
        right = (features.logits.argmax(1) == features.labels).double().mean().item()
        return {"accuracy": right, "nll": F.cross_entropy(features.logits.double(), features.labels).item()}
    accuracies = {}
    for shots in (5, 1):
        drawn = draw_episodes(
            job.val.labels, n_way=5, n_shot=shots, n_query=15, n_episodes=600, seed=0, class_names=job.val.class_names
        )
        measured = evaluate_episodes(
            features.embedding, drawn, classifier="centroid", normalize="l2", device=job.device
        )
        accuracies[shots] = float(measured.accuracies.mean())
    return {"accuracy": accuracies[5], "one_shot_accuracy": accuracies[1]}


def run(case: Case, arm: Arm, lr: float, seed: int) -> dict[str, Any]:
    """One training run and its scores."""
    recipe = recipe_of(case, arm, lr, seed)
    train, val = image_sets(case)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        job = prepare(recipe, train, val, "finetune", out=Path(place) / "run", terminal=Terminal(quiet=True))
        start_as(job.model, arm, recipe, len(train.class_names))
        job.validate = lambda model: (0.0, 0.0)  # scored once, at the end
        job.run.create(recipe, "finetune")
        trainer = Trainer(job)
        slow = SlowStatistics(trainer.model) if seed == GRID_SEED and not arm.frozen else None
        trainer.run()
        measured = scores(trainer, slow, arm, case)
    seconds = time.perf_counter() - started
    key = {"case": case.name, **asdict(arm), "lr": lr, "seed": seed}
    return {**key, "scores": measured, "train_n": len(train), "val_n": len(val), "seconds": round(seconds, 1)}


def untrained(case: Case) -> dict[str, Any]:
    """The few-shot val accuracy of the weights as they come."""
    recipe = recipe_of(case, Arm("ce"), case.rates[0], 0)
    train, val = image_sets(case)
    with tempfile.TemporaryDirectory() as place:
        job = prepare(recipe, train, val, "finetune", out=Path(place) / "run", terminal=Terminal(quiet=True))
        return {"case": case.name, "loss": "none", "scores": {"frozen": score(Trainer(job), job.model, case)}}


def best_rate(lines: list[dict[str, Any]], case: Case, arm: Arm, statistics: str) -> float:
    """The learning rate of highest val accuracy at the grid seed."""
    tried = [line for line in _of(lines, case, case.rate_arm(arm)) if line["seed"] == GRID_SEED]
    return float(max(tried, key=lambda line: line["scores"][statistics]["accuracy"])["lr"])


def _of(lines: list[dict[str, Any]], case: Case, arm: Arm) -> list[dict[str, Any]]:
    return [line for line in lines if line["case"] == case.name and {**line, **asdict(arm)} == line]


def plan(lines: list[dict[str, Any]], all_cases: list[Case]) -> Iterator[tuple[Case, Arm, float, int]]:
    """The grid of every case, then seed by seed every case at its chosen rates, what matters most first.

    `lines` grows while it is read. Kinds of statistics that share a run may choose different rates: each is run.
    """
    for arms in (ARMS[:2], ARMS[2:]):
        for case in all_cases:
            if case.seeds != SEEDS and arms != ARMS[:2]:
                continue  # the long one answers one question
            for arm in (arm for arm in arms if case.rate_arm(arm) == arm):
                share = 0.5 if arm.frozen else 1.0  # frozen statistics want lower rates: 7 % at 0.002, at first try
                yield from ((case, arm, share * rate, GRID_SEED) for rate in case.rates)
        for seed in SEEDS:
            for case in (case for case in all_cases if seed in case.seeds):
                for arm in arms if case.seeds == SEEDS or arms == ARMS[:2] else ():
                    kinds = ("frozen",) if arm.frozen else STATISTICS
                    for rate in sorted({best_rate(lines, case, arm, kind) for kind in kinds}):
                        yield case, arm, rate, seed


def rows(lines: list[dict[str, Any]], case: Case) -> list[str]:
    """The case's part of the table: mean accuracy on val with its interval, and the difference from the base."""
    table: dict[tuple[Arm, str], dict[int, dict[str, float]]] = {}
    rates = {}
    tried = [arm for arm in ARMS if _of(lines, case, case.rate_arm(arm))]
    for arm in tried:
        for kind in ("frozen",) if arm.frozen else STATISTICS:
            if kind != "running" and (arm.head != "zero" or arm.projection != "he"):
                continue
            rate = rates[arm, kind] = best_rate(lines, case, arm, kind)
            table[arm, kind] = {
                line["seed"]: line["scores"][kind]
                for line in _of(lines, case, arm)
                if line["lr"] == rate and line["seed"] in SEEDS
            }
    return [_row(case, arm, kind, rates[arm, kind], table) for (arm, kind), runs in table.items() if len(runs) > 2]


def _row(
    case: Case, arm: Arm, kind: str, rate: float, table: dict[tuple[Arm, str], dict[int, dict[str, float]]]
) -> str:
    own, base = table[arm, kind], table[Arm(arm.loss), "running"]
    seeds = sorted(own.keys() & base.keys())
    mean = t_interval([own[seed]["accuracy"] for seed in seeds])
    assert mean.ci95 is not None
    half = 100 * (mean.ci95[1] - mean.value)
    change = "base"
    if own is not base:
        pair = paired_comparison(*([side[seed]["accuracy"] for seed in seeds] for side in (base, own)))
        change = f"{100 * pair.difference:+.1f}"
        if pair.ci95 is not None:
            change += f" ({100 * pair.ci95[0]:+.1f} to {100 * pair.ci95[1]:+.1f})"
    second = next(name for name in own[seeds[0]] if name != "accuracy")
    other = np.mean([own[seed][second] for seed in seeds])
    shown = f"1 shot {100 * other:.1f} %" if case.few_shot else f"NLL {other:.3f}"
    cells = (case.name, arm.loss, arm.head, kind, arm.projection, f"{rate:g}", f"{100 * mean.value:.1f} ± {half:.1f}",
             change, shown, str(len(seeds)))  # fmt: skip
    return f"| {' | '.join(cells)} |"


def report(lines: list[dict[str, Any]], all_cases: list[Case]) -> str:
    """The table, and what it was made on."""
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "timm"))
    seconds = sum(line.get("seconds", 0) for line in lines)
    counts = {
        case.name: next((x for x in lines if x["case"] == case.name and "val_n" in x), None) for case in all_cases
    }
    sizes = "; ".join(f"{name} {line['train_n']:,} / {line['val_n']:,}" for name, line in counts.items() if line)
    untouched = [line for line in lines if line["loss"] == "none"]
    before = [f"{x['case']}, not fine-tuned: {_percent(x['scores']['frozen'])}" for x in untouched]
    header = (
        "| data | loss | classifier | statistics | projection | lr | val accuracy, % | minus base, points | | seeds |"
    )
    return "\n".join(
        [
            f"{_cpu_name()}, one thread, machine shared with other work; {packages}; {date.today()}. {len(lines)} "
            f"runs, {seconds / 60:.0f} minutes. Train / val images: {sizes}. {' '.join(before)}",
            "",
            header,
            "| --- | --- | --- | --- | --- | ---: | ---: | ---: | --- | ---: |",
            *(row for case in all_cases for row in rows(lines, case)),
            "",
        ]
    )


def _percent(measured: dict[str, float]) -> str:
    return f"{100 * measured['one_shot_accuracy']:.1f} % (1 shot), {100 * measured['accuracy']:.1f} % (5 shots)."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="a JSON line for each run, kept from call to call")
    parser.add_argument("--data-root", type=Path, required=True, help="the folder above cifar100/")
    parser.add_argument("--photos", type=Path, required=True, help="the folder above flowers/, five class folders")
    parser.add_argument("--init", type=Path, required=True, help="weights of MobileNetV2 0.35")
    parser.add_argument("--markdown", type=Path, help="write the table here, and run nothing")
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in arguments.runs.read_text().splitlines()] if arguments.runs.exists() else []
    all_cases = cases(arguments)
    if arguments.markdown:
        arguments.markdown.write_text(report(lines, all_cases))
        return
    torch.set_num_threads(1)
    keep_freed_memory()
    with arguments.runs.open("a") as file:
        for case in (case for case in all_cases if case.few_shot):
            if not any(line["case"] == case.name and line["loss"] == "none" for line in lines):
                _keep(untrained(case), lines, file)
        for case, arm, rate, seed in plan(lines, all_cases):
            done = any(line["lr"] == rate and line["seed"] == seed for line in _of(lines, case, arm))
            if not done:
                _keep(run(case, arm, rate, seed), lines, file)


def _keep(line: dict[str, Any], lines: list[dict[str, Any]], file: Any) -> None:
    lines.append(line)
    file.write(json.dumps(line) + "\n")
    file.flush()
    os.fsync(file.fileno())
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
