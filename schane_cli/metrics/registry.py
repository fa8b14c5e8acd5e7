"""The registry of metrics: what each one is called, its unit, which way is better, its definition and its source.

Every table, sentence, page and picture asks here how to print a value, an interval and a difference, so that a share
is in percent and a difference of shares in points wherever it appears. `METRICS` holds what a metric means whatever it
was measured on; `metric("test_ece_scaled")` finds it by the name that summary.json uses and adds split and setting to
its label.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from schane_cli.metrics.caveats import CAVEATS

Direction = Literal["higher", "lower", "none"]
Kind = Literal["result", "cost", "rate"]
Interval = Sequence[float | None] | None
NO_VALUE = "n/a"


@dataclass(frozen=True)
class Metric:
    """One metric.

    `name` is its key in summary.json; `label` is what people read; `unit` follows the number, which is the value times
    `scale`. `direction` says which way is better. `definition` is one sentence, `source` its paper, and `choices` what
    the paper leaves open and how it was settled. `bounds` are the values it can take. `kind`: a result of the model, a
    cost of getting it, or the rate of a machine. `interval` names the method of its 95 % interval, and where it is
    empty no interval is printed: `no_interval` says why. `misleads` says when not to trust it.
    """

    name: str
    label: str
    direction: Direction
    definition: str
    source: str = ""
    unit: str = ""
    scale: float = 1.0
    choices: str = ""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    kind: Kind = "result"
    interval: str = ""
    no_interval: str = ""
    misleads: str = ""

    @property
    def is_share(self) -> bool:
        """Whether it is printed in percent, and its differences in points."""
        return self.unit == "%"

    @property
    def heading(self) -> str:
        """`test top-1 accuracy, %`: the label with its unit, for a column of bare numbers."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    def number(self, value: float | None) -> str:
        """The value in the metric's unit, without the unit: `98.61`, `0.2744`."""
        if value is None or math.isnan(value):
            return NO_VALUE
        return f"{self.scale * value:.2f}" if self.is_share else significant(self.scale * value)

    def text(self, value: float | None, ci95: Interval = None) -> str:
        """`98.61 %`, with its interval `(97.30 to 99.40)` where there is one."""
        unit = f" {self.unit}" if self.unit and self.number(value) != NO_VALUE else ""
        return self._with_interval(f"{self.number(value)}{unit}", ci95)

    def bare_text(self, value: float | None, ci95: Interval = None) -> str:
        """`98.61 (97.30 to 99.40)`, for a column whose heading has the unit."""
        return self._with_interval(self.number(value), ci95)

    def _with_interval(self, shown: str, ci95: Interval) -> str:
        return f"{shown} ({self.interval_text(ci95)})" if has_interval(ci95) else shown

    def interval_text(self, ci95: Interval) -> str:
        """`97.30 to 99.40`, or nothing where there is no interval."""
        return " to ".join(self.number(bound) for bound in ci95) if ci95 and has_interval(ci95) else ""

    def plus_minus(self, value: float, ci95: Interval = None) -> str:
        """`31.25 ± 0.42` without the unit; a lopsided interval, cut at a bound, is `31.25 (30.80 to 31.40)`."""
        if not ci95 or not has_interval(ci95):
            return self.number(value)
        low, high = (float(bound or 0.0) for bound in ci95)
        half = (high - low) / 2
        if abs(high + low - 2 * value) > 0.02 * half + 1e-12:
            return self.bare_text(value, ci95)
        return f"{self.number(value)} ± {self.number(half)}"

    def change(self, difference: float | None) -> str:
        """A difference in the metric's unit with its sign, without the unit: `+1.20`."""
        shown = self.number(difference)
        return shown if shown == NO_VALUE or shown.startswith("-") else f"+{shown}"

    def change_text(self, difference: float) -> str:
        """A difference with its unit: `+1.20 points`, `-0.0260 nats`."""
        unit = "points" if self.is_share else self.unit
        return f"{self.change(difference)} {unit}".rstrip()

    def change_interval(self, ci95: Interval) -> str:
        """`+0.40 to +2.00`, or nothing where there is no interval."""
        return " to ".join(self.change(bound) for bound in ci95) if ci95 and has_interval(ci95) else ""

    def better(self, difference: float) -> str:
        """`better` or `worse` for what changed by `difference`; `higher` or `lower` where no way is better."""
        words = {"higher": ("worse", "better"), "lower": ("better", "worse"), "none": ("lower", "higher")}
        return words[self.direction][difference > 0]


