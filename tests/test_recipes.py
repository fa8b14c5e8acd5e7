"""Every recipe that comes with the package: its header, its model, optimizer, schedule and loader."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from schane_cli.datasets.catalog import DATASETS, Dataset, class_list
from schane_cli.images.imageset import ImageSet
from schane_cli.images.loader import StepSampler, TrainViews, train_transform
from schane_cli.models.model import SchaneModel, build_model
from schane_cli.recipe import Recipe, build_recipe, find_recipe, read_recipe, recipe_names, resolve_recipe
from schane_cli.training.optimizer import make_optimizer, make_scheduler, optimizer_groups

FULL = ["cifar100", "cub200", "caltech256", "flowers102", "pets", "inat2017", "places365", "imagenet1k"]
FEW = ["cifarfs", "fc100", "miniimagenet", "tieredimagenet"]
BASE_CLASSES = {"cifarfs": 64, "fc100": 60, "miniimagenet": 64, "tieredimagenet": 351}


@cache
def load(name: str) -> Recipe:
    return build_recipe(read_recipe(find_recipe(name)))


def training_images(recipe: Recipe, dataset: Dataset) -> int:
    """Images left to train on after val (and test, where there is none) are carved out."""
    data = recipe.data
    classes = BASE_CLASSES.get(dataset.name, dataset.classes)
    if data.train_per_class is not None:
        return data.train_per_class * classes
    count = dataset.counts.get("train", dataset.counts.get("all", 0))
    if "all" in dataset.counts:
        count = round(count * (1 - data.test_fraction))
    return count if "val" in dataset.counts and not dataset.fewshot else round(count * (1 - data.val_fraction))


@pytest.mark.parametrize("name", FULL + FEW)
def test_each_paper_experiment_has_a_recipe_at_the_releases_operating_point(name: str) -> None:
    recipe = load(name)
    assert recipe.data.dataset == name
    assert (recipe.model.backbone, recipe.model.drop_path, recipe.data.image_size) == ("beit_base", 0.15, 224)
    assert (recipe.loss.contrastive_weight, recipe.loss.temperature, recipe.loss.hardness) == (0.9, 0.5, 1.0)
    assert (recipe.train.weight_decay, recipe.train.layer_decay, recipe.train.min_lr) == (0.05, 0.65, 1e-6)
    expected = (340, 2.3e-4) if name == "flowers102" else (1024, 7e-4)
    assert (recipe.train.batch_size, recipe.train.lr) == expected
    assert recipe.train.epochs == (100 if name in FEW else 50)
    if name in FEW:
        few = recipe.fewshot
        assert (few.ways, few.shots, few.queries, few.episodes) == (5, (1, 5), 15, 3000)
        assert (few.normalize, few.support_copies) == (False, 5)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_what_it_reproduces_and_expects(name: str) -> None:
    text = find_recipe(name).read_text()
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert "Reproduces:" in text
    assert "Command:" in text
    assert ("Measured:" in text) != ("Not run here yet" in " ".join(text.replace("#", " ").split()))
    assert max(map(len, text.splitlines())) <= 114
    assert 20 < len(header[0]) <= 110, "the first line is what `recipes ls` shows"


def test_the_papers_figure_is_in_the_recipe_of_imagenet() -> None:
    assert "86.14 %" in find_recipe("imagenet1k").read_text()


@pytest.mark.parametrize("name", FULL + FEW)
def test_a_dataset_alone_picks_up_its_recipe_and_its_twin(name: str) -> None:
    resolved, changed = resolve_recipe(recipe=None, dataset=name, overrides={"loss.name": "ce"})
    assert resolved.train == load(name).train, "the same number of images per step"
    assert changed == [f"loss.name ce (recipe {name}: schane)"]


def model_on_meta(recipe: Recipe, n_classes: int) -> SchaneModel:
    with torch.device("meta"):
        return build_model(recipe.model, n_classes, recipe.data.image_size, load_weights=False)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_builds_model_optimizer_schedule_and_loader(name: str) -> None:
    recipe = load(name)
    dataset = DATASETS[recipe.data.dataset]
    classes = BASE_CLASSES.get(dataset.name, dataset.classes)
    model = model_on_meta(recipe, classes)
    size = recipe.data.image_size
    outputs = model.eval()(torch.empty(2, 3, size, size, device="meta"))
    assert outputs.logits.shape == (2, classes)
    assert outputs.projection.shape == (2, recipe.model.projection_dim)

    groups = optimizer_groups(model, recipe)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters()), "each parameter once"
    if recipe.train.layer_decay < 1:
        scales = {group.get("lr_scale", 1.0) for group in groups}
        assert max(scales) == 1.0
        assert min(scales) < 0.05

    images = training_images(recipe, dataset)
    labels = np.arange(images) % classes
    settings = recipe.train
    sampler = StepSampler(labels, batch_size=settings.batch_size, epochs=settings.epochs, seed=recipe.seed)
    assert sampler.steps_per_epoch >= 1
    assert len(next(iter(sampler))) == settings.batch_size
    optimizer = make_optimizer(model, recipe, torch.device("cpu"))
    scheduler = make_scheduler(optimizer, settings, sampler.total_steps, sampler.steps_per_epoch)
    rates = []
    for step in range(0, sampler.total_steps + 1, max(1, sampler.total_steps // 200)):
        scheduler.step_update(step)
        rates.append(max(group["lr"] for group in optimizer.param_groups))
    assert max(rates) == pytest.approx(settings.lr, rel=0.05)
    assert rates[0] < max(rates)
    assert rates[-1] < 0.05 * settings.lr

    pixels = np.zeros((2, 40, 40, 3), dtype=np.uint8)
    tiny = ImageSet("tiny", "train", pixels, np.array([0, 1]), ("a", "b"), ("0", "1"))
    views = TrainViews(tiny, train_transform(recipe.augment, size), views=recipe.augment.views, seed=0)
    assert views.__getitems__([(0, 1)])[0].shape == (1, recipe.augment.views, 3, size, size)


def test_the_base_classes_are_those_of_the_class_lists() -> None:
    assert {name: len(class_list(name)["train"]) for name in FEW} == BASE_CLASSES


def test_the_small_recipes_take_the_small_weights(real_data: Path) -> None:
    weights = real_data / "weights" / "mobilenetv2_035_tf_imagenet_backbone.pt"
    for name in ("cifar100_small", "cifarfs_small"):
        recipe = build_recipe(read_recipe(find_recipe(name)), {"model.weights": str(weights)})
        model = build_model(recipe.model, 10, recipe.data.image_size)
        assert model.backbone.pretrained_cfg["mean"] == [0.5, 0.5, 0.5]
        assert {module.eps for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {1e-3}
