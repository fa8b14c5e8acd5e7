"""Checkpoints: tensors and plain values only, written completely or not at all, read without running anything.

Keys of a checkpoint: `format`, `state_dict` (the backbone with its classifier, in timm's own names, so that
`timm.create_model(..., checkpoint_path=...)` reads it), `projection`, `architecture` (timm name), `recipe` (plain
values), `class_names`, `input` (what InputSpec holds), `progress` (epoch, step, accuracies) and, in last.pt,
`training` (everything that an exact resume needs). Of a LoRA run `state_dict` holds adapters and classifier alone, and
`lora_base_sha256` says which weights they belong to.

A checkpoint of format version n is read by every release whose own version is n or higher; a newer one is refused. The
file is a zip archive, whose checksum of every entry is compared when it is read.
"""

import os
import pickle  # noqa: TID251 (only for the name of the error that torch.load raises)
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from schane_cli.errors import BadRequest, SchaneError
from schane_cli.run import temporary

_MARK, VERSION = "schane-checkpoint-", 2
FORMAT = f"{_MARK}1"
LORA_FORMAT = f"{_MARK}2"  # adapters and heads alone; releases that only know whole backbones refuse it
_NEEDED: dict[str, type] = {
    "architecture": str,
    "state_dict": dict,
    "projection": dict,
    "recipe": dict,
    "class_names": list,
    "input": dict,
    "progress": dict,
}
_OPTIONAL: dict[str, type] = {"lora_base_sha256": str, "training": dict, "batch": dict, "images": dict, "format": str}
_TRAINING: dict[str, type | tuple[type, ...]] = {
    "optimizer": dict,
    "ema": (dict, type(None)),
    "objective": dict,
    "random": list,
    "world_size": int,
    "step": int,
    "best": dict,
    "seconds": float,
    "wait_seconds": float,
    "images_done": int,
    "metrics_bytes": int,
}


def read_tensors(path: Path) -> dict[str, Any]:
    """The mapping in a .pt / .pth file (weights_only) or .safetensors file, on the CPU.

    Raises:
        BadRequest: the file is missing, not readable, or would run code.
    """
    if not path.is_file():
        raise BadRequest(f"no file at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([Namespace]):  # timm's and others' training arguments: plain attributes
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise BadRequest(f"{path} is refused: it is damaged or holds more than tensors and plain values") from None
    except Exception as error:  # zip, header and unicode errors of many types: all mean an unreadable file
        raise BadRequest(f"{path} cannot be read as a weights file: {' '.join(str(error).split())[:160]}") from None
    if not isinstance(content, dict):
        raise BadRequest(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def save_whole(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that `path` is always either the old file or the complete new one.

    Raises:
        SchaneError: no space or no permission; the old file is untouched.
    """
    unfinished = temporary(path)
    try:
        path.parent.mkdir(exist_ok=True)
        with unfinished.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
        _remove(unfinished)
        kept = "the one before it is intact" if path.exists() else "none was there before"
        raise SchaneError(f"checkpoint {path} could not be written ({error}); {kept}") from None


def _remove(path: Path) -> None:
    """Remove a file if that can be done; a file system that has failed may fail again."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of ours, its checksums compared, its keys and their types checked.

    Raises:
        BadRequest: not a checkpoint of ours, a damaged one, one of a newer release, or a key that is missing, unknown
            or of another type (which).
    """
    content = read_tensors(path)
    _require_version(content.get("format"), path)
    _require_whole(path)
    require_keys(content, _NEEDED, f"checkpoint {path}", optional=_OPTIONAL)
    _require_plain_values(content, path)
    return content


def _require_version(mark: Any, path: Path) -> None:
    number = mark.removeprefix(_MARK) if isinstance(mark, str) and mark.startswith(_MARK) else ""
    if not number.isdecimal():
        raise BadRequest(
            f"{path} is not a schane checkpoint (no {FORMAT!r} mark); plain weights start a run by "
            "--set model.weights=FILE"
        )
    if int(number) > VERSION:
        raise BadRequest(
            f"{path} has checkpoint format {number} and this schane reads formats up to {VERSION}; upgrade schane"
        )


def _require_whole(path: Path) -> None:
    """BadRequest where the bytes of an entry are not those that were written."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        damaged = str(error)
    if damaged is not None:
        raise BadRequest(f"{path} is damaged: its checksum does not match ({damaged}); take a copy, or train again")


def require_keys(
    content: Mapping[str, Any],
    needed: Mapping[str, Any],
    where: str,
    *,
    optional: Mapping[str, Any] | None = None,
) -> None:
    """BadRequest that names the key of `content` that is missing, unknown, or of another type than its entry says."""
    for key, kind in needed.items():
        if key not in content:
            raise BadRequest(f"{where} has no key {key!r}")
        _require_type(content[key], kind, f"{where}, key {key!r}")
    for key, value in content.items():
        if optional is not None and key not in needed:
            if key not in optional:
                raise BadRequest(f"{where} has the unknown key {key!r}; it was not written by this release of schane")
            _require_type(value, optional[key], f"{where}, key {key!r}")


def _require_type(value: Any, kind: Any, where: str) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise BadRequest(f"{where} must be {' or '.join(one.__name__ for one in kinds)}, got {type(value).__name__}")


def _require_plain_values(content: Mapping[str, Any], path: Path) -> None:
    """What a checkpoint's parts hold: tensors by name, class names, an epoch, a training state."""
    for part in ("state_dict", "projection"):
        for key, value in content[part].items():
            _require_type(key, str, f"checkpoint {path}, a name in {part!r}")
            _require_type(value, torch.Tensor, f"checkpoint {path}, {part} {key!r}")
    names = content["class_names"]
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise BadRequest(f"checkpoint {path}, key 'class_names' must be a list of different names")
    require_keys(content["progress"], {"epoch": (int, float)}, f"checkpoint {path}, progress")
    if "training" in content:
        require_keys(content["training"], _TRAINING, f"checkpoint {path}, training")
        require_keys(
            content["training"]["best"],
            {"val_accuracy": (int, float), "val_nll": (int, float), "epoch": (int, float)},
            f"checkpoint {path}, training best",
        )


def read_last(path: Path) -> dict[str, Any]:
    """The content of a last.pt, which a stopped run is resumed from; BadRequest for any other checkpoint."""
    content = read_checkpoint(path)
    if "training" not in content:
        raise BadRequest(f"checkpoint {path} has no key 'training': only last.pt can be resumed from")
    return content