def has_interval(ci95: Interval) -> bool:
    """Whether both ends of an interval are numbers."""
    return ci95 is not None and not any(bound is None or math.isnan(bound) for bound in ci95)


def significant(value: float) -> str:
    """Four significant digits, in scientific notation only where it is tiny or huge."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) < 1e-3 or abs(value) >= 1e5:
        return f"{value:.2e}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"


SHARE = (0.0, 1.0)
POSITIVE = (0.0, math.inf)
COSINE = (-1.0, 1.0)
WILSON = "Wilson's score interval"
SKEWED_MEAN = "Hall's t interval for skewed means, over images"
JACKKNIFE = "jackknife over images, with Hall's t interval"
MEAN_SHARE = "Wilson's score interval, at the number of images that has the variance"
HALVES = "halves of the images, measured again"
NONE_WRONG = "no interval where every image is right: what a wrong one would cost is then unknown"
ECE_INTERVAL = "noise of the bins' gaps, against calibrated models"


def _share(name: str, label: str, direction: Direction, definition: str, source: str = "", **more: str) -> Metric:
    return Metric(name, label, direction, definition, source, "%", 100.0, bounds=SHARE, **more)  # type: ignore[arg-type]


def _cost(name: str, label: str, unit: str, scale: float, definition: str) -> Metric:
    return Metric(name, label, "lower", definition, unit=unit, scale=scale, bounds=POSITIVE, kind="cost")


def _rate(name: str, label: str, unit: str, direction: Direction, definition: str) -> Metric:
    return Metric(name, label, direction, definition, unit=unit, bounds=POSITIVE, kind="rate")


_CLASSIFICATION = (
    _share(
        "accuracy", "top-1 accuracy", "higher", "Share of images whose label has the highest logit.", interval=WILSON
    ),
    _share(
        "top5_accuracy",
        "top-5 accuracy",
        "higher",
        "Share of images whose label is among the five highest logits.",
        interval=WILSON,
    ),
    _share(
        "balanced_accuracy",
        "balanced accuracy",
        "higher",
        "Mean over classes of the share of the class's images that are classified right.",
        "Brodersen et al. 2010",
        interval=MEAN_SHARE,
    ),
    _share(
        "macro_f1",
        "macro-F1",
        "higher",
        "Mean over classes of the harmonic mean of precision and recall.",
        "Opitz and Burst 2019 (arXiv 1911.03347), mean of F1 scores",
        interval=MEAN_SHARE,
    ),
    _share(
        "ece",
        "calibration error (ECE)",
        "lower",
        "Mean over bins of confidence of |accuracy - confidence|, weighted by the images in the bin.",
        "Guo et al. 2017 (arXiv 1706.04599), eq. 3",
        choices="top label; 15 bins of equal width; the interval is of the true value, which chance adds to",
        interval=ECE_INTERVAL,
    ),
    _share(
        "ece_debiased",
        "ECE, debiased",
        "lower",
        "ECE without the part that chance adds at this number of images.",
        "after Kumar et al. 2019 (arXiv 1909.10155)",
        choices="normal noise around each bin's gap, the gaps shrunk by their standard error",
        interval=ECE_INTERVAL,
    ),
    _share(
        "ece_calibrated",
        "ECE of a calibrated model",
        "none",
        "Mean ECE over so many images of models that are right as often as their confidence says.",
        "Broecker and Smith 2007 (consistency resampling)",
        no_interval="it is a mean over simulated models, given the confidences",
    ),
    Metric(
        "nll",
        "NLL",
        "lower",
        "Mean negative log-likelihood of the label.",
        unit="nats",
        choices=NONE_WRONG,
        bounds=POSITIVE,
        interval=SKEWED_MEAN,
    ),
    Metric(
        "brier",
        "Brier score",
        "lower",
        "Mean squared distance of the probabilities to the one-hot label, from 0 to 2.",
        "Brier 1950",
        choices=NONE_WRONG,
        bounds=(0.0, 2.0),
        interval=SKEWED_MEAN,
    ),
    _share(
        "corruption_accuracy",
        "mean accuracy on corrupted images",
        "higher",
        "Top-1 accuracy, averaged over all corruptions and severities.",
        "Hendrycks and Dietterich 2019 (arXiv 1903.12261)",
        choices="kinds after the paper, strengths of our own, after resizing: not comparable with published mCE",
        interval=SKEWED_MEAN,
    ),
    _share(
        "auroc",
        "AUROC",
        "higher",
        "Chance that an in-distribution image scores above an out-of-distribution image; ties count one half.",
        "Hanley and McNeil 1982",
        interval="score interval from DeLong's variance",
    ),
    _share(
        "fpr95",
        "FPR95",
        "lower",
        "Share of out-of-distribution images accepted at the threshold that accepts 95 % of the in-distribution ones.",
        "Liang et al. 2018 (arXiv 1706.02690)",
        interval="Wilson's, joined with the threshold's own uncertainty",
    ),
)
_FEWSHOT = (
    _share(
        "fewshot_accuracy",
        "few-shot accuracy",
        "higher",
        "Mean accuracy on the queries of an episode, over episodes drawn with replacement from the images.",
        "Vinyals et al. 2016 (arXiv 1606.04080)",
        choices="the interval takes the images as given: it says how well so many episodes pin down the mean",
        interval="Student's t over episodes",
    ),
    _share(
        "disjoint_accuracy",
        "accuracy, disjoint episodes",
        "higher",
        "Mean accuracy on the queries of an episode, over episodes that share no image.",
        "arXiv 2409.02850",
        choices="the interval accounts for the finite test set",
        interval="Student's t over disjoint episodes",
    ),
)
_PREDICTIONS = (
    _share(
        "confidence",
        "confidence",
        "none",
        "Probability of the predicted class; calibrated where there are val images.",
        no_interval="it is a single image's",
    ),
    _share(
        "kept",
        "share above the confidence asked for",
        "higher",
        "Share of images whose confidence reaches --min-confidence.",
        interval=WILSON,
    ),
    _share(
        "kept_accuracy",
        "accuracy above the confidence asked for",
        "higher",
        "Top-1 accuracy on the images whose confidence reaches --min-confidence.",
        interval=WILSON,
    ),
    _share(
        "support_accuracy",
        "accuracy on photos left out",
        "higher",
        "Share of support photos that a classifier chosen and fitted without them classifies right.",
        interval=WILSON,
    ),
)
_COSTS = (
    _cost("train_seconds", "training time", "s", 1.0, "Seconds in the training loop."),
    _cost("total_seconds", "total time", "s", 1.0, "Seconds from start to end of the command."),
    _cost("views_forwarded", "views forwarded", "million", 1e-6, "Augmented images that went through the model."),
    _cost("peak_memory_bytes", "peak memory", "GB", 1e-9, "Most memory held at once, of the device."),
    _cost("energy_joules", "energy", "kJ", 1e-3, "Energy of the device while training, by its own meter."),
    _rate("images_per_second", "throughput", "images/s", "higher", "Images per second through loader and model."),
    _rate("data_wait_percent", "waiting for data", "%", "lower", "Share of the training time spent waiting for data."),
)

ISOTROPY = "Mu and Viswanath 2018 (arXiv 1702.01417), eq. 2, as in Mirror-BERT (arXiv 2104.08027)"
ISOTROPY_IS = "min over max, along the eigenvectors c of V^T V, of sum_v exp(c . v); 1 is isotropic"
BOTH_SIGNS = "each eigenvector with both signs"
EXTREMES = "it rests on the two most extreme directions: a bootstrap interval held 70 to 89 % of the time, not 95"
ISO_SCORE = "Rudman et al. 2022 (arXiv 2108.07344), algorithm 1"
RANK = "RankMe, Garrido et al. 2023 (arXiv 2210.02885), eq. 1; Roy and Vetterli 2007"
RANK_IS = "exp of the entropy of the singular values divided by their sum, from 1 to the number of dimensions"
WANG = "Wang and Isola 2020 (arXiv 2005.10242)"
UNIFORMITY_IS = "log of the mean of exp(-2 |u_i - u_j|^2) over pairs of {}"
RESIDUALS = "the class mean taken off each vector, all classes pooled, not normalised"
PAIRS = "L2-normalised, not centred; every pair of two images counts once"
QUERIES = "cosine; every image queries all the others"


def _embedding(
    name: str,
    direction: Direction,
    definition: str,
    source: str,
    choices: str,
    bounds: tuple[float, float],
    unit: str = "",
    interval: str = JACKKNIFE,
    no_interval: str = "",
) -> Metric:
    scale = 100.0 if unit == "%" else 1.0
    return Metric(
        name, name, direction, definition, source, unit, scale, choices, bounds, "result", interval, no_interval
    )


_EMBEDDING = (
    _embedding(
        "isotropy",
        "none",
        f"{ISOTROPY_IS}.",
        ISOTROPY,
        f"not centred, not normalised; {BOTH_SIGNS}",
        SHARE,
        "",
        "",
        EXTREMES,
    ),
    _embedding(
        "isotropy of unit vectors",
        "none",
        f"{ISOTROPY_IS}, of vectors of length 1.",
        ISOTROPY,
        f"L2-normalised, not centred, so that the scale of the embedding does not count; {BOTH_SIGNS}",
        SHARE,
        "",
        "",
        EXTREMES,
    ),
    _embedding("effective rank", "higher", f"{RANK_IS}.", RANK, "not centred, not normalised", POSITIVE),
    _embedding(
        "IsoScore",
        "none",
        "How evenly variance fills the dimensions after PCA: 0 where one direction has it all, 1 where all are equal.",
        ISO_SCORE,
        "centred, not normalised",
        SHARE,
    ),
    _embedding(
        "isotropy, within class",
        "none",
        f"{ISOTROPY_IS}, of the spread around class means.",
        ISOTROPY,
        f"{RESIDUALS}; {BOTH_SIGNS}",
        SHARE,
        "",
        "",
        EXTREMES,
    ),
    _embedding(
        "effective rank, within class",
        "none",
        f"{RANK_IS}, of the spread around class means.",
        RANK,
        RESIDUALS,
        POSITIVE,
    ),
    _embedding(
        "IsoScore, within class", "none", "IsoScore of the spread around class means.", ISO_SCORE, RESIDUALS, SHARE
    ),
    _embedding(
        "average cosine",
        "none",
        "Mean cosine of two images.",
        "Ethayarajh 2019 (arXiv 1909.00512), section 4.1",
        PAIRS,
        COSINE,
    ),
    _embedding(
        "average cosine, within class",
        "higher",
        "Mean cosine of two images of the same class (positive pairs).",
        "arXiv 2308.14893",
        PAIRS,
        COSINE,
    ),
    _embedding(
        "average cosine of negative pairs",
        "lower",
        "Mean cosine of two images of different classes.",
        "arXiv 2308.14893",
        PAIRS,
        COSINE,
    ),
    _embedding(
        "AUC of positive over negative cosines",
        "higher",
        "Chance that a pair of the same class is more similar than a pair of different classes: 100 % where the two "
        "distributions do not overlap, 50 % where they are alike.",
        "Hanley and McNeil 1982",
        f"{PAIRS}; ties one half",
        SHARE,
        "%",
    ),
    _embedding(
        "alignment, within class",
        "lower",
        "Mean squared distance of two images of the same class.",
        f"{WANG}, section 4.1, alpha = 2",
        f"{PAIRS}; positive pairs are images of a class, not views of an image",
        (0.0, 4.0),
    ),
    _embedding(
        "uniformity",
        "lower",
        f"{UNIFORMITY_IS.format('images')}.",
        f"{WANG}, section 4.1, t = 2",
        PAIRS,
        (-8.0, 0.0),
    ),
    _embedding(
        "uniformity, within class",
        "none",
        f"{UNIFORMITY_IS.format('the same class')}.",
        f"{WANG}, section 4.1, t = 2",
        PAIRS,
        (-8.0, 0.0),
    ),
    _embedding(
        "kNN accuracy",
        "higher",
        "Share of images that the votes of their k nearest others classify right.",
        "Wu et al. 2018 (arXiv 1805.01978), section 3.4; DINOv2 (arXiv 2304.07193)",
        f"{QUERIES}; votes weigh exp(cosine / 0.07)",
        SHARE,
        "%",
        HALVES,
    ),
    _embedding(
        "recall",
        "higher",
        "Share of images with one of their class among the k nearest others.",
        "Jegou et al. 2011; Oh Song et al. 2016 (arXiv 1511.06452)",
        f"{QUERIES}; images alone in their class left out",
        SHARE,
        "%",
        HALVES,
    ),
    _embedding(
        "mAP@R",
        "higher",
        "Mean over images of the precision at each relevant rank up to R, divided by R, R being the other images of "
        "the class.",
        "Musgrave et al. 2020 (arXiv 2003.08505), section 3.3",
        f"{QUERIES}; images alone in their class left out; the interval takes an image as a query and in the gallery",
        SHARE,
        "%",
    ),
    _embedding(
        "linear-probe accuracy",
        "higher",
        "Share of images that a linear classifier fitted on all the others gets right.",
        "ridge regression on one-hot labels; leave-one-out by Allen's PRESS (1974)",
        "centred, not normalised; penalty from 1e-4 to 10 mean variances by leave-one-out error",
        SHARE,
        "%",
        HALVES,
    ),
    _embedding(
        "silhouette",
        "higher",
        "Mean of (b - a) / max(a, b), a the mean distance to the image's class and b to the nearest other class.",
        "Rousseeuw 1987",
        "cosine distance, not centred; the interval takes an image and the class mean it is part of",
        COSINE,
    ),
    _embedding(
        "NMI of k-means",
        "higher",
        "Mutual information of labels and k-means clusters over the mean of their entropies.",
        "Strehl and Ghosh 2002, with the arithmetic mean",
        "L2-normalised; as many clusters as classes, best of 3 k-means++ starts (of more than 10,000 images, and more "
        "than 10 a cluster, the starts are chosen among so many)",
        SHARE,
        interval="",
        no_interval="k-means may settle elsewhere on other images, and dozens of further runs would have to say where",
    ),
    _embedding(
        "Fisher ratio",
        "higher",
        "Scatter of class means around the overall mean over scatter of images around class means (traces).",
        "Fisher 1936",
        "not normalised; every image counts alike",
        POSITIVE,
    ),
    _embedding(
        "NC1",
        "lower",
        "tr(S_W pinv(S_B)) / C of within-class and between-class covariance; 0 where every class is a point.",
        "Papyan, Han and Donoho 2020 (arXiv 2008.08186), section 2",
        "not normalised; S_B around the mean of class means; directions below 1e-6 of the largest left out",
        POSITIVE,
    ),
)

METRICS: dict[str, Metric] = {
    one.name: replace(one, misleads=CAVEATS[one.name])
    for one in (*_CLASSIFICATION, *_FEWSHOT, *_PREDICTIONS, *_COSTS, *_EMBEDDING)
}
# How a share that is no metric of its own is printed: what it is a share of stands beside it.
PLAIN_SHARE = _share("share", "share", "none", "Share of what stands beside it.")

SPLITS = ("train", "val", "test")
_FEWSHOT_NAME = re.compile(r"(?:(?P<checkpoint>.+)_)?(?P<shots>\d+)shot_(?P<classifier>.+)_accuracy")
_SETTING = re.compile(r", k=\d+|@\d+")  # of kNN accuracy and recall


def find_metric(name: str) -> Metric | None:
    """The metric that summary.json calls `name`, its label saying split and setting; None where there is none.

    Takes `accuracy`, `test_accuracy`, `test_ece_scaled`, `5shot_centroid_accuracy`, `train_seconds`,
    `kNN accuracy, k=10` and `digits test embedding, n=360: kNN accuracy, k=10`.
    """
    if name in METRICS:
        return METRICS[name]
    place, colon, rest = name.rpartition(": ")
    if colon:
        inner = find_metric(rest)
        return inner and replace(inner, name=name, label=f"{inner.label} ({place})")
    if fewshot := _FEWSHOT_NAME.fullmatch(name):
        label = f"{fewshot['shots']}-shot accuracy, {fewshot['classifier']}"
        label += f", {fewshot['checkpoint']}" if fewshot["checkpoint"] else ""
        return replace(METRICS["fewshot_accuracy"], name=name, label=label)
    if (setting := _SETTING.search(name)) and (known := METRICS.get(_SETTING.sub("", name))):
        return replace(known, name=name, label=f"{known.label}{setting.group()}")
    split, _, base = name.partition("_")
    known = METRICS.get(base.removesuffix("_scaled")) if split in SPLITS else None
    if known is None or known.kind != "result":
        return None
    scaled = ", temperature-scaled" if base.endswith("_scaled") else ""
    return replace(known, name=name, label=f"{split} {known.label}{scaled}")


def metric(name: str) -> Metric:
    """The same; ValueError where no metric has that name."""
    known = find_metric(name)
    if known is None:
        raise ValueError(f"no metric is called {name!r}")
    return known


def summary_text(summary: Mapping[str, Any], name: str) -> str:
    """A metric of a summary.json with its unit and interval: `98.61 % (97.30 to 99.40)`."""
    return metric(name).text(summary[name], summary.get(f"{name}_ci95"))


def summary_rows(summary: Mapping[str, Any], names: Iterable[str], n: str) -> list[tuple[str, str, str]]:
    """(label, value with its interval, n) for those of `names` that a summary.json has."""
    return [(metric(name).label, summary_text(summary, name), n) for name in names if name in summary]
