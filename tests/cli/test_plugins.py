"""A package that somebody installs beside schane brings a dataset, a loss and a few-shot classifier of its own."""

import json
from pathlib import Path

import pytest

from schane_cli.errors import BadRequest
from schane_cli.features import store as stores
from schane_cli.models.checkpoint import load_checkpoint
from schane_cli.recipe import build_recipe
from tests.cli.test_finetune import QUICK
from tests.conftest import run_cli

CODE = '''
import numpy as np
import torch
from torch import nn

from schane_cli.datasets.catalog import Dataset
from schane_cli.images.imageset import ImageSet, Names

class Blobs(Dataset):
    title, licence, source, classes, counts = "Blobs", "CC0", "https://example.org", 10, {"all": 400}

    def read(self, root):
        labels = np.arange(400) % 10
        pixels = np.random.default_rng(0).integers(0, 60, (400, 32, 32, 3))
        pixels[np.arange(400), labels * 3] += 190  # class k has a bright row 3 k
        names = Names(f"{i:03d}" for i in range(400))
        classes = tuple(f"row {3 * k}" for k in range(10))
        return {"all": ImageSet("blobs", "all", pixels.astype(np.uint8), labels, classes, names)}

class Pull(nn.Module):
    """Minus the mean cosine between images of one class, times `strength`."""

    def __init__(self, temperature: float, strength: float = 1.0) -> None:
        super().__init__()
        self.scale = strength / temperature
        self.stats = {}

    def forward(self, projection, labels):
        unit = nn.functional.normalize(projection, dim=1)
        same = (labels[:, None] == labels).float()
        self.stats = {"pulled_pairs": same.sum().detach()}
        return -self.scale * (unit @ unit.T * same).sum() / same.sum()

def first_shot(support, query):
    """The nearest first shot of each class."""
    return -torch.cdist(query, support[:, :, 0])
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package as pip leaves it in a site folder."""
    site = tmp_path / "site"
    info = site / "tiny_schane_package-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "tiny_schane_package.py").write_text(CODE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-schane-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[schane.datasets]\nblobs = tiny_schane_package:Blobs\n"
        "[schane.losses]\npull = tiny_schane_package:Pull\n"
        "[schane.classifiers]\nfirst-shot = tiny_schane_package:first_shot\n"
    )
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(stores, "RESULTS", tmp_path / "results")


def test_an_installed_dataset_loss_and_classifier_are_used_and_the_checkpoint_loads_without_the_package(
    installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("data", "ls", "--root", tmp_path) == 0
    assert "blobs" in capsys.readouterr().out
    out = tmp_path / "run"
    few = ["--shots", 1, "--episodes", 20, "--classifier", "centroid,first-shot"]
    loss = ["--loss", "pull", "--set", "loss.args={strength: 2}"]
    whole = ["--recipe", "digits", "--dataset", "blobs", "--set", "data.train_per_class=null", "--epochs", 1]
    assert run_cli("fewshot", *QUICK, *whole, *few, *loss, "--out", out) == 0
    results = {one["classifier"]: one for one in json.loads((out / "summary.json").read_text())["results"]}
    # With one shot the class mean is the first shot.
    assert results["first-shot"]["accuracy"] == results["centroid"]["accuracy"]
    assert any("pulled_pairs" in line for line in (out / "metrics.jsonl").read_text().splitlines())
    monkeypatch.undo()
    with pytest.raises(BadRequest, match="unknown loss 'pull'; known: schane, easy, supcon, simclr, ce"):
        build_recipe({"loss": {"name": "pull"}})
    assert load_checkpoint(out).recipe.with_values({"device": "cpu"}).loss.args == {"strength": 2}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["finetune", "--loss", "pul"], "loss.name: unknown loss 'pul'; did you mean 'pull'?; known: schane, easy"),
        (["finetune", "--set", "loss.args={strength: 2}"], "loss.args does not act with schane"),
        (["finetune", "--loss", "pull", "--set", "loss.args={strenght: 2}"], "the loss 'pull' cannot be built:"),
        (["fewshot", "--classifier", "first_shot"], "unknown classifier 'first_shot'; did you mean 'first-shot'?"),
    ],
)
def test_a_wrong_name_or_argument_is_one_sentence(
    installed: None, flags: list[str], said: str, tmp_path: Path, capsys
) -> None:
    assert run_cli(flags[0], *QUICK, *flags[1:], "--out", tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
