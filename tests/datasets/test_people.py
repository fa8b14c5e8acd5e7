"""Folders, tables and shards as people have them: split names, labels, copies, hidden files, damaged pictures."""

import io
import json
import multiprocessing
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from schane_cli.datasets import listing, remembered
from schane_cli.datasets import load as load_module
from schane_cli.datasets.check import check
from schane_cli.datasets.load import listed_parts, load_splits
from schane_cli.datasets.prepare import info
from schane_cli.datasets.split_names import choose_splits, split_of
from schane_cli.errors import BadRequest
from schane_cli.images import imageset, memory
from schane_cli.images.decode import read_image
from schane_cli.images.splits import Splits
from schane_cli.recipe import DataRecipe
from schane_cli.terminal import Terminal
from tests.sources import add, class_folders, shard, write_image


def load(dataset: str, **values: object) -> Splits:
    return load_splits(DataRecipe.model_validate({"dataset": dataset, **values}))


def sizes(splits: Splits) -> tuple[int, int, int]:
    return len(splits.train), len(splits.val), len(splits.test)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("TRAIN", "train"),
        ("Training", "train"),
        ("training_set", "train"),
        ("seg_train", "train"),
        ("train2017", "train"),
        ("valid", "val"),
        ("Validation", "val"),
        ("dev", "val"),
        ("seg_test", "test"),
        ("TestSet", "test"),
        ("Testing", "test"),
        *[(name, None) for name in ("strain", "latest", "device", "intervals", "train_val", "trainer", "contest")],
    ],
)
def test_a_split_is_a_whole_word_of_a_name(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_two_names_of_one_split_are_refused_unless_one_is_the_word_itself() -> None:
    with pytest.raises(BadRequest, match="'Train' and 'training', which both mean train"):
        choose_splits(["Train", "training", "test"], "here")
    chosen, notes = choose_splits(["train", "train_extra", "test"], "here")
    assert chosen == {"train": "train", "test": "test"}
    assert "'train_extra' of here looks like train but is not read" in notes[0]


@pytest.mark.parametrize(
    ("train", "test"), [("Train", "Test"), ("training_set", "test_set"), ("seg_train", "seg_test")]
)
def test_folders_shards_and_tables_take_the_same_split_names(train: str, test: str, tmp_path: Path) -> None:
    for name in (train, test):
        class_folders(tmp_path / "folder" / name, {"cat": 4, "dog": 4}, ".png")
        shard(tmp_path / "wds" / f"{name}-0.tar", {f"{name}{i}": i % 2 for i in range(8)})
    rows = [f"{name}/{c}/{c}_{i}.png,{c},{name}" for name in (train, test) for c in ("cat", "dog") for i in range(4)]
    (tmp_path / "folder" / "list.csv").write_text("Path,LABEL,Split\n" + "\n".join(rows))
    for dataset in (f"folder:{tmp_path}/folder", f"csv:{tmp_path}/folder/list.csv", f"wds:{tmp_path}/wds"):
        splits = load(dataset)
        assert sizes(splits) == (6, 2, 8), dataset
        assert len(splits.train.class_names) == 2


def test_classes_called_train_and_test_cannot_come_out(tmp_path: Path) -> None:
    for name in ("Train", "Test"):
        write_image(tmp_path / name / "a.png")
    with pytest.raises(BadRequest, match="look like splits, but no folder per class"):
        load(f"folder:{tmp_path}")


def test_one_class_called_like_a_split_beside_others_is_a_class_and_said(tmp_path: Path) -> None:
    class_folders(tmp_path, {"bus": 4, "car": 4, "train": 4}, ".png")
    splits = load(f"folder:{tmp_path}")
    assert splits.train.class_names == ("bus", "car", "train")
    assert any("'train' looks like a split but holds images itself" in note for note in splits.notes)


def test_a_test_folder_without_class_folders_is_said_and_val_serves_as_test(tmp_path: Path) -> None:
    for name in ("train", "val"):
        class_folders(tmp_path / name, {"cat": 6, "dog": 6}, ".png")
    write_image(tmp_path / "test" / "1.png")
    splits = load(f"folder:{tmp_path}")
    assert sizes(splits) == (10, 2, 12)
    assert any("TEST IS THE SOURCE'S VAL" in note for note in splits.notes)


def test_hidden_folders_loops_and_pipes_are_not_read(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 4, "dog": 4}, ".png")
    for name in (".ipynb_checkpoints", "@eaDir/x", "__MACOSX", "cat/.Trash-1000/files", "cat/@eaDir"):
        write_image(tmp_path / name / "copy.png")
    os.symlink(tmp_path, tmp_path / "cat" / "loop")
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    class_folders(tmp_path.parent / f"{tmp_path.name}-linked", {"more": 2}, ".png")
    os.symlink(tmp_path.parent / f"{tmp_path.name}-linked" / "more", tmp_path / "dog" / "linked")
    splits = load(f"folder:{tmp_path}")
    assert splits.train.class_names == ("cat", "dog")
    assert (
        sum(name.startswith("dog/linked") for part in (splits.train, splits.val, splits.test) for name in part.ids) == 2
    )
    assert any("1 pipes or devices" in note for note in splits.notes)


