"""Epochs and batch by the number of images."""

import pytest

from schane_cli.recipe import build_recipe, resolve_recipe
from schane_cli.training.sizing import in_words, sized
from tests.jobs import tiny_recipe


@pytest.mark.parametrize(
    ("images", "epochs", "batch"), [(20, 50, 5), (500, 20, 64), (1000, 10, 64), (40_000, 5, 64), (3, 50, 1)]
)
def test_about_the_asked_number_of_images_is_seen(images: int, epochs: int, batch: int) -> None:
    recipe = build_recipe({}, {"train.seen_images": 10_000, "train.batch_size": 64})
    chosen = sized(recipe, images).train
    assert (chosen.epochs, chosen.batch_size) == (epochs, batch)


def test_epochs_that_are_given_stay_and_the_batch_still_fits_the_images() -> None:
    recipe, changed = resolve_recipe(recipe=None, dataset="csv:/x.csv", overrides={"train.epochs": 3})
    chosen = sized(recipe, 18).train
    assert (chosen.epochs, chosen.batch_size) == (3, 4)
    assert [line.split()[0] for line in changed] == ["data.dataset", "train.epochs"]


def test_a_recipe_that_names_its_epochs_keeps_them() -> None:
    recipe = tiny_recipe()
    assert sized(recipe, 7) is recipe


def test_times_read_as_people_say_them() -> None:
    assert [in_words(s) for s in (40, 420, 9000)] == ["40 s", "7 min", "2.5 h"]
