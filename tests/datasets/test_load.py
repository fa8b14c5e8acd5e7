"""Datasets from the layouts of their sources: counts, splits that share nothing, class lists, and bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from schane_cli.commands.fewshot import seen_classes_note
from schane_cli.datasets import load as data
from schane_cli.datasets.catalog import DATASETS, class_list, state
from schane_cli.datasets.cifar import cifar100
from schane_cli.datasets.load import load_fewshot_splits, load_splits
from schane_cli.errors import BadRequest
from schane_cli.images import memory as images_module
from schane_cli.images.decode import read_image
from schane_cli.images.imageset import Files, ImageSet, Stored
from schane_cli.images.splits import Splits
from schane_cli.recipe import DataRecipe
from tests import sources

MINI = {
    "train": ["n01532829", "n01558993"],
    "val": ["n01855672", "n02091244"],
    "test": ["n01930112", "n01981276"],
}


def recipe(dataset: str, root: Path, **values: object) -> DataRecipe:
    return DataRecipe.model_validate({"dataset": dataset, "root": root, **values})


def ids(images: ImageSet) -> set[str]:
    return set(images.ids)


def assert_disjoint(splits: Splits) -> None:
    train, val, test = ids(splits.train), ids(splits.val), ids(splits.test)
    assert len(train | val | test) == len(train) + len(val) + len(test)
    assert len(train) == len(splits.train)


def make(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small dataset in its real layout below `root`."""
    folder = root / name
    folder.mkdir(parents=True)
    maker = getattr(sources, name)
    if name in {"flowers102", "places365"}:
        maker(folder, monkeypatch)
    elif name == "imagenet1k":
        maker(folder, {"n01440764": 6, "n01443537": 6})
    else:
        maker(folder)


