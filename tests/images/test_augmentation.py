"""Strong augmentation: views that depend on their key alone, timm's and torchvision's pixels, and what is refused."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import v2

from schane_cli.errors import BadRequest
from schane_cli.images import augmentation
from schane_cli.images.augmentation import check_policies, erased_box, make_policy, seed_streams, streams_put_back
from schane_cli.images.loader import StepSampler, TrainViews, train_loader, train_transform
from schane_cli.images.transforms import uniforms, view_keys
from schane_cli.recipe import AugmentRecipe, build_recipe
from tests.images.test_loader import image_set

PLAIN = {"crop_scale": (1, 1), "crop_ratio": (1, 1), "flip": 0, "color_jitter_p": 0, "grayscale": 0}
STRONG = {"policy": "rand-m9-mstd0.5-inc1", "blur": 0.5, "solarize": 0.3, "erase": 0.5}


def photograph(size: int = 24) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, size, size), dtype=np.uint8))


def keys(count: int) -> np.ndarray:
    return view_keys(0, np.zeros(count, np.int64), np.arange(count), 1)[:, 0]


def batches(augment: AugmentRecipe, *, workers: int = 0, start: int = 0, batch_size: int = 8) -> list:
    images = image_set()
    sampler = StepSampler(images.labels, batch_size=batch_size, epochs=2, seed=3, start_step=start)
    return list(train_loader(images, sampler, train_transform(augment, 16), views=2, workers=workers, pin_memory=False))


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "ta_wide", "augmix-m3", "3a", "v0-mstd0.5"])
def test_workers_and_resume_change_no_pixel_of_a_policy(policy: str) -> None:
    augment = AugmentRecipe(**{**STRONG, "policy": policy})
    alone = batches(augment)
    for one, other in zip(alone, batches(augment, workers=2), strict=True):
        assert one[0].equal(other[0])
    for one, other in zip(alone[4:], batches(augment, start=4), strict=True):
        assert one[0].equal(other[0])
    plain = batches(AugmentRecipe())
    assert not alone[0][0].equal(plain[0][0]), "the policy does something"


def test_the_size_of_the_batch_changes_no_pixel() -> None:
    augment = AugmentRecipe(**STRONG, second={"policy": "ta_wide", "solarize": 0.5})
    views = TrainViews(image_set(), train_transform(augment, 16), views=3, seed=3)
    together = views.__getitems__([(1, 4), (1, 9), (0, 2)])[0]
    assert views[1, 9][0].equal(together[1])


def test_no_random_stream_of_the_program_is_moved() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    batches(AugmentRecipe(**STRONG, second={"policy": "ta_wide"}))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert after[:2] == before[:2]
    assert after[2].equal(before[2])


def test_without_the_new_keys_the_views_are_those_of_earlier_releases() -> None:
    """The numbers that crop, flip and colours are made of are the first of a view's stream, whatever follows them."""
    key = keys(3)
    assert np.array_equal(uniforms(key, 34), uniforms(key, 60)[:, :34])
    view = train_transform(AugmentRecipe(), 8).many([photograph()] * 3, key)
    assert view.flatten(1).sum(1).tolist() == PINNED


PINNED = [32136, 18240, 18905]  # of schane 0.1.0


def test_randaugment_is_timms_own() -> None:
    view, name = photograph(), "rand-m9-mstd0.5-inc1"
    ours = view[None].clone()
    augmentation.apply_policy(ours, make_policy(name, 24), [2**63 + 5])
    settings = {"translate_const": 10, "img_mean": (128,) * 3, "interpolation": Image.Resampling.BICUBIC}
    theirs = rand_augment_transform(name, settings)
    with streams_put_back():
        seed_streams(2**63 + 5)
        expected = np.array(theirs(Image.fromarray(view.permute(1, 2, 0).contiguous().numpy())))
    assert np.array_equal(ours[0].permute(1, 2, 0).numpy(), expected)


def test_posterizing_to_no_bits_is_black_as_it_was_before_pillow_13() -> None:
    view = photograph()[None].clone()
    for number in range(400):  # magnitude 10, where timm keeps 0 bits
        augmentation.apply_policy(view, make_policy("rand-m10-n1-p1-inc1", 24), [number])
        if not view.any():
            return
        view = photograph()[None].clone()
    pytest.fail("no view was posterized to black")


def test_trivialaugment_is_torchvisions_own() -> None:
    view = photograph()
    ours = view[None].clone()
    augmentation.apply_policy(ours, make_policy("ta_wide", 24), [77])
    torch.manual_seed(77)
    expected = v2.TrivialAugmentWide()(Image.fromarray(view.permute(1, 2, 0).contiguous().numpy()))
    assert np.array_equal(ours[0].permute(1, 2, 0).numpy(), np.array(expected))


