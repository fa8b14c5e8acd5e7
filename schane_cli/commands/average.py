"""`schane average`: the weights of several finished runs, or of a run's last epochs, averaged into one (model soups).

Wortsman et al. 2022 (arXiv:2203.05482): runs that fine-tuned the same start lie in one basin, and the mean of their
weights is as good as their ensemble at the cost of one. `uniform` averages all; `greedy` (their algorithm 1) goes
through them from the best on val and keeps each that does not make val worse. `best` makes both and keeps the better
on val; test is read once, for what was kept.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from schane_cli.commands.calibration import calibrate_on, keep
from schane_cli.commands.evaluate import score, write_results
from schane_cli.commands.robustness import outputs
from schane_cli.datasets.load import Splits, load_splits
from schane_cli.errors import BadRequest
from schane_cli.images.identity import class_changes, image_changes, record
from schane_cli.metrics.classification import accuracy_and_nll
from schane_cli.models.checkpoint import Loaded, load_checkpoint, pack
from schane_cli.models.files import save_whole
from schane_cli.models.model import architecture
from schane_cli.preflight import SOUPS, find_checkpoint, require_choice
from schane_cli.run import RunFolder, new_run_path, pick_device, recipe_label, require_space
from schane_cli.terminal import Terminal
from schane_cli.training import batchnorm

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Scored:
    """Weights on the CPU, and their score on val."""

    weights: Weights
    accuracy: float
    nll: float

    @property
    def rank(self) -> tuple[float, float]:
        """What they are chosen by: accuracy on val, then lower NLL."""
        return self.accuracy, -self.nll


@dataclass(frozen=True)
class Ingredient(Scored):
    """One checkpoint, and where it lies."""

    path: Path


@dataclass(frozen=True)
class Mixture(Scored):
    """One soup, and its ingredients by place in the list."""

    kind: str
    members: tuple[int, ...]


def average(
    paths: Sequence[Path], *, soup: str, overrides: dict[str, Any], out: Path | None, terminal: Terminal
) -> dict[str, Any]:
    """Average checkpoints into a run folder that every other command takes; returns the content of its summary.json.

    `paths` are run folders, folders of seeds, or checkpoint files; a single run stands for the epochs that it kept
    (`train.keep_epochs`). `overrides` are dotted recipe keys (data.root, device).

    Raises:
        BadRequest: an unknown soup, fewer than two checkpoints, or ones that do not go together; before any work.
    """
    started = time.perf_counter()
    require_choice("--soup", soup, SOUPS)
    files = checkpoint_files(paths)
    loaded = [load_checkpoint(file) for file in files]
    for other in loaded[1:]:
        require_alike(loaded[0], other)
    recipe = loaded[0].recipe.with_values(overrides)
    splits = load_splits(recipe.data)
    for one in loaded:
        _require_held_out(one, splits)
    for note in _notes(loaded):
        terminal.say(note)
    device = pick_device(recipe.device)
    kitchen = Kitchen(loaded[0], splits, device, terminal)
    ingredients = [kitchen.ingredient(one) for one in loaded]
    chosen = kitchen.best_of(soup, ingredients)
    best = max(range(len(loaded)), key=lambda number: ingredients[number].rank)
    recipe = loaded[best].recipe.with_values({**overrides, "model.lora_rank": 0})  # adapters are merged by now
    run = RunFolder(out or new_run_path("average", recipe_label(recipe)))
    require_space(run.path, sum(tensor.nbytes for tensor in chosen.weights.values()))
    run.create(recipe, "average " + " ".join(map(str, paths)))
    with closing(run):
        _save(run, loaded[best], chosen, kitchen, recipe)
        made = load_checkpoint(run.path)
        test = score(made, splits.test, device=device, terminal=terminal)
        keep(made, calibrate_on(made, splits.val, device, terminal))
        summary = {
            **_description(made, chosen, ingredients, splits, soup),
            **test.summary("test"),
            "device": str(device),
            "total_seconds": time.perf_counter() - started,
            "run": str(run.path),
        }
        write_results(run, test, splits.test, summary)
    return summary


def checkpoint_files(paths: Sequence[Path]) -> list[Path]:
    """The checkpoint files that `paths` stand for, two or more, none twice."""
    files: list[Path] = []
    for path in paths:
        run = RunFolder(path)
        if not path.is_dir() or run.best.is_file():
            files.append(find_checkpoint(path))
            continue
        below = [seed.best for seed in RunFolder.below(path) if seed.best.is_file()]
        files += below or [find_checkpoint(path)]  # which says that there is none
    if len(files) == 1:
        run_of_file = RunFolder.of_checkpoint(files[0])
        files = run_of_file.kept_epochs if run_of_file is not None else []
    if len(set(files)) < len(files):
        raise BadRequest("schane average was given a checkpoint twice")
    if len(files) < 2:
        raise BadRequest(
            "schane average needs two checkpoints or more: several runs, or one that was trained with "
            "train.keep_epochs=5 and so kept its last epochs"
        )
    return files


def require_alike(first: Loaded, other: Loaded) -> None:
    """BadRequest where the weights of two checkpoints cannot be averaged, or were trained with other preprocessing."""
    pair = f"{other.path} and {first.path} cannot be averaged"
    if architecture(first.model) != architecture(other.model):
        raise BadRequest(f"{pair}: one is {architecture(other.model)}, the other {architecture(first.model)}")
    datasets = [one.recipe.data.dataset for one in (other, first)]
    if len(set(datasets)) > 1:
        raise BadRequest(f"{pair}: one was trained on {datasets[0]}, the other on {datasets[1]}")
    changes = class_changes(first.class_names, other.class_names)
    if changes:
        raise BadRequest(f"{pair}: {changes[0]}")
    shapes, others = ({key: tensor.shape for key, tensor in one.model.state_dict().items()} for one in (first, other))
    differing = [key for key in shapes.keys() | others.keys() if shapes.get(key) != others.get(key)]
    if differing:
        name = min(differing)
        given, needed = (tuple(one[name]) if name in one else "nothing" for one in (others, shapes))
        raise BadRequest(f"{pair}: {name} has another shape, {given} and {needed} ({len(differing)} tensors in all)")
    if first.input != other.input:
        raise BadRequest(f"{pair}: they see other pixels ({other.input}, {first.input})")


def _require_held_out(loaded: Loaded, splits: Splits) -> None:
    """BadRequest where val is not held out from this checkpoint's training, so that it cannot choose."""
    if loaded.recipe.data.train_on != "train":
        raise BadRequest(f"{loaded.path} was trained on val too (train.train_on trainval), so val cannot choose")
    changes = class_changes(loaded.class_names, splits.val.class_names)
    if changes:
        raise BadRequest(f"{loaded.path} has other classes than {loaded.recipe.data.dataset}: {changes[0]}")
    now = record({"val": splits.val, "test": splits.test})
    before = {split: loaded.images[split] for split in now if split in loaded.images}
    changes = image_changes(before, now)
    if changes:
        raise BadRequest(
            f"{loaded.path} was chosen on other images: {'; '.join(changes)}. Average runs of the same splits "
            "(data.split_seed, data.val_fraction), with the data as it was"
        )