@pytest.mark.parametrize(
    ("name", "train_and_val", "test", "classes"),
    [
        ("cub200", 16, 8, 4),
        ("caltech256", 16, 3, 3),
        ("flowers102", 6, 6, 102),
        ("pets", 8, 4, 2),
        ("inat2017", 12, 6, 3),
        ("places365", 8, 4, 2),
        ("imagenet1k", 12, 4, 2),
    ],
)
def test_a_benchmark_loads_from_its_real_layout(
    name: str, train_and_val: int, test: int, classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(name, tmp_path, monkeypatch)
    assert state(DATASETS[name], tmp_path) == "ready"
    splits = load_splits(recipe(name, tmp_path))
    assert (len(splits.train) + len(splits.val), len(splits.test)) == (train_and_val, test)
    for part in (splits.train, splits.val, splits.test):
        assert len(part.class_names) == classes
        assert set(part.labels.tolist()) <= set(range(classes))
        pixels = part.read(0)
        assert pixels.shape[0] == 3
        assert pixels.dtype is not None
    assert_disjoint(splits)


@pytest.mark.parametrize("name", ["cub200", "caltech256", "flowers102", "pets", "inat2017", "places365", "imagenet1k"])
def test_a_missing_dataset_is_named_before_any_work(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=f"missing in .*{name}; `schane data prepare {name}"):
        load_splits(recipe(name, tmp_path))


def test_an_incomplete_dataset_is_named_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("cub200", tmp_path, monkeypatch)
    (tmp_path / "cub200/CUB_200_2011/classes.txt").unlink()
    with pytest.raises(BadRequest, match=r"incomplete: CUB_200_2011/classes\.txt missing"):
        load_splits(recipe("cub200", tmp_path))


def test_every_dataset_of_the_issue_is_known() -> None:
    full = {"cifar100", "cub200", "caltech256", "flowers102", "pets", "inat2017", "places365", "imagenet1k"}
    few = {"cifarfs", "fc100", "miniimagenet", "tieredimagenet"}
    assert set(DATASETS) == full | few | {"digits"}
    assert {name for name, dataset in DATASETS.items() if dataset.fewshot} == few
    with pytest.raises(BadRequest, match="did you mean 'cub200'"):
        load_splits(DataRecipe(dataset="cub20"))


def test_labels_follow_the_source_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cub200", "inat2017", "pets", "places365"):
        make(name, tmp_path, monkeypatch)
    bird = load_splits(recipe("cub200", tmp_path)).test
    assert all(bird.class_names[label] in name for label, name in zip(bird.labels, bird.ids, strict=True))
    species = load_splits(recipe("inat2017", tmp_path)).train
    assert all(
        species.class_names[label].split("/")[1] in name
        for label, name in zip(species.labels, species.ids, strict=True)
    )
    assert load_splits(recipe("pets", tmp_path)).test.class_names == ("Abyssinian", "Great Pyrenees")
    place = load_splits(recipe("places365", tmp_path)).train
    assert all(place.class_names[label] in f"/{name}" for label, name in zip(place.labels, place.ids, strict=True))


def test_the_strays_of_caltech_are_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("caltech256", tmp_path, monkeypatch)
    splits = load_splits(recipe("caltech256", tmp_path))
    names = ids(splits.train) | ids(splits.val) | ids(splits.test)
    assert len(names) == 19
    assert not any("stray" in name or "RENAME" in name for name in names)


def test_the_carved_split_is_a_rule_of_seed_and_name_alone(tmp_path: Path) -> None:
    sources.class_folders(tmp_path / "here", {"a": 20, "b": 10})
    here = load_splits(recipe(f"folder:{tmp_path}/here", tmp_path))
    os.rename(tmp_path / "here", tmp_path / "there")
    there = load_splits(recipe(f"folder:{tmp_path}/there", tmp_path))
    assert (ids(here.test), ids(here.val)) == (ids(there.test), ids(there.val))
    sources.write_image(tmp_path / "there/a/a_new.jpg")
    sources.class_folders(tmp_path / "there", {"c": 5})
    more = load_splits(recipe(f"folder:{tmp_path}/there", tmp_path))
    assert not (ids(here.train) & ids(more.test)), "a further image moves none into test"
    other = load_splits(recipe(f"folder:{tmp_path}/there", tmp_path, split_seed=1))
    assert ids(other.test) != ids(more.test)
    assert np.bincount(here.test.labels).tolist() == [4, 2]


def test_equal_images_are_never_parted(tmp_path: Path) -> None:
    sources.class_folders(tmp_path, {"a": 30, "b": 30}, ".png")
    for number in range(0, 30, 2):  # every second image of a twice, one of b in both classes
        (tmp_path / "a" / f"a_{number + 1}.png").write_bytes((tmp_path / "a" / f"a_{number}.png").read_bytes())
    (tmp_path / "b" / "b_0.png").write_bytes((tmp_path / "a" / "a_0.png").read_bytes())
    for seed in range(5):
        splits = load_splits(recipe(f"folder:{tmp_path}", tmp_path, split_seed=seed))
        pixels = [
            {np.asarray(image).tobytes() for image in part.images} for part in (splits.train, splits.val, splits.test)
        ]
        assert not (pixels[0] & pixels[1] | pixels[0] & pixels[2] | pixels[1] & pixels[2])
        assert len(splits.val) >= 4
        assert len(splits.test) >= 8


def test_train_on_trainval_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("flowers102", tmp_path, monkeypatch)
    splits = load_splits(recipe("flowers102", tmp_path, train_on="trainval"))
    assert len(splits.train) == 6
    assert splits.train.split == "trainval"
    assert any("TRAINED ON TRAIN + VAL" in note for note in splits.notes)
    assert not ids(splits.train) & ids(splits.test)


def test_an_altered_mat_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("flowers102", tmp_path, monkeypatch)
    with (tmp_path / "flowers102/flowers-102/setid.mat").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BadRequest, match=r"flowers-102 is incomplete or its \.mat files are altered"):
        load_splits(recipe("flowers102", tmp_path))


def test_a_label_file_with_a_row_too_many_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("cub200", tmp_path, monkeypatch)
    with (tmp_path / "cub200/CUB_200_2011/image_class_labels.txt").open("a") as file:
        file.write("99 1\n")
    with pytest.raises(BadRequest, match=r"image_class_labels\.txt has 25 rows, images\.txt 24; image 99 differs"):
        load_splits(recipe("cub200", tmp_path))


def test_a_file_missing_in_the_middle_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("pets", tmp_path, monkeypatch)
    (tmp_path / "pets/oxford-iiit-pet/images/Abyssinian_2.jpg").unlink()
    with pytest.raises(BadRequest, match=r"images/Abyssinian_2\.jpg is missing"):
        load_splits(recipe("pets", tmp_path))


