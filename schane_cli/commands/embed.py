"""`schane embed`: the embeddings of a checkpoint as a table, their metrics, and pictures in two dimensions."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from schane_cli.commands.embed_tables import predictions, read_embeddings, write_npy, write_table
from schane_cli.commands.evaluate import Selection, select_images
from schane_cli.distributed import on_first, rank
from schane_cli.errors import BadRequest, refusing
from schane_cli.features.store import FeatureStore, stored_features
from schane_cli.images.imageset import ImageSet
from schane_cli.metrics import embedding as quality
from schane_cli.metrics.embedding import EmbeddingAnalysis, PairedDifference
from schane_cli.metrics.projection2d import PrincipalComponents, principal_components, tsne
from schane_cli.metrics.registry import metric
from schane_cli.metrics.resampling import Floats, Ints
from schane_cli.models.checkpoint import Loaded, load_checkpoint
from schane_cli.preflight import PERPLEXITY, EmbedOptions, largest_perplexity, require_points
from schane_cli.recipe import Recipe, build_recipe
from schane_cli.run import RunFolder, new_run_path, pick_device, recipe_label
from schane_cli.spreadsheets import write_csv
from schane_cli.terminal import Terminal

Result = TypeVar("Result")
SEED = 0  # of the resamples, the sample of points, k-means and t-SNE: one seed makes checkpoints comparable


@dataclass(frozen=True)
class View:
    """One checkpoint's side: its outputs for the points, their metrics and their pictures.

    `vectors` (n, d), `prediction` and `confidence` (n,), `tsne` (n, 2). `origin`: its checkpoint or table, backbone,
    loss, epoch and seed as far as known.
    """

    name: str
    origin: dict[str, Any]
    vectors: Floats
    prediction: Ints
    confidence: Floats
    analysis: EmbeddingAnalysis
    tsne: Floats
    pca: PrincipalComponents
    costs: dict[str, float]


@dataclass(frozen=True)
class Embedded:
    """What `schane embed` found: the images shown, one view per checkpoint, and the differences to the first.

    `differences[i]` belongs to `views[i + 1]`.
    """

    run: RunFolder
    options: EmbedOptions
    images: ImageSet
    n_images: int
    views: list[View]
    differences: list[dict[str, PairedDifference]]
    summary: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A request that has been checked: what to embed, `shown` (rows of the images in metrics and pictures)."""

    loaded: list[Loaded]
    recipes: list[Recipe]
    dataset: str
    names: list[str]
    images: ImageSet
    shown: Ints
    points: ImageSet
    notes: list[str]
    left_out: int
    device: torch.device
    options: EmbedOptions
    perplexity: float
    terminal: Terminal


def embed(
    checkpoints: Sequence[Path],
    *,
    overrides: Mapping[str, Any],
    options: EmbedOptions,
    out: Path | None,
    terminal: Terminal,
) -> Embedded | None:
    """Embed a split by each of the checkpoints (or run folders), measure, and write the tables of the run folder.

    `overrides` are dotted recipe keys on top of each checkpoint's own recipe (data.dataset, data.root, device). Of
    several processes all extract, and the first does the rest; the others return None.

    Raises:
        BadRequest: no such checkpoint, layer, split or dataset; checkpoints of different classes or data; too few
            images or classes; embeddings that are not finite or zero (which images).
    """
    options.check()
    if any(path.suffix == ".parquet" for path in checkpoints):
        return _embed_tables(checkpoints, overrides, options, out, terminal)
    job = _check(checkpoints, overrides, options, terminal)
    run = RunFolder(on_first(lambda: out or new_run_path("embed", recipe_label(job.recipes[0]), options.split)))
    on_first(lambda: run.create(job.recipes[0], f"embed {' '.join(map(str, checkpoints))}"))
    terminal.say(f"data       {job.recipes[0].data.dataset} {options.split}: {len(job.images)} images")
    for note in job.notes:
        terminal.say(f"           {note}")
    with _removed_if_refused(run):
        stores = [_extract(job, number) for number in range(len(job.loaded))]
        if rank() != 0:
            return None
        for (store, _), name in zip(stores, job.names, strict=True):
            with run.writing():
                _write_tables(run.embeddings_table(name if len(stores) > 1 else None), job, store)
        views = [
            _view(job, number, _origin(job.loaded[number]), *_rows(job, *extracted))
            for number, extracted in enumerate(stores)
        ]
    return _finished(job, run, views)


