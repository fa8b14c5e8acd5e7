"""Preparing a training run, announcing it, running it and describing it."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from schane_cli.distributed import on_first, world_size
from schane_cli.errors import BadRequest
from schane_cli.images.identity import class_changes, image_changes, record
from schane_cli.images.imageset import ImageSet
from schane_cli.images.preprocessing import stored_input
from schane_cli.models.checkpoint import stored_recipe
from schane_cli.models.files import read_last
from schane_cli.models.model import build_model, dry_pass, input_spec
from schane_cli.recipe import Recipe, differences
from schane_cli.run import RunFolder, new_run_path, pick_device, recipe_label, require_space, seed_everything
from schane_cli.terminal import Terminal
from schane_cli.training.batchnorm import choice, has_batchnorm
from schane_cli.training.request import check_request, remarks, val_remark
from schane_cli.training.trainer import Job, Outcome, Trainer


def prepare(
    recipe: Recipe,
    train: ImageSet,
    val: ImageSet,
    command: str,
    *,
    out: Path | None,
    terminal: Terminal,
    resume: Path | None = None,
    others: Mapping[str, ImageSet] | None = None,
) -> Job:
    """Seed, build the model and name the run folder; nothing is written yet.

    A resumed run has its weights in last.pt, so the file that it started from is not needed, except by LoRA. A run that
    was stopped before its first checkpoint starts again in its folder. `others` are the splits besides train and val
    whose identity the checkpoints hold.

    Raises:
        BadRequest: a request that cannot be met, or a resumed run whose classes or images are no longer those it began
            with.
    """
    device = pick_device(recipe.device)
    images = record({"train": train, "val": val, **(others or {})})
    resuming = on_first(lambda: resume is not None and RunFolder(resume).resumable)
    stored = _stored(RunFolder(resume), recipe) if resume is not None and resuming else None
    if stored is not None:
        _require_same_data(stored, train.class_names, images)
    check_request(recipe, train)
    seed_everything(recipe.seed)
    needs_weights = stored is None or recipe.model.lora_rank > 0  # last.pt holds no more than the adapters
    model = build_model(recipe.model, len(train.class_names), recipe.data.image_size, load_weights=needs_weights)
    spec = input_spec(model, recipe.data.image_size) if stored is None else stored_input(stored["input"])
    run = RunFolder(on_first(lambda: resume or out or new_run_path(command, recipe_label(recipe))))
    return Job(recipe, model, spec, train, val, run, terminal, device, command, images, stored=stored)


def _require_same_data(stored: Mapping[str, Any], class_names: tuple[str, ...], images: Mapping[str, Any]) -> None:
    """Refuse to resume with other classes or images than the run began with; BadRequest says what differs."""
    changes = class_changes(tuple(stored["class_names"]), class_names)
    changes = changes or image_changes(stored.get("images", {}), images)
    if changes:
        raise BadRequest(
            f"the data is no longer what this run began with: {'; '.join(changes)}. Put it back as it was (the splits "
            "that schane makes move when images are added or removed), or start a new run"
        )


def _stored(run: RunFolder, recipe: Recipe) -> dict[str, Any]:
    """The content of last.pt of a stopped run; BadRequest where recipe.yaml was changed since it was written."""
    content = read_last(run.last)
    changed = differences(stored_recipe(content, run.last), recipe, label="checkpoint")
    if changed:
        raise BadRequest(
            f"{run.recipe_file} was changed since the run began: {'; '.join(changed)}. Put the values back, or start "
            "another run with them"
        )
    return content


def train(job: Job) -> Outcome:
    """Run the training core, from the start in a new folder or from last.pt of a stopped run.

    The run folder is locked from here until `job.run.close`.
    """
    trainer = Trainer(job, job.stored)
    dry_pass(trainer.model, smallest_pass(job.recipe), job.spec.size, job.device)
    require_space(job.run.path, trainer.checkpoint_bytes())
    on_first(partial(_open, job))
    if job.stored is not None:
        trainer.cut_log()
    job.stored = None  # the tensors of last.pt would stay in memory
    return trainer.run()


def _open(job: Job) -> None:
    """Make the run folder, or lock that of the run that is resumed."""
    if job.stored is None:
        job.run.create(job.recipe, job.command, resumable=True)
        return
    try:
        job.run.lock()
    except OSError as error:
        raise BadRequest(f"run folder {job.run.path} cannot be written: {error.strerror or error}") from None
    if not job.run.resumable:
        job.run.close()
        raise BadRequest(f"the run at {job.run.path} was finished by another process in the meantime")


def smallest_pass(recipe: Recipe) -> int:
    """Views in the smallest forward pass of a training step, over all processes, at most 2."""
    images = max(recipe.train.batch_size // world_size(), 1)
    chunk = min(recipe.train.chunk_size or images, images)
    return min((images % chunk or chunk) * recipe.augment.views, 2)


def announce(job: Job, notes: list[str], test: ImageSet) -> None:
    """The header of a run: data, model, objective."""
    recipe, say = job.recipe, job.terminal.say
    counts = f"{len(job.train)} train, {len(job.val)} val, {len(test)} {test.split}"
    say(f"data      {recipe.data.dataset}: {counts}, {len(job.train.class_names)} classes, {job.spec.size} px")
    for note in notes:
        say(f"          {note}")
    parameters = sum(parameter.numel() for parameter in job.model.backbone.parameters())
    say(
        f"backbone  {recipe.model.backbone} ({parameters / 1e6:.2f} M), weights {recipe.model.weights}, on {job.device}"
    )
    if has_batchnorm(job.model):
        say(f"          BatchNorm {choice(recipe)} (train.batchnorm)")
    for note in job.model.notes:
        say(f"          {note}")
    say(f"objective {objective_line(recipe)}")
    if recipe.train.head_epochs:
        say(
            f"phases    {recipe.train.head_epochs} epochs of the heads alone, then {recipe.train.epochs} of all weights"
        )
    for remark in [*remarks(recipe, job.train, job.model), *val_remark(len(job.val), recipe.train.epochs)]:
        say(f"          {remark}")
    say(f"run       {job.run.path}")


def objective_line(recipe: Recipe) -> str:
    """The objective in a line."""
    loss = recipe.loss
    if loss.name == "ce":
        return "cross-entropy"
    weight = loss.contrastive_weight
    terms = f"temperature {loss.temperature:g}"
    if loss.name == "schane":
        terms += f", hardness {loss.hardness:g}"
    views = "1 view" if recipe.augment.views == 1 else f"{recipe.augment.views} views"
    return f"{weight:g} {loss.name}({terms}) + {1 - weight:g} cross-entropy, {views}"


def describe(job: Job, outcome: Outcome) -> dict[str, Any]:
    """The part of a summary that describes the training."""
    return {
        "command": job.command,
        "dataset": job.recipe.data.dataset,
        "backbone": job.recipe.model.backbone,
        "loss": job.recipe.loss.name,
        "seed": job.recipe.seed,
        "epochs": job.recipe.train.all_epochs,
        "best_epoch": outcome.best_epoch,
        "val_accuracy": outcome.val_accuracy,
        "val_n": outcome.val_n,
        "train_n": len(job.train),
        "train_seconds": outcome.train_seconds,
        "images_per_second": outcome.images_per_second,
        "data_wait_percent": outcome.data_wait_percent,
        "views_forwarded": outcome.views_forwarded,
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "energy_joules": outcome.energy_joules,
        "train_sha256": job.train.identity(),
        "val_sha256": job.val.identity(),
        "device": str(job.device),
    }
