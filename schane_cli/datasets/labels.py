"""Labels as sources write them (names, numbers, floats, nothing) into a class list and class numbers."""

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from schane_cli.datasets.parts import Parts
from schane_cli.errors import BadRequest

MISSING = -1  # the class number of an image without a label
_MISSING_WORDS = frozenset({"none", "null", "na", "n/a", "<na>"})
_SHOWN = 5
Where = Callable[[str, int], str]  # split and row, to the place that a user looks at


def number_labels(
    labels: Mapping[str, Sequence[Any]], where: Where, names: Mapping[str, Sequence[str]] | None = None
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """(class names, int64 (n,) class numbers of each split with MISSING where there is no label).

    `names` are the class names that each split's own numbers stand for; they may come in another order in each. Without
    them whole numbers are classes in ascending order, however sparse or large, and texts are in
    alphabetical order.

    Raises:
        BadRequest: a number for which there is no name, a label that cannot name a class (0.37, a list).
    """
    texts = {
        split: [_text(value, where, split, row) for row, value in enumerate(column)] for split, column in labels.items()
    }
    if names:
        texts = {split: _named(column, names[split], where, split) for split, column in texts.items()}
        first = names.get("train", next(iter(names.values())))
        classes = list(dict.fromkeys([*first, *(name for other in names.values() for name in other)]))
    else:
        present = {text for column in texts.values() for text in column if text is not None}
        if unlabelled := _words_for_missing(present):
            texts = {
                split: [None if text in unlabelled else text for text in column] for split, column in texts.items()
            }
            present -= unlabelled
        numeric = all(text.lstrip("-").isdecimal() for text in present)
        if numeric:
            texts = {split: _without_negative(column) for split, column in texts.items()}
            present = {text for text in present if not text.startswith("-")}
        classes = sorted(present, key=int) if numeric else sorted(present)
    number_of = {name: number for number, name in enumerate(classes)}
    numbers = {
        split: np.array([MISSING if text is None else number_of[text] for text in column], dtype=np.int64)
        for split, column in texts.items()
    }
    return tuple(classes), numbers


def _text(value: Any, where: Where, split: str, row: int) -> str | None:
    """A label as text, a whole number without its point; None where it is missing."""
    if value is None:
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, str):
        text = unicodedata.normalize("NFC", value.strip())
        return _whole(text) if text and text.lower() != "nan" else None
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return None
        if float(value).is_integer():
            return str(int(value))
    raise BadRequest(
        f"{where(split, row)}: label {value!r} is not a class; labels are names or whole numbers, one per image"
    )


def _whole(text: str) -> str:
    """`3.0` as `3`, as a table writes whole numbers where a label is missing."""
    whole, point, rest = text.partition(".")
    return whole if point and whole.lstrip("-").isdecimal() and rest.strip("0") == "" else text


def _words_for_missing(present: set[str]) -> set[str]:
    """The texts that mean no label where all others are numbers: None, NA, null; else None may be a class."""
    words = {text for text in present if text.lower() in _MISSING_WORDS}
    others = present - words
    return words if others and all(text.lstrip("-").isdecimal() for text in others) else set()


def _without_negative(column: list[str | None]) -> list[str | None]:
    return [None if text is not None and text.startswith("-") else text for text in column]


def _named(column: list[str | None], names: Sequence[str], where: Where, split: str) -> list[str | None]:
    """Numbers (or names) of a split as the names they stand for."""
    known = set(names)
    named: list[str | None] = []
    for row, text in enumerate(column):
        if text is None or (text.startswith("-") and text[1:].isdecimal()):
            named.append(None)
        elif text.isdecimal() and int(text) < len(names):
            named.append(names[int(text)])
        elif text in known:
            named.append(text)
        else:
            raise BadRequest(
                f"{where(split, row)}: label {text} is not one of the {len(names)} class names, which are "
                f"numbered from 0 to {len(names) - 1}"
            )
    return named


def settle_missing(parts: Parts, where: Where, source: str) -> None:
    """Leave out val and test splits without a single label, and refuse images without one elsewhere.

    Raises:
        BadRequest: an image of train, or only some of another split, without a label; each place is named.
    """
    for split in ("val", "test", "train", "all"):
        part = parts.get(split)
        if part is None or not (missing := np.flatnonzero(part.labels == MISSING)).size:
            continue
        if len(missing) == len(part) and split in {"val", "test"}:
            parts.without_labels(split, f"all {len(part):,} images of {source} {split} have none")
            continue
        shown = ", ".join(where(split, int(row)) for row in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
        images = "1 image" if len(missing) == 1 else f"{len(missing):,} images"
        raise BadRequest(f"{source}: {images} of {split} without a label: {shown}{more}")


def require_trained(parts: Parts, source: str) -> None:
    """BadRequest for a class of val or test of which train has no image, or for fewer than two classes."""
    train = parts.get("train", parts.get("all"))
    if train is None:
        raise BadRequest(f"{source} has no image of split train")
    if len(train.class_names) < 2:
        raise BadRequest(f"{source} needs at least two labels, found {len(train.class_names)}")
    trained = set(train.labels.tolist())
    for split, part in parts.items():
        if unknown := sorted(set(part.labels.tolist()) - trained):
            raise BadRequest(f"{source}: class {part.class_names[unknown[0]]!r} has no image in train, only in {split}")
