"""WebDataset shards: images read in place from tar files, found by an index of the members."""

import json
import os
import tarfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from schane_cli.datasets.addresses import expanded, files_below, is_address, open_address, reaching
from schane_cli.datasets.labels import MISSING, number_labels, require_trained, settle_missing
from schane_cli.datasets.listing import is_hidden, skipped_note
from schane_cli.datasets.parts import Parts
from schane_cli.datasets.remembered import remembered
from schane_cli.datasets.split_names import SPLITS, looks_like_split, split_of_each, splits_in
from schane_cli.errors import BadRequest
from schane_cli.images.decode import image_suffixes, printable
from schane_cli.images.imageset import SAMPLE_BYTES, ImageSet, Names, Stored, sample_places
from schane_cli.recipe import DataRecipe
from schane_cli.terminal import Terminal

_OPEN_SHARDS = 64  # of a thousand, so that the usual limit of 1,024 open files holds for all loader processes
_LABEL_SUFFIXES = (".cls", ".json", ".txt")
_LABEL_KEYS = ("label", "cls", "class", "target", "category", "class_id")
_MAX_LABEL_BYTES = 2**20


@dataclass(frozen=True)
class Shard:
    """A tar file on this machine or at an address: its path below the folder of shards, and bytes; `state` changes
    when it does."""

    place: str
    below: PurePosixPath
    size: int
    state: str

    @property
    def name(self) -> str:
        return self.below.name

    def open(self, *, whole: bool = False) -> BinaryIO:
        """The file, to be read from start to end (`whole`) or here and there; BadRequest where it cannot be."""
        if is_address(self.place):
            return open_address(self.place, whole=whole)
        try:
            return open(self.place, "rb")
        except OSError as error:
            raise BadRequest(f"shard {self.place} cannot be read: {error.strerror or error}") from None


class TarImages:
    """Bytes of image i of some tar shards, read at its offset; each process opens the shards on its own."""

    def __init__(self, shards: list[Shard], places: np.ndarray) -> None:
        self.shards, self.places = shards, places  # (n, 3): shard, offset, size
        self._prepare()

    def _prepare(self) -> None:
        self._open: OrderedDict[tuple[int, int], BinaryIO] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, index: int) -> bytes:
        shard, offset, size = (int(value) for value in self.places[index])
        return self._read(shard, offset, size)

    def sample(self, index: int) -> bytes:
        """As `imageset.sample_of`, reading no more of the shard than that."""
        shard, offset, size = (int(value) for value in self.places[index])
        pieces = [self._read(shard, offset + place, min(SAMPLE_BYTES, size - place)) for place in sample_places(size)]
        return size.to_bytes(8, "big") + b"".join(pieces)

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        with self._lock:
            handle = self._handle(shard)
            with reaching(self.shards[shard].place):
                handle.seek(offset)
                return handle.read(size)

    def _handle(self, shard: int) -> BinaryIO:
        key = (os.getpid(), shard)  # a file position shared with a forked parent would be moved under its feet
        if key not in self._open:
            while len(self._open) >= _OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
            self._open[key] = self.shards[shard].open()
        self._open.move_to_end(key)
        return self._open[key]

    def __del__(self) -> None:
        for handle in self._open.values():
            handle.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self.shards, "places": self.places}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.shards, self.places = state["shards"], state["places"]
        self._prepare()


@dataclass
class _Index:
    """The images of some shards: where each lies, int64 (n, 3), its label as written (or None), its key, and how many
    other files lie beside them, by suffix."""

    shards: list[Shard]
    places: np.ndarray
    keys: Names
    labels: list[Any]
    skipped: Counter[str]

    def arrays(self) -> dict[str, np.ndarray]:
        """The index without its shards, to be kept."""
        texts = json.dumps([self.labels, self.skipped]).encode()
        return {"places": self.places, "keys": self.keys.packed, "texts": np.frombuffer(texts, dtype=np.uint8)}


def _index_of(shards: list[Shard], arrays: dict[str, np.ndarray]) -> _Index:
    labels, skipped = json.loads(arrays["texts"].tobytes())
    return _Index(shards, arrays["places"], Names(arrays["keys"]), labels, Counter(skipped))


