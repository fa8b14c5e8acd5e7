"""`schane eval` on a run folder, on a checkpoint, and on what is neither."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from schane_cli.commands.robustness import outputs
from schane_cli.datasets.load import load_splits
from schane_cli.images.corruptions import CORRUPTIONS
from schane_cli.models.checkpoint import load_checkpoint
from tests.browser import is_quiet_and_alone, needs_browser, open_browser, open_page
from tests.cli.test_finetune import QUICK, run_cli
from tests.jobs import blank_pictures


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("eval") / "run"
    with blank_pictures():
        assert run_cli("finetune", *QUICK, "--out", out) == 0
    return out


def test_a_run_folder_and_its_checkpoint_score_alike_and_as_the_run_said(trained: Path, tmp_path: Path) -> None:
    assert run_cli("eval", trained, "--out", tmp_path / "a") == 0
    assert run_cli("eval", trained / "checkpoints" / "best.pt", "--out", tmp_path / "b") == 0
    said = json.loads((trained / "summary.json").read_text())
    for name in ("a", "b"):
        scored = json.loads((tmp_path / name / "summary.json").read_text())
        for key in ("test_accuracy", "test_nll", "test_n"):
            assert scored[key] == pytest.approx(said[key])
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "confusion.csv",
        "environment.json",
        "figures",
        "mistakes.parquet",
        "per_class.csv",
        "predictions.csv",
        "recipe.yaml",
        "report.html",
        "summary.json",
    ]


def test_the_tables_agree_with_the_summary(trained: Path, tmp_path: Path) -> None:
    assert run_cli("eval", trained, "--split", "val", "--out", tmp_path / "e") == 0
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    predictions = pd.read_csv(tmp_path / "e" / "predictions.csv")
    assert summary["val_n"] == len(predictions) == 83
    assert (predictions.label == predictions.prediction).mean() == pytest.approx(summary["val_accuracy"])
    per_class = pd.read_csv(tmp_path / "e" / "per_class.csv")
    assert (per_class.n * per_class.accuracy).sum() / len(predictions) == pytest.approx(summary["val_accuracy"])
    confusion = pd.read_csv(tmp_path / "e" / "confusion.csv", index_col=0)
    assert confusion.to_numpy().sum() == len(predictions)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--split", "dev"], "unknown split 'dev'"),
        (["--device", "cuda:77"], "device 'cuda:77' is not on this machine"),
        (["--dataset", "nothing"], "unknown dataset 'nothing'"),
        (["--dataset", "digits,nothing"], "unknown dataset 'nothing'"),
        (["--dataset", "digits,digits"], "names a dataset twice"),
        (["--ood", "digits"], "is the dataset that is evaluated"),
        (["--ood", "nothing"], "unknown dataset 'nothing'"),
    ],
)
def test_a_bad_request_is_one_sentence(trained: Path, tmp_path: Path, arguments: list, said: str, capsys) -> None:
    assert run_cli("eval", trained, *arguments, "--out", tmp_path / "x") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, capsys) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("hello")
    for path, said in (
        ("missing.pt", "no checkpoint"),
        ("other.pt", "not a schane checkpoint"),
        ("text.pt", "text.pt"),
    ):
        assert run_cli("eval", tmp_path / path) == 2
        assert said in capsys.readouterr().err


def test_the_temperature_is_fitted_on_val_and_only_there(trained: Path, tmp_path: Path) -> None:
    assert run_cli("eval", trained, "--out", tmp_path / "test") == 0
    assert run_cli("eval", trained, "--split", "val", "--out", tmp_path / "val") == 0
    on_test, on_val = (json.loads((tmp_path / split / "summary.json").read_text()) for split in ("test", "val"))
    assert "temperature" not in on_val
    assert on_test["temperature_val_n"] == on_val["val_n"]
    loaded = load_checkpoint(trained)
    val = load_splits(loaded.recipe.data).val
    scored = outputs(loaded, val, device=torch.device("cpu"))
    by_torch = torch.nn.functional.cross_entropy
    best = by_torch(scored.logits / on_test["temperature"], scored.labels)
    for other in (1.0, on_test["temperature"] * 1.2, on_test["temperature"] / 1.2):
        assert best <= by_torch(scored.logits / other, scored.labels) + 1e-6


def digits_folder(folder: Path, n: int) -> str:
    """The first digits as pictures by class; the dataset's name."""
    pixels = load_digits().images
    for index, label in enumerate(load_digits().target[:n]):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels[index] * 15.9).astype(np.uint8)).save(place / f"{index}.png")
    return f"folder:{folder}"


def foreign_folder(folder: Path) -> None:
    """Grey photographs' patches: none of them is a digit, but one class is called like one."""
    pixels = load_sample_images().images[0]
    for split in ("train", "val", "test"):
        for name in ("roof", "sky", "7"):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(6):
                patch = pixels[40 * number : 40 * number + 32, 60 * number : 60 * number + 32]
                Image.fromarray(np.roll(patch, len(name) + len(split), 0)).save(place / f"{number}.png")


def test_damaged_and_foreign_images_by_option(trained: Path, tmp_path: Path) -> None:
    foreign_folder(tmp_path / "foreign")
    few = digits_folder(tmp_path / "few", 60)  # nineteen damages at five strengths are slow on more
    asked = ("--dataset", few, "--corruptions", "--ood", f"folder:{tmp_path / 'foreign'}")
    assert run_cli("eval", trained, *asked, "--out", tmp_path / "e") == 0
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    rows = pd.DataFrame(summary["corruptions"])
    assert len(rows) == len(CORRUPTIONS) * 5
    assert set(rows["n"]) == {summary["test_n"]}
    assert rows["accuracy"].mean() == pytest.approx(summary["corruption_accuracy"])
    low, high = summary["corruption_accuracy_ci95"]
    assert low < summary["corruption_accuracy"] < high
    ood = pd.DataFrame(summary["ood"])
    assert list(ood["score"]) == ["MSP", "energy", "kNN"]
    assert set(ood["n_out"]) == {12}  # the class called 7 is one of the checkpoint's and is left out
    assert any("left out (7)" in note for note in summary["split_notes"])
    assert summary["ood_knn_bank_n"] == 100  # the training images, never the reported ones
    assert (tmp_path / "e" / "figures" / "corruptions.png").is_file()


def test_several_datasets_make_one_table(trained: Path, tmp_path: Path, capsys) -> None:
    other = digits_folder(tmp_path / "other", 300)
    assert run_cli("eval", trained, "--dataset", f"digits,{other}", "--json", "--out", tmp_path / "e") == 0
    summary = json.loads(capsys.readouterr().out)
    assert [one["dataset"] for one in summary["datasets"]] == ["digits", other]
    assert all(Path(one["run"], "predictions.csv").is_file() for one in summary["datasets"])
    assert summary["datasets"][0]["test_n"] == 109
    assert "on 2 datasets" in (tmp_path / "e" / "report.html").read_text()


@pytest.mark.parametrize("width", [390, 1280])
@needs_browser
def test_the_page_is_quiet_alone_and_as_wide_as_the_screen(trained: Path, tmp_path: Path, width: int) -> None:
    assert run_cli("eval", trained, "--out", tmp_path / "e") == 0
    for browser in open_browser(tmp_path / "profile"):
        screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        open_page(browser, tmp_path / "e" / "report.html")
        is_quiet_and_alone(browser)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert browser.execute_script("return [...document.images].every(image => image.naturalWidth > 0)")
