"""Loading small image sets into memory, and leaving out images that cannot be read."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from schane_cli.errors import BadRequest
from schane_cli.images.decode import image_size, read_file
from schane_cli.images.imageset import Files, Images, ImageSet, KeptFiles, stack_if_even
from schane_cli.images.pixels import PixelMemory
from schane_cli.images.threads import in_threads

IN_MEMORY_BYTES = 2**30  # sets whose decoded images take less are kept in memory
AT_ONCE = 20_000  # images of a source: decoding as many takes some seconds, and tells before any work which are broken
_PEEK = 256  # image headers read to estimate what a set takes decoded
_SHOWN = 3
Advance = Callable[[int], None]  # called with how many more images are done


def in_memory_if_small(
    part: ImageSet, advance: Advance = lambda _: None, *, leave_out: bool = False, at_once: bool = True
) -> tuple[ImageSet, list[str]]:
    """(the set, decoded where it fits in memory; the ids of the images left out since they cannot be read).

    Without `at_once` each image of a set that fits is decoded when it is first read, and kept. A set of files that does
    not fit stays files, and so does one inside shards or tables; with `leave_out` each image is decoded now, to find
    those to leave out.

    Raises:
        BadRequest: images that cannot be read, unless `leave_out`; it names the first few.
    """
    small = isinstance(part.images, Files) and len(part) > 0 and fits_in_memory(part.images)
    if not small and not leave_out:
        return part, []
    if small and not at_once and not leave_out:
        return replace(part, images=_kept_files(part.images)), []
    decoded: list[np.ndarray] = []
    broken: dict[int, str] = {}
    total_bytes = 0
    for index, image in read_all(part):
        advance(1)
        if isinstance(image, str):
            broken[index] = image
            continue
        total_bytes += image.nbytes
        small = small and total_bytes <= IN_MEMORY_BYTES
        if small:
            decoded.append(image)
        elif not leave_out:
            return part, []
        else:
            decoded.clear()
    if broken and not leave_out:
        raise BadRequest(_sentence(list(broken.values()), part))
    kept = part.subset(np.setdiff1d(np.arange(len(part)), list(broken)), part.split) if broken else part
    return (replace(kept, images=stack_if_even(decoded)) if small else kept), [part.ids[index] for index in broken]


def as_kept_files(decoded: ImageSet, part: ImageSet) -> ImageSet:
    """A decoded set as files again, whose pixels stay in memory; `part` holds its images as files, and maybe others."""
    assert isinstance(part.images, Files)
    names = set(decoded.ids)
    rows = np.flatnonzero(np.fromiter((name in names for name in part.ids), dtype=bool, count=len(part)))
    pixels = [image for image in decoded.images if isinstance(image, np.ndarray)]
    memory = PixelMemory(len(rows), sum(image.size for image in pixels))
    for row, image in enumerate(pixels):
        memory.keep(row, image)
    files = part.images.take(rows)
    return replace(decoded, images=KeptFiles(files.folder, files.names, memory, np.arange(len(rows))))


def _kept_files(files: Images) -> Files:
    """The files with room for their pixels, where the system grants it."""
    assert isinstance(files, Files)
    try:
        memory = PixelMemory(len(files), IN_MEMORY_BYTES)
    except OSError:
        return files
    return KeptFiles(files.folder, files.names, memory, np.arange(len(files)))


def read_all(part: ImageSet, indices: np.ndarray | None = None) -> Iterator[tuple[int, np.ndarray | str]]:
    """Each image in order as (index, uint8 (H, W, 3)), or (index, why it cannot be read); read in a few threads."""

    def attempt(index: int) -> np.ndarray | str:
        try:
            return part.read(index).permute(1, 2, 0).numpy()
        except BadRequest as error:
            return str(error)

    order = range(len(part)) if indices is None else [int(index) for index in indices]
    return zip(order, in_threads(attempt, order), strict=True)


def _sentence(reasons: list[str], part: ImageSet) -> str:
    more = f", and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    advice = f"; `schane data check {part.dataset} --all` lists all, --set data.broken=leave_out leaves them out"
    return "; ".join(reasons[:_SHOWN]) + more + advice


def fits_in_memory(files: Files) -> bool:
    """Whether the decoded images take less than IN_MEMORY_BYTES, by some of the headers: an estimate."""
    chosen = np.unique(np.linspace(0, len(files) - 1, min(_PEEK, len(files)), dtype=np.int64))
    sizes = []
    for index in chosen:
        path = files[int(index)]
        try:
            width, height = image_size(read_file(path), str(path))
        except BadRequest:
            continue  # decoding will say what is wrong with it
        sizes.append(width * height * 3)
    return bool(np.mean(sizes or [0]) * len(files) <= IN_MEMORY_BYTES)
