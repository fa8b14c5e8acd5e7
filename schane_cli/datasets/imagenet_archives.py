"""ImageNet-1k from the three archives that a registered user downloads."""

import shutil
from pathlib import Path

from schane_cli.datasets.archives import beside, unpack, verify
from schane_cli.errors import BadRequest, SchaneError
from schane_cli.terminal import Terminal

_FILES = {
    "train": ("ILSVRC2012_img_train.tar",),
    "val": ("ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"),
}


def unpack_imagenet(folder: Path, by_hand: str, terminal: Terminal) -> None:
    """ILSVRC-2012's archives, put into the folder by hand, into class folders: train is a tar of one tar per class.

    Raises:
        BadRequest: an archive is not there; `by_hand` says what to do.
        SchaneError: an archive is altered or cut short.
    """
    for part, files in _FILES.items():
        if (folder / part).is_dir():
            continue
        absent = [file for file in files if not (folder / file).is_file()]
        if absent:
            raise BadRequest(f"{folder / absent[0]} is not there: {by_hand}")
        for file in files:
            verify(folder / file, _imagenet_md5(file), terminal)
        with beside(folder) as work:
            (_unpack_train if part == "train" else _unpack_val)(folder, work, terminal)
            (work / part).rename(folder / part)


def _imagenet_md5(file: str) -> str:
    from torchvision.datasets.imagenet import ARCHIVE_META

    return dict(ARCHIVE_META.values())[file]


def _unpack_train(folder: Path, work: Path, terminal: Terminal) -> None:
    unpack(folder / "ILSVRC2012_img_train.tar", work / "archives", terminal)
    archives = sorted((work / "archives").glob("n*.tar"))
    quiet = Terminal(quiet=True)
    with terminal.task("unpacking classes", len(archives), unit="classes") as task:
        for archive in archives:
            unpack(archive, work / "train" / archive.stem, quiet)
            archive.unlink()
            task.advance()


def _unpack_val(folder: Path, work: Path, terminal: Terminal) -> None:
    """The val images in order of name are of the classes that the development kit lists; torchvision reads that."""
    from torchvision.datasets.imagenet import load_meta_file, parse_devkit_archive

    parse_devkit_archive(str(work), str((folder / "ILSVRC2012_devkit_t12.tar.gz").resolve()))
    wnids = load_meta_file(str(work))[1]
    unpack(folder / "ILSVRC2012_img_val.tar", work / "flat", terminal)
    images = sorted((work / "flat").iterdir())
    if len(images) != len(wnids):
        raise SchaneError(f"{folder} has {len(images)} val images and labels for {len(wnids)}")
    for image, wnid in zip(images, wnids, strict=True):
        place = work / "val" / wnid
        place.mkdir(parents=True, exist_ok=True)
        shutil.move(image, place / image.name)