def webdataset_parts(dataset: str, place: str, recipe: DataRecipe) -> Parts:
    """Shards (tar files of KEY.jpg and KEY.cls, KEY.json or KEY.txt) whose path below the folder names their split.

    `place` is a folder of this machine or an address that fsspec reads (s3://, gs://, https://). One pass reads the
    headers of its shards, and what they say is remembered until a shard changes; then each image is a request of its
    own. Class names come from classes.txt in the folder, one per line, where there is one.

    Raises:
        BadRequest: no shards, a shard that is cut short, an image without label or a label without image, two files
            of one key, a label without a line in classes.txt.
    """
    shards, listed = _shards(place)
    by_split, notes = _shards_by_split(place, shards)
    name_of = _namer(shards)
    with Terminal(json=True).task("indexing shards", len(shards), unit="shards") as task:

        def read(split: str, files: list[Shard]) -> _Index:
            name = f"{place} {split} {recipe.label_column}"
            return _remembered(
                recipe.root, name, files, name_of, lambda: _index(files, name_of, recipe.label_column, task.advance)
            )

        indexed = {split: read(split, files) for split, files in by_split.items()}
    return _parts(dataset, place, indexed, _class_list(listed), notes)


def webdataset_images(dataset: str, place: str, root: Path) -> tuple[ImageSet, list[str]]:
    """All images below a folder or address of shards as one set without labels, whatever lies beside them, and notes.

    Raises:
        BadRequest: no shards, a shard that is cut short, no images.
    """
    shards = _shards(place)[0]
    name_of = _namer(shards)
    name = f"{place} without labels"
    index = _remembered(root, name, shards, name_of, lambda: _index_without_labels(shards, name_of))
    if not len(index.keys):
        raise BadRequest(f"{place} holds no images")
    labels, ids = np.full(len(index.keys), MISSING), index.keys.printable()
    return ImageSet(dataset, "images", _stored(index), labels, (), ids), skipped_note(index.skipped, place)


def _remembered(
    root: Path, name: str, shards: list[Shard], name_of: Callable[[Shard], str], make: Callable[[], _Index]
) -> _Index:
    """The index of some shards: of an earlier call where none of them changed, which takes no look into any."""
    states = (f"{shard.below} {name_of(shard)} {shard.size} {shard.state}" for shard in shards)
    state = " ".join([*sorted(image_suffixes()), *states])
    remote = any(is_address(shard.place) for shard in shards)
    arrays = remembered(root, f"shards {name}", state, lambda: make().arrays(), always=remote)
    return _index_of(shards, arrays)


def _shards(place: str) -> tuple[list[Shard], Shard | None]:
    """The shards below a folder or address, hidden ones left out, and classes.txt; BadRequest where there are none."""
    everything = _remote_files(place) if is_address(place) else _local_files(Path(place).expanduser())
    shards = [shard for shard in everything if shard.below.suffix == ".tar"]
    if not shards:
        packed = sum(".tar." in shard.name or shard.below.suffix == ".tgz" for shard in everything)
        hint = f", only {packed} compressed ones; images are read in place, so decompress them first" if packed else ""
        unlisted = "; where a server does not list its folders, name them: https://host/train-{000..009}.tar"
        raise BadRequest(
            f"{place} holds no .tar shards{hint}{unlisted if is_address(place) and not everything else ''}"
        )
    return shards, next((file for file in everything if file.below == PurePosixPath("classes.txt")), None)


def _namer(shards: list[Shard]) -> Callable[[Shard], str]:
    """How a shard is called in ids: by its file name, or by its path below the folder where two share a name."""
    unique = len({shard.name for shard in shards}) == len(shards)
    return lambda shard: shard.name if unique else shard.below.as_posix()


def _stored(index: _Index) -> Stored:
    stamp = " ".join(f"{shard.name} {shard.size} {shard.state}" for shard in index.shards)
    return Stored(TarImages(index.shards, index.places), np.arange(len(index.places)), stamp)


def _local_files(place: Path) -> list[Shard]:
    """The files below a folder that are not hidden, in alphabetical order; or one file, or a range, {000..009}."""
    if place.is_dir():
        folder, patterns = place, ("*.tar", "*.tar.*", "*.tgz", "classes.txt")
        files = [file for pattern in patterns for file in folder.rglob(pattern)]
    else:
        files = [Path(file) for file in expanded(str(place))]
        folder = Path(os.path.commonpath([file.parent for file in files]))
        files += [folder / "classes.txt"]
    shards = []
    for file in sorted(files):
        below = PurePosixPath(file.relative_to(folder).as_posix())
        if not any(map(is_hidden, below.parts)) and file.is_file():
            stat = file.stat()
            shards.append(Shard(str(file), below, stat.st_size, str(stat.st_mtime_ns)))
    return shards


