"""The commands of docs/paper.md, from start to end on a few images in the real layout of each dataset."""

import re
from pathlib import Path

import numpy as np
import pytest

from schane_cli.datasets.catalog import class_list
from tests import sources
from tests.conftest import run_cli
from tests.test_recipes import FEW, FULL

ROOT = Path(__file__).parents[1]
SMALL = ["--backbone", "test_vit", "--init", "random", "--epochs", 1, "--batch-size", 3, "--device", "cpu"]
SMALL += ["--set", "data.image_size=32", "--set", "train.warmup_epochs=0", "--chunk-size", 2]
EPISODES = ["--ways", 2, "--shots", "1", "--queries", 1, "--episodes", 4]


def cifar100(folder: Path, patch: pytest.MonkeyPatch) -> None:
    labels = np.repeat(np.arange(100), 4)
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    sources.cifar100_archive(folder, (pixels, labels), (pixels[::4] ^ 255, labels[::4]), patch)


def imagenet(folder: Path) -> None:
    sources.imagenet1k(folder, dict.fromkeys(["n01440764", "n01443537", "n01484850"], 12))


def miniimagenet(root: Path) -> None:
    lists = {split: {name: [1, 2, 12] for name in names[:3]} for split, names in class_list("miniimagenet").items()}
    sources.imagenet1k(root / "imagenet1k", {name: 12 for names in lists.values() for name in names})
    sources.ravi_lists(root / "miniimagenet", lists)


def tieredimagenet(root: Path) -> None:
    sources.imagenet1k(root / "imagenet1k", {n: 2 for names in class_list("tieredimagenet").values() for n in names})


def lay_out(name: str, root: Path, patch: pytest.MonkeyPatch) -> None:
    """A few images of a dataset as its source delivers them."""
    makers = {
        "cub200": sources.cub200, "caltech256": sources.caltech256, "pets": sources.pets, "inat2017": sources.inat2017,
        "imagenet1k": imagenet,
    }  # fmt: skip
    (root / name).mkdir(parents=True, exist_ok=True)
    if name in ("cifar100", "cifarfs", "fc100"):
        cifar100(root / "cifar100", patch)
    elif name in ("flowers102", "places365"):
        getattr(sources, name)(root / name, patch)
    elif name in ("miniimagenet", "tieredimagenet"):
        globals()[name](root)
    else:
        makers[name](root / name)


@pytest.mark.parametrize("name", FULL + FEW)
def test_each_experiment_of_the_paper_runs_on_a_cut_of_its_dataset(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "paper.md").read_text()
    (command,) = re.findall(rf"`schane (\w+) --recipe {name}` \|", page)
    lay_out(name, tmp_path, monkeypatch)
    more = EPISODES if command == "fewshot" else []
    arguments = [command, "--recipe", name, "--data-root", tmp_path, *SMALL, *more, "--out", tmp_path / "run"]
    assert run_cli(*arguments) == 0
    assert (tmp_path / "run" / "report.html").is_file()
