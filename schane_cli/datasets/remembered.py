"""What reading a source once has brought out, kept below the data root until the source changes."""

from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from schane_cli.run import remove_dead, temporary

Arrays = dict[str, np.ndarray]
WORTH_REMEMBERING = 20_000  # images: what takes longer than about a second to find out again


def remembered(
    root: Path,
    name: str,
    state: str,
    make: Callable[[], Arrays],
    *,
    holds: Callable[[Arrays], bool] = lambda _: True,
    always: bool = False,
) -> Arrays:
    """The arrays of `make`, from the file of an earlier call where `name` was in the same `state` and they still hold.

    They are kept where the longest has WORTH_REMEMBERING rows or more, or `always`.
    """
    file = root.expanduser() / ".content" / f"{sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.npz"
    stamp = np.frombuffer(sha256(state.encode("utf-8", "surrogateescape")).digest(), dtype=np.uint8)
    with suppress(OSError, ValueError, KeyError, BadZipFile), np.load(file, allow_pickle=False) as known:
        if np.array_equal(known[" state"], stamp):
            arrays = {key: known[key] for key in known.files if key != " state"}
            if holds(arrays):
                return arrays
    made = make()
    if always or max((len(array) for array in made.values()), default=0) >= WORTH_REMEMBERING:
        _write(file, {**made, " state": stamp})
    return made


def _write(file: Path, arrays: Arrays) -> None:
    """Write the file whole or not at all; a root that cannot be written to remembers nothing."""
    unfinished = temporary(file)
    named: dict[str, Any] = dict(arrays)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_dead(file.parent)
        with unfinished.open("wb") as handle:  # a zip, which has a checksum of each array
            np.savez(handle, **named)
        unfinished.replace(file)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()
