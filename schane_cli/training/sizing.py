"""Epochs and batch size from the number of images, and an estimate of the time."""

from copy import deepcopy
from time import perf_counter

import torch

from schane_cli.features.extract import normalise
from schane_cli.images.loader import TrainViews, train_transform, worker_count
from schane_cli.models.model import place
from schane_cli.recipe import Recipe
from schane_cli.training.trainer import Job

FEWEST_EPOCHS, MOST_EPOCHS = 5, 50
SAMPLE = 8  # images of the estimate


def sized(recipe: Recipe, n_train: int) -> Recipe:
    """The recipe with the epochs that see about `train.seen_images` images, 5 to 50 of them, and a batch that is at
    most a quarter of the images. With `train.seen_images` 0 the epochs stay; where it is not set, both stay."""
    goal = recipe.train.seen_images
    if goal is None:
        return recipe
    epochs = min(max(round(goal / n_train), FEWEST_EPOCHS), MOST_EPOCHS) if goal else recipe.train.epochs
    batch = min(recipe.train.batch_size, max(n_train // 4, 1))
    chunk = recipe.train.chunk_size
    update = {"epochs": epochs, "batch_size": batch, "chunk_size": min(chunk, batch) if chunk else None}
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=update)})


def estimated_seconds(job: Job) -> float:
    """About how long the training takes, from a few images taken through loader and model once.

    The model that is timed is a copy and the random numbers are put back, so that the run itself is not affected.
    """
    settings, views = job.recipe.train, job.recipe.augment.views
    dataset = TrainViews(job.train, train_transform(job.recipe.augment, job.spec.size), views=views, seed=0)
    count = min(SAMPLE, len(job.train))
    started = perf_counter()
    pixels = dataset.__getitems__([(0, index) for index in range(count)])[0].flatten(0, 1)
    loading = (perf_counter() - started) / count
    model = place(deepcopy(job.model), job.device).train()
    with torch.random.fork_rng(devices=[job.device] if job.device.type == "cuda" else []):
        computing = min(_step_seconds(model, normalise(pixels, job.spec, job.device)) for _ in range(2)) / count
    workers = worker_count(job.recipe.data, job.train)
    per_image = max(loading / workers, computing) if workers else loading + computing
    return per_image * settings.all_epochs * (len(job.train) // settings.batch_size) * settings.batch_size


def _step_seconds(model: torch.nn.Module, pixels: torch.Tensor) -> float:
    started = perf_counter()
    outputs = model(pixels)
    (outputs.logits.float().sum() + outputs.projection.float().sum()).backward()
    if pixels.device.type == "cuda":
        torch.cuda.synchronize(pixels.device)
    return perf_counter() - started


def in_words(seconds: float) -> str:
    """`40 s`, `7 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
