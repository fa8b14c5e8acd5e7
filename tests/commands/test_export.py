"""Exported models compute what their checkpoint does: timm's hub files and ONNX, read back by the other side."""

import json
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import timm
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_model_data_config

from schane_cli.cli import main
from schane_cli.commands.evaluate import evaluate
from schane_cli.commands.export import export
from schane_cli.datasets.load import load_splits
from schane_cli.errors import BadRequest, SchaneError
from schane_cli.features.extract import normalise
from schane_cli.images.preprocessing import eval_transform
from schane_cli.models.checkpoint import load_checkpoint, pack
from schane_cli.models.files import read_checkpoint, save_whole
from schane_cli.models.model import build_model, input_spec
from schane_cli.recipe import build_recipe
from schane_cli.terminal import Terminal
from tests.jobs import run_tiny, tiny_recipe, with_random_classifier

QUIET = Terminal(quiet=True)
CLASSES = ("ape", "bee", "cat")


def _checkpoint(folder: Path, backbone: str, **settings: object) -> Path:
    model_settings = {"backbone": backbone, "weights": "random", **settings}
    recipe = build_recipe({"model": model_settings, "data": {"image_size": 64}})
    torch.manual_seed(0)
    model = with_random_classifier(build_model(recipe.model, len(CLASSES), 64))
    path = folder / f"{backbone}.pt"
    save_whole(pack(model, recipe, CLASSES, input_spec(model, 64), {"epoch": 1.0}), path)
    return path


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext", "coat_tiny"])  # coat shares tensors
def test_the_timm_export_gives_timm_the_same_logits_labels_and_preprocessing(tmp_path: Path, backbone: str) -> None:
    path = _checkpoint(tmp_path, backbone, drop_path=0.1)
    summary = export(path, format="timm", out=tmp_path / "out", terminal=QUIET)
    assert summary["files"] == ["README.md", "config.json", "model.safetensors"]
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    loaded = load_checkpoint(path)
    assert torch.equal(theirs(images), loaded.model(images).logits)
    assert tuple(theirs.pretrained_cfg["mean"]) == loaded.input.mean
    assert tuple(theirs.pretrained_cfg["input_size"]) == (3, 64, 64)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["label_names"] == list(CLASSES)
    assert config.get("model_args") == ({"img_size": 64} if backbone in {"test_vit", "coat_tiny"} else None)


@pytest.mark.parametrize("rounding", ["floor", "round"])
def test_the_export_carries_preprocessing_also_that_of_0_1_0(tmp_path: Path, rounding: str) -> None:
    path = _checkpoint(tmp_path, "test_resnet")
    content = read_checkpoint(path)
    spec = {"size": 64, "mean": [0.4] * 3, "std": [0.2] * 3, "crop_pct": 0.86}  # 64 / 0.86 is 74.4
    if rounding == "floor":
        spec |= {"interpolation": "bilinear", "crop_mode": "squash"}
    else:
        spec |= {"crop_pct": 0.87}  # 73.6: timm must be told another share to come to 74
    save_whole(content | {"input": spec}, path)
    export(path, format="timm", out=tmp_path / "out", terminal=QUIET)
    config = resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True))
    assert config["interpolation"] == ("bilinear" if rounding == "floor" else "bicubic")
    assert config["crop_mode"] == ("squash" if rounding == "floor" else "center")
    assert tuple(config["mean"]) == (0.4,) * 3
    assert int(64 / config["crop_pct"]) == 74


