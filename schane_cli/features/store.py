"""Embeddings, projections and logits on disk: extracted once, block by block, and read back without holding them all.

A store is a folder `results/cache/<key>` with one safetensors file per block of images, each written completely or not
at all. The key is made of the checkpoint's content, the images', and everything that affects pixels and precision, so
that nothing stale is ever served; a stopped extraction continues at the first missing block; and of several processes
(torchrun, on a file system they share) each makes every world-size-th block.
"""

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from schane_cli.distributed import on_first, rank, same_everywhere, world_size
from schane_cli.errors import SchaneError
from schane_cli.features.extract import computed, scoring_batch
from schane_cli.images.imageset import ImageSet
from schane_cli.images.loader import Batch, eval_loader, train_transform, view_loader, worker_count
from schane_cli.images.preprocessing import eval_transform
from schane_cli.models.checkpoint import Loaded
from schane_cli.models.model import Outputs, place
from schane_cli.recipe import AugmentRecipe, Recipe
from schane_cli.run import RESULTS, remove_dead, temporary
from schane_cli.terminal import Task, Terminal

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

BLOCK = 4096  # images per file: 31 MB for the three outputs of a ViT-B with 1,000 classes


@dataclass(frozen=True)
class RandomView:
    """Random training view `number` of `seed` of each image, in place of the image as it is evaluated."""

    augment: AugmentRecipe
    seed: int
    number: int


@dataclass(frozen=True)
class FeatureStore:
    """The outputs of one checkpoint for the `n_images` of a set, or a random view of each, in blocks of `block`."""

    folder: Path
    n_images: int
    block: int
    view: RandomView | None = None

    def file(self, number: int) -> Path:
        """The file of block `number`."""
        return self.folder / f"{number:06d}.safetensors"

    def slices(self) -> list[slice]:
        """The images of every block."""
        starts = range(0, self.n_images, self.block)
        return [slice(start, min(start + self.block, self.n_images)) for start in starts]

    def missing(self) -> list[int]:
        """Blocks that are not there yet."""
        return [number for number in range(len(self.slices())) if not self._whole(number)]

    def _whole(self, number: int) -> bool:
        """Whether block `number` is there with the checksums it was written with; a damaged one is extracted again."""
        try:
            with safe_open(self.file(number), "numpy") as file:
                checksums = file.metadata() or {}
                return all(checksum(file.get_tensor(name)) == checksums.get(name) for name in Outputs._fields)
        except (OSError, SafetensorError, ValueError):
            return False

    def read(self, number: int, layer: str) -> Floats:
        """The `layer` ("embedding", "projection" or "logits") of block `number`, (block, width)."""
        with safe_open(self.file(number), "numpy") as file:
            values: Floats = file.get_tensor(layer)
            return values

    def blocks(self, layer: str) -> Iterator[tuple[slice, Floats, Floats]]:
        """Block by block: its images, their `layer` and their logits."""
        for number, images in enumerate(self.slices()):
            yield images, self.read(number, layer), self.read(number, "logits")

    def rows(self, layer: str, images: Ints) -> Floats:
        """The `layer` of `images`, given in ascending order, (len(images), width)."""
        parts = []
        for number, block in enumerate(self.slices()):
            inside = images[(images >= block.start) & (images < block.stop)]
            if len(inside):
                parts.append(self.read(number, layer)[inside - block.start])
        return np.concatenate(parts)


def stored_features(
    loaded: Loaded,
    images: ImageSet,
    recipe: Recipe,
    *,
    device: torch.device,
    amp: str,
    terminal: Terminal,
    description: str,
    view: RandomView | None = None,
) -> tuple[FeatureStore, int]:
    """The filled store of this checkpoint and these images, and how many were missing; `description` names the bar."""
    store = feature_store(loaded, images, device=device, amp=amp, view=view)
    slices = store.slices()
    n_missing = sum(slices[block].stop - slices[block].start for block in store.missing())
    with terminal.task(description, len(images), "img", done=len(images) - n_missing) as task:
        fill(
            store,
            loaded,
            images,
            device=device,
            batch_size=scoring_batch(recipe.train),
            workers=worker_count(recipe.data, images),
            amp=amp,
            task=task,
        )
    return store, n_missing


def feature_store(
    loaded: Loaded, images: ImageSet, *, device: torch.device, amp: str, view: RandomView | None = None
) -> FeatureStore:
    """Where the outputs of this checkpoint for these images lie, or will lie."""
    with loaded.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(repr((images.fingerprint(), loaded.input, device.type, amp, BLOCK, view)).encode())
    return FeatureStore(RESULTS / "cache" / f"features-{digest.hexdigest()[:40]}", len(images), BLOCK, view)


@torch.no_grad()
def fill(
    store: FeatureStore,
    loaded: Loaded,
    images: ImageSet,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    amp: str,
    task: Task | None = None,
) -> None:
    """Extract the blocks that are missing from `store`, in one pass; returns when every process is done."""
    # one list for all: a process that looks later would find fewer missing, and take others' blocks for its own
    own = same_everywhere(store.missing())[rank() :: world_size()]
    on_first(lambda: _prepare_folder(store.folder))
    slices = store.slices()
    indices = np.concatenate([np.arange(slices[b].start, slices[b].stop) for b in own]) if own else np.empty(0, int)
    model = place(loaded.model, device).eval()
    waiting: list[Outputs] = []
    for pixels, _, _ in _pixels(store.view, loaded, images, indices, batch_size, workers):
        waiting.append(computed(model, pixels, loaded.input, device, amp))
        if task is not None:
            task.advance(len(pixels) * world_size())
        while own and sum(len(part.logits) for part in waiting) >= slices[own[0]].stop - slices[own[0]].start:
            number = own.pop(0)
            waiting = _write(store.file(number), waiting, slices[number].stop - slices[number].start)
    if world_size() > 1:
        dist.barrier()


def checksum(values: Floats) -> str:
    """CRC-32 of an array's bytes."""
    return f"{zlib.crc32(np.ascontiguousarray(values).data):08x}"


def _prepare_folder(folder: Path) -> None:
    """Make the store's folder and remove what dead processes left half-written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_dead(folder)
    except OSError as error:
        raise SchaneError(f"{folder} cannot be written: {error.strerror or error}") from None


def _pixels(
    view: RandomView | None, loaded: Loaded, images: ImageSet, indices: np.ndarray, batch_size: int, workers: int
) -> Iterable[Batch]:
    size = loaded.input.size
    if view is None:
        transform = eval_transform(loaded.input)
        return eval_loader(images, transform, batch_size=batch_size, workers=workers, indices=indices)
    return view_loader(
        images,
        train_transform(view.augment, size),
        seed=view.seed,
        number=view.number,
        batch_size=batch_size,
        workers=workers,
        indices=indices,
    )


def _write(path: Path, waiting: list[Outputs], size: int) -> list[Outputs]:
    """Save the first `size` images of `waiting` whole; returns the rest."""
    columns = Outputs(*(torch.cat(column) for column in zip(*waiting, strict=True)))
    tensors = {name: column[:size].contiguous() for name, column in columns._asdict().items()}
    unfinished = temporary(path)
    try:
        save_file(tensors, unfinished, {name: checksum(tensor.numpy()) for name, tensor in tensors.items()})
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise SchaneError(
            f"{path} cannot be written ({error}); free some space, and the same command continues from the first "
            "missing block"
        ) from None
    rest = Outputs(*(column[size:] for column in columns))
    return [rest] if len(rest.logits) else []
