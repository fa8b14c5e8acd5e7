"""Does the objective's gain survive strong views and averaged weights? One table, on val and then on test.

    schane study results/evidence/studies/strong-views-food-search.yaml --out OUT/strong-views-food-search --init FILE
    python benchmarks/evidence.py collect OUT
    python benchmarks/strong_views.py choose food        # studies/strong-views-food.yaml: each arm's rate, by val
    schane study results/evidence/studies/strong-views-food.yaml --out OUT/strong-views-food --init FILE
    python benchmarks/strong_views.py average OUT food   # `schane average` of the epochs that each run kept
    python benchmarks/evidence.py collect OUT
    python benchmarks/strong_views.py table              # results/evidence/strong-views.md

The design stands at the head of the study files, which were written before the runs.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from evidence import EVIDENCE, mean_value, paired, read_runs, read_search, write_study, write_wider_search

from schane_cli.commands.average import average
from schane_cli.commands.compare import Run
from schane_cli.metrics.intervals import holm, t_interval
from schane_cli.metrics.registry import metric
from schane_cli.run import RunFolder
from schane_cli.terminal import Terminal

DATA_SETS = ("food", "textures")
VIEWS = ("light", "strong")
KEPT_EPOCHS = 5
HEAD = """# Light and strong views, single and averaged weights

Made by `python benchmarks/strong_views.py table`; not edited by hand. MobileNetV2 0.35, photographs at 64 px, 10
epochs, two views per image for every arm, five seeds. The strong views are RandAugment (rand-m9-mstd0.5-inc1) and
random erasing (0.25), as BEiT-3's fine-tuning has them; the light ones crop, flip, colour and grey. `averaged` is
`schane average RUN` over the last five epochs of each run, chosen on val. Learning rates were searched on val,
over two other seeds. Means with half of their 95 % intervals over seeds; the differences are paired by seed, and p
is Holm's over all of them.
"""


def arms_of(study: str) -> dict[str, list[Run]]:
    """The kept runs of a study by their arm."""
    arms: dict[str, list[Run]] = {}
    for run in read_runs(study):
        arms.setdefault(run.path, []).append(run)
    return arms


def searched(name: str) -> dict[str, dict[float, float]]:
    """Mean accuracy on val of every arm at every learning rate."""
    means: dict[str, dict[float, float]] = {}
    for file in sorted((EVIDENCE / "runs").glob(f"strong-views-{name}-search*.jsonl")):
        for folder, runs in arms_of(file.stem).items():
            rates = means.setdefault(folder.split("-lr=")[0].replace("-", " "), {})
            rates[runs[0].recipe["train.lr"]] = mean_value(runs, "val_accuracy")
    return means


def choose(name: str) -> None:
    """Write the study of each arm at its rate, or the wider search where a rate lies at the grid's edge."""
    (title, study), means = read_search(f"strong-views-{name}"), searched(name)
    best = {arm: max(sorted(rates), key=rates.get) for arm, rates in means.items()}
    for arm, rates in means.items():
        print(arm, best[arm], {rate: f"{value:.2%}" for rate, value in sorted(rates.items())})
    tried = {rate for rates in means.values() for rate in rates}
    if write_wider_search(f"strong-views-{name}", tried, set(best.values())):
        return
    del study["grid"]
    study["arms"] = {arm: {**study["arms"][arm], "train.lr": best[arm]} for arm in study["arms"]}
    study["set"]["train.keep_epochs"] = KEPT_EPOCHS
    study |= {"seeds": list(range(5)), "metric": "test_accuracy", "baseline": "ce light"}
    write_study(f"strong-views-{name}", f"{title}: each arm at its rate", study)


def average_all(out: Path, name: str) -> None:
    """The average of the epochs that each finished run kept, beside the study's runs."""
    folder = out / f"strong-views-{name}" / "runs"
    for run in RunFolder.below(folder):
        target = out / f"strong-views-{name}-averaged" / "runs" / run.path.relative_to(folder)
        if run.finished and not RunFolder(target).finished:
            summary = average([run.path], soup="best", overrides={}, out=target, terminal=Terminal(json=True))
            print(target, f"{summary['val_accuracy']:.2%}")


