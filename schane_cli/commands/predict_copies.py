"""`--copy-to`: the predicted images sorted into a folder for each class, as copies or links; nothing is ever moved."""

import os
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from schane_cli.errors import BadRequest, SchaneError
from schane_cli.images.imageset import Files, ImageSet
from schane_cli.terminal import Terminal


@dataclass(frozen=True)
class Copies:
    """Where the copies go, how, and the file names that several images share: those are named by their folders too."""

    target: Path
    link: bool
    base: Path
    shared_names: frozenset[str]
    resuming: bool

    def place(self, path: str, prediction: str) -> Path:
        """The copy of an image: TARGET/prediction/name."""
        name = os.path.basename(path)
        if name in self.shared_names:
            name = os.path.relpath(os.path.abspath(path), self.base).replace(os.sep, "_")
        place = self.target / folder_name(prediction) / name
        if self.resuming:
            return place
        number = 2
        while os.path.lexists(place):
            place = place.with_name(f"{Path(name).stem}-{number}{Path(name).suffix}")
            number += 1
        return place


def folder_name(class_name: str) -> str:
    """A class's name as the name of one folder."""
    name = re.sub(r"[/\\\0]", "_", class_name)
    return name if name.strip(".") else "_" * max(len(name), 1)


def prepare_copies(target: Path, images: ImageSet, *, link: bool, resuming: bool) -> Copies:
    """Check and make the target folder.

    Raises:
        BadRequest: the images are not files, or the target is not empty, lies in the folder that it sorts, or cannot be
            written.
    """
    if not isinstance(images.images, Files):
        raise BadRequest(f"--copy-to sorts image files; those of {images.dataset} lie inside larger files")
    target = target.expanduser()
    base = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in images.images])
    if target.resolve().is_relative_to(Path(base).resolve()):
        raise BadRequest(f"--copy-to {target} lies in the folder that it sorts ({base}); choose a folder outside of it")
    if not resuming and target.is_dir() and any(target.iterdir()):
        raise BadRequest(f"--copy-to {target} is not empty; choose a new folder, so that nothing is overwritten")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRequest(f"--copy-to {target} cannot be made: {error.strerror or error}") from None
    if not os.access(target, os.W_OK):
        raise BadRequest(f"--copy-to {target} cannot be written: permission denied")
    counts = Counter(os.path.basename(name) for name in images.ids)
    shared = frozenset(name for name, count in counts.items() if count > 1)
    return Copies(target, link, Path(base), shared, resuming)


def copy_images(table: Path, copies: Copies, terminal: Terminal) -> None:
    """Copy or link every image of predictions.parquet; SchaneError where that fails (no space)."""
    file = pq.ParquetFile(table)
    with terminal.task("linking" if copies.link else "copying", file.metadata.num_rows, "img") as task:
        for batch in file.iter_batches(columns=["path", "prediction"]):
            for row in batch.to_pylist():
                _copy(row["path"], copies.place(row["path"], row["prediction"]), copies.link)
                task.advance()


def _copy(source: str, place: Path, link: bool) -> None:
    try:
        place.parent.mkdir(exist_ok=True)
        if link:
            place.unlink(missing_ok=True)
            place.symlink_to(os.path.abspath(source))
        else:
            shutil.copy2(source, place)
    except OSError as error:
        raise SchaneError(f"{source} cannot be put at {place}: {error.strerror or error}") from None
