"""What a run is refused for before any work, and what it says of itself at the start."""

from pathlib import Path

import numpy as np
import pytest

from schane_cli.commands.fewshot import fewshot
from schane_cli.datasets.load import load_splits
from schane_cli.errors import BadRequest
from schane_cli.images.imageset import ImageSet
from schane_cli.models.model import build_model
from schane_cli.terminal import Terminal
from schane_cli.training import request
from schane_cli.training.request import check_request, remarks, share_with_positive, val_remark
from tests.jobs import tiny_recipe


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_splits(tiny_recipe().data).train


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"loss__name": "simclr", "augment__views": 1}, "simclr has the other views of an image as positives"),
        ({"train__batch_size": 1}, "needs negatives, and a batch is one image"),
        ({"augment__views": 1, "train__classes_per_batch": 10, "train__batch_size": 10}, "has no positives"),
    ],
)
def test_a_contrastive_term_that_could_only_be_constant_is_refused(
    digits: ImageSet, overrides: dict, said: str
) -> None:
    with pytest.raises(BadRequest, match=f"{said}.*or train with --loss ce"):
        check_request(tiny_recipe(**overrides), digits)
    check_request(tiny_recipe(**overrides | {"loss__name": "ce"}), digits)


def test_one_image_of_each_class_in_one_view_has_no_positives(digits: ImageSet) -> None:
    one_each = digits.subset(np.array([np.flatnonzero(digits.labels == label)[0] for label in range(10)]), "train")
    with pytest.raises(BadRequest, match="--loss supcon has no positives.*augment.views=2"):
        check_request(tiny_recipe(loss__name="supcon", augment__views=1, train__batch_size=5), one_each)
    check_request(tiny_recipe(loss__name="supcon", augment__views=2, train__batch_size=5), one_each)


def test_a_process_of_one_image_has_no_negatives_in_its_own_pool(
    digits: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "world_size", lambda: 25)
    check_request(tiny_recipe(), digits)
    with pytest.raises(BadRequest, match="needs negatives"):
        check_request(tiny_recipe(loss__contrastive_pool="local"), digits)


def test_a_memory_brings_positives_from_earlier_steps(digits: ImageSet) -> None:
    check_request(tiny_recipe(loss__name="simclr", augment__views=1, loss__memory_size=200), digits)


def test_the_share_of_anchors_with_a_positive_is_that_of_random_batches(digits: ImageSet) -> None:
    recipe = tiny_recipe(augment__views=1, train__batch_size=4)
    generator = np.random.default_rng(0)
    drawn = digits.labels[np.array([generator.choice(len(digits), 4, replace=False) for _ in range(4000)])]
    counted = np.mean([[(row == label).sum() > 1 for label in row] for row in drawn])
    assert share_with_positive(recipe, digits) == pytest.approx(counted, abs=0.02)
    assert share_with_positive(tiny_recipe(), digits) == 1


def test_a_run_says_when_few_anchors_have_a_positive(digits: ImageSet) -> None:
    model = build_model(tiny_recipe().model, 10, 32)
    (said,) = remarks(tiny_recipe(augment__views=1, train__batch_size=4), digits, model)
    assert said.startswith("about 25% of the anchors have a positive in their batch")
    assert remarks(tiny_recipe(augment__views=1), digits, model) == []
    assert remarks(tiny_recipe(augment__views=1, train__batch_size=4, loss__name="ce"), digits, model) == []


@pytest.mark.parametrize(
    ("overrides", "exact"),
    [
        ({}, True),
        ({"train__chunk_size": 25}, True),
        ({"train__chunk_size": 5}, False),
        ({"train__chunk_size": 5, "train__batchnorm": "frozen"}, True),
        ({"train__chunk_size": 5, "model__backbone": "test_vit"}, True),
    ],
)
def test_chunks_with_batchnorm_say_that_the_gradient_is_not_exact(
    digits: ImageSet, overrides: dict, exact: bool
) -> None:
    recipe = tiny_recipe(**overrides)
    said = remarks(recipe, digits, build_model(recipe.model, 10, 32))
    assert said == [] if exact else "each chunk of 5 images on its own" in said[0]


def test_a_run_says_when_few_images_choose_its_epoch() -> None:
    assert val_remark(50, 10) == val_remark(8, 1) == []
    (said,) = val_remark(8, 10)
    assert "each of its 8 images counts 12.5 points" in said


def test_weights_that_are_not_trained_may_have_any_batch_size(tmp_path: Path) -> None:
    recipe = tiny_recipe(train__epochs=0, train__batch_size=4096, fewshot__episodes=5, fewshot__ways=2)
    summary = fewshot([], recipe, allow_seen_classes=False, out=tmp_path / "run", terminal=Terminal(quiet=True))
    assert summary["views_forwarded"] == 0
    with pytest.raises(BadRequest, match="batch size 4096 is larger than"):
        fewshot(
            [],
            tiny_recipe(train__batch_size=4096, fewshot__episodes=5, fewshot__ways=2),
            allow_seen_classes=False,
            out=tmp_path / "trained",
            terminal=Terminal(quiet=True),
        )


def test_adapters_with_statistics_that_no_checkpoint_would_hold_are_refused(digits: ImageSet) -> None:
    lora = {"model__lora_rank": 2, "model__weights": "base.pt", "train__batchnorm": "running"}
    with pytest.raises(BadRequest, match="leave out train.batchnorm=running"):
        check_request(tiny_recipe(**lora), digits)
