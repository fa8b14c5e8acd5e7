"""`schane data ls | info | prepare`: what each dataset is, what is on disk, and how it gets there."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from schane_cli.datasets.archives import beside, download, unpack, verify
from schane_cli.datasets.catalog import KINDS, Archive, Dataset, all_datasets, find_dataset, state
from schane_cli.errors import SchaneError
from schane_cli.recipe import DataRecipe
from schane_cli.terminal import Terminal


def overview(root: Path) -> list[dict[str, Any]]:
    """One row per dataset, also of installed packages: name, title, images, classes, licence, state below `root`."""
    return [
        {
            "name": dataset.name,
            "title": dataset.title,
            "images": sum(dataset.counts.values()),
            "classes": dataset.classes,
            "licence": dataset.licence,
            "state": state(dataset, root),
        }
        for dataset in all_datasets()[0]
    ]


def plugin_failures() -> list[str]:
    """A sentence for each installed package that fails to add its dataset."""
    return all_datasets()[1]


def info(name: str, root: Path) -> dict[str, Any]:
    """Everything known about a dataset: licence, source, counts per split, state on disk, what to download or to do."""
    kind = name.partition(":")[0].partition("/")[0]
    if kind in KINDS:
        return _source_info(kind, name)
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


def _source_info(kind: str, name: str) -> dict[str, Any]:
    """What is known about `folder:PATH` and the like: how it is written, and what lies there where a place is named."""
    known: dict[str, Any] = {"name": name, "title": KINDS[kind], "by hand": f"write {KINDS[kind].partition(',')[0]}"}
    if name.rstrip(":/") == kind:
        return known
    from schane_cli.datasets.load import listed_parts

    parts = listed_parts(DataRecipe(dataset=name))
    first = next(iter(parts.values()))
    counts = {split: len(part) for split, part in parts.items()}
    return {
        **known,
        "classes": len(first.class_names),
        "counts": counts,
        "splits": "; ".join(parts.notes) or "as its folders, columns or shards name them",
        "state": "ready",
    }


def prepare(name: str, root: Path, terminal: Terminal) -> str:
    """Bring a dataset into `<root>/<name>`: download, verify, unpack; returns its state afterwards.

    What is already there is left alone; a stopped download resumes. A file put there by hand is verified and used.

    Raises:
        BadRequest: files that must be fetched by hand are not there; the message says which and where from.
        SchaneError: a download, a checksum or an archive failed. Only a `.part` file is left behind.
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
        dataset.unpack_by_hand(root, terminal)
    except OSError as error:
        raise SchaneError(f"{dataset.folder(root)} cannot be written: {error.strerror or error}") from None
    finally:
        _drop_empty(dataset.folder(root))
    now = state(dataset, root)
    if now != "ready":
        raise SchaneError(f"{dataset.title} is {now} in {dataset.folder(root)} after all its files were unpacked")
    terminal.say(f"{dataset.title} is ready in {dataset.folder(root)}")
    return now


def _bring(dataset: Dataset, archive: Archive, root: Path, terminal: Terminal) -> None:
    """One file of a dataset: fetched unless there, verified, unpacked beside its place, moved there when complete."""
    folder = dataset.folder(root) / archive.below
    if all((folder / name).exists() for name in archive.leaves):
        return
    path = folder / archive.file
    if path.exists():
        verify(path, archive.md5, terminal)
    else:
        terminal.say(f"downloading {archive.url}")
        download(archive.url, path, archive.md5, terminal)
    if archive.plain:
        return
    with beside(folder) as work:
        unpack(path, work, terminal)
        _move_out(work, folder, archive)


def _drop_empty(folder: Path) -> None:
    """A dataset of which nothing arrived leaves no folder."""
    for place in (*(path for path in folder.glob("*") if path.is_dir()), folder):
        with suppress(OSError):
            place.rmdir()  # refuses unless it is empty


def _move_out(work: Path, folder: Path, archive: Archive) -> None:
    for inside, outside in archive.renames:
        if (work / inside).exists():
            (work / inside).rename(work / outside)
    missing = [name for name in archive.leaves if not (work / name).exists()]
    if missing:
        raise SchaneError(f"archive {folder / archive.file} does not hold {missing[0]}")
    for name in archive.leaves:
        if not (folder / name).exists():
            (work / name).rename(folder / name)
