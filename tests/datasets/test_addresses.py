"""Shards and tables at addresses, told from paths; what the disk cannot hold."""

import multiprocessing
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from schane_cli.datasets import huggingface
from schane_cli.datasets.addresses import is_address
from schane_cli.datasets.load import listed_parts, load_splits
from schane_cli.datasets.shards import TarImages
from schane_cli.errors import BadRequest
from schane_cli.images.content import number_of, with_content
from schane_cli.recipe import DataRecipe
from tests.sources import cifar100_parquet, shard

pytest.importorskip("aiohttp")


class Ranges(SimpleHTTPRequestHandler):
    """A file server that answers requests for parts of files, as object stores do."""

    asked: ClassVar[list[str]] = []

    def log_message(self, *args: object) -> None:
        pass

    def send_head(self):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not wanted or not path.is_file():
            return super().send_head()
        self.asked.append(wanted[0])
        size = path.stat().st_size
        start, end = int(wanted[1]), min(int(wanted[2] or size - 1), size - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.send_header("Content-Length", str(end - start + 1))
        self.end_headers()
        self.wfile.write(path.read_bytes()[start : end + 1])


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def load(dataset: str, root: Path):
    return load_splits(DataRecipe.model_validate({"dataset": dataset, "root": root}))


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("s3://bucket/shards", True),
        ("https://host/x", True),
        ("hf://datasets/a/b", True),
        ("/data/shards", False),
        ("C:/data", False),
        ("data:set/x", False),
    ],
)
def test_an_address_is_told_from_a_path(place: str, expected: bool) -> None:
    assert is_address(place) is expected


def test_shards_at_an_address_give_the_images_that_they_give_here(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    for split in ("train", "test"):
        shard(folder / "shards" / f"{split}-0.tar", {f"{split}{i}": i % 2 for i in range(12)})
    (folder / "shards" / "classes.txt").write_text("crane\nheron\n")
    here, there = (load(f"wds:{place}/shards", tmp_path) for place in (folder, address))
    assert there.train.class_names == ("crane", "heron")
    assert list(there.train.ids) == list(here.train.ids)
    Ranges.asked.clear()
    for one, other in ((here.train, there.train), (here.test, there.test)):
        assert all(torch.equal(one.read(i), other.read(i)) for i in range(len(one)))
    lengths = [int(last) - int(first) for asked in Ranges.asked for first, last in [asked[6:].split("-")]]
    assert max(lengths) < 4000  # an image, not what lies behind it too


def test_shards_at_an_address_are_indexed_once_until_one_changes(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    for split in ("train", "test"):
        shard(folder / "shards" / f"{split}-0.tar", {f"{split}{i}": i % 2 for i in range(12)})
    recipe = DataRecipe.model_validate({"dataset": f"wds:{address}/shards", "root": tmp_path / "root"})
    first = listed_parts(recipe)
    Ranges.asked.clear()
    second = listed_parts(recipe)
    assert Ranges.asked == []
    assert second["train"].identity() == first["train"].identity()
    assert torch.equal(second["test"].read(3), first["test"].read(3))
    shard(folder / "shards" / "test-0.tar", {f"other{i}": i % 2 for i in range(20)})
    assert len(listed_parts(recipe)["test"]) == 20


def test_joining_the_splits_of_shards_reads_none_of_their_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "test"):
        shard(tmp_path / f"{split}-0.tar", {f"{split}{i}": i % 2 for i in range(8)})
    parts = listed_parts(DataRecipe.model_validate({"dataset": f"wds:{tmp_path}", "root": tmp_path}))
    with monkeypatch.context() as patched:
        patched.setattr(TarImages, "_read", lambda *_: pytest.fail("an image was read"))
        whole = parts["train"].joined(parts["test"], "all")
        swapped = whole.subset(np.array([9, 2]), "two")
    assert len(whole) == 16
    assert torch.equal(swapped.read(0), parts["test"].read(1))
    assert torch.equal(swapped.read(1), parts["train"].read(2))
    assert swapped.ids[0] == parts["test"].ids[1]
    numbered = with_content({"all": whole}, lambda _: None)["all"]
    assert numbered.content is not None
    assert numbered.content[9] == number_of(parts["test"].images.sample(1))


def test_shards_are_named_by_a_range_where_the_server_lists_no_folders(
    served: tuple[Path, str], tmp_path: Path
) -> None:
    folder, address = served
    for split, number in (("train", "08"), ("train", "09"), ("train", "10"), ("train", "11")):
        shard(folder / "a" / f"{split}-{number}.tar", {f"{number}{i}": i % 2 for i in range(6)})
    splits = load(f"wds:{address}/a/train-{{08..10}}.tar", tmp_path)
    names = {one.partition("/")[0] for part in (splits.train, splits.val, splits.test) for one in part.ids}
    assert names == {"train-08.tar", "train-09.tar", "train-10.tar"}


def test_another_process_reads_shards_at_an_address(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    shard(folder / "all-0.tar", {f"k{i}": i % 2 for i in range(8)})
    train = load(f"wds:{address}", tmp_path).train
    first = train.read(0)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert torch.equal(pool.apply_async(train.read, (0,)).get(timeout=60), first)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("wds:ADDRESS/nothing", "holds no .tar shards; where a server does not list its folders, name them"),
        ("wds:ADDRESS/empty", "holds no .tar shards"),
        ("wds:nowhere://bucket/shards", "nowhere://bucket/shards cannot be read: Protocol not known"),
        ("hfds:ADDRESS/set.csv", "set.csv does not end in .parquet"),
        ("folder:ADDRESS/x", "is an address, and folder: reads files of this machine"),
        ("csv:s3://bucket/list.csv", "is an address, and csv: reads files of this machine"),
    ],
)
def test_an_address_that_cannot_be_read_is_a_sentence(
    dataset: str, message: str, served: tuple[Path, str], tmp_path: Path
) -> None:
    folder, address = served
    (folder / "empty").mkdir()
    with pytest.raises(BadRequest, match=re.escape(message)):
        load(dataset.replace("ADDRESS", address), tmp_path)


def test_a_parquet_file_at_an_address_is_read(served: tuple[Path, str], tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder, address = served
    pixels = np.random.default_rng(0).integers(0, 256, (24, 9, 8, 3), dtype=np.uint8)
    cifar100_parquet(folder, "train", pixels, np.arange(24) % 3)
    address += "/train-00000-of-00001.parquet"
    train = load_splits(DataRecipe(dataset=f"hfds:{address}", root=tmp_path / "root", label_column="fine_label")).train
    assert len(train.class_names) == 3
    assert train.read(0).shape == (3, 9, 8)


def test_a_set_of_the_hub_that_the_disk_cannot_hold_is_refused_before_the_download(tmp_path: Path) -> None:
    info = SimpleNamespace(download_size=10**18, dataset_size=None)
    builder = SimpleNamespace(cache_dir=str(tmp_path / "set"), info=info)
    with pytest.raises(BadRequest, match=r"takes 1000000000.0 GB on disk and .* has .* free; .* --data-root"):
        huggingface._require_room("hfds:huge", builder, tmp_path / "not" / "there" / "yet")
    (tmp_path / "set").mkdir()
    huggingface._require_room("hfds:huge", builder, tmp_path)  # it is here already
