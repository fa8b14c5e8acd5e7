"""`schane recipes ls | show | cp | check`, and the help of every command."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from schane_cli.cli import FLAGS, app
from schane_cli.recipe import find_recipe, known_keys, recipe_names
from tests.cli.test_finetune import run_cli


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


def _commands() -> list[list[str]]:
    root = typer.main.get_command(app)
    found: list[list[str]] = [[]]
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        found.append([name])
        found += [[name, sub] for sub in getattr(command, "commands", {})]
    return found


@pytest.mark.parametrize("command", _commands(), ids=" ".join)
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys; from schane_cli.cli import main\n"
        f"try: main({[*command, '--help']!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'numpy', 'pandas', 'sklearn', 'matplotlib', 'plotly', 'scipy'} & set(sys.modules)\n"
        "print(heavy, file=sys.stderr); sys.exit(bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


def test_every_flag_sets_a_key_that_exists() -> None:
    assert set(FLAGS.values()) <= set(known_keys())