def test_what_is_skipped_is_counted_by_suffix_and_files_without_one_are_read(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 4, "dog": 4}, ".jfif.png")
    write_image(tmp_path / "cat" / "x.png")
    os.rename(tmp_path / "cat" / "x.png", tmp_path / "cat" / "no_suffix")
    for i in range(3):
        (tmp_path / "dog" / f"{i}.CR2").write_bytes(b"raw")
    splits = load(f"folder:{tmp_path}")
    assert sum(sizes(splits)) == 9
    assert any("3 .CR2" in note for note in splits.notes)


@pytest.mark.parametrize("in_memory", [True, False])
def test_equal_images_stay_together_even_where_a_group_exceeds_the_quota(
    in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_folders(tmp_path, dict.fromkeys("abcdef", 6), ".png")
    for file in sorted(tmp_path.rglob("*.png")):
        for copy in range(3):
            (file.parent / f"{file.stem} ({copy}).png").write_bytes(file.read_bytes())
    if not in_memory:
        monkeypatch.setattr(memory, "IN_MEMORY_BYTES", 10)
    splits = load(f"folder:{tmp_path}")
    assert isinstance(splits.train.images, np.ndarray) == in_memory
    held = [{(tmp_path / name).read_bytes() for name in part.ids} for part in (splits.train, splits.val, splits.test)]
    assert not held[0] & held[1] | held[0] & held[2] | held[1] & held[2]
    assert all(len(np.unique(part.labels)) == 6 for part in (splits.train, splits.val, splits.test))


def test_images_that_the_source_shares_are_said_and_can_be_left_out_of_train(tmp_path: Path) -> None:
    for split in ("train", "test"):
        class_folders(tmp_path / split, {"cat": 6, "dog": 6}, ".png")
    (tmp_path / "train" / "cat" / "again.png").write_bytes((tmp_path / "test" / "dog" / "dog_0.png").read_bytes())
    splits = load(f"folder:{tmp_path}")
    assert any("SHARED: 1 images of test are also in train" in note for note in splits.notes)
    without = load(f"folder:{tmp_path}", leave_out_shared=True)
    assert "train/cat/again.png" not in [*without.train.ids, *without.val.ids]
    assert not any("SHARED" in note for note in without.notes)


@pytest.mark.parametrize(
    ("label", "message"),
    [("-1", r"shard train-0\.tar key b3 \(label '-1'\)"), ("", r"shard train-0\.tar key b3")],
)
def test_a_shard_with_a_missing_label_is_named(label: str, message: str, tmp_path: Path) -> None:
    shard(tmp_path / "train-0.tar", {f"a{i}": i % 2 for i in range(8)} | {"b3": label})
    with pytest.raises(BadRequest, match=message):
        load(f"wds:{tmp_path}")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ((3_000_000_000, 7), ("7", "3000000000")),
        (("cat", "dog"), ("cat", "dog")),
        ((1.0, 2.0), ("1", "2")),
    ],
)
def test_labels_of_any_kind_become_a_class_list(labels: tuple, classes: tuple[str, ...], tmp_path: Path) -> None:
    shard(tmp_path / "all-0.tar", {f"k{i}": labels[i % 2] for i in range(12)})
    assert load(f"wds:{tmp_path}").train.class_names == classes


