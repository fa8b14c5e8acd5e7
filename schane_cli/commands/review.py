"""`schane review`: likely label errors, near-duplicates, outliers and look-alikes of two classes in a run's data."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from schane_cli.datasets.load import load_splits
from schane_cli.errors import BadRequest, require_package
from schane_cli.features.store import stored_features
from schane_cli.images.imageset import ImageSet
from schane_cli.images.thumbnail import thumbnail_webp
from schane_cli.metrics.curation import (
    FOLDS,
    STRENGTHS,
    LabelEvidence,
    Neighbourhood,
    held_out_logits,
    label_evidence,
    neighbourhood,
    outliers,
    perceptual_hash,
)
from schane_cli.metrics.resampling import Floats, Ints
from schane_cli.models.checkpoint import Loaded, load_checkpoint
from schane_cli.preflight import REVIEW_SPLITS, SPLITS, require_choice
from schane_cli.recipe import build_recipe
from schane_cli.run import RunFolder, new_run_path, pick_device, plain, recipe_label
from schane_cli.spreadsheets import write_csv
from schane_cli.terminal import Terminal

SHOWN = 300  # images of a kind on the page
FEWEST = 10  # images: fewer have no neighbourhood


@dataclass(frozen=True)
class Reviewed:
    """The images looked at, the split of each, and what was found; all arrays are by image, or hold images."""

    images: ImageSet
    split: list[str]
    label_probability: Floats  # of the label that each image has, by classifiers that never saw it
    wrong: Floats  # the chance that the label is wrong
    suggested: Ints  # the likeliest other class, and
    suggested_chance: Floats  # the chance that it is the true one
    issues: Ints  # likely label errors, the likeliest first
    near: Neighbourhood
    outliers: Ints
    alike: Ints  # (m, 2) pairs of two classes, each the other's nearest


def review(
    checkpoint: Path, *, split: str, overrides: Mapping[str, Any], out: Path | None, terminal: Terminal
) -> dict[str, Any]:
    """Review a split of a run's data into a run folder; returns the content of summary.json.

    Raises:
        BadRequest: cleanlab is missing, an unknown split, no such checkpoint, fewer than ten images or one class.
    """
    require_package("schane review needs cleanlab", "review", "cleanlab")
    started = time.perf_counter()
    loaded = load_checkpoint(checkpoint)
    recipe = build_recipe(loaded.recipe.model_dump(mode="json"), overrides)
    images, splits, notes = images_to_review(recipe.data, split)
    run = RunFolder(out or new_run_path("review", recipe_label(recipe), split))
    run.create(recipe, f"review {checkpoint}")
    terminal.say(f"checkpoint {loaded.path} (epoch {loaded.progress['epoch']:g}, {loaded.recipe.model.backbone})")
    terminal.say(f"data       {recipe.data.dataset} {split}: {len(images)} images, {len(images.class_names)} classes")
    notes = [*loaded.unfinished_notes, *notes, *seen_note(loaded, split)]
    for note in notes:
        terminal.say(f"           {note}")
    device = pick_device(recipe.device)
    store, _ = stored_features(
        loaded, images, recipe, device=device, amp=recipe.train.amp, terminal=terminal, description="embedding"
    )
    vectors = store.rows("embedding", np.arange(len(images)))
    reviewed = look_for(vectors, images, splits, terminal)
    relabelled = write_tables(run, reviewed, terminal)
    summary = {
        "command": "review",
        "checkpoints": [str(loaded.path)],
        "dataset": recipe.data.dataset,
        "split": split,
        "split_notes": notes,
        "n_images": len(images),
        "label_issues": len(reviewed.issues),
        "relabel_rows": relabelled,
        "duplicate_pairs": len(reviewed.near.duplicates),
        "duplicates_across_splits": across(reviewed, np.array(splits)),
        "duplicates_across_classes": across(reviewed, images.labels),
        "outliers": len(reviewed.outliers),
        "alike_pairs": len(reviewed.alike),
        "total_seconds": time.perf_counter() - started,
        "run": str(run.path),
    }
    run.finish(summary)
    return plain(summary)


def images_to_review(recipe: Any, split: str) -> tuple[ImageSet, list[str], list[str]]:
    """The images of a split (or of all three), the split of each, and notes."""
    require_choice("split", split, REVIEW_SPLITS)
    splits = load_splits(recipe)
    chosen = [getattr(splits, name) for name in (SPLITS if split == "all" else (split,))]
    images = chosen[0]
    for other in chosen[1:]:
        images = images.joined(other, "all")
    if len(images) < FEWEST or len(np.unique(images.labels)) < 2:
        raise BadRequest(f"{recipe.dataset} {split} has {len(images)} images; a review needs ten, of two classes")
    names = SPLITS if split == "all" else (split,)
    return images, [name for name, part in zip(names, chosen, strict=True) for _ in range(len(part))], splits.notes


def seen_note(loaded: Loaded, split: str) -> list[str]:
    """A caution where the embedding was trained on the labels that it is to judge."""
    if not loaded.progress.get("step") or split not in {"train", "all"}:
        return []
    return ["the backbone saw the train labels and may repeat their errors; a run of fewer epochs finds more of them"]


def look_for(vectors: Floats, images: ImageSet, splits: list[str], terminal: Terminal) -> Reviewed:
    """Everything that is found in the embeddings and the pixels."""
    hashes = np.empty(len(images), dtype=np.uint64)
    with terminal.task("hashing", len(images), "img") as task:
        for index in range(len(images)):
            hashes[index] = perceptual_hash(images.read(index).permute(1, 2, 0).numpy())
            task.advance()
    used, compact = np.unique(images.labels, return_inverse=True)
    with terminal.task("fitting classifiers", FOLDS * len(STRENGTHS), "fit") as task:
        evidence = label_evidence(held_out_logits(vectors, compact, task.advance), compact)
    with terminal.task("looking for errors", 2, "step") as task:
        issues = label_issues(compact, evidence)
        task.advance()
        near = neighbourhood(vectors, hashes)
        task.advance()
    return Reviewed(
        images,
        splits,
        label_probability=evidence.probabilities[np.arange(len(images)), compact],
        wrong=evidence.wrong,
        suggested=used[evidence.suggested],
        suggested_chance=evidence.suggested_chance,
        issues=issues,
        near=near,
        outliers=outliers(near.outlier_score),
        alike=alike(near, images.labels),
    )


def label_issues(labels: Ints, evidence: LabelEvidence) -> Ints:
    """Images whose label is likely wrong, the likeliest first.

    Those that confident learning finds (Northcutt, Jiang and Chuang 2021, arXiv:1911.00068, by cleanlab) and that are
    more likely wrong than right by `LabelEvidence.wrong`: on a weak embedding the first alone finds far too many.
    """
    from cleanlab.filter import find_label_issues

    suspected = find_label_issues(labels, evidence.probabilities, n_jobs=1) & (evidence.wrong > 0.5)
    issues: Ints = np.flatnonzero(suspected)
    return issues[np.argsort(-evidence.wrong[issues], kind="stable")]


def alike(near: Neighbourhood, labels: Ints) -> Ints:
    """Pairs (m, 2) of different classes that are each other's nearest image, the most similar first."""
    first = np.arange(len(labels))
    second = near.nearest
    pairs = (near.nearest[second] == first) & (first < second) & (labels[first] != labels[second])
    order = np.argsort(-near.cosine[pairs], kind="stable")
    return np.stack([first[pairs], second[pairs]], axis=1)[order]


