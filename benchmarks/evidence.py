"""The evidence: settings chosen on val, the runs kept as lines, every table and the picture made again from the lines.

    python benchmarks/evidence.py collect OUT    # OUT/STUDY/runs to results/evidence/runs/STUDY.jsonl
    python benchmarks/evidence.py choose food    # studies/food.yaml from what studies/food-search.yaml left
    python benchmarks/evidence.py controls food  # studies/food-controls.yaml: the chosen objective, taken apart
    python benchmarks/evidence.py tables         # results/evidence/tables.md and differences.png

A line holds a run's recipe and summary, so that nothing else is needed to make the tables: `schane compare`'s own
functions group and pair the runs, the registry of metrics prints them. The rules are those of the design in
results/evidence/README.md, which was written before the runs.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from schane_cli.commands.compare import Run, make_run
from schane_cli.metrics.intervals import holm, paired_comparison, t_interval
from schane_cli.metrics.registry import Metric, metric
from schane_cli.reports import plots
from schane_cli.run import RunFolder

EVIDENCE = Path(__file__).parents[1] / "results" / "evidence"
PLANNED = ("cifar100-10-sound", "cifar100-50-sound", "food", "textures", "monkeys", "cifarfs", "fc100")
LOSSES = ("ce", "supcon", "easy", "schane")
QUESTIONS = {"full objective minus cross-entropy": ("ce", "schane"), "hardness 1 minus hardness 0": ("easy", "schane")}
SECONDARY = ("test_accuracy", "test_macro_f1", "test_nll", "test_brier", "test_ece", "test_ece_debiased")
OF_THE_MACHINE = ("run", "device", "peak_memory_bytes", "energy_joules")  # no part of a summary that is kept


def collect(out: Path) -> None:
    """Keep every finished run below OUT/STUDY/runs as a line of results/evidence/runs/STUDY.jsonl."""
    for folder in sorted(path for path in out.iterdir() if (path / "runs").is_dir()):
        runs = [run for run in RunFolder.below(folder / "runs") if run.finished]
        lines = [_line(run, folder / "runs") for run in runs]
        target = EVIDENCE / "runs" / f"{folder.name}.jsonl"
        target.parent.mkdir(exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        target.write_text(text.replace(f"{out.resolve()}/", ""))  # where the runs lie is nobody's business
        print(f"{target.name}: {len(lines)} runs")


def _line(run: RunFolder, parent: Path) -> dict[str, Any]:
    summary = {name: value for name, value in run.read_summary().items() if name not in OF_THE_MACHINE}
    recipe = {name: value for name, value in run.read_settings().items() if name not in ("data.root", "model.weights")}
    chosen = next((one for one in run.read_events("epoch") if one["epoch"] == summary.get("best_epoch")), {})
    summary |= {name: chosen[name] for name in ("val_nll",) if name in chosen}
    return {"arm": run.path.relative_to(parent).parts[0], "recipe": recipe, "summary": summary}


@cache
def read_runs(study: str) -> list[Run]:
    """The runs that are kept of a study; none where it has not been run."""
    path = EVIDENCE / "runs" / f"{study}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [make_run(one["arm"], one["recipe"], one["summary"], one["recipe"]["loss.name"]) for one in lines]


@dataclass(frozen=True)
class Trial:
    """A setting of the search: the loss, its own value (lambda, or label smoothing), the rate; on val, over seeds."""

    loss: str
    value: float
    lr: float
    accuracy: float
    nll: float

    @property
    def rank(self) -> tuple[float, float]:
        """Higher is better: accuracy on val, then the lower NLL."""
        return self.accuracy, -self.nll


def read_trials(name: str) -> list[Trial]:
    """Every trial of NAME-search and its widenings NAME-search-2 and so on."""
    files = sorted((EVIDENCE / "runs").glob(f"{name}-search*.jsonl"))
    settings: dict[tuple[str, float, float], list[Run]] = {}
    for run in (run for file in files for run in read_runs(file.stem)):
        loss = run.recipe["loss.name"]
        own = run.recipe["loss.label_smoothing" if loss == "ce" else "loss.contrastive_weight"]
        settings.setdefault((loss, own, run.recipe["train.lr"]), []).append(run)
    return [
        Trial(*setting, mean_value(runs, "val_accuracy"), mean_value(runs, "val_nll"))
        for setting, runs in settings.items()
    ]


def mean_value(runs: Sequence[Run], name: str) -> float:
    """A metric's mean over runs, rounded so that equal counts tie; 0 where one of them does not have it."""
    return round(float(np.mean([run.values.get(name, 0.0) for run in runs])), 12)


