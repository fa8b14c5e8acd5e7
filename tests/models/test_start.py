"""How a model starts: a classifier of zeros, and projections at the embedding's scale."""

import math
from typing import Any, ClassVar

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from schane_cli.models.backbone import zero_classifier
from schane_cli.models.model import build_model, projection_head
from schane_cli.recipe import build_recipe

# The smallest of each family, and all that draw their classifier in a way of their own.
FAMILIES = [
    "cs3darknet_focus_s",
    "convnext_atto",
    "densenet121",
    "edgenext_xx_small",
    "efficientnet_b0",
    "efficientvit_b0",
    "ese_vovnet19b_dw",
    "fasternet_t0",
    "fbnetc_100",
    "ghostnet_050",
    "hardcorenas_a",
    "hgnetv2_b0",
    "lcnet_035",
    "mambaout_femto",
    "mixer_s32_224",
    "mnasnet_small",
    "mobilenetv2_035",
    "mobilenetv3_small_050",
    "mobileone_s0",
    "mobilevit_xxs",
    "pit_ti_224",
    "poolformerv2_s12",
    "pvt_v2_b0",
    "regnetx_002",
    "repghostnet_050",
    "resnet10t",
    "resnet12",
    "starnet_s1",
    "tf_efficientnet_lite0",
    "tiny_vit_5m_224",
    "tinynet_e",
    "vit_tiny_patch16_224",
    "xcit_nano_12_p16_224",
]
CLASSES = 5


@pytest.mark.parametrize("backbone", FAMILIES)
def test_the_first_steps_cross_entropy_is_log_classes_and_the_classifier_learns(backbone: str) -> None:
    size = 224 if any(kind in backbone for kind in ("mixer", "pit", "xcit")) else 64
    recipe = build_recipe({"model": {"backbone": backbone, "weights": "random", "projection_dim": 8}})
    model = build_model(recipe.model, CLASSES, size)
    with torch.no_grad():
        features = model.train().backbone.forward_features(torch.randn(2, 3, size, size))
    embedding = model.backbone.forward_head(features, pre_logits=True)
    loss = F.cross_entropy(model.backbone.get_classifier()(embedding), torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(CLASSES), abs=1e-6)
    assert model.backbone.get_classifier().weight.grad.abs().max() > 0


class Distilled(nn.Module):
    """A backbone with the classifiers that timm's families have: two heads, a norm before a layer, a hidden layer."""

    pretrained_cfg: ClassVar[dict[str, Any]] = {}

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def get_classifier(self) -> Any:
        return tuple(self.parts)


def test_the_last_layer_of_each_part_of_a_classifier_is_zero_and_what_precedes_it_is_not() -> None:
    hidden, norm = nn.Linear(8, 16), nn.BatchNorm1d(8)
    plain = (nn.Linear(8, 3), nn.Conv2d(8, 3, 1))
    deeper = (nn.Sequential(norm, nn.Linear(8, 3)), nn.Sequential(hidden, nn.Linear(16, 3)))
    zero_classifier(Distilled(*plain, *deeper), 3)
    assert all(not part.weight.any() and not part.bias.any() for part in plain)
    assert all(not part[1].weight.any() and not part[1].bias.any() for part in deeper)
    assert hidden.weight.any()
    assert norm.weight.all()


def test_a_classifier_that_pretrained_weights_bring_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr("schane_cli.models.backbone._check_hub", lambda name: None)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **other: create(name, **other))
    recipe = build_recipe({"model": {"backbone": "test_resnet"}})
    assert build_model(recipe.model, 1000, 32).backbone.fc.weight.any()  # as many classes as the weights have
    assert not build_model(recipe.model, 999, 32).backbone.fc.weight.any()


@pytest.mark.parametrize("width", [96, 768, 1280])
@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
def test_projections_start_at_the_embeddings_scale_at_any_width(width: int, scale: float) -> None:
    torch.manual_seed(0)
    embedding = scale * torch.randn(64, width)
    projection = projection_head(width, 128)(embedding)
    assert projection.std().item() == pytest.approx(embedding.std().item(), rel=0.15)
    similarity = F.normalize(projection) @ F.normalize(projection).T
    assert similarity.fill_diagonal_(0).max() < 0.8  # biases would make the projections of small embeddings alike
