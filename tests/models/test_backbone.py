"""Backbones: which can be used at all, at which size, with which arguments, and that their logits are their own."""

from typing import Any, ClassVar

import pytest
import timm
import torch
from torch import nn

from schane_cli.errors import BadRequest
from schane_cli.models import backbone as backbone_module
from schane_cli.models.backbone import classifier_keys, find_heads
from schane_cli.models.model import SchaneModel, build_model, dry_pass, freeze, place
from schane_cli.recipe import build_recipe

# Two heads, a norm or a second layer in the head, a convolution in place of it. Nothing large: 224 px where fixed.
UNUSUAL_HEADS = [
    ("resnetv2_18", 64),
    ("dla34", 64),
    ("dpn48b", 64),
    ("repvit_m0_9", 64),
    ("caformer_s18", 64),
    ("efficientvit_m0", 224),
    ("shvit_s1", 224),
    ("levit_128s", 224),
    ("deit_tiny_distilled_patch16_224", 224),
    ("pit_ti_distilled_224", 224),
    ("crossvit_tiny_240", 240),
]


def _model(backbone: str = "test_resnet", size: int = 32, **settings: object) -> SchaneModel:
    recipe = build_recipe({"model": {"backbone": backbone, "weights": "random", **settings}})
    return build_model(recipe.model, 7, size)


def _perturb(module: nn.Module) -> None:
    """No tensor as it was made: a zero classifier and a fresh norm would hide a head that is left out."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator).abs_() * 0.002)


@pytest.mark.parametrize(("backbone", "size"), UNUSUAL_HEADS)
def test_unusual_heads_give_the_backbones_own_logits_and_one_vector_per_image(backbone: str, size: int) -> None:
    model = _model(backbone, size).eval()
    _perturb(model)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        outputs = model(images)
        own = model.backbone(images)
    assert outputs.embedding.shape == (2, model.embedding_dim)
    assert own.std() > 0
    torch.testing.assert_close(outputs.logits, own)


def test_freezing_the_backbone_leaves_both_heads_of_a_distilled_one() -> None:
    model = _model("deit_tiny_distilled_patch16_224", 224)
    freeze(model, ("backbone",))
    trained = {name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad}
    assert (
        trained == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"} == classifier_keys(model.backbone)
    )


class _Strange(nn.Module):
    """A backbone whose forward does more than its forward_head."""

    pretrained_cfg: ClassVar[dict[str, Any]] = {}
    num_classes = 7

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 7)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def forward_head(self, maps: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return maps.mean((2, 3)) if pre_logits else self.fc(maps.mean((2, 3)))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 2 * self.forward_head(images)


def test_a_backbone_whose_logits_are_not_those_of_its_head_is_refused() -> None:
    with pytest.raises(BadRequest, match="computes its logits by more than forward_head"):
        find_heads(_Strange(), "test_resnet", 8)


def test_a_backbone_without_a_pooled_feature_is_refused() -> None:
    strange = _Strange()
    strange.forward = strange.forward_head  # type: ignore[method-assign]
    strange.forward_head = lambda maps, pre_logits=False: maps if pre_logits else _Strange.forward_head(strange, maps)  # type: ignore[method-assign]
    with pytest.raises(BadRequest, match=r"pools to \(3, 8, 8\), not to one vector"):
        find_heads(strange, "test_resnet", 8)


@pytest.mark.parametrize(
    ("backbone", "size", "own"), [("vgg11", 16, 224), ("inception_v3", 32, 299), ("test_vit", 40, 160)]
)
def test_a_size_that_the_backbone_cannot_take_is_refused_with_its_own(backbone: str, size: int, own: int) -> None:
    with pytest.raises(BadRequest, match=f"{backbone}.*cannot take images of {size} px.*its own size is {own} px"):
        _model(backbone, size)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_classes": 5}, "the dataset says how many classes"),
        ({"in_chans": 1}, "in_chans 1 is not possible"),
        ({"features_only": True}, "a run needs the whole backbone"),
        ({"global_pool": ""}, "an empty global_pool leaves no pooled feature"),
        ({"checkpoint_path": "weights.pt"}, "pass the file by --init"),
        ({"pretrained": True}, "model.weights says"),
        ({"pretrained_cfg": {"file": "weights.pt"}}, "model.weights says"),
        ({"pretrained_cfg_overlay": {"file": "weights.pt"}}, "sets preprocessing only.*got 'file'"),
        ({"pretrained_cfg_overlay": {"hf_hub_id": "a/b", "mean": [0.5] * 3}}, "got 'hf_hub_id'"),
        ({"pretrained_cfg_overlay": "weights.pt"}, "got 'weights.pt'"),
        ({"cache_dir": "/tmp"}, "HF_HUB_CACHE"),
        ({"no_such_argument": 1}, "does not take these arguments"),
    ],
)
def test_arguments_that_are_not_the_users_to_set_are_refused(arguments: dict, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        _model(args=arguments)


def test_an_old_checkpoint_whose_arguments_named_a_file_still_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.models._helpers.load_checkpoint", lambda *_: pytest.fail("a file was loaded"))
    arguments = {"pretrained_cfg_overlay": {"file": "weights.pt", "mean": [0.5] * 3}, "checkpoint_path": "weights.pt"}
    recipe = build_recipe({"model": {"backbone": "test_resnet", "args": arguments}})
    model = build_model(recipe.model, 7, 32, load_weights=False)
    assert model.backbone.pretrained_cfg["mean"] == [0.5] * 3
    assert not model.backbone.pretrained_cfg.get("file")


def test_preprocessing_may_be_set() -> None:
    model = _model(args={"pretrained_cfg_overlay": {"mean": [0.1, 0.2, 0.3], "interpolation": "bilinear"}})
    assert model.backbone.pretrained_cfg["interpolation"] == "bilinear"


def test_a_pass_of_one_row_is_refused_where_batchnorm_cannot_take_it_and_leaves_no_trace() -> None:
    model = _model("test_resnet", 32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(BadRequest, match="BatchNorm cannot be trained on a pass of one row"):
        dry_pass(model, 1, 32, torch.device("cpu"))
    dry_pass(model, 2, 32, torch.device("cpu"))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_channels_last_leaves_weights_of_five_dimensions_alone() -> None:
    model = _model("test_resnet", 32)
    model.backbone.five = nn.Parameter(torch.zeros(1, 2, 3, 4, 5))
    placed = place(model, torch.device("cpu"))
    assert placed.backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_backbone_that_crashes_torch_in_channels_last_stays_in_its_own_layout() -> None:
    placed = place(_model("mobileone_s1", 64), torch.device("cpu"))
    assert not any(
        parameter.is_contiguous(memory_format=torch.channels_last) and not parameter.is_contiguous()
        for parameter in placed.parameters()
        if parameter.ndim == 4
    )
    placed.train()(torch.randn(4, 3, 64, 64)).logits.sum().backward()


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "mixer_s32_224"])
def test_a_size_whose_last_pixels_no_patch_covers_is_said(backbone: str) -> None:
    (note,) = _model(backbone, 101).notes
    assert f"{backbone} does not see the last 5 of 101 px" in note
    assert _model(backbone, 96).notes == []


def test_short_names_are_timm_models() -> None:
    for full in backbone_module.SHORT_NAMES.values():
        assert timm.is_model(full.partition(".")[0])
