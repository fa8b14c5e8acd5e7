"""The few-shot sets made of ImageNet-1k's training images: miniImageNet by Ravi's lists, tieredImageNet by classes."""

import re
from collections.abc import Mapping
from pathlib import Path

from schane_cli.datasets.dataset import VAL_IS_TEST, Archive, Dataset, class_list, register, require_ready
from schane_cli.datasets.folders import class_folder_set, listed_set
from schane_cli.datasets.imagenet_archives import unpack_imagenet
from schane_cli.datasets.listing import list_images
from schane_cli.datasets.tables import read_csv
from schane_cli.errors import BadRequest
from schane_cli.images.imageset import ImageSet
from schane_cli.terminal import Terminal

_RAVI = (
    "https://raw.githubusercontent.com/twitter-research/meta-learning-lstm/"
    "0cffa2481619ce643d0951bd637bf05b23ef827a/data/miniImagenet"
)
_RAVI_NAME = re.compile(r"(n\d{8})(\d{8})\.jpg")


def imagenet1k(folder: Path) -> dict[str, ImageSet]:
    """ImageNet-1k's class folders under train/ and val/, called by their WordNet ids; the official val is our test."""
    train = class_folder_set("imagenet1k", "train", folder / "train", below=folder)
    test = class_folder_set("imagenet1k", "test", folder / "val", below=folder)
    if train.class_names != test.class_names:
        other = sorted(set(train.class_names) ^ set(test.class_names))
        raise BadRequest(f"{folder / 'train'} and {folder / 'val'} differ in their classes: {', '.join(other[:3])}")
    return {"train": train, "test": test}


def miniimagenet(folder: Path, imagenet: Path) -> dict[str, ImageSet]:
    """The images that train.csv, val.csv and test.csv (filename,label) in `folder` list.

    A name is looked up as it stands in `folder`/images, else among ImageNet's training files. Ravi's names are not
    ImageNet's: n0153282900000005.jpg is the fifth file of n01532829 in the order of the files' own numbers. A list
    that uses ImageNet's own names (n01532829_77.JPEG) is taken by name.

    Raises:
        BadRequest: a class in two lists, an image listed twice, a name that stands for no file.
    """
    lists = {split: read_csv(folder / f"{split}.csv", ("filename", "label")) for split in ("train", "val", "test")}
    _require_disjoint(folder, lists)
    own = folder / "images"
    base = own if own.is_dir() else imagenet / "train"
    parts = {}
    for split, rows in lists.items():
        class_names = sorted({row["label"] for row in rows})
        names = [row["filename"] for row in rows]
        if not own.is_dir():
            names = _imagenet_names(base, folder / f"{split}.csv", rows)
        repeated = len(names) - len(set(names))
        if repeated:
            raise BadRequest(f"{folder / f'{split}.csv'} names {repeated} images twice")
        labels = [class_names.index(row["label"]) for row in rows]
        parts[split] = listed_set("miniimagenet", split, base, names, labels, class_names)
    return parts


def _require_disjoint(folder: Path, lists: dict[str, list[dict[str, str]]]) -> None:
    owner: dict[str, str] = {}
    for split, rows in lists.items():
        for label in sorted({row["label"] for row in rows}):
            if label in owner:
                raise BadRequest(
                    f"class {label} is in both {owner[label]}.csv and {split}.csv of {folder}: this is another set of "
                    "the same name (timm/mini-imagenet has all classes in every split)"
                )
            owner[label] = split


def _imagenet_names(train: Path, file: Path, rows: list[dict[str, str]]) -> list[str]:
    """Paths below ImageNet's train folder for the rows of one list."""
    by_class: dict[str, list[str]] = {}
    names = []
    for number, row in enumerate(rows, 2):
        label, name = row["label"], row["filename"]
        if label not in by_class:
            images = list_images(train / label, train).names if (train / label).is_dir() else []
            by_class[label] = sorted(images, key=lambda path: int(re.findall(r"\d+", path)[-1]))
        match = _RAVI_NAME.fullmatch(name)
        if match is None:
            names.append(f"{label}/{name}")
            continue
        position = int(match[2])
        if match[1] != label or not 1 <= position <= len(by_class[label]):
            raise BadRequest(
                f"{file} line {number}: {name} is image {position} of {label}, which has {len(by_class[label])} in "
                f"{train}; ImageNet is incomplete there"
            )
        names.append(by_class[label][position - 1])
    return names


