"""No file runs code, wherever it is put: pickles in every place that loads something, and their kin."""

import io
import json
import os
import pickle  # noqa: TID251 (to build the hostile files)
import sqlite3
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from schane_cli.run import RunFolder
from tests.conftest import run_cli
from tests.jobs import run_tiny
from tests.sources import add, shard

CPU = ("--device", "cpu")


class _Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


PICKLE = pickle.dumps(_Hostile())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder in which the pickle has been seen to act, and must not have acted at the end."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(PICKLE)  # noqa: S301
    Path("owned").rmdir()
    torch.save({"format": "schane-checkpoint-1", "state_dict": _Hostile()}, "zip.pt")
    Path("raw.pt").write_bytes(PICKLE)
    Path("named.safetensors").write_bytes(PICKLE)
    yield tmp_path
    assert not Path("owned").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hostile") / "run"
    run_tiny(out, train__epochs=1)
    return out


@pytest.mark.parametrize("file", ["zip.pt", "raw.pt", "named.safetensors"])
def test_a_pickle_for_a_checkpoint_or_weights(place: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").mkdir()
    Image.new("RGB", (8, 8)).save("photos/a.png")
    run = RunFolder(Path("run"))
    for checkpoint in (run.best, run.last):
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_bytes(Path(file).read_bytes())
    run.recipe_file.write_text("# schane: finetune\ndevice: cpu\n")
    Path("folder").mkdir()
    Path("folder/config.json").write_text('{"architecture": "test_vit"}')
    Path("folder/pytorch_model.bin").write_bytes(Path(file).read_bytes())
    for arguments in (
        ["eval", file, *CPU],
        ["eval", "run", *CPU],
        ["embed", file, *CPU],
        ["export", file],
        ["fewshot", file, *CPU],
        ["predict", file, "photos", *CPU],
        ["review", file, *CPU],
        ["average", file, "run", *CPU],
        ["finetune", "--init", file, *CPU],
        ["finetune", "--backbone", "test_vit", "--init", "local-dir:folder", *CPU],
        ["finetune", "--resume", "run"],
    ):
        assert run_cli(*arguments, *([] if "--resume" in arguments else ["--out", "x"])) in {1, 2}, arguments
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert said.startswith("schane: "), arguments
        assert not Path("x").exists()


def test_a_pickle_in_a_cache_is_made_anew(trained: Path, place: Path) -> None:
    assert run_cli("embed", trained, "--points", 100, *CPU, "--out", "first") == 0
    blocks = list(Path("results/cache").rglob("*.safetensors"))
    assert blocks
    for block in blocks:
        block.write_bytes(PICKLE)
    assert run_cli("embed", trained, "--points", 100, *CPU, "--out", "second") == 0
    figures = [
        json.loads(Path(out, "summary.json").read_text())["checkpoints"][0]["figures"] for out in ("first", "second")
    ]
    assert figures[0] == figures[1]


def _parquet(path: Path) -> None:
    """A table whose column says that its type is a pickle, which pyarrow below 14.0.1 ran (CVE-2023-47248)."""
    marks = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": PICKLE}
    fields = [
        pa.field("id", pa.string(), metadata=marks),
        pa.field("vector", pa.list_(pa.float32())),
        pa.field("label", pa.string()),
    ]
    columns = [[str(i) for i in range(40)], [[float(i % 7), 1.0] for i in range(40)], [str(i % 2) for i in range(40)]]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, fields, strict=True)]
    pq.write_table(pa.table(arrays, schema=pa.schema(fields)), path)


@pytest.mark.filterwarnings("ignore:.*pickle")
def test_a_parquet_whose_types_are_pickles(trained: Path, place: Path) -> None:
    _parquet(Path("table.parquet"))
    Path("raw.parquet").write_bytes(PICKLE)
    run_cli("embed", "table.parquet", "--perplexity", 5, "--out", "x")
    assert run_cli("embed", "raw.parquet", "--out", "y") == 2
    run_cli("eval", trained, *CPU, "--out", "scored")
    for file in ("table.parquet", "raw.parquet"):
        RunFolder(Path("scored")).mistakes_table.write_bytes(Path(file).read_bytes())
        assert run_cli("report", "scored") == 2


