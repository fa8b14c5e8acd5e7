"""The full-data benchmarks from the files in the layout that their sources deliver: parts called train, val, test.

Each reader takes the dataset's folder and gives image sets by split (`all` where the source has no split), as the
source defines them. What lacks is carved out by `splits.complete`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from schane_cli.datasets.dataset import CARVED, VAL_IS_TEST, Archive, Dataset, register, require_ready
from schane_cli.datasets.folders import file_set, listed_set, read_table
from schane_cli.datasets.listing import list_images
from schane_cli.errors import BadRequest
from schane_cli.images.imageset import ImageSet, Names

Parts = dict[str, ImageSet]
_CALTECH = "https://data.caltech.edu/records"
_VGG = "https://www.robots.ox.ac.uk/~vgg/data"
_INAT = "https://ml-inat-competition-datasets.s3.amazonaws.com/2017"
_PLACES = "http://data.csail.mit.edu/places/places365"


def digits(folder: Path) -> Parts:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey, in the package itself."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = (bunch.images * (255 / 16)).round().astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    names = tuple(str(digit) for digit in range(10))
    ids = Names(f"digits/{i:04d}" for i in range(len(images)))
    return {"all": ImageSet("digits", "all", images, bunch.target.astype(np.int64), names, ids)}


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
    """Caltech-256's class folders; the strays below 056.dog and in 198.spider of the archive are no images of it."""
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


@register
class Digits(Dataset):
    """scikit-learn digits, 8 x 8."""

    name = "digits"
    title = "scikit-learn digits, 8 x 8"
    licence = "CC BY 4.0 (UCI Optical Recognition of Handwritten Digits)"
    source = "https://archive.ics.uci.edu/dataset/80"
    classes = 10
    counts = {"all": 1797}
    splits = "no official split: test and val are carved out by the recipe's rule"
    layouts = ((),)

    def read(self, root: Path) -> Mapping[str, ImageSet]:
        """As `Dataset.read`."""
        return digits(self.folder(root))


@register
class CUB200(Dataset):
    """CUB-200-2011 birds."""

    name = "cub200"
    title = "CUB-200-2011 birds"
    licence = "non-commercial research and education only"
    source = "https://www.vision.caltech.edu/datasets/cub_200_2011/"
    classes = 200
    counts = {"train": 5_994, "test": 5_794}
    splits = f"official train_test_split.txt; {CARVED}; few-shot classes 100/50/50"
    layouts = (
        (
            "CUB_200_2011/images",
            "CUB_200_2011/images.txt",
            "CUB_200_2011/classes.txt",
            "CUB_200_2011/image_class_labels.txt",
            "CUB_200_2011/train_test_split.txt",
        ),
    )
    archives = (
        Archive(
            f"{_CALTECH}/65de6-vp158/files/CUB_200_2011.tgz", "97eceeb196236b17998738112f37df78", ("CUB_200_2011",)
        ),
    )
    download = "1.2 GB"

    def read(self, root: Path) -> Mapping[str, ImageSet]:
        """As `Dataset.read`."""
        require_ready(self, root)
        return cub200(self.folder(root))

    def class_halves(self, count: int) -> dict[str, range]:
        """The field's 100/50/50: class number odd: train, 2 mod 4: val, 0 mod 4: test."""
        return {"train": range(0, count, 2), "val": range(1, count, 4), "test": range(3, count, 4)}


@register
class Caltech256(Dataset):
    """Caltech-256."""

    name = "caltech256"
    title = "Caltech-256"
    licence = "CC BY 4.0"
    source = "https://data.caltech.edu/records/nyy15-4j048"
    classes = 257
    counts = {"all": 30_607}
    splits = "no official split: test and val are carved out by the recipe's rule; clutter is the 257th class"
    layouts = (("256_ObjectCategories/*",),)
    archives = (
        Archive(
            f"{_CALTECH}/nyy15-4j048/files/256_ObjectCategories.tar",
            "67b4f42ca05d46448c6bb8ecd2220f6d",
            ("256_ObjectCategories",),
        ),
    )
    download = "1.2 GB"

    def read(self, root: Path) -> Mapping[str, ImageSet]:
        """As `Dataset.read`."""
        require_ready(self, root)
        return caltech256(self.folder(root))


