"""How often each 95 % interval holds the truth, and how wide it is: the evidence behind every interval we print.

    python benchmarks/coverage.py [--draws 200] [--only ood,seeds]     writes results/benchmarks/coverage.md

The truth is known: from the distribution that the draws come from, or as the mean of the metric over the draws
(embedding metrics, whose value depends on n). `printed` is the share of draws that have an interval, and `coverage` and
`width` are over those. `width` is the mean width over 3.92 standard deviations of the value over the draws: 1 is what a
normal interval with the true standard deviation has. One thread.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from schane_cli.fewshot.episodes import disjoint_episodes, draw_episodes
from schane_cli.metrics.classification import calibration, class_means, image_losses, mean_losses
from schane_cli.metrics.embedding import analyse_embeddings, compare_embeddings
from schane_cli.metrics.intervals import (
    Estimate,
    accuracy_interval,
    mean_accuracy_interval,
    paired_accuracies,
    paired_comparison,
    t_interval,
)
from schane_cli.metrics.ood import ood_detection

Floats = NDArray[np.floating]
Draws = dict[str, list[Estimate]]
Row = tuple[str, str, float, int, float, float, float]  # metric, setting, truth, draws, printed, coverage, width
TABLE = Path(__file__).parent.parent / "results" / "benchmarks" / "coverage.md"


def row(name: str, setting: str, estimates: list[Estimate], truth: float | None = None) -> Row:
    """Coverage and relative width of the intervals; without a truth it is the mean over the draws."""
    values = np.array([one.value for one in estimates])
    ends = np.array([one.ci95 for one in estimates if one.ci95 is not None])
    true = float(values.mean()) if truth is None else truth
    held = float(np.mean((ends[:, 0] <= true + 1e-12) & (true - 1e-12 <= ends[:, 1])))
    spread = float(values.std(ddof=1))
    width = float((ends[:, 1] - ends[:, 0]).mean() / (3.92 * spread)) if spread > 0 else np.nan
    return name, setting, true, len(estimates), len(ends) / len(estimates), held, width


SHARES = ("accuracy", "top5_accuracy", "kept", "kept_accuracy", "support_accuracy")


def shares(draws: int) -> Iterator[Row]:
    """Accuracies of n images, which are right independently of one another."""
    rng = np.random.default_rng(0)
    for n, p in ((143, 0.5), (143, 0.98), (360, 0.995), (10_000, 0.7)):
        right = rng.binomial(n, p, size=10 * draws)
        estimates = [accuracy_interval(int(k), n) for k in right]
        for name in SHARES:
            yield row(name, f"n {n}, truth {p:.1%}", estimates, p)


def logits_of(
    n: int, sharpness: float, rng: np.random.Generator, lead: float = 2.0
) -> tuple[Floats, NDArray[np.integer]]:
    """Logits (n, 10) and labels drawn from softmax(logits / sharpness): calibrated at 1, over-confident above.

    The first class leads by twice `lead` on average: 66 % of images are right at 2, 99.7 % at 40.
    """
    logits = rng.normal(size=(n, 10)) * 1.5
    logits[:, 0] += rng.gamma(2.0, lead, size=n)
    chance = np.exp(logits - logits.max(axis=1, keepdims=True))
    chance = (chance / chance.sum(axis=1, keepdims=True)).cumsum(axis=1)
    labels = np.minimum((rng.random((n, 1)) > chance).sum(axis=1), 9)
    return sharpness * logits, labels


MODELS = (  # sharpness, lead, what that is
    (1.0, 2.0, "calibrated"),
    (1.2, 2.0, "slightly over-confident"),
    (2.0, 2.0, "clearly over-confident"),
    (2.0, 12.0, "97 % right, clearly over-confident"),
    (1.0, 40.0, "99.7 % right, calibrated"),
)


def calibrations(draws: int) -> Iterator[Row]:
    """ECE of models that are calibrated, slightly and clearly over-confident."""
    for sharpness, lead, how in MODELS[:3]:
        big = calibration(*logits_of(400_000, sharpness, np.random.default_rng(99), lead), seed=0)
        truth = 0.0 if sharpness == 1.0 else big.ece_debiased.value
        for n in (143, 359, 2000, 10_000):
            rng = np.random.default_rng(n)
            results = [calibration(*logits_of(n, sharpness, rng, lead), seed=i) for i in range(draws)]
            for name in ("ece", "ece_debiased"):
                yield row(name, f"n {n}, {how}", [getattr(one, name) for one in results], truth)


def losses(draws: int) -> Iterator[Row]:
    """NLL and Brier score of such models, and of nearly perfect ones, of whose images few are wrong."""

    def scored(n: int, sharpness: float, rng: np.random.Generator, lead: float) -> tuple[Estimate, Estimate]:
        logits, labels = logits_of(n, sharpness, rng, lead)
        return mean_losses(image_losses(logits, labels))

    for sharpness, lead, how in MODELS:
        big = scored(400_000, sharpness, np.random.default_rng(99), lead)
        for n in (143, 359, 2000, 10_000):
            rng = np.random.default_rng(n)
            results = [scored(n, sharpness, rng, lead) for _ in range(5 * draws if n < 2000 else draws)]
            for place, name in enumerate(("nll", "brier")):
                yield row(name, f"n {n}, {how}", [one[place] for one in results], big[place].value)


def predictions_of(
    n: int, classes: int, right: float, unevenness: float, rng: np.random.Generator
) -> tuple[Floats, NDArray[np.integer]]:
    """One-hot predictions (n, C) and labels: each class has its own accuracy around `right` and its own frequency."""
    fixed = np.random.default_rng(classes)
    frequency = np.arange(1.0, classes + 1) ** -unevenness
    accuracy = fixed.beta(8 * right, 8 * (1 - right), size=classes) if right < 1 else np.eye(classes)[0]
    mistaken_for = (np.arange(classes) + fixed.integers(1, classes, size=classes)) % classes if right < 1 else 0
    labels = rng.choice(classes, size=n, p=frequency / frequency.sum())
    other = np.broadcast_to(mistaken_for, classes)[labels]
    return np.eye(classes)[np.where(rng.random(n) < accuracy[labels], labels, other)], labels


def class_averages(draws: int) -> Iterator[Row]:
    """Balanced accuracy and macro-F1 of classes that differ in number and accuracy, and of a model with one answer."""
    for classes, right, unevenness, how in (
        (10, 0.5, 1.0, "10 unequal classes"),
        (100, 0.95, 0.0, "100 classes"),
        (10, 1.0, 1.0, "10 unequal classes, all called the first"),
    ):
        big = class_means(*predictions_of(500_000, classes, right, unevenness, np.random.default_rng(99)))
        for n in (143, 359, 2000, 10_000) if classes == 10 else (300, 2000, 10_000):
            rng = np.random.default_rng(n)
            results = [class_means(*predictions_of(n, classes, right, unevenness, rng)) for _ in range(draws)]
            for name in ("balanced_accuracy", "macro_f1"):
                truth = getattr(big, name).value
                yield row(name, f"n {n}, {how}", [getattr(one, name) for one in results], truth)


def detections(draws: int) -> Iterator[Row]:
    """AUROC and FPR95 of normal scores, `shift` apart, those of the out-of-distribution images `spread` wide."""
    for shift, spread in ((0.5, 1.0), (2.0, 1.0), (3.0, 2.0), (4.52, 1.0), (3.5, 0.5)):
        auroc = float(stats.norm.cdf(shift / np.hypot(1, spread)))
        fpr95 = float(stats.norm.sf(stats.norm.ppf(0.05) + shift, scale=spread))
        for n_in, n_out in ((359, 200), (50, 50), (2000, 2000)):
            rng = np.random.default_rng(1)
            separations = [
                ood_detection(rng.normal(shift, 1, n_in), rng.normal(0, spread, n_out)) for _ in range(draws)
            ]
            yield row("auroc", f"{n_in} against {n_out}, truth {auroc:.2%}", [one.auroc for one in separations], auroc)
            yield row("fpr95", f"{n_in} against {n_out}, truth {fpr95:.2%}", [one.fpr95 for one in separations], fpr95)


def corruptions(draws: int) -> Iterator[Row]:
    """Mean accuracy over 70 conditions: an image's chance to be right is its own, and the same in all of them."""
    for n, a, b in ((143, 4.0, 2.0), (1000, 8.0, 1.0)):
        rng = np.random.default_rng(n)
        estimates = []
        for _ in range(draws):
            by_image = rng.binomial(70, rng.beta(a, b, size=n)) / 70
            estimates.append(Estimate(float(by_image.mean()), mean_accuracy_interval(by_image), n))
        yield row("corruption_accuracy", f"n {n}, truth {a / (a + b):.1%}", estimates, a / (a + b))


