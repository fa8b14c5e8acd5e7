"""Intervals and tests: Wilson, t over seeds and episodes, paired comparison, Holm, effect size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.stats import binomtest, t

from schane_cli.errors import BadRequest


def effect_size(changes: np.ndarray) -> float:
    """Hedges' g of paired values: mean over standard deviation of the differences, corrected for few pairs.

    NaN for two pairs, where the correction leaves nothing, and for differences that are all the same.
    """
    n, spread = len(changes), float(np.std(changes, ddof=1))
    if n < 3 or spread <= 1e-12:
        return float("nan")
    return float(np.mean(changes)) / spread * (1 - 3 / (4 * (n - 1) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment for several comparisons (Holm 1979), in the given order."""
    order = np.argsort(p_values)
    stepped = np.asarray(p_values, dtype=float)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted.tolist()


def mean_ci95(accuracies: ArrayLike) -> tuple[float, float]:
    """Mean and half-width of its 95 % t-interval over episodes (half-width nan for fewer than two).

    The "+-" of the few-shot literature: t(0.975, E - 1) * standard deviation / sqrt(E). Over episodes from
    `draw_episodes` the images are fixed and only their combination is random; over `disjoint_episodes` it also
    accounts for the finite test set.
    """
    values = np.asarray(accuracies, dtype=np.float64)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


@dataclass(frozen=True)
class PairedComparison:
    """By how much B beats A on the same episodes: mean difference, its 95 % interval, two-sided p-value, episodes."""

    difference: float
    low: float
    high: float
    p_value: float
    n_episodes: int


def paired_comparison(a: ArrayLike, b: ArrayLike) -> PairedComparison:
    """Paired t-test of accuracies `b` against `a`, both (E,) over the same episodes in the same order; B minus A.

    The hardness of an episode cancels, so the interval is far narrower than that of either mean. At episode level the
    test treats the images as fixed: over `draw_episodes` a small p-value says that B is better on these images, and
    enough episodes make any difference significant. Over `disjoint_episodes` the images are a sample too, and the
    answer carries over to new images of the same classes (arXiv 2409.02850, section 4).

    Raises:
        BadRequest: different numbers of episodes, or fewer than two.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise BadRequest(
            f"a paired comparison needs the same two or more episodes for both, not {first.shape} and {second.shape}"
        )
    change = second - first
    mean = float(change.mean())
    # Rounding alone would make the spread of equal differences non-zero, and scipy warns of it.
    if np.ptp(change) <= 1e-12:
        return PairedComparison(mean, mean, mean, 1.0 if abs(mean) <= 1e-12 else 0.0, len(change))
    result: Any = stats.ttest_rel(second, first)
    interval = result.confidence_interval(0.95)
    return PairedComparison(mean, float(interval.low), float(interval.high), float(result.pvalue), len(change))


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval (low, high) and the count it rests on (images, or seeds for a mean over seeds)."""

    value: float
    ci95: tuple[float, float]
    n: int


def as_array(values: Any) -> NDArray[Any]:
    """A NumPy array of an array or a tensor on any device; half-precision floats become float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach()
        return (
            (values.float() if values.is_floating_point() and values.dtype != torch.float64 else values).cpu().numpy()
        )
    return np.asarray(values)


def accuracy_interval(n_correct: int, n: int) -> Estimate:
    """Share correct with Wilson's 95 % score interval (without continuity correction)."""
    if not 0 <= n_correct <= n or n == 0:
        raise BadRequest(f"an accuracy needs at least one image and at most all of them right; got {n_correct} of {n}")
    low, high = binomtest(n_correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    return Estimate(n_correct / n, (float(low), float(high)), n)


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over runs with the two-sided 95 % interval of Student's t; `n` is the number of seeds.

    Raises BadRequest for fewer than two runs: one run says nothing of the spread.
    """
    runs = np.asarray(values, dtype=np.float64)
    if len(runs) < 2:
        raise BadRequest(f"an interval over seeds needs at least 2 runs, and there is {len(runs)}")
    half = float(t.ppf(0.975, len(runs) - 1) * runs.std(ddof=1) / np.sqrt(len(runs)))
    return Estimate(float(runs.mean()), (float(runs.mean() - half), float(runs.mean() + half)), len(runs))


def name_rows(mask: NDArray[np.bool_]) -> str:
    """`3 rows (0, 4, 7)` for the rows that are True, the first five named."""
    rows = np.flatnonzero(mask)
    named = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
    return f"{len(rows)} row{'s' if len(rows) != 1 else ''} ({named})"