@register
class Flowers102(Dataset):
    """Oxford Flowers-102."""

    name = "flowers102"
    title = "Oxford Flowers-102"
    licence = "none stated by its authors; research use"
    source = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
    classes = 102
    counts = {"train": 1_020, "val": 1_020, "test": 6_149}
    splits = "official train, val and test; --set data.train_on=trainval trains on val too, as some papers do"
    layouts = (("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),)
    archives = (
        Archive(
            f"{_VGG}/flowers/102/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", ("jpg",), below="flowers-102"
        ),
        Archive(
            f"{_VGG}/flowers/102/imagelabels.mat",
            "e0620be6f572b9609742df49c70aed4d",
            ("imagelabels.mat",),
            below="flowers-102",
            plain=True,
        ),
        Archive(
            f"{_VGG}/flowers/102/setid.mat",
            "a5357ecc9cb78c4bef273ce3793fc85c",
            ("setid.mat",),
            below="flowers-102",
            plain=True,
        ),
    )
    download = "345 MB"

    def read(self, root: Path) -> Mapping[str, ImageSet]:
        """As `Dataset.read`."""
        require_ready(self, root)
        return flowers102(self.folder(root))


@register
class Pets(Dataset):
    """Oxford-IIIT Pets."""

    name = "pets"
    title = "Oxford-IIIT Pets"
    licence = "CC BY-SA 4.0"
    source = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
    classes = 37
    counts = {"train": 3_680, "test": 3_669}
    splits = f"official trainval and test; {CARVED}"
    layouts = (
        (
            "oxford-iiit-pet/images",
            "oxford-iiit-pet/annotations/trainval.txt",
            "oxford-iiit-pet/annotations/test.txt",
        ),
    )
    archives = (
        Archive(
            f"{_VGG}/pets/data/images.tar.gz",
            "5c4f3ee8e5d25df40f4fd59a7f44e54c",
            ("images",),
            below="oxford-iiit-pet",
        ),
        Archive(
            f"{_VGG}/pets/data/annotations.tar.gz",
            "95a8c909bbe2e81eed6a22bccdf3f68f",
            ("annotations",),
            below="oxford-iiit-pet",
        ),
    )
    download = "811 MB"

    def read(self, root: Path) -> Mapping[str, ImageSet]:
        """As `Dataset.read`."""
        require_ready(self, root)
        return pets(self.folder(root))


@register
class INat2017(Dataset):
    """iNaturalist 2017."""

    name = "inat2017"
    title = "iNaturalist 2017"
    licence = "non-commercial research and education only"
    source = "https://github.com/visipedia/inat_comp/tree/master/2017"
    classes = 5_089
    counts = {"train": 579_184, "test": 95_986}
    splits = VAL_IS_TEST
    layouts = (("train_val_images", "train2017.json", "val2017.json"),)
    archives = (
        Archive(f"{_INAT}/train_val_images.tar.gz", "7c784ea5e424efaec655bd392f87301f", ("train_val_images",)),
        Archive(f"{_INAT}/train_val2017.zip", "444c835f6459867ad69fcb36478786e7", ("train2017.json", "val2017.json")),
    )
    download = "186 GB"

    def read(self, root: Path) -> Mapping[str, ImageSet]:
        """As `Dataset.read`."""
        require_ready(self, root)
        return inat2017(self.folder(root))


@register
class Places365(Dataset):
    """Places365-Standard, 256 px."""

    name = "places365"
    title = "Places365-Standard, 256 px"
    licence = "non-commercial research and education only"
    source = "http://places2.csail.mit.edu/"
    classes = 365
    counts = {"train": 1_803_460, "test": 36_500}
    splits = VAL_IS_TEST
    layouts = (
        (
            "data_256_standard",
            "val_256",
            "categories_places365.txt",
            "places365_train_standard.txt",
            "places365_val.txt",
        ),
    )
    archives = (
        Archive(
            f"{_PLACES}/filelist_places365-standard.tar",
            "35a0585fee1fa656440f3ab298f8479c",
            ("categories_places365.txt", "places365_train_standard.txt", "places365_val.txt"),
        ),
        Archive(f"{_PLACES}/val_256.tar", "e27b17d8d44f4af9a78502beb927f808", ("val_256",)),
        Archive(
            f"{_PLACES}/train_256_places365standard.tar",
            "53ca1c756c3d1e7809517cc47c5561c5",
            ("data_256_standard",),
            renames=(("data_256", "data_256_standard"),),
        ),
    )
    download = "25 GB"

    def read(self, root: Path) -> Mapping[str, ImageSet]:
        """As `Dataset.read`."""
        require_ready(self, root)
        return places365(self.folder(root))
