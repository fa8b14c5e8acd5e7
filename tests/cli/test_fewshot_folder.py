"""`schane fewshot --support DIR --query DIR`: one's own few photos, classified and judged."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.conftest import run_cli

BACKBONE = ["--backbone", "test_resnet", "--init", "random", "--set", "data.image_size=32", "--device", "cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five zeros, four ones and a single two to learn from, and twelve digits to classify."""
    folder, digits = tmp_path_factory.mktemp("own"), load_digits()
    for name, count in {"0": 5, "1": 4, "2": 1}.items():
        for number, index in enumerate(np.flatnonzero(digits.target == int(name))[: count + 4]):
            place = folder / (f"support/{name}" if number < count else "query")
            place.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray((digits.images[index] * 15.9).astype(np.uint8)).resize((32, 32))
            picture.convert("RGB").save(place / f"{name}-{number}.png")
    return folder


def test_photos_are_classified_and_what_to_expect_is_said(photos: Path, tmp_path: Path, capsys) -> None:
    out, copies = tmp_path / "out", tmp_path / "sorted"
    arguments = ("--support", photos / "support", "--query", photos / "query", *BACKBONE, "--out", out)
    assert run_cli("fewshot", *arguments, "--min-confidence", 0.5, "--copy-to", copies) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert "10 photos of 3 classes" in said
    assert "1 photo, alone in its class, could not be tested" in said
    table = pd.read_csv(out / "predictions.csv", dtype={"prediction": str})
    assert len(table) == 12
    assert set(table.most_likely.astype(str)) <= {"0", "1", "2"}
    assert ((table.confidence < 0.5) == (table.prediction == "unsure")).all()
    assert {path.parent.name for path in copies.rglob("*.png")} == set(table.prediction)
    assert "the 9 support photos do not determine a calibration" in said
    assert "of the support," in said
    summary = json.loads((out / "summary.json").read_text())
    assert summary["support_counted"] == 9
    assert summary["support_accuracy_ci95"][0] < summary["support_accuracy"] <= summary["support_accuracy_ci95"][1]
    page = (out / "report.html").read_text()
    assert "<h1>12 images classified by 10 photos of 3 classes</h1>" in page
    assert "What to expect: accuracy on photos left out" in page
    for shown in (said, page):
        assert "(chance 33.33 %)" in shown
        assert f"copies of 12 images in {copies}" in shown
    learn = f"folder:{photos}/support --backbone test_resnet --init random --set data.image_size=32"
    assert learn in page
    assert "All 12 images." in page


def test_the_support_alone_is_judged(photos: Path, tmp_path: Path, capsys) -> None:
    assert run_cli("fewshot", "--support", photos / "support", *BACKBONE, "--json", "--out", tmp_path / "o") == 0
    assert json.loads(capsys.readouterr().out)["support_n"] == 10


def test_what_cannot_be_done_is_one_sentence(photos: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "one" / "cat").mkdir(parents=True)
    (tmp_path / "one" / "cat" / "a.png").write_bytes((photos / "query" / "0-5.png").read_bytes())
    (tmp_path / "same").mkdir()
    (tmp_path / "same" / "b.png").write_bytes((photos / "support" / "0" / "0-0.png").read_bytes())
    support = ("--support", photos / "support")
    for arguments, said in (
        (("--support", tmp_path / "one"), "at least two class folders"),
        (("--query", photos / "query"), "--query needs --support"),
        ((*support, "--query", photos / "support"), "is among the support"),
        ((*support, "--query", tmp_path / "same"), "is among the support"),
        ((*support, "--query", tmp_path / "nothing"), "does not exist"),
        ((*support, "--query", photos / "query", "--top-k", 4), "must be 1 to 3"),
        ((*support, "--copy-to", tmp_path / "sorted"), "are for the images of --query"),
        ((*support, "--protocol", "rfs"), "go only with one run"),
    ):
        assert run_cli("fewshot", *arguments, *BACKBONE, "--out", tmp_path / "o") == 2
        assert said in capsys.readouterr().err, said
        assert not (tmp_path / "o").exists()


def test_without_training_every_class_is_a_test_class_and_a_division_is_explained(
    photos: Path, tmp_path: Path, capsys
) -> None:
    digits = load_digits()
    for name in range(4):
        for number, index in enumerate(np.flatnonzero(digits.target == name)[:8]):
            place = tmp_path / "four" / str(name)
            place.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray((digits.images[index] * 15.9).astype(np.uint8)).resize((32, 32))
            picture.convert("RGB").save(place / f"{number}.png")
    arguments = ("--dataset", f"folder:{tmp_path}/four", *BACKBONE, "--ways", 4, "--shots", 1, "--queries", 5)
    quick = ("--episodes", 5, "--classifier", "centroid", "--batch-size", 8, "--set", "data.workers=0")
    assert run_cli("fewshot", *arguments, *quick, "--epochs", 0, "--out", tmp_path / "o") == 0
    assert json.loads((tmp_path / "o" / "summary.json").read_text())["novel_classes"] == ["0", "1", "2", "3"]
    capsys.readouterr()
    assert run_cli("fewshot", *arguments, *quick, "--epochs", 1, "--out", tmp_path / "x") == 2
    assert "2 of its 4 classes are for training and 2 for testing" in capsys.readouterr().err
