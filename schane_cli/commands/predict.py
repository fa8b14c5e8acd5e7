"""`schane predict`: classify new images by a run or the mean of several, with a confidence that means something."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from schane_cli import spreadsheets
from schane_cli.commands.calibration import Calibrated, calibrated_probabilities, calibration_of_mean
from schane_cli.commands.evaluate import flat
from schane_cli.commands.predict_copies import copy_images, prepare_copies
from schane_cli.commands.predict_tables import (
    UNSURE,
    Assembled,
    Columns,
    as_table,
    assemble,
    joined,
    named,
    path_of,
    whole_parts,
    with_pictures,
    write_part,
)
from schane_cli.datasets.catalog import parse_source
from schane_cli.datasets.sources import read_images
from schane_cli.datasets.tables import read_csv
from schane_cli.datasets.unlabelled import unlabelled
from schane_cli.distributed import on_first, rank, world_size
from schane_cli.errors import BadRequest, SchaneError
from schane_cli.features.extract import scoring_batch
from schane_cli.features.stream import StreamedBatch, stream_outputs
from schane_cli.images.imageset import ImageSet
from schane_cli.images.loader import worker_count
from schane_cli.models.checkpoint import Loaded, load_checkpoint
from schane_cli.preflight import PredictOptions, require_request, split_arguments
from schane_cli.recipe import Recipe, build_recipe
from schane_cli.run import RunFolder, new_run_path, pick_device, plain, read_json, write_json
from schane_cli.terminal import Terminal
from schane_cli.training.interruption import Interrupted, StopSignal

BLOCK = 4096  # images a part file: what a stopped run loses at most


@dataclass
class Predictor:
    """Models that share their classes, ready to classify images."""

    models: list[Loaded]
    recipes: list[Recipe]
    device: torch.device
    temperatures: list[float] = field(default_factory=list)
    calibrated: Calibrated | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the first model's order."""
        return self.models[0].class_names

    @property
    def unfinished_notes(self) -> list[str]:
        """A sentence for each model whose run has not come to its end."""
        return [note for one in self.models for note in one.unfinished_notes]

    def identity(self) -> list[str]:
        """What must be the same when a stopped run is resumed."""
        return [f"{one.path} {one.path.stat().st_size} {one.path.stat().st_mtime_ns}" for one in self.models]

    def probabilities(self, batch: StreamedBatch) -> torch.Tensor:
        """float64 (n, C) of the readable images of a batch, calibrated."""
        assert self.calibrated is not None
        if not batch.indices:
            return torch.empty(0, len(self.class_names), dtype=torch.float64)
        orders = [[one.class_names.index(name) for name in self.class_names] for one in self.models]
        logits = [part.logits[:, order] for part, order in zip(batch.outputs, orders, strict=True)]
        return calibrated_probabilities(logits, self.temperatures, self.calibrated)


def images_to_name(sources: Sequence[str], overrides: Mapping[str, Any]) -> tuple[ImageSet, list[str]]:
    """The images of all sources, labels unknown (-1), and sentences on what was left out.

    A source is a folder, a file, a pattern, `csv:FILE` with a column `path`, or, alone, `hfds:NAME` or `wds:PATH`.

    Raises:
        BadRequest: a source that is not there or holds no image, or containers beside files.
    """
    parsed = [parse_source(source) if ":" in source else None for source in sources]
    contained = [source for source, kind in zip(sources, parsed, strict=True) if kind and kind[0] in {"hfds", "wds"}]
    if contained and len(sources) > 1:
        raise BadRequest(f"{contained[0]} goes alone: images inside larger files and image files do not mix")
    if contained:
        known = ("data.root", "data.image_column")
        recipe = build_recipe({"data": {"dataset": contained[0]}}, {k: v for k, v in overrides.items() if k in known})
        return read_images(recipe.data)
    paths: list[str] = []
    for source, kind in zip(sources, parsed, strict=True):
        paths += _listed(Path(kind[1])) if kind and kind[0] == "csv" else [kind[1] if kind else source]
    images, notes = unlabelled(paths)
    return _without_labels(images), notes


def _listed(table: Path) -> list[str]:
    """The files that a table names, relative to its own folder."""
    table = table.expanduser()
    return [os.path.normpath(table.parent / row["path"]) for row in read_csv(table, ("path",))]


def _without_labels(images: ImageSet) -> ImageSet:
    """A plain set, which raises for an image that cannot be read, so that the loader can say why."""
    return ImageSet(images.dataset, "images", images.images, np.full(len(images), -1), (), images.ids)


def load_predictor(runs: Sequence[Path], overrides: Mapping[str, Any], terminal: Terminal) -> Predictor:
    """The models and the calibration of their mean.

    Raises:
        BadRequest: no such checkpoint or device, or models of different classes.
    """
    models = [load_checkpoint(path) for path in runs]
    for other in models[1:]:
        if set(other.class_names) != set(models[0].class_names):
            raise BadRequest(
                f"{other.path} knows other classes than {models[0].path}; the mean is taken over runs of one dataset"
            )
    recipes = [build_recipe(one.recipe.model_dump(mode="json"), overrides) for one in models]
    predictor = Predictor(models, recipes, pick_device(recipes[0].device))
    predictor.temperatures, predictor.calibrated = calibration_of_mean(models, recipes, predictor.device, terminal)
    return predictor


