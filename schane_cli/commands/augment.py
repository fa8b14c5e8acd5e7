"""`schane augment`: the random views that a recipe trains on, of a few training images, to look at."""

from dataclasses import dataclass

import numpy as np
import torch

from schane_cli.datasets.load import load_splits
from schane_cli.errors import BadRequest
from schane_cli.images.augmentation import check_policies
from schane_cli.images.imageset import ImageSet
from schane_cli.images.loader import TrainViews, train_transform
from schane_cli.recipe import Recipe

IMAGES, EPOCHS = 8, 4


@dataclass(frozen=True)
class Views:
    """`images[i]` uint8 (3, H, W), and V views of each in E epochs: uint8 (n, V, E, 3, S, S)."""

    images: list[torch.Tensor]
    class_names: list[str]
    views: torch.Tensor
    seed: int


def augment(recipe: Recipe) -> Views:
    """The views that training by `recipe` draws in its first epochs, of up to eight training images of as many classes.

    A recipe of one view shows it in eight epochs, one of more shows each view in four.

    Raises:
        BadRequest: a dataset or a policy that is not there.
    """
    check_policies(recipe.augment)
    train = load_splits(recipe.data).train
    if not len(train):
        raise BadRequest(f"{recipe.data.dataset} has no training images")
    chosen, n_views = _one_per_class(train), recipe.augment.views
    transform = train_transform(recipe.augment, recipe.data.image_size)
    loader = TrainViews(train, transform, views=n_views, seed=recipe.seed)
    epochs = [
        loader.__getitems__([(epoch, int(index)) for index in chosen])[0]
        for epoch in range(2 * EPOCHS if n_views == 1 else EPOCHS)
    ]
    return Views(
        images=[train.read(int(index)) for index in chosen],
        class_names=[train.class_names[train.labels[index]] for index in chosen],
        views=torch.stack(epochs, dim=2),
        seed=recipe.seed,
    )


def _one_per_class(train: ImageSet) -> np.ndarray:
    """The first image of eight classes spread over the list; more of each where there are fewer classes."""
    classes = np.unique(train.labels)
    spread = classes[np.unique(np.linspace(0, len(classes) - 1, IMAGES).astype(int))]
    share = -(-IMAGES // len(spread))
    chosen = [np.flatnonzero(train.labels == label)[:share] for label in spread]
    return np.concatenate(chosen)[:IMAGES]
