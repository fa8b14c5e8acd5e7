"""ResNet-12 against a functional forward pass written from the paper, and timm's interface as our training uses it."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from timm.optim import param_groups_layer_decay
from torch import Tensor

import schane_cli.models.resnet12  # noqa: F401 (registers the model)


def build(**arguments: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet12", **arguments)


def by_hand(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Logits in eval mode, from the state dict alone."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, scale, shift = (weights[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt() * scale[:, None, None] + shift[
            :, None, None
        ]

    for i in range(1, 5):
        out = x
        for j in range(1, 4):
            out = norm(F.conv2d(out, weights[f"layer{i}.conv{j}.weight"], padding=1), f"layer{i}.bn{j}")
            out = F.leaky_relu(out, 0.1) if j < 3 else out
        skip = norm(F.conv2d(x, weights[f"layer{i}.downsample.0.weight"]), f"layer{i}.downsample.1")
        x = F.max_pool2d(F.leaky_relu(out + skip, 0.1), 2)
    return x.mean(dim=(2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]


def test_the_logits_are_those_of_the_architecture_written_out() -> None:
    model = build(num_classes=7).double()
    x = torch.randn(3, 3, 84, 84, dtype=torch.float64)
    model(x)  # moves the running statistics off their start
    model.eval()
    torch.testing.assert_close(model(x), by_hand(model.state_dict(), x))


def test_it_has_the_size_the_field_quotes() -> None:
    model = build(num_classes=0)
    assert sum(p.numel() for p in model.parameters()) == 12_424_320
    assert [c["num_chs"] for c in model.feature_info] == [64, 160, 320, 640]


def test_it_speaks_timms_interface() -> None:
    model = build(num_classes=5).eval()
    x = torch.randn(2, 3, 84, 84)
    maps = model.forward_features(x)
    assert maps.shape == (2, 640, 5, 5)
    pooled = model.forward_head(maps, pre_logits=True)
    torch.testing.assert_close(pooled, maps.mean(dim=(2, 3)))
    torch.testing.assert_close(model.get_classifier()(pooled), model(x))
    model.reset_classifier(9)
    assert model(x).shape == (2, 9)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(0, global_pool="max")
    torch.testing.assert_close(model(x), maps.amax(dim=(2, 3)))
    config = resolve_model_data_config(model)
    assert (config["input_size"], config["crop_pct"]) == ((3, 84, 84), 1.0)
    assert build(num_classes=2, in_chans=1)(torch.randn(2, 1, 32, 32)).shape == (2, 2)


def test_layer_decay_gives_each_block_its_own_rate_and_the_classifier_the_full_one() -> None:
    model = build(num_classes=5)
    scales = {
        id(p): group["lr_scale"] for group in param_groups_layer_decay(model, layer_decay=0.5) for p in group["params"]
    }
    layer_scales = [scales[id(model.get_submodule(f"layer{i}").conv1.weight)] for i in range(1, 5)]
    assert [*layer_scales, scales[id(model.fc.weight)]] == pytest.approx([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1])


def test_checkpointing_gives_the_same_gradient() -> None:
    gradients = []
    for enable in (False, True):
        model = build(num_classes=4).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        gradients.append(model.layer1.conv1.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("image_size", "block_size"), [(84, 5), (32, 2)])
def test_drop_block_blanks_whole_blocks_in_training_and_nothing_in_evaluation(image_size: int, block_size: int) -> None:
    plain = build(num_classes=0)
    model = build(num_classes=0, drop_block_rate=0.3, drop_block_size=block_size)
    x = torch.randn(8, 3, image_size, image_size)
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))
    maps: list[Tensor] = []
    model.layer3.register_forward_hook(lambda module, inputs, output: maps.append(output))
    model.train()(x)
    blank = (maps[0] == 0).float()
    assert 0.1 < blank.mean() < 0.5
    # Every blank spot belongs to a blank block: opening by the block (erode, then dilate) loses none.
    eroded = -F.max_pool2d(-blank, block_size, stride=1)
    opened = F.conv_transpose2d(eroded.flatten(0, 1).unsqueeze(1), torch.ones(1, 1, block_size, block_size)).clamp_max(
        1
    )
    inner = slice(block_size - 1, 1 - block_size)
    assert (opened.view_as(blank)[..., inner, inner] == blank[..., inner, inner]).all()


def test_drop_path_and_drop_rate_act_in_training_only() -> None:
    x = torch.randn(16, 3, 32, 32)
    for arguments in ({"drop_path_rate": 0.5}, {"drop_rate": 0.5}):
        model, plain = build(num_classes=3, **arguments), build(num_classes=3)
        torch.testing.assert_close(model.eval()(x), plain.eval()(x))
        assert not torch.allclose(model.train()(x), plain.train()(x))