def _notes(loaded: Sequence[Loaded]) -> list[str]:
    """What makes an average unlikely to be any good, a sentence each."""
    starts = {one.recipe.model.weights for one in loaded}
    runs = {one.path.parent for one in loaded}
    if len(starts) == 1 and ("random" not in starts or len(runs) == 1):
        return []
    shown = ", ".join(sorted(starts))
    return [f"these runs did not start from the same weights ({shown}), so the mean of theirs is rarely any good"]


class Kitchen:
    """Averages weights, and scores them on val in the one model that it keeps for it."""

    def __init__(self, first: Loaded, splits: Splits, device: torch.device, terminal: Terminal) -> None:
        self.first, self.splits, self.device, self.terminal = first, splits, device, terminal
        running = batchnorm.choice(first.recipe) == "running"
        self.re_estimates = running and batchnorm.has_batchnorm(first.model)

    def ingredient(self, loaded: Loaded) -> Ingredient:
        """A checkpoint and its score on val."""
        weights = {key: tensor.detach().clone() for key, tensor in loaded.model.state_dict().items()}
        accuracy, nll = self.scored(weights, f"val of {_name(loaded.path)}")
        return Ingredient(weights, accuracy, nll, loaded.path)

    def scored(self, weights: Weights, action: str) -> tuple[float, float]:
        """Accuracy and NLL on val."""
        self.first.model.load_state_dict(weights)
        with self.terminal.task(action, len(self.splits.val), "img") as task:
            scored_images = outputs(self.first, self.splits.val, device=self.device, task=task)
        return accuracy_and_nll(scored_images.logits, scored_images.labels)

    def mixture(self, kind: str, ingredients: Sequence[Ingredient], members: Sequence[int]) -> Mixture:
        """The mean of some ingredients, its BatchNorm statistics computed again where training moved them."""
        if len(members) == 1:
            only = ingredients[members[0]]
            return Mixture(only.weights, only.accuracy, only.nll, kind, tuple(members))
        weights = mean_weights([ingredients[number].weights for number in members])
        if self.re_estimates:
            self.first.model.load_state_dict(weights)
            batchnorm.re_estimate(self.first.model, self.splits.train, self.first.recipe, self.first.input, self.device)
            weights = {key: tensor.detach().cpu().clone() for key, tensor in self.first.model.state_dict().items()}
        accuracy, nll = self.scored(weights, f"val of the mean of {len(members)}")
        return Mixture(weights, accuracy, nll, kind, tuple(members))

    def best_of(self, soup: str, ingredients: Sequence[Ingredient]) -> Mixture:
        """The soup asked for; of `best` the one that is better on val."""
        if soup == "uniform":
            return self.mixture("uniform", ingredients, range(len(ingredients)))
        greedy = self.greedy(ingredients)
        if soup == "greedy" or len(greedy.members) == len(ingredients):
            return greedy
        return max(greedy, self.mixture("uniform", ingredients, range(len(ingredients))), key=lambda one: one.rank)

    def greedy(self, ingredients: Sequence[Ingredient]) -> Mixture:
        """Algorithm 1 of the paper: from the best on val, each is kept that does not lower the accuracy on val."""
        order = sorted(range(len(ingredients)), key=lambda i: ingredients[i].rank, reverse=True)
        soup = self.mixture("greedy", ingredients, order[:1])
        for number in order[1:]:
            with_it = self.mixture("greedy", ingredients, [*soup.members, number])
            if with_it.accuracy >= soup.accuracy:
                soup = with_it
        return soup


