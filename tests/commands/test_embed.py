"""`schane embed` below the command line: the store on disk, the tables, names, and what is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from schane_cli.commands import embed as verb
from schane_cli.commands.embed import EmbedOptions, checkpoint_names, embed, sample
from schane_cli.commands.embed_tables import check_vectors, write_npy, write_table
from schane_cli.datasets.load import load_splits
from schane_cli.errors import BadRequest
from schane_cli.features import store as stores
from schane_cli.features.extract import extract
from schane_cli.features.store import FeatureStore, feature_store, fill
from schane_cli.images.imageset import ImageSet
from schane_cli.models.checkpoint import Loaded, load_checkpoint
from schane_cli.terminal import Terminal
from tests.jobs import run_tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embed") / "run"
    run_tiny(out, data__test_fraction=0.2)  # 359 images
    return out


@pytest.fixture
def loaded(run: Path) -> Loaded:
    return load_checkpoint(run)


@pytest.fixture
def images(loaded: Loaded) -> ImageSet:
    return load_splits(loaded.recipe.data).test


@pytest.fixture(autouse=True)
def _small_blocks_in_an_empty_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stores, "BLOCK", 100)


def filled(loaded: Loaded, images: ImageSet) -> FeatureStore:
    store = feature_store(loaded, images, device=CPU, amp="off")
    fill(store, loaded, images, device=CPU, batch_size=64, workers=0, amp="off")
    return store


def test_the_store_holds_what_the_plain_extraction_gives(loaded: Loaded, images: ImageSet) -> None:
    store = filled(loaded, images)
    plain = extract(loaded.model, images, loaded.input, device=CPU, batch_size=64, workers=0)
    rows = np.array([0, 5, 99, 100, 250, 358])
    assert len(list(store.folder.iterdir())) == 4
    for layer in ("embedding", "projection", "logits"):
        np.testing.assert_array_equal(store.rows(layer, rows), getattr(plain, layer)[rows].numpy())
        whole = np.concatenate([vectors for _, vectors, _ in store.blocks(layer)])
        np.testing.assert_array_equal(whole, getattr(plain, layer).numpy())


def test_a_stopped_extraction_goes_on_at_the_first_missing_block(
    loaded: Loaded, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(loaded, images)
    before = store.rows("embedding", np.arange(359))
    store.file(2).unlink()
    store.file(3).write_bytes(store.file(3).read_bytes()[:1000])  # the disk was full
    assert store.missing() == [2, 3]
    seen = []
    forward = loaded.model.forward
    monkeypatch.setattr(loaded.model, "forward", lambda pixels: (seen.append(len(pixels)), forward(pixels))[1])
    again = filled(loaded, images)
    assert again.missing() == []
    assert sum(seen) == 159
    np.testing.assert_allclose(again.rows("embedding", np.arange(359)), before, rtol=1e-5, atol=1e-5)


def test_a_whole_store_runs_no_model(loaded: Loaded, images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(loaded, images)
    monkeypatch.setattr(loaded.model, "forward", lambda pixels: pytest.fail("the model ran"))
    filled(loaded, images)


def test_other_weights_images_or_precision_are_another_store(loaded: Loaded, images: ImageSet, tmp_path: Path) -> None:
    first = feature_store(loaded, images, device=CPU, amp="off").folder
    changed = tmp_path / "changed.pt"
    changed.write_bytes(loaded.path.read_bytes() + b"\0")
    other = Loaded(changed, loaded.model, loaded.recipe, loaded.class_names, loaded.input, loaded.progress)
    fewer = images.subset(np.arange(358), "test")
    assert feature_store(other, images, device=CPU, amp="off").folder != first
    assert feature_store(loaded, fewer, device=CPU, amp="off").folder != first
    assert feature_store(loaded, images, device=CPU, amp="bfloat16").folder != first
    assert feature_store(loaded, images, device=CPU, amp="off").folder == first


def test_the_table_reads_in_one_line_and_says_what_the_model_said(
    loaded: Loaded, images: ImageSet, tmp_path: Path
) -> None:
    store = filled(loaded, images)
    write_table(tmp_path / "e.parquet", images, store, "projection")
    write_npy(tmp_path / "e.npy", store, "projection")
    table = pd.read_parquet(tmp_path / "e.parquet")
    plain = extract(loaded.model, images, loaded.input, device=CPU, batch_size=359, workers=0)
    assert list(table) == ["id", "path", "label", "class_name", "prediction", "confidence", "vector"]
    assert table.id.tolist() == list(images.ids)
    assert table.path.isna().all()
    assert (table.class_name == [images.class_names[label] for label in images.labels]).all()
    assert (table.prediction == [images.class_names[i] for i in plain.logits.argmax(1)]).all()
    np.testing.assert_allclose(np.stack(table.vector), plain.projection.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy"), np.stack(table.vector))


def test_embeddings_that_are_not_finite_or_zero_name_their_images() -> None:
    vectors, ids = np.ones((9, 4), np.float32), [f"img{i}" for i in range(9)]
    vectors[2, 1] = np.nan
    with pytest.raises(BadRequest, match=r"the embedding of 1 image \(img2\) is not finite"):
        check_vectors(vectors, ids, "the embedding")
    vectors[2] = 1
    vectors[1:8] = 0
    with pytest.raises(BadRequest, match=r"of 7 images \(img1, img2, img3, img4, img5, …\) is zero"):
        check_vectors(vectors, ids, "the embedding")


def test_nan_in_the_outputs_leaves_no_run_folder(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(path: Path) -> Loaded:
        one = load_checkpoint(path)
        with torch.no_grad():
            next(one.model.backbone.parameters()).fill_(torch.nan)
        return one

    monkeypatch.setattr(verb, "load_checkpoint", broken)
    with pytest.raises(BadRequest, match=r"the embedding of 100 images \(digits/\d+, .*…\) is not finite"):
        embed([run], overrides={}, options=EmbedOptions(), out=tmp_path / "out", terminal=Terminal(quiet=True))
    assert not (tmp_path / "out").exists()


def test_one_seed_draws_the_points_and_all_are_kept_where_they_are_few() -> None:
    assert sample(5, 10).tolist() == [0, 1, 2, 3, 4]
    drawn = sample(1000, 10)
    assert len(set(drawn.tolist())) == 10
    assert drawn.tolist() == sorted(drawn.tolist()) == sample(1000, 10).tolist()


def test_figures_of_a_sample_say_so_and_the_table_has_everything(run: Path, tmp_path: Path) -> None:
    options = EmbedOptions(points=120, perplexity=10)
    embedded = embed([run], overrides={}, options=options, out=tmp_path / "out", terminal=Terminal(quiet=True))
    assert embedded is not None
    assert embedded.summary["n"] == 120
    assert embedded.summary["n_images"] == len(pd.read_parquet(tmp_path / "out" / "embeddings.parquet")) == 359
    assert "metrics and pictures of 120 of 359 images" in embedded.summary["split_notes"][-1]
    assert embedded.summary["images_left_out"] == 0
    points = pd.read_csv(tmp_path / "out" / "points.csv")
    assert points.id.tolist() == list(embedded.images.ids)


def test_checkpoints_are_named_by_what_sets_them_apart(loaded: Loaded, tmp_path: Path) -> None:
    def like(path: str, **changes: object) -> Loaded:
        recipe = loaded.recipe.model_copy(update=changes)
        return Loaded(Path(path), loaded.model, recipe, loaded.class_names, loaded.input, loaded.progress)

    ce = loaded.recipe.loss.model_copy(update={"name": "ce"})
    assert checkpoint_names([like("a/checkpoints/best.pt")]) == ["a"]
    assert checkpoint_names([like("x.pt", loss=ce), like("y.pt")]) == ["ce", "schane"]
    assert checkpoint_names([like("x.pt", loss=ce), like("y.pt", seed=3)]) == ["ce-s0", "schane-s3"]
    same = [like("a/checkpoints/best.pt"), like("a/checkpoints/last.pt"), like("b/a/checkpoints/best.pt")]
    assert checkpoint_names(same) == ["a", "a-last", "a#2"]
