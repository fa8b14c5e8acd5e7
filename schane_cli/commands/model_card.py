"""The model card of an export: README.md with data, recipe, results with their n and intervals, and how to load it."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

from schane_cli import __version__
from schane_cli.errors import BadRequest
from schane_cli.metrics.intervals import accuracy_interval
from schane_cli.metrics.registry import summary_rows
from schane_cli.models.checkpoint import Loaded
from schane_cli.models.model import architecture
from schane_cli.recipe import Recipe, differences
from schane_cli.run import RunFolder, escape_markdown, one_line

MOST_CLASSES = 20  # named on the card; config.json has all
_RESULTS = ("test_accuracy", "test_top5_accuracy", "test_nll", "test_ece", "test_brier")


def model_card(loaded: Loaded) -> str:
    """The card of a checkpoint as Markdown with the hub's header."""
    name = architecture(loaded.model)
    header = {"library_name": "timm", "tags": ["image-classification", "timm", "transformers", "schane"]}
    changes = differences(Recipe(), _public(loaded.recipe), label="default")
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
            f"# {name}, fine-tuned on {_dataset(loaded)}\n",
            f"{_objective(loaded.recipe)}, by schane {__version__}.\n",
            "## Results\n",
            *_results(loaded),
            "\n## Data\n",
            *_data(loaded),
            "\n## Preprocessing\n",
            _preprocessing(loaded),
            "\n## Use\n",
            _USE,
            "\n## Recipe\n",
            "What differs from schane's defaults:\n",
            *(f"- {_as_code(line)}" for line in changes or ["nothing"]),
            "",
        ]
    )


_USE = """```python
import timm
model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)

from transformers import pipeline
classify = pipeline("image-classification", "FOLDER")
```"""


def _dataset(loaded: Loaded) -> str:
    """A dataset by name, or the last part of a folder's: the path concerns only its author."""
    return escape_markdown(loaded.recipe.data.dataset.rstrip("/").rpartition("/")[2])


def _public(recipe: Recipe) -> Recipe:
    """The recipe with files and folders by the last part of their paths, which concern only its author."""
    values = {key: value for key in ("data.dataset", "data.root", "model.weights") if (value := recipe.flat()[key])}
    return recipe.with_values({key: _last_part(value) for key, value in values.items()})


def _last_part(value: str) -> str:
    kind, colon, place = value.rpartition(":")
    return f"{kind}{colon}{PurePath(place).name}" if PurePath(place).is_absolute() else value


def _as_code(text: str) -> str:
    """In a code span, which only a backtick of the text itself would end."""
    return f"`{one_line(text).replace('`', chr(39))}`"


def _objective(recipe: Recipe) -> str:
    loss = recipe.loss
    if loss.name == "ce":
        return "Trained with cross-entropy"
    weight = loss.contrastive_weight
    return f"Trained with {weight:g} {loss.name} contrastive loss (arXiv:2308.14893) and {1 - weight:g} cross-entropy"


def _results(loaded: Loaded) -> list[str]:
    """A table of the run's results on test and val; elsewhere only what the checkpoint holds."""
    summary, progress = _summary(loaded), loaded.progress
    rows = summary_rows(summary, _RESULTS, str(summary.get("test_n", "")))
    n = progress.get("val_n")
    if n and 0 <= progress["val_accuracy"] <= 1:
        estimate = accuracy_interval(round(progress["val_accuracy"] * n), n)
        values = {"val_accuracy": estimate.value, "val_accuracy_ci95": estimate.ci95}
        rows += summary_rows(values, ["val_accuracy"], f"{n}, which chose the epoch")
    if not rows:
        return ["None were stored beside the checkpoint."]
    table = ["| metric | value (95 % interval) | n |", "| --- | --- | --- |"]
    return table + [f"| {' | '.join(row)} |" for row in rows]


def _summary(loaded: Loaded) -> Mapping[str, Any]:
    run = RunFolder.of_checkpoint(loaded.path)
    if run is None or not run.finished:
        return {}
    try:
        return run.read_summary()
    except BadRequest:
        return {}


def _data(loaded: Loaded) -> list[str]:
    names = list(loaded.class_names)
    shown = escape_markdown(", ".join(names[:MOST_CLASSES])) + (", ..." if len(names) > MOST_CLASSES else "")
    summary = _summary(loaded)
    lines = [f"- dataset: {_dataset(loaded)}, {len(names)} classes: {shown}"]
    if "train_n" in summary:
        lines.append(f"- {summary['train_n']} training images (sha256 of the list: `{summary['train_sha256'][:16]}`)")
    return lines


def _preprocessing(loaded: Loaded) -> str:
    spec = loaded.input
    return (
        f"{spec.size} x {spec.size} px, {spec.interpolation}, crop {spec.crop_mode} {spec.timm_crop_pct:g}, mean "
        f"{list(spec.mean)}, std {list(spec.std)}; it stands in config.json, where timm and transformers read it."
    )