def test_labels_in_json_are_read_and_two_images_of_a_key_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "PNG")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for i in range(8):
            Image.new("RGB", (9, 9), (i, 0, 0)).save(buffer := io.BytesIO(), "PNG")
            add(tar, f"{i}.png", buffer.getvalue())
            add(tar, f"{i}.json", json.dumps({"label": "heron" if i % 2 else "stork", "caption": "a bird"}).encode())
    assert load(f"wds:{tmp_path}").train.class_names == ("heron", "stork")
    with tarfile.open(tmp_path / "x.tar", "a") as tar:
        add(tar, "0.jpg", buffer.getvalue())
    with pytest.raises(BadRequest, match="0 has two images"):
        load(f"wds:{tmp_path}")


def test_test_shards_without_a_single_label_are_not_used_and_said(tmp_path: Path) -> None:
    for split in ("train", "val"):
        shard(tmp_path / f"{split}-0.tar", {f"{split}{i}": i % 2 for i in range(8)})
    with tarfile.open(tmp_path / "test-0.tar", "w") as tar:
        for i in range(3):
            Image.new("RGB", (9, 9), (i, 0, 0)).save(buffer := io.BytesIO(), "PNG")
            add(tar, f"t{i}.png", buffer.getvalue())
    splits = load(f"wds:{tmp_path}")
    assert all(name.startswith("val-0.tar") for name in splits.test.ids)
    assert any("TEST IS THE SOURCE'S VAL" in note for note in splits.notes)
    with tarfile.open(tmp_path / "test-0.tar", "a") as tar:
        add(tar, "t0.cls", b"1")
    with pytest.raises(BadRequest, match=r"t1 has no \.cls label"):
        load(f"wds:{tmp_path}")


def test_a_thousand_shards_need_few_open_files(tmp_path: Path) -> None:
    import resource

    for i in range(120):
        shard(tmp_path / f"{i:03d}.tar", {f"{i}a": 0, f"{i}b": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 80, hard))
    try:
        train = load(f"wds:{tmp_path}").train
        assert all(train.read(i).shape == (3, 20, 24) for i in range(len(train)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_tables_as_spreadsheets_write_them(encoding: str, delimiter: str, tmp_path: Path) -> None:
    class_folders(tmp_path, {"cät": 6, "dog": 6}, ".png")
    rows = [
        delimiter.join((f"{name}\\{name}_{i}.png", f"{name}{' ' if i % 2 else ''}"))
        for name in ("cät", "dog")
        for i in range(6)
    ]
    text = "\r\n".join([delimiter.join(("File", "Class")), *rows, ""])
    (tmp_path / "list.csv").write_bytes(text.encode(encoding))
    splits = load(f"csv:{tmp_path}/list.csv", image_column="file", label_column="Class")
    assert splits.train.class_names == ("cät", "dog")
    assert sum(sizes(splits)) == 12


def test_a_line_without_a_label_is_named(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 3, "b": 3}, ".png")
    rows = [f"{name}/{name}_{i}.png,{'' if (name, i) == ('b', 1) else name}" for name in "ab" for i in range(3)]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(rows))
    with pytest.raises(BadRequest, match="1 image of all without a label: line 6"):
        load(f"csv:{tmp_path}/list.csv")


def test_names_that_are_not_utf8_are_read_and_printable(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 4, "dog": 4}, ".png")
    os.rename(os.fsencode(tmp_path / "cat" / "cat_0.png"), os.fsencode(tmp_path / "cat") + b"/caf\xe9.png")
    os.rename(os.fsencode(tmp_path / "dog"), os.fsencode(tmp_path) + b"/ch\xeen")
    splits = load(f"folder:{tmp_path}")
    names = [name for part in (splits.train, splits.val, splits.test) for name in part.ids]
    assert "cat/caf\\xe9.png" in names
    assert splits.train.class_names == ("cat", "ch\\xeen")
    "".join(names).encode()