def across(reviewed: Reviewed, kinds: np.ndarray) -> int:
    """Pairs of near-duplicates whose two images are of different kinds."""
    first, second = reviewed.near.duplicates.T
    return int((kinds[first] != kinds[second]).sum())


def write_tables(run: RunFolder, reviewed: Reviewed, terminal: Terminal) -> int:
    """review.csv (one row per image), duplicates.csv, relabel.csv and exclude.csv, and what the page shows; returns
    how many images relabel.csv holds."""
    images, near = reviewed.images, reviewed.near
    names = np.array(images.class_names, dtype=object)
    paths = np.array(list(images.ids), dtype=object)
    suggested = reviewed.suggested
    rank = np.full(len(images), -1)
    rank[reviewed.issues] = np.arange(len(reviewed.issues))
    table = pd.DataFrame(
        {
            "path": paths,
            "split": reviewed.split,
            "label": names[images.labels],
            "suggested": names[suggested],
            "label_probability": reviewed.label_probability.round(6),
            "wrong_chance": reviewed.wrong.round(6),
            "suggested_chance": reviewed.suggested_chance.round(6),
            "issue_rank": np.where(rank < 0, "", (rank + 1).astype(str)),
            "outlier_score": near.outlier_score.round(6),
        }
    )
    write_csv(table, run.review_table, index=False)
    first, second = near.duplicates.T
    pairs = pd.DataFrame(
        {
            "first": paths[first],
            "second": paths[second],
            "first_label": names[images.labels[first]],
            "second_label": names[images.labels[second]],
            "first_split": np.array(reviewed.split, dtype=object)[first],
            "second_split": np.array(reviewed.split, dtype=object)[second],
            "cosine": near.duplicate_cosine.round(4),
            "bits": near.duplicate_bits,
        }
    )
    write_csv(pairs, run.duplicates_table, index=False)
    sure = [i for i in reviewed.issues if reviewed.suggested_chance[i] > 0.5]  # only these are applied without a look
    relabel = pd.DataFrame({"path": paths[sure], "label": names[suggested[sure]]})
    write_csv(relabel, run.relabel_table, index=False)
    exclude = pd.DataFrame({"path": paths[redundant(near.duplicates)]})
    write_csv(exclude, run.exclude_table, index=False)
    shown_rows(reviewed, paths, names, suggested, terminal).to_parquet(run.shown_table, index=False)
    return len(sure)