def columns(name: str) -> dict[str, list[Run]]:
    """`ce light`, `schane light averaged` and so on: their runs."""
    sets = {"": f"strong-views-{name}", " averaged": f"strong-views-{name}-averaged"}
    return {
        f"{folder.replace('-', ' ')}{suffix}": runs
        for suffix, study in sets.items()
        for folder, runs in arms_of(study).items()
    }


def accuracies(name: str) -> list[str]:
    """Accuracy of every arm on val and on test."""
    by_arm = columns(name)
    n = next(iter(by_arm.values()))[0].counts["test_accuracy"][0]
    rows = [
        f"## {name}, n = {n} test images",
        "",
        "| arm | learning rate | val | test |",
        "| --- | ---: | ---: | ---: |",
    ]
    for arm, runs in sorted(by_arm.items(), key=lambda item: (item[0].endswith("averaged"), item[0])):
        cells = []
        for which in ("val_accuracy", "test_accuracy"):
            mean = t_interval([run.values[which] for run in runs], metric(which).bounds)
            half = f" ± {100 * (mean.ci95[1] - mean.value):.2f}" if mean.ci95 else ""
            cells.append(f"{metric(which).text(mean.value)}{half}")
        rows.append(f"| {arm} | {runs[0].recipe['train.lr']:g} | {cells[0]} | {cells[1]} |")
    return [*rows, ""]


def differences(names: Sequence[str]) -> list[str]:
    """The full objective minus cross-entropy with each kind of views and weights."""
    accuracy, pairs = metric("test_accuracy"), {}
    for name in names:
        by_arm = columns(name)
        for views in VIEWS:
            for suffix in ("", " averaged"):
                runs = [*by_arm.get(f"ce {views}{suffix}", []), *by_arm.get(f"schane {views}{suffix}", [])]
                pair = paired(runs, ("ce", "schane"), "test_accuracy")
                if pair is not None:
                    pairs[name, f"{views}{suffix}"] = pair
    adjusted = holm([pair.p_value for pair in pairs.values()])
    rows = ["## The full objective minus cross-entropy, on test", ""]
    rows += ["| data | views | difference (95 %) | p (Holm) |", "| --- | --- | ---: | ---: |"]
    for (name, kind), p_value in zip(pairs, adjusted, strict=True):
        pair = pairs[name, kind]
        change = f"{accuracy.change_text(pair.mean)} ({accuracy.change_interval(pair.ci95)})"
        rows.append(f"| {name} | {kind} | {change} | {p_value:.2g} |")
    return [*rows, ""]


def search_rows(name: str) -> list[str]:
    """What the search gave: mean accuracy on val."""
    means, accuracy = searched(name), metric("val_accuracy")
    rates = sorted({rate for by_rate in means.values() for rate in by_rate})
    rows = [f"### {name}", "", "| arm | " + " | ".join(f"{rate:g}" for rate in rates) + " |"]
    rows.append("| --- |" + " ---: |" * len(rates))
    for arm, by_rate in means.items():
        cells = [accuracy.text(by_rate[rate]) if rate in by_rate else "" for rate in rates]
        rows.append(f"| {arm} | " + " | ".join(cells) + " |")
    return [*rows, ""]


def table() -> None:
    """Write results/evidence/strong-views.md."""
    names = [name for name in DATA_SETS if read_runs(f"strong-views-{name}")]
    lines = [HEAD]
    for name in names:
        lines += accuracies(name)
    lines += [*differences(names), "## Learning rates on val, means over seeds 100 and 101", ""]
    for name in names:
        lines += search_rows(name)
    (EVIDENCE / "strong-views.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("choose", "average", "table"))
    parser.add_argument("arguments", nargs="*")
    asked = parser.parse_args()
    if asked.action == "choose":
        choose(asked.arguments[0])
    elif asked.action == "average":
        average_all(Path(asked.arguments[0]), asked.arguments[1])
    else:
        table()


if __name__ == "__main__":
    main()
