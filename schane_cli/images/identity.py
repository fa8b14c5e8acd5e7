"""Which images a run was trained on, in a few hashes: kept in its checkpoint, compared when the run is resumed."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from schane_cli.images.imageset import ImageSet


def record(splits: Mapping[str, ImageSet]) -> dict[str, dict[str, Any]]:
    """Of each split the number of images, a hash of their names, labels and classes, and one of their content."""
    return {
        split: {
            "n": len(part),
            "names": part.identity(),
            "content": "" if part.content is None else sha256(part.content.tobytes()).hexdigest(),
        }
        for split, part in splits.items()
    }


def class_changes(before: tuple[str, ...], now: tuple[str, ...]) -> list[str]:
    """What differs between two class lists, as a sentence; none where they are equal."""
    if before == now:
        return []
    gone, new = [name for name in before if name not in now], [name for name in now if name not in before]
    if not gone and not new:
        return ["the classes are in another order"]
    parts = [f"{_some(gone)} gone" if gone else "", f"{_some(new)} new" if new else ""]
    return [f"classes: {', '.join(filter(None, parts))}"]


def image_changes(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What differs between two records, a sentence per split; a split that only one has does not count."""
    changes = []
    for split, was in before.items():
        current = now.get(split)
        if current is None or was == current:
            continue
        if was["n"] != current["n"]:
            changes.append(f"{split} has {current['n']:,} images, {was['n']:,} then")
        elif was["names"] != current["names"]:
            changes.append(f"{split} has other images or labels, though still {current['n']:,}")
        elif was["content"] and current["content"]:
            changes.append(f"{split} has images with the same names but other content")
    return changes


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"
