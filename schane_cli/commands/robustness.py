"""How a checkpoint does on corrupted images, and whether it notices images that are of none of its classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from schane_cli.datasets.load import load_splits
from schane_cli.errors import BadRequest, refusing
from schane_cli.features.extract import Features, extract, scoring_batch
from schane_cli.images.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from schane_cli.images.imageset import ImageSet
from schane_cli.images.loader import Damage, worker_count
from schane_cli.metrics.intervals import accuracy_interval, mean_accuracy_interval
from schane_cli.metrics.ood import energy_score, knn_score, max_softmax_score, ood_detection
from schane_cli.models.checkpoint import Loaded
from schane_cli.models.model import place
from schane_cli.recipe import Recipe
from schane_cli.terminal import Task, Terminal

MAX_BANK = 20_000  # training images in the kNN score's bank
NEAREST = 50  # Sun et al. 2022


@dataclass(frozen=True)
class Foreign:
    """An out-of-distribution set: images of none of the checkpoint's classes; `note` says what was left out."""

    images: ImageSet
    note: str | None


def outputs(
    loaded: Loaded, images: ImageSet, *, device: torch.device, task: Task | None = None, damage: Damage | None = None
) -> Features:
    """What the checkpoint makes of an image set, batched as its recipe says."""
    recipe = loaded.recipe
    return extract(
        place(loaded.model, device),
        images,
        loaded.input,
        device=device,
        batch_size=scoring_batch(recipe.train),
        workers=worker_count(recipe.data, images),
        amp=recipe.train.amp,
        task=task,
        damage=damage,
    )


def corruption_figures(loaded: Loaded, images: ImageSet, device: torch.device, terminal: Terminal) -> dict[str, Any]:
    """Accuracy under each corruption and severity, and their mean with an interval over images."""
    rows, rights = [], []
    with terminal.task("corruptions", len(CORRUPTIONS) * len(SEVERITIES) * len(images), "img") as task:
        for name in CORRUPTIONS:
            for severity in SEVERITIES:
                damage = partial(_damaged, name, severity)
                features = outputs(loaded, images, device=device, task=task, damage=damage)
                right = (features.logits.argmax(1) == features.labels).numpy()
                accuracy = accuracy_interval(int(right.sum()), len(right))
                rows.append(
                    {
                        "corruption": name,
                        "severity": severity,
                        "accuracy": accuracy.value,
                        "accuracy_ci95": list(accuracy.ci95 or ()),
                        "n": accuracy.n,
                    }
                )
                rights.append(right)
    by_image = np.mean(rights, axis=0)  # (n,) share of the conditions in which the image is right
    interval = mean_accuracy_interval(by_image)
    return {
        "corruption_accuracy": float(by_image.mean()),
        "corruption_accuracy_ci95": list(interval) if interval else None,
        "corruption_n": len(by_image),
        "corruptions": rows,
    }


def _damaged(name: str, severity: int, pixels: torch.Tensor, index: int) -> torch.Tensor:
    damaged = corrupt(pixels.permute(1, 2, 0).numpy(), name, severity, index)
    return torch.from_numpy(damaged).permute(2, 0, 1)


def load_foreign(loaded: Loaded, recipe: Recipe, name: str, split: str) -> Foreign:
    """The out-of-distribution set `name`, without the classes that the checkpoint knows.

    Raises:
        BadRequest: the dataset that is evaluated, an unknown one, or one whose classes are all known.
    """
    if name == recipe.data.dataset:
        raise BadRequest(f"--ood {name} is the dataset that is evaluated; name another")
    whole = recipe.data.model_copy(update={"dataset": name, "train_per_class": None})
    images: ImageSet = getattr(load_splits(whole), split)
    known = [one for one in images.class_names if one in loaded.class_names]
    others = [one for one in images.class_names if one not in loaded.class_names]
    if not others:
        raise BadRequest(f"the checkpoint knows every class of --ood {name}: nothing in it is out-of-distribution")
    note = f"{len(known)} of its classes are the checkpoint's and left out ({', '.join(known[:3])})" if known else None
    return Foreign(images.of_classes(others), note)


def ood_figures(
    loaded: Loaded,
    recipe: Recipe,
    features: Features,
    foreign: Mapping[str, Foreign],
    device: torch.device,
    terminal: Terminal,
) -> dict[str, Any]:
    """AUROC and FPR95 of three scores on each out-of-distribution set; kNN's bank holds training images only."""
    own = loaded.recipe.data.model_copy(update={"root": recipe.data.root})
    train = load_splits(own).train
    chosen = np.sort(np.random.default_rng(0).permutation(len(train))[:MAX_BANK])
    total = len(chosen) + sum(len(one.images) for one in foreign.values())
    rows = []
    with terminal.task("out of distribution", total, "img") as task:
        bank = outputs(loaded, train.subset(chosen, "train"), device=device, task=task).embedding
        nearest = min(NEAREST, len(bank))
        inside = _scores(features, bank, nearest)
        for name, one in foreign.items():
            outside = _scores(outputs(loaded, one.images, device=device, task=task), bank, nearest)
            rows += [_row(name, score, inside[score], outside[score]) for score in inside]
    return {"ood": rows, "ood_knn_bank_n": len(bank), "ood_knn_k": nearest}


def _scores(features: Features, bank: torch.Tensor, nearest: int) -> dict[str, np.ndarray]:
    return {
        "MSP": max_softmax_score(features.logits),
        "energy": energy_score(features.logits),
        "kNN": knn_score(features.embedding, bank, k=nearest),
    }


def _row(name: str, score: str, inside: np.ndarray, outside: np.ndarray) -> dict[str, Any]:
    with refusing():
        detection = ood_detection(inside, outside)
    return {
        "dataset": name,
        "score": score,
        "auroc": detection.auroc.value,
        "auroc_ci95": list(detection.auroc.ci95 or ()),
        "fpr95": detection.fpr95.value,
        "fpr95_ci95": list(detection.fpr95.ci95 or ()),
        "n_in": detection.n_in,
        "n_out": detection.n_out,
    }