def best_trials(trials: Iterable[Trial]) -> dict[str, Trial]:
    """The best trial of each loss."""
    every = list(trials)
    return {loss: max((t for t in every if t.loss == loss), key=lambda t: t.rank) for loss in LOSSES}


def choose(name: str) -> None:
    """Write studies/NAME.yaml with each loss's best setting, or where that lies at the grid's edge the wider grid."""
    trials = read_trials(name)
    best = best_trials(trials)
    for trial in best.values():
        print(trial)
    title, study = read_search(name)
    if write_wider_search(name, {trial.lr for trial in trials}, {trial.lr for trial in best.values()}):
        return
    del study["grid"]
    arms = {loss: _arm(trial) for loss, trial in best.items()}
    final = {"arms": {loss: arms[loss] for loss in LOSSES if loss != "supcon"}, "seeds": list(range(10))}
    secondary = {"arms": {"supcon": arms["supcon"]}, "seeds": list(range(5))}
    title += ": each loss at what is best for it on val"
    for suffix, own in (("", final), ("-supcon", secondary)):
        write_study(f"{name}{suffix}", title, study | own | {"metric": "test_accuracy"})


def controls(name: str) -> None:
    """Write studies/NAME-controls.yaml: what is left of the chosen objective without one of its parts, at its own rate.

    Needs the losses of results/evidence/controls. Every arm forwards as many images; with one view these are twice as
    many different ones, over twice as many epochs.
    """
    study = yaml.safe_load((EVIDENCE / "studies" / f"{name}.yaml").read_text())
    chosen, settings = study["arms"]["schane"], study["set"]
    one_view = {
        "augment.views": 1,
        "train.batch_size": 2 * settings["train.batch_size"],
        "train.epochs": 2 * settings["train.epochs"],
    }
    without = {key: value for key, value in chosen.items() if key != "loss.contrastive_weight"}
    arms = {
        "schane": chosen,
        "ce": without | {"loss.name": "ce"},
        "ce at its weight in the sum": chosen | {"loss.name": "nothing"},
        "hardness 0": chosen | {"loss.name": "easy"},
        "weights dealt at random": chosen | {"loss.name": "shuffled"},
        "weights as constants": chosen | {"loss.stop_gradient": True},
        "supcon": chosen | {"loss.name": "supcon"},
        "no projection head": chosen | {"model.projection_dim": 0},
        "one view": chosen | one_view,
        "ce, one view": without | {"loss.name": "ce"} | one_view,
    }
    title = f"{read_search(name)[0]}: the objective taken apart, at the settings that val chose for it"
    final = study | {"arms": arms, "baseline": "schane", "seeds": list(range(5)), "metric": "test_accuracy"}
    write_study(f"{name}-controls", title, final)


def _arm(trial: Trial) -> dict[str, Any]:
    own = "loss.label_smoothing" if trial.loss == "ce" else "loss.contrastive_weight"
    return {"loss.name": trial.loss, own: trial.value, "train.lr": trial.lr}


def read_search(name: str) -> tuple[str, dict[str, Any]]:
    """The first words of NAME-search.yaml, which say what the data are, and its content."""
    text = (EVIDENCE / "studies" / f"{name}-search.yaml").read_text()
    return text.splitlines()[0].split(":")[0], yaml.safe_load(text)


