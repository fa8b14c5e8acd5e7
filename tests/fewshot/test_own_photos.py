"""A classifier for a few photos of each class: left-out predictions in closed form, against fits without the photo."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from schane_cli.fewshot import own_photos
from schane_cli.fewshot.own_photos import judge


def _photos(counts: list[int], spread: float, d: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    means = torch.randn(len(counts), d, generator=generator)
    return means[labels] + spread * torch.randn(len(labels), d, generator=generator), labels


@pytest.mark.parametrize("name", ["nearest class mean", "ridge regression (alpha 1)", "ridge regression (alpha 0.01)"])
def test_left_out_logits_are_those_of_a_classifier_fitted_without_the_photo(name: str) -> None:
    embedding, labels = _photos([5, 3, 2], 0.8)
    rows = F.normalize(embedding.double(), dim=1)
    if name == "nearest class mean":
        ours = own_photos._centroid_left_out(rows, labels, 3)
    else:
        strength = list(own_photos.RIDGES).index(name)
        ours = own_photos._ridge_left_out(rows, labels, 3)[strength]
    for i in range(len(labels)):
        kept = torch.arange(len(labels)) != i
        expected = own_photos._fit(name, rows[kept], labels[kept], 3)(rows[i : i + 1])[0]
        torch.testing.assert_close(ours[i], expected, rtol=1e-6, atol=1e-8)


def test_photos_that_are_apart_are_told_apart_and_noise_is_called_noise() -> None:
    embedding, labels = _photos([5] * 6, 0.3)
    judged = judge(embedding, labels, 6)
    assert judged.right.mean() == 1
    assert (judged.classifier(embedding).argmax(1) == labels).all()
    shuffled = labels[torch.randperm(30, generator=torch.Generator().manual_seed(2))]
    assert judge(torch.randn(30, 16, generator=torch.Generator().manual_seed(1)), shuffled, 6).right.mean() < 0.4


def test_one_photo_a_class_gives_a_classifier_and_no_estimate() -> None:
    embedding, labels = _photos([1, 1, 1], 0.1)
    judged = judge(embedding, labels, 3)
    assert np.isnan(judged.right).all()
    assert (judged.classifier(embedding).argmax(1) == labels).all()


def test_a_class_of_one_photo_is_not_counted_and_two_hundred_classes_work() -> None:
    embedding, labels = _photos([1, *[3] * 199], 0.2, d=64)
    judged = judge(embedding, labels, 200)
    assert np.isnan(judged.right).sum() == 1
    assert np.nanmean(judged.right) > 0.9


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="every one of at least two classes needs a photo"):
        judge(torch.randn(3, 4), torch.zeros(3, dtype=torch.long), 1)
