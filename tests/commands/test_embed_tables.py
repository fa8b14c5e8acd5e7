"""A table of embeddings in place of a checkpoint."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from schane_cli.commands.embed_tables import read_embeddings
from tests.cli.test_finetune import QUICK, run_cli
from tests.jobs import blank_pictures


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("table")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        with blank_pictures():
            assert run_cli("finetune", *QUICK, "--out", "run") == 0
        assert run_cli("embed", "run", "--out", "embed") == 0
    return place / "embed"


def test_its_own_table_gives_the_figures_of_the_checkpoint(embedded: Path, tmp_path: Path) -> None:
    assert run_cli("embed", embedded / "embeddings.parquet", "--out", tmp_path / "e") == 0
    before, after = (json.loads((folder / "summary.json").read_text()) for folder in (embedded, tmp_path / "e"))
    first, second = (read_back["checkpoints"][0]["figures"] for read_back in (before, after))
    assert first.keys() == second.keys()
    for name, figure in first.items():
        assert second[name]["value"] == pytest.approx(figure["value"], rel=1e-5, abs=1e-6), name
    assert (tmp_path / "e" / "report.html").is_file()


def test_tables_go_side_by_side(embedded: Path, tmp_path: Path) -> None:
    table = pd.read_parquet(embedded / "embeddings.parquet")
    table["vector"] = list(
        np.stack(table["vector"]) @ np.random.default_rng(0).normal(size=(len(table["vector"][0]), 4))
    )
    table.to_parquet(tmp_path / "other.parquet")
    paths = (embedded / "embeddings.parquet", tmp_path / "other.parquet")
    assert run_cli("embed", *paths, "--out", tmp_path / "e") == 0
    assert "differences" in json.loads((tmp_path / "e" / "summary.json").read_text())


def small(n: int = 12) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    names = ["cat", "dog", "owl"] * (n // 3)
    return pd.DataFrame(
        {"id": [f"i{i}" for i in range(n)], "class_name": names, "vector": list(rng.normal(size=(n, 5)))}
    )


def test_any_table_of_that_form_is_read(tmp_path: Path) -> None:
    small().to_parquet(tmp_path / "t.parquet")
    read_back = read_embeddings(tmp_path / "t.parquet")
    assert read_back.vectors.shape == (12, 5)
    assert read_back.images.class_names == ("cat", "dog", "owl")
    assert read_back.images.read(0).shape[0] == 3
    assert np.array_equal(read_back.prediction, read_back.images.labels)


def _with(column: str, row: int, value: object) -> pd.DataFrame:
    table = small().astype({column: object})
    table.at[row, column] = value
    return table


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (small().drop(columns="class_name"), "has no column 'label'"),
        (small().rename(columns={"vector": "vectors"}), "has no column 'vector'; did you mean 'vectors'?"),
        (_with("class_name", 2, None), "1 images have no class_name (i2)"),
        (_with("vector", 3, [1.0, 2.0]), "the vectors are not of one length, they have 2, 5 numbers"),
        (_with("vector", 4, [1.0, float("nan"), 0.0, 0.0, 0.0]), "of 1 image (i4) is not finite"),
        (_with("vector", 5, [0.0] * 5), "of 1 image (i5) is zero"),
        (small().assign(class_name="cat"), "images of one class"),
        (small().assign(vector="text"), "the vectors are not of one length"),
        (small(3).assign(class_name=["cat", "cat", "dog"]), "t-SNE with perplexity 1 needs more than 3 images"),
    ],
)
def test_a_table_of_another_shape_is_one_sentence(tmp_path: Path, table: pd.DataFrame, said: str, capsys) -> None:
    table.to_parquet(tmp_path / "t.parquet")
    assert run_cli("embed", tmp_path / "t.parquet", "--out", tmp_path / "e") == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "e").exists()


def test_few_images_lower_the_default_perplexity_and_a_note_says_so(tmp_path: Path, capsys) -> None:
    small().to_parquet(tmp_path / "t.parquet")
    assert run_cli("embed", tmp_path / "t.parquet", "--out", tmp_path / "e") == 0
    assert "note       t-SNE with perplexity 3, the largest that 12 images allow" in capsys.readouterr().out
    assert json.loads((tmp_path / "e" / "summary.json").read_text())["tsne_perplexity"] == 3


def test_what_does_not_go_with_a_table_is_refused(embedded: Path, tmp_path: Path, capsys) -> None:
    table = embedded / "embeddings.parquet"
    small(120).to_parquet(tmp_path / "small.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    for arguments, said in (
        ((table, embedded.parent / "run"), "cannot be compared"),
        ((table, tmp_path / "small.parquet"), "do not hold the same images"),
        ((table, "--layer", "logits"), "do not act on a table"),
        ((tmp_path / "text.parquet",), "cannot be read as parquet"),
        ((tmp_path / "none.parquet",), "no checkpoint or run folder at"),
    ):
        assert run_cli("embed", *arguments, "--out", tmp_path / "e") == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "e").exists()
