"""`schane data`: ls, info, prepare and check, with their exit codes and sentences."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from schane_cli.datasets.catalog import DATASETS
from tests import sources
from tests.conftest import run_cli


def test_ls_names_every_dataset_and_what_is_on_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources.cub200(tmp_path / "cub200")
    assert run_cli("data", "ls", "--root", tmp_path) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in DATASETS)
    assert run_cli("data", "ls", "--root", tmp_path, "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["datasets"]}
    assert rows["cub200"]["state"] == rows["digits"]["state"] == "ready"
    assert rows["pets"]["state"] == "missing"
    assert rows["cifarfs"]["state"] == "cifar100 is missing"


def test_info_gives_licence_source_counts_and_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("data", "info", "imagenet1k", "--root", tmp_path) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("registration", "https://image-net.org", "1,281,167 train, 50,000 test", "missing", "signed form"):
        assert part in shown


def test_an_unknown_dataset_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("info", "prepare", "check"):
        assert run_cli("data", verb, "cub20", "--root", tmp_path) == 2
        said = capsys.readouterr().err
        assert "did you mean 'cub200'" in said
        assert said.count("\n") == 1


def test_prepare_says_what_must_be_fetched_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("data", "prepare", "tieredimagenet", "--root", tmp_path) == 2
    assert "ILSVRC2012_img_train.tar is not there" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_prepare_leaves_what_is_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources.pets(tmp_path / "pets")
    assert run_cli("data", "prepare", "pets", "--root", tmp_path) == 0
    assert "is ready in" in capsys.readouterr().out


def test_check_ends_with_a_verdict_and_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        sources.class_folders(tmp_path / "mine" / split, {"a": 6, "b": 6}, ".png")
    assert run_cli("data", "check", f"folder:{tmp_path}/mine") == 0
    assert "verdict   ok; 24 images decoded" in capsys.readouterr().out
    first = tmp_path / "mine" / "train" / "a" / "a_0.png"
    os.link(first, tmp_path / "mine" / "test" / "a" / "a_9.png")
    assert run_cli("data", "check", f"folder:{tmp_path}/mine", "--json") == 1
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["ok"] is False
    assert "1 image is in two splits" in verdict["problems"][0]


def test_a_missing_dataset_stops_a_run_before_it_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert run_cli("finetune", "--dataset", "pets", "--data-root", tmp_path, "--out", out) == 2
    assert f"schane data prepare pets --root {tmp_path}" in capsys.readouterr().err
    assert not out.exists()


def test_listing_datasets_imports_no_torch() -> None:
    code = "import sys; from schane_cli.cli import main\ntry: main(['data', 'ls'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
