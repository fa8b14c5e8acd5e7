"""`schane average`: the mean of several runs, chosen on val, as a run that the other commands take."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from schane_cli.commands.average import mean_weights
from schane_cli.commands.compare import compare
from schane_cli.datasets.load import load_splits
from schane_cli.models.checkpoint import load_checkpoint
from schane_cli.models.files import read_tensors
from schane_cli.models.model import build_model
from schane_cli.training import batchnorm
from tests.conftest import run_cli
from tests.jobs import run_tiny, tiny_recipe


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that several runs begin from."""
    file = tmp_path_factory.mktemp("start") / "weights.pt"
    torch.manual_seed(0)
    recipe = tiny_recipe()
    torch.save(build_model(recipe.model, 10, recipe.data.image_size).backbone.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, start: Path) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        run_tiny(folder / f"s{seed}", seed=seed, model__weights=str(start), train__batchnorm="running")
    return [folder / f"s{seed}" for seed in range(3)]


def test_a_uniform_average_is_the_mean_of_the_weights_and_a_run_for_every_command(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mean"
    assert run_cli("average", *runs, "--soup", "uniform", "--out", out, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    made, parts = load_checkpoint(out), [load_checkpoint(run) for run in runs]
    buffers = {name for name, _ in made.model.named_buffers()}
    for name, tensor in made.model.state_dict().items():
        expected = torch.stack([part.model.state_dict()[name].double() for part in parts]).mean(0)
        if name not in buffers:
            assert torch.allclose(tensor.double(), expected, atol=1e-7), name
    assert summary["average"] == "uniform of 3"
    assert (summary["test_n"], summary["val_n"]) == (109, 83)
    assert all(one["kept"] for one in summary["ingredients"])
    assert (out / "report.html").is_file()
    assert run_cli("eval", out, "--split", "val", "--out", tmp_path / "eval", "--json") == 0
    assert json.loads(capsys.readouterr().out)["val_accuracy"] == summary["val_accuracy"]
    assert run_cli("export", out, "--out", tmp_path / "export") == 0
    assert run_cli("report", out) == 0


@pytest.mark.usefixtures("blank_pictures")
def test_the_greedy_average_is_never_worse_on_val_than_the_best_run(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("average", runs[0].parent, "--soup", "greedy", "--out", tmp_path / "soup", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    alone = [one["val_accuracy"] for one in summary["ingredients"]]
    assert len(alone) == 3, "a folder of seeds stands for its runs"
    assert alone == [json.loads((run / "summary.json").read_text())["val_accuracy"] for run in runs]
    assert summary["val_accuracy"] >= max(alone)
    blocks, _ = compare([str(runs[0]), str(tmp_path / "soup")], metric=None, baseline=None, common_seeds=True)
    assert {group.label for group in blocks[0].groups} >= {"average=none", "average=greedy of 3"}


@pytest.mark.usefixtures("blank_pictures")
def test_the_last_epochs_of_a_run_are_kept_and_averaged(
    tmp_path: Path, start: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_tiny(run, train__keep_epochs=2, model__weights=str(start), train__ema_decay=None)
    kept = sorted(file.name for file in (run / "checkpoints").iterdir())
    assert kept == ["best.pt", "epoch-00002.pt", "epoch-00003.pt", "last.pt"]
    last, final = (read_tensors(run / "checkpoints" / name) for name in ("last.pt", "epoch-00003.pt"))
    assert all(torch.equal(tensor, final["state_dict"][key]) for key, tensor in last["state_dict"].items())
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    second = next(line for line in logged if line["event"] == "epoch" and line["epoch"] == 2)
    progress = read_tensors(run / "checkpoints" / "epoch-00002.pt")["progress"]
    assert (progress["epoch"], progress["val_accuracy"]) == (2, second["val_accuracy"])
    assert run_cli("average", run, "--soup", "uniform", "--out", tmp_path / "mean", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["ingredients"]) == 2


def test_statistics_are_the_means_over_batches_of_training_views(runs: list[Path]) -> None:
    loaded = load_checkpoint(runs[0])
    recipe, train = loaded.recipe, load_splits(loaded.recipe.data).train
    weights = {name: tensor.clone() for name, tensor in loaded.model.named_parameters()}
    first = next(module for module in loaded.model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    seen: list[torch.Tensor] = []
    handle = first.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].mean((0, 2, 3))))
    batchnorm.re_estimate(loaded.model, train, recipe, loaded.input, torch.device("cpu"))
    handle.remove()
    assert len(seen) == 4  # of 25 images
    assert torch.allclose(first.running_mean, torch.stack(seen).mean(0), atol=1e-6)
    assert first.momentum == 0.1
    assert not loaded.model.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.model.named_parameters())


def test_the_mean_of_counts_is_the_firsts() -> None:
    states = [
        {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(4)},
        {"w": torch.tensor([3.0, 2.0]), "n": torch.tensor(9)},
    ]
    assert mean_weights(states)["w"].tolist() == [2.0, 2.0]
    assert mean_weights(states)["n"].item() == 4


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"model__backbone": "test_vit"}, "one is test_vit, the other test_resnet"),
        ({"model__projection_dim": 32}, r"projection.2.bias has another shape, \(32,\) and \(128,\) \(2 tensors"),
        ({"data__split_seed": 1}, "was chosen on other images: val has other images or labels"),
        ({"data__train_on": "trainval"}, "was trained on val too"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    runs: list[Path], tmp_path: Path, overrides: dict, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_tiny(tmp_path / "other", train__epochs=1, **overrides)
    assert run_cli("average", runs[0], tmp_path / "other", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert re.search(said, " ".join(error.split())), error
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("blank_pictures")
def test_runs_from_different_starts_are_said_to_be_so(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_tiny(tmp_path / "other", train__epochs=1, model__weights="random")
    out = tmp_path / "mean"
    assert run_cli("average", runs[0], tmp_path / "other", "--out", out, "--json") == 0
    said = capsys.readouterr()
    assert "did not start from the same weights" in " ".join(said.err.split())
    best = max(json.loads(said.out)["ingredients"], key=lambda one: one["val_accuracy"])
    assert json.loads(said.out)["val_accuracy"] >= best["val_accuracy"], "the best run alone is a choice too"


def test_other_classes_one_run_and_unknown_soups_are_refused(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs[1], tmp_path / "renamed")
    content = read_tensors(runs[1] / "checkpoints" / "best.pt")
    content["class_names"][3] = "drei"
    torch.save(content, tmp_path / "renamed" / "checkpoints" / "best.pt")
    for arguments, said in (
        ((runs[0], tmp_path / "renamed"), "classes: '3' is gone, 'drei' is new"),
        ((runs[0],), "needs two checkpoints or more"),
        ((runs[0], runs[0]), "given a checkpoint twice"),
        ((*runs, "--soup", "greed"), "unknown --soup 'greed'"),
        ((runs[0], tmp_path / "none"), "no checkpoint or run folder at"),
    ):
        assert run_cli("average", *arguments, "--out", tmp_path / "out") == 2
        assert said in " ".join(capsys.readouterr().err.split())
