"""Images through one or several models batch by batch, held no longer than a batch; unreadable ones are passed on."""

from collections.abc import Iterator, Sequence
from copy import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from schane_cli.features.extract import computed
from schane_cli.images.imageset import ImageSet
from schane_cli.images.loader import readable_loader
from schane_cli.images.preprocessing import eval_transform
from schane_cli.models.checkpoint import Loaded
from schane_cli.models.model import Outputs, SchaneModel, place


class StreamedBatch(NamedTuple):
    """`outputs[m]` of model m, float32 on the CPU, row i for image `indices[i]`; none where no image was readable.

    Projections are not computed: in their place stands the embedding.
    """

    indices: list[int]
    outputs: list[Outputs]
    unreadable: list[tuple[int, str]]  # image, reason


@torch.no_grad()
def stream_outputs(
    models: Sequence[Loaded],
    images: ImageSet,
    indices: np.ndarray,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    amp: str,
) -> Iterator[StreamedBatch]:
    """The images at `indices`, in order, each read once and resized once for each preprocessing of the models."""
    distinct = list(dict.fromkeys(one.input for one in models))
    placed = [without_projection(place(one.model, device).eval()) for one in models]
    loader = readable_loader(
        images,
        [eval_transform(spec) for spec in distinct],
        batch_size=batch_size,
        workers=workers,
        indices=indices,
    )
    for batch in loader:
        outputs = [
            computed(model, batch.pixels[distinct.index(one.input)], one.input, device, amp)
            for one, model in zip(models, placed, strict=True)
            if batch.indices
        ]
        yield StreamedBatch(batch.indices, outputs, batch.unreadable)


def without_projection(model: SchaneModel) -> SchaneModel:
    """The same model, sharing all else, whose projection is its embedding: a small backbone's head is a tenth of it."""
    slim = copy(model)
    slim._modules = {**model._modules, "projection": nn.Identity()}
    return slim
