"""Pictures without labels, as files, folders and patterns name them: what a trained model is asked about."""

import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from schane_cli.datasets.addresses import refuse_address
from schane_cli.datasets.listing import list_images, skipped_note
from schane_cli.errors import BadRequest
from schane_cli.images.decode import read_image
from schane_cli.images.imageset import Files, ImageSet, Names

_NO_LABEL = -1
_PLACEHOLDER = (3, 8, 8)


@dataclass(frozen=True)
class UnlabelledImages(ImageSet):
    """Files that are read when they are needed; their labels are all -1.

    A file that cannot be read stops nothing: it reads as black, and `unreadable` (bool, shape (n,), shared
    with loader processes) has its place set from then on; `reason` says why.
    """

    unreadable: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool), compare=False)

    def read(self, index: int) -> torch.Tensor:
        """Image `index` as uint8 (3, H, W), black where it cannot be read."""
        try:
            return super().read(index)
        except BadRequest:
            self.unreadable[index] = True
            return torch.zeros(_PLACEHOLDER, dtype=torch.uint8)

    def reason(self, index: int) -> str:
        """Why image `index` cannot be read; empty where it can."""
        path = self.images[index]
        try:
            read_image(path if isinstance(path, Path) else Path(self.ids[index]))
        except BadRequest as error:
            return str(error)
        return ""


def unlabelled(paths: Sequence[str | Path]) -> tuple[UnlabelledImages, list[str]]:
    """(the pictures that `paths` name, sentences on what was skipped).

    A path is a file of any suffix, a folder (read at any depth, without hidden folders, in alphabetical order), or a
    pattern such as `new/*.jpg` or `new/**/*.png`. The ids are the paths as given, each file once.

    Raises:
        BadRequest: a path or pattern that names nothing, an address, no picture at all.
    """
    names: list[str] = []
    skipped: Counter[str] = Counter()
    for path in paths:
        for place in _expanded(str(path)):
            if not place.is_dir():
                names.append(str(place))
                continue
            listing = list_images(place, place)
            names += [str(place / name) for name in listing.names]
            skipped += listing.skipped
    names = list(dict.fromkeys(names))
    notes = skipped_note(skipped, ", ".join(map(str, paths[:3])))
    if not names:
        raise BadRequest(
            f"no pictures in {', '.join(map(str, paths)) or 'nothing'}{': ' if notes else ''}{''.join(notes)}"
        )
    files = Files(Path(), Names(names))
    labels = np.full(len(names), _NO_LABEL, dtype=np.int64)
    unreadable = torch.zeros(len(names), dtype=torch.bool).share_memory_()
    ids = files.names.printable()
    return UnlabelledImages("files", "unlabelled", files, labels, (), ids, unreadable=unreadable), notes


def _expanded(path: str) -> list[Path]:
    """The files and folders that a path or pattern names."""
    refuse_address(path, "predictions are made for")
    place = Path(path).expanduser()
    if place.exists():
        return [place]
    matches = [Path(match) for match in sorted(glob.glob(str(place), recursive=True))]
    if not matches:
        raise BadRequest(f"{path} does not exist" if not glob.has_magic(path) else f"nothing matches {path}")
    return [match for match in matches if match.is_file()] or matches