def test_annotations_that_do_not_pair_up_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("inat2017", tmp_path, monkeypatch)
    file = tmp_path / "inat2017/train2017.json"
    content = json.loads(file.read_text())
    content["annotations"].append({"id": 99, "image_id": 1, "category_id": 7})
    file.write_text(json.dumps(content))
    with pytest.raises(BadRequest, match=r"train2017\.json has 12 images and 13 annotations that do not pair up"):
        load_splits(recipe("inat2017", tmp_path))


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    sources.class_folders(tmp_path, {"a": 5, "b": 5})
    path = tmp_path / "a" / "a_2.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadRequest, match=r"image .*a_2\.jpg cannot be read"):
        load_splits(recipe(f"folder:{tmp_path}", tmp_path))


def test_a_class_with_one_image_cannot_be_split(tmp_path: Path) -> None:
    sources.class_folders(tmp_path, {"a": 5, "lonely": 1})
    with pytest.raises(BadRequest, match="class 'lonely' of .* has 1 image; a test split needs two or more"):
        load_splits(recipe(f"folder:{tmp_path}", tmp_path))


def test_large_sets_stay_files_and_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources.class_folders(tmp_path, {"a": 6, "b": 6})
    small = load_splits(recipe(f"folder:{tmp_path}", tmp_path)).train
    monkeypatch.setattr(images_module, "IN_MEMORY_BYTES", 100)
    large = load_splits(recipe(f"folder:{tmp_path}", tmp_path)).train
    assert isinstance(small.images, np.ndarray)
    assert isinstance(large.images, Files)
    assert all((small.read(i) == large.read(i)).all() for i in range(len(small)))
    assert small.subset(np.array([1, 0]), "x").ids == large.subset(np.array([1, 0]), "x").ids
    assert large.only_classes([1], "b").class_names == ("b",)
    assert large.fingerprint() != large.subset(np.array([0]), "x").fingerprint()


def test_a_jpeg_reads_as_pil_reads_it(tmp_path: Path) -> None:
    ramp = np.add.outer(np.arange(64), np.arange(80))[..., None] + np.array([0, 40, 90])
    picture = Image.fromarray((ramp % 256).astype(np.uint8))
    for name, image in (("rgb", picture), ("grey", picture.convert("L")), ("cmyk", picture.convert("CMYK"))):
        image.save(tmp_path / f"{name}.jpg")
        with Image.open(tmp_path / f"{name}.jpg") as opened:
            assert (read_image(tmp_path / f"{name}.jpg") == np.asarray(opened.convert("RGB"))).all()
    picture.save(tmp_path / "really.png")
    os.rename(tmp_path / "really.png", tmp_path / "named.jpg")
    assert (read_image(tmp_path / "named.jpg") == np.asarray(picture)).all()


