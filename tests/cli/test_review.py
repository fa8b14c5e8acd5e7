"""`schane review` on digits with planted errors, and the lists that the next run takes; `schane embed --images`."""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from schane_cli.spreadsheets import read_csv, without_formula
from tests.browser import is_quiet_and_alone, needs_browser, open_browser, open_page
from tests.conftest import run_cli

TRAIN = [
    "--backbone", "test_resnet", "--init", "random", "--epochs", "2", "--batch-size", "16", "--loss", "ce",
    "--set", "data.image_size=32", "--set", "train.warmup_epochs=0", "--set", "data.workers=0", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty each of zeros, ones and twos (`=2`, no formula); one image twice, under two classes."""
    folder, data = tmp_path_factory.mktemp("review") / "digits", load_digits()
    for digit, name in enumerate(("0", "1", "=2")):
        (folder / name).mkdir(parents=True)
        for number, index in enumerate(np.flatnonzero(data.target == digit)[:40]):
            picture = Image.fromarray((data.images[index] * 15.9).astype(np.uint8)).resize((32, 32))
            picture.convert("RGB").save(folder / name / f"{number:02d}.png")
    copy = Image.open(folder / "0" / "00.png").resize((40, 40)).resize((32, 32))
    copy.save(folder / "1" / "copy.png")
    return folder


@pytest.fixture(scope="module")
def trained(digits: Path) -> Path:
    assert run_cli("finetune", "--dataset", f"folder:{digits}", *TRAIN, "--out", digits.parent / "run") == 0
    return digits.parent / "run"


@pytest.fixture(scope="module")
def reviewed(trained: Path) -> Path:
    pytest.importorskip("cleanlab")
    out = trained.parent / "reviewed"
    assert run_cli("review", trained, "--split", "all", "--out", out) == 0
    return out


def test_the_tables_and_the_page_are_there_and_hold_what_was_planted(reviewed: Path) -> None:
    names = {path.name for path in reviewed.iterdir()}
    assert {"review.csv", "duplicates.csv", "relabel.csv", "exclude.csv", "report.html", "summary.json"} <= names
    table, pairs = read_csv(reviewed / "review.csv"), read_csv(reviewed / "duplicates.csv")
    assert len(table) == 121
    assert {"wrong_chance", "suggested_chance", "issue_rank"} <= set(table)
    assert table.wrong_chance[table.issue_rank != ""].gt(0.5).all()
    assert set(table.split) == {"train", "val", "test"}
    near_pairs = {frozenset(path.split("/", 1)[-1] for path in pair) for pair in pairs[["first", "second"]].to_numpy()}
    assert frozenset({"00.png", "copy.png"}) in near_pairs
    assert json.loads((reviewed / "summary.json").read_text())["duplicates_across_classes"] >= 1
    page = (reviewed / "report.html").read_text()
    assert 'id="relabel"' in page
    assert "data.relabel=" in page


def test_the_next_run_takes_the_lists(reviewed: Path, digits: Path, tmp_path: Path, capsys) -> None:
    table = read_csv(reviewed / "review.csv", dtype=str)
    (tmp_path / "relabel.csv").write_text(f"path,label\n{table.path[0]},=2\n")
    assert (reviewed / "exclude.csv").read_text().splitlines()[0] == "path"
    (tmp_path / "exclude.csv").write_text(f"path\n{table.path[5]}\n")
    arguments = ("--dataset", f"folder:{digits}", *TRAIN, "--epochs", 1)
    lists = ("--set", f"data.relabel={tmp_path}/relabel.csv", "--set", f"data.exclude={tmp_path}/exclude.csv")
    assert run_cli("finetune", *arguments, *lists, "--out", tmp_path / "again") == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert "1 images given another class" in said
    assert "images left out by" in said
    (tmp_path / "other.csv").write_text("path,label\nnowhere/a.png,2\n")
    other = ("--set", f"data.relabel={tmp_path}/other.csv")
    assert run_cli("finetune", *arguments, *other, "--out", tmp_path / "x") == 2
    assert "it is of another dataset" in capsys.readouterr().err


@needs_browser
def test_the_page_is_decided_by_keyboard_and_its_lists_go_into_the_next_run(
    reviewed: Path, digits: Path, tmp_path: Path, capsys
) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    cards = pd.read_parquet(reviewed / "shown.parquet")
    assert len(cards) >= 4
    for browser in open_browser(tmp_path / "profile"):
        allowed = {"behavior": "allow", "downloadPath": str(tmp_path)}
        browser.execute_cdp_cmd("Browser.setDownloadBehavior", allowed)
        open_page(browser, reviewed / "report.html")
        is_quiet_and_alone(browser)
        for key in (Keys.ARROW_RIGHT, "k", "w", "x", Keys.ARROW_LEFT, "0", "u", "x"):
            ActionChains(browser).send_keys(key).perform()
        open_page(browser, reviewed / "report.html")  # the choices stay in this browser
        choices = browser.execute_script(
            "return [...document.querySelectorAll('.cards figure')].map(card => card.dataset.choice || '')"
        )
        assert choices[:4] == ["keep", "wrong", "unsure", "out"]
        assert browser.execute_script("return document.getElementById('state').textContent").startswith("4 of ")
        cells = ["=a", "-b", "@c", "+d", "'e", "0.5", "f"]
        assert browser.execute_script(f"return {cells}.map(safe)") == [without_formula(cell) for cell in cells]
        for name in ("relabel", "exclude", "choices"):
            browser.execute_script("document.getElementById(arguments[0]).click()", name)
        end = time.monotonic() + 20
        while not all((tmp_path / f"{name}.csv").is_file() for name in ("relabel", "exclude", "choices")):
            assert time.monotonic() < end, "the lists did not arrive"
            time.sleep(0.1)
    relabel = read_csv(tmp_path / "relabel.csv", dtype=str)
    assert relabel.to_numpy().tolist() == [[cards.path[1], cards.suggested[1]]]
    assert read_csv(tmp_path / "exclude.csv", dtype=str).path.tolist() == [cards.path[3]]
    assert read_csv(tmp_path / "choices.csv", dtype=str).choice.tolist() == ["keep", "wrong", "unsure", "out"]
    lists = ("--set", f"data.relabel={tmp_path}/relabel.csv", "--set", f"data.exclude={tmp_path}/exclude.csv")
    arguments = ("--dataset", f"folder:{digits}", *TRAIN, "--epochs", 1, *lists, "--out", tmp_path / "again")
    assert run_cli("finetune", *arguments) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert "1 images given another class by" in said
    assert "1 images left out by" in said


def test_images_without_labels_get_a_map_and_no_class_metrics(
    trained: Path, digits: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    wanted = ("--perplexity", 50, "--out", out, "--device", "cpu")
    assert run_cli("embed", trained, "--images", digits, *wanted) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert "without labels, so no metric compares classes" in said
    assert "t-SNE with perplexity 40, the largest that 121 images allow" in said
    table, points = pd.read_parquet(out / "embeddings.parquet"), read_csv(out / "points.csv")
    assert len(table) == len(points) == 121
    assert table.embedding.map(len).nunique() == 1
    assert json.loads((out / "summary.json").read_text())["duplicate_pairs"] >= 1
    assert (out / "figures" / "map.png").is_file()


def test_what_cannot_be_done_is_one_sentence(trained: Path, digits: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"nothing")
    for arguments, said in (
        (["review", trained, "--split", "dev"], "unknown split 'dev'; allowed: train, val, test, all"),
        (["review", tmp_path], "holds no trained model yet"),
        (["embed", trained, "--projection", "umap"], "--images goes with one checkpoint"),
        (["embed", trained, "--images", digits, "--projection", "pca"], "unknown --projection 'pca'"),
        (["embed", trained, "--images", tmp_path / "bad"], "0 of the 1 images can be read"),
    ):
        assert run_cli(*arguments, "--out", tmp_path / "x") == 2, said
        assert said in capsys.readouterr().err
        assert not (tmp_path / "x").exists()
