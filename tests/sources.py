"""Small datasets in the layouts that the real sources deliver, made of random images."""

import csv
import hashlib
import io
import json
import pickle  # noqa: TID251 (CIFAR-100's own files are pickles; the product reads them through torchvision alone)
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits

_generator = np.random.default_rng(0)


def write_image(path: Path, size: tuple[int, int] = (24, 20)) -> None:
    """A random RGB image of (width, height) pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def digit_photos(folder: Path, digits: Iterable[int]) -> None:
    """Some of scikit-learn's digits, by their numbers, as RGB pictures 00.png, 01.png and so on."""
    folder.mkdir(parents=True)
    images = load_digits().images
    for number, digit in enumerate(digits):
        image = Image.fromarray((images[digit] * 15.9375).astype(np.uint8)).convert("RGB")
        image.save(folder / f"{number:02d}.png")


def class_folders(folder: Path, classes: dict[str, int], suffix: str = ".jpg") -> None:
    """`classes[name]` images in a folder of each name."""
    for name, count in classes.items():
        for number in range(count):
            write_image(folder / name / f"{name}_{number}{suffix}")


def cub200(folder: Path) -> None:
    """4 classes of 6 images, 4 of them in train."""
    base = folder / "CUB_200_2011"
    names = ["001.Albatross", "002.Auklet", "003.Blackbird", "004.Bobolink"]
    lines: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    for label, name in enumerate(names, 1):
        for number in range(6):
            key = len(lines["images"]) + 1
            file = f"{name}/{name[4:]}_{number:04d}.jpg"
            write_image(base / "images" / file)
            lines["images"].append(f"{key} {file}")
            lines["image_class_labels"].append(f"{key} {label}")
            lines["train_test_split"].append(f"{key} {int(number < 4)}")
    lines["classes"] = [f"{label} {name}" for label, name in enumerate(names, 1)]
    for file, text in lines.items():
        (base / f"{file}.txt").write_text("\n".join(text) + "\n")


def caltech256(folder: Path) -> None:
    """3 classes of 6 images, one grey, with the strays of the real archive."""
    base = folder / "256_ObjectCategories"
    class_folders(base, {"001.ak47": 6, "056.dog": 6, "257.clutter": 6})
    write_image(base / "056.dog" / "greg" / "vision309" / "stray.jpg")
    (base / "001.ak47" / "RENAME2").write_text("stray")
    Image.new("L", (16, 16), 90).save(base / "001.ak47" / "001_0007.jpg")