def test_a_csv_lists_paths_labels_and_splits(tmp_path: Path) -> None:
    sources.class_folders(tmp_path, {"cats": 6, "dogs": 6})
    rows = [
        f"{name}/{name}_{i}.jpg,{name},{'train' if i < 4 else 'test'}" for name in ("cats", "dogs") for i in range(6)
    ]
    file = tmp_path / "list.csv"
    file.write_text("path,label,split\n" + "\n".join(rows) + "\n")
    splits = load_splits(recipe(f"csv:{file}", tmp_path))
    assert (len(splits.train) + len(splits.val), len(splits.test)) == (8, 4)
    assert splits.train.class_names == ("cats", "dogs")
    without = "\n".join(row.rpartition(",")[0] for row in rows)
    file.write_text(f"path,label\n{without}\n")
    assert_disjoint(load_splits(recipe(f"csv:{file}", tmp_path)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na/a_0.jpg,a\n./a/a_0.jpg,b\n", r"line 3 names a/a_0\.jpg again; line 2 did"),
        ("path,label,split\na/a_0.jpg,a,train\nb/b_0.jpg,b,holdout\n", "line 3: unknown split 'holdout'"),
        ("path,label\na/a_0.jpg,a\nb/b_0.jpg\n", "line 3 does not have the 2 fields"),
        ("path,label\na/a_0.jpg,a,train\nb/b_0.jpg,b\n", "line 2 does not have the 2 fields"),
        ("file,label\na/a_0.jpg,a\n", "no column 'path'"),
        ("path,label\na/a_0.jpg,a\n", "at least two labels"),
        ("path,label\na/a_0.jpg,a\nb/none.jpg,b\n", r"none\.jpg is missing"),
        ("path,label,split\na/a_0.jpg,a,train\nb/b_0.jpg,b,test\n", "class 'b' has no image in train"),
        ("", "no column 'path'"),
    ],
)
def test_a_wrong_csv_is_one_sentence_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    sources.class_folders(tmp_path, {"a": 2, "b": 2})
    file = tmp_path / "list.csv"
    file.write_text(text)
    with pytest.raises(BadRequest, match=message) as caught:
        load_splits(recipe(f"csv:{file}", tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_webdataset_shards_are_read_in_place(tmp_path: Path) -> None:
    for number in range(2):
        sources.shard(tmp_path / f"set-train-{number}.tar", {f"{number}{i:03d}": i % 2 for i in range(6)})
    sources.shard(tmp_path / "set-validation-0.tar", {f"v{i}": i % 2 for i in range(4)})
    sources.shard(tmp_path / "set-test-0.tar", {f"t{i}": i % 2 for i in range(4)})
    (tmp_path / "classes.txt").write_text("heron\nstork\n")
    splits = load_splits(recipe(f"wds/{tmp_path}", tmp_path))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (12, 4, 4)
    assert splits.train.class_names == ("heron", "stork")
    assert isinstance(splits.train.images, Stored)
    assert splits.train.subset(np.array([7]), "x").read(0).equal(splits.train.read(7))
    assert_disjoint(splits)


def test_a_broken_shard_is_named(tmp_path: Path) -> None:
    sources.shard(tmp_path / "train.tar", {"a": 0, "b": 1}, missing_label="b")
    with pytest.raises(BadRequest, match=r"train\.tar: b has no \.cls label"):
        load_splits(recipe(f"wds/{tmp_path}", tmp_path))
    sources.shard(tmp_path / "train.tar", {"a": 0, "b": 1})
    content = (tmp_path / "train.tar").read_bytes()
    (tmp_path / "train.tar").write_bytes(content[:1500])
    with pytest.raises(BadRequest, match=r"train\.tar cannot be read"):
        load_splits(recipe(f"wds/{tmp_path}", tmp_path))


def test_hugging_face_datasets_load_through_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
    sources.class_folders(tmp_path / "set" / "train", {"a": 6, "b": 6}, ".png")
    sources.class_folders(tmp_path / "set" / "test", {"a": 2, "b": 2}, ".png")
    splits = load_splits(recipe(f"hfds/{tmp_path}/set", tmp_path))
    assert (len(splits.train) + len(splits.val), len(splits.test)) == (12, 4)
    assert splits.train.class_names == ("a", "b")
    assert splits.train.read(0).shape == (3, 20, 24)


def test_without_the_package_a_hugging_face_dataset_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadRequest, match=r"hfds/some/name needs .*datasets: pip install 'schane\[hf\]'"):
        load_splits(recipe("hfds/some/name", tmp_path))


# CIFAR-100 and its few-shot sets, on the real images


@pytest.fixture(scope="module")
def real_cifar(real_data: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pixels (n, 32, 32, 3) and labels (n,) of all 60,000 images, by split."""
    parts = {}
    for split in ("train", "test"):
        pixels = []
        for name in class_list("cifar100")["all"]:
            with Image.open(real_data / "cifar100" / split / f"{name}.webp") as image:
                mosaic = np.asarray(image.convert("RGB"))
            rows, columns = mosaic.shape[0] // 32, mosaic.shape[1] // 32
            tiles = mosaic.reshape(rows, 32, columns, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
            pixels.append(tiles)
        labels = np.repeat(np.arange(100), [len(part) for part in pixels])
        parts[split] = (np.concatenate(pixels), labels)
    return parts


@pytest.fixture(scope="module")
def cifar_root(real_cifar: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the real CIFAR-100 as torchvision's archive, and the checksums of the files made here."""
    root = tmp_path_factory.mktemp("cifar")
    with pytest.MonkeyPatch.context() as patch:
        sources.cifar100_archive(root / "cifar100", real_cifar["train"], real_cifar["test"], patch)
        yield root


def some(part: tuple[np.ndarray, np.ndarray], per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of each class, in another order than by class."""
    labels = part[1]
    chosen = np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in range(100)])
    chosen = np.random.default_rng(0).permutation(chosen)
    return part[0][chosen], labels[chosen]


def test_real_cifar100_has_its_counts_and_disjoint_splits(cifar_root: Path) -> None:
    splits = load_splits(recipe("cifar100", cifar_root))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (45_000, 5_000, 10_000)
    assert splits.train.class_names == class_list("cifar100")["all"]
    assert set(np.bincount(splits.val.labels)) == {50}
    assert_disjoint(splits)
    train, val = ({image.tobytes() for image in part.images} for part in (splits.train, splits.val))
    assert not train & val


def test_all_layouts_of_cifar100_give_the_same_splits(
    real_cifar: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = some(real_cifar["train"], 4), some(real_cifar["test"], 2)
    names = class_list("cifar100")["all"]
    sources.cifar100_archive(tmp_path / "a", train, test, monkeypatch)
    for split, (pixels, labels) in (("train", train), ("test", test)):
        sources.cifar100_parquet(tmp_path / "b" / "data", split, pixels, labels)
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            name = "cra" if names[label] == "crab" else names[label]  # as Hugging Face spells it
            path = tmp_path / "c" / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    monkeypatch.setattr(images_module, "AT_ONCE", 10)  # as there are of all 60,000, which are decoded nonetheless
    first = cifar100(tmp_path / "a")
    for other in (cifar100(tmp_path / "b"), cifar100(tmp_path / "c")):
        for split in ("train", "test"):
            assert first[split].ids == other[split].ids
            assert first[split].class_names == other[split].class_names == names
            assert (first[split].labels == other[split].labels).all()
            assert (first[split].images == other[split].images).all()


def test_an_altered_cifar_file_is_never_unpickled(
    real_cifar: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = some(real_cifar["train"], 1), some(real_cifar["test"], 1)
    sources.cifar100_archive(tmp_path / "cifar100", train, test, monkeypatch)
    (tmp_path / "cifar100/cifar-100-python/train").write_bytes(b"cos\nsystem\n(S'touch " + b"x'\ntR.")
    with pytest.raises(BadRequest, match=r"cifar-100-python is incomplete or altered \(checksum\)"):
        load_splits(recipe("cifar100", tmp_path))


@pytest.mark.parametrize(("name", "counts"), [("cifarfs", (64, 16, 20)), ("fc100", (60, 20, 20))])
def test_the_real_few_shot_sets_of_cifar(
    name: str, counts: tuple[int, int, int], cifar_root: Path, real_data: Path
) -> None:
    splits = load_fewshot_splits(recipe(name, cifar_root))
    assert splits.novel_val is not None
    listed = tuple(len(part.class_names) for part in (splits.base, splits.novel_val, splits.novel))
    assert listed == counts
    assert set(np.bincount(splits.novel.labels)) == {600}
    assert len(splits.base) + len(splits.base_val) == counts[0] * 600
    pools = [set(part.class_names) for part in (splits.base, splits.novel_val, splits.novel)]
    assert len(set.union(*pools)) == 100
    assert not ids(splits.base) & ids(splits.base_val)
    assert any("64 classes" in note or "60 classes" in note for note in splits.notes)
    assert not any("WARNING" in note for note in splits.notes)
    assert pools[2] == published(name, "test", real_data)
    assert pools[1] == published(name, "val", real_data)


def published(name: str, split: str, real_data: Path) -> set[str]:
    """The class list as pytorch-meta publishes it: pairs of superclass and class, or superclasses."""
    rows = json.loads((real_data / "splits" / name.replace("cifarfs", "cifar-fs") / f"{split}.json").read_text())
    if isinstance(rows[0], list):
        return {row[1] for row in rows}
    meta = json.loads((real_data / "cifar100" / "meta.json").read_text())
    coarse = [meta["coarse_label_names"][i] for i in meta["fine_to_coarse"]]
    return {fine for fine, group in zip(meta["fine_label_names"], coarse, strict=True) if group in rows}


def test_base_training_on_trainval_says_so(cifar_root: Path) -> None:
    splits = load_fewshot_splits(recipe("fc100", cifar_root, train_on="trainval"))
    assert len(splits.base.class_names) == 80
    assert any("BASE TRAINING ON TRAIN + VAL" in note for note in splits.notes)
    assert not set(splits.base.class_names) & set(splits.novel.class_names)


def test_a_few_shot_dataset_is_not_for_fine_tuning(cifar_root: Path) -> None:
    with pytest.raises(BadRequest, match="schane fewshot --dataset cifarfs"):
        load_splits(recipe("cifarfs", cifar_root))


# few-shot sets of ImageNet


def small_mini(root: Path) -> None:
    """ImageNet's train folders of six classes, and Ravi's lists over them: images 1, 2 and 12 of each class."""
    classes = [name for split in MINI.values() for name in split]
    sources.imagenet1k(root / "imagenet1k", dict.fromkeys(classes, 12))
    lists = {split: {name: [1, 2, 12] for name in names} for split, names in MINI.items()}
    sources.ravi_lists(root / "miniimagenet", lists)


def test_ravis_names_are_positions_in_the_order_of_the_files_numbers(tmp_path: Path) -> None:
    small_mini(tmp_path)
    splits = load_fewshot_splits(recipe("miniimagenet", tmp_path))
    listed = sorted(name for name in splits.novel.ids if name.startswith("n01930112"))
    assert listed == ["n01930112/n01930112_2.JPEG", "n01930112/n01930112_35.JPEG", "n01930112/n01930112_5.JPEG"]
    assert splits.novel.class_names == tuple(MINI["test"])
    assert any("differs from Ravi and Larochelle's" in note for note in splits.notes)


def test_a_list_of_imagenets_own_names_is_taken_by_name(tmp_path: Path) -> None:
    small_mini(tmp_path)
    for split, names in MINI.items():
        rows = [f"{name}_{number}.JPEG,{name}" for name in names for number in (2, 8)]
        (tmp_path / "miniimagenet" / f"{split}.csv").write_text("filename,label\n" + "\n".join(rows) + "\n")
    splits = load_fewshot_splits(recipe("miniimagenet", tmp_path))
    assert ids(splits.novel) == {f"{name}/{name}_{number}.JPEG" for name in MINI["test"] for number in (2, 8)}


def test_images_beside_the_lists_need_no_imagenet(tmp_path: Path) -> None:
    lists = {split: {name: [1, 2, 3] for name in names} for split, names in MINI.items()}
    sources.ravi_lists(tmp_path / "miniimagenet", lists)
    for names in MINI.values():
        for name in names:
            for position in (1, 2, 3):
                sources.write_image(tmp_path / "miniimagenet" / "images" / f"{name}{position:08d}.jpg")
    assert len(load_fewshot_splits(recipe("miniimagenet", tmp_path)).novel) == 6


def test_the_look_alike_of_mini_imagenet_is_refused(tmp_path: Path) -> None:
    small_mini(tmp_path)
    everywhere = {split: {MINI["train"][0]: [1, 2, 3], MINI["test"][0]: [1, 2, 3]} for split in MINI}
    sources.ravi_lists(tmp_path / "miniimagenet", everywhere)
    with pytest.raises(BadRequest, match=r"in both train\.csv and val\.csv .*timm/mini-imagenet"):
        load_fewshot_splits(recipe("miniimagenet", tmp_path))


def test_an_incomplete_class_of_imagenet_is_named(tmp_path: Path) -> None:
    small_mini(tmp_path)
    sources.ravi_lists(tmp_path / "miniimagenet", {"test": {MINI["test"][0]: [13]}})
    with pytest.raises(BadRequest, match="is image 13 of n01930112, which has 12 in"):
        load_fewshot_splits(recipe("miniimagenet", tmp_path))


def test_tieredimagenet_reads_its_608_classes(tmp_path: Path) -> None:
    names = [name for split in class_list("tieredimagenet").values() for name in split]
    assert len(names) == len(set(names)) == 608
    for place, name in enumerate(names):
        folder = tmp_path / "imagenet1k" / "train" / name
        folder.mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (4, 4), (place % 256, place // 256, number)).save(folder / f"{name}_{number}.png")
    (tmp_path / "imagenet1k" / "val" / "n01440764").mkdir(parents=True)
    splits = load_fewshot_splits(recipe("tieredimagenet", tmp_path))
    assert splits.novel_val is not None
    assert [len(p.class_names) for p in (splits.base, splits.novel_val, splits.novel)] == [351, 97, 160]
    (tmp_path / "imagenet1k" / "train" / names[-1] / f"{names[-1]}_0.png").unlink()
    (tmp_path / "imagenet1k" / "train" / names[-1] / f"{names[-1]}_1.png").unlink()
    with pytest.raises(BadRequest, match="holds no images"):
        load_fewshot_splits(recipe("tieredimagenet", tmp_path))


def test_cub_has_its_few_shot_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_data: Path) -> None:
    make("cub200", tmp_path, monkeypatch)
    splits = load_fewshot_splits(recipe("cub200", tmp_path))
    assert splits.base.class_names == ("001.Albatross", "003.Blackbird")
    assert splits.novel_val is not None
    assert (splits.novel_val.class_names, splits.novel.class_names) == (("002.Auklet",), ("004.Bobolink",))
    for split, remainders in (("train", {1, 3}), ("val", {2}), ("test", {0})):
        names = json.loads((real_data / "splits" / "cub" / f"{split}.json").read_text())
        assert {int(name[:3]) % 4 for name in names} == remainders


@pytest.mark.parametrize(
    ("backbone", "weights", "dataset", "said"),
    [
        ("resnet50.a1_in1k", "pretrained", "miniimagenet", "all 20 test classes of miniimagenet"),
        ("resnet50", "pretrained", "tieredimagenet", "all 160 test classes of tieredimagenet"),
        ("vit_base_patch16_224", "pretrained", "cifarfs", "classes like the test classes"),
        ("resnet50", "some.pt", "fc100", "nothing here can tell"),
        ("beit3_base_patch16_224.pt", "pretrained", "miniimagenet", "pretrained on ImageNet"),
        ("beit_base", "pretrained", "tieredimagenet", "pretrained on ImageNet"),
        ("vit_base_patch16_clip_224.openai", "pretrained", "fc100", "is not known here"),
        ("resnet50", "random", "miniimagenet", None),
        ("resnet50", "pretrained", "cub200", None),
    ],
)
def test_a_backbone_that_has_seen_the_test_classes_is_named(
    backbone: str, weights: str, dataset: str, said: str | None
) -> None:
    note = seen_classes_note(backbone, weights, dataset)
    assert note is None if said is None else note is not None and said in note


def test_a_study_reads_its_images_once_and_other_calls_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    read = data.read_source
    monkeypatch.setattr(data, "read_source", lambda recipe: asked.append(recipe.dataset) or read(recipe))
    with data.reading_once():
        load_splits(DataRecipe(dataset="digits"))
        few = load_splits(DataRecipe(dataset="digits", train_per_class=5))
        assert len(few.train) == 50
    assert asked == ["digits"]
    whole = load_splits(DataRecipe(dataset="digits"))
    assert asked == ["digits"] * 2
    assert ids(few.test) == ids(whole.test)


def test_the_digits_are_those_of_scikit_learn() -> None:
    digits, whole = load_digits(), DATASETS["digits"].read(Path())["all"]
    grey = np.asarray(whole.images)[..., 0]
    assert np.array_equal(grey, (digits.images * (255 / 16)).round().astype(np.uint8))
    assert np.array_equal(whole.labels, digits.target)


def test_a_run_imports_no_library_that_its_first_step_does_not_need() -> None:
    heavy = ("sklearn", "pandas", "pyarrow", "matplotlib", "scipy.stats", "scipy.optimize", "scipy.signal", "datasets")
    code = (
        "import schane_cli.cli, schane_cli.commands.finetune, schane_cli.training.trainer, sys;"
        "from schane_cli.datasets.load import load_splits; from schane_cli.recipe import DataRecipe;"
        f"load_splits(DataRecipe(dataset='digits')); print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
