"""Run folders turned into what people look at: the final table, the pictures, and a page that needs no network."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from schane_cli.run import RunFolder

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><main><h1>{title}</h1>
{body}
</main>{scripts}</body></html>
"""
_STYLE = """
:root { color-scheme: light dark; --ink: #111827; --paper: #ffffff; --soft: #f3f4f6; --line: #d1d5db; --mark: #2563eb }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --paper: #111827; --soft: #1f2937; --line: #374151; --mark: #60a5fa } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .75rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top }
th:first-child, td:first-child { text-align: left } details td { overflow-wrap: anywhere }
figure { margin: 1rem 0 }
th { background: var(--soft); cursor: pointer; white-space: nowrap }
img { max-width: 100%; border-radius: 6px } summary { cursor: pointer; color: var(--mark) }
p.lead { font-size: 1.1rem } .note { color: color-mix(in srgb, var(--ink) 70%, transparent) }
@media print { details { display: block } body { color: #000; background: #fff } }
"""
# A click on a column's head sorts by it, as numbers where both cells begin with one.
_SORT = """
for (const head of document.querySelectorAll('th')) head.addEventListener('click', () => {
  const table = head.closest('table'), at = [...head.parentNode.children].indexOf(head)
  const down = head.dataset.down = head.dataset.down === '1' ? '0' : '1'
  const value = row => row.children[at].textContent
  const order = (a, b) => { const x = parseFloat(value(a)), y = parseFloat(value(b))
    return isNaN(x) || isNaN(y) ? value(a).localeCompare(value(b)) : x - y }
  const rows = [...table.tBodies[0].rows].sort((a, b) => down === '1' ? order(b, a) : order(a, b))
  table.tBodies[0].append(...rows) })
"""


def page(title: str, sections: Sequence[str], scripts: Sequence[str] = ()) -> str:
    """A whole HTML page of sections that are HTML already; it asks nothing of any network."""
    tags = "".join(f"<script>{script}</script>" for script in (_SORT, *scripts))
    return _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(sections), scripts=tags)


def section(heading: str, *content: str) -> str:
    """A heading and HTML below it."""
    return f"<section><h2>{escape(heading)}</h2>{''.join(content)}</section>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>'


def html_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table that sorts by a click on a column."""
    head = "".join(f"<th>{escape(str(column))}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(path: Path, description: str) -> str:
    """A PNG or WebP file inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    kind = path.suffix.removeprefix(".")
    return f'<figure><img alt="{escape(description)}" src="data:image/{kind};base64,{data}"></figure>'


def provenance(run: Path) -> str:
    """The resolved recipe and the environment of a run, folded away."""
    recipe, environment = RunFolder(run).read_settings(), RunFolder(run).read_environment()
    folded = "<details><summary>{}</summary>{}</details>"
    return section(
        "How it was made",
        folded.format("recipe", html_table(("key", "value"), list(recipe.items()))),
        folded.format("environment", html_table(("key", "value"), list(environment.items()))),
    )


def percent(value: float, ci95: Sequence[float] | None = None) -> str:
    """`98.61 %`, with its interval `(97.3 to 99.4)` where there is one."""
    interval = f" ({100 * ci95[0]:.2f} to {100 * ci95[1]:.2f})" if ci95 else ""
    return f"{100 * value:.2f} %{interval}"


def accuracy_rows(summary: Mapping[str, Any], split: str) -> list[tuple[str, str, str]]:
    """(figure, value with its 95 % interval, n) for what a summary knows of a split."""
    names = {"accuracy": "top-1 accuracy", "top5_accuracy": "top-5 accuracy", "ece": "calibration error (ECE)"}
    rows = [
        (
            f"{split} {label}",
            percent(summary[f"{split}_{name}"], summary[f"{split}_{name}_ci95"]),
            str(summary[f"{split}_n"]),
        )
        for name, label in names.items()
        if f"{split}_{name}" in summary
    ]
    nll, interval = summary[f"{split}_nll"], summary[f"{split}_nll_ci95"]
    shown = f"{nll:.4f} ({interval[0]:.4f} to {interval[1]:.4f})"
    return [*rows, (f"{split} NLL, nats", shown, str(summary[f"{split}_n"]))]