def test_broken_images_are_all_named_or_left_out_and_counted(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 5, "dog": 5}, ".jpg")
    (tmp_path / "cat" / "cat_1.jpg").write_bytes(b"")
    cut = tmp_path / "dog" / "dog_1.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    (tmp_path / "dog" / "dog_2.jpg").write_text("<html>404</html>")
    with pytest.raises(BadRequest, match=r"cat_1\.jpg cannot be read: it is empty \(0 bytes\).*dog_1.*dog_2"):
        load(f"folder:{tmp_path}")
    splits = load(f"folder:{tmp_path}", broken="leave_out")
    assert splits.left_out == 3
    assert sum(sizes(splits)) == 7


def test_lists_of_corrections_leave_images_out_and_change_their_class(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 7, "dog": 7}, ".png")
    (tmp_path / "bad.csv").write_text(
        f"path,reason\ncat/cat_0.png,blurred\n{tmp_path}/cat/cat_1.png,x\nnone.png,gone\n"
    )
    (tmp_path / "new.csv").write_text("path,label\ncat/cat_2.png,dog\n")
    splits = load(f"folder:{tmp_path}", exclude=tmp_path / "bad.csv", relabel=tmp_path / "new.csv")
    label_of = {
        name: part.class_names[label]
        for part in (splits.train, splits.val, splits.test)
        for name, label in zip(part.ids, part.labels, strict=True)
    }
    assert len(label_of) == 12
    assert label_of["cat/cat_2.png"] == "dog"
    assert any("2 images left out by" in note and "none.png" in note for note in splits.notes)
    (tmp_path / "new.csv").write_text("path,label\ncat/cat_2.png,dgo\n")
    with pytest.raises(BadRequest, match="line 2: 'dgo' is not a class of .*; did you mean 'dog'"):
        load(f"folder:{tmp_path}", relabel=tmp_path / "new.csv")


def test_check_tells_all_at_once_and_writes_what_exclude_takes_back(tmp_path: Path) -> None:
    for split in ("train", "test"):
        class_folders(tmp_path / "set" / split, {"cat": 8, "dog": 8}, ".jpg")
    train = tmp_path / "set" / "train"
    (train / "cat" / "cat_1.jpg").write_bytes(b"")
    (train / "dog" / "dog_1.jpg").write_text("<html>404</html>")
    (train / "dog" / "dog_2.jpg").write_bytes((tmp_path / "set" / "test" / "dog" / "dog_5.jpg").read_bytes())
    verdict = check(f"folder:{tmp_path}/set", tmp_path, Terminal(quiet=True))
    assert ["0 bytes" in text for text in verdict.problems].count(True) == 1
    assert len(verdict.problems) == 3
    verdict.write_bad(tmp_path / "bad.csv")
    assert len((tmp_path / "bad.csv").read_text().splitlines()) == 4
    splits = load(f"folder:{tmp_path}/set", exclude=tmp_path / "bad.csv")
    assert sum(sizes(splits)) == 32 - 3
    assert not any("SHARED" in note for note in splits.notes)


def test_data_info_knows_the_four_kinds(tmp_path: Path) -> None:
    class_folders(tmp_path / "Train", {"cat": 3, "dog": 3}, ".png")
    class_folders(tmp_path / "Valid", {"cat": 2, "dog": 2}, ".png")
    known = info(f"folder:{tmp_path}", tmp_path)
    assert (known["counts"], known["classes"]) == ({"train": 6, "val": 4}, 2)
    for kind in ("folder", "csv", "hfds", "wds"):
        assert kind in info(f"{kind}:", tmp_path)["by hand"]


