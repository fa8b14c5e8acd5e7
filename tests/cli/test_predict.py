"""`schane predict` as users call it: folders, one file, several runs, copies, what cannot be read, what is refused."""

import io
import json
import shutil
import tarfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from schane_cli.commands import predict as module
from schane_cli.commands.predict import predict, read_request
from schane_cli.commands.predict_tables import whole_parts, write_part
from schane_cli.features.stream import without_projection
from schane_cli.models.checkpoint import load_checkpoint
from schane_cli.preflight import PredictOptions
from schane_cli.run import RunFolder
from schane_cli.terminal import Terminal
from schane_cli.training.interruption import Interrupted, StopSignal
from tests.cli.test_finetune import QUICK, run_cli
from tests.jobs import blank_pictures
from tests.sources import digit_photos

CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predict") / "run"
    with blank_pictures():
        assert run_cli("finetune", *QUICK, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty digits in two folders with the same file names, two files that cannot be read, and a note."""
    folder = tmp_path_factory.mktemp("new") / "photos"
    digit_photos(folder / "first", range(1, 30, 2))
    digit_photos(folder / "second", range(0, 30, 2))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("a note")
    return folder


def test_a_folder_gets_tables_a_page_and_a_list_of_what_cannot_be_read(
    trained: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run_cli("predict", trained, photos, "--top-k", 3, "--embedding", *CPU, "--out", out) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "environment.json",
        "figures",
        "predictions.csv",
        "predictions.parquet",
        "recipe.yaml",
        "report.html",
        "request.json",
        "shown.parquet",
        "summary.json",
        "unreadable.csv",
    ]
    table, full = pd.read_csv(out / "predictions.csv"), pd.read_parquet(out / "predictions.parquet")
    summary = json.loads((out / "summary.json").read_text())
    assert (
        len(table) == len(full) == 30 == summary["images"] - summary["unreadable"] == sum(summary["classes"].values())
    )
    assert Path(table.path[0]).is_file()
    assert (full.confidence >= full.confidence_2).all()
    assert full.embedding.map(len).nunique() == 1
    assert summary["calibrated"]
    assert summary["temperature_val_n"] == 83
    unreadable = pd.read_csv(out / "unreadable.csv")
    assert sorted(Path(path).name for path in unreadable.path) == ["broken.jpg", "empty.png"]
    assert unreadable.error.str.contains("cannot be read").all()
    page = (out / "report.html").read_text()
    assert page.count("<figure data-text") == 30
    assert "<h1>30 images classified</h1>" in page  # those that could be read
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_predictions_are_those_of_eval_on_the_same_images(trained: Path, tmp_path: Path) -> None:
    """The digits' own test images as files: prediction and temperature as `schane eval` has them."""
    from schane_cli.datasets.load import load_splits

    test = load_splits(load_checkpoint(trained).recipe.data).test
    for index in range(40):
        Image.fromarray(test.read(index).permute(1, 2, 0).numpy()).save(tmp_path / f"{index:02d}.png")
    assert run_cli("predict", trained, tmp_path / "*.png", *CPU, "--out", tmp_path / "out") == 0
    assert run_cli("eval", trained, *CPU, "--out", tmp_path / "eval") == 0
    ours = pd.read_csv(tmp_path / "out" / "predictions.csv", dtype={"prediction": str})
    theirs = pd.read_csv(tmp_path / "eval" / "predictions.csv", dtype={"prediction": str})
    assert ours.prediction.tolist() == theirs.prediction[:40].tolist()
    fitted = json.loads((tmp_path / "eval" / "summary.json").read_text())["temperature"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["temperature"] == pytest.approx(fitted)


def test_one_file_as_json_is_answered_without_a_run_folder(trained: Path, photos: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(photos.parent)
    assert run_cli("predict", trained, photos / "first" / "00.png", "--json", *CPU) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["prediction"] in answer["probabilities"]
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert answer["confidence"] == max(answer["probabilities"].values())
    assert not (photos.parent / "results").exists()


def test_a_few_images_have_a_line_each_with_their_own_confidence(
    trained: Path, photos: Path, tmp_path: Path, capsys
) -> None:
    arguments = (photos / "first" / "01.png", photos / "first" / "03.png", "--copy-to", tmp_path / "sorted", *CPU)
    assert run_cli("predict", trained, *arguments, "--out", tmp_path / "o") == 0
    said, page = capsys.readouterr().out, (tmp_path / "o" / "report.html").read_text()
    table = pd.read_csv(tmp_path / "o" / "predictions.csv")
    for path, confidence in zip(table.path, table.confidence, strict=True):
        (line,) = [line for line in said.splitlines() if line.startswith("│") and Path(path).name in line]
        assert f"{100 * confidence:.2f} %" in line
        assert f"{100 * confidence:.2f}\u00a0%<br>" in page
    assert f"copies of 2 images in {tmp_path}/sorted" in said.replace("\n", " ")
    assert "--copy-to sorted/" not in page  # it was just used
    assert "--min-confidence 0.9" in page
    assert "schane embed" not in page  # needs four images


def test_images_below_the_confidence_are_unsure_and_the_share_of_val_is_said(
    trained: Path, photos: Path, tmp_path: Path, capsys
) -> None:
    out, copies = tmp_path / "out", tmp_path / "sorted"
    arguments = ("--min-confidence", 0.12, "--copy-to", copies, "--out", out, *CPU)
    assert run_cli("predict", trained, photos, *arguments) == 0
    table = pd.read_csv(out / "predictions.csv", dtype={"prediction": str, "most_likely": str})
    assert ((table.confidence < 0.12) == (table.prediction == "unsure")).all()
    assert (table.most_likely != "unsure").all()
    said = capsys.readouterr().out.replace("\n", " ")
    assert "would be classified" in said
    assert "of n =" in said
    copied = [path for path in copies.rglob("*") if path.is_file()]
    assert len(copied) == 30  # both folders' 00.png are there, named by their folders
    assert {path.parent.name for path in copied} == set(table.prediction)
    assert len(list(photos.rglob("*.png"))) == 31  # nothing was moved


def test_the_projection_that_nobody_asks_for_is_not_computed_and_the_model_keeps_its_own(trained: Path) -> None:
    loaded = load_checkpoint(trained)
    slim = without_projection(loaded.model)
    pixels = torch.rand(2, 3, loaded.input.size, loaded.input.size)
    with torch.no_grad():
        ours, theirs = slim(pixels), loaded.model.eval()(pixels)
    assert ours.projection is ours.embedding
    assert torch.equal(ours.logits, theirs.logits)
    assert ours.projection.shape != theirs.projection.shape


def test_loader_processes_change_nothing(trained: Path, photos: Path, tmp_path: Path) -> None:
    for workers in (0, 1):
        arguments = ("--set", f"data.workers={workers}", "--out", tmp_path / str(workers), *CPU)
        assert run_cli("predict", trained, photos, *arguments) == 0
    for name in ("predictions.csv", "unreadable.csv"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_the_mean_of_two_equal_runs_names_as_one_does(trained: Path, photos: Path, tmp_path: Path) -> None:
    assert run_cli("predict", trained, photos, *CPU, "--out", tmp_path / "one") == 0
    assert run_cli("predict", trained, trained, photos, "--top-k", 0, *CPU, "--out", tmp_path / "two") == 0
    one, two = (pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("one", "two"))
    assert one.prediction.tolist() == two.prediction.tolist()
    np.testing.assert_allclose(one.confidence, two.confidence, atol=2e-3)
    probabilities = two[[name for name in two if name.startswith("probability ")]]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_a_stopped_run_goes_on_to_the_same_table(trained: Path, photos: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 8)
    options, terminal = PredictOptions(top_k=2), Terminal(quiet=True)
    values = {"device": "cpu", "train.chunk_size": 4}
    whole = predict([trained], [str(photos)], options=options, overrides=values, out=tmp_path / "a", terminal=terminal)
    batches = []
    original = StopSignal.caught

    def named(*arguments):
        batches.append(1)
        return made(*arguments)

    made = module.named
    monkeypatch.setattr(module, "named", named)
    monkeypatch.setattr(
        StopSignal, "number", property(lambda self: 2 * (len(batches) == 5), lambda self, value: None), raising=False
    )
    with pytest.raises(Interrupted, match="predict --resume"):
        predict([trained], [str(photos)], options=options, overrides=values, out=tmp_path / "b", terminal=terminal)
    assert original is StopSignal.caught
    monkeypatch.undo()
    monkeypatch.setattr(module, "BLOCK", 8)
    assert 0 < len(list((tmp_path / "b" / "parts").iterdir())) < 4
    assert read_request(tmp_path / "b")["options"]["top_k"] == 2
    part = sorted((tmp_path / "b" / "parts").iterdir())[0]
    damaged = bytearray(part.read_bytes())
    damaged[len(damaged) // 4] ^= 8
    part.write_bytes(damaged)  # made again
    assert run_cli("predict", "--resume", tmp_path / "b") == 0
    for name in ("predictions.csv", "unreadable.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert whole["images"] == 32
    assert run_cli("predict", "--resume", tmp_path / "b") == 2  # it is complete


def test_a_flipped_byte_of_a_part_is_noticed_and_the_part_removed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.parts.mkdir()
    for start in (0, 40):
        write_part(run, start, pd.DataFrame({"index": range(start, start + 40), "path": "a.png"}))
    assert whole_parts(run) == {0, 40}
    first, second = sorted(run.parts.iterdir())
    whole = first.read_bytes()
    for place in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        first.write_bytes(damaged)
        assert whole_parts(run) == {40}, place
    assert list(run.parts.iterdir()) == [second]


def test_shards_tables_and_hugging_face_sets_need_no_labels(trained: Path, photos: Path, tmp_path: Path) -> None:
    """One set of ten pictures in four dresses: predictions are the same."""
    files = sorted((photos / "first").glob("*.png"))[:10]
    (tmp_path / "shards").mkdir()
    for number in range(2):  # a split's name, and labels beside one shard alone
        with tarfile.open(tmp_path / "shards" / f"{('new', 'test')[number]}-{number}.tar", "w") as tar:
            for file in files[5 * number : 5 * number + 5]:
                tar.add(file, file.name)
                if number:
                    label = tarfile.TarInfo(f"{file.stem}.cls")
                    label.size = 1
                    tar.addfile(label, io.BytesIO(b"7"))
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{file}\n" for file in files))
    sources = [f"wds:{tmp_path}/shards", f"csv:{tmp_path}/list.csv"]
    if find_spec("datasets"):
        import datasets

        rows = datasets.Dataset.from_dict({"image": [str(file) for file in files]})
        rows.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "hub"))
        sources.append(f"hfds:{tmp_path}/hub")
    tables = []
    for number, source in enumerate(sources):
        assert run_cli("predict", trained, source, *CPU, "--out", tmp_path / str(number)) == 0
        tables.append(pd.read_csv(tmp_path / str(number) / "predictions.csv", dtype={"prediction": str}))
        assert len(tables[-1]) == 10
        pd.testing.assert_frame_equal(tables[-1].drop(columns="path"), tables[0].drop(columns="path"), atol=1e-5)


def test_what_cannot_be_done_is_one_sentence_before_any_work(
    trained: Path, photos: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    (tmp_path / "table.csv").write_text("file\na.png\n")
    cases = [
        ([trained], "no images to classify"),
        ([], "takes RUN and IMAGES, or --resume FOLDER alone"),
        ([trained, tmp_path / "none"], "no pictures in"),
        ([trained, tmp_path / "nowhere"], "does not exist"),
        ([trained, f"csv:{tmp_path}/table.csv"], "path"),
        ([tmp_path, photos], "holds no trained model yet"),
        ([trained, photos, "--top-k", 11], "--top-k must be 1 to 10"),
        ([trained, photos, "--min-confidence", 1], "must lie between 0 and 1"),
        ([trained, photos, "--link"], "give --copy-to DIR too"),
        ([trained, photos, "--copy-to", tmp_path / "full"], "is not empty"),
        ([trained, photos, "--copy-to", photos / "sorted"], "lies in the folder that it sorts"),
        ([trained, photos, "--copy-to", photos / "notes.txt" / "x"], "lies in the folder"),
        ([trained, photos, "--copy-to", tmp_path / "table.csv" / "x"], "cannot be made: Not a directory"),
        (["--resume", tmp_path / "none"], "nothing to resume"),
        ([trained, photos, "--device", "cuda:77"], "is not on this machine"),
    ]
    for arguments, said in cases:
        assert run_cli("predict", *arguments, *([] if "--resume" in arguments else ["--out", tmp_path / "o"])) == 2, (
            said
        )
        error = capsys.readouterr().err
        assert said in error
        assert error.strip().count("\n") == 0
        assert not (tmp_path / "o").exists()


def test_a_folder_of_which_nothing_can_be_read_fails_and_says_where_the_reasons_are(
    trained: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert run_cli("predict", trained, tmp_path / "bad.png", "--out", tmp_path / "o", *CPU) == 1
    assert "none of the 1 images can be read" in capsys.readouterr().err
    assert "bad.png" in (tmp_path / "o" / "unreadable.csv").read_text()


def test_a_run_whose_val_was_trained_on_says_that_its_confidence_is_its_own(
    photos: Path, tmp_path: Path, capsys
) -> None:
    assert run_cli("finetune", *QUICK, "--set", "data.train_on=trainval", "--out", tmp_path / "run") == 0
    arguments = ("--min-confidence", 0.5, "--out", tmp_path / "o", *CPU)
    assert run_cli("predict", tmp_path / "run", photos / "first", *arguments) == 0
    assert "not calibrated: its val images were trained on" in capsys.readouterr().out.replace("\n", " ")
    assert json.loads((tmp_path / "o" / "summary.json").read_text())["calibrated"] is False


@pytest.fixture
def unfinished(trained: Path, tmp_path: Path) -> tuple[Path, str]:
    """A run of which two of three epochs are done, and the sentence that says so."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "summary.json").unlink()
    log = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"epoch": 3' not in line]
    (run / "metrics.jsonl").write_text("\n".join(log) + "\n")
    return run, f"{run} is not finished: 2 of 3 epochs are done; schane finetune --resume {run} goes on"


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("embed", ["--points", 60]),
        ("embed", ["--images", "PHOTOS"]),
        ("fewshot", ["--allow-seen-classes", "--episodes", 2, "--queries", 2, "--shots", 1]),
        ("review", ["--split", "test"]),
        ("export", ["--format", "timm"]),
    ],
)
def test_other_commands_say_that_the_run_is_not_finished(
    command: str, more: list[object], unfinished: tuple[Path, str], photos: Path, tmp_path: Path, capsys
) -> None:
    if command == "review":
        pytest.importorskip("cleanlab")
    run, note = unfinished
    more = [photos / "first" if word == "PHOTOS" else word for word in more]
    device = () if command == "export" else CPU
    assert run_cli(command, run, *more, *device, "--out", tmp_path / "out") == 0
    assert note in " ".join(capsys.readouterr().out.split())


def test_predict_and_eval_say_that_the_run_is_not_finished(
    unfinished: tuple[Path, str], photos: Path, tmp_path: Path, capsys
) -> None:
    run, note = unfinished
    assert run_cli("predict", run, photos / "first", *CPU, "--out", tmp_path / "named") == 0
    assert note in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "named" / "summary.json").read_text())["notes"] == [note]
    assert run_cli("predict", run, photos / "first" / "00.png", "--json", *CPU) == 0
    assert note in " ".join(capsys.readouterr().err.split())
    assert run_cli("eval", run, *CPU, "--out", tmp_path / "scored") == 0
    assert note in " ".join(capsys.readouterr().out.split())
    assert note in json.loads((tmp_path / "scored" / "summary.json").read_text())["split_notes"]