def flowers102(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """3 classes, 3/3/6 images in train/val/test; torchvision's checksums are set to the small files'."""
    from torchvision.datasets import Flowers102

    base = folder / "flowers-102"
    for number in range(1, 13):
        write_image(base / "jpg" / f"image_{number:05d}.jpg")
    savemat(base / "imagelabels.mat", {"labels": np.arange(12) % 3 + 1})
    savemat(base / "setid.mat", {"trnid": np.arange(1, 4), "valid": np.arange(4, 7), "tstid": np.arange(7, 13)})
    files = dict(Flowers102._file_dict)
    for key, file in (("label", "imagelabels.mat"), ("setid", "setid.mat")):
        files[key] = (file, md5(base / file))
    monkeypatch.setattr(Flowers102, "_file_dict", files)


def pets(folder: Path) -> None:
    """2 breeds, 4 trainval and 2 test images each."""
    base = folder / "oxford-iiit-pet"
    rows: dict[str, list[str]] = {"trainval": [], "test": []}
    for label, breed in enumerate(("Abyssinian", "great_pyrenees"), 1):
        for number in range(6):
            write_image(base / "images" / f"{breed}_{number}.jpg")
            rows["trainval" if number < 4 else "test"].append(f"{breed}_{number} {label} 1 1")
    (base / "annotations").mkdir()
    for split, lines in rows.items():
        (base / "annotations" / f"{split}.txt").write_text("#Image CLASS-ID SPECIES BREED\n" + "\n".join(lines) + "\n")


def inat2017(folder: Path) -> None:
    """3 species, 4 train and 2 val images each."""
    categories = [{"id": 7 - i, "name": f"species {i}", "supercategory": "Aves"} for i in range(3)]
    for split, count in (("train", 4), ("val", 2)):
        images, annotations = [], []
        for category in categories:
            for number in range(count):
                file = f"train_val_images/Aves/{category['name']}/{split}{number}.jpg"
                write_image(folder / file)
                images.append({"id": len(images) + 1, "width": 24, "height": 20, "file_name": file})
                annotations.append(
                    {"id": len(images), "image_id": len(images), "category_id": category["id"]},
                )
        content = {"info": {}, "categories": categories, "images": images, "annotations": annotations, "licenses": []}
        (folder / f"{split}2017.json").write_text(json.dumps(content))


def places365(folder: Path, monkeypatch: pytest.MonkeyPatch, images: str = "data_256_standard") -> None:
    """2 scenes, 4 train and 2 val images each; torchvision's checksums are set to the small files'."""
    from torchvision.datasets import Places365

    scenes = ["/a/airfield", "/b/bar"]
    train = [f"{scene}/{number:08d}.jpg" for scene in scenes for number in range(4)]
    val = [f"Places365_val_{number:08d}.jpg" for number in range(4)]
    for name in train:
        write_image(folder / images / name[1:])
    for name in val:
        write_image(folder / "val_256" / name)
    lists = {
        "categories_places365.txt": [f"{scene} {label}" for label, scene in enumerate(scenes)],
        "places365_train_standard.txt": [f"{name} {scenes.index(name[:-13])}" for name in train],
        "places365_val.txt": [f"{name} {number % 2}" for number, name in enumerate(val)],
    }
    for file, lines in lists.items():
        (folder / file).write_text("\n".join(lines) + "\n")
    sums = {file: (file, md5(folder / file)) for file in lists}
    monkeypatch.setattr(Places365, "_CATEGORIES_META", sums["categories_places365.txt"])
    monkeypatch.setattr(
        Places365,
        "_FILE_LIST_META",
        {"train-standard": sums["places365_train_standard.txt"], "val": sums["places365_val.txt"]},
    )


def imagenet1k(folder: Path, classes: dict[str, int]) -> None:
    """Class folders by WordNet id: the given number of images in train (numbered with gaps), two in val."""
    for name, count in classes.items():
        for number in range(count):
            write_image(folder / "train" / name / f"{name}_{3 * number + 2}.JPEG")
        for number in range(2):
            write_image(folder / "val" / name / f"ILSVRC2012_val_{number:08d}.JPEG")


def ravi_lists(folder: Path, lists: dict[str, dict[str, list[int]]]) -> None:
    """train.csv, val.csv, test.csv with Ravi's names: class and position of the image in its class."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, classes in lists.items():
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["filename", "label"])
            for name, positions in classes.items():
                writer.writerows([f"{name}{position:08d}.jpg", name] for position in positions)


def cifar100_archive(
    folder: Path, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], patch: pytest.MonkeyPatch
) -> None:
    """cifar-100-python/ as the source delivers it; torchvision's checksums are set to these files'."""
    from torchvision.datasets import CIFAR100

    from schane_cli.datasets.catalog import class_list

    base = folder / "cifar-100-python"
    base.mkdir(parents=True)
    for split, (pixels, labels) in (("train", train), ("test", test)):
        content = {"data": pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1), "fine_labels": labels.tolist()}
        (base / split).write_bytes(pickle.dumps(content))
    (base / "meta").write_bytes(pickle.dumps({"fine_label_names": list(class_list("cifar100")["all"])}))
    patch.setattr(CIFAR100, "train_list", [["train", md5(base / "train")]])
    patch.setattr(CIFAR100, "test_list", [["test", md5(base / "test")]])
    patch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5(base / "meta")})


def cifar100_parquet(folder: Path, split: str, pixels: np.ndarray, labels: np.ndarray) -> None:
    """One split as Hugging Face delivers it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"img": rows, "fine_label": labels.tolist(), "coarse_label": [0] * len(labels)}
    pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")


def shard(path: Path, labels: dict[str, int], missing_label: str | None = None) -> None:
    """A WebDataset shard with one image a key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, label in labels.items():
            buffer = io.BytesIO()
            Image.fromarray(_generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
            add(tar, f"{key}.png", buffer.getvalue())
            if key != missing_label:
                add(tar, f"{key}.cls", str(label).encode())


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A file in an open tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def tar_of(folder: Path, target: Path, mode: str = "w") -> None:
    """All that is in `folder`, as an archive of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, mode) as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)


def zip_of(files: list[Path], target: Path) -> None:
    """Some files, as a zip archive."""
    with zipfile.ZipFile(target, "w") as archive:
        for path in files:
            archive.write(path, path.name)


def md5(path: Path) -> str:
    """The md5 of a file."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
