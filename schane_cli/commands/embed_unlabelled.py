"""`schane embed --images`: images without labels as table and map, with near-duplicates and outliers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from schane_cli.commands.predict import images_to_name, load_predictor, stream
from schane_cli.commands.predict_tables import path_of
from schane_cli.errors import BadRequest, require_package
from schane_cli.images.imageset import ImageSet
from schane_cli.images.thumbnail import thumbnail_webp
from schane_cli.metrics.curation import Neighbourhood, neighbourhood, outliers, perceptual_hash
from schane_cli.metrics.projection2d import tsne, umap
from schane_cli.metrics.resampling import Floats, Ints
from schane_cli.preflight import PERPLEXITY, PROJECTIONS, largest_perplexity, require_choice
from schane_cli.run import RunFolder, new_run_path, plain
from schane_cli.spreadsheets import write_csv
from schane_cli.terminal import Terminal

FEWEST = 4  # images that a map needs
SHOWN = 200  # pairs of near-duplicates and outliers on the page
SEED = 0


def embed_unlabelled(
    checkpoint: Path,
    sources: Sequence[str],
    *,
    projection: str,
    perplexity: float | None,
    overrides: Mapping[str, Any],
    out: Path | None,
    terminal: Terminal,
) -> dict[str, Any]:
    """Embed images that have no labels into a run folder; returns the content of summary.json.

    Raises:
        BadRequest: no images, fewer than four that can be read, an unknown projection or one not installed.
    """
    require_choice("--projection", projection, PROJECTIONS)
    if projection == "umap":
        require_package("--projection umap needs umap-learn", "umap", "umap")
    images, notes = images_to_name(sources, overrides)
    predictor = load_predictor([checkpoint], overrides, terminal)
    notes = [*predictor.unfinished_notes, *notes]
    for note in predictor.unfinished_notes:
        terminal.say(f"note       {note}")
    terminal.say(f"images     {len(images):,} of {', '.join(sources)}; without labels, so no metric compares classes")
    vectors, table, broken = _embedded(images, predictor, terminal)
    if len(vectors) < FEWEST:
        raise BadRequest(f"{len(vectors)} of the {len(images)} images can be read; a map needs {FEWEST} or more")
    wanted = perplexity or PERPLEXITY
    used_perplexity = min(wanted, largest_perplexity(len(vectors)))
    if projection == "tsne" and used_perplexity < wanted:
        notes = [*notes, f"t-SNE with perplexity {used_perplexity}, the largest that {len(vectors)} images allow"]
        terminal.say(f"note       {notes[-1]}")
    with terminal.task("near-duplicates, outliers and map", 3, "step") as task:
        near = neighbourhood(vectors, np.array([row["hash"] for row in table], dtype=np.uint64))
        far = outliers(near.outlier_score)
        task.advance(2)
        points = umap(vectors, seed=SEED) if projection == "umap" else _tsne(vectors, used_perplexity)
        task.advance()
    run = RunFolder(out or new_run_path("embed", Path(checkpoint).resolve().name, "images"))
    run.create(predictor.recipes[0], f"embed {checkpoint} --images {' '.join(sources)}")
    rows = np.array([row["index"] for row in table])
    _write(run, images, rows, table, vectors, points, near, far, terminal)
    write_csv(pd.DataFrame(broken, columns=["path", "error"]), run.unreadable_table, index=False)
    summary = {
        "command": "embed",
        "checkpoints": [str(one.path) for one in predictor.models],
        "sources": list(sources),
        "notes": notes,
        "n": len(vectors),
        "unreadable": len(broken),
        "dimensions": vectors.shape[1],
        "projection": projection,
        "perplexity": used_perplexity if projection == "tsne" else None,
        "duplicate_pairs": len(near.duplicates),
        "outliers": len(far),
        "run": str(run.path),
    }
    run.finish(summary)
    return plain(summary)


def _embedded(
    images: ImageSet, predictor: Any, terminal: Terminal
) -> tuple[Floats, list[dict[str, Any]], list[tuple[str, str]]]:
    """Embeddings (n, d) of the readable images, a row of facts for each, and (path, reason) of the others."""
    vectors, table, broken = [], [], []
    with terminal.task("embedding", len(images), "img") as task:
        for batch in stream(predictor, images, np.arange(len(images))):
            broken += [(path_of(images, index), reason) for index, reason in batch.unreadable]
            if batch.indices:
                probabilities = predictor.probabilities(batch)
                confidence, best = probabilities.max(1)
                vectors.append(batch.outputs[0].embedding)
                for index, score, label in zip(batch.indices, confidence.tolist(), best.tolist(), strict=True):
                    pixels = images.read(index).permute(1, 2, 0).numpy()
                    table.append(
                        {
                            "index": index,
                            "path": path_of(images, index),
                            "prediction": predictor.class_names[label],
                            "confidence": score,
                            "hash": perceptual_hash(pixels),
                        }
                    )
            task.advance(len(batch.indices) + len(batch.unreadable))
    return torch.cat(vectors).numpy() if vectors else np.empty((0, 0)), table, broken


def _tsne(vectors: Floats, perplexity: float) -> Floats:
    try:
        return tsne(vectors, seed=SEED, perplexity=perplexity)
    except ValueError as error:
        raise BadRequest(str(error)) from None


def _write(
    run: RunFolder,
    images: ImageSet,
    rows: Ints,
    table: list[dict[str, Any]],
    vectors: Floats,
    points: Floats,
    near: Neighbourhood,
    far: Ints,
    terminal: Terminal,
) -> None:
    """embeddings.parquet, points.csv, duplicates.csv, and what the page shows of near-duplicates and outliers."""
    frame = pd.DataFrame(table).drop(columns=["index", "hash"])
    frame["outlier_score"] = near.outlier_score
    frame.assign(embedding=list(vectors.astype(np.float32))).to_parquet(run.embeddings_table(), index=False)
    write_csv(frame.assign(x=points[:, 0], y=points[:, 1]), run.points_table, index=False, float_format="%.6g")
    first, second = near.duplicates.T
    paths = frame.path.to_numpy()
    pairs = {"first": paths[first], "second": paths[second], "cosine": near.duplicate_cosine.round(4)}
    write_csv(pd.DataFrame(pairs), run.duplicates_table, index=False)
    chosen = [("duplicate", a, b) for a, b in near.duplicates[:SHOWN].tolist()] + [
        ("outlier", i, -1) for i in far[:SHOWN]
    ]
    needed = sorted({int(i) for _, a, b in chosen for i in (a, b) if i >= 0})
    pictures = {-1: b""}
    with terminal.task("thumbnails", len(needed), "img") as task:
        for index in needed:
            pictures[index] = thumbnail_webp(images, int(rows[index]))
            task.advance()
    shown = [
        {
            "kind": kind,
            "path": paths[a],
            "picture": pictures[int(a)],
            "other_path": paths[b] if b >= 0 else "",
            "other_picture": pictures[int(b)],
        }
        for kind, a, b in chosen
    ]
    columns = ["kind", "path", "picture", "other_path", "other_picture"]
    pd.DataFrame(shown, columns=columns).to_parquet(run.shown_table, index=False)
