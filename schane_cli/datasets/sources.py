"""From what `--dataset` says to image sets: `folder:PATH`, `csv:FILE`, `hfds:NAME`, `wds:PATH`, or a dataset's name."""

import re
from pathlib import Path

from schane_cli.datasets.catalog import KINDS, find_dataset
from schane_cli.datasets.folders import folder_parts
from schane_cli.datasets.huggingface import huggingface_parts
from schane_cli.datasets.parts import Parts
from schane_cli.datasets.shards import webdataset_parts
from schane_cli.datasets.tables import csv_parts
from schane_cli.errors import BadRequest
from schane_cli.recipe import DataRecipe

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def parse_source(name: str) -> tuple[str, str] | None:
    """(kind, place) of `folder:PATH` and its like, with a slash for the colon too; None for a dataset's name.

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
    if kind != "hfds":
        refuse_address(place, f"{kind}: reads")
    return kind, place


def refuse_address(place: str, reader: str) -> None:
    """BadRequest for `s3://…`, `https://…` and their like where files of this machine are read."""
    if _ADDRESS.match(place):
        raise BadRequest(f"{place} is an address, and {reader} files of this machine; copy or mount it here first")


def read_source(recipe: DataRecipe) -> Parts:
    """The image sets of a dataset as its source lists them; files are not decoded where the source allows.

    Raises:
        BadRequest: unknown, missing or incomplete, or files that contradict each other.
    """
    parsed = parse_source(recipe.dataset)
    if parsed is None:
        return Parts(find_dataset(recipe.dataset).read(recipe.root))
    kind, place = parsed
    if kind == "hfds":
        return huggingface_parts(recipe.dataset, place, recipe)
    path = Path(place).expanduser()
    if kind == "folder":
        return folder_parts(recipe.dataset, path)
    return (csv_parts if kind == "csv" else webdataset_parts)(recipe.dataset, path, recipe)