def test_hub_datasets_have_any_columns_labels_and_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
    pictures = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(20)]
    rows = {"photo": pictures, "kind": [("cat", "dog")[i % 2] for i in range(20)]}
    table = datasets.Dataset.from_dict(rows).cast_column("photo", datasets.Image())
    datasets.DatasetDict({"Training": table, "Testing": table.select(range(6))}).save_to_disk(tmp_path / "disk")
    with pytest.raises(BadRequest, match=r"columns photo, kind; say which holds the labels: --set data\.label_column"):
        load(f"hfds:{tmp_path}/disk", root=tmp_path)
    splits = load(f"hfds:{tmp_path}/disk", root=tmp_path, label_column="kind", leave_out_shared=True)
    assert splits.train.class_names == ("cat", "dog")
    assert len(splits.test) == 6
    assert splits.train.read(0).shape == (3, 8, 8)


def test_hub_rows_without_image_or_label_are_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for column, hole in (("image", 3), ("label", 5)):
        rows: dict[str, list] = {
            "image": [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(20)],
            "label": [i % 2 for i in range(20)],
        }
        rows[column][hole] = None
        folder = tmp_path / column / "data"
        folder.mkdir(parents=True)
        datasets.Dataset.from_dict(rows, features=kinds).to_parquet(folder / "train-00000-of-00001.parquet")
        with pytest.raises(BadRequest, match=f"train row {hole}"):
            load(f"hfds:{tmp_path}/{column}", root=tmp_path)
    assert load(f"hfds:{tmp_path}/image", root=tmp_path, broken="leave_out").left_out == 1


def test_a_test_split_of_minus_ones_is_known_before_training(tmp_path: Path) -> None:
    shard(tmp_path / "train.tar", {f"a{i}": i % 2 for i in range(20)})
    shard(tmp_path / "val.tar", {f"b{i}": i % 2 for i in range(6)})
    shard(tmp_path / "test.tar", {f"c{i}": -1 for i in range(6)})
    splits = load(f"wds/{tmp_path}")
    assert sizes(splits) == (18, 2, 6)
    assert any("TEST IS THE SOURCE'S VAL" in note for note in splits.notes)


def test_what_a_large_set_holds_is_remembered_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path / "set", {"cat": 8, "dog": 8}, ".png")
    monkeypatch.setattr(memory, "IN_MEMORY_BYTES", 10)
    monkeypatch.setattr(load_module, "WORTH_REMEMBERING", 10)
    monkeypatch.setattr(remembered, "WORTH_REMEMBERING", 10)
    compared: list[int] = []
    real = load_module.with_content
    monkeypatch.setattr(load_module, "with_content", lambda *args: compared.append(1) or real(*args))
    first = load(f"folder:{tmp_path}/set", root=tmp_path / "root")
    second = load(f"folder:{tmp_path}/set", root=tmp_path / "root")
    assert len(compared) == 1
    assert first.train.content is not None
    assert second.train.content is not None
    assert (first.train.content == second.train.content).all()
    write_image(tmp_path / "set" / "cat" / "cat_3.png")
    load(f"folder:{tmp_path}/set", root=tmp_path / "root")
    assert len(compared) == 2


def test_the_files_of_a_large_folder_are_listed_once_until_one_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "test"):
        class_folders(tmp_path / "set" / split, {"cat": 6, "dog": 6}, ".png")
    (tmp_path / "set" / "train" / "cat" / "notes.doc").touch()
    monkeypatch.setattr(remembered, "WORTH_REMEMBERING", 10)
    monkeypatch.setattr(listing, "_SETTLED_NANOSECONDS", 0)
    walks: list[Path] = []
    real = listing.list_images
    monkeypatch.setattr(listing, "list_images", lambda *args: walks.append(args[0]) or real(*args))
    recipe = DataRecipe.model_validate({"dataset": f"folder:{tmp_path}/set", "root": tmp_path / "root"})
    first = listed_parts(recipe)
    assert len(walks) == 4
    second = listed_parts(recipe)
    assert len(walks) == 4
    assert {split: part.identity() for split, part in first.items()} == {
        split: part.identity() for split, part in second.items()
    }
    assert first.notes == second.notes
    write_image(tmp_path / "set" / "train" / "cat" / "new.png")
    assert len(listed_parts(recipe)["train"]) == 13
    assert len(walks) == 6  # test is as it was


