"""A resumed run trains on what it began with; images that cannot be read are counted."""

import shutil
import signal
from pathlib import Path

import pytest

from schane_cli.commands.evaluate import select_images
from schane_cli.commands.finetune import finetune
from schane_cli.errors import BadRequest
from schane_cli.models.checkpoint import load_checkpoint
from schane_cli.recipe import Recipe, build_recipe
from schane_cli.terminal import Terminal
from schane_cli.training.hooks import on_step
from schane_cli.training.interruption import Interrupted
from tests.sources import class_folders, write_image

QUIET = Terminal(quiet=True)


def small_recipe(folder: Path, **values: object) -> Recipe:
    tree = {
        "data.dataset": f"folder:{folder}",
        "data.image_size": 32,
        "data.workers": 0,
        "model.backbone": "test_resnet",
        "model.weights": "random",
        "loss.name": "ce",
        "train.epochs": 2,
        "train.batch_size": 8,
        "train.warmup_epochs": 0,
        "device": "cpu",
    }
    return build_recipe({}, {**tree, **values})


@pytest.fixture
def stopped(tmp_path: Path) -> tuple[Path, Path]:
    """(data, run): a run on a folder that was stopped after its first step."""
    data, run = tmp_path / "data", tmp_path / "run"
    class_folders(data, {"cat": 20, "dog": 20}, ".png")
    with on_step(lambda _: signal.raise_signal(signal.SIGTERM)), pytest.raises(Interrupted):
        finetune(small_recipe(data), out=run, terminal=QUIET)
    return data, run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rename", "classes: 'cat' is gone, 'zebra' is new"),
        ("add", "train has 29 images, 28 then"),
        ("remove", "images"),
        ("overwrite", "the same names but other content"),
        ("none", ""),
    ],
)
def test_a_resumed_run_refuses_other_images_than_it_began_with(
    change: str, message: str, stopped: tuple[Path, Path]
) -> None:
    data, run = stopped
    if change == "rename":
        shutil.move(data / "cat", data / "zebra")
    elif change == "add":
        write_image(data / "cat" / "more.png")
    elif change == "remove":
        (data / "cat" / "cat_3.png").unlink()
    elif change == "overwrite":
        write_image(data / "dog" / "dog_3.png")
    if not message:
        assert finetune(small_recipe(data), out=None, terminal=QUIET, resume=run)["images_left_out"] == 0
        return
    with pytest.raises(BadRequest, match=f"no longer what this run began with: .*{message}"):
        finetune(small_recipe(data), out=None, terminal=QUIET, resume=run)


def test_a_model_scored_on_data_that_has_changed_says_so(tmp_path: Path) -> None:
    class_folders(tmp_path / "data", {"cat": 20, "dog": 20}, ".png")
    recipe = small_recipe(tmp_path / "data", **{"train.epochs": 1, "data.broken": "leave_out"})
    (tmp_path / "data" / "cat" / "cat_7.png").write_bytes(b"")
    summary = finetune(recipe, out=tmp_path / "run", terminal=QUIET)
    assert summary["images_left_out"] == 1
    loaded = load_checkpoint(tmp_path / "run")
    assert not any("WARNING" in note for note in select_images(loaded, recipe.data, "test").notes)
    assert select_images(loaded, recipe.data, "test").left_out == 1
    write_image(tmp_path / "data" / "cat" / "more.png")
    write_image(tmp_path / "data" / "cat" / "more2.png")
    assert any("the data has changed since training" in n for n in select_images(loaded, recipe.data, "test").notes)
