"""What a source delivers: its image sets by split, and what a user should know about them."""

from collections.abc import Iterable, Mapping

from schane_cli.images.imageset import ImageSet


class Parts(dict[str, ImageSet]):
    """Image sets by the source's own splits: some of `train`, `val` and `test`, or `all`; `notes` are sentences."""

    def __init__(self, parts: Mapping[str, ImageSet] | Iterable[tuple[str, ImageSet]] = (), notes: Iterable[str] = ()):
        super().__init__(parts)
        self.notes: list[str] = [*getattr(parts, "notes", ()), *notes]
        self.left_out = 0  # images that cannot be read

    def without_labels(self, split: str, why: str) -> None:
        """Leave out a split that has no labels, and say so; where it was test, the source's val serves as test."""
        self.pop(split, None)
        if split == "test" and "val" in self:
            self["test"] = self.pop("val").renamed("test")
            self.notes.append(f"TEST IS THE SOURCE'S VAL: its test split has no labels ({why})")
        else:
            self.notes.append(f"the source's {split} split has no labels and is not used ({why})")