def _finished(job: Job, run: RunFolder, views: list[View]) -> Embedded:
    """Differences, summary and points.csv."""
    with refusing():
        differences = [quality.compare_embeddings(views[0].analysis, view.analysis) for view in views[1:]]
    summary = _summary(job, views, differences) | {"run": str(run.path)}
    with run.writing():
        write_points(run.points_table, job.points, views)
    run.finish(summary)
    return Embedded(run, job.options, job.points, len(job.images), views, differences, summary)


def _embed_tables(
    paths: Sequence[Path], overrides: Mapping[str, Any], options: EmbedOptions, out: Path | None, terminal: Terminal
) -> Embedded:
    """The same of tables of embeddings: nothing is extracted, their vectors are used as they are."""
    if any(path.suffix != ".parquet" for path in paths):
        raise BadRequest("tables and checkpoints cannot be compared; make a table of each with schane embed first")
    if overrides or (options.split, options.layer) != (EmbedOptions.split, EmbedOptions.layer) or options.npy:
        raise BadRequest("--dataset, --data-root, --split, --layer, --npy and --device do not act on a table")
    tables = [read_embeddings(path) for path in paths]
    images = tables[0].images
    for other in tables[1:]:
        if list(other.images.ids) != list(images.ids) or not np.array_equal(other.images.labels, images.labels):
            raise BadRequest(f"{other.path} and {tables[0].path} do not hold the same images with the same labels")
    shown = sample(len(images), options.points)
    points = images.subset(shown, images.split)
    perplexity, notes = _check_images(points, options.perplexity)
    for note in notes:
        terminal.say(f"note       {note}")
    names = _numbered([f"{path.resolve().parent.name}-{path.stem}" for path in paths])
    device = torch.device("cpu")
    job = Job([], [], images.dataset, names, images, shown, points, notes, 0, device, options, perplexity, terminal)
    run = RunFolder(out or new_run_path("embed", paths[0].stem))
    run.create(build_recipe({"data": {"dataset": f"table:{paths[0]}"}}), f"embed {' '.join(map(str, paths))}")
    views = [
        _view(
            job,
            number,
            {"path": str(table.path)},
            table.vectors[shown],
            table.prediction[shown],
            table.confidence[shown],
            {},
        )
        for number, table in enumerate(tables)
    ]
    return _finished(job, run, views)


def _origin(loaded: Loaded) -> dict[str, Any]:
    recipe, epoch = loaded.recipe, loaded.progress["epoch"]
    training = {"backbone": recipe.model.backbone, "loss": recipe.loss.name, "seed": recipe.seed}
    return {"path": str(loaded.path), "epoch": f"{epoch:g}", **training}


def _check(checkpoints: Sequence[Path], overrides: Mapping[str, Any], options: EmbedOptions, terminal: Terminal) -> Job:
    """Everything that can be refused before a model runs."""
    loaded = [load_checkpoint(path) for path in checkpoints]
    recipes = [one.recipe.with_values(overrides) for one in loaded]
    device = pick_device(recipes[0].device)
    names = checkpoint_names(loaded)
    images, notes, left_out = _common_images(loaded, recipes, names, options.split)
    shown = sample(len(images), options.points)
    points = images if len(shown) == len(images) else images.subset(shown, images.split)
    perplexity, lowered = _check_images(points, options.perplexity)
    notes = [*(note for one in loaded for note in one.unfinished_notes), *notes, *lowered]
    if len(points) < len(images):
        notes = [*notes, f"metrics and pictures of {len(points)} of {len(images)} images, drawn by seed {SEED}"]
    return Job(
        loaded,
        recipes,
        recipes[0].data.dataset,
        names,
        images,
        shown,
        points,
        notes,
        left_out,
        device,
        options,
        perplexity,
        terminal,
    )