def test_each_operation_happens_as_often_as_asked() -> None:
    image, count = photograph(16), 2000
    for name, probability in (("blur", 0.3), ("solarize", 0.2), ("erase", 0.4)):
        transform = train_transform(AugmentRecipe(**PLAIN, **{name: probability}), 16)
        changed = (transform.many([image] * count, keys(count)) != image).flatten(1).any(1)
        assert abs(changed.double().mean() - probability) < 4.5 * (probability * (1 - probability) / count) ** 0.5, name


def test_solarize_inverts_what_is_bright() -> None:
    view = torch.tensor([0, 127, 128, 255], dtype=torch.uint8).expand(3, 1, 4).clone()
    augmentation.solarize(view)
    assert view[0, 0].tolist() == [0, 127, 127, 0]


def test_erased_boxes_have_the_areas_and_places_of_timm() -> None:
    boxes = np.array([erased_box(row, 64, 48) for row in uniforms(keys(4000), 22)])
    top, left, height, width = boxes.T
    assert (height > 0).all()
    assert ((top + height <= 64) & (left + width <= 48)).all()
    share = height * width / (64 * 48)
    assert share.min() > 0.015
    assert share.max() < 0.34
    assert abs(share.mean() - 0.16) < 0.02, "uniform in 2 % to a third, less the boxes too long to fit"
    assert top.min() == left.min() == 0
    assert (top + height).max() == 64


def test_an_erased_box_is_noise_and_the_rest_is_untouched() -> None:
    view = torch.zeros(3, 32, 32, dtype=torch.uint8)
    draws = uniforms(keys(1), 22)[0]
    top, left, height, width = erased_box(draws, 32, 32)
    augmentation.erase(view, draws, 5)
    inside = view[:, top : top + height, left : left + width].float()
    assert view.float().sum() == inside.sum()
    assert abs(inside.mean() - 127.5) < 25
    assert len(inside.unique()) > 30


def test_the_second_view_differs_where_the_recipe_says_so() -> None:
    augment = AugmentRecipe(**PLAIN, views=3, second={"solarize": 1.0})
    images = image_set(size=16)
    images = images.subset(np.arange(4), "train")
    views = TrainViews(images, train_transform(augment, 16), views=3, seed=0).__getitems__([(0, 1)])[0][0]
    plain = train_transform(AugmentRecipe(**PLAIN), 16)(images.read(1))
    assert views[0].equal(plain)
    assert views[1].equal(views[2])
    assert views[1].equal(torch.where(plain >= 128, 255 - plain, plain))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rand-m9-x3", r"'rand-m9-x3' has the unknown option 'x3'; rand takes m, n, p, mstd, mmax, inc, t"),
        ("rand-m", r"unknown option 'm'"),
        ("rand-tweight", r"unknown option 'tweight'.*t takes weights, 3a, 3aw"),
        ("rand-m9.5", r"timm refuses 'rand-m9.5'"),
        ("rand-tweights-n30", r"'rand-tweights-n30' cannot be run"),
        ("randaugment", r"unknown policy 'randaugment'; known: rand-m9-mstd0.5-inc1"),
        ("ta_wid", r"did you mean 'ta_wide'"),
        ("augmix-n3", r"augmix takes m, w, d, a, b, mstd"),
        ("", r"unknown policy ''"),
    ],
)
def test_a_policy_that_timm_would_refuse_or_pass_over_is_refused(name: str, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        check_policies(AugmentRecipe(policy=name))
    with pytest.raises(BadRequest, match=r"augment\.second\.policy"):
        check_policies(AugmentRecipe(second={"policy": name}))


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"policy": 3}, "augment: second: policy: input should be a valid string"),
        ({"polcy": "3a"}, "augment: second: unknown key 'polcy'; did you mean 'policy'"),
        ({"views": 2}, "second: it cannot hold 'views', which belongs to all views"),
        ({"crop_scale": [0.9, 0.5]}, "the lower end 0.9 is above the upper end 0.5"),
    ],
)
def test_a_second_view_is_checked_as_the_first_is(second: dict, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        build_recipe({"augment": {"second": second}})


def test_a_second_view_needs_two_views() -> None:
    with pytest.raises(BadRequest, match="second: there is one view"):
        build_recipe({"augment": {"views": 1, "second": {"blur": 0.5}}})


def test_one_key_of_the_second_view_can_be_set_alone() -> None:
    recipe = build_recipe({"augment": {"second": {"blur": 0.1}}}, {"augment.second.policy": "ta_wide"})
    assert recipe.augment.second == {"blur": 0.1, "policy": "ta_wide"}
    assert recipe.augment.second_view is not None
    assert (recipe.augment.second_view.policy, recipe.augment.second_view.flip) == ("ta_wide", 0.5)
    assert build_recipe(recipe.model_dump(mode="json")) == recipe
