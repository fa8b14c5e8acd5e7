"""A timm backbone with its own classifier, and beside it the projection head that the contrastive term sees."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache
from timm.data import resolve_model_data_config
from timm.models import clean_state_dict
from torch import nn

from schane_cli.errors import BadRequest, SchaneError, nearest
from schane_cli.images.preprocessing import InputSpec, timm_input
from schane_cli.models import resnet12  # noqa: F401 (registers the few-shot literature's backbone with timm)
from schane_cli.models.files import FORMAT, find_checkpoint, read_tensors
from schane_cli.recipe import ModelRecipe

HUB_TIMEOUT_SECONDS = 10
SHORT_NAMES = {
    "beit_base": "beit3_base_patch16_224.pt",
    "beit_large": "beit3_large_patch16_224.pt",
    "mobilenet": "mobilenetv2_035",
}


class Outputs(NamedTuple):
    """What one forward pass yields for n images."""

    embedding: torch.Tensor  # (n, d) h, the pooled feature
    projection: torch.Tensor  # (n, p) head output; the loss normalises it
    logits: torch.Tensor  # (n, classes)


class SchaneModel(nn.Module):
    """h = pooled feature of a timm backbone; logits = its classifier(h); projection = head(h) (docs/method.md).

    The projection head is Linear(d, d)-ReLU-Linear(d, p); with `projection_dim` 0 the contrastive term sees h.

    With `batchnorm_frozen` BatchNorm normalises by its running statistics in training too, and does not update them;
    its scale and shift are trained all the same.
    """

    backbone: Any  # a timm model; timm's own interface has no static type
    batchnorm_frozen = False

    def __init__(self, backbone: Any, projection_dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        width = self.embedding_dim = int(backbone.head_hidden_size)
        self.projection: nn.Module = nn.Identity()
        if projection_dim:
            self.projection = projection_head(width, projection_dim)

    def forward(self, images: torch.Tensor) -> Outputs:
        """Normalised images (n, 3, S, S) -> Outputs."""
        features = self.backbone.forward_features(images)
        embedding = self.backbone.forward_head(features, pre_logits=True)
        return Outputs(embedding, self.projection(embedding), self.backbone.get_classifier()(embedding))

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


def backbone_name(name: str) -> str:
    """The timm name of a backbone given by timm name or short name; BadRequest with the nearest name otherwise."""
    full = SHORT_NAMES.get(name, name)
    if timm.is_model(full.partition(".")[0]):
        tags = timm.list_pretrained(f"{full.partition('.')[0]}.*")
        if "." not in full or full in tags:
            return full
        raise BadRequest(f"backbone {name!r}: unknown weights tag{nearest(full, tags)}; known: {', '.join(tags)}")
    raise BadRequest(f"unknown backbone {name!r}{nearest(name, [*SHORT_NAMES, *timm.list_models()])}")


def build_model(recipe: ModelRecipe, n_classes: int, image_size: int, *, load_weights: bool = True) -> SchaneModel:
    """The model of a recipe for `n_classes`, with its weights (pretrained, random or a file's) unless told not to.

    Raises:
        BadRequest: unknown backbone, an argument it does not take, a weights file that does not fit.
        SchaneError: pretrained weights that cannot be downloaded.
    """
    name = backbone_name(recipe.backbone)
    pretrained = load_weights and recipe.weights == "pretrained"
    backbone = _create(name, pretrained, n_classes, image_size, recipe)
    if not isinstance(backbone.get_classifier(), nn.Linear):
        raise BadRequest(f"backbone {recipe.backbone!r} has no linear classifier on its pooled feature; choose another")
    if not (pretrained and backbone.pretrained_cfg.get("num_classes") == n_classes):
        zero_classifier(backbone, n_classes)
    model = SchaneModel(backbone, recipe.projection_dim)
    if load_weights and recipe.weights not in {"pretrained", "random"}:
        _load_weights_file(model, find_checkpoint(Path(recipe.weights).expanduser()), recipe.backbone)
    return model


def zero_classifier(backbone: Any, n_classes: int) -> None:
    """Set the classifier's weights and biases to zero, as big_vision does for transfer: the first step's cross-entropy
    is log(classes) for every backbone.

    timm draws those of its EfficientNet and MobileNet families from U(-r, r), r = 1/sqrt(classes): at 5 classes fifteen
    times as wide as a linear layer on 1,280 features, and the gradient of that start damages pretrained features.
    Layers before the last (a norm, a hidden layer) keep their own start, and all parts of a distilled head are reset.
    """
    classifier = backbone.get_classifier()
    for part in classifier if isinstance(classifier, tuple | list) else (classifier,):
        for layer in part.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.shape[0] == n_classes:
                nn.init.zeros_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def _create(name: str, pretrained: bool, n_classes: int, image_size: int, recipe: ModelRecipe) -> Any:
    arguments: dict[str, Any] = {"num_classes": n_classes, **recipe.args}
    if recipe.drop_path:
        arguments["drop_path_rate"] = recipe.drop_path
    if _takes_image_size(name, image_size):
        arguments["img_size"] = image_size
    if pretrained:
        _check_hub(name)
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        raise BadRequest(f"backbone {recipe.backbone!r} does not take these arguments: {error}") from None
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise BadRequest(f"backbone {recipe.backbone!r} cannot be built: {error}") from None
        raise SchaneError(_no_weights(name, error)) from None


def _check_hub(name: str) -> None:
    """Find out in seconds that the weights cannot be had: the hub's own client retries for over a minute first."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise BadRequest(
            f"timm has no pretrained weights for {name}; pass --set model.weights=FILE or model.weights=random"
        )
    if not config.hf_hub_id:
        return
    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(config.hf_hub_id, file), str) for file in files):
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS)
    except Exception as error:  # whatever the HTTP library of this huggingface_hub raises
        raise SchaneError(_no_weights(name, error)) from None