def stream(predictor: Predictor, images: ImageSet, indices: np.ndarray) -> Iterator[StreamedBatch]:
    """The images at `indices` through the models."""
    recipe = predictor.recipes[0]
    return stream_outputs(
        predictor.models,
        images,
        indices,
        device=predictor.device,
        batch_size=scoring_batch(recipe.train),
        workers=0 if len(indices) == 1 else worker_count(recipe.data, images),
        amp=recipe.train.amp,
    )


def predict_one(predictor: Predictor, images: ImageSet) -> dict[str, Any]:
    """What the models say of one image: prediction, confidence, the probability of every class.

    Raises:
        SchaneError: the image cannot be read.
    """
    (batch,) = stream(predictor, images, np.arange(1))
    if batch.unreadable:
        raise SchaneError(batch.unreadable[0][1])
    probabilities = predictor.probabilities(batch)[0]
    order = probabilities.argsort(descending=True, stable=True).tolist()
    calibrated = predictor.calibrated
    return {
        "command": "predict",
        "path": path_of(images, 0),
        "prediction": predictor.class_names[order[0]],
        "confidence": float(probabilities[order[0]]),
        "calibrated": bool(calibrated and calibrated.fitted),
        "probabilities": {predictor.class_names[c]: float(probabilities[c]) for c in order},
    }


def name_one_file(
    arguments: Sequence[str], options: PredictOptions, overrides: Mapping[str, Any], terminal: Terminal
) -> dict[str, Any] | None:
    """The answer to a request for one image file, without a run folder; None where more is asked for."""
    runs, sources = split_arguments(arguments)
    if len(sources) != 1 or not Path(sources[0]).is_file() or options != PredictOptions(options.top_k):
        return None
    images, _ = images_to_name(sources, overrides)
    predictor = load_predictor(runs, overrides, terminal)
    options.check(len(predictor.class_names))
    for note in predictor.unfinished_notes:
        terminal.say(f"note       {note}")
    return predict_one(predictor, images)


def predict_request(
    arguments: Sequence[str],
    options: PredictOptions,
    overrides: Mapping[str, Any],
    *,
    out: Path | None,
    terminal: Terminal,
    resume: Path | None,
) -> dict[str, Any]:
    """`predict` for the arguments of the command line, or for those that a stopped run was given."""
    if resume is None:
        runs, sources = split_arguments(arguments)
    else:
        if options != PredictOptions():
            raise BadRequest(f"--resume takes its options from {resume}; leave the others out")
        request = read_request(resume)
        runs, sources = [Path(run) for run in request["runs"]], request["sources"]
        options, overrides = PredictOptions(**request["options"]), {**request["values"], **overrides}
    return predict(runs, sources, options=options, overrides=overrides, out=out, terminal=terminal, resume=resume)


def predict(
    runs: Sequence[Path],
    sources: Sequence[str],
    *,
    options: PredictOptions,
    overrides: Mapping[str, Any],
    out: Path | None,
    terminal: Terminal,
    resume: Path | None = None,
) -> dict[str, Any]:
    """Classify the images of `sources` into a run folder; returns the content of summary.json.

    Raises:
        BadRequest: no such run, no images, an option that is not allowed; before any work.
        SchaneError: none of the images can be read, or the disk is full.
        Interrupted: a signal came; the parts made so far are kept for --resume.
    """
    images, notes = images_to_name(sources, overrides)
    predictor = load_predictor(runs, overrides, terminal)
    request = {
        "runs": [str(path) for path in runs],
        "sources": list(sources),
        "options": asdict(options),
        "values": plain(overrides),
    }
    path = resume or on_first(lambda: out or new_run_path("predict", Path(runs[0]).resolve().name))
    summary = {"command": "predict", "checkpoints": [str(one.path) for one in predictor.models], "sources": sources}
    return name_images(
        predictor,
        images,
        [*predictor.unfinished_notes, *notes],
        options,
        RunFolder(path),
        request,
        summary,
        resuming=resume is not None,
        terminal=terminal,
    )


