"""A timm backbone with its own classifier, and beside it the projection head that the contrastive term sees."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from timm.data import resolve_model_data_config
from torch import nn

from schane_cli.errors import BadRequest, nearest
from schane_cli.images.preprocessing import InputSpec, timm_input
from schane_cli.models.backbone import (
    Heads,
    classifier_modules,
    create_backbone,
    dropped_pixels,
    find_heads,
    zero_classifier,
)
from schane_cli.models.lora import add_lora
from schane_cli.models.weights import LITE0_MODULE, Source, lite0_source, load_backbone, projection_tensors, read_source
from schane_cli.recipe import ModelRecipe


class Outputs(NamedTuple):
    """What one forward pass yields for n images."""

    embedding: torch.Tensor  # (n, d) h, the pooled feature
    projection: torch.Tensor  # (n, p) head output; the loss normalises it
    logits: torch.Tensor  # (n, classes)


class SchaneModel(nn.Module):
    """h = pooled feature of a timm backbone; logits = the backbone's own; projection = head(h) (docs/method.md).

    The projection head is Linear(d, d)-ReLU-Linear(d, p); with `projection_dim` 0 the contrastive term sees h.

    With `batchnorm_frozen` BatchNorm normalises by its running statistics in training too, and does not update them;
    its scale and shift are still trained.
    """

    backbone: Any  # a timm model; timm's own interface has no static type
    batchnorm_frozen = False
    contiguous = False  # no channels_last: FSDP cannot split such weights, and what it trained is scored as it trained

    def __init__(self, backbone: Any, projection_dim: int, heads: Heads) -> None:
        super().__init__()
        self.backbone, self.heads = backbone, heads
        width = self.embedding_dim = heads.embedding_dim
        self.notes: list[str] = []  # how it was made, where the user should know: one sentence each
        self.projection: nn.Module = nn.Identity()
        if projection_dim:
            self.projection = projection_head(width, projection_dim)

    def forward(self, images: torch.Tensor) -> Outputs:
        """Normalised images (n, 3, S, S) -> Outputs."""
        features = self.backbone.forward_features(images)
        embedding = self.backbone.forward_head(features, pre_logits=True).flatten(1)
        if self.heads.direct:
            logits = self.backbone.get_classifier()(embedding)
        else:  # two heads, a norm of the head's own, a convolution: the backbone knows
            logits = self.backbone.forward_head(features)
        return Outputs(embedding, self.projection(embedding), logits)

    def train(self, mode: bool = True) -> "SchaneModel":
        """As nn.Module.train, but a wholly frozen module stays in eval mode (its running statistics are frozen too).

        So does BatchNorm with `batchnorm_frozen`.
        """
        super().train(mode)
        if mode:
            for module in self.modules():
                parameters = list(module.parameters())
                frozen = parameters and not any(parameter.requires_grad for parameter in parameters)
                if frozen or (self.batchnorm_frozen and isinstance(module, nn.modules.batchnorm._BatchNorm)):
                    module.eval()
        return self


def projection_head(width: int, projection_dim: int) -> nn.Sequential:
    """Linear(d, d)-ReLU-Linear(d, p) with biases of zero and normal weights that keep the scale of their input: of
    variance 2/d before the ReLU and 1/d after it (He et al., arXiv 1502.01852, equation 10).

    So the projection starts at the embedding's scale at any width. torch's default shrinks it more than fourfold, and
    its biases, drawn without regard to the embedding's scale, make the projections of small embeddings all alike.
    """
    first, last = nn.Linear(width, width), nn.Linear(width, projection_dim)
    nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
    nn.init.kaiming_normal_(last.weight, nonlinearity="linear")
    nn.init.zeros_(first.bias)
    nn.init.zeros_(last.bias)
    return nn.Sequential(first, nn.ReLU(), last)


def build_model(recipe: ModelRecipe, n_classes: int, image_size: int, *, load_weights: bool = True) -> SchaneModel:
    """The model of a recipe for `n_classes`, with its weights (pretrained, random or a file's) unless told not to.

    It has run two random images: a backbone that cannot take them, or whose outputs cannot be got, is refused here.

    Raises:
        BadRequest: unknown backbone, an argument it does not take, a size it cannot take, weights that do not fit.
        SchaneError: pretrained weights that cannot be downloaded.
    """
    packaged = recipe.backbone == "lite0" and recipe.weights == "pretrained" and find_spec(LITE0_MODULE) is not None
    download = load_weights and recipe.weights == "pretrained" and not packaged
    backbone = create_backbone(recipe, n_classes, image_size, download=download, stored=not load_weights)
    heads = find_heads(backbone, recipe.backbone, image_size)
    if not (download and backbone.pretrained_cfg.get("num_classes") == n_classes):
        zero_classifier(backbone, n_classes)
    model = SchaneModel(backbone, recipe.projection_dim, heads)
    if load_weights and not download and recipe.weights != "random":
        _load_source(model, lite0_source(backbone) if packaged else read_source(recipe.weights), recipe)
    if recipe.lora_rank:
        model.notes.append(add_lora(backbone, recipe.lora_rank, recipe.lora_targets, image_size))
    dropped = dropped_pixels(backbone, image_size)
    if dropped:
        model.notes.append(
            f"{recipe.backbone} does not see the last {dropped} of {image_size} px on either side: its patches do not "
            "divide data.image_size"
        )
    return model


def _load_source(model: SchaneModel, source: Source, recipe: ModelRecipe) -> None:
    """Weights of a source into the backbone, and into the projection head where it brings one of the same shape."""
    model.notes.append(f"weights of {load_backbone(model.backbone, source, recipe.backbone)}")
    model.backbone.pretrained_cfg.update(recipe.args.get("pretrained_cfg_overlay") or {})
    projection = projection_tensors(source)
    if _shapes(projection) == _shapes(model.projection.state_dict()):
        model.projection.load_state_dict(projection)


def _shapes(state: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}


def input_spec(model: SchaneModel, image_size: int) -> InputSpec:
    """The preprocessing of the backbone's own pretraining, at the recipe's image size."""
    return timm_input(resolve_model_data_config(model.backbone), image_size)


def architecture(model: SchaneModel) -> str:
    """The timm name of the backbone, without the tag of its weights."""
    return str(model.backbone.default_cfg["architecture"])


def freeze(model: SchaneModel, prefixes: tuple[str, ...]) -> None:
    """Freeze the backbone's parameters whose name starts with one of `prefixes`; `backbone`: all but the classifier."""
    classifier = {id(parameter) for part in classifier_modules(model.backbone) for parameter in part.parameters()}
    named = dict(model.backbone.named_parameters())
    for prefix in prefixes:
        if prefix == "backbone":
            matched = [parameter for parameter in named.values() if id(parameter) not in classifier]
        else:
            matched = [p for name, p in named.items() if name == prefix or name.startswith(prefix + ".")]
        if not matched:
            parts = {".".join(name.split(".")[: i + 1]) for name in named for i in range(name.count("."))}
            raise BadRequest(
                f"model.freeze: no parameter of the backbone starts with {prefix!r}{nearest(prefix, parts)}"
            )
        for parameter in matched:
            parameter.requires_grad_(False)


def checkpoint_activations(model: SchaneModel) -> None:
    """Have the backbone keep only the activations between its blocks, and recompute the rest in the backward pass.

    Raises:
        BadRequest: timm has no such switch for this backbone.
    """
    try:
        model.backbone.set_grad_checkpointing(True)
    except (AssertionError, AttributeError, NotImplementedError):
        raise BadRequest(
            f"train.checkpoint_activations: timm cannot checkpoint the activations of {architecture(model)}; leave it "
            "out and use --chunk-size, which bounds the memory of every backbone"
        ) from None


def is_convnet(model: SchaneModel) -> bool:
    """Whether the backbone is made of convolutions, for which channels_last memory is the faster layout."""
    kinds = [type(module) for module in model.backbone.modules()]
    return kinds.count(nn.Conv2d) > 4 and not any(kind is nn.MultiheadAttention for kind in kinds)


def place(model: SchaneModel, device: torch.device) -> SchaneModel:
    """The model on the device; a convnet in channels_last, twice as fast there (but not on Apple's GPUs)."""
    model = model.to(device)
    if device.type != "mps" and not model.contiguous and is_convnet(model) and not _crashes_channels_last(model):
        for module in model.modules():
            if isinstance(module, nn.Conv2d):  # not the whole model: torch refuses weights of five dimensions
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _crashes_channels_last(model: SchaneModel) -> bool:
    """Whether a convolution of one pixel looks at the image itself, as mobileone's does: in channels_last torch 2.11
    corrupts memory in its gradient on a CPU (seen with 3 channels to 64, stride 2)."""
    return any(
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.in_channels == 3
        for module in model.modules()
    )


@contextmanager
def leaving_no_trace(model: SchaneModel, device: torch.device) -> Iterator[None]:
    """The model in training mode; mode, running statistics and random state are restored afterwards."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    training, devices = model.training, [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            model.train()
            yield
    finally:
        model.train(training)
        for buffer, saved in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(saved)


@torch.no_grad()
def dry_pass(model: SchaneModel, rows: int, image_size: int, device: torch.device) -> None:
    """Run `rows` random images as in training, without side effects; BadRequest where that cannot be done.

    It reveals what fails in training only: BatchNorm that is given one value per channel.
    """
    try:
        with leaving_no_trace(model, device):
            model(torch.randn(rows, 3, image_size, image_size, device=device))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise BadRequest(
            "BatchNorm cannot be trained on a pass of one row; choose train.batch_size, train.chunk_size and "
            "augment.views so that no pass, the last of a batch included, is of a single view"
        ) from None