def test_transformers_classifies_with_the_export(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; schane[dev] brings it")
    path = _checkpoint(tmp_path, "test_resnet")
    export(path, format="timm", out=tmp_path / "out", terminal=QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers about itself
        classify = transformers.pipeline("image-classification", str(tmp_path / "out"), device="cpu")
        photograph = load_sample_images().images[0]
        answers = classify(Image.fromarray(photograph))
    loaded = load_checkpoint(path)
    pixels = eval_transform(loaded.input)(torch.from_numpy(photograph.copy()).permute(2, 0, 1))
    with torch.no_grad():
        logits = loaded.model(normalise(pixels[None], loaded.input, torch.device("cpu"))).logits
    shares = dict(zip(CLASSES, logits.softmax(1)[0].tolist(), strict=True))
    assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(shares, abs=1e-5)


def test_eval_and_a_plain_timm_loop_over_the_export_predict_alike(tmp_path: Path) -> None:
    run_tiny(tmp_path / "run", train__lr=0.01, train__epochs=8)
    evaluate(tmp_path / "run", overrides={}, split="test", out=tmp_path / "eval", terminal=QUIET)
    export(tmp_path / "run", format="timm", out=tmp_path / "out", terminal=QUIET)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    test = load_splits(tiny_recipe().data).test
    with torch.no_grad():
        logits = model(torch.stack([transform(Image.fromarray(image)) for image in test.images]))
    names = model.pretrained_cfg["label_names"]
    predictions = pd.read_csv(tmp_path / "eval" / "predictions.csv", dtype=str)
    assert [names[label] for label in logits.argmax(1).tolist()] == predictions["prediction"].tolist()
    assert predictions["prediction"].nunique() > 5, "a run that learned something"


def test_the_model_card_has_data_recipe_and_results_with_n_and_interval(tmp_path: Path) -> None:
    summary = run_tiny(tmp_path / "run")
    export(tmp_path / "run", format="timm", out=tmp_path / "out", terminal=QUIET)
    card = (tmp_path / "out" / "README.md").read_text()
    low, high = summary["test_accuracy_ci95"]
    result = f"{100 * summary['test_accuracy']:.2f} % ({100 * low:.2f} to {100 * high:.2f})"
    assert f"accuracy | {result} | {summary['test_n']} |" in card
    assert f"| {summary['val_n']}, which chose the epoch |" in card
    assert "- dataset: digits, 10 classes: 0, 1, 2" in card
    assert "- 100 training images" in card
    assert "- `train.batch_size 25 (default: 128)`" in card
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "timm"


def test_names_from_outside_are_text_in_the_model_card(tmp_path: Path) -> None:
    path = _checkpoint(tmp_path, "test_resnet")
    names = ["<script>alert(1)</script>", "](https://example.org)", "a\n# title"]
    content = read_checkpoint(path)
    save_whole(content | {"class_names": names}, path)
    export(path, format="timm", out=tmp_path / "out", terminal=QUIET)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\\<script\\>alert(1)" in card
    assert "<script>" not in card.replace("\\<", "")
    assert "\n# title" not in card


def test_the_model_card_names_no_folder_of_its_author(tmp_path: Path) -> None:
    weights, photos = tmp_path / "weights.pt", f"folder:{tmp_path / 'photos'}"
    content = read_checkpoint(path := _checkpoint(tmp_path, "test_resnet"))
    recipe = build_recipe(content["recipe"], {"model.weights": str(weights), "data.dataset": photos})
    save_whole(content | {"recipe": recipe.model_dump(mode="json")}, path)
    export(path, format="timm", out=tmp_path / "out", terminal=QUIET)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`model.weights weights.pt (default: pretrained)`" in card
    assert "`data.dataset folder:photos (default: digits)`" in card
    assert str(tmp_path) not in card


def test_the_model_card_of_a_checkpoint_alone_says_that_nothing_was_stored(tmp_path: Path) -> None:
    export(_checkpoint(tmp_path, "test_resnet"), format="timm", out=tmp_path / "out", terminal=QUIET)
    assert "None were stored beside the checkpoint." in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.skipif(find_spec("onnxscript") is None or find_spec("onnxruntime") is None, reason="needs schane[onnx]")
@pytest.mark.slow
@pytest.mark.parametrize(  # maxvit: attention with a bias of its own, in two heads
    ("backbone", "arguments"),
    [("test_resnet", {}), ("test_vit", {}), ("maxvit_rmlp_pico_rw_256", {"depths": (1,), "embed_dim": (64,)})],
)
def test_the_onnx_export_gives_onnxruntime_the_same_logits_at_any_batch_size(
    tmp_path: Path, backbone: str, arguments: dict
) -> None:
    import onnxruntime

    path = _checkpoint(tmp_path, backbone, args=arguments)
    summary = export(path, format="onnx", out=tmp_path / "out", terminal=QUIET)
    assert summary["max_abs_difference"] < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    images = torch.randn(5, 3, 64, 64)
    from_onnx = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
    assert torch.allclose(from_onnx, load_checkpoint(path).model(images).logits, atol=1e-4)
    described = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    spec = load_checkpoint(path).input
    assert described == {
        "class_names": list(CLASSES),
        "size": 64,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "crop_pct": spec.crop_pct,
        "crop_mode": spec.crop_mode,
        "interpolation": spec.interpolation,
    }


@pytest.mark.skipif(find_spec("onnxscript") is None or find_spec("onnxruntime") is None, reason="needs schane[onnx]")
def test_a_failure_of_the_exporter_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise NotImplementedError("no such operator\nand forty lines more")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(SchaneError) as failed:
        export(_checkpoint(tmp_path, "test_resnet"), format="onnx", out=tmp_path / "out", terminal=QUIET)
    said = "torch's ONNX exporter cannot take test_resnet (no such operator); nothing was kept; --format timm may work"
    assert str(failed.value) == said
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(find_spec("onnxscript") is None or find_spec("onnxruntime") is None, reason="needs schane[onnx]")
def test_a_model_that_onnxruntime_refuses_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Program:
        model = SimpleNamespace(metadata_props={})

        def save(self, path: Path, external_data: bool) -> None:
            path.write_bytes(b"no model")

    monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: Program())
    said = "onnxruntime cannot run what torch's ONNX exporter made of test_resnet"
    with pytest.raises(SchaneError, match=said):
        export(_checkpoint(tmp_path, "test_resnet"), format="onnx", out=tmp_path / "out", terminal=QUIET)
    assert not (tmp_path / "out").exists()


def test_without_the_extra_onnx_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BadRequest, match=r"pip install 'schane\[onnx\]'"):
        export(tmp_path / "any.pt", format="onnx", out=tmp_path / "out", terminal=QUIET)


@pytest.mark.parametrize("scale", [1.0, 1e-5], ids=["trained", "hardly trained"])
def test_an_export_that_differs_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    path = _checkpoint(tmp_path, "test_resnet")
    content = read_checkpoint(path)
    for name in ("fc.weight", "fc.bias"):
        content["state_dict"][name] *= scale
    save_whole(content, path)
    create = timm.create_model

    def other_weights(name: str, **arguments: object):
        model = create(name, **arguments)
        if name.startswith("local-dir:"):
            model.fc.bias.data += scale
        return model

    monkeypatch.setattr(timm, "create_model", other_weights)
    with pytest.raises(SchaneError, match=f"logits of photographs differ by {scale:.3g}"):
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