def write_wider_search(name: str, rates: set[float], best: set[float]) -> bool:
    """Where one of the best rates lies at the edge of those tried: the study of one step beyond it, and True."""
    edges = ((min(rates), min(rates) / 2), (max(rates), max(rates) * 2))
    wider = [rate for edge, rate in edges if edge in best]
    if wider:
        title, study = read_search(name)
        times = len(list((EVIDENCE / "runs").glob(f"{name}-search*.jsonl")))
        study["grid"] = {"train.lr": wider}
        write_study(f"{name}-search-{times + 1}", f"{title}: the grid of rates, wider", study)
    return bool(wider)


def write_study(name: str, title: str, study: dict[str, Any]) -> None:
    """Write studies/NAME.yaml, which says the script that chose it."""
    target = EVIDENCE / "studies" / f"{name}.yaml"
    body = yaml.safe_dump(study, sort_keys=False, default_flow_style=None)
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    target.write_text(f"{title}\n# Written by: python benchmarks/{command}\n{body}")
    print(target)


def by_seed(runs: Iterable[Run], loss: str, name: str) -> dict[int, float]:
    """A metric of each seed's run of a loss."""
    return {run.seed: run.values[name] for run in runs if run.label == loss and name in run.values}


@dataclass(frozen=True)
class Paired:
    """A metric's difference over paired seeds: its mean with the 95 % interval, p, and each seed's own."""

    mean: float
    ci95: tuple[float, float]
    p_value: float
    differences: np.ndarray

    @property
    def detectable(self) -> float:
        """The difference that so many pairs with this spread find four times out of five (two-sided, 5 %)."""
        n = len(self.differences)
        quantiles = stats.t.ppf(0.975, n - 1) + stats.t.ppf(0.8, n - 1)
        return float(quantiles * np.std(self.differences, ddof=1) / math.sqrt(n))


def paired(runs: Sequence[Run], losses: tuple[str, str], name: str) -> Paired | None:
    """The second loss minus the first over the seeds that both have; None where these are too few or all alike."""
    before, after = (by_seed(runs, loss, name) for loss in losses)
    seeds = sorted(before.keys() & after.keys())
    if len(seeds) < 3:
        return None
    first, second = ([values[seed] for seed in seeds] for values in (before, after))
    pair = paired_comparison(first, second)
    if pair.ci95 is None or pair.p_value is None:
        return None
    return Paired(pair.difference, pair.ci95, pair.p_value, np.subtract(second, first))


def data_sets() -> list[str]:
    """The planned data sets that have final runs."""
    return [name for name in PLANNED if read_runs(name)]


def all_runs(name: str) -> list[Run]:
    """The final runs of a data set: those of the primary comparisons and SupCon's."""
    return [*read_runs(name), *read_runs(f"{name}-supcon")]


def accuracy_table(names: Sequence[str]) -> list[str]:
    """Mean test accuracy of each loss on each data set with its interval over seeds."""
    rows = ["| data | test images | " + " | ".join(LOSSES) + " |", "| --- | ---: |" + " ---: |" * len(LOSSES)]
    accuracy = metric("test_accuracy")
    for name in names:
        runs, cells = all_runs(name), []
        for loss in LOSSES:
            values = list(by_seed(runs, loss, "test_accuracy").values())
            if not values:
                cells.append("not run")
                continue
            mean = t_interval(values, accuracy.bounds)
            half = f"± {100 * (mean.ci95[1] - mean.value):.2f} " if mean.ci95 else ""
            cells.append(f"{accuracy.text(mean.value)} {half}({mean.n})")
        n = runs[0].counts["test_accuracy"][0]
        rows.append(f"| {name} | {n:,} | " + " | ".join(cells) + " |")
    return rows


