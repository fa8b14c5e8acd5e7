"""`schane augment`: a picture of the views, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from schane_cli.commands.augment import augment
from schane_cli.datasets.load import load_splits
from schane_cli.images.loader import TrainViews, train_transform
from tests.conftest import run_cli
from tests.jobs import tiny_recipe


def test_it_shows_the_very_views_that_training_draws() -> None:
    recipe = tiny_recipe(augment__policy="ta_wide", augment__second={"solarize": 0.5})
    shown = augment(recipe)
    train = load_splits(recipe.data).train
    assert shown.views.shape[:3] == (8, 2, 4)
    assert len(set(shown.class_names)) == 8
    first = next(index for index in range(len(train)) if torch.equal(train.read(index), shown.images[0]))
    views = TrainViews(train, train_transform(recipe.augment, recipe.data.image_size), views=2, seed=recipe.seed)
    assert views[3, first][0].equal(shown.views[0, :, 3])


def test_the_command_writes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "views.png"
    wanted = ("--out", out.with_suffix(""), "--json")  # png where no suffix says otherwise
    assert run_cli("augment", "digits", "--set", "augment.policy=rand-m9-inc1", *wanted) == 0
    assert json.loads(capsys.readouterr().out) == {"command": "augment", "picture": str(out)}
    with Image.open(out) as picture:
        assert min(picture.size) > 500
    assert run_cli("augment", "digits", "--out", out) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "augment.policy=rand-k9"), "unknown option 'k9'"),
        (("--out", "views.xyz"), "views.xyz cannot be written"),
        (("--set", "augment.second.plicy=3a"), "unknown key 'plicy'; did you mean 'policy'"),
    ],
)
def test_what_it_cannot_draw_is_one_sentence(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_cli("augment", "digits", *arguments) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
