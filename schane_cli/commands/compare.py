"""`schane compare`: runs grouped by what differs, paired by seed, compared by a paired test with its interval."""

import glob
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from schane_cli.errors import BadRequest, nearest
from schane_cli.metrics.intervals import (
    Estimate,
    PairedComparison,
    effect_size,
    holm_where_tested,
    paired_accuracies,
    paired_comparison,
    t_interval,
)
from schane_cli.metrics.registry import WILSON, Metric, find_metric
from schane_cli.metrics.registry import metric as registered
from schane_cli.run import RunFolder, plain
from schane_cli.spreadsheets import read_csv

# Keys that say where and how a run was computed, not what it computed.
INDIFFERENT = {
    "seed", "device", "data.root", "data.workers", "train.trackers", "train.chunk_size", "train.compile",
    "train.sharding", "train.keep_epochs", "train.checkpoint_activations",
}  # fmt: skip
# What the differences of one seed each are about; None: there are none.
ONE_SEED_NOTES = {
    "episodes": "One seed per group: the differences are paired by the saved episodes and are about these checkpoints "
    "only.",
    "images": "One seed per group: the differences are paired by test image (McNemar's exact test, Tango's interval) "
    "and are about these checkpoints only, not about training again: that takes several seeds (--seeds 0-4).",
    None: "one seed each: nothing says how sure the difference is; train several (--seeds 0-4)",
}
TRAIN_SET = ("data.dataset", "data.train_per_class", "data.train_on")


