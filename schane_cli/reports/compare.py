"""A comparison as people read it: terminal table, CSV, Markdown, LaTeX, a picture and a page."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from schane_cli.commands.compare import (
    Block,
    Difference,
    Group,
    as_json,
    blocks_as_json,
    read_blocks,
    shared_metrics,
)
from schane_cli.errors import BadRequest
from schane_cli.metrics.registry import metric as registered
from schane_cli.reports import plots
from schane_cli.reports.pages import drawn, write_page
from schane_cli.run import RunFolder, escape_markdown, one_line, read_json, write_json, write_text
from schane_cli.spreadsheets import write_csv
from schane_cli.terminal import Terminal, figures_table

SEEDS_NOTE = (
    "Means over seeds with the 95 % interval of Student's t; differences are paired by seed. All runs of a table are "
    "scored on the same images, so the intervals are about training, not about other test images."
)
COLUMNS_NOTE = (
    "p is Holm's over the comparisons of a table, g the effect size (mean over standard deviation of the paired "
    "differences, Hedges)."
)
COLUMNS = ("group", "{metric}", "difference", "p", "g")
_LATEX = {
    "\\": r"\textbackslash{}",
    **{mark: "\\" + mark for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\^{}",
}


def write_comparison(
    blocks: Sequence[Block],
    notes: Sequence[str],
    run: RunFolder,
    terminal: Terminal,
    study: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All files of a comparison in its folder, its tables and sentences on the terminal; returns summary.json.

    In the folder of a study, whose summary is `study`, the comparison becomes a part of that.
    """
    frames = [block.table().assign(block=block.title) for block in blocks]
    write_csv(pd.concat(frames, ignore_index=True), run.comparison_table, index=False)
    write_text(run.comparison_table.with_suffix(".md"), markdown(blocks))
    write_text(run.comparison_table.with_suffix(".tex"), latex(blocks))
    title = f"{blocks[0].meaning.label} by {', '.join(dict.fromkeys(block.title.split(',')[0] for block in blocks))}"
    write_json(run.compared_runs, {"blocks": blocks_as_json(blocks), "notes": list(notes)})
    comparison = as_json(blocks, notes)
    summary = {**study, "comparison": comparison["blocks"]} if study else {**comparison, "run": str(run.path)}
    run.finish(summary)
    overview = drawn(
        plots.group_intervals([panel(block) for block in blocks]),
        run.figures / "compare.png",
        "each group's mean and interval",
    )
    page = write_page(
        run.path,
        "compare",
        title=title,
        overview=overview,
        notes=[*notes, *_general_notes(blocks)],
        blocks=[block_context(block) for block in blocks],
    )
    for block in blocks:
        show(block, terminal)
    for note in notes:
        terminal.say(note)
    terminal.say(f"report: {page} (also compare.csv, compare.md, compare.tex)")
    return summary


def compare_report(folder: Path, terminal: Terminal) -> None:
    """All files of a comparison again, from its folder alone.

    Raises:
        BadRequest: a folder of 0.1.0, which did not keep the runs' results.
    """
    file = RunFolder(folder).compared_runs
    if not file.is_file():
        raise BadRequest(f"{folder} was written by an older version and has no {file.name}; run schane compare again")
    content = read_json(file)
    write_comparison(read_blocks(content["blocks"]), content["notes"], RunFolder(folder), terminal)


def _general_notes(blocks: Sequence[Block]) -> list[str]:
    """What the numbers and the columns are; a block of one seed has a note of its own on its numbers."""
    notes = [SEEDS_NOTE] if any(len(block.seeds) > 1 for block in blocks) else []
    return [*notes, COLUMNS_NOTE] if any(block.differences for block in blocks) else notes


def show(block: Block, terminal: Terminal) -> None:
    """A block's table and sentences."""
    terminal.table(figures_table(heading(block), rows(block), columns(block)))
    for difference in block.differences:
        terminal.say(difference.sentence)
    for note in block.notes:
        terminal.say(note)


def heading(block: Block) -> str:
    """`cifar100, 20 images per class, 5 seeds, n = 10,000 images`."""
    n = len(block.seeds)
    return ", ".join([block.title, f"{n} seed{'s' if n > 1 else ''}", *([block.count] if block.count else [])])


