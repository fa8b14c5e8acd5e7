"""Which pages belong together: the run that a page came from, its siblings, and what was made of it."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schane_cli.errors import BadRequest
from schane_cli.run import RunFolder, write_text

PAGE = RunFolder(Path()).page.name
START, END = "<!-- navigation -->", "<!-- end of navigation -->"
MOST = 20  # links of a kind


@dataclass(frozen=True)
class Place:
    """A linked page: its relation to this one, its name, its address from here, and its folder."""

    kind: str
    name: str
    href: str
    folder: Path


def navigation(run: Path) -> list[Place]:
    """The pages next to that of `run`: the page above, the run it came from, its siblings, those made of it."""
    parent = run.absolute().parent
    above = [parent] if _kind(parent) else []
    beside = [folder for folder in _subfolders(parent) if folder != run.absolute()] if above else []
    below = [folder for folder in _subfolders(run.absolute()) if folder not in above]
    groups: list[tuple[str, Sequence[Path]]] = [
        ("part of", above),
        ("made from", [folder for folder in _origins(run) if folder not in above]),
        ("beside", beside),
        ("parts", below),
        ("made of it", [folder for folder in _descendants(run) if folder not in below]),
    ]
    places: dict[Path, Place] = {}
    for kind, folders in groups:
        for folder in list(folders)[:MOST]:
            places.setdefault(folder, Place(kind, _name(folder), _href(folder, run), folder))
    return list(places.values())


def link_back(run: Path, places: Sequence[Place], draw: Callable[[Sequence[Place]], str]) -> None:
    """Let the pages that `run` links to link to it: only the part between the two marks of each is rewritten."""
    for place in places:
        page, theirs = place.folder / PAGE, navigation(place.folder)
        if place.kind == "made from" and run.absolute() not in [one.folder for one in theirs]:
            theirs.append(Place("made of it", _name(run), _href(run, place.folder), run.absolute()))
        try:
            text = page.read_text()
            before, mark, rest = text.partition(START)
            _, end, after = rest.partition(END)
            if mark and end and (fresh := before + draw(theirs).strip() + after) != text:
                write_text(page, fresh)
        except OSError:  # a folder that cannot be written keeps its page
            continue


def _subfolders(folder: Path) -> list[Path]:
    return sorted(page.parent for page in folder.glob(f"*/{PAGE}"))


def _origins(run: Path) -> list[Path]:
    """The run folders of the checkpoints that a page was made from."""
    folders = (_run_of(Path(path)) for path in _checkpoints(_summary(run)))
    return list(dict.fromkeys(folder for folder in folders if (folder / PAGE).is_file()))


def _descendants(run: Path) -> list[Path]:
    """Pages below the same results folder whose checkpoint is of this run."""
    if not (run / "checkpoints").is_dir():
        return []
    parent = run.absolute().parent
    results = parent.parent.parent if _kind(parent) else parent.parent
    pages, here = sorted(results.glob(f"*/*/{PAGE}")), run.resolve()
    return [
        page.parent
        for page in pages
        if any(_run_of(Path(path)) == here for path in _checkpoints(_summary(page.parent)))
    ]


def _run_of(checkpoint: Path) -> Path:
    """The run folder of RUN/checkpoints/best.pt."""
    return checkpoint.resolve().parent.parent


def _checkpoints(summary: Any) -> Iterator[str]:
    if isinstance(summary.get("checkpoint"), str):
        yield summary["checkpoint"]
    for one in summary.get("checkpoints", []):
        path = one.get("checkpoint") if isinstance(one, dict) else one
        if isinstance(path, str):
            yield path


def _summary(folder: Path) -> dict[str, Any]:
    try:
        return RunFolder(folder).read_summary()
    except BadRequest:
        return {}


def _kind(folder: Path) -> str:
    """What a folder's page shows, by its summary; empty where it is not a run folder."""
    return str(_summary(folder).get("command", ""))


def _name(folder: Path) -> str:
    folder = folder.absolute()
    kind = _kind(folder)
    return folder.name if folder.name.startswith(kind) else f"{kind}: {folder.name}"


def _href(folder: Path, run: Path) -> str:
    return Path(os.path.relpath(folder / PAGE, run.absolute())).as_posix()
