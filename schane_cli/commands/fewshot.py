"""`schane fewshot`: N-way K-shot accuracy on classes that training never saw, with intervals."""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from schane_cli import plugins
from schane_cli.commands.compare import sentence
from schane_cli.commands.finetune import finished_before
from schane_cli.datasets.catalog import class_list
from schane_cli.datasets.load import load_fewshot_splits
from schane_cli.distributed import on_first
from schane_cli.errors import BadRequest, nearest, refusing
from schane_cli.features.extract import extract, scoring_batch
from schane_cli.features.store import RandomView, stored_features
from schane_cli.fewshot.classifiers import CLASSIFIERS, Method, as_classifier
from schane_cli.fewshot.episodes import EpisodeBlocks, Episodes, disjoint_episodes, draw_episodes
from schane_cli.fewshot.scores import evaluate_episodes
from schane_cli.images.imageset import ImageSet
from schane_cli.images.splits import FewshotSplits
from schane_cli.metrics.intervals import holm_where_tested, paired_comparison, t_interval
from schane_cli.metrics.registry import METRICS
from schane_cli.models.checkpoint import Loaded, load_checkpoint
from schane_cli.models.model import SchaneModel
from schane_cli.recipe import FewshotRecipe, Recipe
from schane_cli.run import RunFolder, new_run_path, pick_device, plain, recipe_label
from schane_cli.spreadsheets import write_csv
from schane_cli.terminal import Terminal
from schane_cli.training.job import announce, describe, prepare, train
from schane_cli.training.trainer import Job

CURVE_SHOTS = (1, 2, 5, 10, 20)  # of the picture of accuracy against shots
SELECTION_EPISODES = 200  # on the val classes, after each epoch of base training


@dataclass(frozen=True)
class Entrant:
    """One checkpoint's embeddings of the novel images: `plain` (n, d), `copies` (c, n, d), `base_mean` (d,).

    `copies` are None where the protocol has none, and `base_mean`, of the base classes, where no classifier needs it.
    """

    name: str
    plain: torch.Tensor
    copies: torch.Tensor | None
    base_mean: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class Scored:
    """Accuracy of each episode (E,), and for each novel class its queries, and how many of them were right (C,)."""

    accuracies: np.ndarray
    queries: np.ndarray
    right: np.ndarray


Key = tuple[str, int, str]  # checkpoint, shots, classifier


def fewshot(
    checkpoints: Sequence[Path],
    recipe: Recipe,
    *,
    allow_seen_classes: bool,
    out: Path | None,
    terminal: Terminal,
    resume: Path | None = None,
) -> dict[str, Any]:
    """Evaluate checkpoints on episodes of the novel classes, or train one on the base classes first.

    Returns the content of summary.json.

    Raises:
        BadRequest: what cannot be done: too few classes or images, an unknown classifier, a checkpoint that has
            seen the novel classes (unless allowed).
    """
    started = time.perf_counter()
    done = finished_before(recipe, resume or out) if not checkpoints else None
    if done is not None:
        return done
    splits = load_fewshot_splits(recipe.data, untrained=not checkpoints and recipe.train.epochs == 0)
    check_ways(splits, recipe)
    episodes = draw_all(splits.novel, recipe)
    check_classifiers(recipe.fewshot)
    training: dict[str, Any] = {}
    if checkpoints:
        loaded = [load_checkpoint(path) for path in checkpoints]
        seen = {one.path: seen_classes(one, splits.novel, allow_seen_classes) for one in loaded}
        run = RunFolder(on_first(lambda: out or new_run_path("fewshot", recipe_label(recipe))))
        on_first(lambda: run.create(recipe, f"fewshot {' '.join(map(str, checkpoints))}"))
    else:
        job = base_job(recipe, splits, out=out, terminal=terminal, resume=resume)
        announce(job, splits.notes, splits.novel)
        training = describe(job, train(job))
        run, loaded, seen = job.run, [load_checkpoint(job.run.path)], {}
    may_have_seen = [*pretraining_notes(loaded, recipe), *(note for note in seen.values() if note)]
    unfinished = [note for one in loaded for note in one.unfinished_notes] if checkpoints else []  # else it ends here
    notes = [*unfinished, *splits.notes]
    for note in notes if checkpoints else ():
        terminal.say(note)
    entrants = [entrant(one, splits, recipe, terminal) for one in loaded]
    names = distinct([one.name for one in entrants])
    named = dict(zip(names, entrants, strict=True))
    results, scored = score_all(named, episodes, splits.novel, recipe, terminal)
    summary = {
        **training,
        **_description(recipe, splits, episodes, notes),
        "checkpoints": [str(one.path) for one in loaded],
        "seen": may_have_seen,
        "results": results,
        "comparisons": compare(names, {key: one.accuracies for key, one in scored.items()}, recipe),
        "curve": curve(named, results, splits.novel, recipe, terminal),
        "total_seconds": time.perf_counter() - started,
        "run": str(run.path),
    }
    with closing(run):
        on_first(lambda: _write(run, scored, episodes, splits.novel, summary))
    return plain(summary)


