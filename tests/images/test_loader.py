"""Views that depend on their key alone, samplers that start anywhere, and colour kernels equal to torchvision's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from schane_cli.errors import BadRequest
from schane_cli.images import transforms as color
from schane_cli.images.imageset import ImageSet, Names
from schane_cli.images.loader import (
    EvalViews,
    StepSampler,
    TrainViews,
    eval_loader,
    train_loader,
    train_transform,
    worker_count,
)
from schane_cli.images.preprocessing import InputSpec, eval_transform
from schane_cli.images.transforms import crop_boxes, uniforms, view_keys
from schane_cli.recipe import AugmentRecipe, DataRecipe

SPEC = InputSpec(16, (0.5,) * 3, (0.5,) * 3, 0.9)


def image_set(count: int = 24, size: int = 20, *, even: bool = True) -> ImageSet:
    generator = np.random.default_rng(0)
    pixels = [
        generator.integers(0, 256, (size + (0 if even else i % 5), size + 4, 3), dtype=np.uint8) for i in range(count)
    ]
    images = np.stack(pixels) if even else pixels
    return ImageSet("set", "train", images, np.arange(count) % 4, tuple("abcd"), Names(map(str, range(count))))


def batches(
    images: ImageSet, *, workers: int = 0, batch_size: int = 8, start: int = 0, rank: int = 0, world: int = 1
) -> list:
    sampler = StepSampler(
        images.labels, batch_size=batch_size, epochs=2, seed=3, start_step=start, rank=rank, world=world
    )
    transform = train_transform(AugmentRecipe(rotation=5), 16)
    return list(train_loader(images, sampler, transform, views=2, workers=workers, pin_memory=False))


def by_index(loaded_views: list, first: int = 0) -> dict[tuple[int, int], torch.Tensor]:
    """{(epoch, index): views} of batches of which three make an epoch."""
    return {
        ((first + step) // 3, int(index)): views
        for step, (pixels, _, indices) in enumerate(loaded_views)
        for views, index in zip(pixels, indices, strict=True)
    }


def test_a_batch_has_the_shapes_it_promises() -> None:
    pixels, labels, indices = batches(image_set())[0]
    assert (pixels.shape, pixels.dtype) == (torch.Size([8, 2, 3, 16, 16]), torch.uint8)
    assert labels.tolist() == [index % 4 for index in indices.tolist()]
    assert not pixels[:, 0].equal(pixels[:, 1]), "the two views differ"


@pytest.mark.parametrize("even", [True, False])
def test_any_worker_count_gives_the_same_pixels(even: bool) -> None:
    images = image_set(even=even)
    alone = batches(images)
    for one, other in zip(alone, batches(images, workers=2), strict=True):
        assert all(a.equal(b) for a, b in zip(one, other, strict=True))


def test_a_run_taken_up_in_the_middle_sees_what_it_would_have_seen() -> None:
    images = image_set()
    whole, rest = batches(images), batches(images, start=4)
    assert len(rest) == 2
    for one, other in zip(whole[4:], rest, strict=True):
        assert all(a.equal(b) for a, b in zip(one, other, strict=True))


def test_processes_share_the_batch_and_its_pixels() -> None:
    images = image_set()
    whole = by_index(batches(images))
    parts = [by_index(batches(images, rank=rank, world=2)) for rank in range(2)]
    assert not parts[0].keys() & parts[1].keys()
    together = parts[0] | parts[1]
    assert together.keys() == whole.keys()
    assert all(together[key].equal(whole[key]) for key in whole)


def test_an_image_looks_different_in_every_epoch_and_view() -> None:
    loaded_views = by_index(batches(image_set()))
    views = torch.cat([loaded_views[epoch, 5] for epoch in (0, 1)])
    assert len({bytes(view.numpy().tobytes()) for view in views}) == 4


def test_drawing_views_leaves_the_random_stream_of_training_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches(image_set())
    assert torch.get_rng_state().equal(before)


def test_as_a_transform_it_draws_from_torchs_generator() -> None:
    transform = train_transform(AugmentRecipe(), 16)
    image = image_set().read(0)
    torch.manual_seed(1)
    first, second = transform(image), transform(image)
    torch.manual_seed(1)
    assert transform(image).equal(first)
    assert not first.equal(second)


def test_one_item_equals_its_place_in_a_batch() -> None:
    views = TrainViews(image_set(), train_transform(AugmentRecipe(), 16), views=2, seed=3)
    batch = views.__getitems__([(1, 4), (1, 9), (0, 2)])
    pixels, label, index = views[1, 9]
    assert pixels.equal(batch[0][1])
    assert (int(label), int(index)) == (1, 9)


def test_nothing_random_left_gives_the_resized_image() -> None:
    augment = AugmentRecipe(crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, color_jitter_p=0, grayscale=0)
    image = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    view = train_transform(augment, 20)(image)
    assert view.equal(tv.resize(image, [20, 20], interpolation=v2.InterpolationMode.BICUBIC, antialias=True))


# the numbers that views are made of


def test_uniforms_are_uniform_and_keys_unrelated() -> None:
    keys = view_keys(0, np.zeros(20_000, np.int64), np.arange(20_000), 2)
    assert len(np.unique(keys)) == 40_000
    draws = uniforms(keys[:, 0], 4)
    assert draws.min() >= 0
    assert draws.max() < 1
    deciles = np.stack([np.histogram(column, 10, (0, 1))[0] for column in draws.T])
    assert np.abs(deciles - 2000).max() < 5 * np.sqrt(2000)
    correlations = np.corrcoef(np.column_stack([draws[:-1], draws[1:]]).T) - np.eye(8)
    assert np.abs(correlations).max() < 0.04


@pytest.mark.parametrize(("height", "width"), [(375, 500), (32, 32), (40, 400), (400, 40)])
def test_crops_are_distributed_as_torchvisions(height: int, width: int) -> None:
    scale, ratio, count = (0.2, 1.0), (0.75, 4 / 3), 4000
    draws = uniforms(view_keys(1, np.zeros(count, np.int64), np.arange(count), 1)[:, 0], 22)
    ours = crop_boxes(draws, np.tile([height, width], (count, 1)), scale, ratio)
    crop = v2.RandomResizedCrop(8, scale=scale, ratio=ratio)
    image = torch.empty(3, height, width, dtype=torch.uint8)
    torch.manual_seed(0)
    rows = [crop.make_params([image]) for _ in range(count)]
    theirs = np.array([[row[key] for key in ("top", "left", "height", "width")] for row in rows])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    for mine, other in zip(ours.T.astype(float), theirs.T.astype(float), strict=True):
        error = 4.5 * np.sqrt((mine.var() + other.var()) / count) + 1e-9
        assert abs(mine.mean() - other.mean()) < error
        assert abs(mine.std() - other.std()) < 0.06 * other.std() + 1e-9


def picture(count: int = 3) -> torch.Tensor:
    """Random pixels, with greys, pure colours and equal channels among them."""
    images = torch.randint(0, 256, (count, 3, 24, 24), dtype=torch.uint8)
    images[:, :, 0] = images[:, :1, 0]
    images[:, :, 1] = torch.eye(3, dtype=torch.uint8).repeat(1, 8) * 255
    images[:, 1, 2] = images[:, 0, 2]
    images[:, 2, 3] = images[:, 1, 3]
    return images


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (color.adjust_brightness, tv.adjust_brightness, (0.6, 1.0, 1.4)),
        (color.adjust_contrast, tv.adjust_contrast, (0.6, 1.0, 1.4)),
        (color.adjust_saturation, tv.adjust_saturation, (0.0, 0.6, 1.4)),
        (color.adjust_hue, tv.adjust_hue, (-0.5, -0.1, 0.07, 0.33)),
    ],
)
def test_colour_equals_torchvisions_within_a_level(ours: object, theirs: object, factors: tuple[float, ...]) -> None:
    images = picture(len(factors))
    pixels = images.float() / 255
    ours(pixels, torch.tensor(factors).view(-1, 1, 1))  # type: ignore[operator]
    expected = torch.stack([theirs(image.float() / 255, factor) for image, factor in zip(images, factors, strict=True)])  # type: ignore[operator]
    assert ((pixels - expected).abs() * 255).max() < 1
    assert ((pixels - expected).abs() * 255).mean() < 0.05


def test_recolouring_follows_the_order_and_spares_the_rest() -> None:
    images = picture(4)
    before = images.clone()
    factors = np.array([[1.3, 0.7, 1.2, 0.05]] * 4)
    order = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [0, 1, 2, 3], [1, 0, 3, 2]])
    color.recolor(images, factors, order, np.array([1, 1, 0, 0], bool), np.array([0, 0, 0, 1], bool))
    assert images[2].equal(before[2])
    assert (images[3][0].int() - tv.rgb_to_grayscale(before[3])[0].int()).abs().max() <= 1
    steps = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for row in (0, 1):
        expected = before[row].float() / 255
        for step in order[row]:
            expected = steps[step](expected, float(factors[row, step]))
        assert (images[row].float() - expected * 255).abs().max() < 1.6


def test_jitter_and_flips_happen_as_often_as_asked() -> None:
    augment = AugmentRecipe(crop_scale=(1, 1), crop_ratio=(1, 1), flip=0.3, color_jitter_p=0.0, grayscale=0.25)
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[0, :, :4] = 200
    keys = view_keys(0, np.zeros(2000, np.int64), np.arange(2000), 1)[:, 0]
    views = train_transform(augment, 8).many([image] * 2000, keys)
    flipped = views[:, 0, 0, 7] > 0
    grey = views[:, 0].eq(views[:, 1]).all(2).all(1)
    assert abs(flipped.double().mean() - 0.3) < 0.05
    assert abs(grey.double().mean() - 0.25) < 0.05


# evaluation


@pytest.mark.parametrize("even", [True, False])
def test_evaluation_views_are_the_same_one_by_one_and_in_batches(even: bool) -> None:
    images = image_set(even=even)
    transform = eval_transform(SPEC)
    single = [transform(images.read(i)) for i in range(len(images))]
    for workers in (0, 2):
        loaded_views = list(eval_loader(images, transform, batch_size=7, workers=workers))
        assert torch.cat([pixels for pixels, _, _ in loaded_views]).equal(torch.stack(single))
        assert torch.cat([indices for _, _, indices in loaded_views]).tolist() == list(range(len(images)))
    assert EvalViews(images, transform)[3][0].equal(single[3])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_on_the_way_is_one_sentence(workers: int, tmp_path: Path) -> None:
    paths = []
    for number in range(4):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (20, 20)).save(paths[-1])
    paths[2].write_bytes(b"no image")
    images = ImageSet("set", "test", paths, np.zeros(4, np.int64), ("a", "b"), tuple(map(str, paths)))
    with pytest.raises(BadRequest) as caught:
        list(eval_loader(images, eval_transform(SPEC), batch_size=2, workers=workers))
    assert str(caught.value) == f"image {paths[2]} cannot be read: cannot identify image file"


# the order of images


def test_the_sampler_starts_anywhere() -> None:
    labels = np.arange(50) % 5
    whole = list(StepSampler(labels, batch_size=10, epochs=3, seed=1))
    for start in (0, 1, 7, 14):
        assert list(StepSampler(labels, batch_size=10, epochs=3, seed=1, start_step=start)) == whole[start:]
    late = StepSampler(np.zeros(1000, np.int64), batch_size=10, epochs=10**9, seed=1, start_step=10**10)
    assert len(next(iter(late))) == 10, "the start costs nothing, however late"


def test_an_epoch_sees_every_image_at_most_once() -> None:
    whole = list(StepSampler(np.arange(53) % 5, batch_size=10, epochs=2, seed=1))
    first = [index for batch in whole[:5] for _, index in batch]
    assert len(set(first)) == 50
    assert first != [index for batch in whole[5:] for _, index in batch]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_balanced_batches_are_exact_under_several_processes(world: int) -> None:
    labels = np.repeat(np.arange(10), [5, 6, 30, 8, 9, 12, 7, 11, 40, 3])
    options = {"batch_size": 24, "epochs": 4, "seed": 2, "classes_per_batch": 4}
    ranks = [list(StepSampler(labels, rank=rank, world=world, **options)) for rank in range(world)]
    for step, batch in enumerate(StepSampler(labels, **options)):
        together = [item for rank in ranks for item in rank[step]]
        assert sorted(together) == sorted(batch)
        classes, counts = np.unique(labels[[index for _, index in batch]], return_counts=True)
        assert len(classes) == 4
        assert set(counts) == {6}
        for label in classes:
            members = [index for _, index in batch if labels[index] == label]
            assert len(set(members)) == min(6, int((labels == label).sum())), "no image twice while there are others"


def test_balanced_batches_visit_all_classes_alike() -> None:
    labels = np.repeat(np.arange(10), 10)
    sampler = StepSampler(labels, batch_size=20, epochs=200, seed=2, classes_per_batch=5)
    seen = np.bincount(np.concatenate([labels[sampler.batch(step)[::4]] for step in range(1000)]), minlength=10)
    assert np.abs(seen / seen.mean() - 1).max() < 0.15


def test_small_images_in_memory_need_no_workers_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert worker_count(DataRecipe(), image_set()) == 0
    assert worker_count(DataRecipe(), image_set(size=100)) == 5
    assert worker_count(DataRecipe(), image_set(even=False)) == 5
    assert worker_count(DataRecipe(workers=3), image_set()) == 3
