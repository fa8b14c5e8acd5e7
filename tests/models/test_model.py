"""Models: one backbone with its own classifier, weights from timm or a file, and a checkpoint timm can read."""

from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from schane_cli.errors import BadRequest, SchaneError
from schane_cli.models.backbone import SHORT_NAMES, backbone_name
from schane_cli.models.checkpoint import load_checkpoint, pack
from schane_cli.models.files import read_checkpoint, read_tensors, save_whole
from schane_cli.models.model import build_model, freeze, input_spec, is_convnet
from schane_cli.recipe import build_recipe
from tests.jobs import with_random_classifier

FAMILIES = [
    "test_resnet",
    "test_vit",
    "test_convnext",
    "test_efficientnet",
    "test_mambaout",
    "mobilenetv3_small_050",
    "resnet12",
]


def _model(backbone: str = "test_resnet", size: int = 32, **settings: object):
    recipe = build_recipe({"model": {"backbone": backbone, "weights": "random", **settings}})
    model = build_model(recipe.model, 7, size)
    return model if "weights" in settings else with_random_classifier(model)


def _saved(tmp_path: Path, backbone: str = "test_resnet", size: int = 32) -> Path:
    model = _model(backbone, size)
    recipe = build_recipe({"model": {"backbone": backbone, "weights": "random"}, "data": {"image_size": size}})
    names = tuple("abcdefg")
    path = tmp_path / "best.pt"
    save_whole(pack(model, recipe, names, input_spec(model, size), {"epoch": 1.0}), path)
    return path


@pytest.mark.parametrize("backbone", FAMILIES)
def test_logits_are_the_backbones_own(backbone: str) -> None:
    model = _model(backbone, 64).eval()
    images = torch.randn(3, 3, 64, 64)
    outputs = model(images)
    assert outputs.embedding.shape == (3, model.embedding_dim)
    assert outputs.projection.shape == (3, 128)
    assert torch.allclose(outputs.logits, model.backbone(images), atol=1e-6)


@pytest.mark.parametrize("backbone", FAMILIES)
def test_a_checkpoint_loads_in_plain_timm_with_identical_logits(tmp_path: Path, backbone: str) -> None:
    path = _saved(tmp_path, backbone, 64)
    ours = load_checkpoint(path).model
    arguments = {"img_size": 64} if backbone == "test_vit" else {}
    theirs = timm.create_model(backbone, num_classes=7, checkpoint_path=str(path), **arguments).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(images).logits, theirs(images))


def test_short_names_are_timm_models() -> None:
    assert backbone_name("beit_base") == "beit3_base_patch16_224.pt"
    for short, full in SHORT_NAMES.items():
        assert backbone_name(short) == full


def test_an_unknown_backbone_or_tag_names_the_nearest() -> None:
    with pytest.raises(BadRequest, match="unknown backbone 'resnet5'; did you mean 'resnet5"):
        backbone_name("resnet5")
    with pytest.raises(BadRequest, match="unknown weights tag.*known: .*resnet18.a1_in1k"):
        backbone_name("resnet18.a1_in2k")


