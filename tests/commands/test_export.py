"""Exported models compute what their checkpoint does: timm's hub files and ONNX, read back by the other side."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch

from schane_cli.cli import main
from schane_cli.commands import export as export_module
from schane_cli.commands.export import export
from schane_cli.errors import BadRequest, SchaneError
from schane_cli.models.checkpoint import load_checkpoint, pack
from schane_cli.models.files import save_whole
from schane_cli.models.model import build_model, input_spec
from schane_cli.recipe import build_recipe
from schane_cli.terminal import Terminal
from tests.jobs import with_random_classifier

QUIET = Terminal(quiet=True)
CLASSES = ("ape", "bee", "cat")


def _checkpoint(folder: Path, backbone: str, **settings: object) -> Path:
    model_settings = {"backbone": backbone, "weights": "random", **settings}
    recipe = build_recipe({"model": model_settings, "data": {"image_size": 64}})
    torch.manual_seed(0)
    model = with_random_classifier(build_model(recipe.model, len(CLASSES), 64))
    path = folder / f"{backbone}.pt"
    save_whole(pack(model, recipe, CLASSES, input_spec(model, 64), {}), path)
    return path


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext"])
def test_the_timm_export_gives_timm_the_same_logits_labels_and_preprocessing(tmp_path: Path, backbone: str) -> None:
    path = _checkpoint(tmp_path, backbone, drop_path=0.1)
    summary = export(path, format="timm", out=tmp_path / "out", terminal=QUIET)
    assert summary["files"] == ["config.json", "model.safetensors"]
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    loaded = load_checkpoint(path)
    assert torch.equal(theirs(images), loaded.model(images).logits)
    assert tuple(theirs.pretrained_cfg["mean"]) == loaded.input.mean
    assert tuple(theirs.pretrained_cfg["input_size"]) == (3, 64, 64)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["label_names"] == list(CLASSES)


@pytest.mark.skipif(find_spec("onnxscript") is None or find_spec("onnxruntime") is None, reason="needs schane[onnx]")
@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_the_onnx_export_gives_onnxruntime_the_same_logits_at_any_batch_size(tmp_path: Path, backbone: str) -> None:
    import onnxruntime

    path = _checkpoint(tmp_path, backbone)
    summary = export(path, format="onnx", out=tmp_path / "out", terminal=QUIET)
    assert summary["max_abs_difference"] < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    images = torch.randn(5, 3, 64, 64)
    found = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
    assert torch.allclose(found, load_checkpoint(path).model(images).logits, atol=1e-4)
    assert session.get_modelmeta().custom_metadata_map["class_names"] == "['ape', 'bee', 'cat']"


def test_without_the_extra_onnx_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "find_spec", lambda name: None)
    with pytest.raises(BadRequest, match=r"pip install 'schane\[onnx\]'"):
        export(tmp_path / "any.pt", format="onnx", out=tmp_path / "out", terminal=QUIET)


def test_an_export_that_differs_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _checkpoint(tmp_path, "test_resnet")
    create = timm.create_model

    def other_weights(name: str, **arguments: object):
        model = create(name, **arguments)
        if name.startswith("local-dir:"):
            model.fc.bias.data += 1
        return model

    monkeypatch.setattr(timm, "create_model", other_weights)
    with pytest.raises(SchaneError, match="logits differ by 1"):
        export(path, format="timm", out=tmp_path / "out", terminal=QUIET)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["test_resnet.pt"]


def test_export_refuses_an_unknown_format_and_a_folder_that_is_there(tmp_path: Path, capsys) -> None:
    path = _checkpoint(tmp_path, "test_resnet")
    for arguments, said in (
        (["--format", "onxx"], "did you mean 'onnx'?"),
        (["--format", "timm", "--out", str(tmp_path)], "exists already"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["export", str(path), *arguments])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err


def test_export_from_the_command_line_ends_with_one_json_line(tmp_path: Path, capsys) -> None:
    path = _checkpoint(tmp_path, "test_resnet")
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(path), "--format", "timm", "--out", str(tmp_path / "out"), "--json"])
    assert stopped.value.code == 0
    assert json.loads(capsys.readouterr().out)["run"] == str(tmp_path / "out")
