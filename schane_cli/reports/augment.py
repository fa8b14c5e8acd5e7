"""The picture of `schane augment`: a row for each image, a column for each view and epoch."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from schane_cli.commands.augment import Views
from schane_cli.errors import BadRequest
from schane_cli.reports.plots import save
from schane_cli.terminal import Terminal, visible

MAX_VIEWS = 4  # drawn of an image: more would be too small to see
_NAME = 18  # letters of a class


def augment_picture(views: Views, path: Path, title: str, terminal: Terminal) -> Path:
    """Draw the grid to `path` (png, pdf or svg); BadRequest where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(grid(views, title), path)
    except (OSError, ValueError) as error:  # matplotlib's for a suffix that it does not know
        raise BadRequest(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None
    terminal.say(f"views     {path}")
    return path


def grid(views: Views, title: str) -> Figure:
    """The image as it is, then each view in its epochs."""
    n_images, n_views, n_epochs = views.views.shape[:3]
    n_views = min(n_views, MAX_VIEWS)
    columns = 1 + n_views * n_epochs
    figure = Figure(figsize=(1.1 * columns, 1.18 * n_images + 0.6))
    axes = figure.subplots(n_images, columns, squeeze=False)
    for row, image in enumerate(views.images):
        shown = [image, *views.views[row, :n_views].flatten(0, 1)]
        for axis, picture in zip(axes[row], shown, strict=True):
            _draw(axis, picture)
        axes[row, 0].set_ylabel(visible(views.class_names[row])[:_NAME], fontsize=7)
    names = [f"view {view + 1}\nepoch {epoch + 1}" for view in range(n_views) for epoch in range(n_epochs)]
    for axis, name in zip(axes[0], ["image", *names], strict=True):
        axis.set_title(name, fontsize=7, fontweight="normal")
    figure.suptitle(f"{title}, seed {views.seed}", fontsize=9, fontweight="bold")
    figure.tight_layout(pad=0.3, rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    return figure


def _draw(axis: object, picture: torch.Tensor) -> None:
    axis.imshow(picture.permute(1, 2, 0).numpy())  # type: ignore[attr-defined]
    axis.set_xticks([])  # type: ignore[attr-defined]
    axis.set_yticks([])  # type: ignore[attr-defined]
