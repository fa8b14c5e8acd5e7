"""Views of images and the order they come in, both a pure function of the seed, so that a resumed run repeats them."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from schane_cli.errors import SchaneError
from schane_cli.images.imageset import ImageSet, KeptFiles
from schane_cli.images.preprocessing import EvalTransform
from schane_cli.images.transforms import RandomViews, view_keys
from schane_cli.images.workers import explain_worker_failure, workers_that_fit
from schane_cli.recipe import AugmentRecipe, DataRecipe

_SMALL_PIXELS = 64 * 64
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # pixels, labels, indices


def train_transform(augment: AugmentRecipe, size: int) -> RandomViews:
    """uint8 (3, H, W) -> a random uint8 view (3, size, size). Draws from torch's default generator only."""
    return RandomViews(augment, size)


class TrainViews(Dataset):
    """Item (epoch, index) -> (views uint8 (V, 3, S, S), label, index). The image is decoded once for all its views.

    Every random number comes from (seed, epoch, index, view), so that the pixels are the same in any process and at
    any batch size, and no other random stream is touched.
    """

    def __init__(self, images: ImageSet, transform: RandomViews, *, views: int, seed: int) -> None:
        self.images, self.transform, self.views, self.seed = images, transform, views, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        views, labels, indices = self.__getitems__([item])
        return views[0], labels[0], indices[0]

    def __getitems__(self, items: list[tuple[int, int]]) -> Batch:
        """A whole batch: views (B, V, 3, S, S), labels (B,), indices (B,)."""
        epochs, indices = np.array(items, dtype=np.int64).T
        keys = view_keys(self.seed, epochs, indices, self.views)
        decoded = [self.images.read(int(index)) for index in indices]
        labels = torch.from_numpy(self.images.labels[indices])
        return self._cut(decoded, keys), labels, torch.from_numpy(indices)

    def _cut(self, decoded: list[torch.Tensor], keys: np.ndarray) -> torch.Tensor:
        """The views (B, V, 3, S, S) of B images by their keys (B, V), the later ones by `transform.second` if any."""
        if self.transform.second is None or self.views == 1:
            return _views_of(decoded, keys, self.transform)
        first = _views_of(decoded, keys[:, :1], self.transform)
        return torch.cat([first, _views_of(decoded, keys[:, 1:], self.transform.second)], dim=1)


def _views_of(decoded: list[torch.Tensor], keys: np.ndarray, transform: RandomViews) -> torch.Tensor:
    repeated = [image for image in decoded for _ in range(keys.shape[1])]
    views = transform.many(repeated, keys.reshape(-1))
    return views.view(len(decoded), keys.shape[1], *views.shape[1:])


class _SingleView(TrainViews):
    """Only the first view: batches (uint8 (B, 3, S, S), labels (B,), indices (B,))."""

    def __getitems__(self, items: list[tuple[int, int]]) -> Batch:
        views, labels, indices = super().__getitems__(items)
        return views[:, 0], labels, indices


# From an image as the model will see it, uint8 (3, S, S), and its index, to the same image corrupted.
Damage = Callable[[torch.Tensor, int], torch.Tensor]


class EvalViews(Dataset):
    """Item index -> (uint8 (3, S, S), label, index); `damage`, if any, comes after resizing and cropping."""

    def __init__(self, images: ImageSet, transform: EvalTransform, damage: Damage | None = None) -> None:
        self.images, self.transform, self.damage = images, transform, damage

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        pixels, labels, indices = self.__getitems__([index])
        return pixels[0], labels[0], indices[0]

    def __getitems__(self, indices: list[int]) -> Batch:
        """A whole batch: uint8 (B, 3, S, S), labels (B,), indices (B,)."""
        rows = [int(index) for index in indices]
        pixels = torch.stack([self.transform(self.images.read(row)) for row in rows])
        if self.damage is not None:
            pixels = torch.stack([self.damage(one, row) for one, row in zip(pixels, rows, strict=True)])
        return pixels, torch.from_numpy(self.images.labels[rows]), torch.tensor(rows)


