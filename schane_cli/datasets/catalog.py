"""The datasets known by name: those of schane, and those of installed packages."""

from pathlib import Path

from schane_cli import plugins
from schane_cli.datasets import benchmarks
from schane_cli.datasets.addresses import expanded, is_address, refuse_address
from schane_cli.datasets.dataset import DATASETS, Archive, Dataset, class_list, register, require_ready, state
from schane_cli.errors import BadRequest, nearest

__all__ = [
    "DATASETS",
    "KINDS",
    "Archive",
    "Dataset",
    "all_datasets",
    "class_list",
    "find_dataset",
    "known_dataset",
    "parse_source",
    "refuse_fewshot",
    "register",
    "require_ready",
    "require_source",
    "state",
]

BUILT_IN = benchmarks  # importing it registers its datasets
KINDS = {
    "folder": "folder:PATH, a folder of one folder per class, or of train, val and test folders of such",
    "csv": "csv:FILE, a table with columns path and label, and optionally split",
    "hfds": "hfds:NAME, a Hugging Face dataset by its name on the hub or its local folder (extra hf)",
    "wds": "wds:PATH, a folder of WebDataset shards (.tar), on this machine or at an address (s3://, https://)",
}
_plugged: dict[str, Dataset] = {}


def known_dataset(name: str) -> Dataset | None:
    """The dataset called `name`, of schane or of an installed package; None where there is none.

    Raises:
        BadRequest: the package that adds it cannot be imported, or adds something other than a dataset.
    """
    if name in DATASETS or name in _plugged:
        return DATASETS.get(name) or _plugged[name]
    if ":" in name or "/" in name:
        return None
    try:
        kind = plugins.load_plugin(plugins.DATASETS, name)
    except KeyError:
        return None
    dataset = kind() if isinstance(kind, type) else kind
    if not isinstance(dataset, Dataset):
        raise BadRequest(
            f"dataset {name!r} comes from an installed package, but {kind!r} is not a subclass of "
            "schane_cli.datasets.catalog.Dataset"
        )
    dataset.name = name
    _plugged[name] = dataset
    return dataset


def find_dataset(name: str) -> Dataset:
    """The dataset called `name`; otherwise BadRequest with the nearest name and the other kinds of source."""
    dataset = known_dataset(name)
    if dataset is None:
        names = [*DATASETS, *plugins.plugin_names(plugins.DATASETS)]
        raise BadRequest(
            f"unknown dataset {name!r}{nearest(name, names)}; known: {', '.join(names)}, or folder:PATH, csv:FILE, "
            "hfds:NAME, wds:PATH"
        )
    return dataset


def all_datasets() -> tuple[list[Dataset], list[str]]:
    """Every known dataset, and a sentence for each installed package that fails to add one."""
    datasets, failures = list(DATASETS.values()), []
    for name in plugins.plugin_names(plugins.DATASETS):
        if name in DATASETS:
            failures.append(f"dataset {name!r} of an installed package is not used: schane has one of that name")
            continue
        try:
            datasets.append(find_dataset(name))
        except BadRequest as error:
            failures.append(str(error))
    return datasets, failures


def parse_source(name: str) -> tuple[str, str] | None:
    """(kind, place) of `folder:PATH` and the like, with a slash for the colon too; None for a dataset's name.

    Raises:
        BadRequest: no place after the colon, or an address where files are wanted.
    """
    kind, place = name[: len(name.partition(":")[0])], name.partition(":")[2]
    if kind not in KINDS or ":" not in name:
        kind, slash, place = name.partition("/")
        if kind not in KINDS or not slash:
            return None
    if not place.strip():
        raise BadRequest(f"{name} names no place; write {KINDS[kind].partition(',')[0]}")
    if kind in {"folder", "csv"}:
        refuse_address(place, f"{kind}: reads")
    return kind, place


def require_source(name: str, root: Path | None = None) -> None:
    """BadRequest for a name that no dataset has, or a place that does not exist; nothing is read.

    With `root` the files of a dataset known by name must lie there.
    """
    parsed = parse_source(name)
    if parsed is None:
        dataset = find_dataset(name)
        if root is not None:
            require_ready(dataset, root)
        return
    kind, place = parsed
    first = next(iter(expanded(place))) if kind == "wds" else place
    if kind != "hfds" and not is_address(place) and not Path(first).expanduser().exists():
        raise BadRequest(f"dataset {'file' if kind == 'csv' else 'folder'} {Path(place).expanduser()} does not exist")


def refuse_fewshot(name: str) -> None:
    """BadRequest for a few-shot dataset where one is to be classified."""
    dataset = known_dataset(name)
    if dataset is not None and dataset.fewshot:
        raise BadRequest(
            f"{name} is a few-shot dataset, whose splits share no class; use `schane fewshot --dataset {name}`"
        )