def columns(block: Block) -> tuple[str, ...]:
    """The columns of a block's table."""
    shown = COLUMNS if block.differences else COLUMNS[:2]
    return tuple(name.format(metric=block.meaning.heading) for name in shown)


def rows(block: Block) -> list[tuple[str, ...]]:
    """The rows of a block's table: one per group, best first."""
    by_label = {difference.label: difference for difference in block.differences}
    return [_row(block, group, by_label.get(group.label)) for group in block.groups]


def _row(block: Block, group: Group, difference: Difference | None) -> tuple[str, ...]:
    metric, mean = block.meaning, plus_minus(block, group, block.metric)
    if not block.differences:
        return (group.label, mean)
    if difference is None:
        return (group.label, mean, "baseline", "", "")
    pair, change = difference.pair, metric.change(difference.pair.difference)
    if pair.ci95 is not None:
        change += f" ({metric.change_interval(pair.ci95)})"
    effect = "" if np.isnan(difference.effect_size) else f"{difference.effect_size:+.1f}"
    return (group.label, mean, change, "" if difference.p_adjusted is None else f"{difference.p_adjusted:.2g}", effect)


def plus_minus(block: Block, group: Group, name: str) -> str:
    """`31.25 ± 0.42`: a metric's mean and the half-width of its 95 % interval, in the metric's unit."""
    estimate = group.estimate(name, block.seeds)
    return registered(name).plus_minus(estimate.value, estimate.ci95)


def detail(block: Block) -> tuple[list[str], list[list[str]]]:
    """Every metric that all runs share, costs last: (columns, rows)."""
    names = shared_metrics(run for group in block.groups for run in group.runs.values())
    table = [[group.label, *(plus_minus(block, group, name) for name in names)] for group in block.groups]
    return ["group", *(registered(name).heading for name in names)], table


def block_context(block: Block) -> dict[str, Any]:
    """What the page shows of a block."""
    return {
        "heading": heading(block),
        "columns": columns(block),
        "rows": rows(block),
        "sentences": [difference.sentence for difference in block.differences],
        "notes": block.notes,
        "detail": detail(block),
    }


def panel(block: Block) -> dict[str, Any]:
    """What the picture shows of a block."""
    metric, points = block.meaning, []
    for group in block.groups:
        estimate = group.estimate(block.metric, block.seeds)
        interval = [metric.scale * bound for bound in estimate.ci95 or (np.nan, np.nan)]
        values = [metric.scale * value for value in group.values(block.metric, block.seeds)]
        points.append((group.label, metric.scale * estimate.value, interval, values))
    return {"title": heading(block), "label": metric.heading, "points": points}


def markdown(blocks: Sequence[Block]) -> str:
    """The blocks' tables in Markdown, each with its sentences."""
    parts = []
    for block in blocks:
        head = columns(block)
        lines = [f"### {escape_markdown(heading(block))}", "", _md(head), _md(["---", *["---:"] * (len(head) - 1)])]
        lines += [_md(row) for row in rows(block)]
        remarks = [*(difference.sentence for difference in block.differences), *block.notes]
        lines += ["", *(f"- {escape_markdown(remark)}" for remark in remarks)]
        parts.append("\n".join(lines).rstrip())
    return "\n\n".join([*parts, *_general_notes(blocks)]) + "\n"


def _md(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escape_markdown(cell) for cell in cells) + " |"


def latex(blocks: Sequence[Block]) -> str:
    """The blocks' tables in LaTeX (booktabs)."""
    parts = []
    for block in blocks:
        body = [" & ".join(map(escape_latex, row)) + r" \\" for row in rows(block)]
        head = " & ".join(map(escape_latex, columns(block))) + r" \\"
        layout = "l" + "r" * (len(columns(block)) - 1)
        lines = [
            f"% {one_line(heading(block))}",
            rf"\begin{{tabular}}{{{layout}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
        ]
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return re.sub(r"[\\&%$#_{}~^]", lambda match: _LATEX[match.group()], one_line(text)).replace("±", r"$\pm$")
