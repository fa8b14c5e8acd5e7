"""`schane export`: a checkpoint as timm's hub files or as ONNX, compared with what eval computes before it is done."""

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_model_data_config
from timm.models import save_for_hf

from schane_cli.commands.model_card import model_card
from schane_cli.errors import BadRequest, SchaneError, require_package
from schane_cli.features.extract import normalise
from schane_cli.images.preprocessing import eval_transform
from schane_cli.models.backbone import architecture_arguments, one_line
from schane_cli.models.checkpoint import Loaded, load_checkpoint
from schane_cli.models.model import architecture
from schane_cli.preflight import require_choice
from schane_cli.run import new_run_path, remove_dead, temporary
from schane_cli.terminal import Terminal

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # largest allowed difference of logits, as a share of the largest: after a short run that may be 0.001
_SHAPES = ((427, 640), (427, 300), (200, 640), (96, 96), (40, 27), (32, 32))  # height and width cut from photographs


def export(checkpoint: Path, *, format: str, out: Path | None, terminal: Terminal) -> dict[str, Any]:
    """Write the backbone of a checkpoint or run folder to the folder `out`, in a format of FORMATS.

    Returns the format, the folder, its files and the largest difference of logits from those that `schane eval` scores
    for the same photographs. The folder appears completely, after the comparison, or not at all.

    Raises:
        BadRequest: an unknown format, a missing extra, a checkpoint that cannot be read, a folder that exists.
        SchaneError: the exported model does not compute what the checkpoint does, or cannot be written.
    """
    require_choice("--format", format, FORMATS)
    if format == "onnx":
        require_package("--format onnx needs onnx, onnxscript and onnxruntime", "onnx", *ONNX_PACKAGES)
    loaded = load_checkpoint(checkpoint)
    for note in loaded.unfinished_notes:
        terminal.say(f"note      {note}")
    out = out or new_run_path("export", architecture(loaded.model), format)
    difference = _written(FORMATS[format], loaded, out)
    largest = float(np.abs(_scored(loaded, len(_SHAPES))).max())
    files = sorted(path.name for path in out.iterdir())
    terminal.say(f"exported  {out}: {', '.join(files)}")
    terminal.say(f"verified  on {len(_SHAPES)} photographs, logits differ by at most {difference:.2g} from eval's")
    return {
        "format": format,
        "run": str(out),
        "files": files,
        "max_abs_difference": difference,
        "max_abs_logit": largest,
    }


