"""The jackknife and the halves, from which every metric over images has its interval."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

JACKKNIFE_CELLS = 4_000_000  # statistics of left-out images held at a time: 32 MB in float64


@dataclass(frozen=True)
class Measured:
    """A metric's value on the data, and what its interval is made from.

    `terms`: one number per image (n,), of which the metric is the mean to first order (`jackknife`), or the metric on
    halves of the images (2, K). Which, the registry says; empty where the metric has no interval.
    """

    value: float
    terms: Floats


def jackknife(samples: Floats, combine: Callable[[Floats], Floats] | None = None) -> Measured:
    """The metric combine(mean of `samples` over images), and each image's term of it.

    `samples` (n, m); `combine` maps means (B, m) to values (B,). Without it `samples` is (n,) and the metric its mean.
    The terms are Tukey's pseudo-values, n * value - (n - 1) * value without the image, moved so that their mean is the
    value: the spread of what is smooth in its means is that of a mean of such terms (Miller 1974). Two metrics on the
    same images have their terms in the same order, so that their difference is paired.
    """
    if combine is None:
        return Measured(float(samples.mean(dtype=np.float64)), samples.astype(np.float64))
    n, total = len(samples), samples.sum(axis=0, dtype=np.float64)
    value = float(combine(total[None] / n)[0])
    rows = max(1, JACKKNIFE_CELLS // samples.shape[1])
    left_out = [combine((total - samples[start : start + rows]) / (n - 1)) for start in range(0, n, rows)]
    terms = -(n - 1) * np.concatenate(left_out)
    return Measured(value, terms + (value - terms.mean()))


def draw_halves(n: int, n_splits: int, seed: int) -> NDArray[np.bool_]:
    """Random splits of n images into two halves (n_splits, n), True in the first; shared by every metric of a `seed`.

    For metrics that are not smooth in means over images, such as the votes of nearest neighbours. Both halves are
    fresh samples of half the size; half their difference has the standard error of the metric on all images, for any
    metric whose variance falls as 1 / n (half-sampling; Shao and Wu 1989).
    """
    rng = np.random.default_rng(seed)
    order = np.stack([rng.permutation(n) for _ in range(n_splits)])
    halves: NDArray[np.bool_] = order < n // 2
    return halves
