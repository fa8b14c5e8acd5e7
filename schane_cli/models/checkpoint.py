"""A checkpoint of a model: packed, loaded, restored."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from schane_cli.errors import BadRequest
from schane_cli.images.preprocessing import InputSpec, stored_input
from schane_cli.models.files import FORMAT, LORA_FORMAT, read_checkpoint
from schane_cli.models.lora import has_lora, lora_keys, merge_lora
from schane_cli.models.model import SchaneModel, architecture, build_model
from schane_cli.models.sharding import split_state, whole
from schane_cli.preflight import find_checkpoint
from schane_cli.recipe import Recipe, saved_recipe
from schane_cli.run import RunFolder


@dataclass
class Loaded:
    """A checkpoint that has been loaded."""

    path: Path
    model: SchaneModel
    recipe: Recipe
    class_names: tuple[str, ...]
    input: InputSpec
    progress: dict[str, Any]
    images: dict[str, Any] = field(default_factory=dict)  # which images it was trained on; empty before 0.2

    @property
    def unfinished_notes(self) -> list[str]:
        """A sentence if the run that the checkpoint belongs to has not come to its end."""
        run = RunFolder.of_checkpoint(self.path)
        if run is None or not run.resumable:
            return []
        done = max((line.get("epoch", 0) for line in run.read_events("epoch")), default=0)
        return [f"{run.path} is not finished: {done} of {self.recipe.train.all_epochs} epochs are done; {run.way_on}"]


def pack(
    model: SchaneModel,
    recipe: Recipe,
    class_names: tuple[str, ...],
    spec: InputSpec,
    progress: dict[str, Any],
    images: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of a checkpoint of `model`; called by every process where the model is split over them.

    `images` says which images the run was trained on, as `images.identity.record` puts it.
    """
    state, kind = _whole_copy(model.backbone), {"format": FORMAT}
    if has_lora(model.backbone):
        state = {key: state[key] for key in lora_keys(model.backbone)}
        kind = {"format": LORA_FORMAT, "lora_base_sha256": model.backbone.lora_base_sha256}
    return {
        **kind,
        "architecture": architecture(model),
        "state_dict": state,
        "projection": _whole_copy(model.projection),
        "recipe": recipe.model_dump(mode="json"),
        "class_names": list(class_names),
        "input": asdict(spec),
        "progress": progress,
        "images": images or {},
    }


def _whole_copy(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: whole(value).detach().cpu().clone() for key, value in module.state_dict().items()}


def load_checkpoint(path: Path) -> Loaded:
    """Model (eval mode, CPU), recipe and class names of a checkpoint or run folder.

    Adapters (LoRA) are merged into the weights that the run started from, which are taken from the same place.

    Raises:
        BadRequest: missing, unreadable, of another kind, or of a backbone that this timm does not know.
    """
    file = find_checkpoint(path)
    content = read_checkpoint(file)
    recipe = stored_recipe(content, file)
    spec = stored_input(content["input"])
    adapters = "lora_base_sha256" in content
    settings = recipe.model if adapters else recipe.model.model_copy(update={"lora_rank": 0})
    model = build_model(settings, len(content["class_names"]), spec.size, load_weights=adapters)
    restore(model, content, file)
    if adapters:
        merge_lora(model.backbone)
    model.contiguous = recipe.train.sharding == "fsdp"
    return Loaded(
        file, model.eval(), recipe, tuple(content["class_names"]), spec, content["progress"], content.get("images", {})
    )


def stored_recipe(content: dict[str, Any], path: Path) -> Recipe:
    """The recipe in the checkpoint `content` of `path`; BadRequest that names the file where it is not valid."""
    try:
        return saved_recipe(content["recipe"])
    except BadRequest as error:
        raise BadRequest(f"checkpoint {path}, recipe: {error}") from None


def restore(model: SchaneModel, content: dict[str, Any], path: Path) -> None:
    """Put the tensors of a checkpoint into `model`; BadRequest where they do not fit."""
    state = content["state_dict"]
    if has_lora(model.backbone):
        if content.get("lora_base_sha256") != model.backbone.lora_base_sha256:
            raise BadRequest(
                f"checkpoint {path} holds LoRA adapters of other weights than model.weights gives now; put those back "
                "that the run started from"
            )
        state = {**model.backbone.state_dict(), **state}
    try:
        model.backbone.load_state_dict(split_state(state, model.backbone))
        model.projection.load_state_dict(split_state(content["projection"], model.projection))
    except RuntimeError as error:
        raise BadRequest(
            f"checkpoint {path} does not fit its own recipe: {str(error).splitlines()[-1].strip()}"
        ) from None