@dataclass(frozen=True)
class Run:
    """A finished run: its recipe by dotted key, its metrics by name, and the name of its group if a study gave one.

    `values` are as in summary.json, without the metrics' unit. `counts`: over how many images or
    episodes a metric is.
    """

    path: str
    recipe: Mapping[str, Any]
    values: Mapping[str, float]
    identity: Mapping[str, str]
    seed: int
    label: str | None = None
    counts: Mapping[str, tuple[int, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed."""

    label: str
    runs: Mapping[int, Run]

    def values(self, metric: str, seeds: Iterable[int]) -> list[float]:
        """A metric of the given seeds, in their order."""
        return [self.runs[seed].values[metric] for seed in seeds]

    def estimate(self, metric: str, seeds: Sequence[int]) -> Estimate:
        """Mean over seeds with its t-interval, kept to the metric's range; one seed has no interval."""
        return t_interval(self.values(metric, seeds), registered(metric).bounds)


@dataclass(frozen=True)
class Difference:
    """By how much a group differs from the baseline over the same seeds (or episodes, or images).

    `p_adjusted` is Holm's over the comparisons of the block; `effect_size` is the mean difference over the standard
    deviation of the differences, with Hedges' correction for few pairs (Hedges' g of paired values).
    """

    label: str
    baseline: str
    pair: PairedComparison
    unit: str
    effect_size: float
    p_adjusted: float | None
    sentence: str


@dataclass(frozen=True)
class Block:
    """The groups that trained on the same images, best first, and their differences from the baseline."""

    title: str
    metric: str
    seeds: tuple[int, ...]
    groups: tuple[Group, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    @property
    def meaning(self) -> Metric:
        """The metric's entry in the registry."""
        return registered(self.metric)

    @property
    def count(self) -> str | None:
        """`n = 10,000 images`: what the metric is over, in every run."""
        counted = self.groups[0].runs[self.seeds[0]].counts.get(self.metric)
        return f"n = {counted[0]:,} {counted[1]}" if counted else None

    def table(self) -> pd.DataFrame:
        """One row per group: every shared metric with its interval, the paired difference, the cost."""
        by_label = {difference.label: difference for difference in self.differences}
        return pd.DataFrame([self._row(group, by_label.get(group.label)) for group in self.groups])

    def _row(self, group: Group, difference: Difference | None) -> dict[str, Any]:
        row: dict[str, Any] = {"group": group.label, "n_seeds": len(self.seeds)}
        for name in shared_metrics(run for one in self.groups for run in one.runs.values()):
            estimate = group.estimate(name, self.seeds)
            low, high = estimate.ci95 or (None, None)
            row |= {name: estimate.value, f"{name}_low": low, f"{name}_high": high}
        if difference is not None:
            pair = difference.pair
            low, high = pair.ci95 or (None, None)
            row |= {
                "difference": pair.difference,
                "difference_low": low,
                "difference_high": high,
                "p_value": pair.p_value,
                "p_holm": difference.p_adjusted,
                "effect_size": difference.effect_size,
            }
        return row


def compare(
    paths: Sequence[str], *, metric: str | None, baseline: str | None, common_seeds: bool
) -> tuple[list[Block], list[str]]:
    """Compare the finished runs below `paths` (folders or globs); blocks by training set, and notes.

    `metric` None means test accuracy, or for few-shot runs the first accuracy that they share.

    Raises:
        BadRequest: no finished run, a metric that not all have, other test data, missing seeds, fewer than two groups.
    """
    runs, notes = find_runs(paths)
    try:
        return compare_runs(runs, metric=metric, baseline=baseline, common_seeds=common_seeds), notes
    except BadRequest as error:
        raise BadRequest("; ".join([str(error), *notes])) from None


def compare_runs(runs: Sequence[Run], *, metric: str | None, baseline: str | None, common_seeds: bool) -> list[Block]:
    """The same for runs that have been read."""
    if not runs:
        raise BadRequest("no finished run was found; a run has recipe.yaml and summary.json in its folder")
    metric = metric or _default_metric(runs)
    _refuse_metric(runs, metric)
    by_train = defaultdict(list)
    for run in runs:
        by_train[tuple(str(run.recipe.get(key)) for key in TRAIN_SET)].append(run)
    blocks = [
        _block(members, metric, baseline, common_seeds, _block_title(members, by_train))
        for members in by_train.values()
    ]
    if all(len(block.groups) < 2 for block in blocks):
        if len(blocks) > 1:
            titles = "; ".join(block.title for block in blocks)
            raise BadRequest(f"no two runs trained on the same images differ in anything but the seed ({titles})")
        if len(runs) == 1:
            raise BadRequest(f"{runs[0].path} is the only finished run: there is nothing to compare it with")
        raise BadRequest(f"all {len(runs)} runs have the same recipe but for the seed: there is nothing to compare")
    return blocks


def _default_metric(runs: Sequence[Run]) -> str:
    """Test accuracy, or for few-shot runs the first accuracy that they share, or whatever they share."""
    shared = [name for name in runs[0].values if all(name in run.values for run in runs)]
    reported = [name for name in shared if name == "test_accuracy" or "shot_" in name]
    return next(iter([*reported, *shared]), "")


def _refuse_metric(runs: Sequence[Run], metric: str) -> None:
    """BadRequest for a metric that is missing from a run, or is not a number in one."""
    for run in runs:
        if np.isnan(run.values.get(metric, 0.0)):
            raise BadRequest(f"{metric} of {run.path} is not a number, so it cannot be compared")
    known = shared_metrics(runs)
    if metric not in known:
        raise BadRequest(
            f"not every run has the metric {metric!r}{nearest(metric, known)}; all have {', '.join(known)}"
        )


def find_runs(paths: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Every finished run in the folders, below them, or matched by a glob; notes name the unfinished.

    A run whose `embed` folder holds what `schane embed` made of it has those metrics too.
    """
    folders: dict[Path, None] = {}
    for given in paths:
        matched = [Path(name) for name in sorted(glob.glob(given))]
        if not matched:
            raise BadRequest(f"nothing is at {given}")
        for place in matched:
            folders |= {run.path: None for run in RunFolder.below(place)}
    runs, unfinished = [], []
    for folder in folders:
        if not RunFolder(folder).finished:
            unfinished.append(RunFolder(folder))
            continue
        summary = RunFolder(folder).read_summary()
        # neither an embedding nor the parent of several seeds is a run to compare
        if "runs" not in summary and summary.get("command") != "embed":
            runs.append(_read_run(folder, summary))
    return runs, _left_out(unfinished)


def _left_out(unfinished: Sequence[RunFolder]) -> list[str]:
    """A note that names the unfinished runs (of several seeds, their common folder) and how each is finished."""
    paths = {run.path for run in unfinished}
    alone = [run for run in unfinished if run.path.parent not in paths]
    named = "; ".join(f"{run.path} ({run.way_on})" for run in alone[:3])
    more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
    return [f"not finished and left out: {named}{more}"] if alone else []


def _read_run(folder: Path, summary: Mapping[str, Any]) -> Run:
    files = RunFolder(folder)
    run = make_run(str(folder), files.read_settings(), summary)
    if not files.embedded.finished:
        return run
    embedded = files.embedded.read_summary()
    where = f"{embedded['dataset']} {embedded['split']} {embedded['layer']}, n={embedded['n']}"
    own = [one for one in embedded["checkpoints"] if folder.resolve() in Path(one["checkpoint"]).resolve().parents]
    values = {
        f"{where}: {name}": float(entry["value"])
        for one in own
        for name, entry in one["figures"].items()
        if entry["value"] is not None and find_metric(name)
    }
    return replace(run, values={**run.values, **values})


def make_run(path: str, recipe: Mapping[str, Any], summary: Mapping[str, Any], label: str | None = None) -> Run:
    """A run from its flat recipe and its summary."""
    values = {
        name: float("nan") if value is None else float(value)  # summary.json has null for NaN
        for name, value in summary.items()
        if isinstance(value, int | float | None) and (known := find_metric(name)) and known.kind != "rate"
    }
    splits = {"test"} if "results" in summary else {"test", "val"}  # few-shot's val accuracy may be over episodes
    split_of = {name: split for name in values if (split := name.split("_")[0]) in splits and f"{split}_n" in summary}
    counts = {name: (int(summary[f"{split}_n"]), "images") for name, split in split_of.items()}
    for result in summary.get("results", []):
        prefix = f"{result['checkpoint']}_" if len(summary["checkpoints"]) > 1 else ""
        name = f"{prefix}{result['shots']}shot_{result['classifier']}_accuracy"
        values[name], counts[name] = result["accuracy"], (int(result["accuracy_episodes"]), "episodes")
    identity = {name: value for name, value in summary.items() if name.endswith("_sha256") and isinstance(value, str)}
    identity |= {f"episodes_{shots}": value for shots, value in summary.get("episodes_sha256", {}).items()}
    seed = int(summary.get("seed", recipe.get("seed", 0)))
    recipe = {**recipe, "average": summary.get("average", "none")}  # of several checkpoints, by schane average
    return Run(path, recipe, values, identity, seed, label, counts=counts)


def shared_metrics(runs: Iterable[Run]) -> list[str]:
    """Names of the metrics that are a number in every run, in the first one's order; results before costs."""
    every = list(runs)
    names = [name for name in every[0].values if all(np.isfinite(run.values.get(name, np.nan)) for run in every)]
    return sorted(names, key=lambda name: registered(name).kind == "cost")


def blocks_as_json(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """The runs of each block, for a comparison that is made again without their folders."""
    return [
        {
            "title": block.title,
            "metric": block.metric,
            "baseline": block.differences[0].baseline if block.differences else None,
            "runs": [asdict(run) for group in block.groups for run in group.runs.values()],
        }
        for block in blocks
    ]


def read_blocks(content: Iterable[Mapping[str, Any]]) -> list[Block]:
    """The blocks that blocks_as_json wrote; only one by episodes or images reads the runs' folders again."""
    blocks = []
    for one in content:
        runs = [Run(**{**run, "values": _without_none(run["values"])}) for run in one["runs"]]
        blocks.append(_block(runs, one["metric"], one["baseline"], True, one["title"]))
    return blocks


def _without_none(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _block_title(members: Sequence[Run], by_train: Mapping[Any, Any]) -> str:
    recipe = members[0].recipe
    title = str(recipe["data.dataset"])
    if len(by_train) > 1 or recipe.get("data.train_per_class"):
        per_class = recipe.get("data.train_per_class")
        title += f", {per_class} images per class" if per_class else ", all images"
    return title


def _block(members: Sequence[Run], metric: str, baseline: str | None, common: bool, title: str) -> Block:
    _same_data(members, metric)
    groups = _groups(members)
    seeds, notes = _paired_seeds(groups, common)
    first = _baseline(groups, baseline)
    others = [group for group in groups if group is not first]
    differences = _differences(first, others, metric, seeds)
    if len(seeds) == 1 and others:
        notes.append(ONE_SEED_NOTES[differences[0].unit if differences else None])
    sign = -1 if registered(metric).direction == "lower" else 1
    ordered = sorted(groups, key=lambda group: -sign * float(np.mean(group.values(metric, seeds))))
    return Block(title, metric, tuple(seeds), tuple(ordered), tuple(differences), tuple(notes))


def _same_data(members: Sequence[Run], metric: str) -> None:
    """BadRequest where two runs were scored on other images (or episodes), or trained on others."""
    first = members[0]
    for name in sorted(set(first.identity).union(*(run.identity for run in members))):
        for run in members:
            if run.identity.get(name) != first.identity.get(name):
                what = "episodes" if name.startswith("episodes") else f"{name.removesuffix('_sha256')} images"
                raise BadRequest(
                    f"{run.path} and {first.path} have different {what}: their {metric} cannot be compared"
                )


def _groups(members: Sequence[Run]) -> list[Group]:
    keys = {key for run in members for key in run.recipe if key not in INDIFFERENT}
    differing = [
        key for key in members[0].recipe if key in keys and len({repr(run.recipe.get(key)) for run in members}) > 1
    ]
    runs_by_label: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in members:
        label = run.label or _group_label(run, differing)
        if run.seed in runs_by_label[label]:
            other = runs_by_label[label][run.seed]
            raise BadRequest(f"{other.path} and {run.path} are the same run: {label}, seed {run.seed}")
        runs_by_label[label][run.seed] = run
    return [Group(label, runs) for label, runs in runs_by_label.items()]


def _group_label(run: Run, differing: Sequence[str]) -> str:
    """`schane lr=0.002`: the loss by its name alone, other keys by their last part where that is clear."""
    last = [key.rsplit(".", 1)[-1] for key in differing]
    parts = []
    for key, short in zip(differing, last, strict=True):
        value = run.recipe.get(key)
        name = short if last.count(short) == 1 else key
        parts.append(str(value) if key == "loss.name" else f"{name}={value}")
    return " ".join(parts) or "all"


def _paired_seeds(groups: Sequence[Group], common: bool) -> tuple[list[int], list[str]]:
    """The seeds that every group has; BadRequest where some are missing, unless the common ones are asked for."""
    every = sorted(set().union(*(group.runs for group in groups)))
    shared = [seed for seed in every if all(seed in group.runs for group in groups)]
    missing_seeds = [f"{group.label} has no run of {[s for s in every if s not in group.runs]}" for group in groups]
    missing_seeds = [text for text, group in zip(missing_seeds, groups, strict=True) if len(group.runs) < len(every)]
    if not missing_seeds:
        return shared, []
    if not common:
        raise BadRequest(
            f"seeds are missing: {'; '.join(missing_seeds)}; --common-seeds compares the {len(shared)} common ones"
        )
    if not shared:
        raise BadRequest(f"no seed is common to all groups: {'; '.join(missing_seeds)}")
    return shared, [f"only the common seeds {shared}: {'; '.join(missing_seeds)}"]


def _baseline(groups: Sequence[Group], name: str | None) -> Group:
    """The group to compare with: the named one, else cross-entropy alone, else the first."""
    if name is None:
        plain_ce = [group for group in groups if next(iter(group.runs.values())).recipe.get("loss.name") == "ce"]
        return (plain_ce or list(groups))[0]
    labels = [group.label for group in groups]
    if name not in labels:
        raise BadRequest(f"no group is called {name!r}{nearest(name, labels)}; there are {', '.join(labels)}")
    return groups[labels.index(name)]


def _differences(first: Group, others: Sequence[Group], metric: str, seeds: Sequence[int]) -> list[Difference]:
    """Each group against the first: over seeds, or over episodes or test images where each is one run."""
    if len(seeds) > 1:
        before = first.values(metric, seeds)
        step = _resolution(first.runs[seeds[0]], metric)
        pairs, unit = [paired_comparison(before, group.values(metric, seeds), step) for group in others], "seeds"
        changes = [np.subtract(group.values(metric, seeds), before) for group in others]
    elif metric.endswith("_accuracy") and "shot_" in metric:
        scores = {group.label: _episode_accuracies(group.runs[seeds[0]], metric) for group in [first, *others]}
        pairs = [paired_comparison(scores[first.label], scores[group.label]) for group in others]
        unit = "episodes"
        changes = [scores[group.label] - scores[first.label] for group in others]
    elif right := _right_by_image([group.runs[seeds[0]] for group in [first, *others]], metric):
        pairs, unit = [paired_accuracies(right[0], one) for one in right[1:]], "images"
        changes = [one.astype(float) - right[0] for one in right[1:]]
    else:
        return []
    adjusted = holm_where_tested([pair.p_value for pair in pairs])
    return [
        Difference(
            group.label,
            first.label,
            pair,
            unit,
            effect_size(change),
            p,
            sentence(group.label, first.label, registered(metric), pair, unit, p, len(pairs)),
        )
        for group, pair, change, p in zip(others, pairs, changes, adjusted, strict=True)
    ]


def _episode_accuracies(run: Run, metric: str) -> np.ndarray:
    """Accuracy of each saved episode of a few-shot run, in order."""
    shots, classifier = metric.removesuffix("_accuracy").split("shot_", 1)
    frame = pd.read_parquet(
        RunFolder(Path(run.path)).episodes_table, columns=["shots", "classifier", "episode", "accuracy"]
    )
    chosen = frame[(frame["shots"] == int(shots)) & (frame["classifier"] == classifier)]
    return chosen.sort_values("episode")["accuracy"].to_numpy()


def _right_by_image(runs: Sequence[Run], metric: str) -> list[np.ndarray]:
    """Which test images each run has right, in one order; empty where the runs' tables do not show their accuracy."""
    files = [RunFolder(Path(run.path)).predictions_table for run in runs]
    if metric != "test_accuracy" or not all(file.is_file() for file in files):
        return []
    try:
        tables = [read_csv(file, usecols=["id", "label", "prediction"], dtype=str) for file in files]
    except BadRequest:  # edited, or of another program
        return []
    right = [(table["label"] == table["prediction"]).to_numpy() for table in tables]
    same_images = all(table[["id", "label"]].equals(tables[0][["id", "label"]]) for table in tables)
    complete = all(np.isclose(one.mean(), run.values[metric]) for one, run in zip(right, runs, strict=True) if len(one))
    return right if same_images and complete and len(right[0]) else []


def _resolution(run: Run, metric: str) -> float:
    """The resolution of a run's metric: 1 / n for a share of n images, 0 for what has no steps."""
    counted = run.counts.get(metric)
    return 1 / counted[0] if counted and counted[0] and registered(metric).interval == WILSON else 0.0


def sentence(
    label: str,
    baseline: str,
    metric: Metric,
    pair: PairedComparison,
    unit: str,
    p_adjusted: float | None,
    comparisons: int,
) -> str:
    """`schane is better than ce: +1.20 points of test top-1 accuracy (95 % interval ...)`, or that neither is.

    `p_adjusted` is Holm's over so many `comparisons`, and a verdict needs it below 0.05: one of many comparisons looks
    like a difference by chance.
    """
    change = f"{metric.change_text(pair.difference)} of {metric.label}"
    if p_adjusted is None:
        return f"{label} and {baseline} cannot be distinguished: {change}, paired over {pair.n} {unit}: {pair.reason}"
    how = f"95 % interval {metric.change_interval(pair.ci95)}, paired over {pair.n} {unit}, p = {p_adjusted:.2g}"
    how += f" by Holm over {comparisons} comparisons" if comparisons > 1 else ""
    if p_adjusted >= 0.05:
        return f"{label} and {baseline} cannot be distinguished: {change} ({how})"
    return f"{label} is {metric.better(pair.difference)} than {baseline}: {change} ({how})"


def as_json(blocks: Sequence[Block], notes: Sequence[str]) -> dict[str, Any]:
    """What summary.json and `--json` say."""
    return plain(
        {
            "command": "compare",
            "notes": list(notes),
            "blocks": [
                {
                    "title": block.title,
                    "metric": block.metric,
                    "seeds": list(block.seeds),
                    "count": block.count,
                    "groups": block.table().to_dict("records"),
                    "sentences": [difference.sentence for difference in block.differences],
                    "notes": list(block.notes),
                }
                for block in blocks
            ],
        }
    )