def _description(
    recipe: Recipe, splits: FewshotSplits, episodes: Mapping[int, EpisodeBlocks], notes: Sequence[str]
) -> dict[str, Any]:
    """The part of a summary that describes the episodes and the classes that they are drawn from."""
    return {
        "command": "fewshot",
        "dataset": recipe.data.dataset,
        "ways": recipe.fewshot.ways,
        "queries": recipe.fewshot.queries,
        "dirichlet": recipe.fewshot.dirichlet,
        "novel_classes": list(splits.novel.class_names),
        "novel_n": len(splits.novel),
        "test_sha256": splits.novel.identity(),
        "episodes_sha256": {str(shots): drawn.hash() for shots, drawn in episodes.items()},
        "notes": notes,
        "images_left_out": splits.left_out,
    }


def _write(
    run: RunFolder,
    scored: Mapping[Key, Scored],
    episodes: Mapping[int, EpisodeBlocks],
    novel: ImageSet,
    summary: Mapping[str, Any],
) -> None:
    """The tables and summary.json; SchaneError where they cannot be written."""
    with run.writing():
        write_episodes(run.episodes_table, scored, episodes)
        write_classes(run.per_class_table, scored, novel.class_names)
    run.finish(summary)


def check_ways(splits: FewshotSplits, recipe: Recipe) -> None:
    """BadRequest for more ways than there are novel classes; it says how the classes were divided."""
    ways, novel, base = recipe.fewshot.ways, len(splits.novel.class_names), len(splits.base.class_names)
    if ways > novel:
        divided = f"{base} of its {base + novel} classes are for training and {novel} for testing"
        if splits.base.class_names == splits.novel.class_names:
            divided = f"it has {novel} classes"
        raise BadRequest(
            f"{ways} ways asked for, but {recipe.data.dataset} has too few test classes: {divided}. Lower --ways, or "
            "take them all, untrained, by --epochs 0; to name photos by a few of each class: --support DIR"
        )


def draw_all(novel: ImageSet, recipe: Recipe) -> dict[int, EpisodeBlocks]:
    """The episodes for each number of shots."""
    return {shots: draw(novel, recipe, shots) for shots in recipe.fewshot.shots}


@refusing()
def draw(novel: ImageSet, recipe: Recipe, shots: int) -> EpisodeBlocks:
    """The recipe's episodes at a number of shots."""
    settings = recipe.fewshot
    return EpisodeBlocks(
        novel.labels,
        n_way=settings.ways,
        n_shot=shots,
        n_query=settings.queries,
        n_episodes=settings.episodes,
        seed=settings.episode_seed,
        dirichlet=settings.dirichlet,
        class_names=novel.class_names,
    )


def check_classifiers(settings: FewshotRecipe) -> None:
    """Load the classifiers of installed packages; BadRequest for one that does not exist."""
    for name in settings.classifier:
        if name not in CLASSIFIERS:
            CLASSIFIERS[name] = _plugin_classifier(name)


def _plugin_classifier(name: str) -> Method:
    try:
        return as_classifier(plugins.load_plugin(plugins.CLASSIFIERS, name), f"{name}, of an installed package")
    except KeyError:
        known = [*CLASSIFIERS, *plugins.plugin_names(plugins.CLASSIFIERS)]
        raise BadRequest(f"unknown classifier {name!r}{nearest(name, known)}; known: {', '.join(known)}") from None
    except ValueError as error:
        raise BadRequest(f"{name!r}: {error}") from None


def seen_classes(loaded: Loaded, novel: ImageSet, allowed: bool) -> str | None:
    """A note where the checkpoint was trained on novel classes; BadRequest unless that is allowed."""
    seen = [name for name in loaded.class_names if name in novel.class_names]
    if not seen:
        return None
    reason = (
        f"{loaded.path} was trained on {len(seen)} of the {len(novel.class_names)} test classes ({', '.join(seen[:3])})"
    )
    if not allowed:
        raise BadRequest(f"{reason}: that is not a few-shot result; --allow-seen-classes evaluates it anyway, marked")
    return f"SEEN CLASSES: {reason}"