def tieredimagenet(imagenet: Path) -> dict[str, ImageSet]:
    """351 / 97 / 160 classes of ImageNet's training images; BadRequest where a class folder lacks."""
    return {
        split: class_folder_set("tieredimagenet", split, imagenet / "train", only=names)
        for split, names in class_list("tieredimagenet").items()
    }


def unlike_ravi(parts: Mapping[str, ImageSet]) -> str | None:
    """A warning where the classes of the lists are not Ravi and Larochelle's."""
    for split, names in class_list("miniimagenet").items():
        other = len(set(names) ^ set(parts[split].class_names))
        if other:
            return f"WARNING: the {split} list differs from Ravi and Larochelle's in {other} classes"
    return None


@register
class ImageNet1k(Dataset):
    """ImageNet-1k (ILSVRC-2012)."""

    name = "imagenet1k"
    title = "ImageNet-1k (ILSVRC-2012)"
    licence = "non-commercial research and education only, after registration"
    source = "https://image-net.org/download.php"
    classes = 1_000
    counts = {"train": 1_281_167, "test": 50_000}
    splits = VAL_IS_TEST
    layouts = (("train/n*", "val/n*"),)
    by_hand = (
        "ImageNet wants a signed form: register at https://image-net.org, put ILSVRC2012_img_train.tar, "
        "ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz into the folder, then run prepare to unpack them; "
        "or put class folders n01440764/ ... into train/ and val/; or, with access on Hugging Face, use "
        "--dataset hfds:ILSVRC/imagenet-1k"
    )

    def read(self, root: Path) -> Mapping[str, ImageSet]:
        """As `Dataset.read`."""
        require_ready(self, root)
        return imagenet1k(self.folder(root))

    def unpack_by_hand(self, root: Path, terminal: Terminal) -> None:
        """The archives that the user has put into the folder, into class folders."""
        unpack_imagenet(self.folder(root), self.by_hand, terminal)


@register
class MiniImageNet(Dataset):
    """miniImageNet (few-shot)."""

    name = "miniimagenet"
    title = "miniImageNet (few-shot)"
    licence = "as ImageNet-1k; the image lists MIT"
    source = "https://github.com/twitter-research/meta-learning-lstm"
    classes = 100
    counts = {"train": 38_400, "val": 9_600, "test": 12_000}
    splits = "Ravi and Larochelle's lists: 64 / 16 / 20 classes of 600 images of ImageNet-1k train"
    layouts = (("train.csv", "val.csv", "test.csv"),)
    archives = (
        Archive(f"{_RAVI}/train.csv", "9525e1538f67719f18f1936bf8d0782d", ("train.csv",), plain=True),
        Archive(f"{_RAVI}/val.csv", "ce315ce99b41fbf84fa6acd69315d918", ("val.csv",), plain=True),
        Archive(f"{_RAVI}/test.csv", "5b89df877c6cbe5d291e43118a2a9591", ("test.csv",), plain=True),
    )
    download = "2 MB of lists"
    by_hand = (
        "the images are ImageNet's: they are read from imagenet1k/train, or from images/ beside the lists "
        "where they are named as in them; timm/mini-imagenet is another set"
    )
    over = "imagenet1k"
    fewshot = True
    images_per_class = 600

    def read(self, root: Path) -> Mapping[str, ImageSet]:
        """As `Dataset.read`."""
        require_ready(self, root)
        return miniimagenet(self.folder(root), ImageNet1k().folder(root))

    def fewshot_notes(self, parts: Mapping[str, ImageSet]) -> list[str]:
        """As `Dataset.fewshot_notes`."""
        warning = unlike_ravi(parts)
        return [] if warning is None else [warning]


@register
class TieredImageNet(Dataset):
    """tieredImageNet (few-shot)."""

    name = "tieredimagenet"
    title = "tieredImageNet (few-shot)"
    licence = "as ImageNet-1k"
    source = "https://arxiv.org/abs/1803.00676"
    classes = 608
    counts = {"train": 448_695, "val": 124_261, "test": 206_209}
    splits = "351 / 97 / 160 classes of ImageNet-1k train, by superclass"
    over = "imagenet1k"
    fewshot = True

    def read(self, root: Path) -> Mapping[str, ImageSet]:
        """As `Dataset.read`."""
        require_ready(self, root)
        return tieredimagenet(ImageNet1k().folder(root))