def _remote_files(address: str) -> list[Shard]:
    """The files at an address that are not hidden, in alphabetical order."""
    files = files_below(address)
    return [
        Shard(place, below, size, state)
        for below, (place, size, state) in files.items()
        if not any(map(is_hidden, below.parts))
    ]


def _parts(dataset: str, folder: str, indexed: dict[str, _Index], listed: tuple[str, ...], notes: list[str]) -> Parts:
    def where(split: str, row: int) -> str:
        index = indexed[split]
        shard = index.shards[index.places[row][0]].name
        return f"shard {shard} key {index.keys[row].removeprefix(f'{shard}/')} (label {index.labels[row]!r})"

    names = dict.fromkeys(indexed, listed) if listed else None
    labels = {split: index.labels for split, index in indexed.items()}
    class_names, numbers = number_labels(labels, lambda split, row: f"{folder} {where(split, row)}", names)
    parts = Parts(notes=notes)
    skipped: Counter[str] = Counter()
    for split, index in indexed.items():
        keys = index.keys.printable()
        parts[split] = ImageSet(dataset, split, _stored(index), numbers[split], class_names, keys)
        skipped += index.skipped
    settle_missing(parts, where, folder)
    require_trained(parts, folder)
    parts.notes += skipped_note(skipped, folder)
    return parts


def _shards_by_split(folder: str, shards: list[Shard]) -> tuple[dict[str, list[Shard]], list[str]]:
    """Shards by the split that the nearest part of their path names, all of them as `all` where none does."""
    by_split: dict[str, list[Shard]] = {}
    others = []
    said = [
        next(filter(looks_like_split, [shard.below.stem, *reversed(shard.below.parent.parts)]), "") for shard in shards
    ]
    split_by_name = split_of_each(said)
    for shard, name in zip(shards, said, strict=True):
        split = split_by_name[name]
        if split is None:
            others.append(shard.below.as_posix())
        else:
            by_split.setdefault(split, []).append(shard)
    if not by_split:
        return {"all": shards}, [] if not any(map(splits_in, others)) else [
            f"shards such as {next(filter(splits_in, others))} name two splits at once: all are read as one set"
        ]
    if "train" not in by_split:
        raise BadRequest(f"{folder} has shards of {', '.join(sorted(by_split))} but none whose path says train")
    notes = [f"{len(others)} shards whose path names no split are not read: {', '.join(others[:3])}"] if others else []
    return {split: by_split[split] for split in SPLITS if split in by_split}, notes


def _class_list(file: Shard | None) -> tuple[str, ...]:
    if file is None:
        return ()
    try:
        with file.open(whole=True) as content:
            lines = content.read().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"{file.place} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise BadRequest(f"{file.place} names class {repeated[0]!r} twice")
    return names


def _index(
    shards: list[Shard], name_of: Callable[[Shard], str], label_key: str | None, advance: Callable[[int], None]
) -> _Index:
    """Where the images of some shards lie, from one pass over their headers; the labels are None where none has one."""
    unlabelled: list[str] = []
    labels: list[Any] = []
    skipped: Counter[str] = Counter()
    places, keys = [], []
    for number, shard in enumerate(shards):
        images, own_labels = _read_headers(shard, skipped, label_key)
        advance(1)
        unlabelled += [f"{shard.place}: {printable(key)}" for key in sorted(images.keys() - own_labels.keys())]
        for key in sorted(own_labels.keys() - images.keys()):
            raise BadRequest(f"{shard.place}: {printable(key)} has a label but no image")
        places.append(_places(number, images))
        keys.append(Names(f"{name_of(shard)}/{key}" for key in images).packed)
        labels += [own_labels.get(key) for key in images]
    if not labels:
        raise BadRequest(f"{shards[0].place} holds no images")
    if 0 < len(unlabelled) < len(labels):
        raise BadRequest(f"{unlabelled[0]} has no .cls label, nor one in .json or .txt")
    return _Index(shards, np.concatenate(places), Names(np.concatenate(keys)), labels, skipped)


