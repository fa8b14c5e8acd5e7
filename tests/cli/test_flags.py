"""Flags are made from the recipe's fields and frozen by name; help and answers to a wrong key come at once."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import schane_cli
from schane_cli.cli import app
from schane_cli.flags import FLAGS, RecipeValues, recipe_flags
from schane_cli.recipe import known_keys, recipe_fields
from tests.conftest import installed_packages_of

ROOT = typer.main.get_command(app)
CLI = sorted(Path(schane_cli.__file__).parent.glob("cli*.py"))
TRAINING = (
    "--dataset --data-root --backbone --init --loss --seed --epochs --batch-size --chunk-size --compile --no-compile "
    "--lr --temperature --hardness --contrastive-weight"
)
# Every flag that sets a recipe value, by command. A new one is a decision: scripts of users will hold on to its name.
FROZEN = {
    "average": "--data-root --device",
    "augment": "--dataset --data-root --seed --set",
    "finetune": f"{TRAINING} --device --set",
    "fewshot": f"{TRAINING} --ways --shots --queries --episodes --classifier --device --set",
    "eval": "--data-root --device",
    "embed": "--dataset --data-root --device",
    "predict": "--data-root --device --set",
    "review": "--data-root --device --set",
    "study": "--data-root --init --device",
    "doctor": "--backbone --device",
}


def _commands() -> dict[tuple[str, ...], object]:
    commands: dict[tuple[str, ...], object] = {(): ROOT}
    for name, command in ROOT.commands.items():  # type: ignore[attr-defined]
        commands[name,] = command
        commands |= {(name, sub): inner for sub, inner in getattr(command, "commands", {}).items()}
    return commands


def _options(command: object) -> dict[str, object]:
    parameters = command.params  # type: ignore[attr-defined]
    return {option: one for one in parameters for option in (*one.opts, *one.secondary_opts) if option.startswith("--")}


def test_the_flags_that_set_recipe_values_are_these_and_no_others() -> None:
    from_recipe = {*FLAGS, "--no-compile", "--set"}
    kept = {
        command[0]: " ".join(option for option in _options(parsed) if option in from_recipe)
        for command, parsed in _commands().items()
        if len(command) == 1 and command[0] != "eval"
    }
    kept["eval"] = " ".join(o for o in _options(_commands()["eval",]) if o in from_recipe - {"--dataset"})  # its own
    assert {command: flags for command, flags in kept.items() if flags} == FROZEN


def test_every_flag_has_the_description_and_the_range_of_its_field() -> None:
    assert set(FLAGS.values()) <= set(known_keys())
    options = _options(_commands()["fewshot",])
    for flag, key in FLAGS.items():
        assert str(options[flag].help).startswith(str(recipe_fields()[key].description)), flag  # type: ignore[attr-defined]
    ranges = {"--temperature": "[0<x<=1000]", "--contrastive-weight": "[0<=x<1]", "--ways": "[2<=x<=10000]"}
    for flag, bounds in ranges.items():
        assert str(options[flag].help).endswith(bounds)  # type: ignore[attr-defined]


def test_no_command_has_a_parameter_that_it_does_not_read() -> None:
    for function in (node for file in CLI for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(function, ast.FunctionDef):
            names = {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}
            read = {node.id for line in function.body for node in ast.walk(line) if isinstance(node, ast.Name)}
            assert names <= read, (function.name, names - read)


def test_help_of_every_command_imports_nothing_heavy() -> None:
    helps = _in_one_process([[*command, "--help"] for command in _commands()])
    assert all("Usage:" in text for text in helps)


HEAVY = {"torch", "timm", "numpy", "pandas", "sklearn", "matplotlib", "plotly", "scipy"}


def _in_one_process(calls: list[list[str]], heavy: set[str] = HEAVY) -> list[str]:
    """What each call of schane prints, stderr included; fails if one of them imports a heavy package."""
    code = (
        "import contextlib, io, json, sys; from schane_cli.cli import main\n"
        "texts = []\n"
        f"for call in {calls!r}:\n"
        "    texts.append(io.StringIO())\n"
        "    with contextlib.redirect_stdout(texts[-1]), contextlib.redirect_stderr(texts[-1]):\n"
        "        with contextlib.suppress(SystemExit): main(call)\n"
        f"print(json.dumps([[text.getvalue() for text in texts], sorted({heavy!r} & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    texts, imported = json.loads(done.stdout)
    assert imported == []
    return texts


@pytest.mark.parametrize("asked", ["--help", "finetune --help", "finetune --set lr=1"])
def test_help_and_a_wrong_key_import_only_the_libraries_of_a_recipe(asked: str) -> None:
    """What it costs in seconds stands in benchmarks/startup.py; nothing else that is installed may be among them."""
    code = f"""
import contextlib; from schane_cli.cli import main
with contextlib.suppress(SystemExit): main({asked.split()!r})
pass"""
    libraries = "annotated_types, pydantic, typer.testing, yaml, rich.markdown, rich.syntax"
    assert installed_packages_of(code) <= {"schane_cli", *installed_packages_of(f"import {libraries}")}


WRONG = {
    "finetune --set lr=1": "unknown recipe key 'lr'; did you mean 'train.lr'?",
    "fewshot --set train.learning_rate=1": "did you mean 'train.lr'?",
    "finetune --set bs=8": "did you mean 'train.batch_size'?",
    "finetune --temperature 0": "loss.temperature: input should be greater than 0, got 0",
    "finetune --set loss=ce": "did you mean 'loss.name'?",
    "fewshot RUN --set loss.temprature=1": "did you mean 'loss.temperature'?",
}


def test_a_wrong_key_or_value_is_answered_before_torch_is_imported() -> None:
    answers = _in_one_process([call.split() for call in WRONG], {"torch"})
    for said, answer in zip(WRONG.values(), answers, strict=True):
        assert said in answer
        assert len(answer.splitlines()) == 1


def test_what_is_given_reaches_the_command_under_recipe_keys_with_the_flag_on_top() -> None:
    given = []
    probe = typer.Typer()

    @probe.command()
    @recipe_flags("train.lr", "fewshot.shots", "train.compile", "data.root", any_key=True)
    def command(values: RecipeValues, more: int = 0) -> None:
        given.append((values, more))

    def call(*arguments: str) -> None:
        probe([*arguments], standalone_mode=False)

    call("--set", "train.epochs=3", "--set", "train.lr=2", "--lr", "3", "--shots", "1,5", "--no-compile", "--more", "4")
    call("--data-root", "x", "--compile")
    call()
    assert given == [
        ({"train.epochs": 3, "train.lr": 3.0, "fewshot.shots": ["1", "5"], "train.compile": False}, 4),
        ({"data.root": Path("x"), "train.compile": True}, 0),
        ({}, 0),
    ]


def test_the_shell_completes_words_that_are_known() -> None:
    def offered(line: str) -> list[str]:
        environment = {
            **os.environ,
            "_SCHANE_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(line.count(" ")),
        }
        code = "from schane_cli.cli import app; app(prog_name='schane')"
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        return done.stdout.split()

    assert "--temperature" in offered("schane finetune --t")
    assert "cifar100" in offered("schane finetune --recipe cif")
    assert "loss.temperature=" in offered("schane finetune --set loss.te")


def test_completion_installs_into_the_home_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "from schane_cli.cli import main; main()", "--install-completion", "bash"],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (script,) = [path for path in tmp_path.rglob("*.sh") if path.is_file()]
    assert "COMPLETE=complete_bash" in script.read_text()