def pretraining_notes(loaded: Sequence[Loaded], recipe: Recipe) -> list[str]:
    """Warnings where a pretrained backbone may have seen the test classes."""
    notes = [
        seen_classes_note(one.recipe.model.backbone, one.recipe.model.weights, recipe.data.dataset) for one in loaded
    ]
    return list(dict.fromkeys(note for note in notes if note))


def base_job(
    recipe: Recipe, splits: FewshotSplits, *, out: Path | None, terminal: Terminal, resume: Path | None = None
) -> Job:
    """Base training by the shared core. Where the dataset has val classes the epoch is chosen by episodes on them."""
    others = {"novel": splits.novel} | ({} if splits.novel_val is None else {"novel_val": splits.novel_val})
    job = prepare(
        recipe, splits.base, splits.base_val, "fewshot", out=out, terminal=terminal, resume=resume, others=others
    )
    if splits.novel_val is not None:
        job.val = splits.novel_val
        job.validate = lambda model: episode_score(model, job, recipe)
    return job


@refusing()
def episode_score(model: SchaneModel, job: Job, recipe: Recipe) -> tuple[float, float]:
    """(mean nearest-centroid accuracy over episodes on the val classes, its complement)."""
    settings = recipe.fewshot
    episodes = draw_episodes(
        job.val.labels,
        n_way=min(settings.ways, len(job.val.class_names)),
        n_shot=max(settings.shots),
        n_query=settings.queries,
        n_episodes=SELECTION_EPISODES,
        seed=settings.episode_seed,
        class_names=job.val.class_names,
    )
    features = extract(model, job.val, job.spec, device=job.device, batch_size=scoring_batch(recipe.train), workers=0)
    scores = evaluate_episodes(features.embedding, episodes, classifier="centroid", normalize="l2", device=job.device)
    accuracy = float(scores.accuracies.mean())
    return accuracy, 1 - accuracy


def distinct(names: Sequence[str]) -> list[str]:
    """The names, numbered where two are alike."""
    return [name if names.count(name) == 1 else f"{name}#{names[:i].count(name) + 1}" for i, name in enumerate(names)]


def entrant(loaded: Loaded, splits: FewshotSplits, recipe: Recipe, terminal: Terminal) -> Entrant:
    """The checkpoint's embeddings, each image (and each random copy) through the backbone once, kept on disk."""
    settings = recipe.fewshot
    views = [RandomView(recipe.augment, settings.episode_seed, number) for number in range(settings.support_copies)]
    copies = [embeddings(loaded, splits.novel, recipe, terminal, view) for view in views]
    wants_base = any(CLASSIFIERS[name].normalize == "cl2n" for name in settings.classifier)
    run = RunFolder.of_checkpoint(loaded.path)
    return Entrant(
        name=run.path.name if run else loaded.path.stem,
        plain=embeddings(loaded, splits.novel, recipe, terminal),
        copies=torch.stack(copies) if copies else None,
        base_mean=embeddings(loaded, splits.base_val, recipe, terminal).mean(0) if wants_base else None,
    )


def embeddings(
    loaded: Loaded, images: ImageSet, recipe: Recipe, terminal: Terminal, view: RandomView | None = None
) -> torch.Tensor:
    """Embeddings (n, d) of the images, or of a random view of each, in full precision; stored ones where they exist."""
    description = f"embedding {images.split}" + (f", copy {view.number + 1}" if view else "")
    device = pick_device(recipe.device)
    store, _ = stored_features(
        loaded, images, recipe, device=device, amp="off", terminal=terminal, description=description, view=view
    )
    return torch.from_numpy(store.rows("embedding", np.arange(len(images))))


@refusing()
def score(
    one: Entrant, blocks: Iterable[Episodes], classifier: str, recipe: Recipe, novel: ImageSet, task: Any = None
) -> Scored:
    """A classifier's accuracy on every episode and on every novel class."""
    accuracies, counts = [], np.zeros((2, len(novel.class_names)), dtype=np.int64)
    for episodes in blocks:
        correct = _correct(one, episodes, classifier, recipe, task)
        accuracies.append(correct.mean(axis=1, dtype=np.float64))
        classes = np.take_along_axis(episodes.classes, episodes.query_labels, axis=1)
        for row, chosen in enumerate((classes.ravel(), classes[correct])):
            counts[row] += np.bincount(chosen, minlength=counts.shape[1])
    return Scored(np.concatenate(accuracies), *counts)