def test_a_folder_that_changed_a_moment_ago_is_listed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path / "set", {"cat": 6, "dog": 6}, ".png")
    monkeypatch.setattr(remembered, "WORTH_REMEMBERING", 10)
    recipe = DataRecipe.model_validate({"dataset": f"folder:{tmp_path}/set", "root": tmp_path / "root"})
    listed_parts(recipe)
    state = os.stat(tmp_path / "set" / "cat")
    write_image(tmp_path / "set" / "cat" / "new.png")
    os.utime(tmp_path / "set" / "cat", ns=(state.st_atime_ns, state.st_mtime_ns))  # within one tick of its clock
    assert len(listed_parts(recipe)["all"]) == 13


def test_many_small_images_are_decoded_when_they_are_first_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_folders(tmp_path / "set", {"cat": 12, "dog": 12}, ".png")
    whole = load(f"folder:{tmp_path}/set", root=tmp_path)
    monkeypatch.setattr(memory, "AT_ONCE", 10)
    decoded: list[Path] = []
    monkeypatch.setattr(imageset, "read_image", lambda path: decoded.append(path) or read_image(path))
    splits = load(f"folder:{tmp_path}/set", root=tmp_path)
    assert decoded == []
    assert splits.train.identity() == whole.train.identity()
    for _ in range(2):
        for i in range(len(splits.train)):
            assert torch.equal(splits.train.read(i), whole.train.read(i))
    both = splits.train.joined(splits.val, "trainval")
    assert torch.equal(both.read(0), splits.train.read(0))
    assert len(decoded) == len(splits.train)
    process = multiprocessing.get_context("fork").Process(target=splits.test.read, args=(0,))
    process.start()
    process.join(timeout=60)
    splits.test.read(0)  # what the other process decoded is here too
    assert len(decoded) == len(splits.train)


def test_many_small_images_in_several_splits_are_all_decoded_when_first_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "val", "test"):
        class_folders(tmp_path / "set" / split, {"cat": 3, "dog": 3}, ".png")
    monkeypatch.setattr(memory, "AT_ONCE", 10)  # fewer than in all of them, more than in each
    monkeypatch.setattr(imageset, "read_image", lambda path: pytest.fail(f"{path} was decoded"))
    load(f"folder:{tmp_path}/set", root=tmp_path)


def test_without_room_for_their_pixels_many_small_images_stay_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    class_folders(tmp_path / "set", {"cat": 12, "dog": 12}, ".png")
    monkeypatch.setattr(memory, "AT_ONCE", 10)
    monkeypatch.setattr(memory, "PixelMemory", refused)
    train = load(f"folder:{tmp_path}/set", root=tmp_path).train
    assert train.read(0).shape == (3, 20, 24)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_large_train_and_a_small_test_that_share_images_are_known_to(
    streamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_folders(tmp_path / "set" / "train", {"cat": 8, "dog": 8}, ".png")
    class_folders(tmp_path / "set" / "test", {"cat": 3, "dog": 3}, ".png")
    shutil.copy(tmp_path / "set" / "train" / "cat" / "cat_1.png", tmp_path / "set" / "test" / "cat" / "copy.png")
    monkeypatch.setattr(memory, "AT_ONCE", 10)
    if streamed:
        (tmp_path / "set" / "test" / "dog" / "broken.png").write_bytes(b"")
        monkeypatch.setattr(memory, "IN_MEMORY_BYTES", 15_000)  # seven images of 24 x 20 pixels fit, sixteen do not
    splits = load(f"folder:{tmp_path}/set", root=tmp_path, broken="leave_out" if streamed else "stop")
    assert len(splits.test) == 7
    assert any("SHARED: 1 images of test are also in" in note for note in splits.notes)


def test_a_column_that_looks_like_splits_is_said(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 4, "b": 4}, ".png")
    rows = [f"{name}/{name}_{i}.png,{name},{'train' if i else 'test'}" for name in "ab" for i in range(4)]
    (tmp_path / "list.csv").write_text("path,label,phase\n" + "\n".join(rows))
    assert any(
        "column 'phase'" in note and "rename it to split" in note for note in load(f"csv:{tmp_path}/list.csv").notes
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("training", "validation", "evaluation"), (12, 12, 12)),
        (("train", "test", "eval"), (12, 12, 12)),
        (("trainval", "test"), (10, 2, 12)),
        (("train", "trainval", "val", "test"), (12, 12, 12)),
    ],
)
def test_evaluation_and_trainval_mean_what_the_other_names_leave(
    names: tuple[str, ...], expected: tuple[int, int, int], tmp_path: Path
) -> None:
    for name in names:
        class_folders(tmp_path / "folders" / name, {f"{name}_a": 6, f"{name}_b": 6}, ".png")
        for letter in "ab":
            (tmp_path / "folders" / name / f"{name}_{letter}").rename(tmp_path / "folders" / name / letter)
        shard(tmp_path / "shards" / f"set-{name}-000.tar", {f"{name}{i}": i % 2 for i in range(12)})
    assert sizes(load(f"folder:{tmp_path}/folders", root=tmp_path)) == expected
    if "trainval" not in names or "train" not in names:  # several shards may be of one split
        assert sizes(load(f"wds:{tmp_path}/shards", root=tmp_path)) == expected


