"""The full-data benchmarks from the files in the layout that their sources deliver: parts called train, val, test.

Each reader takes the dataset's folder and gives image sets by split (`all` where the source has no split), as the
source defines them. What is missing is carved out by `splits.complete`.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from schane_cli.datasets.folders import file_set, listed_set, read_table
from schane_cli.datasets.listing import list_images
from schane_cli.errors import BadRequest
from schane_cli.images.imageset import ImageSet, Names

Parts = dict[str, ImageSet]


def digits(folder: Path) -> Parts:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey, in the package itself: read as its load_digits does, without
    the second that importing it takes."""
    spec = find_spec("sklearn")
    places = spec.submodule_search_locations if spec is not None else None
    table = np.loadtxt(Path((places or [""])[0]) / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    grey = (table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    names = tuple(str(digit) for digit in range(10))
    ids = Names(f"digits/{i:04d}" for i in range(len(images)))
    return {"all": ImageSet("digits", "all", images, table[:, -1].astype(np.int64), names, ids)}


def cub200(folder: Path) -> Parts:
    """CUB-200-2011 by images.txt, image_class_labels.txt, classes.txt and train_test_split.txt.

    Raises:
        BadRequest: the four files do not agree on the images, or an image is missing.
    """
    base = folder / "CUB_200_2011"
    paths = dict(read_table(base / "images.txt", 2))
    columns = {name: dict(read_table(base / name, 2)) for name in ("image_class_labels.txt", "train_test_split.txt")}
    for name, column in columns.items():
        other = sorted(set(column) ^ set(paths))
        if other:
            raise BadRequest(f"{base / name} has {len(column)} rows, images.txt {len(paths)}; image {other[0]} differs")
    classes = read_table(base / "classes.txt", 2)
    label_of = {key: label for label, (key, _) in enumerate(classes)}
    label_by_image, is_train = columns["image_class_labels.txt"], columns["train_test_split.txt"]
    unknown = [key for key in paths if label_by_image[key] not in label_of or is_train[key] not in {"0", "1"}]
    if unknown:
        raise BadRequest(f"{base} gives image {unknown[0]} an unknown class or split")
    parts = {}
    for split, flag in (("train", "1"), ("test", "0")):
        keys = [key for key in paths if is_train[key] == flag]
        labels = [label_of[label_by_image[key]] for key in keys]
        names = [paths[key] for key in keys]
        parts[split] = listed_set("cub200", split, base / "images", names, labels, [name for _, name in classes])
    return parts


def caltech256(folder: Path) -> Parts:
    """Caltech-256's class folders; the strays below 056.dog and in 198.spider of the archive do not belong to it."""
    base = folder / "256_ObjectCategories"
    classes = sorted(path.name for path in base.iterdir() if path.is_dir())
    names, labels = [], []
    for label, name in enumerate(classes):
        images = [image for image in list_images(base / name, base).names if image.count("/") == 1]
        if not images:
            raise BadRequest(f"class folder {base / name} holds no images")
        names += images
        labels += [label] * len(images)
    return {"all": file_set("caltech256", "all", base, names, np.array(labels), classes)}


def flowers102(folder: Path) -> Parts:
    """Flowers-102 through torchvision, which verifies the two .mat files by md5."""
    from torchvision.datasets import Flowers102

    parts = {}
    for split in ("train", "val", "test"):
        try:
            source = Flowers102(folder, split, loader=_path_itself)
        except RuntimeError:
            raise BadRequest(
                f"{folder / 'flowers-102'} is incomplete or its .mat files are altered (checksum); remove it and run "
                "`schane data prepare flowers102` again"
            ) from None
        rows = [source[i] for i in range(len(source))]
        base = folder / "flowers-102"
        names = [Path(path).relative_to(base).as_posix() for path, _ in rows]
        parts[split] = listed_set("flowers102", split, base, names, [label for _, label in rows], source.classes)
    return parts


def _path_itself(path: str | Path) -> Any:
    """A torchvision loader that leaves the decoding to us."""
    return path


def pets(folder: Path) -> Parts:
    """Oxford-IIIT Pets by annotations/trainval.txt and test.txt: image name, class (from 1), species, breed."""
    base = folder / "oxford-iiit-pet"
    parts = {}
    for split, file in (("train", "trainval.txt"), ("test", "test.txt")):
        rows = read_table(base / "annotations" / file, 4)
        class_of = {int(row[1]) - 1: row[0].rpartition("_")[0] for row in rows}
        if sorted(class_of) != list(range(len(class_of))):
            raise BadRequest(f"{base / 'annotations' / file} skips a class number")
        class_names = [class_of[label].replace("_", " ").title() for label in sorted(class_of)]
        names = [f"{row[0]}.jpg" for row in rows]
        labels = [int(row[1]) - 1 for row in rows]
        parts[split] = listed_set("pets", split, base / "images", names, labels, class_names)
    return parts


def inat2017(folder: Path) -> Parts:
    """iNaturalist 2017 by train2017.json and val2017.json (COCO style); the official val is our test."""
    return {
        "train": _coco_style(folder, "train2017.json", "train"),
        "test": _coco_style(folder, "val2017.json", "test"),
    }


def _coco_style(folder: Path, file: str, split: str) -> ImageSet:
    try:
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        categories = {row["id"]: f"{row['supercategory']}/{row['name']}" for row in content["categories"]}
        files = {row["id"]: row["file_name"] for row in content["images"]}
        pairs = [(row["image_id"], row["category_id"]) for row in content["annotations"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadRequest(f"{folder / file} is not a COCO-style list of images: {error!r}") from None
    label_of = {key: label for label, key in enumerate(sorted(categories))}
    wrong = [image for image, category in pairs if image not in files or category not in categories]
    if wrong or len(pairs) != len(files) or len(dict(pairs)) != len(files):
        raise BadRequest(f"{folder / file} has {len(files)} images and {len(pairs)} annotations that do not pair up")
    names = [files[image] for image, _ in pairs]
    class_names = [categories[key] for key in sorted(categories)]
    return listed_set("inat2017", split, folder, names, [label_of[category] for _, category in pairs], class_names)


def places365(folder: Path) -> Parts:
    """Places365-Standard at 256 px through torchvision, which verifies the lists by md5; the official val is test."""
    from torchvision.datasets import Places365

    parts = {}
    for split, theirs in (("train", "train-standard"), ("test", "val")):
        try:
            source = Places365(str(folder), theirs, small=True)
        except RuntimeError as error:
            raise BadRequest(f"Places365 in {folder} is incomplete or altered: {error}") from None
        names = [Path(path).relative_to(folder).as_posix() for path, _ in source.imgs]
        parts[split] = listed_set("places365", split, folder, names, source.targets, source.classes)
    return parts
