"""Addresses such as `s3://bucket/shards` and `https://host/shards`: told from paths, and opened through fsspec."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from schane_cli.errors import BadRequest

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_STATES = ("ETag", "mtime", "LastModified", "last_modified", "updated")  # as file systems call what changes with a file
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def is_address(place: str) -> bool:
    """Whether a place is an address and not a path of this machine."""
    return _ADDRESS.match(place) is not None


def refuse_address(place: str, reader: str) -> None:
    """BadRequest for an address where files of this machine are read."""
    if is_address(place):
        raise BadRequest(f"{place} is an address, and {reader} files of this machine; copy or mount it here first")


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """What goes wrong at an address becomes a sentence: no such scheme, no package for it, nothing there, no answer."""
    try:
        yield
    except BadRequest:
        raise
    except Exception as error:  # each file system raises errors of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadRequest(f"{address} cannot be read: {reason}") from None


def files_below(address: str) -> dict[PurePosixPath, tuple[str, int, str]]:
    """The files at an address and below it: by their path below it, each one's own address, bytes and state.

    The state changes when the file does (its ETag or time, where the server says). An address of one file lists it, and
    `https://host/train-{000..009}.tar` ten of them: few web servers list their folders.
    """
    from fsspec.core import url_to_fs

    with reaching(address):
        top = _RANGE.split(address)[0].rpartition("/")[0] if _RANGE.search(address) else address
        system, top = url_to_fs(top)
        listed: dict[str, dict[str, Any]] = {}
        for place in expanded(address):
            listed |= system.find(url_to_fs(place)[1], detail=True)
        files = {}
        for name, listed_info in sorted(listed.items()):
            info = listed_info if listed_info.get("size") is not None else system.info(name)
            below = PurePosixPath(name.removeprefix(top).lstrip("/") or name.rpartition("/")[2])
            state = next((str(info[key]) for key in _STATES if info.get(key)), "")
            files[below] = (system.unstrip_protocol(name), int(info["size"]), state)
        return files


def expanded(address: str) -> list[str]:
    """The addresses that one with ranges, `{000..009}`, stands for; itself without."""
    match = _RANGE.search(address)
    if match is None:
        return [address]
    numbers = range(int(match[1]), int(match[2]) + 1)
    each = (f"{address[: match.start()]}{number:0{len(match[1])}d}{address[match.end() :]}" for number in numbers)
    return [whole for one in each for whole in expanded(one)]


def open_address(address: str, *, whole: bool) -> BinaryIO:
    """A file at an address, to be read from its start to its end (`whole`), or here and there.

    Here and there, each read is a request of its own: reading ahead would fetch megabytes for an image of kilobytes.
    """
    import fsspec

    with reaching(address):
        opened: BinaryIO = fsspec.open(address, "rb", cache_type="readahead" if whole else "none").open()
        return opened
