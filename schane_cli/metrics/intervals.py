"""All intervals and tests: of shares, areas and means, by jackknife or halves, paired comparison, Holm, effect size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from schane_cli.checks import require_finite

UNBOUNDED = (-np.inf, np.inf)
_NO_SPREAD = 1e-12  # a standard error that only rounding makes
Z = 1.959963984540054  # the 97.5 % point of the normal distribution; scipy.stats takes a second to import
INFORMATIVE_IMAGES = 8  # with this many images deciding an area, DeLong's variance and the model's have equal weight


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval (low, high) and the count it rests on (images, or seeds for a mean over seeds).

    `ci95` is None where no interval can be given: one seed, or a metric whose interval would not hold.
    """

    value: float
    ci95: tuple[float, float] | None
    n: int


def accuracy_interval(n_correct: int, n: int) -> Estimate:
    """Share correct with Wilson's 95 % score interval, without continuity correction (Wilson 1927)."""
    if not 0 <= n_correct <= n or n == 0:
        raise ValueError(f"an accuracy needs at least one image and at most all of them right; got {n_correct} of {n}")
    return Estimate(n_correct / n, wilson(n_correct / n, n), n)


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share of `n`, which need not be a whole number (Wilson 1927)."""
    square = Z**2 / n
    centre, half = (share + square / 2) / (1 + square), math.sqrt(share * (1 - share) * square + square**2 / 4)
    return max(0.0, centre - half / (1 + square)), min(1.0, centre + half / (1 + square))


def auc_interval(auc: float, variance: float, n: tuple[int, int], informative: float) -> tuple[float, float]:
    """95 % score interval of an area under the ROC curve, over `n` images of either set.

    The ends are the areas t that |auc - t| = 1.96 sqrt(v(t)) allows, as Wilson's are for a share, so that they stay
    within 0 and 1 and an area of 1 has an interval. v(t) is Hanley and McNeil's variance in Newcombe's form (2006,
    method 5), times how much larger DeLong's `variance` (1988) is than it at `auc`. Near 0 and 1 a few images decide
    DeLong's variance: with only `informative` of them (an effective number) the ratio is drawn towards 1.
    """
    ratio = 1.0
    if 0 < auc < 1 and variance > 0:
        ratio = (variance / _newcombe_variance(auc, n)) ** (informative / (informative + INFORMATIVE_IMAGES))

    def excess(t: float) -> float:
        return (auc - t) ** 2 - Z**2 * ratio * _newcombe_variance(t, n)

    tiny = 1e-9
    low = 0.0 if auc <= tiny else float(scipy.optimize.brentq(excess, 1e-12, auc - tiny))
    high = 1.0 if auc >= 1 - tiny else float(scipy.optimize.brentq(excess, auc + tiny, 1 - 1e-12))
    return low, high


def _newcombe_variance(t: float, n: tuple[int, int]) -> float:
    others = sum(n) / 2 - 1
    return t * (1 - t) * (1 + others * ((1 - t) / (2 - t) + t / (1 + t))) / (n[0] * n[1])


def combined_interval(
    value: float, *parts: tuple[float, float], bounds: tuple[float, float] = UNBOUNDED
) -> tuple[float, float]:
    """An interval of a value that varies for several independent reasons, from the interval that each alone gives.

    The distances from the value to the ends add in squares (MOVER; Zou and Donner 2008).
    """
    low = value - math.hypot(*(value - part[0] for part in parts))
    high = value + math.hypot(*(part[1] - value for part in parts))
    return max(low, bounds[0]), min(high, bounds[1])


def skewed_mean_interval(
    terms: NDArray[np.floating[Any]], bounds: tuple[float, float] = UNBOUNDED
) -> tuple[float, float]:
    """95 % interval of the mean of independent `terms` (n,), n at least 2, that may be skewed; kept within `bounds`.

    Student's t of a skewed mean is skewed the other way, so that its interval ends too early on the side of the long
    tail. Hall's cubic takes the skewness out of t: the ends are where the transformed t has Student's quantiles (Hall
    1992, J. R. Statist. Soc. B 54, 221). Losses of which a few images decide the mean keep their coverage (down to
    one wrong image), where a percentile bootstrap falls to 88 %.
    """
    n, mean, error = len(terms), float(terms.mean()), float(scipy.stats.sem(terms))
    if error <= 1e-12 * max(abs(mean), 1e-12):  # all alike but for rounding
        return mean, mean
    bend = float(scipy.stats.skew(terms)) / math.sqrt(n)
    quantile = float(scipy.stats.t.ppf(0.975, n - 1))

    def untransformed(t: float) -> float:
        return 3 / bend * (float(np.cbrt(1 + bend * (t - bend / 6))) - 1) if abs(bend) > 1e-6 else t

    ends = np.clip([mean - error * untransformed(quantile), mean - error * untransformed(-quantile)], *bounds)
    return float(ends[0]), float(ends[1])


def mean_accuracy_interval(shares: NDArray[np.floating[Any]]) -> tuple[float, float] | None:
    """95 % interval of the mean over images of the share (n,) of conditions in which each is right.

    None where no image is mostly wrong, or none mostly right: such draws do not say what a rare image would add.
    """
    mostly_right = shares > 0.5
    decided = len(shares) < 2 or mostly_right.all() or not mostly_right.any()
    return None if decided else skewed_mean_interval(shares, (0.0, 1.0))


def mean_share_interval(value: float, variance: float, most: float) -> tuple[float, float]:
    """95 % interval of a mean of shares that is `value`, with that `variance`: Wilson's, at the n that has it.

    It keeps its width near 0 and 1. A `variance` of 0 counts as that of `most` images.
    """
    return wilson(value, min(most, value * (1 - value) / variance) if variance > 0 and 0 < value < 1 else most)


def halves_interval(value: float, halves: NDArray[np.floating[Any]], n: float) -> tuple[float, float]:
    """95 % interval of a share of `n` images from its values on halves (2, K), see `draw_halves`.

    Wilson's interval for as many independent images as have the variance that the halves show, and never more than
    there are: near 0 and 1 it keeps the length that the images' number alone demands.
    """
    share, variance = float(halves.mean()), _halves_error(halves) ** 2
    if variance > 0:
        variance *= (scipy.stats.t.ppf(0.975, halves.shape[1]) / Z) ** 2
        n = min(n, max(share * (1 - share) / variance, 1.0))
    return wilson(value, n)


def _halves_error(halves: NDArray[np.floating[Any]]) -> float:
    """Standard error, on all images, of a metric whose values on halves (2, K) are given."""
    return math.sqrt(float(((halves[0] - halves[1]) ** 2).mean()) / 4)


def paired_change(change: float, terms: NDArray[np.floating[Any]]) -> tuple[tuple[float, float] | None, float | None]:
    """95 % interval and two-sided p-value of a paired difference, from the differences of `terms` (n,) or (2, K).

    None where all terms differ by the same: no spread to judge by.
    """
    halves = terms.ndim == 2
    error = _halves_error(terms) if halves else float(scipy.stats.sem(terms))
    spread = scipy.stats.t(terms.shape[1] if halves else len(terms) - 1)
    if error <= _NO_SPREAD:
        return None, None
    half = float(spread.ppf(0.975)) * error
    return (change - half, change + half), float(2 * spread.sf(abs(change) / error))


def t_interval(values: ArrayLike, bounds: tuple[float, float] = UNBOUNDED) -> Estimate:
    """Mean of `values` (m,) over seeds or episodes, with the two-sided 95 % interval of Student's t.

    Half the width is t(0.975, m - 1) * standard deviation / sqrt(m), the "±" of the few-shot literature. Over episodes
    from `draw_episodes` the images are fixed and only their combination is random; over `disjoint_episodes` it also
    accounts for the finite test set. The interval is cut at `bounds`, the values that the metric can take: the mean it
    is about lies within them, so that cutting loses no coverage. A single value, or values that are all the same, say
    nothing of the spread and have no interval. Raises ValueError for no value, or one that is not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    if not len(sample):
        raise ValueError("a mean needs at least one value")
    require_finite(sample, "the value")
    mean = float(sample.mean())
    error = float(scipy.stats.sem(sample)) if len(sample) > 1 else 0.0
    if error <= _NO_SPREAD:
        return Estimate(mean, None, len(sample))
    half = float(scipy.stats.t.ppf(0.975, len(sample) - 1)) * error
    low, high = np.clip((mean - half, mean + half), *bounds)
    return Estimate(mean, (float(low), float(high)), len(sample))