def _index_without_labels(shards: list[Shard], name_of: Callable[[Shard], str]) -> _Index:
    skipped: Counter[str] = Counter()
    places, keys = [], []
    for number, shard in enumerate(shards):
        images, _ = _read_members(shard, skipped)
        places.append(_places(number, images))
        keys.append(Names(f"{name_of(shard)}/{key}" for key in images).packed)
    return _Index(shards, np.concatenate(places), Names(np.concatenate(keys)), [], skipped)


def _places(number: int, images: dict[str, tuple[int, int]]) -> np.ndarray:
    """int64 (n, 3): the shard's number, and the offset and size of each of its images."""
    return np.array([(number, *place) for place in images.values()], dtype=np.int64).reshape(-1, 3)


def _read_headers(
    shard: Shard, skipped: "Counter[str]", label_key: str | None
) -> tuple[dict[str, tuple[int, int]], dict[str, Any]]:
    """Offset and size of each image of a shard by key, and each key's label; .cls goes before .json before .txt."""
    images, texts = _read_members(shard, skipped)
    return images, _labels(shard, texts, images, label_key)


def _read_members(
    shard: Shard, skipped: "Counter[str]"
) -> tuple[dict[str, tuple[int, int]], dict[str, dict[str, str]]]:
    """Offset and size of each image of a shard by key, and the texts beside them by suffix and key."""
    images: dict[str, tuple[int, int]] = {}
    texts: dict[str, dict[str, str]] = {suffix: {} for suffix in _LABEL_SUFFIXES}
    try:
        with shard.open(whole=True) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isfile() or any(is_hidden(part) for part in member.name.split("/") if part != "."):
                    continue
                if member.offset_data + member.size > shard.size:
                    raise tarfile.ReadError("unexpected end of data")
                key, suffix = os.path.splitext(member.name)
                suffix = suffix.lower()
                if suffix in image_suffixes():
                    _add_once(images, key, (member.offset_data, member.size), shard, "images")
                elif suffix in _LABEL_SUFFIXES:
                    _add_once(texts[suffix], key, _text(tar, member), shard, f"{suffix} files")
                else:
                    skipped[suffix or "without suffix"] += 1
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise BadRequest(f"shard {shard.place} cannot be read: {error}") from None
    for key in _companions(images, texts):
        del images[key]
        skipped[f".{key.rpartition('.')[2]}.…"] += 1
    return images, texts


def _companions(images: dict[str, Any], texts: dict[str, dict[str, str]]) -> list[str]:
    """Keys of images without a text of their own beside the image they belong to: 0001.mask of 0001."""
    own = {key for column in texts.values() for key in column}
    return [key for key in images if key not in own and "." in key and key.rpartition(".")[0] in images.keys() & own]


def _add_once(known: dict[str, Any], key: str, value: Any, shard: Shard, what: str) -> None:
    if key in known:
        raise BadRequest(f"{shard.place}: {printable(key)} has two {what}; a key stands for one image with one label")
    known[key] = value


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    content = tar.extractfile(member)
    if content is None:
        return ""
    with content:
        return content.read(_MAX_LABEL_BYTES).decode("utf-8", "backslashreplace").strip()


def _labels(
    shard: Shard, texts: dict[str, dict[str, str]], images: dict[str, Any], label_key: str | None
) -> dict[str, Any]:
    labels: dict[str, Any] = dict(texts[".cls"])
    for key, text in texts[".json"].items():
        if key not in labels:
            labels[key] = _label_in_json(shard, key, text, label_key)
    for key, text in texts[".txt"].items():
        if key in images:  # captions and notes may have no image
            labels.setdefault(key, text)
    return labels


def _label_in_json(shard: Shard, key: str, text: str, label_key: str | None) -> Any:
    try:
        content = json.loads(text)
    except ValueError:
        raise BadRequest(f"{shard.place}: {printable(key)}.json is not JSON") from None
    if not isinstance(content, dict):
        return content
    keys = [label_key] if label_key else _LABEL_KEYS
    label_name = next((name for name in keys if name in content), None)
    if label_name is None:
        raise BadRequest(
            f"{shard.place}: {printable(key)}.json has no label under {' or '.join(keys)}, only {', '.join(content)}; "
            "say which with --set data.label_column=…"
        )
    return content[label_name]
