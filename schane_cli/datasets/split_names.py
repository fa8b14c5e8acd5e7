"""Which split a folder, column value or shard name means: one rule for every kind of source."""

import re
from collections.abc import Collection, Iterable

from schane_cli.errors import BadRequest

SPLITS = ("train", "val", "test")
_WORDS = {
    "train": "train",
    "training": "train",
    "trainset": "train",
    "trainval": "train",
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
_EVALUATION = frozenset({"eval", "evaluation", "evalset"})  # the test of some, the validation of others


def words(name: str) -> list[str]:
    """The words of a name in lower case, split at signs, digits and capitals: `seg_Train2` is seg, train, 2."""
    parts = re.findall(r"[^\W\d_]+|\d+", name)
    return [word.lower() for part in parts for word in re.sub(r"(?<=[a-z])(?=[A-Z])", " ", part).split()]


def splits_in(name: str) -> set[str]:
    """The splits that a name's whole words mention: none for `strain`, `latest`, `device` or `intervals`."""
    return {_WORDS[word] for word in words(name) if word in _WORDS}


def is_evaluation(name: str) -> bool:
    """Whether a name says evaluation and no split: which one it means, the other names tell."""
    return not splits_in(name) and not _EVALUATION.isdisjoint(words(name))


def looks_like_split(name: str) -> bool:
    """Whether a name mentions a split, or several."""
    return bool(splits_in(name)) or is_evaluation(name)


def split_of(name: str) -> str | None:
    """`train`, `val` or `test` where a name says exactly one of them, else None."""
    mentioned = splits_in(name)
    return mentioned.pop() if len(mentioned) == 1 else None


def evaluation_split(others: Collection[str | None]) -> str | None:
    """What `evaluation` means beside these splits: test, or val where there is a test; None without train or room."""
    return next((split for split in ("test", "val") if split not in others and "train" in others), None)


def split_of_each(names: Iterable[str]) -> dict[str, str | None]:
    """The split that each of the names means, of which several may mean the same one, or None."""
    splits = {name: split_of(name) for name in names}
    evaluation = evaluation_split(set(splits.values()))
    return {name: evaluation if is_evaluation(name) else split for name, split in splits.items()}


def choose_splits(names: Iterable[str], where: str, taken: Collection[str] = ()) -> tuple[dict[str, str], list[str]]:
    """The name to read for each split, and a sentence for each name that looks like a split but is not read.

    A name that is the split's word alone (`train`) goes before one that only contains it (`train_extra`), and `train`
    before `trainval`. `taken` are splits that are read from elsewhere.

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
    chosen = {split: _plainest(own_names, split, where) for split, own_names in candidates.items()}
    for name in filter(is_evaluation, sorted(names)):
        split = evaluation_split({*chosen, *taken})
        if split is None:
            notes.append(f"{name!r} of {where} looks like a split but is not read")
        else:
            chosen[split] = name
            notes.append(f"{name!r} of {where} is read as {split}")
    notes += [
        f"{name!r} of {where} looks like {split} but is not read: {chosen[split]!r} is"
        for split, own_names in candidates.items()
        for name in own_names
        if name != chosen[split]
    ]
    return chosen, notes


def _plainest(names: list[str], split: str, where: str) -> str:
    """Of the names that mean a split the one that says no more than that; BadRequest where two do."""
    plain = [name for name in names if len(words(name)) == 1] or names
    plain = [name for name in plain if "trainval" not in words(name)] or plain
    if len(plain) > 1:
        raise BadRequest(
            f"{where} has {' and '.join(map(repr, plain))}, which both mean {split}; rename or remove all but one"
        )
    return plain[0]
