"""`schane fewshot` below the command line: selection on val classes, cached features, comparisons."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from schane_cli.commands.fewshot import (
    base_job,
    compare,
    distinct,
    draw_all,
    embeddings,
    entrant,
    fewshot,
    seen_classes,
)
from schane_cli.datasets.load import load_fewshot_splits
from schane_cli.errors import BadRequest
from schane_cli.features import store as stores
from schane_cli.fewshot.episodes import EpisodeBlocks
from schane_cli.models.checkpoint import load_checkpoint
from schane_cli.models.model import SchaneModel, build_model
from schane_cli.recipe import build_recipe
from schane_cli.run import seed_everything
from schane_cli.terminal import Terminal
from tests.jobs import tiny_recipe

QUIET = Terminal(quiet=True)
FEW = {"fewshot__episodes": 30, "fewshot__queries": 5, "data__train_per_class": None, "train__epochs": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fewshot") / "base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores, "RESULTS", out.parent)
        fewshot([], tiny_recipe(**FEW), allow_seen_classes=False, out=out, terminal=QUIET)
    return out


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "RESULTS", tmp_path / "results")


def test_base_and_novel_classes_share_nothing(base: Path) -> None:
    splits = load_fewshot_splits(tiny_recipe(**FEW).data)
    assert not set(splits.base.class_names) & set(splits.novel.class_names)
    assert not (set(splits.base.ids) | set(splits.base_val.ids)) & set(splits.novel.ids)
    assert load_checkpoint(base).class_names == splits.base.class_names


def test_features_are_extracted_once_and_never_served_stale(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(**FEW)
    novel = load_fewshot_splits(recipe.data).novel
    loaded = load_checkpoint(base)
    seen: list[int] = []
    forward = SchaneModel.forward
    monkeypatch.setattr(SchaneModel, "forward", lambda self, x: seen.append(len(x)) or forward(self, x))
    first = embeddings(loaded, novel, recipe, QUIET)
    assert torch.equal(embeddings(loaded, novel, recipe, QUIET), first)
    assert sum(seen) == len(novel)
    fewer = novel.only_classes([0, 1], "novel")
    assert len(embeddings(loaded, fewer, recipe, QUIET)) == len(fewer)
    assert sum(seen) == len(novel) + len(fewer)
    other = base.parent / "other.pt"
    content = torch.load(loaded.path, weights_only=True)
    content["state_dict"]["conv1.0.weight"] += 1
    torch.save(content, other)
    changed = embeddings(load_checkpoint(other), novel, recipe, QUIET)
    assert sum(seen) == 2 * len(novel) + len(fewer)
    assert not torch.equal(changed, first)


def test_random_copies_differ_from_each_other_and_repeat_by_their_seed(base: Path) -> None:
    recipe = tiny_recipe(**FEW, fewshot__support_copies=3)
    splits = load_fewshot_splits(recipe.data)
    splits = replace(splits, novel=splits.novel.only_classes([0], "novel"))
    loaded = load_checkpoint(base)
    copies = entrant(loaded, splits, recipe, QUIET).copies
    assert copies is not None
    assert copies.shape == (3, len(splits.novel), loaded.model.embedding_dim)
    assert not torch.allclose(copies[0], copies[1])
    shutil.rmtree(stores.RESULTS / "cache")
    again = entrant(loaded, splits, recipe, QUIET).copies
    assert again is not None
    assert torch.equal(again, copies)


def test_the_mean_of_the_base_classes_is_there_for_the_classifier_that_wants_it(base: Path) -> None:
    loaded, splits = load_checkpoint(base), load_fewshot_splits(tiny_recipe(**FEW).data)
    assert entrant(loaded, splits, tiny_recipe(**FEW, fewshot__classifier=["centroid"]), QUIET).base_mean is None
    computed = entrant(loaded, splits, tiny_recipe(**FEW, fewshot__classifier=["simpleshot"]), QUIET).base_mean
    assert computed is not None
    assert torch.equal(computed, embeddings(loaded, splits.base_val, tiny_recipe(**FEW), QUIET).mean(0))


def test_no_epochs_leave_the_weights_as_they_are(tmp_path: Path) -> None:
    recipe = tiny_recipe(**{**FEW, "train__epochs": 0})
    summary = fewshot([], recipe, allow_seen_classes=False, out=tmp_path / "before", terminal=QUIET)
    assert (summary["best_epoch"], summary["views_forwarded"]) == (0, 0)
    seed_everything(recipe.seed)
    untouched = build_model(recipe.model, 10, recipe.data.image_size).state_dict()  # without training: every class
    computed = load_checkpoint(tmp_path / "before").model.state_dict()
    assert all(torch.equal(computed[name], untouched[name]) for name in untouched)


def test_a_checkpoint_that_has_seen_the_test_classes_is_refused_or_marked(base: Path) -> None:
    novel = load_fewshot_splits(tiny_recipe(**FEW).data).novel
    loaded = load_checkpoint(base)
    assert seen_classes(loaded, novel, allowed=False) is None
    loaded.class_names = ("7", "8", "1", "2", "3")
    with pytest.raises(BadRequest, match=r"was trained on 2 of the 5 test classes \(7, 8\).*--allow-seen-classes"):
        seen_classes(loaded, novel, allowed=False)
    assert "SEEN CLASSES" in (seen_classes(loaded, novel, allowed=True) or "")


def test_a_checkpoint_against_itself_is_not_told_apart(base: Path, tmp_path: Path) -> None:
    recipe = build_recipe(load_checkpoint(base).recipe.model_dump(mode="json"))
    summary = fewshot([base, base], recipe, allow_seen_classes=False, out=tmp_path / "two", terminal=QUIET)
    assert len(summary["comparisons"]) == len(recipe.fewshot.shots) * len(recipe.fewshot.classifier)
    for pair in summary["comparisons"]:
        assert pair["difference"] == 0
        assert "base#2 and base#1 cannot be distinguished: +0.00 points" in pair["sentence"]


def test_a_better_checkpoint_is_called_better_with_its_interval() -> None:
    recipe = tiny_recipe(fewshot__shots=[1], fewshot__classifier=["centroid"])
    generator = np.random.default_rng(0)
    worse = generator.random((200, 75)) < 0.6
    better = worse | (generator.random((200, 75)) < 0.3)
    accuracies = {("a", 1, "centroid"): worse.mean(1), ("b", 1, "centroid"): better.mean(1)}
    (pair,) = compare(["a", "b"], accuracies, recipe)
    assert pair["sentence"].startswith("1-shot, centroid: b is better than a: +")
    assert pair["difference_ci95"][0] > 0.1


def test_episodes_are_the_same_for_every_checkpoint_and_named_by_hash() -> None:
    recipe = tiny_recipe(**FEW)
    novel = load_fewshot_splits(recipe.data).novel
    again = load_fewshot_splits(recipe.data).novel
    assert {k: e.hash() for k, e in draw_all(novel, recipe).items()} == {
        k: e.hash() for k, e in draw_all(again, recipe).items()
    }


def test_results_and_tables_do_not_depend_on_how_many_episodes_are_drawn_at_once(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = build_recipe(load_checkpoint(base).recipe.model_dump(mode="json"))
    left: list[tuple[Any, str, pd.DataFrame]] = []
    for block in (10_000, 7):
        monkeypatch.setattr(EpisodeBlocks, "BLOCK", block)
        out = tmp_path / str(block)
        summary = fewshot([base], recipe, allow_seen_classes=False, out=out, terminal=QUIET)
        files = (out / "per_class.csv").read_text(), pd.read_parquet(out / "episodes.parquet")
        left.append((summary["results"], *files))
    assert left[0][0] == left[1][0]
    assert left[0][1] == left[1][1]
    pd.testing.assert_frame_equal(left[0][2], left[1][2])


def test_base_training_selects_on_the_val_classes_where_there_are_any(tmp_path: Path) -> None:
    recipe = tiny_recipe(**FEW, fewshot__ways=2)
    splits = load_fewshot_splits(recipe.data)
    with_val = replace(
        splits, novel=splits.novel.only_classes([0, 1, 2], "test"), novel_val=splits.novel.only_classes([3, 4], "val")
    )
    job = base_job(recipe, with_val, out=tmp_path / "run", terminal=QUIET)
    assert job.val is with_val.novel_val
    assert job.validate is not None
    accuracy, rest = job.validate(job.model.eval())
    assert 0.4 < accuracy <= 1
    assert rest == pytest.approx(1 - accuracy)


def test_equal_names_are_numbered() -> None:
    assert distinct(["a", "b", "a"]) == ["a#1", "b", "a#2"]
