"""What else than accuracy the objective changes: corruptions, foreign images, embeddings; paired by seed, on test.

    python benchmarks/beyond.py run OUT textures --foreign folder:photos/food ce=textures/runs/ce \\
        schane=textures/runs/schane        # `schane eval` and `schane embed` of the runs of two arms, seeds 0 to 4
    python benchmarks/beyond.py table      # results/evidence/beyond.md

OUT holds the studies; the first arm is the baseline. Both should have the same learning rate, or the rate decides.
"""

import argparse
import json
from pathlib import Path

from evidence import EVIDENCE

from schane_cli.metrics.intervals import holm_where_tested, paired_comparison, t_interval
from schane_cli.metrics.registry import metric
from schane_cli.run import RunFolder
from tests.conftest import run_cli

SEEDS = range(5)
OF_EVAL = ("test_accuracy", "test_nll", "test_nll_scaled", "test_ece_debiased", "test_brier", "corruption_accuracy")
OF_EMBED = ("mAP@R", "recall@1", "kNN accuracy, k=10", "linear-probe accuracy",
            "AUC of positive over negative cosines", "silhouette")  # fmt: skip
HEAD = """# Beyond accuracy

Made by `python benchmarks/beyond.py table`; not edited by hand. Runs of the studies in studies/, evaluated by
`schane eval RUN --corruptions --ood FOREIGN` (14 kinds of corruption at 5 severities; energy score) and `schane embed
RUN`, all on test. Means over seeds; differences are paired by seed, with Student's 95 % interval, and p is Holm's over
the rows of a table.
"""


def run(out: Path, name: str, foreign: str, arms: dict[str, str]) -> None:
    """Evaluate and embed the runs of each arm, and keep a line for each in results/evidence/runs/NAME-beyond.jsonl."""
    lines = []
    for arm, place in arms.items():
        for seed in SEEDS:
            source, target = out / place / f"s{seed}", out / "beyond" / name / f"{arm}-s{seed}"
            for kind, more in (("eval", ["--corruptions", "--ood", foreign]), ("embed", [])):
                if not (target / kind / "summary.json").exists() and run_cli(
                    kind, source, *more, "--device", "cpu", "--out", target / kind
                ):
                    raise SystemExit(f"schane {kind} {source} failed")
            scores, quality = (RunFolder(target / kind).read_summary() for kind in ("eval", "embed"))
            values = {key: scores[key] for key in OF_EVAL}
            values["auroc"] = next(one["auroc"] for one in scores["ood"] if one["score"] == "energy")
            values |= {key: quality["checkpoints"][0]["figures"][key]["value"] for key in OF_EMBED}
            rate = RunFolder(source).read_settings()["train.lr"]
            n = scores["test_n"]
            lines.append({"arm": arm, "seed": seed, "lr": rate, "n": n, "foreign": foreign, "values": values})
    target = EVIDENCE / "runs" / f"{name}-beyond.jsonl"
    target.write_text("".join(json.dumps(line) + "\n" for line in lines))


def table(file: Path) -> list[str]:
    """Every figure of both arms, and the second minus the first."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    first, second = dict.fromkeys(line["arm"] for line in lines)
    rates = {line["arm"]: line["lr"] for line in lines}
    by_arm = {arm: [line["values"] for line in lines if line["arm"] == arm] for arm in (first, second)}
    pairs = {
        key: paired_comparison([values[key] for values in by_arm[first]], [values[key] for values in by_arm[second]])
        for key in by_arm[first][0]
    }
    adjusted = holm_where_tested([pair.p_value for pair in pairs.values()])
    said = ", ".join(f"{arm} at {rate:g}" for arm, rate in rates.items())
    rows = [
        f"## {file.stem.removesuffix('-beyond')}",
        "",
        f"n = {lines[0]['n']:,} test images, {len(by_arm[first])} seeds; learning rates: {said}; foreign images: "
        f"{lines[0]['foreign']}.",
        "",
        f"| figure | better | {first} | {second} | difference (95 %) | p (Holm) |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for (key, pair), p in zip(pairs.items(), adjusted, strict=True):
        one = metric(key)
        means = [one.text(t_interval([values[key] for values in by_arm[arm]], one.bounds).value) for arm in by_arm]
        interval = f" ({one.change_interval(pair.ci95)})" if pair.ci95 else ""
        verdict = "" if p is None else f"{p:.2g}"
        change = f"{one.change_text(pair.difference)}{interval}"
        rows.append(f"| {one.heading} | {one.direction} | {' | '.join(means)} | {change} | {verdict} |")
    return [*rows, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("out", type=Path)
    runs.add_argument("name")
    runs.add_argument("--foreign", required=True)
    runs.add_argument("arms", nargs=2, metavar="ARM=FOLDER")
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "run":
        arms = dict(arm.split("=", 1) for arm in arguments.arms)
        run(arguments.out, arguments.name, arguments.foreign, arms)
        return
    tables = [table(file) for file in sorted((EVIDENCE / "runs").glob("*-beyond.jsonl"))]
    (EVIDENCE / "beyond.md").write_text("\n".join([HEAD, *(line for rows in tables for line in rows)]))


if __name__ == "__main__":
    main()
