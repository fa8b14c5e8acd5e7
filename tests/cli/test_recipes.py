"""`schane recipes ls | show | cp | check`."""

from pathlib import Path

from schane_cli.recipe import Recipe, build_recipe, find_recipe, flatten, parse_yaml, read_recipe, recipe_names
from tests.conftest import run_cli


def test_ls_shows_every_recipe(capsys) -> None:
    assert run_cli("recipes", "ls") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in recipe_names())
    assert max(map(len, out.splitlines())) <= 80


def test_ls_says_which_recipes_have_been_run_as_they_stand(capsys) -> None:
    run_cli("recipes", "ls")
    lines = capsys.readouterr().out.splitlines()
    (digits,) = [line for line in lines if " digits " in line]
    (imagenet,) = [line for line in lines if " imagenet1k " in line]
    assert "2026-" in digits
    assert "not yet" in imagenet


def test_show_resolved_prints_every_value_and_reads_back(capsys) -> None:
    assert run_cli("recipes", "show", "cifar100", "--resolved") == 0
    tree = parse_yaml(capsys.readouterr().out, "out")
    assert flatten(tree) == build_recipe(read_recipe(find_recipe("cifar100"))).flat()


def test_a_recipe_repeats_no_default() -> None:
    defaults = Recipe().flat()
    for name in recipe_names():
        tree = read_recipe(find_recipe(name))
        whole = build_recipe(tree).flat()
        repeated = [key for key in flatten(tree) if key != "data.dataset" and whole[key] == defaults[key]]
        assert repeated == [], name


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
