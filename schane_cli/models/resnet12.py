"""ResNet-12, the backbone of the few-shot literature, as the timm model `resnet12`.

Four residual blocks of three 3x3 convolutions (64, 160, 320, 640 channels), each halving the image; LeakyReLU(0.1);
640-d features by average pooling; 12.4 million parameters. The wide form of Lee et al., "Meta-learning with
differentiable convex optimization" (MetaOptNet), CVPR 2019, arXiv 1904.03758, as used by Tian et al., "Rethinking
few-shot image classification" (RFS), ECCV 2020, arXiv 2003.11539.

Importing this module registers the model: `timm.create_model("resnet12", num_classes=64)`.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropBlock2d, DropPath, create_classifier
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

CHANNELS = (64, 160, 320, 640)


class Block(nn.Module):
    """Three convolutions beside a 1x1 projection, then 2x2 max pooling and `drop`: (n, c, s, s) -> (n, C, s/2, s/2)."""

    def __init__(self, in_channels: int, channels: int, drop: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.downsample = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.act = nn.LeakyReLU(0.1)
        self.drop_path = DropPath(drop_path)
        self.pool = nn.MaxPool2d(2)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(x)))
        out = self.act(self.bn2(self.conv2(out)))
        out = self.drop_path(self.bn3(self.conv3(out)))
        return self.drop(self.pool(self.act(out + self.downsample(x))))


class ResNet12(nn.Module):
    """See the module; the interface is that of timm's own ResNet. Images of 16 px or more, (n, in_chans, s, s).

    `drop_rate`: dropout before the classifier. `drop_path_rate`: stochastic depth, growing linearly from block 1 to 4.
    `drop_block_rate`: RFS's regularisation (0.1 there): dropout after blocks 1 and 2, DropBlock (Ghiasi et al., arXiv
    1810.12890) of `drop_block_size` (5 for 84 px, 2 for 32 px) after blocks 3 and 4; at full rate from the first step,
    where RFS ramps DropBlock up over 40,000 steps. `channels`: width of each block; differs from the usual one only in
    runs that are labelled reduced.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_block_rate: float = 0.0,
        drop_block_size: int = 5,
        channels: Sequence[int] = CHANNELS,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.num_features = self.head_hidden_size = channels[-1]
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": width, "reduction": 2 ** (i + 1), "module": f"layer{i + 1}"} for i, width in enumerate(channels)
        ]
        inputs = (in_chans, *channels)
        for i, width in enumerate(channels):
            drop = _drop(drop_block_rate, drop_block_size if i >= 2 else None)
            self.add_module(f"layer{i + 1}", Block(inputs[i], width, drop, drop_path_rate * i / (len(channels) - 1)))
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    @property
    def layers(self) -> list[nn.Module]:
        return [self.get_submodule(info["module"]) for info in self.feature_info]

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (n, in_chans, s, s) to feature maps (n, 640, s // 16, s // 16)."""
        if self.grad_checkpointing and self.training:
            return checkpoint_seq(self.layers, x)
        for layer in self.layers:
            x = layer(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature maps to logits (n, num_classes), or with `pre_logits` to pooled features (n, 640)."""
        x = F.dropout(self.global_pool(x), p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier for `num_classes` (0: none, features come out), keeping the pooling unless given."""
        self.num_classes = num_classes
        pool = global_pool if global_pool is not None else self.global_pool.pool_type
        device = next(self.parameters()).device
        self.global_pool, self.fc = (
            module.to(device) for module in create_classifier(self.num_features, num_classes, pool_type=pool)
        )

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """timm's parameter groups for layer decay: one per block, coarse or not."""
        return {"blocks": r"^layer(\d+)"}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable


def _drop(rate: float, block_size: int | None) -> nn.Module:
    if rate == 0:
        return nn.Identity()
    if block_size is None:
        return nn.Dropout(rate)
    return DropBlock2d(drop_prob=rate, block_size=block_size, couple_channels=False)  # RFS masks every channel alone


# No published weights. The statistics are ImageNet's: the field's 84 px sets are drawn from it. No crop at test time.
default_cfgs = generate_default_cfgs(
    {
        "resnet12": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 84, 84),
            "pool_size": (5, 5),
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "layer1.conv1",
            "classifier": "fc",
        }
    }
)


@register_model
def resnet12(pretrained: bool = False, **kwargs: Any) -> ResNet12:
    """ResNet-12 (64-160-320-640), see the module; `kwargs` are ResNet12's."""
    return build_model_with_cfg(ResNet12, "resnet12", pretrained, **kwargs)
