"""The page and the final table of `schane embed --images`."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from schane_cli.reports import plots
from schane_cli.reports.pages import Picture, data_url, drawn, write_page
from schane_cli.run import RunFolder
from schane_cli.spreadsheets import read_csv
from schane_cli.terminal import Terminal, figures_table


def unlabelled_report(run: Path, terminal: Terminal) -> None:
    """Map, near-duplicates and outliers of images without labels."""
    folder = RunFolder(run)
    summary = folder.read_summary()
    points, shown = read_csv(folder.points_table), pd.read_parquet(folder.shown_table)
    names = {"tsne": f"t-SNE, perplexity {summary['perplexity'] or 0:g}", "umap": "UMAP"}
    how = names[summary["projection"]]
    rows = [
        ("images", f"{summary['n']:,}"),
        ("could not be read", f"{summary['unreadable']:,}"),
        ("pairs of near-duplicates", f"{summary['duplicate_pairs']:,}"),
        ("outliers", f"{summary['outliers']:,}"),
    ]
    columns = ("images without labels", "count")
    page = write_page(
        run,
        "embed_unlabelled",
        title=f"{summary['n']:,} images without labels",
        columns=columns,
        rows=rows,
        notes=[
            "The images have no labels: colours are predicted classes, and no metric compares classes.",
            *summary["notes"],
        ],
        map=drawn(scatter(points, how), folder.figures / "map.png", f"map of the images by {how}"),
        duplicates=_pairs(shown[shown.kind == "duplicate"]),
        outliers=_pairs(shown[shown.kind == "outlier"]),
    )
    terminal.table(figures_table("embedding", rows, columns))
    terminal.say(f"table: {folder.embeddings_table()}")
    terminal.say(f"page:  {page}")


def scatter(points: pd.DataFrame, how: str) -> Figure:
    """The map, coloured by predicted class."""
    names, labels = np.unique(points.prediction.astype(str), return_inverse=True)
    axes = ("first axis", "second axis")
    return plots.embedding_scatter([(how, points[["x", "y"]].to_numpy())], labels, names.tolist(), axes)


def _pairs(rows: pd.DataFrame) -> list[list[Picture]]:
    """The one or two pictures of each row, with their files below."""
    groups: list[list[Picture]] = []
    for row in rows.to_dict("records"):
        both: list[tuple[Any, Any]] = [(row["other_path"], row["other_picture"]), (row["path"], row["picture"])]
        groups.append([Picture(data_url(data, "webp"), str(path), caption=str(path)) for path, data in both if data])
    return groups
