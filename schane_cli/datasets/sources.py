"""From what `--dataset` says to image sets: `folder:PATH`, `csv:FILE`, `hfds:NAME`, `wds:PATH`, or a dataset's name."""

from pathlib import Path

from schane_cli.datasets.catalog import find_dataset, parse_source
from schane_cli.datasets.folders import folder_parts
from schane_cli.datasets.huggingface import huggingface_images, huggingface_parts
from schane_cli.datasets.parts import Parts
from schane_cli.datasets.shards import webdataset_images, webdataset_parts
from schane_cli.datasets.tables import csv_parts
from schane_cli.images.imageset import ImageSet
from schane_cli.recipe import DataRecipe


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
    if kind == "wds":
        return webdataset_parts(recipe.dataset, place, recipe)
    path = Path(place).expanduser()
    return (
        folder_parts(recipe.dataset, path, recipe.root) if kind == "folder" else csv_parts(recipe.dataset, path, recipe)
    )


def read_images(recipe: DataRecipe) -> tuple[ImageSet, list[str]]:
    """All images of `hfds:NAME` or `wds:PATH` as one set, whatever its splits and labels, and notes.

    Raises:
        BadRequest: missing, damaged, or no images.
    """
    kind, place = parse_source(recipe.dataset) or ("", "")
    if kind == "hfds":
        return huggingface_images(recipe.dataset, place, recipe), []
    return webdataset_images(recipe.dataset, place, recipe.root)