def name_images(
    predictor: Predictor,
    images: ImageSet,
    notes: Sequence[str],
    options: PredictOptions,
    run: RunFolder,
    request: dict[str, Any],
    summary: Mapping[str, Any],
    *,
    resuming: bool,
    terminal: Terminal,
) -> dict[str, Any]:
    """Classify `images` into the run folder; returns `summary` with all that was found added, as in summary.json."""
    options.check(len(predictor.class_names))
    copies = None
    if options.copy_to is not None:
        copies = prepare_copies(Path(options.copy_to), images, link=options.link, resuming=resuming)
    _begin(run, predictor, request, images, resuming)
    for note in notes:
        terminal.say(f"note       {note}")
    terminal.say(f"images     {len(images):,} of {', '.join(request['sources'])}")
    _fill(run, predictor, images, options, terminal)
    if rank() != 0:
        return {}
    shown = assemble(run, options, predictor.class_names, len(images), terminal)
    if shown.readable == 0:
        first = spreadsheets.read_csv(run.unreadable_table)["error"].iloc[0]
        raise SchaneError(f"none of the {len(images)} images can be read; {run.unreadable_table} says why: {first}")
    if copies is not None:
        copy_images(run.full_predictions_table, copies, terminal)
    full = {
        **summary,
        "notes": list(notes),
        "images": len(images),
        "unreadable": len(images) - shown.readable,
        "classes": shown.counts,
        "mean_confidence": shown.confidence_sum / shown.readable,
        **({} if copies is None else {"copied_to": str(copies.target), "copies_are_links": copies.link}),
        **_confidence_summary(predictor, options, shown),
        "device": str(predictor.device),
        "run": str(run.path),
    }
    with_pictures(shown.page, images, terminal).to_parquet(run.shown_table, index=False)
    run.finish(full)
    shutil.rmtree(run.parts)
    return plain(full)


def _confidence_summary(predictor: Predictor, options: PredictOptions, shown: "Assembled") -> dict[str, Any]:
    """How the confidence came about, and what --min-confidence left of the images and leaves of val."""
    calibrated = predictor.calibrated
    assert calibrated is not None
    values: dict[str, Any] = {
        "calibrated": calibrated.fitted,
        "temperature": calibrated.temperature if len(predictor.models) == 1 else predictor.temperatures,
        "temperature_val_n": calibrated.n,
        "confidence_note": calibrated.note,
    }
    if options.min_confidence is None:
        return values
    values |= {"min_confidence": options.min_confidence, "unsure": shown.counts.get(UNSURE, 0)}
    if calibrated.n:
        share, accuracy = calibrated.kept(options.min_confidence)
        values |= flat({"val_kept": share, "val_kept_accuracy": accuracy}) | {"val_n": calibrated.n}
        values["val_kept_n"] = accuracy.n if accuracy is not None else 0
    return values


def _begin(run: RunFolder, predictor: Predictor, request: dict[str, Any], images: ImageSet, resuming: bool) -> None:
    """A new folder with the request in it, or a stopped one, whose images and models must be the same still."""
    digest = hashlib.sha256("\0".join(images.ids).encode())
    request["images_sha256"] = digest.hexdigest()
    request["models"] = predictor.identity()
    if resuming:
        before = read_request(run.path)
        for key, what in (("images_sha256", "images"), ("models", "checkpoints")):
            if before[key] != request[key]:
                raise BadRequest(f"the {what} are not those that {run.path} began with; start again in a new folder")
    on_first(lambda: _open(run, predictor.recipes[0], request, resuming))


def _open(run: RunFolder, recipe: Recipe, request: dict[str, Any], resuming: bool) -> None:
    """Make the folder with the request in it, or lock the one of a stopped run."""
    if not resuming:
        run.create(recipe, "predict", resumable=True)
    with run.writing():
        run.lock()
        run.parts.mkdir(exist_ok=True)
        if not resuming:
            write_json(run.request_file, request)


def read_request(folder: Path) -> dict[str, Any]:
    """What a stopped run was asked for; BadRequest where there is none, or it is finished."""
    run = RunFolder(folder)
    require_request(folder)
    return read_json(run.request_file)


def _fill(run: RunFolder, predictor: Predictor, images: ImageSet, options: PredictOptions, terminal: Terminal) -> None:
    """Write the part files that are missing, each whole or not at all; every process makes its share."""
    starts = list(range(0, len(images), BLOCK))
    there = on_first(lambda: whole_parts(run))
    missing = [start for start in starts if start not in there]
    own = missing[rank() :: world_size()]
    indices = np.concatenate([np.arange(s, min(s + BLOCK, len(images))) for s in own]) if own else np.empty(0, int)
    done = len(images) - sum(min(BLOCK, len(images) - start) for start in missing)
    stop = StopSignal(predictor.device)
    waiting: list[Columns] = []
    with stop.caught(), terminal.task("predicting", len(images), "img", done=done) as task, ExitStack() as stack:
        batches = stream(predictor, images, indices)
        stack.callback(batches.close)  # type: ignore[attr-defined]
        for batch in stop.until_it_comes_here(batches if len(indices) else ()):
            waiting.append(named(batch, predictor.probabilities(batch), options))
            task.advance(len(waiting[-1]["index"]) * world_size())
            while own and sum(len(rows["index"]) for rows in waiting) >= (size := min(BLOCK, len(images) - own[0])):
                rows = joined(waiting)
                block = {key: column[:size] for key, column in rows.items()}
                write_part(run, own.pop(0), as_table(block, images, predictor.class_names, options))
                waiting = [{key: column[size:] for key, column in rows.items()}]
        if stop.number:
            raise Interrupted(stop.number, f"predict --resume {run.path}")
    if world_size() > 1:
        dist.barrier()