def question_table(question: str, names: Sequence[str]) -> list[str]:
    """One primary comparison on every data set, Holm over the data sets, and the sign test over them."""
    accuracy, losses = metric("test_accuracy"), QUESTIONS[question]
    pairs = {name: pair for name in names if (pair := paired(all_runs(name), losses, "test_accuracy"))}
    adjusted = dict(zip(pairs, holm([pair.p_value for pair in pairs.values()]), strict=True))
    rows = [
        f"### {question[0].upper()}{question[1:]}",
        "",
        "| data | difference (95 %) | p (Holm) | seeds ahead | smallest effect it could see |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, pair in pairs.items():
        change = f"{accuracy.change_text(pair.mean)} ({accuracy.change_interval(pair.ci95)})"
        ahead = f"{int((pair.differences > 0).sum())} of {len(pair.differences)}"
        seen = accuracy.change_text(pair.detectable).lstrip("+")
        rows.append(f"| {name} | {change} | {adjusted[name]:.2g} | {ahead} | {seen} |")
    positive = sum(pair.mean > 0 for pair in pairs.values())
    sign = stats.binomtest(positive, len(pairs)).pvalue
    better = sum(adjusted[name] < 0.05 and pair.mean > 0 for name, pair in pairs.items())
    worse = sum(adjusted[name] < 0.05 and pair.mean < 0 for name, pair in pairs.items())
    missing = [name for name in PLANNED if name not in pairs]
    verdict = f"is **{'met' if better * 2 >= len(pairs) and not worse else 'not met'}**"
    if missing:
        verdict = f"**cannot be applied** before the rest has been run ({', '.join(missing)})"
    rows += [
        "",
        f"Ahead on {positive} of {len(pairs)} data sets (sign test, p = {sign:.2g}); significantly better on {better}, "
        f"significantly worse on {worse}. The rule set before the runs {verdict}.",
        "",
    ]
    return rows


def secondary_table(losses: tuple[str, str], names: Sequence[str]) -> list[str]:
    """What else differs: calibration, likelihood, macro-F1; each p-value of one comparison, not corrected."""
    shown = [metric(name) for name in SECONDARY]
    rows = ["| data | " + " | ".join(one.heading for one in shown) + " |", "| --- |" + " ---: |" * len(shown)]
    for name in names:
        runs, cells = all_runs(name), []
        for one in shown:
            pair = paired(runs, losses, one.name)
            cells.append("" if pair is None else f"{one.change_text(pair.mean)}, p = {pair.p_value:.2g}")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return rows


def rates_table(name: str) -> list[str]:
    """The unplanned control: both losses at each learning rate, over the seeds that all have."""
    runs, accuracy = [*read_runs(name), *read_runs(f"{name}-rates")], metric("test_accuracy")
    runs = [run for run in runs if run.seed < 5]
    rows = ["| learning rate | ce | schane | difference (95 %) |", "| --- | ---: | ---: | ---: |"]
    for lr in sorted({run.recipe["train.lr"] for run in runs}):
        at = [run for run in runs if run.recipe["train.lr"] == lr]
        means = [list(by_seed(at, loss, "test_accuracy").values()) for loss in ("ce", "schane")]
        pair = paired(at, ("ce", "schane"), "test_accuracy")
        cells = [accuracy.text(float(np.mean(values))) if values else "not run" for values in means]
        change = f"{accuracy.change_text(pair.mean)} ({accuracy.change_interval(pair.ci95)})" if pair else ""
        rows.append(f"| {lr:g} | {cells[0]} | {cells[1]} | {change} |")
    return [f"### {name}, seeds 0 to 4", "", *rows, ""]


def arms_table(name: str) -> list[str]:
    """Every arm of a study over the seeds, and what it gains over `ce`; then what `schane` adds to each remedy."""
    runs = [replace(run, label=run.path) for run in read_runs(name)]  # the arm's name
    shown = [metric("test_balanced_accuracy"), metric("test_macro_f1")]
    arms = [str(arm) for arm in dict.fromkeys(run.label for run in runs)]
    rows = ["| arm | seeds | " + " | ".join(f"{one.heading} | over `ce`" for one in shown) + " | p (Holm) |"]
    rows.append("| --- | ---: |" + " ---: | ---: |" * len(shown) + " ---: |")
    gains = _gains(runs, {arm: ("ce", arm) for arm in arms if arm != "ce"})
    for arm in arms:
        own, cells = [run for run in runs if run.label == arm], []
        for one in shown:
            pair = paired(runs, ("ce", arm), one.name)
            cells.append(_over_seeds([run.values[one.name] for run in own], one))
            cells.append(f"{one.change_text(pair.mean)} ({one.change_interval(pair.ci95)})" if pair else "")
        p = gains[arm][1] if arm in gains else None
        rows.append(f"| {arm} | {len(own)} | {' | '.join(cells)} | {'' if p is None else f'{p:.2g}'} |")
    rows += ["", "| remedy | `schane` minus `ce`, balanced accuracy | p (Holm) |", "| --- | ---: | ---: |"]
    twins = {arm: (arm, "schane" + arm.removeprefix("ce")) for arm in arms if "schane" + arm.removeprefix("ce") in arms}
    for arm, (pair, p) in _gains(runs, {arm: pair for arm, pair in twins.items() if arm.startswith("ce")}).items():
        change = f"{shown[0].change_text(pair.mean)} ({shown[0].change_interval(pair.ci95)})"
        rows.append(f"| {arm.removeprefix('ce').lstrip('-') or 'none'} | {change} | {p:.2g} |")
    return [*rows, ""]


def controls_table(name: str) -> list[str]:
    """Test accuracy of every arm of NAME-controls, and what it differs by from the whole objective."""
    runs = [replace(run, label=run.path) for run in read_runs(f"{name}-controls")]
    accuracy, arms = metric("test_accuracy"), [str(arm) for arm in dict.fromkeys(run.label for run in runs)]
    gains = _gains(runs, {arm: ("schane", arm) for arm in arms}, "test_accuracy")
    rows = [f"### {name}", "", "| arm | seeds | test accuracy | minus the objective (95 %) | p (Holm) |"]
    rows.append("| --- | ---: | ---: | ---: | ---: |")
    for arm in arms:
        values = [run.values["test_accuracy"] for run in runs if run.label == arm]
        change = " | "
        if arm in gains:
            pair, p = gains[arm]
            change = f"{accuracy.change_text(pair.mean)} ({accuracy.change_interval(pair.ci95)}) | {p:.2g}"
        rows.append(f"| {arm} | {len(values)} | {_over_seeds(values, accuracy)} | {change} |")
    return [*rows, ""]


def _gains(
    runs: Sequence[Run], comparisons: dict[str, tuple[str, str]], name: str = "test_balanced_accuracy"
) -> dict[str, tuple[Paired, float]]:
    """The difference in a metric of each pair of arms that can be tested, and Holm's p over them."""
    pairs = {key: pair for key, arms in comparisons.items() if (pair := paired(runs, arms, name))}
    adjusted = holm([pair.p_value for pair in pairs.values()])
    return {key: (pair, p) for (key, pair), p in zip(pairs.items(), adjusted, strict=True)}


def _over_seeds(values: Sequence[float], one: Metric) -> str:
    """The mean with half its interval, or where that would say nothing the values themselves."""
    mean = t_interval(values, one.bounds)
    if mean.ci95 is None or len(values) < 3:
        return ", ".join(map(one.text, values))
    return f"{one.text(mean.value)} ± {100 * (mean.ci95[1] - mean.value):.2f}"


def search_table(name: str) -> list[str]:
    """Accuracy on val of every trial, the chosen one of each loss in bold."""
    trials, accuracy = read_trials(name), metric("val_accuracy")
    rates, best = sorted({trial.lr for trial in trials}), best_trials(trials)
    rows = [f"### {name}", "", "| loss | " + " | ".join(f"lr {lr:g}" for lr in rates) + " |"]
    rows.append("| --- |" + " ---: |" * len(rates))
    for loss, value in dict.fromkeys((trial.loss, trial.value) for trial in trials):
        own = "label smoothing" if loss == "ce" else "lambda"
        cells = []
        for lr in rates:
            at = [trial for trial in trials if (trial.loss, trial.value, trial.lr) == (loss, value, lr)]
            text = accuracy.text(at[0].accuracy) if at else ""
            cells.append(f"**{text}**" if at and at[0] == best[loss] else text)
        rows.append(f"| {loss}, {own} {value:g} | " + " | ".join(cells) + " |")
    return [*rows, ""]


def tables() -> None:
    """Write results/evidence/tables.md and differences.png."""
    names = data_sets()
    text = ["# Tables of the evidence", "", "Made by `python benchmarks/evidence.py tables`; not edited by hand.", ""]
    text += ["## Test accuracy", "", "Mean ± half of the 95 % interval over seeds (number of seeds).", ""]
    text += [*accuracy_table(names), "", "## The two questions", ""]
    for question in QUESTIONS:
        text += question_table(question, names)
    for question, losses in QUESTIONS.items():
        text += [f"## What else: {question}", "", "Each p stands for one comparison and is not corrected.", ""]
        text += [*secondary_table(losses, names), ""]
    controlled = [name for name in names if read_runs(f"{name}-rates")]
    if controlled:
        text += ["## Both losses at each learning rate (a control that was not planned)", ""]
    for name in controlled:
        text += rates_table(name)
    taken_apart = [name for name in names if read_runs(f"{name}-controls")]
    if taken_apart:
        text += ["## The objective taken apart", ""]
    for name in taken_apart:
        text += controls_table(name)
    for name in sorted(path.stem for path in (EVIDENCE / "runs").glob("*-tail*.jsonl") if "search" not in path.stem):
        n = read_runs(name)[0].counts["test_accuracy"][0]
        text += [
            f"## {name}",
            "",
            f"Test is balanced, {n:,} images; means with half of their 95 % intervals over seeds; p is of balanced "
            "accuracy, Holm's over the rows of a table.",
            "",
        ]
        text += arms_table(name)
    text += ["## Chosen on val", "", "Means over the seeds of the search; the best trial of each loss is bold.", ""]
    for name in names:
        text += search_table(name)
    (EVIDENCE / "tables.md").write_text("\n".join(text))
    plots.save(picture(names), EVIDENCE / "differences.png")
    print(EVIDENCE / "tables.md")


def picture(names: Sequence[str]) -> Any:
    """Both primary differences on every data set with their intervals."""
    figure = plots.Figure(figsize=(7.2, 1.1 + 0.7 * len(names)), layout="constrained")
    axes = figure.subplots()
    for offset, color, (question, losses) in zip((0.14, -0.14), ("#1f5fa8", "#c7651b"), QUESTIONS.items(), strict=True):
        for row, name in enumerate(reversed(names)):
            pair = paired(all_runs(name), losses, "test_accuracy")
            if pair is None:
                continue
            low, high = (100 * end for end in pair.ci95)
            label = question if row == 0 else None
            axes.plot([low, high], [row + offset] * 2, color=color, lw=1.6)
            axes.plot(100 * pair.mean, row + offset, "o", color=color, ms=5, label=label)
    axes.axvline(0, color="0.6", lw=0.8, zorder=0)
    axes.set_yticks(range(len(names)), [_tick(name) for name in reversed(names)])
    axes.set_ylim(-0.5, len(names) - 0.5)
    axes.set_xlabel("difference in test accuracy, points (95 % interval over paired seeds)")
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def _tick(name: str) -> str:
    runs = read_runs(name)
    seeds, n = len({run.seed for run in runs}), runs[0].counts["test_accuracy"][0]
    return f"{name}\n{seeds} seeds, n = {n:,}"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("collect").add_argument("out", type=Path)
    for command in ("choose", "controls"):
        commands.add_parser(command).add_argument("name")
    commands.add_parser("tables")
    arguments = parser.parse_args()
    if arguments.command == "collect":
        collect(arguments.out)
    elif arguments.command == "choose":
        choose(arguments.name)
    elif arguments.command == "controls":
        controls(arguments.name)
    else:
        tables()


if __name__ == "__main__":
    main()
