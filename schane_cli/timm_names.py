"""What timm calls its optimizers, backbones and policies, read from its files: a misspelt one costs no import."""

import re
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

from schane_cli.errors import BadRequest, nearest

SHORT_NAMES = {
    "beit_base": "beit3_base_patch16_224.pt",
    "beit_large": "beit3_large_patch16_224.pt",
    "lite0": "tf_efficientnet_lite0",
    "mobilenet": "mobilenetv2_035",
}
OWN_BACKBONES = ("resnet12",)  # that models.resnet12 registers with timm
TRIVIAL_AUGMENT = "ta_wide"  # as torchvision's own training scripts spell TrivialAugmentWide
# The options that timm reads after the first word of a policy; it silently ignores others.
_POLICY_OPTIONS = {
    "rand": ("m", "n", "p", "mstd", "mmax", "inc", "t"),
    "augmix": ("m", "w", "d", "a", "b", "mstd"),
    **dict.fromkeys(("v0", "v0r", "original", "originalr", "3a"), ("mstd",)),
}
_OPERATION_SETS = ("weights", "3a", "3aw")  # in rand-t<set>


@cache
def _sources(pattern: str) -> str:
    """The text of timm's own files; empty where they are not on disk as files."""
    try:
        files = Path(str(metadata.distribution("timm").locate_file("timm"))).glob(pattern)
        return "\n".join(file.read_text(encoding="utf-8") for file in sorted(files))
    except (metadata.PackageNotFoundError, OSError, UnicodeDecodeError):
        return ""


@cache
def optimizer_names() -> tuple[str, ...]:
    """What timm's optimizer factory takes."""
    registered = r"(?:OptimInfo\(\s*(?:name=)?|register_alias\()'(\w+)'"
    names = set(re.findall(registered, _sources("optim/_optim_factory.py")))
    if not names:
        from timm.optim import list_optimizers

        names = {str(name) for name in list_optimizers()}
    return tuple(sorted(names))


@cache
def backbone_names() -> tuple[str, ...]:
    """The architectures that timm's files register; empty where they cannot be read."""
    names = re.findall(r"@register_model\s+def (\w+)\(", _sources("models/*.py"))
    return tuple(sorted({*names, *OWN_BACKBONES})) if names else ()


def require_optimizer(name: str) -> None:
    """BadRequest, with the nearest name, for an optimizer that timm does not have."""
    if name not in optimizer_names():
        raise BadRequest(f"unknown train.optimizer {name!r}{nearest(name, optimizer_names())}")


def require_backbone(name: str) -> None:
    """BadRequest, with the nearest name, for a backbone that timm does not have; its weights' tag is not looked at.

    Once timm is imported, what the user's own code registered with it counts too.
    """
    architecture = SHORT_NAMES.get(name, name).partition(".")[0]
    if not backbone_names() or architecture in backbone_names():
        return
    timm = sys.modules.get("timm")
    if timm is not None and timm.is_model(architecture):
        return
    former = re.fullmatch(r"\w+", architecture) and f"'{architecture}'" in _sources("models/*.py")
    if not former:  # which timm takes, too
        raise BadRequest(f"unknown backbone {name!r}{nearest(name, [*SHORT_NAMES, *backbone_names()])}")


def require_policy(name: str, key: str) -> None:
    """BadRequest, which names `key`, for a policy or an option of one that timm and torchvision do not know."""
    first, *options = name.split("-")
    if name in {"none", TRIVIAL_AUGMENT}:
        return
    known = ("none", TRIVIAL_AUGMENT, *_POLICY_OPTIONS)
    if first not in _POLICY_OPTIONS:
        raise BadRequest(
            f"{key}: unknown policy {name!r}{nearest(first, known)}; known: rand-m9-mstd0.5-inc1 and the like (timm's "
            f"RandAugment), {', '.join(word for word in known if word != 'rand')}"
        )
    allowed = ", ".join(_POLICY_OPTIONS[first])
    for option in options:
        number = re.fullmatch(r"([a-z]+?)(\d+(?:\.\d+)?)", option)
        operations = first == "rand" and option in {f"t{name}" for name in _OPERATION_SETS}
        if not operations and (number is None or number[1] not in _POLICY_OPTIONS[first] or number[1] == "t"):
            sets = f"; t takes {', '.join(_OPERATION_SETS)}" if first == "rand" else ""
            raise BadRequest(f"{key}: {name!r} has the unknown option {option!r}; {first} takes {allowed}{sets}")