def checkpoint_names(loaded: Sequence[Loaded]) -> list[str]:
    """A short name for each checkpoint: those of backbone, loss and seed that distinguish it from the others.

    Where that does not distinguish all, or there is only one, the run folder's name (or the file's outside of one),
    numbered where two agree.
    """
    if len(loaded) > 1:
        parts = [(r.model.backbone, r.loss.name, f"s{r.seed}") for r in (one.recipe for one in loaded)]
        differing = [column for column in zip(*parts, strict=True) if len(set(column)) > 1]
        short = ["-".join(part) for part in zip(*differing, strict=True)]
        if len(set(short)) == len(loaded):
            return short
    names: list[str] = []
    for path in (one.path for one in loaded):
        run = RunFolder.of_checkpoint(path.resolve())
        name = run.path.name if run else path.stem
        names.append(f"{name}-{path.stem}" if run and path.name != run.best.name else name)
    return _numbered(names)


def _numbered(names: Sequence[str]) -> list[str]:
    """The names, numbered from the second of the same name on."""
    return [f"{name}#{names[:i].count(name) + 1}" if name in names[:i] else name for i, name in enumerate(names)]


def sample(n: int, most: int) -> Ints:
    """Rows, in order, of `most` of n images drawn by SEED; all of them where there are no more."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(SEED).choice(n, most, replace=False))


def _common_images(loaded: Sequence[Loaded], recipes: Sequence[Recipe], names: Sequence[str], split: str) -> Selection:
    """The split's images, which must be the same, with the same classes, for every checkpoint."""
    chosen = select_images(loaded[0], recipes[0].data, split)
    for other, recipe, name in zip(loaded[1:], recipes[1:], names[1:], strict=True):
        if other.class_names != loaded[0].class_names:
            raise BadRequest(
                f"{names[0]} knows {len(loaded[0].class_names)} classes and {name} {len(other.class_names)}, not the "
                "same ones; checkpoints side by side must share their classes"
            )
        same = recipe.data == recipes[0].data
        if not same and select_images(other, recipe.data, split).images.fingerprint() != chosen.images.fingerprint():
            raise BadRequest(
                f"the {split} images of {name} ({recipe.data.dataset}, split seed {recipe.data.split_seed}) are not "
                f"those of {names[0]} ({recipes[0].data.dataset}, split seed {recipes[0].data.split_seed}); "
                "checkpoints side by side must share them"
            )
    return chosen


def _check_images(images: ImageSet, wanted: float | None) -> tuple[float, list[str]]:
    """Check what metrics and t-SNE need, before a model runs; the perplexity, and a note where few images lower it."""
    sizes, which = np.bincount(images.labels), f"{images.dataset} {images.split}"
    if (sizes > 0).sum() < 2:
        raise BadRequest(f"{which} has images of one class; embedding quality compares classes")
    if sizes.max() < 2:
        raise BadRequest(f"{which} has one image per class; embedding quality needs two images of a class")
    largest = max(largest_perplexity(len(images)), 1)
    perplexity = min(PERPLEXITY, largest) if wanted is None else wanted
    require_points(perplexity, len(images), which)
    if wanted is not None or perplexity == PERPLEXITY:
        return perplexity, []
    return perplexity, [
        f"t-SNE with perplexity {perplexity:g}, the largest that {len(images)} images allow (default {PERPLEXITY:g})"
    ]


@contextmanager
def _removed_if_refused(run: RunFolder) -> Iterator[None]:
    """A request that is refused only after the model ran (NaN in its outputs) leaves nothing behind either."""
    try:
        yield
    except BadRequest:
        if rank() == 0:
            shutil.rmtree(run.path)
        raise


def _extract(job: Job, number: int) -> tuple[FeatureStore, dict[str, float]]:
    """Every output of a checkpoint for every image, from the cache where possible, and what it took."""
    loaded, recipe, images, terminal = job.loaded[number], job.recipes[number], job.images, job.terminal
    terminal.say(f"checkpoint {loaded.path} (epoch {loaded.progress['epoch']:g}, {loaded.recipe.model.backbone})")
    started = time.perf_counter()
    store, n_extracted = stored_features(
        loaded, images, recipe, device=job.device, amp=recipe.train.amp, terminal=terminal, description="extracting"
    )
    seconds = time.perf_counter() - started
    if n_extracted < len(images):
        terminal.say(f"           {len(images) - n_extracted} of {len(images)} images from {store.folder}")
    rate = {"extract_images_per_second": n_extracted / seconds} if n_extracted else {}
    return store, {"extract_seconds": seconds, "extracted_images": n_extracted, **rate}


