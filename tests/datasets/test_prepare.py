"""Downloads, checksums, archives and checks, against a small server on this machine and archives as delivered."""

import io
import os
import platform
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import imagenet as torchvision_imagenet

from schane_cli.datasets.archives import beside, unpack
from schane_cli.datasets.catalog import DATASETS, state
from schane_cli.datasets.check import check
from schane_cli.datasets.load import load_fewshot_splits, load_splits
from schane_cli.datasets.prepare import info, overview, prepare
from schane_cli.errors import BadRequest, SchaneError
from schane_cli.recipe import DataRecipe
from schane_cli.terminal import Terminal
from tests import sources

QUIET = Terminal(quiet=True)


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder with byte ranges, and remembers what was asked for; `drop_after` ends one answer early."""

    asked: list[tuple[str, str | None]]
    drop_after: list[int]
    ranges = True

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.asked.append((self.path, wanted))
        file = Path(self.translate_path(self.path))
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted and self.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end = start + self.drop_after.pop() if self.drop_after else None
        self.wfile.write(content[start:end])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str, type[Handler]]]:
    """(folder that is served, its URL, the handler's class)."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = type("ThisHandler", (Handler,), {"asked": [], "drop_after": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}", handler
        running.shutdown()
        thread.join(10)


def serve(name: str, folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point a dataset's sources at the server, with the checksums of the files that are served."""
    dataset = DATASETS[name]
    archives = tuple(
        replace(archive, url=f"{url}/{archive.file}", md5=sources.md5(folder / archive.file))
        for archive in dataset.archives
    )
    monkeypatch.setattr(dataset, "archives", archives)


def pack_cub(work: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources.cub200(work)
    sources.tar_of(work, folder / "CUB_200_2011.tgz", "w:gz")


def pack_caltech(work: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources.caltech256(work)
    sources.tar_of(work, folder / "256_ObjectCategories.tar")


def pack_flowers(work: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources.flowers102(work, monkeypatch)
    for file in ("imagelabels.mat", "setid.mat"):
        os.rename(work / "flowers-102" / file, folder / file)
    sources.tar_of(work / "flowers-102", folder / "102flowers.tgz", "w:gz")


def pack_pets(work: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources.pets(work)
    for part in ("images", "annotations"):
        with tarfile.open(folder / f"{part}.tar.gz", "w:gz") as tar:
            tar.add(work / "oxford-iiit-pet" / part, part)


def pack_inat(work: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources.inat2017(work)
    sources.zip_of([work / "train2017.json", work / "val2017.json"], folder / "train_val2017.zip")
    with tarfile.open(folder / "train_val_images.tar.gz", "w:gz") as tar:
        tar.add(work / "train_val_images", "train_val_images")


def pack_places(work: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources.places365(work, monkeypatch, images="data_256")
    with tarfile.open(folder / "filelist_places365-standard.tar", "w") as tar:
        for path in sorted(work.glob("*.txt")):
            tar.add(path, path.name)
    for part, file in (("data_256", "train_256_places365standard.tar"), ("val_256", "val_256.tar")):
        with tarfile.open(folder / file, "w") as tar:
            tar.add(work / part, part)


def pack_cifar(work: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.repeat(np.arange(100), 2)
    pixels = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    sources.cifar100_archive(work, (pixels, labels), (pixels[::-1], labels), monkeypatch)
    sources.tar_of(work, folder / "cifar-100-python.tar.gz", "w:gz")


PACKERS: dict[str, Callable[[Path, Path, pytest.MonkeyPatch], None]] = {
    "cub200": pack_cub,
    "caltech256": pack_caltech,
    "flowers102": pack_flowers,
    "pets": pack_pets,
    "inat2017": pack_inat,
    "places365": pack_places,
    "cifar100": pack_cifar,
}


@pytest.fixture
def cub(
    tmp_path: Path, server: tuple[Path, str, type[Handler]], monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path, type[Handler]]:
    """(data root, the served archive, the handler) with CUB on the server."""
    folder, url, handler = server
    (tmp_path / "work").mkdir()
    pack_cub(tmp_path / "work", folder, monkeypatch)
    serve("cub200", folder, url, monkeypatch)
    return tmp_path / "root", folder / "CUB_200_2011.tgz", handler


@pytest.mark.parametrize("name", list(PACKERS))
def test_prepare_downloads_verifies_and_unpacks(
    name: str, tmp_path: Path, server: tuple[Path, str, type[Handler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url, handler = server
    (tmp_path / "work").mkdir()
    PACKERS[name](tmp_path / "work", folder, monkeypatch)
    serve(name, folder, url, monkeypatch)
    root = tmp_path / "root"
    assert state(DATASETS[name], root) == "missing"
    assert prepare(name, root, QUIET) == "ready"
    splits = load_splits(DataRecipe(dataset=name, root=root))
    assert len(splits.test) >= 3
    assert not list(root.rglob(".unpacking*"))
    assert not list(root.rglob("*.part"))
    asked = len(handler.asked)
    assert prepare(name, root, QUIET) == "ready"
    assert len(handler.asked) == asked, "what is there is not fetched again"


def test_a_stopped_download_goes_on_where_it_was(cub: tuple[Path, Path, type[Handler]]) -> None:
    root, archive, handler = cub
    part = root / "cub200" / "CUB_200_2011.tgz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(archive.read_bytes()[:1000])
    assert state(DATASETS["cub200"], root) == "incomplete: CUB_200_2011.tgz.part is only partly downloaded"
    prepare("cub200", root, QUIET)
    assert [wanted for _, wanted in handler.asked] == ["bytes=1000-"]


def test_a_connection_that_drops_is_taken_up_again(
    cub: tuple[Path, Path, type[Handler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _, handler = cub
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    handler.drop_after.append(700)
    assert prepare("cub200", root, QUIET) == "ready"
    assert len(handler.asked) == 2


def test_a_server_that_cannot_resume_is_asked_from_the_start(cub: tuple[Path, Path, type[Handler]]) -> None:
    root, _, handler = cub
    handler.ranges = False
    part = root / "cub200" / "CUB_200_2011.tgz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"of another version")
    assert prepare("cub200", root, QUIET) == "ready"


def test_a_part_of_another_version_is_dropped(cub: tuple[Path, Path, type[Handler]]) -> None:
    root, _, handler = cub
    part = root / "cub200" / "CUB_200_2011.tgz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"of another version")
    assert prepare("cub200", root, QUIET) == "ready"
    assert len(handler.asked) == 2


def test_a_wrong_checksum_leaves_nothing(
    cub: tuple[Path, Path, type[Handler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, archive, _ = cub
    archive.write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(SchaneError, match=r"CUB_200_2011\.tgz has md5 .*, not .*: altered"):
        prepare("cub200", root, QUIET)
    assert not (root / "cub200").exists()


def test_without_a_network_one_sentence_says_what_to_do(
    cub: tuple[Path, Path, type[Handler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _, _ = cub
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    gone = replace(DATASETS["cub200"].archives[0], url="http://127.0.0.1:9/CUB_200_2011.tgz")
    monkeypatch.setattr(DATASETS["cub200"], "archives", (gone,))
    with pytest.raises(
        SchaneError, match=r"could not be downloaded .* put the file at .*cub200/CUB_200_2011\.tgz"
    ) as caught:
        prepare("cub200", root, QUIET)
    assert "\n" not in str(caught.value)
    assert not (root / "cub200").exists()


def test_a_file_that_is_not_at_its_source_says_so(cub: tuple[Path, Path, type[Handler]]) -> None:
    root, archive, _ = cub
    archive.unlink()
    with pytest.raises(SchaneError, match="could not be downloaded .*404"):
        prepare("cub200", root, QUIET)


def test_an_archive_put_there_by_hand_is_verified_and_used(cub: tuple[Path, Path, type[Handler]]) -> None:
    root, archive, handler = cub
    place = root / "cub200" / archive.name
    place.parent.mkdir(parents=True)
    place.write_bytes(archive.read_bytes()[:-5])
    with pytest.raises(SchaneError, match=r"root/cub200/CUB_200_2011\.tgz has md5 .* incomplete or another version"):
        prepare("cub200", root, QUIET)
    place.write_bytes(archive.read_bytes())
    assert prepare("cub200", root, QUIET) == "ready"
    assert handler.asked == []


def test_a_truncated_archive_leaves_nothing_half_prepared(
    cub: tuple[Path, Path, type[Handler]], server: tuple[Path, str, type[Handler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, archive, _ = cub
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    serve("cub200", server[0], server[1], monkeypatch)  # the checksum is the truncated file's, so that it is unpacked
    with pytest.raises(SchaneError, match=r"CUB_200_2011\.tgz cannot be unpacked, it is broken or cut short"):
        prepare("cub200", root, QUIET)
    assert sorted(path.name for path in (root / "cub200").iterdir()) == ["CUB_200_2011.tgz"]
    assert state(DATASETS["cub200"], root) == "missing"


def evil_tar(path: Path, member: tarfile.TarInfo) -> None:
    with tarfile.open(path, "w") as tar:
        sources.add(tar, "good.txt", b"good")
        tar.addfile(member, io.BytesIO(b"evil") if member.isfile() else None)


@pytest.mark.parametrize("case", ["parent", "absolute", "symlink", "hardlink", "device"])
def test_an_archive_that_reaches_outside_is_refused(case: str, tmp_path: Path) -> None:
    member = tarfile.TarInfo({"parent": "a/../../evil.txt", "absolute": "/tmp/schane-evil.txt"}.get(case, "evil"))
    member.size = 4 if case in {"parent", "absolute"} else 0
    if case in {"symlink", "hardlink"}:
        member.type = tarfile.SYMTYPE if case == "symlink" else tarfile.LNKTYPE
        member.linkname = "../../outside"
    elif case == "device":
        member.type = tarfile.CHRTYPE
    evil_tar(tmp_path / "evil.tar", member)
    with pytest.raises(SchaneError, match=r"archive .*evil\.tar is refused"):
        unpack(tmp_path / "evil.tar", tmp_path / "in" / "side", QUIET)
    assert not (tmp_path / "evil.txt").exists()
    assert not (tmp_path / "in" / "evil.txt").exists()


def test_a_zip_that_reaches_outside_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../evil.txt", "evil")
    with pytest.raises(SchaneError, match=r"archive .*evil\.zip is refused: its member '\.\./evil\.txt'"):
        unpack(tmp_path / "evil.zip", tmp_path / "inside", QUIET)
    (tmp_path / "cut.zip").write_bytes((tmp_path / "evil.zip").read_bytes()[:40])
    with pytest.raises(SchaneError, match=r"cut\.zip cannot be unpacked"):
        unpack(tmp_path / "cut.zip", tmp_path / "inside", QUIET)


# ImageNet's archives, and the sets made of it


def imagenet_archives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ILSVRC-2012's three archives with two classes: train a tar of tars, val flat, labels in the development kit."""
    wnids = ["n01440764", "n01443537"]
    folder.mkdir(parents=True)
    work = folder / "work"
    for wnid in wnids:
        sources.class_folders(work, {wnid: 4}, ".JPEG")
        sources.tar_of(work / wnid, work / "train" / f"{wnid}.tar")
    sources.tar_of(work / "train", folder / "ILSVRC2012_img_train.tar")
    for number in range(1, 7):
        sources.write_image(work / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    sources.tar_of(work / "val", folder / "ILSVRC2012_img_val.tar")
    kit = work / "kit" / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    rows = [(i + 1, wnid, f"fish {i}", "gloss", 0) for i, wnid in enumerate(wnids)] + [(3, "n0", "all", "gloss", 2)]
    synsets = np.array(rows, dtype=[(key, object) for key in ("ID", "WNID", "words", "gloss", "num_children")])
    savemat(kit / "meta.mat", {"synsets": synsets.reshape(-1, 1)})
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n2\n1\n1\n2\n")
    sources.tar_of(work / "kit", folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz")
    files = {key: folder / name for key, (name, _) in torchvision_imagenet.ARCHIVE_META.items()}
    sums = {key: (path.name, sources.md5(path)) for key, path in files.items()}
    monkeypatch.setattr(torchvision_imagenet, "ARCHIVE_META", sums)


def test_imagenets_archives_are_unpacked_into_class_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet_archives(tmp_path / "imagenet1k", monkeypatch)
    assert prepare("imagenet1k", tmp_path, QUIET) == "ready"
    val = {path.name[-6]: path.parent.name for path in (tmp_path / "imagenet1k" / "val").glob("*/*")}
    assert val == {str(i): f"n0144{w}" for i, w in enumerate(("3537", "0764", "3537", "0764", "0764", "3537"), 1)}
    splits = load_splits(DataRecipe(dataset="imagenet1k", root=tmp_path))
    assert (len(splits.train) + len(splits.val), len(splits.test)) == (8, 6)
    assert not list((tmp_path / "imagenet1k").glob(".unpacking*"))


def test_imagenet_without_its_archives_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(
        BadRequest, match=r"ILSVRC2012_img_train\.tar is not there: .* register at https://image-net\.org"
    ):
        prepare("imagenet1k", tmp_path, QUIET)
    assert not (tmp_path / "imagenet1k").exists()


def test_an_imagenet_archive_cut_short_leaves_no_train_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet_archives(tmp_path / "imagenet1k", monkeypatch)
    path = tmp_path / "imagenet1k" / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(SchaneError, match=r"ILSVRC2012_img_train\.tar has md5"):
        prepare("imagenet1k", tmp_path, QUIET)
    sums = {**torchvision_imagenet.ARCHIVE_META, "train": (path.name, sources.md5(path))}
    monkeypatch.setattr(torchvision_imagenet, "ARCHIVE_META", sums)
    with pytest.raises(SchaneError, match=r"ILSVRC2012_img_train\.tar cannot be unpacked"):
        prepare("imagenet1k", tmp_path, QUIET)
    assert not (tmp_path / "imagenet1k" / "train").exists()


def test_the_lists_of_mini_imagenet_are_fetched(
    tmp_path: Path, server: tuple[Path, str, type[Handler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url, _ = server
    sources.ravi_lists(folder, {"train": {"n01532829": [1]}, "val": {"n01855672": [1]}, "test": {"n01930112": [1]}})
    serve("miniimagenet", folder, url, monkeypatch)
    with pytest.raises(BadRequest, match="register at"):
        prepare("miniimagenet", tmp_path / "root", QUIET)
    assert (tmp_path / "root" / "miniimagenet" / "train.csv").is_file()


# what is known, and what a check finds


def test_every_dataset_has_its_facts(tmp_path: Path) -> None:
    for row in overview(tmp_path):
        known = info(row["name"], tmp_path)
        assert known["licence"]
        assert known["source"].startswith("http")
        assert sum(known["counts"].values()) == row["images"]
        assert all(len(file["md5"]) == 32 and file["url"].startswith("http") for file in known["files"])
        assert known["files"] or known["by hand"] or known["made of"] or row["state"] == "ready"


def test_what_killed_processes_left_unpacked_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f".unpacking-{ended.pid}", f".unpacking-{platform.node()}-{ended.pid}"):
        (tmp_path / name).mkdir()
    elsewhere = tmp_path / f".unpacking-another-machine-{ended.pid}"
    elsewhere.mkdir()
    with beside(tmp_path) as work:
        assert sorted(tmp_path.iterdir()) == sorted([work, elsewhere])
    assert list(tmp_path.iterdir()) == [elsewhere]


def test_the_folder_of_a_dataset_itself_serves_as_its_root(tmp_path: Path) -> None:
    sources.cub200(tmp_path / "anywhere")
    splits = load_splits(DataRecipe(dataset="cub200", root=tmp_path / "anywhere"))
    assert len(splits.test) == 8
    with pytest.raises(BadRequest, match=r"looked in .*/nowhere/cub200, .*/nowhere\)"):
        load_splits(DataRecipe(dataset="cub200", root=tmp_path / "nowhere"))
    with pytest.raises(BadRequest, match=r"looked in .*tieredimagenet/images, .*nowhere/imagenet1k"):
        load_fewshot_splits(DataRecipe(dataset="tieredimagenet", root=tmp_path / "nowhere"))


def test_check_passes_what_is_sound_and_counts_it(tmp_path: Path) -> None:
    verdict = check("digits", tmp_path, QUIET)
    assert verdict.problems == []
    assert sum(split["images"] for split in verdict.splits.values()) == 1797


def test_check_finds_an_image_in_two_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        sources.class_folders(tmp_path / split, {"a": 5, "b": 5}, ".png")
    content = (tmp_path / "train" / "a" / "a_1.png").read_bytes()
    (tmp_path / "test" / "b" / "b_3.png").write_bytes(content)
    verdict = check(f"folder:{tmp_path}", tmp_path, QUIET)
    assert len(verdict.problems) == 1
    assert "1 image is in two splits" in verdict.problems[0]
    assert "b_3.png" in verdict.problems[0]


def test_check_names_what_is_unlike_the_published_counts(tmp_path: Path) -> None:
    sources.cub200(tmp_path / "cub200")
    verdict = check("cub200", tmp_path, QUIET)
    assert "train has 16 images, published with 5994" in verdict.problems
    assert "4 classes, published with 200" in verdict.problems


def test_check_names_an_image_that_does_not_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schane_cli.images.memory.IN_MEMORY_BYTES", 100)
    sources.class_folders(tmp_path, {"a": 10, "b": 10}, ".png")
    path = tmp_path / "b" / "b_4.png"
    path.write_bytes(path.read_bytes()[:100])
    with Image.open(path):
        pass  # its header is whole
    verdict = check(f"folder:{tmp_path}", tmp_path, QUIET, sample=None)
    assert len(verdict.problems) == 1
    assert "b_4.png cannot be read" in verdict.problems[0]
