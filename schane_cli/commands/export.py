"""`schane export`: a checkpoint as timm's hub files or as ONNX, compared with the original before it is called done."""

import logging
import shutil
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import save_for_hf

from schane_cli.errors import BadRequest, SchaneError, nearest
from schane_cli.models.checkpoint import Loaded, load_checkpoint
from schane_cli.models.model import architecture
from schane_cli.run import new_run_path
from schane_cli.terminal import Terminal

ONNX_TOLERANCE = 1e-4  # largest allowed difference, as a share of the largest logit (at least 1)


def export(checkpoint: Path, *, format: str, out: Path | None, terminal: Terminal) -> dict[str, Any]:
    """Write the backbone of a checkpoint or run folder to the folder `out`, in a format of FORMATS.

    Returns the format, the folder, its files and the largest difference of logits from the checkpoint's. The folder
    appears whole, after the comparison, or not at all.

    Raises:
        BadRequest: an unknown format, a missing extra, a checkpoint that cannot be read, a folder that is there.
        SchaneError: the exported model does not compute what the checkpoint does.
    """
    if format not in FORMATS:
        raise BadRequest(f"unknown --format {format!r}{nearest(format, FORMATS)}; allowed: {', '.join(FORMATS)}")
    if format == "onnx" and not all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        raise BadRequest("--format onnx needs packages that are not installed: pip install 'schane[onnx]'")
    loaded = load_checkpoint(checkpoint)
    out = out or new_run_path("export", architecture(loaded.model), format)
    if out.exists():
        raise BadRequest(f"{out} exists already; choose another --out")
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        difference = FORMATS[format](loaded, unfinished)
        unfinished.rename(out)
    except OSError as error:
        raise BadRequest(f"{out} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    files = sorted(path.name for path in out.iterdir())
    terminal.say(f"exported  {out}: {', '.join(files)}")
    terminal.say(f"verified  largest difference of logits from {loaded.path}: {difference:.2g}")
    return {"format": format, "run": str(out), "files": files, "max_abs_difference": difference}


def _to_timm(loaded: Loaded, folder: Path) -> float:
    """model.safetensors and config.json as timm's push_to_hub writes them; read back, they give the same logits."""
    backbone, spec = loaded.model.backbone, loaded.input
    size = (3, spec.size, spec.size)
    backbone.pretrained_cfg |= {"input_size": size, "mean": spec.mean, "std": spec.std, "crop_pct": spec.crop_pct}
    arguments = dict(loaded.recipe.model.args)
    if hasattr(getattr(backbone, "patch_embed", None), "img_size"):
        arguments["img_size"] = backbone.patch_embed.img_size
    labels = {"label_names": list(loaded.class_names)}
    save_for_hf(backbone, str(folder), model_config=labels, model_args=arguments, safe_serialization=True)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = _some_images(loaded, 2)
    with torch.no_grad():
        difference = (again(images) - backbone(images)).abs().max().item()
    found = resolve_model_data_config(again)
    if difference != 0 or (*found["input_size"], *found["mean"], *found["std"]) != (*size, *spec.mean, *spec.std):
        raise SchaneError(
            f"timm reads the exported files as another model (logits differ by {difference:.3g}); nothing was kept"
        )
    return difference


def _to_onnx(loaded: Loaded, folder: Path) -> float:
    """model.onnx: images (batch, 3, S, S), normalised as its metadata says, to logits (batch, classes)."""
    import onnxruntime

    spec, backbone = loaded.input, loaded.model.backbone
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # advice on the exporter's own workings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its own parts
        program = torch.onnx.export(
            backbone,
            (_some_images(loaded, 2),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
        if program is None:
            raise SchaneError("torch's ONNX exporter made no model; nothing was kept")
        described = {"class_names": list(loaded.class_names), "size": spec.size, "mean": spec.mean, "std": spec.std}
        program.model.metadata_props.update({key: str(value) for key, value in described.items()})
        program.save(folder / "model.onnx", external_data=False)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    differences = [_onnx_difference(session, loaded, count) for count in (1, 3)]
    return max(differences)


def _onnx_difference(session: Any, loaded: Loaded, count: int) -> float:
    """Largest difference of onnxruntime's logits for `count` images from torch's; SchaneError above the tolerance."""
    images = _some_images(loaded, count)
    with torch.no_grad():
        expected = loaded.model.backbone(images).numpy()
    difference = float(np.abs(session.run(None, {"images": images.numpy()})[0] - expected).max())
    if not difference <= ONNX_TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise SchaneError(f"onnxruntime's logits differ from torch's by {difference:.3g}; nothing was kept")
    return difference


def _some_images(loaded: Loaded, count: int) -> torch.Tensor:
    size = loaded.input.size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


FORMATS: dict[str, Callable[[Loaded, Path], float]] = {"timm": _to_timm, "onnx": _to_onnx}