def _correct(one: Entrant, episodes: Episodes, classifier: str, recipe: Recipe, task: Any) -> np.ndarray:
    """Whether each query of each episode is right: bool (E, q)."""
    done = 0

    def advance(finished: int, _: int) -> None:
        nonlocal done
        if task is not None:
            task.advance(finished - done)
        done = finished

    return evaluate_episodes(
        one.plain,
        episodes,
        classifier=classifier,
        normalize=CLASSIFIERS[classifier].normalize or ("l2" if recipe.fewshot.normalize else "none"),
        base_mean=one.base_mean,
        augmented_support=one.copies,
        device=pick_device(recipe.device),
        progress=advance,
    ).correct


def score_all(
    entrants: Mapping[str, Entrant],
    episodes: Mapping[int, EpisodeBlocks],
    novel: ImageSet,
    recipe: Recipe,
    terminal: Terminal,
) -> tuple[list[dict[str, Any]], dict[Key, Scored]]:
    """One result per (checkpoint, shots, classifier), and the accuracies behind it, under the same key."""
    settings = recipe.fewshot
    keys = [(name, shots, method) for name in entrants for shots in settings.shots for method in settings.classifier]
    results, scored = [], {}
    with terminal.task("episodes", len(keys) * settings.episodes, "episode") as task:
        for name, shots, method in keys:
            one = score(entrants[name], episodes[shots], method, recipe, novel, task)
            scored[name, shots, method] = one
            results.append(
                {
                    "checkpoint": name,
                    "shots": shots,
                    "classifier": method,
                    "transductive": CLASSIFIERS[method].transductive,
                    "deviation": CLASSIFIERS[method].deviation,
                    **interval("accuracy", one.accuracies),
                    **disjoint_interval(entrants[name], novel, shots, method, recipe),
                }
            )
    return results, scored


def interval(name: str, accuracies: np.ndarray) -> dict[str, Any]:
    """Mean accuracy, its 95 % t-interval over episodes, and their number."""
    estimate = t_interval(accuracies, METRICS["fewshot_accuracy"].bounds)
    return {name: estimate.value, f"{name}_ci95": estimate.ci95 or [None, None], f"{name}_episodes": len(accuracies)}


@refusing()
def disjoint_interval(one: Entrant, novel: ImageSet, shots: int, classifier: str, recipe: Recipe) -> dict[str, Any]:
    """The same over episodes that share no image, which accounts for the finite test set (arXiv 2409.02850)."""
    settings = recipe.fewshot
    drawn = disjoint_episodes(
        novel.labels, n_way=settings.ways, n_shot=shots, n_query=settings.queries, seed=settings.episode_seed
    )
    return interval("disjoint", score(one, [drawn], classifier, recipe, novel).accuracies)


def compare(names: Sequence[str], accuracies: Mapping[Key, np.ndarray], recipe: Recipe) -> list[dict[str, Any]]:
    """Every further checkpoint against the first, paired on the same episodes, with a sentence for each.

    The p-values are Holm's over all of them; `accuracies` (E,) are those of the episodes.
    """
    settings = recipe.fewshot
    keys = [(other, shots, name) for other in names[1:] for shots in settings.shots for name in settings.classifier]
    pairs = [
        paired_comparison(accuracies[names[0], shots, name], accuracies[other, shots, name])
        for other, shots, name in keys
    ]
    adjusted = holm_where_tested([pair.p_value for pair in pairs])
    return [
        {
            "sentence": f"{shots}-shot, {name}: "
            + sentence(other, names[0], METRICS["fewshot_accuracy"], pair, "episodes", p, len(keys)),
            "first": names[0],
            "other": other,
            "shots": shots,
            "classifier": name,
            "difference": pair.difference,
            "difference_ci95": pair.ci95,
            "p_value": pair.p_value,
            "p_holm": p,
            "episodes": pair.n,
        }
        for (other, shots, name), pair, p in zip(keys, pairs, adjusted, strict=True)
    ]