def test_members_of_shards_that_are_pickles(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("shards").mkdir()
    with tarfile.open("shards/train-0.tar", "w") as tar:
        for key in range(4):
            for suffix in ("pyd", "pkl", "pickle", "pth", "npy"):
                add(tar, f"{key}.{suffix}", PICKLE)
    assert run_cli("finetune", "--dataset", "wds:shards", *CPU, "--out", "x") == 2
    with tarfile.open("shards/train-0.tar", "w") as tar:
        for key in range(4):
            add(tar, f"{key}.png", PICKLE)
            add(tar, f"{key}.cls", PICKLE)
    assert run_cli("finetune", "--dataset", "wds:shards", *CPU, "--out", "x") == 2
    shard(Path("shards/train-0.tar"), {f"../../{key}": key % 2 for key in range(40)})
    run_cli("data", "check", "wds:shards")
    assert "Traceback" not in capsys.readouterr().err
    assert sorted(path.name for path in place.iterdir()) == ["named.safetensors", "raw.pt", "shards", "zip.pt"]


def test_pictures_that_start_programs_or_hold_pickles(trained: Path, place: Path) -> None:
    Path("photos").mkdir()
    Image.new("RGB", (8, 8)).save("photos/good.png")
    eps = io.BytesIO()
    Image.new("RGB", (8, 8)).save(eps, "EPS")
    for name in ("a.eps", "b.png", "c.jpg"):
        Path("photos", name).write_bytes(eps.getvalue())
    Path("photos/d.png").write_bytes(PICKLE)
    assert run_cli("predict", trained, "photos", *CPU, "--out", "x") == 0
    assert len(Path("x/unreadable.csv").read_text().splitlines()) == 4  # the header, b, c and d; a is no picture


def test_numbers_of_equal_images_that_are_pickles(place: Path) -> None:
    np.savez("objects.npz", all=np.array([_Hostile()], dtype=object))
    with np.load("objects.npz", allow_pickle=False) as known, pytest.raises(ValueError, match="allow_pickle"):
        known["all"]


TAG = "!!python/object/apply:os.mkdir [owned]"


def test_yaml_that_calls_python(place: Path) -> None:
    for text in (TAG, f"seed: {TAG}", f"model: {{args: {{x: {TAG}}}}}", f"recipe: {TAG}"):
        Path("bad.yaml").write_text(text)
        assert run_cli("finetune", "--recipe", "bad.yaml", "--out", "x") == 2
        assert run_cli("study", "bad.yaml", "--out", "x") == 2
        assert run_cli("recipes", "check", "./bad.yaml") == 2
        Path("run").mkdir(exist_ok=True)
        Path("run/recipe.yaml").write_text(text)
        assert run_cli("finetune", "--resume", "run") == 2
    assert run_cli("finetune", "--set", f"seed={TAG}", "--out", "x") == 2


def test_storages_of_studies_that_are_something_else(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    Path("study.yaml").write_text("{recipe: digits, set: {device: cpu}}")
    Path("garbage.db").write_bytes(PICKLE * 100)
    with sqlite3.connect("other.db") as other:
        other.execute("create table studies (study_id blob)")
        other.execute("insert into studies values (?)", (PICKLE,))
    other.close()
    urls = ("garbage.db", "other.db", "nowhere/x.db", "//dev/null")
    others = ("pickle:///raw.pt", "file:raw.pt", "://", "mysql+os://x", "journal:///raw.pt")
    for url in (*(f"sqlite:///{name}" for name in urls), *others):
        assert run_cli("study", "study.yaml", "--storage", url, "--out", "x") == 2, url
        said = capsys.readouterr().err
        assert said.startswith("schane: "), url
        assert "Traceback" not in said
        assert not Path("x").exists()
