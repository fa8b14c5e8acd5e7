"""The documents keep up with the program: commands, flags, recipes and links they name exist, and none is forgotten."""

import itertools
import json
import re
import runpy
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest
import typer

from schane_cli.cli import app
from schane_cli.metrics.registry import METRICS, find_metric
from schane_cli.recipe import known_keys, recipe_names
from schane_cli.reports.report import report as draw_again
from schane_cli.terminal import Terminal
from tests.jobs import run_tiny

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


def test_every_command_stands_on_the_first_page_of_the_site() -> None:
    """README.md, a screen and a half, shows four of them and leads there."""
    index = (ROOT / "docs" / "index.md").read_text()
    shown = {call[0] for call in _calls(index)}
    assert set(COMMANDS) - {"recipes"} <= shown
    assert "schane recipes" in index
    assert "(docs/index.md)" in README
    assert len(README.splitlines()) <= 60


def test_every_recipe_says_how_to_run_it_by_a_command_that_exists() -> None:
    for name in recipe_names():
        (call,) = [line for line in _calls((ROOT / "recipes" / f"{name}.yaml").read_text()) if line[0] != "data"]
        assert call[0] in COMMANDS, name
        assert {part for part in call if part.startswith("--")} <= _options(call[0]), name


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", ALL[path]):
        assert (path.parent / target).exists(), target


def _keys_of_section(text: str, section: str) -> set[str]:
    """What the first column of a section's tables names."""
    part = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.+?) \| ", part, flags=re.MULTILINE)
    return {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)}


def test_every_file_and_key_that_a_run_writes_stands_in_the_reference(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "reference" / "run-folder.md").read_text()
    run_tiny(tmp_path / "run", train__keep_epochs=1, train__epochs=2, train__ema_decay=None)
    draw_again(tmp_path / "run", terminal=Terminal(quiet=True))
    patterns = re.findall(r"`([^`]+)`", text)
    for path in (tmp_path / "run").rglob("*"):
        name = path.relative_to(tmp_path / "run").as_posix()
        assert path.is_dir() or any(fnmatch(name, pattern) for pattern in patterns), name

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    written = {key for line in lines for key in line}
    assert written == _keys_of_section(text, "metrics.jsonl")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert set(environment) == _keys_of_section(text, "environment.json")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    named = _keys_of_section(text, "summary.json")
    assert {key for key in summary if not find_metric(key.removesuffix("_ci95"))} <= named
    assert named <= set(summary)


def test_the_references_on_the_site_name_every_command_key_and_metric() -> None:
    """Made as mkdocs makes them, so that none is forgotten; `python3 dev.py docs` checks the links too."""
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    pages = {name: "\n".join(generate()) for name, generate in hooks["GENERATED"].items()}
    assert {f"## schane {name}" for name in COMMANDS if not hasattr(COMMANDS[name], "commands")} <= set(
        pages["cli"].splitlines()
    )
    assert all(f"| `{key}` |" in pages["recipe"] for key in known_keys())
    assert all(f"`{name}`" in pages["metrics"] for name in METRICS)
    assert not re.search(r"<class|Gt\(|Le\(|metadata", pages["recipe"])


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