def curve(
    entrants: Mapping[str, Entrant],
    results: Sequence[Mapping[str, Any]],
    novel: ImageSet,
    recipe: Recipe,
    terminal: Terminal,
) -> list[dict[str, Any]]:
    """Accuracy against shots, for the picture: the results, and nearest centroid at as many shots as there is room for.

    Nearest centroid costs the same at any number of shots; 20 shots of 5 copies each would take the logistic regression
    a second per episode.
    """
    shown = ("checkpoint", "classifier", "shots", "accuracy", "accuracy_ci95", "accuracy_episodes")
    rows = [{key: result[key] for key in shown} for result in results]
    known = {(row["checkpoint"], row["shots"]) for row in rows if row["classifier"] == "centroid"}
    settings = recipe.fewshot
    most_queries = settings.queries * (settings.ways if settings.dirichlet else 1)  # of one class
    room = int(np.bincount(novel.labels).min()) - most_queries
    missing = {n: [name for name in entrants if (name, n) not in known] for n in CURVE_SHOTS if n <= room}
    with terminal.task("accuracy by shots", sum(map(len, missing.values())), "point") as task:
        for shots in (shots for shots, names in missing.items() if names):
            drawn = draw(novel, recipe, shots)
            for name in missing[shots]:
                one = score(entrants[name], drawn, "centroid", recipe, novel)
                key = {"checkpoint": name, "classifier": "centroid", "shots": shots}
                rows.append({**key, **interval("accuracy", one.accuracies)})
                task.advance()
    return sorted(rows, key=lambda row: row["shots"])


def write_episodes(path: Path, scored: Mapping[Key, Scored], episodes: Mapping[int, EpisodeBlocks]) -> None:
    """One row per episode and entrant, a block of episodes at a time."""
    import pyarrow as pa
    from pyarrow import parquet

    writer: parquet.ParquetWriter | None = None
    with ExitStack() as stack:
        for (name, shots, method), one in scored.items():
            start = 0
            for block in episodes[shots]:
                end = start + len(block)
                rows = {
                    "checkpoint": name,
                    "shots": shots,
                    "classifier": method,
                    "episode": np.arange(start, end),
                    "accuracy": one.accuracies[start:end],
                    "classes": list(block.classes),
                    "support": list(block.support.reshape(len(block), -1)),
                    "query": list(block.query),
                }
                table = pa.Table.from_pandas(pd.DataFrame(rows), preserve_index=False)
                if writer is None:
                    writer = stack.enter_context(parquet.ParquetWriter(path, table.schema))
                writer.write_table(table)
                start = end


def write_classes(path: Path, scored: Mapping[Key, Scored], class_names: Sequence[str]) -> None:
    """How hard each novel class is: a row per entrant and class that has been a query."""
    rows = [
        {"checkpoint": name, "shots": shots, "classifier": method, "class": one_class, "n": n, "accuracy": right / n}
        for (name, shots, method), one in scored.items()
        for one_class, n, right in zip(class_names, one.queries, one.right, strict=True)
        if n
    ]
    write_csv(pd.DataFrame(rows), path, index=False)


def checkpoint_recipe(checkpoint: Path, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe of an evaluation: the checkpoint's own, with overrides on top."""
    return load_checkpoint(checkpoint).recipe.with_values(overrides)


def seen_classes_note(backbone: str, weights: str, dataset: str) -> str | None:
    """A warning where pretraining of the backbone has seen the few-shot test classes, or may have; None otherwise.

    `backbone` is a timm name or a short one, `weights` the recipe's model.weights (`random` has seen nothing).
    """
    if weights == "random" or dataset not in {"miniimagenet", "tieredimagenet", "cifarfs", "fc100"}:
        return None
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(backbone)
    known = f"{backbone} {config.tag or ''} {config.hf_hub_id or ''} {config.url or ''}" if config else backbone
    imagenet = bool(re.search(r"in(1|12|21|22)k|imagenet|beit", known)) or (
        config is not None and config.num_classes == 1000
    )
    if weights != "pretrained":
        return f"WARNING: {weights} may have been pretrained on the test classes of {dataset}; nothing here can tell"
    if not imagenet:
        return (
            f"WARNING: what {backbone} was pretrained on is not known here; it may have seen {dataset}'s test classes"
        )
    if dataset in {"miniimagenet", "tieredimagenet"}:
        count = len(class_list(dataset)["test"])
        return (
            f"WARNING: {backbone} was pretrained on ImageNet, which has all {count} test classes of {dataset}: this "
            "measures transfer, not learning of novel classes"
        )
    return f"WARNING: {backbone} was pretrained on ImageNet, which has classes like the test classes of {dataset}"
