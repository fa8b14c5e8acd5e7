"""What a dataset is: its facts, where its files lie, and which are there. One class per dataset, registered once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from schane_cli.errors import BadRequest
from schane_cli.terminal import Terminal

if TYPE_CHECKING:
    from schane_cli.images.imageset import ImageSet

CARVED = "val is carved out of train by the recipe's rule (data.val_fraction, data.split_seed)"
VAL_IS_TEST = f"the official val split is test, the only one with public labels; {CARVED}"


@dataclass(frozen=True)
class Archive:
    """A file at its source, its md5, and the entries it leaves in the dataset's folder.

    `renames` maps an entry of the archive to the name that readers expect; `below` is the sub-folder of the dataset's
    folder that it is unpacked in; a `plain` file is kept as it is.
    """

    url: str
    md5: str
    leaves: tuple[str, ...]
    below: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    plain: bool = False

    @property
    def file(self) -> str:
        """Its file name."""
        return self.url.rpartition("/")[2]


class Dataset:
    """One dataset: a subclass states its facts and reads its files.

    `counts` are images per official split (`all` where the source has none), as the source states them. `layouts` are
    the ways its files may lie in its folder: glob patterns that all match. `over` is the dataset whose images it is
    made of. An installed package adds a dataset by an entry point of the group `schane.datasets`.
    """

    name: str = ""
    title: str = ""
    licence: str = "not stated"
    source: str = ""
    classes: int = 0
    counts: Mapping[str, int] = {}
    splits: str = "as its package delivers them; what is missing is carved out of train by the recipe's rule"
    layouts: tuple[tuple[str, ...], ...] = ()
    archives: tuple[Archive, ...] = ()
    download: str = ""
    by_hand: str = ""
    over: str | None = None
    fewshot: bool = False
    images_per_class: int | None = None  # as published, of a few-shot set

    def folder(self, root: Path) -> Path:
        """Where its files lie: `<root>/<name>`, or the root itself where they lie directly in it."""
        place = root.expanduser()
        below = place / self.name
        straight = not below.is_dir() and any(layout and _matches_all(place, layout) for layout in self.layouts)
        return place if straight else below

    def read(self, root: Path) -> Mapping[str, "ImageSet"]:
        """Its image sets by split, as the source defines them: some of train, val and test, or `all`.

        Raises:
            BadRequest: missing or incomplete, or files that contradict each other.
        """
        raise NotImplementedError

    def unpack_by_hand(self, root: Path, terminal: Terminal) -> None:
        """Unpack what the user had to fetch; nothing for most."""

    def fewshot_notes(self, parts: Mapping[str, "ImageSet"]) -> list[str]:
        """What to know about the few-shot classes that were read."""
        return []

    def class_halves(self, count: int) -> dict[str, range]:
        """The classes, by number, of the few-shot parts of a set that has no published ones: the two halves."""
        return {"train": range(count // 2), "test": range(count // 2, count)}


DATASETS: dict[str, Dataset] = {}
Kind = TypeVar("Kind", bound=type[Dataset])


def register(kind: Kind) -> Kind:
    """Register a dataset under its name; a decorator of its class."""
    DATASETS[kind.name] = kind()
    return kind


def class_list(name: str) -> dict[str, tuple[str, ...]]:
    """The class names of each split, from `class_lists/<name>.txt`: {"train": (...), "val": (...), "test": (...)}."""
    text = (Path(__file__).parent / "class_lists" / f"{name}.txt").read_text()
    lists: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            lists[(split := line.strip("[]"))] = ()
        elif line and not line.startswith("#"):
            lists[split] += tuple(line.split())
    return lists


def matches(folder: Path, pattern: str) -> bool:
    """Whether something in `folder` matches a glob pattern."""
    return next(folder.glob(pattern), None) is not None if folder.is_dir() else False


def _matches_all(folder: Path, layout: tuple[str, ...]) -> bool:
    return all(matches(folder, part) for part in layout)


def found_layout(dataset: Dataset, root: Path) -> tuple[str, ...] | None:
    """The first layout whose files are all there, or None."""
    folder = dataset.folder(root)
    return next((layout for layout in dataset.layouts if _matches_all(folder, layout)), None)


def state(dataset: Dataset, root: Path) -> str:
    """`ready`, `missing`, or `incomplete: ...` with what is missing: what is on disk, without reading any image."""
    if dataset.over is not None:
        below = state(DATASETS[dataset.over], root)
        if below != "ready" and not (dataset.folder(root) / "images").is_dir():
            return f"{dataset.over} is {below}" if below == "missing" else below
    if not dataset.layouts or found_layout(dataset, root) is not None:
        return "ready"
    folder = dataset.folder(root)
    parts = [str(path.relative_to(folder)) for pattern in ("*.part", "*/*.part") for path in folder.glob(pattern)]
    absent = min(
        ([part for part in layout if not matches(folder, part)] for layout in dataset.layouts),
        key=len,
    )
    if parts:
        return f"incomplete: {parts[0]} is only partly downloaded"
    whole = any(len(absent) == len(layout) for layout in dataset.layouts)
    return "missing" if whole else f"incomplete: {', '.join(absent)} missing"


def require_ready(dataset: Dataset, root: Path) -> None:
    """Refuse a dataset that is missing or incomplete, saying where it was looked for and what to do; BadRequest."""
    condition = state(dataset, root)
    if condition == "ready":
        return
    do = f"`schane data prepare {dataset.name} --root {root}` " + ("fetches it" if dataset.archives else "unpacks it")
    if dataset.over is not None:
        do = f"see `schane data info {dataset.name}`"
    looked_in = ", ".join(map(str, places(dataset, root)))
    raise BadRequest(
        f"{dataset.title} is {condition} in {dataset.folder(root)}; {do}, or pass --data-root (looked in {looked_in})"
    )


def places(dataset: Dataset, root: Path) -> list[Path]:
    """Every folder that the files of a dataset, and of the one it is made of, are looked for in."""
    place = root.expanduser()
    own = [place / dataset.name, place] if dataset.layouts else []
    extra = [place / dataset.name / "images"] if dataset.over is not None else []
    below = places(DATASETS[dataset.over], root) if dataset.over in DATASETS else []
    return list(dict.fromkeys([*own, *extra, *below]))