def redundant(duplicates: Ints) -> list[int]:
    """The images to leave out so that of each group of near-duplicates the first is kept."""
    group: dict[int, int] = {}
    for first, second in duplicates.tolist():
        group[second] = min(group.get(second, second), group.get(first, first))
    return sorted(group)


def shown_rows(
    reviewed: Reviewed, paths: np.ndarray, names: np.ndarray, suggested: Ints, terminal: Terminal
) -> pd.DataFrame:
    """What the page shows: kind, image, its label, what is suggested, its partner if it has one, a picture of each."""
    images, near = reviewed.images, reviewed.near
    rows: list[tuple[str, int, int, float]] = [
        ("label", int(i), -1, float(reviewed.wrong[i])) for i in reviewed.issues[:SHOWN]
    ]
    rows += [
        ("duplicate", int(b), int(a), float(c))
        for (a, b), c in zip(near.duplicates[:SHOWN], near.duplicate_cosine[:SHOWN], strict=True)
    ]
    rows += [("outlier", int(i), -1, float(near.outlier_score[i])) for i in reviewed.outliers[:SHOWN]]
    rows += [("alike", int(a), int(b), float(near.cosine[a])) for a, b in reviewed.alike[:SHOWN]]
    needed = sorted({i for _, a, b, _ in rows for i in (a, b) if i >= 0})
    pictures = {-1: b""}
    with terminal.task("thumbnails", len(needed), "img") as task:
        for index in needed:
            pictures[index] = thumbnail_webp(images, index, 160)
            task.advance()
    label = names[images.labels]
    return pd.DataFrame(
        [
            {
                "kind": kind,
                "path": paths[a],
                "split": reviewed.split[a],
                "label": label[a],
                "suggested": names[suggested[a]],
                "score": score,
                "picture": pictures[a],
                "other_path": paths[b] if b >= 0 else "",
                "other_label": label[b] if b >= 0 else "",
                "other_picture": pictures[b],
            }
            for kind, a, b, score in rows
        ],
        columns=["kind", "path", "split", "label", "suggested", "score", "picture",
                 "other_path", "other_label", "other_picture"],
    )  # fmt: skip