def _written(write: Callable[[Loaded, Path], float], loaded: Loaded, out: Path) -> float:
    """What `write` returns; the folder that it fills becomes `out` once it is complete."""
    _refuse_taken(out)
    unfinished = temporary(out)
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # of an earlier process of this number, as in a container
        unfinished.mkdir(parents=True)
        remove_dead(out.parent)
        difference = write(loaded, unfinished)
        _refuse_taken(out)  # another process may have been faster
        unfinished.rename(out)
    except (OSError, SafetensorError) as error:
        raise SchaneError(
            f"{out} cannot be written: {getattr(error, 'strerror', None) or error}; nothing was kept"
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return difference


def _refuse_taken(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise BadRequest(f"{out} exists already; choose another --out")


def _to_timm(loaded: Loaded, folder: Path) -> float:
    """model.safetensors, config.json and README.md, as timm's push_to_hub and transformers lay them out.

    They hold arguments and preprocessing of the checkpoint, the class names and the model card. Read back by plain
    timm, photographs give the logits that `schane eval` scores.
    """
    backbone, spec = loaded.model.backbone, loaded.input
    size = (3, spec.size, spec.size)
    backbone.pretrained_cfg = {
        **{key: value for key, value in backbone.pretrained_cfg.items() if not key.startswith("test_")},
        "input_size": size,
        "mean": spec.mean,
        "std": spec.std,
        "crop_pct": spec.timm_crop_pct,
        "crop_mode": spec.crop_mode,
        "interpolation": spec.interpolation,
    }
    names = {"label_names": list(loaded.class_names)}
    try:
        save_for_hf(backbone, str(folder), model_config=names, safe_serialization=False)
    except RuntimeError as error:  # torch turns a full disk into one
        raise SchaneError(f"{folder.parent} cannot be written ({one_line(error)}); nothing was kept") from None
    (folder / "pytorch_model.bin").unlink()
    # not by timm: safetensors refuses tensors that share memory, as coat's do
    tensors = {key: value.contiguous().clone() for key, value in backbone.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    # transformers passes the class count itself, and refuses to be given it twice
    config["model_args"] = architecture_arguments(loaded.recipe.model, spec.size, stored=True)
    if not config["model_args"]:
        del config["model_args"]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "README.md").write_text(model_card(loaded))
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(again), is_training=False)
    with torch.no_grad():
        theirs = again(torch.stack([transform(Image.fromarray(image)) for image in _photographs()]))
    return _difference("timm", theirs.numpy(), _scored(loaded, len(_SHAPES)))


def _to_onnx(loaded: Loaded, folder: Path) -> float:
    """model.onnx: images (batch, 3, S, S), prepared as its metadata says, to logits (batch, classes)."""
    module: Any
    for module in loaded.model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # the exporter cannot express it for attention with its own bias
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # advice about the exporter's internals
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its internals
        program = _onnx_program(loaded)
        program.model.metadata_props.update(_onnx_metadata(loaded))
        program.save(folder / "model.onnx", external_data=False)
    batches = [_prepared(loaded, count) for count in (1, 3)]  # any batch size
    logits = _onnx_logits(folder / "model.onnx", batches, loaded)
    return max(_difference("onnxruntime", one, _scored(loaded, len(one))) for one in logits)


def _onnx_logits(file: Path, batches: Sequence[torch.Tensor], loaded: Loaded) -> list[np.ndarray]:
    """What onnxruntime makes of each batch (N, 3, S, S); SchaneError where it refuses the file."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return [session.run(None, {"images": images.numpy()})[0] for images in batches]
    except Exception as error:  # onnxruntime's errors have no common class of their own
        raise SchaneError(
            f"onnxruntime cannot run what torch's ONNX exporter made of {architecture(loaded.model)} "
            f"({one_line(error)}); nothing was kept; --format timm may work"
        ) from None


def _onnx_program(loaded: Loaded) -> Any:
    try:
        program = torch.onnx.export(
            loaded.model.backbone,
            (_prepared(loaded, 2),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    except Exception as error:  # the exporter's own errors are many and undocumented
        name = architecture(loaded.model)
        raise SchaneError(
            f"torch's ONNX exporter cannot take {name} ({one_line(error)}); nothing was kept; --format timm may work"
        ) from None
    if program is None:
        raise SchaneError("torch's ONNX exporter made no model; nothing was kept")
    return program


def _onnx_metadata(loaded: Loaded) -> dict[str, str]:
    """Class names and preprocessing, in timm's terms, each as JSON."""
    spec = loaded.input
    values = {
        "class_names": list(loaded.class_names),
        "size": spec.size,
        "mean": spec.mean,
        "std": spec.std,
        "crop_pct": spec.timm_crop_pct,
        "crop_mode": spec.crop_mode,
        "interpolation": spec.interpolation,
    }
    return {key: json.dumps(value) for key, value in values.items()}


def _photographs() -> list[np.ndarray]:
    """Cuts of scikit-learn's two photographs, uint8 (H, W, 3): wide, tall, and smaller than any model's input."""
    photographs = load_sample_images().images
    return [photographs[i % 2][:height, -width:] for i, (height, width) in enumerate(_SHAPES)]


def _prepared(loaded: Loaded, count: int) -> torch.Tensor:
    """The first photographs as `schane eval` gives them to the model, (count, 3, S, S)."""
    transform = eval_transform(loaded.input)
    pixels = [transform(torch.from_numpy(image.copy()).permute(2, 0, 1)) for image in _photographs()[:count]]
    return normalise(torch.stack(pixels), loaded.input, torch.device("cpu"))


def _scored(loaded: Loaded, count: int) -> np.ndarray:
    """The logits that `schane eval` scores for the first photographs."""
    with torch.no_grad():
        logits: np.ndarray = loaded.model(_prepared(loaded, count)).logits.numpy()
    return logits


def _difference(reader: str, exported: np.ndarray, scored: np.ndarray) -> float:
    """The largest difference of logits; SchaneError where it is above the tolerance."""
    difference = float(np.abs(exported - scored).max())
    if not difference <= TOLERANCE * float(np.abs(scored).max()):
        raise SchaneError(
            f"{reader} reads the exported files as another model (logits of photographs differ by {difference:.3g}); "
            "nothing was kept"
        )
    return difference


FORMATS: dict[str, Callable[[Loaded, Path], float]] = {"timm": _to_timm, "onnx": _to_onnx}