def _takes_image_size(name: str, image_size: int) -> bool:
    """Transformers with a fixed grid want img_size where it differs from their own; convnets take any size."""
    config = timm.get_pretrained_cfg(name)
    return config is not None and bool(config.fixed_input_size) and config.input_size[-1] != image_size


def _no_weights(name: str, error: Exception) -> str:
    config = timm.get_pretrained_cfg(name)
    source = config and (config.hf_hub_id or config.url)
    reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
    return (
        f"the pretrained weights of {name} (from {source}) are not on this machine and could not be downloaded "
        f"({reason}); put the file here and pass --set model.weights=FILE, or train from scratch with "
        "--set model.weights=random"
    )


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The backbone's tensors in a weights file of ours or timm's (.pt, .pth, .safetensors); runs no code from it."""
    return _backbone_tensors(read_tensors(path), path)


def _backbone_tensors(content: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    state = content.get("state_dict", content.get("model", content))
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BadRequest(f"weights file {path} holds no state dict of tensors")
    return clean_state_dict(state)


def _load_weights_file(model: SchaneModel, path: Path, name: str) -> None:
    """Load a file into the model.

    The classifier is left as it is where the file has none or one of another class count, and so is the projection
    head where the file is not a checkpoint of ours or its head has another shape.
    """
    content = read_tensors(path)
    if content.get("architecture", architecture(model)) != architecture(model):
        raise BadRequest(f"{path} holds a {content['architecture']}, not a {name}; choose it with --backbone")
    own = model.backbone.state_dict()
    state = _fitted(_backbone_tensors(content, path), model.backbone, path, name)
    for key in _classifier_keys(model.backbone):
        if key not in state or state[key].shape != own[key].shape:
            state[key] = own[key]
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    for problem, keys in (("lacks", missing), ("has unknown", unexpected), ("has another shape for", shapes)):
        if keys:
            raise BadRequest(f"weights file {path} does not fit {name}: it {problem} {keys[0]} ({len(keys)} in all)")
    model.backbone.load_state_dict(state)
    head = content["projection"] if content.get("format") == FORMAT else {}
    if _shapes(head) == _shapes(model.projection.state_dict()):
        model.projection.load_state_dict(head)


def _fitted(state: dict[str, torch.Tensor], backbone: Any, path: Path, name: str) -> dict[str, torch.Tensor]:
    """`state` in the names and shapes of `backbone`, by timm's own rule for its architecture.

    The rule resizes position embeddings to another image size and knows the names of the original releases. Not every
    architecture has one, and a file that fits already is left alone.
    """
    own, heads = backbone.state_dict(), _classifier_keys(backbone)
    rule = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    fits = all(key in state and state[key].shape == own[key].shape for key in own.keys() - heads)
    if fits or rule is None:
        return state
    try:
        return rule(state, backbone)
    except (
        AttributeError,
        IndexError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
    ):  # a file of another architecture
        raise BadRequest(f"weights file {path} does not fit {name}: it is of another architecture") from None


def _classifier_keys(backbone: Any) -> set[str]:
    """Names of the classifier's tensors in the backbone's state dict."""
    names = backbone.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{part}." for part in ([names] if isinstance(names, str) else names))
    return {key for key in backbone.state_dict() if key.startswith(heads)}


def _shapes(state: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}


def input_spec(model: SchaneModel, image_size: int) -> InputSpec:
    """The preprocessing of the backbone's own pretraining, at the recipe's image size."""
    return timm_input(resolve_model_data_config(model.backbone), image_size)


def architecture(model: SchaneModel) -> str:
    """The timm name of the backbone, without the tag of its weights."""
    return str(model.backbone.default_cfg["architecture"])


def freeze(model: SchaneModel, prefixes: tuple[str, ...]) -> None:
    """Fix the backbone's parameters whose name starts with one of `prefixes`; `backbone`: all but the classifier."""
    classifier = {id(parameter) for parameter in model.backbone.get_classifier().parameters()}
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


def is_convnet(model: SchaneModel) -> bool:
    """Whether the backbone is made of convolutions, for which channels_last memory is the faster layout."""
    kinds = [type(module) for module in model.backbone.modules()]
    return kinds.count(nn.Conv2d) > 4 and not any(kind is nn.MultiheadAttention for kind in kinds)


def place(model: SchaneModel, device: torch.device) -> SchaneModel:
    """The model on the device; a convnet in channels_last, twice as fast there (but not on Apple's GPUs)."""
    if device.type == "mps" or not is_convnet(model):
        return model.to(device)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
