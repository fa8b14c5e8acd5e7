"""What every metric asks of its input: arrays of whatever was given, and numbers that are finite."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def as_array(values: Any) -> NDArray[Any]:
    """A NumPy array of an array or a tensor on any device; half-precision floats become float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach()
        if values.is_floating_point() and values.dtype != torch.float64:
            values = values.float()
        return values.cpu().numpy()
    return np.asarray(values)


def require_finite(rows: NDArray[Any], what: str, names: Sequence[str] | None = None) -> None:
    """ValueError naming the rows of `rows` (n, ...) that hold NaN or infinity, by their `names` or their number."""
    _refuse(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1), what, "not finite", names)


def require_direction(rows: NDArray[Any], what: str, names: Sequence[str] | None = None) -> None:
    """ValueError naming the rows of `rows` (n, d) that are wholly zero and so have no direction."""
    _refuse((rows == 0).all(axis=1), what, "zero, without a direction", names)


def _refuse(wrong: NDArray[np.bool_], what: str, problem: str, names: Sequence[str] | None) -> None:
    """`the embedding of 2 images (img0, img4) is zero`, five named, where any of `wrong` (n,) is true."""
    rows = np.flatnonzero(wrong).tolist()
    if rows:
        noun = ("image" if names is not None else "row") + ("s" if len(rows) > 1 else "")
        named = ", ".join(names[row] if names is not None else str(row) for row in rows[:5])
        raise ValueError(f"{what} of {len(rows)} {noun} ({named}{', …' if len(rows) > 5 else ''}) is {problem}")