class ReadableBatch(NamedTuple):
    """A batch of which some images may be unreadable: `pixels[t]` uint8 (m, 3, S, S), by transform t, of the images at
    `indices`, and (image, reason) for the others."""

    pixels: list[torch.Tensor]
    indices: list[int]
    unreadable: list[tuple[int, str]]


class ReadableViews(Dataset):
    """Item index -> its views by several transforms; an image that cannot be read is reported, not raised."""

    def __init__(self, images: ImageSet, transforms: Sequence[EvalTransform]) -> None:
        self.images, self.transforms = images, transforms

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> ReadableBatch:
        """A whole batch; each image is decoded once for all its views."""
        views: list[list[torch.Tensor]] = []
        readable: list[int] = []
        unreadable: list[tuple[int, str]] = []
        for index in map(int, indices):
            try:
                image = self.images.read(index)
                views.append([transform(image) for transform in self.transforms])
                readable.append(index)
            except (
                Exception
            ) as error:  # a damaged file can fail in a decoder in any way; the other images are still read
                unreadable.append((index, str(error) or type(error).__name__))
        return ReadableBatch([torch.stack(column) for column in zip(*views, strict=True)], readable, unreadable)


class StepSampler(Sampler[list[tuple[int, int]]]):
    """The batches of a whole training run, from any step on: lists of (epoch, index) for this process.

    The batch of a step is a function of (seed, step) alone. An epoch is n // batch_size steps over a fresh
    permutation (the remainder is left out), where `balanced` has each class drawn equally often, or, with
    `classes_per_batch` m, as many steps of m classes x batch_size / m images drawn from each. Process `rank` of `world`
    takes every world-th image of the batch.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        batch_size: int,
        epochs: int,
        seed: int,
        classes_per_batch: int | None = None,
        balanced: bool = False,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.labels, self.batch_size, self.seed = labels, batch_size, seed
        self.classes_per_batch, self.balanced, self.start_step = classes_per_batch, balanced, start_step
        self.rank, self.world = rank, world
        self.steps_per_epoch = len(labels) // batch_size
        self.total_steps = self.steps_per_epoch * epochs
        by_class = classes_per_batch or balanced
        self._members = [np.flatnonzero(labels == label) for label in np.unique(labels)] if by_class else []
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return self.total_steps - self.start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start_step, self.total_steps):
            epoch = step // self.steps_per_epoch
            yield [(epoch, int(index)) for index in self.batch(step)[self.rank :: self.world]]

    def batch(self, step: int) -> np.ndarray:
        """Indices of the whole batch of `step`, over all processes."""
        if self.classes_per_batch:
            return self._balanced_batch(step)
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self._epoch_order(np.random.default_rng((self.seed, epoch))))
        return self._order[1][within * self.batch_size : (within + 1) * self.batch_size]

    def _epoch_order(self, generator: np.random.Generator) -> np.ndarray:
        """As many indices as there are images, in random order: each once, or each class equally often."""
        if not self.balanced:
            return generator.permutation(len(self.labels))
        share = -(-len(self.labels) // len(self._members))
        drawn = np.concatenate([_draw(members, share, generator) for members in self._members])
        return generator.permutation(drawn)[: len(self.labels)]

    def _balanced_batch(self, step: int) -> np.ndarray:
        generator = np.random.default_rng((self.seed, step))
        chosen = generator.choice(len(self._members), self.classes_per_batch, replace=False)
        share = self.batch_size // len(chosen)
        return np.concatenate([_draw(self._members[c], share, generator) for c in chosen])


def _draw(members: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` of `members`, each as often as any other: a class smaller than its share is repeated."""
    rounds = [generator.permutation(members) for _ in range(-(-count // len(members)))]
    return np.concatenate(rounds)[:count]


def train_loader(
    images: ImageSet, sampler: StepSampler, transform: RandomViews, *, views: int, workers: int, pin_memory: bool
) -> DataLoader:
    """Batches (views uint8 (B, V, 3, S, S), labels (B,), indices (B,)) over all steps of the sampler."""
    dataset = TrainViews(images, transform, views=views, seed=sampler.seed)
    share = -(-sampler.batch_size // sampler.world)
    return _Loader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers_that_fit(dataset, (0, 0), share, workers),
        pin_memory=pin_memory,
        generator=_own_generator(),
        collate_fn=_as_it_is,
    )


def eval_loader(
    images: ImageSet,
    transform: EvalTransform,
    *,
    batch_size: int,
    workers: int,
    indices: np.ndarray | None = None,
    damage: Damage | None = None,
) -> DataLoader:
    """Batches (uint8 (B, 3, S, S), labels (B,), indices (B,)) in order, over all images or over `indices`."""
    order = range(len(images)) if indices is None else indices
    return _ordered(EvalViews(images, transform, damage), order, batch_size, workers)


def readable_loader(
    images: ImageSet, transforms: Sequence[EvalTransform], *, batch_size: int, workers: int, indices: np.ndarray
) -> DataLoader:
    """ReadableBatch after ReadableBatch over `indices`, in order."""
    return _ordered(ReadableViews(images, transforms), indices, batch_size, workers)


def view_loader(
    images: ImageSet,
    transform: RandomViews,
    *,
    seed: int,
    number: int,
    batch_size: int,
    workers: int,
    indices: np.ndarray,
) -> DataLoader:
    """As `eval_loader`, of one random view of each image: the one that training draws by `seed` in epoch `number`."""
    order = np.stack([np.full(len(indices), number), np.asarray(indices, dtype=np.int64)], axis=1)
    return _ordered(_SingleView(images, transform, views=1, seed=seed), order, batch_size, workers)


def _ordered(dataset: Dataset, order: Sequence[Any] | np.ndarray, batch_size: int, workers: int) -> DataLoader:
    return _Loader(
        dataset,
        batch_size=batch_size,
        sampler=order,
        num_workers=workers_that_fit(dataset, order[0], batch_size, workers) if len(order) else 0,
        generator=_own_generator(),
        collate_fn=_as_it_is,
    )


class _Loader(DataLoader):
    """A DataLoader whose worker processes fail with one sentence of ours instead of their traceback."""

    def __iter__(self) -> Any:
        try:
            yield from super().__iter__()
        except SchaneError as error:
            last = str(error).rstrip().splitlines()[-1]
            raise type(error)(last.removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")) from None
        except (RuntimeError, OSError) as error:
            explanation = explain_worker_failure(error)
            if explanation is None:
                raise
            raise SchaneError(explanation) from None


def _as_it_is(batch: Any) -> Any:
    """The data sets above make whole batches; a loader process puts them into shared memory here.

    By default multiprocessing does so in a thread of the process, where an error (no space, no more open files)
    silently drops the batch, and the run waits for it for ever.
    """
    if get_worker_info() is not None:
        for part in batch.pixels if isinstance(batch, ReadableBatch) else batch:
            part.share_memory_()
    return batch


def _own_generator() -> torch.Generator:
    """A loader draws a seed when it starts; taken from the global stream, that draw would make a resumed run differ."""
    return torch.Generator().manual_seed(0)


def worker_count(data: DataRecipe, images: ImageSet) -> int:
    """The recipe's loader processes; for -1 the cores left over, shared by the devices, at most 8.

    Without a GPU small images in memory get none: their views cost less than passing them between processes, and the
    cores have the model to run.
    """
    if data.workers >= 0:
        return min(data.workers, os.cpu_count() or 1)  # a run may come from a larger machine
    if _are_small(images) and not torch.cuda.is_available():
        return 0
    devices = max(torch.cuda.device_count(), 1)
    return max(0, min(((os.cpu_count() or 1) - devices) // devices, 8))


def _are_small(images: ImageSet) -> bool:
    """Whether images of a few pixels lie in memory, by the first one."""
    if not len(images) or not isinstance(images.images, np.ndarray | KeptFiles):
        return False
    _, height, width = images.read(0).shape
    return height * width <= _SMALL_PIXELS