def mean_weights(states: Sequence[Weights]) -> Weights:
    """The mean of each tensor, summed in float64; a tensor of whole numbers (a count of batches) is the first's."""
    means = {}
    for key, first in states[0].items():
        if first.is_floating_point():
            total = sum((state[key].double() for state in states[1:]), first.double())
            means[key] = (total / len(states)).to(first.dtype)
        else:
            means[key] = first.clone()
    return means


def _save(run: RunFolder, best: Loaded, chosen: Mixture, kitchen: Kitchen, recipe: Any) -> None:
    model = kitchen.first.model
    model.load_state_dict(chosen.weights)
    progress = {
        "epoch": best.progress["epoch"],
        "val_accuracy": chosen.accuracy,
        "val_nll": chosen.nll,
        "val_n": len(kitchen.splits.val),
    }
    save_whole(pack(model, recipe, best.class_names, best.input, progress, best.images), run.best)


def _description(
    made: Loaded, chosen: Mixture, ingredients: Sequence[Ingredient], splits: Splits, soup: str
) -> dict[str, Any]:
    """What the summary says besides the test scores."""
    return {
        "command": "average",
        "average": f"{soup} of {len(ingredients)}",
        "soup": chosen.kind,
        "ingredients": [
            {
                "checkpoint": str(one.path),
                "val_accuracy": one.accuracy,
                "val_nll": one.nll,
                "kept": number in chosen.members,
            }
            for number, one in enumerate(ingredients)
        ],
        "dataset": made.recipe.data.dataset,
        "backbone": made.recipe.model.backbone,
        "loss": made.recipe.loss.name,
        "seed": made.recipe.seed,
        "epochs": made.recipe.train.epochs,
        "val_accuracy": chosen.accuracy,
        "val_nll": chosen.nll,
        "val_n": len(splits.val),
        "train_sha256": splits.train.identity(),
        "val_sha256": splits.val.identity(),
        "test_sha256": splits.test.identity(),
        "split_notes": splits.notes,
        "images_left_out": splits.left_out,
    }


def _name(path: Path) -> str:
    run = RunFolder.of_checkpoint(path)
    return path.name if run is None else run.path.name if path == run.best else f"{run.path.name}/{path.stem}"
