"""`schane compare`: groups, pairs, honest verdicts, and refusals."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from schane_cli.commands.compare import compare_runs, make_run
from schane_cli.errors import BadRequest
from schane_cli.metrics.intervals import effect_size, holm
from schane_cli.reports.compare import escape_latex, latex, markdown, rows
from tests.cli.test_finetune import QUICK, run_cli
from tests.jobs import blank_pictures

CE, OURS = np.array([0.50, 0.52, 0.49, 0.51, 0.50]), np.array([0.53, 0.54, 0.53, 0.53, 0.52])


def made(loss: str, values: np.ndarray, first_seed: int = 0, test: str = "a", **recipe: object) -> list:
    keys = {"loss.name": loss, "data.dataset": "made", "train.lr": 1e-3, "data.root": f"/{loss}", **recipe}
    figures = {"test_n": 100, "train_seconds": 10.0, "test_sha256": test, "val_sha256": "v"}
    return [
        make_run(f"{loss}/s{seed}", keys, {**figures, "test_accuracy": value, "test_nll": 1 - value, "seed": seed})
        for seed, value in enumerate(values, first_seed)
    ]


def block(runs: list, **options: object):
    return compare_runs(runs, **{"metric": None, "baseline": None, "common_seeds": False, **options})[0]


def test_the_paired_difference_agrees_with_scipy() -> None:
    (difference,) = block(made("ce", CE) + made("schane", OURS)).differences
    theirs = stats.ttest_rel(OURS, CE)
    assert (difference.label, difference.baseline) == ("schane", "ce")
    assert difference.pair.p_value == pytest.approx(theirs.pvalue)
    assert difference.pair.ci95 == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    change = OURS - CE
    assert difference.effect_size == pytest.approx(change.mean() / change.std(ddof=1) * (1 - 3 / (4 * 4 - 1)))
    assert difference.sentence.startswith("schane is better than ce: +2.60 points of test top-1 accuracy")


def test_less_is_better_of_a_loss_and_a_chance_difference_is_no_verdict() -> None:
    (difference,) = block(made("ce", CE) + made("schane", OURS), metric="test_nll").differences
    assert "schane is better than ce: -0.02600 nats of test NLL" in difference.sentence
    (difference,) = block(made("ce", CE) + made("schane", CE[::-1])).differences
    assert "cannot be distinguished" in difference.sentence


def test_holm_agrees_with_a_slow_one() -> None:
    p = [0.01, 0.04, 0.03, 0.5]
    slow = [max((4 - k) * q for k, q in enumerate(sorted(p)) if q <= own) for own in p]
    assert holm(p) == pytest.approx([min(value, 1) for value in slow])
    assert np.isnan(effect_size(np.array([0.1, 0.1, 0.1])))
    assert np.isnan(effect_size(np.array([0.1, 0.3])))


def test_groups_are_named_by_what_differs_and_where_the_data_lie_does_not() -> None:
    runs = made("ce", CE) + made("schane", OURS) + made("schane", OURS, **{"train.lr": 2e-3})
    labels = {group.label for group in block(runs).groups}
    assert labels == {"ce lr=0.001", "schane lr=0.001", "schane lr=0.002"}
    assert [group.label for group in block(made("ce", CE) + made("schane", OURS)).groups] == ["schane", "ce"]


@pytest.mark.parametrize(
    ("runs", "options", "said"),
    [
        (made("ce", CE) + made("schane", OURS, test="b"), {}, "schane/s0 and ce/s0 have different test images"),
        (
            made("ce", CE) + made("schane", OURS[:4]),
            {},
            r"seeds are missing: schane has no run of \[4\]; --common-seeds",
        ),
        (made("ce", CE), {}, "nothing to compare"),
        (made("ce", CE) + made("schane", OURS), {"metric": "test_acuracy"}, "did you mean 'test_accuracy'"),
        (made("ce", CE) + made("schane", OURS), {"baseline": "simclr"}, "no group is called 'simclr'"),
        (made("ce", CE) + made("ce", CE), {}, "are the same run"),
        (made("ce", CE) + made("ce", OURS, **{"data.dataset": "other"}), {}, "no two runs trained on the same images"),
        ([], {}, "no finished run"),
    ],
)
def test_what_cannot_be_compared_is_refused(runs: list, options: dict, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        block(runs, **options)


def test_common_seeds_on_request() -> None:
    compared = block(made("ce", CE) + made("schane", OURS[:4]), common_seeds=True)
    assert compared.seeds == (0, 1, 2, 3)
    assert "schane has no run of [4]" in compared.notes[0]


def test_of_a_metric_without_a_better_side_one_is_higher() -> None:
    name = "made test embedding, n=100: average cosine"
    runs = [
        replace(run, values={**run.values, name: run.values["test_accuracy"]})
        for run in made("ce", CE) + made("schane", OURS) + made("easy", OURS - 0.1)
    ]
    said = {difference.label: difference.sentence for difference in block(runs, metric=name).differences}
    assert said["schane"].startswith("schane is higher than ce: +0.02600 of average cosine")
    assert said["easy"].startswith("easy is lower than ce: -0.07400 of average cosine")


def test_few_shot_runs_are_compared_by_an_accuracy_and_say_their_episodes() -> None:
    def run(loss: str, seed: int, accuracy: float):
        result = {
            "checkpoint": "run",
            "shots": 5,
            "classifier": "centroid",
            "accuracy": accuracy,
            "accuracy_episodes": 600,
        }
        summary = {"results": [result], "checkpoints": ["run"], "dirichlet": 2.0, "val_accuracy": 0.5, "val_n": 90}
        return make_run(f"{loss}/{seed}", {"loss.name": loss, "data.dataset": "made"}, {**summary, "seed": seed})

    compared = block([run(loss, seed, 0.7 + seed / 100) for loss in ("ce", "schane") for seed in (0, 1)])
    assert compared.metric == "5shot_centroid_accuracy"
    assert compared.count == "n = 600 episodes"


def test_two_seeds_or_differences_that_agree_to_rounding_give_no_verdict() -> None:
    (difference,) = block(made("ce", CE[:2]) + made("schane", CE[:2] + 0.03)).differences
    assert difference.sentence == (
        "schane and ce cannot be distinguished: +3.00 points of test top-1 accuracy, paired over 2 seeds: "
        "two are too few for a verdict"
    )
    (difference,) = block(made("ce", CE) + made("schane", CE + np.array([2, 3, 2, 3, 2]) / 100)).differences
    assert "the same up to rounding" in difference.sentence
    assert (difference.pair.ci95, difference.p_adjusted) == (None, None)


def test_a_run_whose_metric_is_not_a_number_is_named() -> None:
    runs = made("ce", CE) + made("schane", np.where(np.arange(5) == 3, np.nan, OURS))
    with pytest.raises(BadRequest, match="test_accuracy of schane/s3 is not a number"):
        block(runs)


def test_one_seed_without_the_images_has_no_interval_and_says_so() -> None:
    compared = block(made("ce", CE[:1]) + made("schane", OURS[:1]))
    assert compared.differences == ()
    assert rows(compared)[0][:2] == ("schane", "53.00")
    assert compared.notes == ("one seed each: nothing says how sure the difference is; train several (--seeds 0-4)",)
    assert "nothing says how sure" in markdown([compared])
    assert "Means over seeds" not in markdown([compared])


def _with_predictions(folder: Path, loss: str, wrong: set[int], first_id: int = 0) -> list:
    """One run over 100 images, whose table says which are wrong."""
    ids = [f"image{number}" for number in range(first_id, first_id + 100)]
    table = {"id": ids, "label": "01", "prediction": ["1" if number in wrong else "01" for number in range(100)]}
    (folder / loss).mkdir(parents=True)
    pd.DataFrame(table).to_csv(folder / loss / "predictions.csv", index=False)
    (run,) = made(loss, np.array([1 - len(wrong) / 100]))
    return [replace(run, path=str(folder / loss))]


def test_one_seed_each_is_compared_image_by_image(tmp_path: Path) -> None:
    ce = _with_predictions(tmp_path, "ce", set(range(20)))
    compared = block(ce + _with_predictions(tmp_path, "schane", {0, 1, 2, 3, 50}))
    (difference,) = compared.differences
    assert (difference.unit, difference.pair.n) == ("images", 100)
    assert difference.pair.p_value == pytest.approx(stats.binomtest(1, 17).pvalue)
    assert difference.pair.ci95 == pytest.approx((0.08087, 0.23617), abs=1e-4)
    assert difference.sentence.startswith("schane is better than ce: +15.00 points of test top-1 accuracy")
    assert "paired over 100 images, p = 0.00027" in difference.sentence
    assert "these checkpoints only, not about training again" in compared.notes[0]
    assert not block(ce + _with_predictions(tmp_path, "simclr", {0}, first_id=7)).differences, "other images"
    stale = [replace(ce[0], values={"test_accuracy": 0.9})]
    assert not block(stale + _with_predictions(tmp_path, "easy", {0})).differences, "a table of another accuracy"


def test_tables_in_markdown_and_latex_hold_the_same_cells() -> None:
    compared = block(made("ce", CE) + made("schane", OURS))
    table = [line.strip("| ").split(" | ") for line in markdown([compared]).splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in table[2]] == list(rows(compared)[0])
    assert markdown([compared]).startswith("### made, 5 seeds, n = 100 images\n")
    body = latex([compared]).splitlines()
    assert sum(line.endswith(r"\\") for line in body) == 3
    assert r"test top-1 accuracy, \%" in latex([compared])
    assert escape_latex("50 % & a_b") == r"50 \% \& a\_b"


HOSTILE = ["a | b", "[x](http://y)", "<script>alert(1)</script>", "`code`", "two\nlines", r"\\input{/etc/passwd}",
           "=cmd()", "50 % $x$ & #1_2^3 ~{}", "\x1b[31mred", "$\\pm$"]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_text_in_markdown_and_latex(name: str) -> None:
    runs = [replace(run, label=name) for run in made("ce", CE)] + made("schane", OURS)
    compared = block(runs, baseline="schane")
    table = [line for line in markdown([compared]).splitlines() if line.startswith("| ")]
    assert len(table) == 4  # the header, its rule, and a row of each group
    columns = [len(re.split(r"(?<!\\)\|", line)) for line in table]
    assert len(set(columns)) == 1, table
    cells = "".join(table)
    assert not re.search(r"(?<!\\)[<`\[]", cells)
    assert "\x1b" not in cells + latex([compared])
    body = latex([compared]).split(r"\midrule")[1].split(r"\bottomrule")[0].strip()
    assert len(body.splitlines()) == 2
    assert all(line.endswith(r"\\") and len(re.findall(r"(?<!\\)&", line)) == 4 for line in body.splitlines())
    allowed = r"\\(textbackslash|textasciitilde|textasciicircum|pm|[&%$#_{}^\\])"
    assert not re.search(r"\\", re.sub(allowed, "", body)), body


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("compare")
    with blank_pictures():
        for loss in ("ce", "schane"):
            assert run_cli("finetune", *QUICK, "--loss", loss, "--seeds", "0,1", "--out", place / loss) == 0
    return place


def test_folders_of_seeds_are_compared_end_to_end(trained: Path, tmp_path: Path, capsys) -> None:
    assert run_cli("compare", trained / "ce", trained / "schane", "--out", tmp_path / "c") == 0
    said = capsys.readouterr().out
    assert max(map(len, said.split("cannot be distinguished")[0].splitlines()[:6])) <= 80
    assert run_cli("compare", f"{trained}/*", "--json", "--out", tmp_path / "glob") == 0
    (compared,) = json.loads(capsys.readouterr().out)["blocks"]
    assert [group["n_seeds"] for group in compared["groups"]] == [2, 2]
    assert {"train_seconds", "views_forwarded", "peak_memory_bytes"} <= compared["groups"][0].keys()
    table = pd.read_csv(tmp_path / "c" / "compare.csv").set_index("group")
    for loss in ("ce", "schane"):
        summaries = [json.loads((trained / loss / f"s{s}" / "summary.json").read_text()) for s in (0, 1)]
        mean = np.mean([summary["test_accuracy"] for summary in summaries])
        assert table.loc[loss, "test_accuracy"] == pytest.approx(mean)
    names = {path.name for path in (tmp_path / "c").iterdir()}
    assert names == {"compare.csv", "compare.md", "compare.tex", "figures", "report.html", "runs.json", "summary.json"}
    assert run_cli("compare", f"{trained}/*", "--out", tmp_path / "c") == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.usefixtures("blank_pictures")
def test_the_figures_of_schane_embed_are_compared_over_seeds(trained: Path, tmp_path: Path, capsys) -> None:
    for run in [trained / loss / f"s{seed}" for loss in ("ce", "schane") for seed in (0, 1)]:
        assert run_cli("embed", run, "--points", 60, "--out", run / "embed") == 0
    capsys.readouterr()
    for figure, better in (("kNN accuracy, k=10", "higher"), ("alignment, within class", "lower")):
        name = f"digits test embedding, n=60: {figure}"
        out = tmp_path / better
        assert run_cli("compare", f"{trained}/*", "--metric", name, "--json", "--out", out) == 0
        (compared,) = json.loads(capsys.readouterr().out)["blocks"]
        means = [group[name] for group in compared["groups"]]
        assert means == sorted(means, reverse=better == "higher")
        values = [_embedded(trained / "ce" / f"s{seed}", figure) for seed in (0, 1)]
        assert {group["group"]: group[name] for group in compared["groups"]}["ce"] == pytest.approx(np.mean(values))


def _embedded(run: Path, figure: str) -> float:
    return json.loads((run / "embed" / "summary.json").read_text())["checkpoints"][0]["figures"][figure]["value"]


@pytest.mark.usefixtures("blank_pictures")
def test_another_split_is_refused(trained: Path, tmp_path: Path, capsys) -> None:
    assert run_cli("finetune", *QUICK, "--set", "data.split_seed=1", "--out", tmp_path / "other") == 0
    assert run_cli("compare", trained / "ce" / "s0", tmp_path / "other", "--out", tmp_path / "c") == 2
    assert "have different test images" in capsys.readouterr().err
    assert run_cli("compare", tmp_path / "nowhere", "--out", tmp_path / "c") == 2
    assert "nothing is at" in capsys.readouterr().err


def test_a_refusal_names_unfinished_runs_and_how_they_go_on(trained: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(trained / "ce", tmp_path / "seeds")
    for folder in (tmp_path / "seeds", tmp_path / "seeds" / "s1"):
        (folder / "summary.json").unlink()
    shutil.copytree(tmp_path / "seeds" / "s1", tmp_path / "one")
    assert run_cli("compare", tmp_path / "seeds", tmp_path / "one", "--out", tmp_path / "c") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"{tmp_path}/seeds/s0 is the only finished run: there is nothing to compare it with" in said
    assert f"{tmp_path}/seeds (schane finetune --seeds 0,1 --resume {tmp_path}/seeds goes on)" in said
    assert f"{tmp_path}/one (schane finetune --resume {tmp_path}/one goes on)" in said
    assert "seeds/s1 (" not in said