@dataclass(frozen=True)
class PairedComparison:
    """By how much B beats A over the same seeds or episodes: mean difference, its 95 % interval, two-sided p-value.

    `ci95` and `p_value` are None where no test can tell, and `reason` says why.
    """

    difference: float
    ci95: tuple[float, float] | None
    p_value: float | None
    n: int
    reason: str = ""


def paired_comparison(a: ArrayLike, b: ArrayLike, resolution: float = 0.0) -> PairedComparison:
    """Paired t-test of values `b` against `a`, both (m,) over the same seeds or episodes in the same order; B minus A.

    The hardness of an episode cancels, so the interval is far narrower than that of either mean. At episode level the
    test treats the images as fixed: over `draw_episodes` a small p-value says that B is better on these images, and
    enough episodes make any difference significant. Over `disjoint_episodes` the images are a sample too, and the
    answer carries over to new images of the same classes (arXiv 2409.02850, section 4).

    `resolution` is the step in which the values come, 1 / n for an accuracy over n images: differences that lie within
    one step of each other have a spread that rounding made, and two differences are too few for any spread. Neither
    gives an interval or a verdict: differences that agree by chance would otherwise count as significant with p = 0.

    Raises:
        ValueError: different numbers of values, fewer than two, or values that are not finite.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise ValueError(
            f"a paired comparison needs the same two or more episodes for both, not {first.shape} and {second.shape}"
        )
    require_finite(first, "the first method's value")
    require_finite(second, "the second method's value")
    change = second - first
    mean, n = float(change.mean()), len(change)
    if n == 2:
        return PairedComparison(mean, None, None, n, "two are too few for a verdict")
    if np.ptp(change) <= resolution * (1 + 1e-9) + 1e-12:
        return PairedComparison(
            mean, None, None, n, "the differences are the same up to rounding, so they have no spread"
        )
    result: Any = scipy.stats.ttest_1samp(change, 0.0)
    interval = result.confidence_interval(0.95)
    return PairedComparison(mean, (float(interval.low), float(interval.high)), float(result.pvalue), n)


def paired_accuracies(a: ArrayLike, b: ArrayLike) -> PairedComparison:
    """Two models on the same images: `a` and `b` (n,) say which each has right; accuracy of B minus that of A.

    The p-value is McNemar's, exact: of the images that one model alone has right, either is as likely to have each. The
    95 % interval is Tango's score interval (1998, Statistics in Medicine 17, 891), which keeps its coverage for few
    images and for models that hardly differ. Both are about other images and these two models.

    Raises:
        ValueError: different numbers of images, or none.
    """
    first, second = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"two accuracies need the same images, at least one; not {first.shape} and {second.shape}")
    n, gained, lost = len(first), int((second & ~first).sum()), int((first & ~second).sum())
    p_value = float(scipy.stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return PairedComparison((gained - lost) / n, _tango_interval(gained, lost, n), p_value, n)


def _tango_interval(gained: int, lost: int, n: int) -> tuple[float, float]:
    """The differences d that |gained - lost - n d| = 1.96 standard errors under d allow."""

    def excess(d: float) -> float:
        linear = (2 * n - gained + lost) * d - gained - lost
        root = math.sqrt(max(linear**2 + 8 * n * lost * d * (1 - d), 0.0))
        share_lost = (root - linear) / (4 * n)  # the most likely one under d
        return (gained - lost - n * d) ** 2 - Z**2 * n * (2 * share_lost + d * (1 - d))

    tiny, difference = 1e-9, (gained - lost) / n
    low = -1.0 if lost == n else float(scipy.optimize.brentq(excess, -1, difference - tiny))
    high = 1.0 if gained == n else float(scipy.optimize.brentq(excess, difference + tiny, 1))
    return low, high


def holm_where_tested(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjustment of those p-values that are there; None stays None."""
    adjusted = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(adjusted) for p in p_values]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment for several comparisons (Holm 1979), in the given order."""
    order = np.argsort(p_values)
    stepped = np.asarray(p_values, dtype=float)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted.tolist()


def effect_size(changes: NDArray[np.floating[Any]]) -> float:
    """Hedges' g of paired values: mean over standard deviation of the differences, corrected for few pairs.

    NaN for two pairs, where the correction leaves nothing, and for differences that are all the same.
    """
    n, spread = len(changes), float(np.std(changes, ddof=1))
    if n < 3 or spread <= 1e-12:
        return float("nan")
    return float(np.mean(changes)) / spread * (1 - 3 / (4 * (n - 1) - 1))
