"""Which split a folder, column value or shard name means: one rule for every kind of source."""

import re
from collections.abc import Iterable

from schane_cli.errors import BadRequest

SPLITS = ("train", "val", "test")
_WORDS = {
    "train": "train",
    "training": "train",
    "trainset": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "valset": "val",
    "dev": "val",
    "devset": "val",
    "test": "test",
    "testing": "test",
    "testset": "test",
}


def words(name: str) -> list[str]:
    """The words of a name in lower case, split at signs, digits and capitals: `seg_Train2` is seg, train, 2."""
    parts = re.findall(r"[^\W\d_]+|\d+", name)
    return [word.lower() for part in parts for word in re.sub(r"(?<=[a-z])(?=[A-Z])", " ", part).split()]


def splits_in(name: str) -> set[str]:
    """The splits that a name's whole words mention: none for `strain`, `latest`, `device` or `intervals`."""
    return {_WORDS[word] for word in words(name) if word in _WORDS}


def split_of(name: str) -> str | None:
    """`train`, `val` or `test` where a name says exactly one of them, else None."""
    mentioned = splits_in(name)
    return mentioned.pop() if len(mentioned) == 1 else None


def choose_splits(names: Iterable[str], where: str) -> tuple[dict[str, str], list[str]]:
    """The name to read for each split, and a sentence for each name that looks like a split but is not read.

    A name that is the split's word alone (`train`) goes before one that only contains it (`train_extra`).

    Raises:
        BadRequest: two names mean the same split equally well.
    """
    candidates: dict[str, list[str]] = {}
    notes = []
    for name in sorted(names):
        split = split_of(name)
        if split is not None:
            candidates.setdefault(split, []).append(name)
        elif splits_in(name):
            mentioned = " and ".join(sorted(splits_in(name)))
            notes.append(f"{name!r} of {where} names both {mentioned}: not read as a split")
    chosen = {}
    for split, own_names in candidates.items():
        plain = [name for name in own_names if len(words(name)) == 1] or own_names
        if len(plain) > 1:
            raise BadRequest(
                f"{where} has {' and '.join(map(repr, plain))}, which both mean {split}; rename or remove all but one"
            )
        chosen[split] = plain[0]
        notes += [
            f"{name!r} of {where} looks like {split} but is not read: {plain[0]!r} is"
            for name in own_names
            if name != plain[0]
        ]
    return chosen, notes
