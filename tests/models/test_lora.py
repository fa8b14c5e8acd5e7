"""LoRA: which layers, what trains, small checkpoints, merged weights, exact resume, and what is refused."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from schane_cli.commands.evaluate import score, select_images
from schane_cli.commands.finetune import finetune
from schane_cli.errors import BadRequest
from schane_cli.models.checkpoint import load_checkpoint
from schane_cli.models.files import read_tensors
from schane_cli.models.lora import adaptable_layers, chosen_layers
from schane_cli.models.model import SchaneModel, build_model
from schane_cli.recipe import build_recipe
from schane_cli.terminal import Terminal
from schane_cli.training.hooks import Progress, on_step
from schane_cli.training.interruption import Interrupted
from tests.conftest import run_cli
from tests.jobs import tiny_recipe

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that stand for pretrained ones."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "base.pt"
    torch.save(timm.create_model("test_vit", num_classes=10, img_size=32).state_dict(), file)
    return file


def lora_recipe(weights: Path, **overrides: Any) -> Any:
    own = {"model__backbone": "test_vit", "model__weights": str(weights)}
    return tiny_recipe(**own | {"model__lora_rank": 2, "train__epochs": 2, "train__lr": 0.01} | overrides)


def train(out: Path, recipe: Any, *, resume: bool = False) -> dict[str, Any]:
    return finetune(recipe, out=out, terminal=Terminal(quiet=True), resume=out if resume else None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    out = tmp_path_factory.mktemp("lora") / "run"
    train(out, lora_recipe(weights))
    return out


def model_of(recipe: Any) -> SchaneModel:
    torch.manual_seed(0)
    return build_model(recipe.model, 10, recipe.data.image_size)


def test_adapters_begin_as_nothing_and_they_and_the_heads_alone_train(weights: Path) -> None:
    plain = model_of(lora_recipe(weights, model__lora_rank=0)).eval()
    adapted = model_of(lora_recipe(weights)).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain(images).embedding, adapted(images).embedding)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained == {
        name
        for name, _ in adapted.named_parameters()
        if ".lora_" in name or name.startswith(("projection.", "backbone.head."))
    }
    assert any("LoRA of rank 2 on 24 layers" in note for note in adapted.notes), adapted.notes


def test_a_checkpoint_holds_adapters_and_heads_and_is_read_merged(run: Path, weights: Path) -> None:
    content, base = read_tensors(run / "checkpoints" / "best.pt"), read_tensors(weights)
    assert all(".lora_" in key or key.startswith("head.") for key in content["state_dict"])
    assert content["format"] == "schane-checkpoint-2"
    held = sum(tensor.numel() for tensor in content["state_dict"].values())
    assert held < sum(tensor.numel() for tensor in base.values()) / 10
    merged = load_checkpoint(run).model.backbone.state_dict()
    assert merged.keys() == base.keys(), "timm's own names"
    a, b = (content["state_dict"][f"blocks.0.attn.qkv.lora_{part}.default.weight"] for part in "AB")
    assert b.abs().max() > 0
    assert torch.allclose(merged["blocks.0.attn.qkv.weight"], base["blocks.0.attn.qkv.weight"] + b @ a, atol=1e-6)
    assert torch.equal(merged["blocks.0.norm1.weight"], base["blocks.0.norm1.weight"])


def test_what_is_exported_has_the_logits_of_what_was_trained(run: Path, tmp_path: Path, weights: Path) -> None:
    assert run_cli("export", run, "--out", tmp_path / "export") == 0
    exported = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    loaded = load_checkpoint(run)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        merged = loaded.model(images).logits
        assert torch.equal(exported(images), merged)
        trained = model_of(lora_recipe(weights)).eval()
        content = read_tensors(run / "checkpoints" / "best.pt")
        trained.backbone.load_state_dict(content["state_dict"], strict=False)
        assert torch.allclose(trained(images).logits, merged, atol=1e-5)
    whole = load_file(tmp_path / "export" / "model.safetensors")
    assert whole.keys() == read_tensors(weights).keys()
    summary = json.loads((run / "summary.json").read_text())
    assert run_cli("eval", run, "--out", tmp_path / "eval") == 0
    assert json.loads((tmp_path / "eval" / "summary.json").read_text())["test_accuracy"] == summary["test_accuracy"]


def test_the_recorded_val_figures_are_those_of_the_merged_weights_to_the_bit(run: Path) -> None:
    loaded = load_checkpoint(run)
    images, *_ = select_images(loaded, loaded.recipe.data, "val")
    scores = score(loaded, images, device=torch.device("cpu"), terminal=Terminal(quiet=True))
    recorded = loaded.progress["val_accuracy"], loaded.progress["val_nll"]
    assert (scores.top1.value, scores.calibration.nll.value) == recorded


def test_a_stopped_run_resumes_to_the_same_bits(run: Path, tmp_path: Path, weights: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == 5:
            signal.raise_signal(signal.SIGTERM)

    with on_step(stop), pytest.raises(Interrupted):
        train(tmp_path / "run", lora_recipe(weights))
    train(tmp_path / "run", lora_recipe(weights), resume=True)
    for name in ("best.pt", "last.pt"):
        one, two = (read_tensors(folder / "checkpoints" / name) for folder in (run, tmp_path / "run"))
        for part in ("state_dict", "projection"):
            assert all(torch.equal(tensor, two[part][key]) for key, tensor in one[part].items())


def test_it_goes_with_chunks_head_epochs_and_checkpointed_activations(tmp_path: Path, weights: Path) -> None:
    together = {"train__chunk_size": 10, "train__head_epochs": 1, "train__checkpoint_activations": True}
    summary = train(tmp_path / "run", lora_recipe(weights, train__epochs=1, **together))
    assert summary["epochs"] == 2
    assert load_checkpoint(tmp_path / "run").model.backbone.blocks


def test_weights_that_changed_since_are_noticed(run: Path, tmp_path: Path, weights: Path) -> None:
    other = read_tensors(weights)
    other["blocks.1.mlp.fc1.weight"][0, 0] += 1
    torch.save(other, tmp_path / "other.pt")
    content = read_tensors(run / "checkpoints" / "best.pt")
    content["recipe"]["model"]["weights"] = str(tmp_path / "other.pt")
    torch.save(content, tmp_path / "moved.pt")
    with pytest.raises(BadRequest, match="holds LoRA adapters of other weights than model.weights gives now"):
        load_checkpoint(tmp_path / "moved.pt")
    content["recipe"]["model"]["weights"] = str(tmp_path / "gone.pt")
    torch.save(content, tmp_path / "moved.pt")
    with pytest.raises(BadRequest, match=r"gone\.pt"):
        load_checkpoint(tmp_path / "moved.pt")
    with pytest.raises(BadRequest, match="holds LoRA adapters alone; write the whole backbone by `schane export"):
        model_of(lora_recipe(run))


def test_several_runs_are_averaged_merged(run: Path, tmp_path: Path, weights: Path) -> None:
    train(tmp_path / "second", lora_recipe(weights, seed=1))
    soup = tmp_path / "soup"
    assert run_cli("average", run, tmp_path / "second", "--soup", "uniform", "--out", soup) == 0
    one, two, mean = (load_checkpoint(folder).model.backbone.head.weight for folder in (run, tmp_path / "second", soup))
    assert torch.allclose(mean, (one + two) / 2, atol=1e-6)
    assert read_tensors(soup / "checkpoints" / "best.pt")["format"] == "schane-checkpoint-1"


# which layers


@pytest.mark.parametrize(
    ("patterns", "count"),
    [(("*",), 25), (("qkv",), 6), (("attn.*",), 12), (("blocks.0.*",), 4), (("qkv", "proj"), 12)],
)
def test_patterns_name_layers_by_the_end_of_their_name(patterns: tuple[str, ...], count: int) -> None:
    names = [f"blocks.{i}.{part}" for i in range(6) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    names.append("fc_norm")
    assert len(chosen_layers(names, patterns, "vit")) == count


def test_convolutions_of_one_pixel_take_adapters_and_others_do_not() -> None:
    backbone = timm.create_model("mobilenetv2_035", num_classes=10)
    names = adaptable_layers(backbone, 32)
    modules = dict(backbone.named_modules())
    assert len(names) > 20
    assert all(modules[name].kernel_size == (1, 1) and modules[name].groups == 1 for name in names)
    assert "classifier" not in names


class PastTheLayer(nn.Module):
    """Multiplies by a layer's weight itself, as BEiT does where queries have a bias of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.passed_over, self.fc = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.default_cfg = {"architecture": "past"}
        self.pretrained_cfg = SimpleNamespace(get=lambda key: None)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(nn.functional.linear(self.used(images.flatten(1)), self.passed_over.weight))


