"""What a training run is asked for, checked against the images before any work, and the remarks that it calls for."""

import numpy as np

from schane_cli.distributed import world_size
from schane_cli.errors import BadRequest
from schane_cli.images.augmentation import check_policies
from schane_cli.images.imageset import ImageSet
from schane_cli.models.model import SchaneModel
from schane_cli.preflight import require_combinations
from schane_cli.recipe import Recipe, TrainRecipe
from schane_cli.timm_names import require_optimizer
from schane_cli.training import batchnorm
from schane_cli.training.objective import contrastive_weight
from schane_cli.training.trackers import check_trackers

FEW_POSITIVES = 0.5  # a smaller share of anchors with a positive is remarked on
FEW_VAL_IMAGES = 50  # fewer that choose the epoch are remarked on: one of them is two points or more


def check_request(recipe: Recipe, train: ImageSet) -> None:
    """BadRequest for what cannot be trained; a run of no epochs has no batches that could be wrong."""
    check_trackers(recipe.train.trackers)
    check_policies(recipe.augment)
    require_optimizer(recipe.train.optimizer)
    require_combinations(recipe, world_size())
    if recipe.train.epochs:
        check_batch(recipe.train, train)
        check_positives(recipe, train)


def check_batch(settings: TrainRecipe, train: ImageSet) -> None:
    """BadRequest for a batch that these images cannot fill."""
    if settings.batch_size > len(train):
        raise BadRequest(
            f"batch size {settings.batch_size} is larger than the {len(train)} training images; lower --batch-size"
        )
    classes = settings.classes_per_batch
    if classes and (classes > len(train.class_names) or settings.batch_size % classes):
        raise BadRequest(
            f"train.classes_per_batch {classes} must divide the batch size {settings.batch_size} and be at most "
            f"the {len(train.class_names)} classes"
        )


def check_positives(recipe: Recipe, train: ImageSet) -> None:
    """BadRequest for a contrastive term whose batches can hold no positive, or no negative: it would be constant."""
    if contrastive_weight(recipe.loss) == 0 or recipe.loss.memory_size:  # a memory holds both
        return
    name, images = recipe.loss.name, images_in_pool(recipe)
    ways_out = "or train with --loss ce"
    if images < 2:
        raise BadRequest(f"--loss {name} needs negatives, and a batch is one image; raise --batch-size, {ways_out}")
    if recipe.augment.views > 1:
        return
    if name == "simclr":
        raise BadRequest(f"--loss simclr has the other views of an image as positives; set augment.views=2, {ways_out}")
    if np.bincount(train.labels).max() == 1 or images_of_a_class(recipe) == 1:
        raise BadRequest(
            f"--loss {name} has no positives: a batch holds one image of each class, in one view; set augment.views=2, "
            f"{ways_out}"
        )


def images_in_pool(recipe: Recipe) -> int:
    """Images among which an anchor finds its positives and negatives."""
    parts = world_size() if recipe.loss.contrastive_pool == "local" else 1
    return recipe.train.batch_size // parts


def images_of_a_class(recipe: Recipe) -> int | None:
    """Images of each class in a balanced batch; None where batches are drawn at random."""
    classes = recipe.train.classes_per_batch
    return recipe.train.batch_size // classes if classes else None


def share_with_positive(recipe: Recipe, train: ImageSet) -> float:
    """The share of anchors that a random batch holds a positive for, in expectation."""
    if recipe.augment.views > 1:
        return 1.0
    others = np.bincount(train.labels)[train.labels] - 1  # of each image's class
    return float(np.mean(1 - (1 - others / max(len(train) - 1, 1)) ** (images_in_pool(recipe) - 1)))


def remarks(recipe: Recipe, train: ImageSet, model: SchaneModel) -> list[str]:
    """What a run does differently from what one would expect, one sentence each."""
    settings, said = recipe.train, []
    if not settings.epochs:
        return []
    chunked = settings.chunk_size is not None and settings.chunk_size < settings.batch_size
    if chunked and batchnorm.has_batchnorm(model) and batchnorm.choice(recipe) != "frozen":
        said.append(
            f"BatchNorm normalises each chunk of {settings.chunk_size} images on its own, so the gradient is not "
            "exactly that of the whole batch; it is with train.batchnorm=frozen"
        )
    drawn_at_random = not settings.classes_per_batch and not recipe.loss.memory_size
    if contrastive_weight(recipe.loss) and drawn_at_random and recipe.loss.name != "simclr":
        share = share_with_positive(recipe, train)
        if share < FEW_POSITIVES:
            said.append(
                f"about {share:.0%} of the anchors have a positive in their batch; augment.views=2, "
                "train.classes_per_batch or a larger --batch-size gives more of them one"
            )
    return said


def val_remark(n: int, epochs: int) -> list[str]:
    """A sentence where `n` val images choose among `epochs` epochs and are too few to choose well."""
    if epochs < 2 or n >= FEW_VAL_IMAGES:
        return []
    return [f"val chooses the epoch; each of its {n} images counts {100 / n:.1f} points, which blurs close epochs"]
