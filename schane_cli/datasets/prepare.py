"""`schane data ls | info | prepare`: what each dataset is, what is on disk, and how it gets there."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from schane_cli.datasets.archives import beside, download, md5_of, unpack
from schane_cli.datasets.catalog import DATASETS, Archive, Dataset, find_dataset, state
from schane_cli.errors import BadRequest, SchaneError
from schane_cli.terminal import Terminal

_IMAGENET_FILES = {
    "train": ("ILSVRC2012_img_train.tar",),
    "val": ("ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"),
}


def overview(root: Path) -> list[dict[str, Any]]:
    """One row a dataset: name, title, images, classes, licence, and its state below `root`."""
    return [
        {
            "name": dataset.name,
            "title": dataset.title,
            "images": sum(dataset.counts.values()),
            "classes": dataset.classes,
            "licence": dataset.licence,
            "state": state(dataset, root),
        }
        for dataset in DATASETS.values()
    ]


def info(name: str, root: Path) -> dict[str, Any]:
    """All that is known of a dataset: licence, source, counts per split, state on disk, what to download or to do."""
    dataset = find_dataset(name)
    return {
        "name": dataset.name,
        "title": dataset.title,
        "licence": dataset.licence,
        "source": dataset.source,
        "classes": dataset.classes,
        "counts": dict(dataset.counts),
        "splits": dataset.splits,
        "made of": dataset.over,
        "folder": str(dataset.folder(root)),
        "state": state(dataset, root),
        "expects": [list(layout) for layout in dataset.layouts if layout],
        "download": dataset.download,
        "files": [{"url": archive.url, "md5": archive.md5} for archive in dataset.archives],
        "by hand": dataset.by_hand,
    }


def prepare(name: str, root: Path, terminal: Terminal) -> str:
    """Bring a dataset into `<root>/<name>`: download, verify, unpack; returns its state afterwards.

    What is there already is left alone; a stopped download goes on. A file put there by hand is verified and used.

    Raises:
        BadRequest: files that must be fetched by hand are not there; the message says which and whence.
        SchaneError: a download, a checksum or an archive failed. Nothing half done is left but a `.part` file.
    """
    dataset = find_dataset(name)
    if state(dataset, root) == "ready":
        terminal.say(f"{dataset.title} is ready in {dataset.folder(root)}")
        return "ready"
    if dataset.archives:
        terminal.say(f"{dataset.title}, {dataset.download}; licence: {dataset.licence}")
    try:
        for archive in dataset.archives:
            _bring(dataset, archive, root, terminal)
        if dataset.over is not None:
            prepare(dataset.over, root, terminal)
        if name == "imagenet1k":
            _unpack_imagenet(dataset, root, terminal)
    except OSError as error:
        raise SchaneError(f"{dataset.folder(root)} cannot be written: {error.strerror or error}") from None
    finally:
        _drop_empty(dataset.folder(root))
    found = state(dataset, root)
    if found != "ready":
        raise SchaneError(f"{dataset.title} is {found} in {dataset.folder(root)} after all its files were unpacked")
    terminal.say(f"{dataset.title} is ready in {dataset.folder(root)}")
    return found


def _bring(dataset: Dataset, archive: Archive, root: Path, terminal: Terminal) -> None:
    """One file of a dataset: fetched unless there, verified, unpacked beside its place, moved there whole."""
    folder = dataset.folder(root) / archive.below
    if all((folder / name).exists() for name in archive.leaves):
        return
    path = folder / archive.file
    if path.exists():
        _verify(path, archive.md5, terminal)
    else:
        terminal.say(f"downloading {archive.url}")
        download(archive.url, path, archive.md5, terminal)
    if archive.plain:
        return
    with beside(folder) as work:
        unpack(path, work, terminal)
        _move_out(work, folder, archive)


def _drop_empty(folder: Path) -> None:
    """A dataset of which nothing came leaves no folder."""
    for place in (*(path for path in folder.glob("*") if path.is_dir()), folder):
        with suppress(OSError):
            place.rmdir()  # refuses unless it is empty


def _move_out(work: Path, folder: Path, archive: Archive) -> None:
    for inside, outside in archive.renames:
        if (work / inside).exists():
            (work / inside).rename(work / outside)
    lacking = [name for name in archive.leaves if not (work / name).exists()]
    if lacking:
        raise SchaneError(f"archive {folder / archive.file} does not hold {lacking[0]}")
    for name in archive.leaves:
        if not (folder / name).exists():
            (work / name).rename(folder / name)


def _verify(path: Path, md5: str, terminal: Terminal) -> None:
    found = md5_of(path, terminal)
    if found != md5:
        raise SchaneError(
            f"{path} has md5 {found}, not {md5}: it is incomplete or another version; remove it and run this again"
        )


def _unpack_imagenet(dataset: Dataset, root: Path, terminal: Terminal) -> None:
    """ILSVRC-2012's archives, put there by hand, into class folders: train is a tar of one tar a class."""
    folder = dataset.folder(root)
    for part, files in _IMAGENET_FILES.items():
        if (folder / part).is_dir():
            continue
        lacking = [file for file in files if not (folder / file).is_file()]
        if lacking:
            raise BadRequest(f"{folder / lacking[0]} is not there: {dataset.by_hand}")
        for file in files:
            _verify(folder / file, _imagenet_md5(file), terminal)
        with beside(folder) as work:
            (_unpack_train if part == "train" else _unpack_val)(folder, work, terminal)
            (work / part).rename(folder / part)


def _imagenet_md5(file: str) -> str:
    from torchvision.datasets.imagenet import ARCHIVE_META

    return dict(ARCHIVE_META.values())[file]


def _unpack_train(folder: Path, work: Path, terminal: Terminal) -> None:
    unpack(folder / "ILSVRC2012_img_train.tar", work / "archives", terminal)
    archives = sorted((work / "archives").glob("n*.tar"))
    quiet = Terminal(quiet=True)
    with terminal.task("unpacking classes", len(archives), unit="classes") as task:
        for archive in archives:
            unpack(archive, work / "train" / archive.stem, quiet)
            archive.unlink()
            task.advance()


def _unpack_val(folder: Path, work: Path, terminal: Terminal) -> None:
    """The val images in order of name are of the classes that the development kit lists; torchvision reads that."""
    from torchvision.datasets.imagenet import load_meta_file, parse_devkit_archive

    parse_devkit_archive(str(work), str((folder / "ILSVRC2012_devkit_t12.tar.gz").resolve()))
    wnids = load_meta_file(str(work))[1]
    unpack(folder / "ILSVRC2012_img_val.tar", work / "flat", terminal)
    images = sorted((work / "flat").iterdir())
    if len(images) != len(wnids):
        raise SchaneError(f"{folder} has {len(images)} val images and labels for {len(wnids)}")
    for image, wnid in zip(images, wnids, strict=True):
        place = work / "val" / wnid
        place.mkdir(parents=True, exist_ok=True)
        shutil.move(image, place / image.name)