def test_a_layer_whose_weight_is_used_past_it_takes_no_adapter() -> None:
    assert adaptable_layers(PastTheLayer(), 2) == ["used"]


@pytest.mark.parametrize(
    ("names", "pattern", "said"),
    [
        (
            ["blocks.0.attn.qkv", "blocks.0.mlp.fc1"],
            "qvk",
            "'qvk' names no linear or 1x1 layer of vit; did you mean 'qkv'",
        ),
        (["blocks.0.attn.qkv"], "layer4.*", "their names end in qkv"),
        ([], "*", "model.lora_rank: vit has no linear or 1x1 layers that LoRA could adapt"),
    ],
)
def test_patterns_that_name_nothing_are_refused_with_the_nearest(names: list[str], pattern: str, said: str) -> None:
    with pytest.raises(BadRequest, match=said.replace("*", r"\*")):
        chosen_layers(names, (pattern,), "vit")


def test_an_unknown_target_ends_a_command_before_anything_is_written(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("model.lora_rank=4", "model.lora_targets=[qvk]")
    flags = [part for setting in settings for part in ("--set", setting)]
    out = tmp_path / "run"
    assert run_cli("finetune", "--backbone", "test_vit", "--init", weights, *flags, "--out", out) == 2
    assert "did you mean 'qkv'" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"weights": "random"}, "lora_rank adapts pretrained weights, and weights is random"),
        ({"freeze": ["backbone"]}, "freeze fixes the backbone; leave one out"),
    ],
)
def test_settings_that_leave_nothing_to_adapt_are_refused(model: dict, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        build_recipe({"model": {"lora_rank": 4, **model}})
