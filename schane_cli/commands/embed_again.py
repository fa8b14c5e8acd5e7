"""What `schane embed` measured, read back from its run folder, so that its page can be made again."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from schane_cli.commands.embed import SEED, Embedded, EmbedOptions, View
from schane_cli.commands.embed_tables import NO_PICTURE
from schane_cli.errors import BadRequest
from schane_cli.images.imageset import ImageSet, Names
from schane_cli.metrics import embedding as quality
from schane_cli.metrics.projection2d import principal_components
from schane_cli.run import RunFolder
from schane_cli.spreadsheets import read_csv
from schane_cli.terminal import Terminal


def read_embedded(path: Path, terminal: Terminal) -> Embedded:
    """The views of a finished `schane embed`: vectors and t-SNE as they were saved, metrics computed again.

    The images are not in the folder: their set holds grey squares.

    Raises:
        BadRequest: the embeddings are not in the folder (the run was made from tables that lie elsewhere).
    """
    run = RunFolder(path)
    summary = run.read_summary()
    names = [one["name"] for one in summary["checkpoints"]]
    files = [run.embeddings_table(name if len(names) > 1 else None) for name in names]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise BadRequest(f"{missing} is not there, so the page cannot be made again; run schane embed once more")
    points = read_csv(run.points_table, dtype={"checkpoint": str, "id": str})
    tables = [_shown(pd.read_parquet(file), points) for file in files]
    class_names = _class_names(tables)
    images = ImageSet(
        summary["dataset"],
        summary["split"],
        np.tile(NO_PICTURE, (len(tables[0]), 1, 1, 1)),
        np.array(tables[0]["label"]),
        class_names,
        Names(tables[0]["id"]),
    )
    views = []
    with terminal.task("metrics", len(names), "checkpoint") as task:
        for origin, table in zip(summary["checkpoints"], tables, strict=True):
            own = points[points["checkpoint"] == origin["name"]]
            views.append(_view(origin, table, own, class_names))
            task.advance()
    options = EmbedOptions(split=summary["split"], layer=summary["layer"], points=summary["n"])
    differences = [quality.compare_embeddings(views[0].analysis, view.analysis) for view in views[1:]]
    return Embedded(run, options, images, summary["n_images"], views, differences, summary)


def _shown(table: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table of embeddings whose images are points of the picture."""
    return table[table["id"].isin(set(points["id"]))].reset_index(drop=True)


def _class_names(tables: list[pd.DataFrame]) -> tuple[str, ...]:
    """The classes in the order of their labels; one without images here takes a free place, or the last."""
    known = dict(zip(tables[0]["label"], tables[0]["class_name"], strict=True))
    others = sorted({name for table in tables for name in table["prediction"]} - set(known.values()))
    free = (number for number in range(len(known) + len(others)) if number not in known)
    known |= dict(zip(free, others, strict=False))
    return tuple(known.get(number, "") for number in range(max(known) + 1))


def _view(origin: dict[str, Any], table: pd.DataFrame, points: pd.DataFrame, class_names: tuple[str, ...]) -> View:
    vectors = np.stack(table["vector"].to_list()).astype(np.float32)
    index = {name: number for number, name in enumerate(class_names)}
    return View(
        name=origin["name"],
        origin={"path": origin["checkpoint"], **origin},
        vectors=vectors,
        prediction=np.array([index[name] for name in table["prediction"]]),
        confidence=table["confidence"].to_numpy(np.float32),
        analysis=quality.analyse_embeddings(vectors, np.array(table["label"]), seed=SEED),
        tsne=points[["tsne_x", "tsne_y"]].to_numpy(np.float32),
        pca=principal_components(vectors),
        costs={},
    )