def test_class_names_written_otherwise_in_another_split_are_the_same_classes(tmp_path: Path) -> None:
    for split, names in (("train", ("caf\u00e9", "zebra")), ("test", ("cafe\u0301", "zebra "))):
        class_folders(tmp_path / split, dict.fromkeys(names, 6), ".png")
    test = load(f"folder:{tmp_path}", root=tmp_path).test
    assert test.class_names == ("caf\u00e9", "zebra")
    assert [test.class_names[label] for label in test.labels] == ["caf\u00e9"] * 6 + ["zebra"] * 6


def test_none_is_a_missing_label_among_numbers_and_a_class_among_words(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 6, "b": 6}, ".png")
    for name, one in (("numbers", "1"), ("words", "tumour")):
        other = ["None", "None", *(["None"] * 4 if name == "words" else ["0"] * 4)]
        rows = [f"a/a_{i}.png,{one}" for i in range(6)] + [f"b/b_{i}.png,{other[i]}" for i in range(6)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label", *rows]))
    assert load(f"csv:{tmp_path}/words.csv", root=tmp_path).train.class_names == ("None", "tumour")
    with pytest.raises(BadRequest, match="2 images of all without a label: line 8, line 9"):
        load(f"csv:{tmp_path}/numbers.csv", root=tmp_path)


def test_paths_without_a_suffix_name_the_only_picture_of_that_name(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 6, "b": 6}, ".png")
    rows = [f"{c}/{c}_{i},{c}" for c in "ab" for i in range(6)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    assert sizes(load(f"csv:{tmp_path}/t.csv", root=tmp_path)) == (8, 2, 2)
    write_image(tmp_path / "a" / "a_3.jpg")
    with pytest.raises(BadRequest, match="a_3 is missing of 12 listed files"):
        load(f"csv:{tmp_path}/t.csv", root=tmp_path)
    (tmp_path / "t.xlsx").write_bytes(b"PK\3\4" + bytes(50))
    with pytest.raises(BadRequest, match="is a spreadsheet, an archive or a parquet file"):
        load(f"csv:{tmp_path}/t.xlsx", root=tmp_path)


def test_a_shard_packed_from_a_dot_with_masks_is_read_and_one_file_or_a_range_named(tmp_path: Path) -> None:
    for name in ("x-0", "x-1", "x-2"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for i in range(8):
                write_image(tmp_path / "one.png")
                content = (tmp_path / "one.png").read_bytes()
                add(tar, f"./set/{name}{i}.png", content)
                add(tar, f"./set/{name}{i}.mask.png", content)
                add(tar, f"./set/{name}{i}.cls", str(i % 2).encode())
    whole = load(f"wds:{tmp_path}", root=tmp_path)
    assert sum(sizes(whole)) == 24
    assert any("24 .mask" in note for note in whole.notes)
    assert sum(sizes(load(f"wds:{tmp_path}/x-1.tar", root=tmp_path))) == 8
    assert sum(sizes(load(f"wds:{tmp_path}/x-{{1..2}}.tar", root=tmp_path))) == 16
