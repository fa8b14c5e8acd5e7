"""`schane finetune` as its users run it: exact files, one JSON line, resume, and one sentence for a bad request."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from schane_cli.datasets import load as data
from schane_cli.models.files import read_tensors
from schane_cli.training.hooks import Hook, Progress, on_step
from tests.conftest import run_cli
from tests.jobs import TINY

QUICK = [f"--set={key}={value}" for key, value in TINY.items()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    assert run_cli("finetune", *QUICK, "--out", out) == 0
    return out


def test_a_run_leaves_exactly_the_files_it_promises(finished: Path) -> None:
    files = sorted(str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file())
    assert files == [
        "calibration.json",
        "checkpoints/best.pt",
        "checkpoints/last.pt",
        "confusion.csv",
        "environment.json",
        "figures/confusion.png",
        "figures/curves.png",
        "figures/mistakes.png",
        "metrics.jsonl",
        "mistakes.parquet",
        "per_class.csv",
        "predictions.csv",
        "recipe.yaml",
        "report.html",
        "summary.json",
    ]
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["test_n"] == 109
    assert summary["test_accuracy_ci95"][0] <= summary["test_accuracy"] <= summary["test_accuracy_ci95"][1]
    assert "http" not in (finished / "report.html").read_text().replace("http-equiv", "")


def test_json_is_one_line_on_stdout_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("finetune", *QUICK, "--epochs", 1, "--seed", 3, "--out", tmp_path / "run", "--json") == 0
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    summary = json.loads(line)
    assert summary["seed"] == 3
    assert summary["epochs"] == 1
    assert "changed   train.epochs 1 (recipe digits: 24)" in captured.err


def test_what_a_flag_changed_is_printed_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--temperature", 0.3, "--hardness", 2, "--contrastive-weight", 0.5, "--loss", "easy", "--lr", "1e-3"]
    assert run_cli("finetune", *QUICK, *flags, "--epochs", 1, "--out", tmp_path / "run") == 0
    assert "changed   loss.temperature 0.3 (recipe digits: 0.5)" in capsys.readouterr().out
    saved = (tmp_path / "run" / "recipe.yaml").read_text()
    for line in ("temperature: 0.3", "hardness: 2.0", "contrastive_weight: 0.5", "name: easy", "lr: 0.001"):
        assert line in saved


def test_a_finished_run_is_neither_overwritten_nor_resumed(finished: Path, capsys) -> None:
    before = (finished / "summary.json").read_bytes()
    assert run_cli("finetune", *QUICK, "--out", finished) == 2
    assert "exists already" in capsys.readouterr().err
    assert run_cli("finetune", "--resume", finished) == 2
    assert "is finished" in capsys.readouterr().err
    assert (finished / "summary.json").read_bytes() == before


def _folder(root: Path, splits: tuple[str, ...] = ("",), classes: int = 2, images: int = 12) -> Path:
    """Class folders of small colour images, one brightness a class."""
    generator = np.random.default_rng(0)
    for split in splits:
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(images):
                pixels = generator.integers(label * 100, label * 100 + 80, (12, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def test_a_folder_of_class_folders_trains_with_a_seeded_split(tmp_path: Path, capsys) -> None:
    data = _folder(tmp_path / "data")
    quick = ["--epochs", 2, "--batch-size", 4, "--device", "cpu", "--set", "data.workers=0"]
    model = ["--backbone", "test_resnet", "--set", "model.weights=random", "--set", "data.image_size=32"]
    assert run_cli("finetune", "--dataset", f"folder:{data}", *quick, *model, "--out", tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "images, 20% of each class, by sha256 of seed 0 and name" in out
    assert run_cli("eval", tmp_path / "run", "--out", tmp_path / "eval") == 0


BAD_REQUESTS = {
    "unknown dataset": (["--dataset", "cifar10"], "unknown dataset 'cifar10'; did you mean 'cifar100'"),
    "unknown backbone": (["--backbone", "resnet5o"], "unknown backbone 'resnet5o'; did you mean 'resnet50'"),
    "unknown recipe": (["--recipe", "digitz"], "unknown recipe 'digitz'; did you mean 'digits'"),
    "unknown key": (["--set", "loss.temprature=1"], "did you mean 'loss.temperature'"),
    "value out of range": (["--temperature", "-1"], "loss.temperature: input should be greater than 0, got -1"),
    "no value": (["--set", "loss.temperature"], "--set takes key=value"),
    "absent device": (["--device", "cuda:99"], "device 'cuda:99' is not on this machine"),
    "no such folder": (["--dataset", "folder:/nowhere/at/all"], "dataset folder /nowhere/at/all does not exist"),
    "resume and out": (["--resume", "/nowhere"], "--out does not act with --resume /nowhere"),
    "missing weights file": (["--set", "model.weights=/nowhere.pt"], "no checkpoint or run folder at /nowhere.pt"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_bad_request_is_one_sentence_code_2_and_nothing_written(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, said = BAD_REQUESTS[case]
    assert run_cli("finetune", *arguments, "--out", tmp_path / "run") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("schane:")]
    assert said in line
    assert not (tmp_path / "run").exists()


def test_a_corrupt_image_is_named_before_any_work(tmp_path: Path, capsys) -> None:
    data = _folder(tmp_path / "data")
    broken = data / "class1" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    assert run_cli("finetune", "--dataset", f"folder:{data}", "--out", tmp_path / "run") == 2
    assert str(broken) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_empty_class_folder_is_named(tmp_path: Path, capsys) -> None:
    data = _folder(tmp_path / "data")
    (data / "class2").mkdir()
    assert run_cli("finetune", "--dataset", f"folder:{data}", "--out", tmp_path / "run") == 2
    assert str(data / "class2") in capsys.readouterr().err


def test_a_place_with_nothing_to_resume_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("finetune", "--resume", "/nowhere") == 2
    assert "nothing to resume at /nowhere" in capsys.readouterr().err


def test_an_unknown_flag_is_refused_with_code_2(capsys) -> None:
    assert run_cli("finetune", "--temprature", 0.3) == 2


@pytest.mark.usefixtures("blank_pictures")
def test_several_seeds_get_a_folder_each_and_a_mean_with_an_interval(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    source = data.listed_parts
    monkeypatch.setattr(data, "listed_parts", lambda recipe: read.append(recipe.dataset) or source(recipe))
    out = tmp_path / "seeds"
    flags = ["--epochs", 1, "--seeds", "0-1", "--set", "data.test_fraction=0.2"]  # enough that the accuracies differ
    assert run_cli("finetune", *QUICK, *flags, "--out", out, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["seeds"] == [0, 1]
    assert read == ["digits"]
    assert summary["test_accuracy"] == pytest.approx(np.mean(summary["test_accuracy_by_seed"]))
    low, high = summary["test_accuracy_ci95"]
    assert low <= summary["test_accuracy"] <= high
    assert all((out / name / "checkpoints" / "best.pt").is_file() for name in ("s0", "s1"))
    (out / "summary.json").write_text(json.dumps({**summary, "test_accuracy_ci95": []}))  # as of two equal accuracies
    assert run_cli("report", out) == 0


def stop_after(step: int) -> Hook:
    """A hook that stops a run with SIGTERM when `step` steps are done."""

    def stop(progress: Progress) -> None:
        if progress.step == step:
            signal.raise_signal(signal.SIGTERM)

    return stop


@pytest.mark.usefixtures("blank_pictures")
def test_seeds_go_on_at_the_seed_they_stopped_in(tmp_path: Path, capsys) -> None:
    flags = [*QUICK, "--epochs", 2, "--seeds", "0,1"]
    assert run_cli("finetune", *flags, "--out", tmp_path / "whole") == 0

    def stop_in_the_second(progress: Progress) -> None:
        if progress.recipe.seed == 1 and progress.step == 6:
            signal.raise_signal(signal.SIGTERM)

    with on_step(stop_in_the_second):
        assert run_cli("finetune", *flags, "--out", tmp_path / "stopped") == 128 + signal.SIGTERM
    assert f"schane finetune --seeds 0,1 --resume {tmp_path / 'stopped'}" in capsys.readouterr().err
    first = (tmp_path / "stopped" / "s0" / "summary.json").stat().st_mtime_ns
    assert run_cli("finetune", *flags, "--resume", tmp_path / "stopped") == 0
    assert (tmp_path / "stopped" / "s0" / "summary.json").stat().st_mtime_ns == first
    whole, stopped = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("whole", "stopped"))
    assert whole["test_accuracy_by_seed"] == stopped["test_accuracy_by_seed"]


@pytest.mark.parametrize("seeds", ["3", "a-b", "1-", "4-2"])
def test_seeds_that_are_no_two_numbers_are_refused(seeds: str, tmp_path: Path, capsys) -> None:
    assert run_cli("finetune", "--seeds", seeds, "--out", tmp_path / "x") == 2
    assert "--seeds" in capsys.readouterr().err


@pytest.mark.usefixtures("blank_pictures")
def test_resume_auto_finds_the_stopped_run_of_the_same_recipe(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with on_step(stop_after(6)):
        assert run_cli("finetune", *QUICK, "--resume", "auto") == 128 + signal.SIGTERM
    assert run_cli("finetune", *QUICK, "--resume", "auto") == 0
    said = capsys.readouterr().out
    assert "resuming  results/finetune/" in said
    assert "resumed   after step 6 of 12" in said
    assert len(list((tmp_path / "results" / "finetune").iterdir())) == 1


@pytest.mark.usefixtures("blank_pictures")
def test_init_starts_from_a_run_and_the_resumed_run_needs_it_no_more(tmp_path: Path, capsys) -> None:
    assert run_cli("finetune", *QUICK, "--epochs", 1, "--out", tmp_path / "first") == 0
    second = tmp_path / "second"
    flags = ["--init", tmp_path / "first", "--set", "train.lr=1e-6"]
    with on_step(stop_after(2)):
        assert run_cli("finetune", *QUICK, "--epochs", 1, *flags, "--out", second) == 128 + signal.SIGTERM
    kept = read_tensors(tmp_path / "first" / "checkpoints" / "best.pt")["projection"]["0.weight"]
    (tmp_path / "first" / "checkpoints" / "best.pt").unlink()
    assert run_cli("finetune", "--resume", second) == 0
    head_weight = read_tensors(second / "checkpoints" / "last.pt")["projection"]["0.weight"]
    assert torch.allclose(head_weight, kept, atol=1e-4)


def test_init_with_a_place_that_holds_nothing_is_refused(tmp_path: Path, capsys) -> None:
    assert run_cli("finetune", *QUICK, "--init", tmp_path / "nothing", "--out", tmp_path / "run") == 2
    assert "no checkpoint or run folder at" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_no_epochs_are_refused_before_anything_is_written(tmp_path: Path, capsys) -> None:
    for seeds in ([], ["--seeds", "0-1"]):
        assert run_cli("finetune", *QUICK, "--epochs", 0, *seeds, "--out", tmp_path / "x") == 2
        assert "train.epochs 0 leaves the classifier untrained" in capsys.readouterr().err
        assert not (tmp_path / "x").exists()
