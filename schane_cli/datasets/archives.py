"""Downloads that resume and are verified, archives that unpack completely or not at all, never outside their folder."""

import hashlib
import logging
import lzma
import os
import platform
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from schane_cli.errors import SchaneError
from schane_cli.terminal import Terminal

if sys.version_info >= (3, 11, 4):
    import tarfile
else:  # Debian 12's Python has no extraction filters
    from backports import tarfile  # type: ignore[no-redef]

_CHUNK_BYTES = 2**22
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError)


def md5_of(path: Path, terminal: Terminal) -> str:
    """The md5 of a file, with progress for a large one."""
    digest = hashlib.md5(usedforsecurity=False)
    total = path.stat().st_size // _CHUNK_BYTES + 1
    with path.open("rb") as file, terminal.task(f"checksum {path.name}", total, unit="x4MB") as task:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            task.advance()
    return digest.hexdigest()


def download(url: str, path: Path, md5: str, terminal: Terminal) -> None:
    """Fetch `url` to `path`, resuming from `path`.part where an earlier try stopped; the file appears once verified.

    Raises:
        SchaneError: the source cannot be reached (what came is kept), or the checksum is wrong (nothing is kept).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    resumed = part.exists() and part.stat().st_size > 0
    _fetch(url, part)
    actual = md5_of(part, terminal)
    if actual != md5 and resumed:  # the part was of another version, or the server cannot resume
        part.unlink()
        _fetch(url, part)
        actual = md5_of(part, terminal)
    if actual != md5:
        part.unlink()
        raise SchaneError(f"{url} has md5 {actual}, not {md5}: altered on the way or at its source; removed")
    part.replace(path)


def _fetch(url: str, part: Path) -> None:
    """Append to `part` what is missing, by Hugging Face's downloader: it resumes, retries and shows its progress."""
    from huggingface_hub.file_download import http_get

    logger = logging.getLogger("huggingface_hub.file_download")
    before = logger.level
    logger.setLevel(logging.ERROR)  # its warnings at each retry would bury the one sentence below
    try:
        with part.open("ab") as file:
            http_get(url, file, resume_size=file.tell(), displayed_filename=part.stem)
    except Exception as error:  # its kinds of error differ between versions and HTTP clients
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        if part.exists() and part.stat().st_size == 0:
            part.unlink()
        raise SchaneError(
            f"{url} could not be downloaded ({reason}); run the command again to continue, or put the file at "
            f"{part.with_suffix('')}"
        ) from None
    finally:
        logger.setLevel(before)


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """An empty folder inside `folder`, for work that is moved out of it when complete; removed afterwards in any case.

    Leftovers of killed processes of this machine are removed first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    work = folder / f".unpacking-{platform.node()}-{os.getpid()}"
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _remove_stale(folder: Path) -> None:
    """Remove the unpacking folders of processes that have ended; one of another machine may still be at work."""
    for work in folder.glob(".unpacking-*"):
        host, _, number = work.name.removeprefix(".unpacking-").rpartition("-")
        if host in {"", platform.node()} and number.isdecimal() and not _is_alive(int(number)):
            shutil.rmtree(work, ignore_errors=True)


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # of another user
    return True


def unpack(archive: Path, target: Path, terminal: Terminal) -> None:
    """Unpack a tar (plain or compressed) or zip file into the folder `target`, which should be a temporary one.

    Raises:
        SchaneError: the archive is cut short or broken, or has a member that would lie outside `target` (an absolute
            path, `..`, a link that leads out) or is not a file, folder or link.
    """
    try:
        if archive.suffix == ".zip":
            _unpack_zip(archive, target, terminal)
        else:
            _unpack_tar(archive, target, terminal)
    except tarfile.FilterError as error:
        raise SchaneError(f"archive {archive} is refused: {error}") from None
    except _BROKEN as error:
        raise SchaneError(f"archive {archive} cannot be unpacked, it is broken or cut short: {error}") from None


def _unpack_tar(archive: Path, target: Path, terminal: Terminal) -> None:
    size = archive.stat().st_size
    task_of = terminal.task(f"unpacking {archive.name}", size // 2**20 + 1, unit="MB")
    with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:*") as tar, task_of as task:
        for member in tar:
            _refuse_escape(archive, member.name)
            if member.islnk() or member.issym():
                _refuse_escape(archive, member.linkname)
            elif not (member.isfile() or member.isdir()):
                raise SchaneError(f"archive {archive} is refused: {member.name!r} is neither a file nor a folder")
            tar.extract(member, target, filter="data")
            task.advance(raw.tell() // 2**20 - task.done)


def _unpack_zip(archive: Path, target: Path, terminal: Terminal) -> None:
    with zipfile.ZipFile(archive) as content:
        members = content.infolist()
        with terminal.task(f"unpacking {archive.name}", len(members), unit="files") as task:
            for member in members:
                _refuse_escape(archive, member.filename)
                if (member.external_attr >> 16) & 0o170000 == 0o120000:
                    raise SchaneError(f"archive {archive} is refused: {member.filename!r} is a link")
                content.extract(member, target)
                task.advance()


def _refuse_escape(archive: Path, name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in (path.parts[0] if path.parts else ""):
        raise SchaneError(f"archive {archive} is refused: its member {name!r} would land outside the folder")


def verify(path: Path, md5: str, terminal: Terminal) -> None:
    """Refuse a file whose md5 is not the published one; SchaneError."""
    actual = md5_of(path, terminal)
    if actual != md5:
        raise SchaneError(
            f"{path} has md5 {actual}, not {md5}: it is incomplete or another version; remove it and run this again"
        )
