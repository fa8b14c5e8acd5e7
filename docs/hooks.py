"""Pages of the site that are made from the code: commands, recipe, metrics. mkdocs calls `on_page_markdown`."""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import BaseModel

from schane_cli.cli import app
from schane_cli.flags import FLAG_OF, field_range
from schane_cli.metrics.registry import METRICS, Metric
from schane_cli.recipe import Recipe

EVIDENCE = Path(__file__).resolve().parent.parent / "results" / "evidence"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put what is generated in the place of its marker."""
    for name, generate in GENERATED.items():
        marker = f"<!-- generated: {name} -->"
        if marker in markdown:
            markdown = markdown.replace(marker, "\n".join(generate()))
    return markdown


def commands() -> Iterator[str]:
    """A section per command with its help, as `--help` prints it."""
    root = typer.main.get_command(app)
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        subcommands = getattr(command, "commands", None)
        for sub, one in subcommands.items() if subcommands else [("", command)]:
            title = f"schane {name} {sub}".strip()
            context = one.make_context(title, [], resilient_parsing=True, terminal_width=80)
            yield from (f"## {title}", "", *("    " + line for line in one.get_help(context).splitlines()), "")


def recipe() -> Iterator[str]:
    """A table per section of the recipe: key, type and range, default, meaning, flag."""
    yield from _section("Top level", Recipe, "")
    for name, field in Recipe.model_fields.items():
        if _is_section(field.annotation):
            yield from _section(f"{name}", field.annotation, f"{name}.")


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _section(title: str, section: type[BaseModel], prefix: str) -> Iterator[str]:
    yield from (f"## {title}", "", _paragraph(section.__doc__ or ""), "")
    yield from ("| key | values | default | meaning | flag |", "| --- | --- | --- | --- | --- |")
    for name, field in section.model_fields.items():
        if not _is_section(field.annotation):
            key = prefix + name
            values = f"{_type(field.annotation)}{field_range(key)}"
            flag = f"`{FLAG_OF[key]}`" if key in FLAG_OF else ""
            default = _cell(f"`{_shown(field.default)}`")
            yield f"| `{key}` | {_cell(values)} | {default} | {field.description} | {flag} |"
    yield ""


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    if get_origin(annotation) is UnionType:
        return " or ".join(_type(part) for part in get_args(annotation))
    if get_origin(annotation) is tuple:
        return "list of " + _type(get_args(annotation)[0])
    if get_args(annotation) and get_origin(annotation) is not dict:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    names = {str: "text", int: "integer", float: "number", bool: "true, false", type(None): "null"}
    return names.get(annotation, "mapping" if get_origin(annotation) is dict else "path")


def _shown(default: Any) -> str:
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    if isinstance(default, tuple):
        return f"[{', '.join(f'{value:.4g}' if isinstance(value, float) else str(value) for value in default)}]"
    return str(default)


def metrics() -> Iterator[str]:
    """A section per metric."""
    for metric in METRICS.values():
        yield from _metric(metric)


def _metric(metric: Metric) -> Iterator[str]:
    facts = {
        "Key": f"`{metric.name}`",
        "Range": _range(metric),
        "Better": {"higher": "higher", "lower": "lower", "none": "no direction"}[metric.direction],
        "Interval": metric.interval or metric.no_interval,
        "Source": metric.source,
        "Choices": metric.choices,
        "Can mislead": metric.misleads,
    }
    yield from (f"## {metric.heading}", "", metric.definition, "")
    yield from (f"- {name}: {text}" for name, text in facts.items() if text)
    yield ""


def _range(metric: Metric) -> str:
    """From the lowest value to the highest, as they are printed."""
    low, high = (metric.scale * bound for bound in metric.bounds)
    ends = f"{low:g} to {high:g}" if math.isfinite(high) else f"{low:g} and more"
    return f"{ends} {metric.unit}".rstrip() if math.isfinite(low) else "any number"


def evidence() -> Iterator[str]:
    """The evidence as it lies beside its runs; files that are not on this site are named without a link."""
    text = (EVIDENCE / "README.md").read_text().replace("../../docs/", "")
    text = text.replace("(differences.png)", "(evidence/differences.png)").replace(
        "(tables.md)", "(evidence/tables.md)"
    )
    yield re.sub(r"\[([^\]]*)\]\((?:runs|studies)[^)]*\)", r"\1", text)


def on_files(files: Any, config: Any) -> Any:
    """The tables and the picture of the evidence become files of this site."""
    from mkdocs.structure.files import File

    for name in ("tables.md", "differences.png"):
        files.append(File.generated(config, f"evidence/{name}", abs_src_path=str(EVIDENCE / name)))
    return files


def _paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split()).replace("*", r"\*")


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")


GENERATED: dict[str, Callable[[], Iterator[str]]] = {
    "cli": commands,
    "recipe": recipe,
    "metrics": metrics,
    "evidence": evidence,
}
