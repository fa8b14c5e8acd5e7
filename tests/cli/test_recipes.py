"""`schane recipes ls | show | cp | check`."""

from pathlib import Path

from schane_cli.recipe import find_recipe, recipe_names
from tests.conftest import run_cli


def test_ls_shows_every_recipe(capsys) -> None:
    assert run_cli("recipes", "ls") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in recipe_names())
    assert max(map(len, out.splitlines())) <= 80


def test_show_prints_the_file_and_cp_copies_it_once(tmp_path: Path, capsys) -> None:
    text = find_recipe("digits").read_text()
    assert run_cli("recipes", "show", "digits") == 0
    assert capsys.readouterr().out == text
    target = tmp_path / "mine.yaml"
    assert run_cli("recipes", "cp", "digits", target) == 0
    assert target.read_text() == text
    assert run_cli("recipes", "cp", "digits", target) == 2
    assert "exists already" in capsys.readouterr().err


def test_check_passes_ours_and_names_what_is_wrong_in_a_users(tmp_path: Path, capsys) -> None:
    assert run_cli("recipes", "check") == 0
    assert capsys.readouterr().out.count(": ok") == len(recipe_names())
    mine = tmp_path / "mine.yaml"
    mine.write_text("train: {epochs: -1}")
    assert run_cli("recipes", "check", mine) == 2
    assert "train.epochs" in capsys.readouterr().err
