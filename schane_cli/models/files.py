"""Checkpoints: tensors and plain values only, written whole or not at all, read without running anything.

Keys of a checkpoint: `format`, `state_dict` (the backbone with its classifier, in timm's own names, so that
`timm.create_model(..., checkpoint_path=...)` reads it), `projection`, `architecture` (timm name), `recipe` (plain
values), `class_names`, `input` (what InputSpec holds), `progress` (epoch, step, accuracies) and, in last.pt,
`training` (all that an exact resume needs).
"""

import os
import pickle  # noqa: TID251 (only for the name of the error that torch.load raises)
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from schane_cli.errors import BadRequest, SchaneError
from schane_cli.run import RunFolder

FORMAT = "schane-checkpoint-1"


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
    """Write a checkpoint so that `path` is always either the old file or the new one, whole.

    Raises:
        SchaneError: no space or no permission; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        path.parent.mkdir(exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
        temporary.unlink(missing_ok=True)
        kept = "the one before it is whole" if path.exists() else "none was there before"
        raise SchaneError(f"checkpoint {path} could not be written ({error}); {kept}") from None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint file behind a path: itself, or best.pt of a run folder."""
    if path.is_dir():
        best = RunFolder(path).best
        if not best.is_file():
            raise BadRequest(f"{path} is no finished run: it has no checkpoints/best.pt")
        return best
    if not path.exists():
        raise BadRequest(f"no checkpoint or run folder at {path}")
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of ours, checked for its kind."""
    content = read_tensors(path)
    if content.get("format") != FORMAT:
        raise BadRequest(
            f"{path} is not a schane checkpoint (no {FORMAT!r} mark); plain weights start a run by "
            "--set model.weights=FILE"
        )
    return content