def _rows(job: Job, store: FeatureStore, costs: dict[str, float]) -> tuple[Floats, Ints, Floats, dict[str, float]]:
    """Vectors, predictions and confidences of the points, and what extracting took."""
    return store.rows(job.options.layer, job.shown), *predictions(store.rows("logits", job.shown)), costs


def _view(
    job: Job,
    number: int,
    origin: dict[str, Any],
    vectors: Floats,
    prediction: Ints,
    confidence: Floats,
    costs: dict[str, float],
) -> View:
    """Metrics and pictures of the points of one checkpoint or table."""
    labels = job.points.labels
    with refusing():
        analysis, figures_seconds = _with_progress(
            job.terminal,
            f"figures, {job.names[number]}",
            lambda tell: quality.analyse_embeddings(vectors, labels, seed=SEED, progress=lambda _, share: tell(share)),
        )
        points, tsne_seconds = _with_progress(
            job.terminal,
            f"t-SNE, {job.names[number]}",
            lambda tell: tsne(vectors, seed=SEED, perplexity=job.perplexity, progress=tell),
        )
        pca = principal_components(vectors)
    return View(
        name=job.names[number],
        origin=origin,
        vectors=vectors,
        prediction=prediction,
        confidence=confidence,
        analysis=analysis,
        tsne=points,
        pca=pca,
        costs=costs | {"figures_seconds": figures_seconds, "tsne_seconds": tsne_seconds},
    )


def _with_progress(
    terminal: Terminal, description: str, work: Callable[[Callable[[float], None]], Result]
) -> tuple[Result, float]:
    """What `work(tell)` returns, and its seconds; `tell` takes the share done, which may start again with each step."""
    started = time.perf_counter()
    with terminal.task(description, 100, "%") as task:
        result = work(lambda share: task.advance(max(0, int(task.total * share) - task.done)))
    return result, time.perf_counter() - started


def _write_tables(path: Path, job: Job, store: FeatureStore) -> None:
    with job.terminal.task("writing the table", len(job.images), "img") as task:
        write_table(path, job.images, store, job.options.layer, task.advance)
    if job.options.npy:
        write_npy(path.with_suffix(".npy"), store, job.options.layer)


def write_points(path: Path, images: ImageSet, views: Sequence[View]) -> None:
    """The coordinates in the pictures, one row per image and checkpoint."""
    frames = [
        pd.DataFrame(
            {
                "checkpoint": view.name,
                "id": list(images.ids),
                "tsne_x": view.tsne[:, 0],
                "tsne_y": view.tsne[:, 1],
                "pca_1": view.pca.points[:, 0],
                "pca_2": view.pca.points[:, 1],
            }
        )
        for view in views
    ]
    write_csv(pd.concat(frames, ignore_index=True), path, index=False, float_format="%.6g")


def _summary(job: Job, views: Sequence[View], differences: Sequence[dict[str, PairedDifference]]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "command": "embed",
        "dataset": job.dataset,
        "split": job.options.split,
        "split_notes": job.notes,
        "images_left_out": job.left_out,
        "layer": job.options.layer,
        "n": len(job.points),
        "n_images": len(job.images),
        "n_classes": len(np.unique(job.points.labels)),
        "tsne_perplexity": job.perplexity,
        "seed": SEED,
        "checkpoints": [_view_summary(view) for view in views],
    }
    if differences:
        summary["differences"] = {
            f"{name} minus {job.names[0]}": {
                key: _difference(key, row, job.names[0], name) for key, row in rows.items()
            }
            for name, rows in zip(job.names[1:], differences, strict=True)
        }
    return summary


def _difference(key: str, d: PairedDifference, first: str, second: str) -> dict[str, Any]:
    better = {"first": first, "second": second, "neither": None}[d.better]
    return {
        "difference": d.difference,
        "ci95": d.ci95,
        "p_holm": d.p_holm,
        "n": d.n,
        "direction": metric(key).direction,
        "better": better,
    }


def _view_summary(view: View) -> dict[str, Any]:
    return {
        "name": view.name,
        "checkpoint": view.origin["path"],
        **{key: view.origin[key] for key in ("backbone", "loss") if key in view.origin},
        "dimensions": view.vectors.shape[1],
        **view.costs,
        "figures": {
            key: {"value": one.value, "ci95": one.ci95, "n": one.n, "direction": metric(key).direction}
            for key, one in view.analysis.metrics.items()
        },
    }
