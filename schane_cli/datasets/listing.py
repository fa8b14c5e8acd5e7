"""Which files below a folder are pictures: hidden and system folders are not read, what is skipped is counted."""

import json
import os
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from schane_cli.datasets.remembered import remembered
from schane_cli.errors import BadRequest
from schane_cli.images.decode import image_suffixes, printable, starts_as_image, suffix_hint
from schane_cli.images.imageset import Names

# Folders that file systems and tools leave behind: Synology, macOS, Windows, QNAP, ext4.
_SYSTEM_FOLDERS = frozenset(
    {"@eadir", "@tmp", "__macosx", "__pycache__", "#recycle", "#snapshot", "$recycle.bin"}
    | {"system volume information", "lost+found"}
)
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})
_SYSTEM_NAMES = _SYSTEM_FOLDERS | _SYSTEM_FILES
_SETTLED_NANOSECONDS = 2 * 10**9  # a folder changed more recently may change again within the same tick of its clock
_SHOWN = 6
_SHOWN_MISSING = 3


@dataclass
class Listing:
    """The pictures in a folder and below it, and the other files.

    `names` are paths relative to a base folder, in alphabetical order; `skipped` counts the other files by suffix;
    `folders` are those that were read, with the time of each one's last change in nanoseconds.
    """

    names: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    folders: dict[str, int] = field(default_factory=dict)


@dataclass
class ClassListing:
    """The pictures of several class folders: their paths one class after another, and how many each has."""

    names: Names
    counts: np.ndarray
    skipped: Counter[str]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that the user does not see: `.…`, `@eaDir`, `__MACOSX` and the like."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def list_images(folder: Path, base: Path) -> Listing:
    """The pictures in `folder` and below it, at any depth, by their paths relative to `base`."""
    listing = Listing()
    for name, skipped_as in _walk(folder, base, listing.folders):
        if skipped_as is None:
            listing.names.append(name)
        else:
            listing.skipped[skipped_as] += 1
    listing.names.sort()
    return listing


def list_classes(folder: Path, classes: Sequence[str], base: Path, root: Path | None) -> ClassListing:
    """The pictures of the class folders `classes` of `folder`, by their paths relative to `base`.

    Those of a large set are remembered below `root`, until one of the folders changes.

    Raises:
        BadRequest: a class folder without pictures.
    """
    if root is None:
        return _class_listing(_listed_classes(folder, classes, base))
    name = f"files {os.path.realpath(folder)} below {base}"
    state = "\0".join([*sorted(image_suffixes()), *classes])
    arrays = remembered(root, name, state, lambda: _listed_classes(folder, classes, base), holds=_are_unchanged)
    return _class_listing(arrays)


def _listed_classes(folder: Path, classes: Sequence[str], base: Path) -> dict[str, np.ndarray]:
    packed, counts = [], []
    folders: dict[str, int] = {}
    skipped: Counter[str] = Counter()
    for name in classes:
        listing = list_images(folder / name, base)
        if not listing.names:
            raise BadRequest(f"class folder {printable(str(folder / name))} holds no images{_instead(listing)}")
        packed.append(Names(listing.names).packed)
        counts.append(len(listing.names))
        skipped += listing.skipped
        folders |= listing.folders
    return {
        "names": np.concatenate(packed),
        "counts": np.array(counts),
        "skipped": np.frombuffer(json.dumps(skipped).encode(), dtype=np.uint8),
        "folders": Names(folders).packed,
        "changed": np.array([*folders.values()]),
        "listed": np.array([time.time_ns()]),
    }


def _class_listing(arrays: dict[str, np.ndarray]) -> ClassListing:
    return ClassListing(Names(arrays["names"]), arrays["counts"], Counter(json.loads(arrays["skipped"].tobytes())))


def _are_unchanged(arrays: dict[str, np.ndarray]) -> bool:
    """Whether the folders of a listing are as they were, and had been so for a moment when they were listed."""
    changed = arrays["changed"]
    if changed.max() > arrays["listed"][0] - _SETTLED_NANOSECONDS:
        return False
    try:
        return all(
            os.stat(name).st_mtime_ns == then for name, then in zip(Names(arrays["folders"]), changed, strict=True)
        )
    except OSError:
        return False


def _instead(listing: Listing) -> str:
    if listing.skipped:
        return f": {'; '.join(skipped_note(listing.skipped, 'it'))}"
    return f" ({', '.join(sorted(image_suffixes()))})"


