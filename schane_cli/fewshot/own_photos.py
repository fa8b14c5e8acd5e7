"""A linear classifier for a few labelled photos of each class: chosen and judged by leaving photos out."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from schane_cli.fewshot.classifiers import minus_distances

# The strengths of ridge regression by the classifier's name, in units of the squared length of a photo's embedding.
RIDGES = {f"ridge regression (alpha {alpha:g})": alpha for alpha in (10.0, 1.0, 0.1, 0.01, 0.001)}
FOLDS = 20  # beyond EXACT photos, in place of leaving out one at a time
EXACT = 120


@dataclass(frozen=True)
class Linear:
    """Logits of an embedding: embedding @ weights (d, C) + bias (C,), after L2 normalisation."""

    name: str
    weights: torch.Tensor
    bias: torch.Tensor

    def __call__(self, embedding: torch.Tensor) -> torch.Tensor:
        """Logits float64 (n, C) of embeddings (n, d)."""
        return F.normalize(embedding.double(), dim=1) @ self.weights + self.bias


@dataclass(frozen=True)
class Judged:
    """A classifier chosen on all photos, and what to expect of it.

    `right` (n,): whether each photo was classified correctly by a classifier chosen and fitted without it, NaN where it
    is the only one of its class, which nothing else can teach. `held_out_logits` (n, C): of the chosen classifier,
    each photo left out.
    """

    classifier: Linear
    right: np.ndarray
    held_out_logits: torch.Tensor


def judge(embedding: torch.Tensor, labels: torch.Tensor, n_classes: int) -> Judged:
    """Choose nearest class mean or ridge regression and its strength by leave-one-out, fit it, and judge the choice.

    The estimate is nested: each photo left out (or each of 20 folds, beyond 120 photos) has its classifier chosen on
    the others, so that what is reported took no part in the choice. `embedding` (n, d), `labels` (n,) in 0..C-1.

    Raises:
        ValueError: fewer than two classes, or a class without photos.
    """
    counts = torch.bincount(labels, minlength=n_classes)
    if n_classes < 2 or (counts == 0).any():
        raise ValueError(f"every one of at least two classes needs a photo; got {counts.tolist()}")
    rows = F.normalize(embedding.double(), dim=1)
    right = np.full(len(labels), np.nan)
    for fold in _folds(labels):
        kept = torch.ones(len(labels), dtype=torch.bool)
        kept[fold] = False
        name, _ = _choose(rows[kept], labels[kept], n_classes)
        predicted = _fit(name, rows[kept], labels[kept], n_classes)(rows[fold]).argmax(1)
        known = counts[labels[fold]] > 1
        right[fold[known]] = (predicted == labels[fold])[known]
    name, held_out = _choose(rows, labels, n_classes)
    return Judged(_fit(name, rows, labels, n_classes), right, held_out)


def _folds(labels: torch.Tensor) -> list[torch.Tensor]:
    """Photos left out together: one at a time, or 20 folds over which each class is spread evenly."""
    n = len(labels)
    if n <= EXACT:
        return [torch.tensor([i]) for i in range(n)]
    order = torch.from_numpy(np.random.default_rng(0).permutation(n))
    order = order[labels[order].argsort(stable=True)]
    return [order[start::FOLDS] for start in range(FOLDS)]


def _choose(rows: torch.Tensor, labels: torch.Tensor, n_classes: int) -> tuple[str, torch.Tensor]:
    """The candidate most often right when a photo is left out, the first of equals, and its left-out logits (n, C)."""
    candidates = {"nearest class mean": _centroid_left_out(rows, labels, n_classes)}
    candidates |= dict(zip(RIDGES, _ridge_left_out(rows, labels, n_classes), strict=True))
    best = max(candidates, key=lambda name: int((candidates[name].argmax(1) == labels).sum()))
    return best, candidates[best]


def _fit(name: str, rows: torch.Tensor, labels: torch.Tensor, n_classes: int) -> Linear:
    one_hot = F.one_hot(labels, n_classes).double()
    if name == "nearest class mean":
        counts = one_hot.sum(0)
        means = (one_hot.T @ rows) / counts.clamp_min(1)[:, None]
        bias = torch.where(counts > 0, -means.square().sum(1), -torch.inf)
        return Linear(name, 2 * means.T, bias)
    center, mean = rows.mean(0), 2 * one_hot.mean(0) - 1
    centred = rows - center
    gram = centred @ centred.T
    gram.diagonal().add_(RIDGES[name])
    weights = centred.T @ torch.linalg.solve(gram, 2 * one_hot - 1 - mean)
    return Linear(name, weights, mean - center @ weights)


def _centroid_left_out(rows: torch.Tensor, labels: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Nearest-class-mean logits (n, C) of each photo, its own class's mean taken without it."""
    one_hot = F.one_hot(labels, n_classes).double()
    counts, sums = one_hot.sum(0), one_hot.T @ rows
    means = sums / counts.clamp_min(1)[:, None]
    logits = minus_distances((rows @ means.T)[None], means[None])[0]
    logits = torch.where(counts > 0, logits, -torch.inf)
    own = (sums[labels] - rows) / (counts[labels] - 1).clamp_min(1)[:, None]
    own_logit = 2 * (rows * own).sum(1) - own.square().sum(1)
    own_logit[counts[labels] == 1] = -torch.inf  # nothing is left of its class
    return logits.scatter(1, labels[:, None], own_logit[:, None])


def _ridge_left_out(rows: torch.Tensor, labels: torch.Tensor, n_classes: int) -> list[torch.Tensor]:
    """Ridge regression's logits (n, C) of each photo left out, by Allen's PRESS (1974), for every strength."""
    targets = 2 * F.one_hot(labels, n_classes).double() - 1
    n = len(rows)
    centred = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    values = values.clamp_min(0)
    left_out = []
    for strength in RIDGES.values():
        hat = (vectors * (values / (values + strength))) @ vectors.T + 1 / n
        residual = (targets - hat @ targets) / (1 - hat.diagonal()).clamp_min(1e-12)[:, None]
        left_out.append(targets - residual)
    return left_out
