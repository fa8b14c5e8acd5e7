"""`schane fewshot` as its users run it."""

import json
from pathlib import Path

import pandas as pd
import pytest

from schane_cli.features import store as stores
from schane_cli.recipe import PROTOCOLS
from schane_cli.reports.fewshot import class_table
from tests.cli.test_finetune import QUICK, run_cli

FAST = [*QUICK, "--set", "data.train_per_class=null", "--epochs", 1, "--episodes", 20]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fewshot") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores, "RESULTS", out.parent)
        assert run_cli("fewshot", *FAST, "--shots", 5, "--out", out) == 0
    return out


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "RESULTS", tmp_path / "results")


def test_with_no_checkpoint_it_trains_on_the_base_classes_and_scores_the_novel_ones(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["novel_classes"] == ["5", "6", "7", "8", "9"]
    assert not any("not finished" in note for note in summary["notes"])
    for result in summary["results"]:
        assert result["shots"] == 5
        assert result["accuracy_episodes"] == 20
        low, high = result["accuracy_ci95"]
        assert low < result["accuracy"] < high
    assert sorted(path.name for path in trained.iterdir()) == [
        "checkpoints",
        "environment.json",
        "episodes.parquet",
        "figures",
        "metrics.jsonl",
        "per_class.csv",
        "recipe.yaml",
        "report.html",
        "summary.json",
    ]
    episodes = pd.read_parquet(trained / "episodes.parquet")
    mean = episodes[episodes.classifier == "logistic"].accuracy.mean()
    said = next(r["accuracy"] for r in summary["results"] if r["classifier"] == "logistic")
    assert mean == pytest.approx(said)


def test_a_checkpoint_is_evaluated_as_it_is_and_json_is_one_line(trained: Path, tmp_path: Path, capsys) -> None:
    flags = ["--shots", "1,5", "--classifier", "centroid,bd-cspn", "--queries", 10, "--ways", 3, "--episodes", 25]
    assert run_cli("fewshot", trained, *flags, "--json", "--out", tmp_path / "e") == 0
    (line,) = capsys.readouterr().out.splitlines()
    results = json.loads(line)["results"]
    assert [(r["shots"], r["classifier"], r["transductive"]) for r in results] == [
        (1, "centroid", False),
        (1, "bd-cspn", True),
        (5, "centroid", False),
        (5, "bd-cspn", True),
    ]


def test_what_a_classifier_does_otherwise_than_its_paper_is_said_below_the_table(
    trained: Path, tmp_path: Path, capsys
) -> None:
    flags = ["--shots", 1, "--classifier", "bd-cspn,laplacianshot", "--ways", 3, "--episodes", 10]
    assert run_cli("fewshot", trained, *flags, "--out", tmp_path / "e") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "bd-cspn differs from its paper: it pseudo-labels every query, not the Z surest of each class." in said
    assert "laplacianshot differs from its paper: lambda stays at 0.7" in said


def test_two_checkpoints_are_compared_in_a_sentence(trained: Path, tmp_path: Path, capsys) -> None:
    assert run_cli("fewshot", trained, trained, "--episodes", 20, "--out", tmp_path / "e") == 0
    assert "cannot be distinguished" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_sets_what_it_says_and_a_flag_wins_over_it(protocol: str, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "e"
    assert run_cli("fewshot", trained, "--protocol", protocol, "--episodes", 12, "--shots", 1, "--out", out) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert {r["accuracy_episodes"] for r in summary["results"]} == {12}
    assert [r["classifier"] for r in summary["results"]] == PROTOCOLS[protocol]["fewshot.classifier"]
    recipe = (out / "recipe.yaml").read_text()
    assert f"support_copies: {PROTOCOLS[protocol]['fewshot.support_copies']}" in recipe


BAD = {
    "more ways than classes": (["--ways", 6], "6"),
    "too many images": (["--shots", 170, "--queries", 15], "class"),
    "no episodes": (["--episodes", 0], "fewshot.episodes"),
    "unknown classifier": (["--classifier", "logistik"], "did you mean 'logistic'"),
    "unknown protocol": (["--protocol", "rsf"], "did you mean 'rfs'"),
    "shots that are no number": (["--shots", "five"], "fewshot.shots"),
    "a flag of training": (["--epochs", 3], "--epochs does not act with a checkpoint"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_one_sentence_and_nothing_written(case: str, trained: Path, tmp_path: Path, capsys) -> None:
    arguments, said = BAD[case]
    assert run_cli("fewshot", trained, *arguments, "--out", tmp_path / "x") == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("schane:") == 1
    assert not (tmp_path / "x").exists()


def test_a_checkpoint_of_all_classes_is_refused_unless_asked(tmp_path: Path, capsys) -> None:
    assert run_cli("finetune", *QUICK, "--epochs", 1, "--out", tmp_path / "all") == 0
    assert run_cli("fewshot", tmp_path / "all", "--episodes", 5, "--out", tmp_path / "a") == 2
    assert "was trained on 5 of the 5 test classes" in capsys.readouterr().err
    flags = ["--allow-seen-classes", "--episodes", 5, "--out", tmp_path / "b"]
    assert run_cli("fewshot", tmp_path / "all", *flags) == 0
    result = (tmp_path / "b" / "report.html").read_text().split("<h2>")[1]
    assert "SEEN CLASSES" in result
    assert "scored    896 images of 5 test classes (5, 6, 7, 8, ...)" in result


def test_the_page_has_a_row_a_class_and_the_curve_leaves_room_for_imbalanced_queries(
    trained: Path, tmp_path: Path, capsys
) -> None:
    flags = ["--shots", "1,5", "--classifier", "centroid,ridge", "--episodes", 20, "--set", "fewshot.dirichlet=2"]
    assert run_cli("fewshot", trained, *flags, "--queries", 33, "--out", tmp_path / "d") == 0
    assert "queries imbalanced by Dirichlet(2)" in capsys.readouterr().out
    columns, rows = class_table(tmp_path / "d")
    assert columns == ["class, %", "centroid, 1-shot", "ridge, 1-shot", "centroid, 5-shot", "ridge, 5-shot", "queries"]
    assert sorted(row[0] for row in rows) == ["5", "6", "7", "8", "9"]
    means = [sum(map(float, row[1:-1])) for row in rows]
    assert means == sorted(means)
    curve = json.loads((tmp_path / "d" / "summary.json").read_text())["curve"]
    points = [(row["classifier"], row["shots"]) for row in curve]
    assert sorted(points) == [("centroid", 1), ("centroid", 2), ("centroid", 5), ("ridge", 1), ("ridge", 5)]


def test_class_and_checkpoint_names_stay_as_they_are(tmp_path: Path) -> None:
    rows = [
        "0.1,1,centroid,None,10,0.5",
        "0.10,1,centroid,None,10,0.9",
        "0.1,1,centroid,001,10,0.6",
        "0.10,1,centroid,001,10,0.7",
    ]
    (tmp_path / "per_class.csv").write_text("\n".join(["checkpoint,shots,classifier,class,n,accuracy", *rows]))
    columns, accuracies = class_table(tmp_path)
    assert columns == ["class, %", "0.1, 1-shot", "0.10, 1-shot", "queries"]
    assert accuracies == [["001", "60.00", "70.00", "10"], ["None", "50.00", "90.00", "10"]]