def _walk(folder: Path, base: Path, folders: dict[str, int] | None = None) -> Iterator[tuple[str, str | None]]:
    """Each visible file below a folder: its path relative to `base`, and None for a picture, else what it is.

    The folders that were read go into `folders`, with the time of their last change. Linked folders are followed, each
    real folder once, so that a loop of links ends. Pipes and devices are skipped.
    """
    seen: set[str] = set()
    top = os.path.realpath(folder)
    pending = [(str(folder), os.path.relpath(folder, base).replace(os.sep, "/"))]
    while pending:
        place, prefix = pending.pop()
        real = os.path.realpath(place)
        if real in seen or top.startswith(real.rstrip(os.sep) + os.sep):
            continue  # a link to a folder already read, or back up
        seen.add(real)
        try:
            if folders is not None:
                folders[place] = os.stat(place).st_mtime_ns
            entries = sorted(_visible(place), key=lambda entry: entry.name, reverse=True)
        except OSError:
            yield prefix, "unreadable folders"
            continue
        for entry in entries:
            name = entry.name if prefix == "." else f"{prefix}/{entry.name}"
            if _is_folder(entry):
                pending.append((entry.path, name))
            else:
                yield name, skipped_suffix(entry)


def visible_folders(folder: Path) -> list[str]:
    """The names of the sub-folders that are not hidden, in alphabetical order."""
    return sorted(entry.name for entry in _visible(str(folder)) if _is_folder(entry))


def holds_images(folder: Path) -> bool:
    """Whether pictures lie directly in a folder."""
    return any(not _is_folder(entry) and skipped_suffix(entry) is None for entry in _visible(str(folder)))


def holds_class_folders(folder: Path) -> bool:
    """Whether a folder has sub-folders with pictures in them, at any depth."""
    return any("/" in name and skipped_as is None for name, skipped_as in _walk(folder, folder))


def skipped_note(skipped: Counter[str], where: str) -> list[str]:
    """A sentence on the files of a source that were not read; none where there are none."""
    if not skipped:
        return []
    shown = [f"{count:,} {suffix}{suffix_hint(suffix.lower())}" for suffix, count in skipped.most_common(_SHOWN)]
    more = f", {sum(skipped.values()) - sum(n for _, n in skipped.most_common(_SHOWN)):,} more"
    text = ", ".join(shown) + (more if len(skipped) > _SHOWN else "")
    return [f"files of {where} that are not read as pictures: {text}"]


def present_files(folder: Path, names: Sequence[str]) -> list[str]:
    """The names as the files are really called: a path may have backslashes or another Unicode normalisation, or go
    without the suffix of the only picture of its name.

    Folders are listed once each, since asking for a million files takes minutes.

    Raises:
        BadRequest: files that are not there; the first few are named.
    """
    contents: dict[str, dict[str, str]] = {}
    actual = [_actual_name(folder, name, contents) for name in names]
    missing = [name for name, real in zip(names, actual, strict=True) if real is None]
    if missing:
        shown = ", ".join(printable(str(folder / name)) for name in missing[:_SHOWN_MISSING])
        more = f", as are {len(missing) - _SHOWN_MISSING:,} more" if len(missing) > _SHOWN_MISSING else ""
        verb = "is" if len(missing) == 1 else "are"
        raise BadRequest(f"{shown} {verb} missing{more} of {len(names):,} listed files")
    return [name for name in actual if name is not None]


def _actual_name(folder: Path, name: str, contents: dict[str, dict[str, str]]) -> str | None:
    for candidate in dict.fromkeys([name, os.path.normpath(name.replace("\\", "/"))]):
        for form in dict.fromkeys([candidate, *(unicodedata.normalize(form, candidate) for form in ("NFC", "NFD"))]):
            parent, _, last = form.rpartition("/")
            if parent not in contents:
                place = folder / (parent or ("/" if form.startswith("/") else "."))
                present = os.listdir(place) if place.is_dir() else []
                contents[parent] = _by_stem(present)
                contents[parent] |= {unicodedata.normalize("NFC", entry): entry for entry in present}
                contents[parent] |= {entry: entry for entry in present}
            real = contents[parent].get(last) or contents[parent].get(unicodedata.normalize("NFC", last))
            if real is not None:
                return f"{parent}/{real}" if "/" in form else real
    return None


def _by_stem(entries: Sequence[str]) -> dict[str, str]:
    """The pictures by their names without suffix, where two do not share one."""
    pairs = [
        (stem, stem + suffix) for stem, suffix in map(os.path.splitext, entries) if suffix.lower() in image_suffixes()
    ]
    count = Counter(stem for stem, _ in pairs)
    return {stem: entry for stem, entry in pairs if count[stem] == 1}


def skipped_suffix(entry: os.DirEntry[str]) -> str | None:
    """None for a picture; else what to count the file under: its suffix as written, or what it is."""
    suffix = os.path.splitext(entry.name)[1]
    try:
        if not entry.is_file():
            return "broken links" if entry.is_symlink() and not os.path.exists(entry.path) else "pipes or devices"
    except OSError:
        return "unreadable"
    if suffix.lower() in image_suffixes():
        return None
    if suffix:
        return suffix
    try:
        return None if starts_as_image(_first_bytes(entry.path)) else "without suffix"
    except OSError:
        return "unreadable"


def _first_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(16)


def _visible(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not is_hidden(entry.name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
