"""`schane embed` as its users run it: one checkpoint, two side by side, and one sentence for a bad request."""

import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from schane_cli.metrics.registry import metric
from tests.cli.test_finetune import QUICK, run_cli
from tests.jobs import blank_pictures

DIGITS = [*QUICK, "--set", "data.test_fraction=0.2"]  # 359 images: the accuracy of 200 neighbours is for more than 200


@pytest.fixture(scope="module")
def schane(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embed") / "schane"
    with blank_pictures():
        assert run_cli("finetune", *DIGITS, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def cross_entropy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embed") / "ce"
    with blank_pictures():
        assert run_cli("finetune", *DIGITS, "--loss", "ce", "--out", out) == 0
    return out


@dataclass(frozen=True)
class Done:
    """A finished `schane embed`: its folder, the working directory it ran in, and what it printed on stdout."""

    folder: Path
    place: Path
    said: str

    def summary(self) -> dict:
        return json.loads((self.folder / "summary.json").read_text())


def embed_in(place: Path, *arguments: object) -> Done:
    """Run `schane embed` in `place`, where the cache of features then is."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.chdir(place)
        assert run_cli("embed", *arguments, "--out", place / "out") == 0
    return Done(place / "out", place, said.getvalue())


@pytest.fixture(scope="module")
def one(schane: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    return embed_in(tmp_path_factory.mktemp("one"), schane, "--npy", "--figures", "svg")


@pytest.fixture(scope="module")
def pair(schane: Path, cross_entropy: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    return embed_in(tmp_path_factory.mktemp("pair"), cross_entropy, schane)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_one_checkpoint_leaves_table_figures_pictures_and_page(one: Done) -> None:
    pictures = ("cosines", "pca", "similarity", "spectrum", "tsne")
    assert files_in(one.folder) == sorted(
        [
            "embeddings.npy",
            "embeddings.parquet",
            "environment.json",
            *(f"figures/{name}.{kind}" for name in pictures for kind in ("png", "svg")),
            "points.csv",
            "recipe.yaml",
            "report.html",
            "summary.json",
            "thumbnails.webp",
        ]
    )
    figures = one.summary()["checkpoints"][0]["figures"]
    assert len(figures) == 28
    for name, figure in figures.items():
        assert (figure["ci95"] is not None) == bool(metric(name).interval), name
        assert figure["ci95"] is None or figure["ci95"][0] <= figure["value"] <= figure["ci95"][1]
        assert figure["n"] == 359
        assert figure["direction"] in {"higher", "lower", "none"}
    assert figures["isotropy"]["direction"] == "none"


def test_the_terminal_tables_keep_to_eighty_columns(one: Done, pair: Done) -> None:
    for done in (one, pair):
        lines = [line for line in done.said.splitlines() if line[:1] in "│┃"]
        assert len(lines) > 15
        assert max(map(len, lines)) <= 80


def test_the_second_time_the_features_come_from_the_cache_and_nothing_changes(
    one: Done, schane: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(one.place)
    assert run_cli("embed", schane, "--out", "again", "--json") == 0
    said = capsys.readouterr().out
    summary = json.loads(said)
    assert said.count("\n") == 1
    assert summary == json.loads((one.place / "again" / "summary.json").read_text())
    assert one.summary()["checkpoints"][0]["extracted_images"] == 359
    assert summary["checkpoints"][0]["extracted_images"] == 0
    assert summary["checkpoints"][0]["figures"] == one.summary()["checkpoints"][0]["figures"]
    for name in ("points.csv", "embeddings.parquet"):
        assert (one.place / "again" / name).read_bytes() == (one.folder / name).read_bytes()


@pytest.mark.parametrize(("layer", "width"), [("projection", 128), ("logits", 10)])
def test_every_layer_and_split_can_be_looked_at(schane: Path, tmp_path: Path, layer: str, width: int) -> None:
    done = embed_in(tmp_path, schane, "--layer", layer, "--split", "val")
    table = pd.read_parquet(done.folder / "embeddings.parquet")
    assert len(table.vector[0]) == width
    assert len(table) == 70


def test_two_checkpoints_share_one_page_with_paired_differences(pair: Done) -> None:
    assert {"embeddings-ce.parquet", "embeddings-schane.parquet"} <= set(files_in(pair.folder))
    summary = pair.summary()
    differences = summary["differences"]["schane minus ce"]
    before, after = (one["figures"] for one in summary["checkpoints"])
    assert differences.keys() == before.keys()
    for key, difference in differences.items():
        assert difference["difference"] == pytest.approx(after[key]["value"] - before[key]["value"])
        interval = difference["ci95"]
        assert (interval is not None) == bool(metric(key).interval), key
        assert interval is None or interval[0] <= difference["difference"] <= interval[1]
    assert differences["isotropy"]["better"] is None
    page = (pair.folder / "report.html").read_text()
    assert "From ce to schane" in page
    assert "no direction of this metric is better" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layer", "embeding"], "unknown layer 'embeding'; allowed: embedding, projection, logits; did you mean"),
        (["--split", "dev"], "unknown split 'dev'"),
        (["--dataset", "nothing"], "unknown dataset 'nothing'"),
        (["--perplexity", "200"], "choose --perplexity 119 or less"),
        (["--perplexity", "0.5"], "must be at least 1"),
        (
            ["--points", "60", "--perplexity", "30"],
            "more than 90 images and --points has 60; choose --perplexity 19",
        ),
        (["--figures", "tiff"], "unknown figure format 'tiff'; allowed: pdf, svg"),
    ],
)
def test_a_bad_request_gets_one_sentence_and_writes_nothing(
    schane: Path, tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("embed", schane, *arguments, "--out", tmp_path / "e") == 2
    sentence = capsys.readouterr().err
    assert said in sentence
    assert sentence.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("embed", tmp_path / "nowhere", "--out", tmp_path / "e") == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.usefixtures("blank_pictures")
def test_checkpoints_of_different_data_are_refused(
    schane: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path_factory.mktemp("embed") / "other"
    assert run_cli("finetune", *QUICK, "--set", "data.split_seed=1", "--out", other) == 0
    capsys.readouterr()
    assert run_cli("embed", schane, other, "--out", tmp_path / "e") == 2
    assert "(digits, split seed 1) are not those of" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def folder_of_images(path: Path, names: str, n: int) -> Path:
    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        (path / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 100 + 50 * number, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path / name / f"{i}.png")
    return path


@pytest.mark.usefixtures("blank_pictures")
def test_checkpoints_of_different_classes_are_refused(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, runs = tmp_path_factory.mktemp("folders"), []
    for names in ("ab", "abc"):
        folder = folder_of_images(place / names, names, 20)
        arguments = [
            *QUICK,
            "--dataset",
            f"folder:{folder}",
            "--set",
            "train.batch_size=8",
            "--out",
            place / f"run{names}",
        ]
        assert run_cli("finetune", "--recipe", "digits", *arguments) == 0
        runs.append(place / f"run{names}")
    capsys.readouterr()
    assert run_cli("embed", *runs, "--out", tmp_path / "e") == 2
    assert "knows 2 classes and runabc 3" in capsys.readouterr().err


def test_image_files_keep_their_paths_and_a_hostile_class_name_stays_text(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    place = tmp_path_factory.mktemp("folders")
    folder = folder_of_images(place / "data", "ab", 60)
    (folder / "b").rename(folder / "<script>alert(1)<")
    arguments = [*DIGITS, "--dataset", f"folder:{folder}", "--set", "train.batch_size=8", "--out", place / "run"]
    assert run_cli("finetune", "--recipe", "digits", *arguments) == 0
    done = embed_in(tmp_path, place / "run", "--perplexity", "5")
    table = pd.read_parquet(done.folder / "embeddings.parquet")
    assert table.class_name.nunique() == 2
    assert all(Path(path).is_file() for path in table.path)
    assert "<script>alert(1)" not in (done.folder / "report.html").read_text()