def test_weights_that_cannot_be_downloaded_are_never_replaced_by_random_ones(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    recipe = build_recipe({"model": {"backbone": "beit_base"}})
    with pytest.raises(SchaneError, match=r"could not be downloaded .*model.weights=FILE, or train from scratch"):
        build_model(recipe.model, 5, 224)


def test_a_backbone_that_timm_has_no_weights_for_says_so() -> None:
    recipe = build_recipe({"model": {"backbone": "mobilenetv2_035"}})
    with pytest.raises(BadRequest, match="timm has no pretrained weights for mobilenetv2_035"):
        build_model(recipe.model, 5, 224)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_come_from_a_file_and_a_classifier_of_another_size_is_made_anew(tmp_path: Path, suffix: str) -> None:
    source = timm.create_model("test_resnet", num_classes=3)
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    loaded = _model(weights=str(path)).backbone.state_dict()
    for key, value in source.state_dict().items():
        if not key.startswith("fc."):
            assert torch.equal(loaded[key], value)
    assert loaded["fc.weight"].shape[0] == 7
    assert not loaded["fc.weight"].any()


def test_a_checkpoint_of_ours_is_a_weights_file_too(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    model = _model(weights=str(path))
    assert torch.equal(model.backbone.fc.weight, read_tensors(path)["state_dict"]["fc.weight"])


def test_a_run_folder_starts_a_run_by_its_best_weights_and_projection_head(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    content = read_tensors(_saved(tmp_path / "run" / "checkpoints"))
    model = _model(weights=str(tmp_path / "run"))
    for key, value in content["projection"].items():
        assert torch.equal(model.projection.state_dict()[key], value)
    other = _model(weights=str(tmp_path / "run"), projection_dim=32)
    assert torch.equal(other.backbone.conv1[0].weight, content["state_dict"]["conv1.0.weight"])
    assert other.projection.state_dict()["2.weight"].shape[0] == 32


def test_a_checkpoint_starts_a_run_at_another_image_size(tmp_path: Path) -> None:
    path = _saved(tmp_path, "test_vit", 64)
    model = _model("test_vit", 96, weights=str(path))
    assert model.backbone.pos_embed.shape != read_tensors(path)["state_dict"]["pos_embed"].shape
    assert torch.equal(
        model.backbone.blocks[0].attn.qkv.weight, read_tensors(path)["state_dict"]["blocks.0.attn.qkv.weight"]
    )


def test_a_checkpoint_of_another_backbone_names_the_one_it_holds(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    with pytest.raises(BadRequest, match="holds a test_resnet, not a test_vit; choose it with --backbone"):
        _model("test_vit", weights=str(path))


def test_a_weights_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vit.pt"
    torch.save(timm.create_model("test_vit").state_dict(), path)
    with pytest.raises(BadRequest, match="does not fit test_resnet: it has no"):
        _model(weights=str(path))
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    with pytest.raises(BadRequest, match="does not fit test_vit: it has no"):
        _model("test_vit", weights=str(path))


def test_the_real_pretrained_mobilenet_loads_and_gives_the_same_features(real_data: Path) -> None:
    path = real_data / "weights" / "mobilenetv2_035_tf_imagenet_backbone.pt"
    model = _model("mobilenetv2_035", weights=str(path), args={"pad_type": "same", "bn_eps": 1e-3}).eval()
    reference = timm.create_model(
        "mobilenetv2_035", num_classes=0, pad_type="same", norm_layer=partial(nn.BatchNorm2d, eps=1e-3)
    )
    reference.load_state_dict(torch.load(path, weights_only=True))
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(images).embedding, reference.eval()(images))


def test_no_projection_head_means_the_contrastive_term_sees_h() -> None:
    outputs = _model(projection_dim=0).eval()(torch.randn(2, 3, 32, 32))
    assert outputs.projection is outputs.embedding


def test_frozen_norm_layers_keep_their_running_statistics() -> None:
    model = _model()
    freeze(model, ("layer1",))
    before = model.backbone.layer1[0].bn1.running_mean.clone()
    model.train()(torch.randn(4, 3, 32, 32))
    assert torch.equal(model.backbone.layer1[0].bn1.running_mean, before)
    assert not model.backbone.layer1[0].conv1.weight.requires_grad
    assert model.backbone.layer2[0].conv1.weight.requires_grad


def test_convnets_are_told_from_transformers() -> None:
    assert is_convnet(_model("test_resnet"))
    assert not is_convnet(_model("test_vit"))


def test_a_checkpoint_holds_plain_values_and_comes_back_whole(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    loaded = load_checkpoint(path)
    assert loaded.class_names == tuple("abcdefg")
    assert loaded.input.size == 32
    assert read_checkpoint(path)["recipe"]["model"]["backbone"] == "test_resnet"


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "plain.pt")
    with pytest.raises(BadRequest, match="is not a schane checkpoint"):
        load_checkpoint(tmp_path / "plain.pt")


def test_a_checkpoint_whose_tensors_were_changed_is_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    content = torch.load(path, weights_only=True)
    del content["state_dict"]["fc.weight"]
    torch.save(content, path)
    with pytest.raises(BadRequest, match="does not fit its own recipe"):
        load_checkpoint(path)
