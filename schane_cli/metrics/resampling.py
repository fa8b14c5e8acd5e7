"""The bootstrap and the halves that all metrics share: which images each resample, and each half, holds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

RESAMPLE_CELLS = 4_000_000  # weights held as float32 at a time: 16 MB


@dataclass(frozen=True)
class Measured:
    """A metric's value on the data, and its values on the bootstrap resamples (B,) or on the halves of splits (2, K).

    The registry says which; empty where the metric has no interval.
    """

    value: float
    resamples: Floats


class Bootstrap:
    """Resamples of n images with replacement, drawn once from `seed` and shared by every metric.

    Two analyses of the same n images with the same seed see the same resamples: that is what makes their difference
    paired. `counts` (B, n) holds how often each image is drawn.
    """

    def __init__(self, n: int, *, n_resamples: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        # A byte is enough: no count exceeds n, and from more than 255 images none is drawn 256 times in practice
        # (probability below 1/256!).
        self.counts = np.empty((n_resamples, n), dtype=np.uint8)
        for row in self.counts:
            row[:] = np.bincount(rng.integers(0, n, size=n), minlength=n)

    def weighted_sums(self, samples: Floats, images: slice = slice(None)) -> Floats:
        """Sums (B, m) over the drawn images of per-image statistics `samples` (n, m); `images` where it is a part."""
        columns = torch.from_numpy(np.ascontiguousarray(samples))
        counts = self.counts[:, images]
        batch = max(1, RESAMPLE_CELLS // max(1, counts.shape[1]))
        parts = [
            torch.from_numpy(np.ascontiguousarray(counts[start : start + batch])).to(columns.dtype) @ columns
            for start in range(0, len(counts), batch)
        ]
        sums: Floats = torch.cat(parts).numpy()
        return sums

    def means(self, samples: Floats) -> Floats:
        """Means (B, m) over each resample of per-image statistics `samples` (n, m)."""
        return self.weighted_sums(samples) / len(samples)

    def measure(self, samples: Floats, combine: Callable[[Floats], Floats] | None = None) -> Measured:
        """The metric combine(mean of `samples` over images), on the data and on every resample.

        `samples` (n, m); `combine` maps means (B, m) to values (B,). Without it `samples` is (n,) and the metric its
        mean.
        """
        if combine is None:
            samples, combine = samples[:, None], _only_column
        value = combine(samples.mean(axis=0, dtype=np.float64)[None])[0]
        return Measured(float(value), combine(self.means(samples).astype(np.float64)))


def _only_column(means: Floats) -> Floats:
    return means[:, 0]


class Halves:
    """`n_splits` random splits of n images into two halves, drawn once from `seed` and shared by every metric.

    For metrics that a bootstrap distorts: in a resample an image drawn twice is its own nearest neighbour. Both halves
    are fresh samples without repeats, of half the size; half their difference has the standard error of the metric on
    all images, for any metric whose variance falls as 1 / n (half-sampling; Shao and Wu 1989). `first` (K, n) marks
    the images of each split's first half.
    """

    def __init__(self, n: int, *, n_splits: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        order = np.stack([rng.permutation(n) for _ in range(n_splits)])
        self.first = order < n // 2

    def values(self, measure: Callable[[NDArray[np.bool_]], Floats], splits: slice = slice(None)) -> Floats:
        """The metrics (2, K, m) of both halves of each split, `measure` gives (m,) for the images marked (n,)."""
        both = [[measure(half), measure(~half)] for half in self.first[splits]]
        values: Floats = np.array(both).swapaxes(0, 1)
        return values
