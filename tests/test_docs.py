"""The documents keep up with the program: commands, flags, recipes and links they name exist, and none is forgotten."""

import itertools
import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer

from schane_cli.cli import app
from schane_cli.metrics.registry import METRICS
from schane_cli.recipe import known_keys, recipe_names

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ALL = {path: path.read_text() for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]}
MAIN = typer.main.get_command(app)
COMMANDS = MAIN.commands  # type: ignore[attr-defined]


def _calls(text: str) -> list[list[str]]:
    """Every `schane ...` line of a document, without its comment."""
    lines = re.findall(r"(?:^(?: {4,}|\s*# Command:\s*)|&& )(schane [^\n#`&]*)", text, flags=re.MULTILINE)
    return [shlex.split(line)[1:] for line in lines]


def _options(command: str, sub: str = "") -> set[str]:
    described = COMMANDS[command]
    if hasattr(described, "commands"):
        described = described.commands[sub]
    return {option for parameter in described.params for option in parameter.opts}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_every_call_in_the_documents_names_commands_and_flags_that_exist(path: Path) -> None:
    for command, *rest in _calls(ALL[path]):
        if command.startswith("--"):
            assert command in {option for parameter in MAIN.params for option in parameter.opts}
            continue
        assert command in COMMANDS, command
        flags = {part.partition("=")[0] for part in rest if part.startswith("--")}
        assert flags <= _options(command, rest[0] if rest else "") | {"--help"}, (command, rest)
        for value in (part for before, part in itertools.pairwise(rest) if before == "--set"):
            assert value.partition("=")[0] in known_keys()


def test_every_command_stands_in_the_readme() -> None:
    shown = {call[0] for call in _calls(README)}
    assert set(COMMANDS) - {"recipes"} <= shown
    assert "schane recipes" in README


def test_every_recipe_says_how_to_run_it_by_a_command_that_exists() -> None:
    for name in recipe_names():
        (call,) = [line for line in _calls((ROOT / "recipes" / f"{name}.yaml").read_text()) if line[0] != "data"]
        assert call[0] in COMMANDS, name
        assert {part for part in call if part.startswith("--")} <= _options(call[0]), name


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", ALL[path]):
        assert (path.parent / target).exists(), target


def test_the_snippet_of_the_loss_on_the_site_runs_as_it_stands() -> None:
    text = (ROOT / "docs" / "own-loop.md").read_text().split("<!-- run -->")[1]
    lines = itertools.takewhile(lambda line: not line.strip() or line.startswith("    "), text.splitlines())
    scope: dict[str, object] = {}
    exec("\n".join(line[4:] for line in lines), scope)  # noqa: S102 (our own page)
    assert scope["projection"].grad is not None  # type: ignore[attr-defined]


def test_the_references_on_the_site_name_every_command_key_and_metric() -> None:
    """Made as mkdocs makes them, so that none is forgotten; `python3 dev.py docs` checks the links too."""
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    pages = {name: "\n".join(generate()) for name, generate in hooks["GENERATED"].items()}
    assert {f"## schane {name}" for name in COMMANDS if not hasattr(COMMANDS[name], "commands")} <= set(
        pages["cli"].splitlines()
    )
    assert all(f"| `{key}` |" in pages["recipe"] for key in known_keys())
    assert all(f"`{name}`" in pages["metrics"] for name in METRICS)


def test_every_page_of_the_site_is_in_its_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text()
    for path in ROOT.glob("docs/**/*.md"):
        assert f": {path.relative_to(ROOT / 'docs')}\n" in nav, path


def test_errors_that_the_questions_quote_are_in_the_program() -> None:
    quoted = re.findall(r'^\*\*"([^"]+)"', (ROOT / "docs" / "faq.md").read_text(), flags=re.MULTILINE)
    source = "".join(path.read_text() for path in (ROOT / "schane_cli").rglob("*.py"))
    assert len(quoted) >= 4
    for sentence in quoted:
        assert sentence.split("'")[0].rstrip(" .") in source, sentence