def few_shots(draws: int) -> Iterator[Row]:
    """Episodes of 20 classes of 60 images; over drawn ones the images are fixed, over disjoint ones they are not."""
    labels, settings = np.repeat(np.arange(20), 60), {"n_way": 5, "n_shot": 1, "n_query": 9}
    fixed = np.random.default_rng(0).random(1200) < 0.7
    closed, disjoint = [], []
    for seed in range(draws):
        drawn = draw_episodes(labels, **settings, n_episodes=100, seed=seed)
        closed.append(t_interval(fixed[drawn.query].mean(axis=1), (0.0, 1.0)))
        right = np.random.default_rng(1000 + seed).random(1200) < 0.7
        apart = disjoint_episodes(labels, **settings, seed=seed)
        disjoint.append(t_interval(right[apart.query].mean(axis=1), (0.0, 1.0)))
    yield row("fewshot_accuracy", "100 episodes of the same images", closed, float(fixed.mean()))
    yield row("disjoint_accuracy", f"{len(apart)} disjoint episodes, new images", disjoint, 0.7)


def seeds(draws: int) -> Iterator[Row]:
    """Means over seeds, and paired differences of seeds, of accuracies over 1,000 images."""
    rng = np.random.default_rng(0)
    for m in (3, 5):
        runs = rng.normal(0.7, 0.01, size=(10 * draws, m))
        yield row("mean over seeds", f"{m} seeds", [t_interval(one, (0.0, 1.0)) for one in runs], 0.7)
        others = runs + 0.01 + rng.normal(0, 0.01, size=runs.shape)
        pairs = [paired_comparison(a, b) for a, b in zip(runs, others, strict=True)]
        yield row("paired difference", f"{m} seeds", [Estimate(p.difference, p.ci95, p.n) for p in pairs], 0.01)


def same_images(draws: int) -> Iterator[Row]:
    """Differences of two accuracies over the same images, of which each model alone has a share right."""
    rng = np.random.default_rng(0)
    for n, gained, lost in (
        (30, 0.1, 0.05),
        (100, 0.02, 0.01),
        (100, 0.25, 0.25),
        (360, 0.05, 0.02),
        (1000, 0.01, 0.0),
    ):
        chance = rng.random((10 * draws, n))
        alone = [(one < lost, (one >= lost) & (one < lost + gained)) for one in chance]
        pairs = [paired_accuracies(a, b) for a, b in alone]
        estimates = [Estimate(p.difference, p.ci95, p.n) for p in pairs]
        yield row("paired difference", f"{n} images, {gained:.0%} and {lost:.0%} alone", estimates, gained - lost)


def vectors_of(n: int, classes: int, apart: float, rng: np.random.Generator) -> tuple[Floats, NDArray[np.integer]]:
    """Embeddings (n, 16) around class means that are `apart` from one another, of unequal variance."""
    means = np.random.default_rng(7).normal(size=(classes, 16)) * apart
    labels = rng.integers(0, classes, size=n)
    return ((means[labels] + rng.normal(size=(n, 16))) * np.arange(1, 17) ** -0.3 + 0.3).astype(np.float32), labels


def embeddings(draws: int) -> Iterator[Row]:
    """Every embedding metric that has an interval, and its difference between two models on the same images."""
    for n, classes, apart in ((300, 5, 0.6), (600, 10, 1.2)):
        rng = np.random.default_rng(n)
        results: dict[str, list[Estimate]] = {}
        for i in range(draws // 2):
            vectors, labels = vectors_of(n, classes, apart, rng)
            analysis = analyse_embeddings(vectors, labels, seed=i)
            for name, estimate in analysis.metrics.items():
                results.setdefault(name, []).append(estimate)
            if n > 300:
                continue
            blurred = vectors + rng.normal(size=vectors.shape).astype(np.float32) * 0.3
            changes = compare_embeddings(analysis, analyse_embeddings(blurred, labels, seed=i))
            for name, change in changes.items():
                results.setdefault(f"difference of {name}", []).append(Estimate(change.difference, change.ci95, n))
        for name, estimates in results.items():
            if estimates[0].ci95 is not None:
                yield row(name, f"n {n}, {classes} classes", estimates)


PARTS: dict[str, Callable[[int], Iterator[Row]]] = {
    "shares": shares,
    "calibration": calibrations,
    "losses": losses,
    "classes": class_averages,
    "ood": detections,
    "corruptions": corruptions,
    "fewshot": few_shots,
    "seeds": seeds,
    "same_images": same_images,
    "embedding": embeddings,
}


HEAD = """# Coverage of the intervals

Made by `python benchmarks/coverage.py`, which replaces the rows of the parts that it is asked for: of so many draws
whose truth is known, the share of 95 % intervals that cover it, and their mean width over that of a normal interval
with the true standard deviation. `printed` is the share of draws that have an interval at all. A metric without a row
here prints no interval (`tests/metrics/test_coverage.py`). Of 500 draws a coverage of 95 % is known to within 2
points, of 1,000 to within 1.4, of 10,000 to within 0.4.

| metric | setting | truth | draws | printed | coverage | width | made |
| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |
"""


def lines_of(rows: list[Row]) -> dict[tuple[str, str], str]:
    """The table's lines, by metric and setting."""
    return {
        (
            name,
            setting,
        ): f"| {name} | {setting} | {truth:.4g} | {draws} | {printed:.0%} | {100 * held:.1f} % | {width:.2f} "
        f"| {time.strftime('%Y-%m-%d')} |"
        for name, setting, truth, draws, printed, held, width in rows
    }


def kept_lines(everything: bool) -> dict[tuple[str, str], str]:
    """The lines of the table as it is; none where every part is made anew."""
    lines = [] if everything or not TABLE.is_file() else TABLE.read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith(("| metric", "| ---"))]
    return {(cells[0], cells[1]): line for line in rows for cells in [line.strip("| ").split(" | ")]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--only", default="", help=f"parts, by comma, of {', '.join(PARTS)}; the other rows stay")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lines = kept_lines(everything=not asked.only)
    for part in asked.only.split(",") if asked.only else PARTS:
        rows = []
        for one in PARTS[part](asked.draws):
            rows.append(one)
            print("{:40s} {:36s} {:9.4g} {:5d} {:4.0%} {:6.1%} {:5.2f}".format(*one), file=sys.stderr, flush=True)
        lines |= lines_of(rows)
        TABLE.write_text(HEAD + "\n".join(lines.values()) + "\n")


if __name__ == "__main__":
    main()
