"""What the science asks of its input, in sentences that name the rows: finite numbers, vectors with a direction.

Nothing here imports torch: `schane compare` works without it.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def as_array(values: Any) -> NDArray[Any]:
    """A NumPy array of an array or a tensor on any device; half-precision floats become float32."""
    if not _is_tensor(values):
        return np.asarray(values)
    values = values.detach()
    if values.is_floating_point() and values.itemsize < 4:
        values = values.float()
    array: NDArray[Any] = values.cpu().numpy()
    return array


def require_finite(rows: Any, what: str, names: Sequence[str] | None = None) -> None:
    """ValueError naming the rows of `rows` (n, ...) that hold NaN or infinity, by their `names` or their number."""
    if _is_tensor(rows) and rows.sum().isfinite():
        return  # one pass where looking at each value takes four; if the sum overflowed, the values are looked at
    rows = as_array(rows)
    _refuse(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1), what, "not finite", names)


def require_direction(rows: NDArray[Any], what: str, names: Sequence[str] | None = None) -> None:
    """ValueError naming the rows of `rows` (n, d) that are wholly zero and so have no direction."""
    _refuse((rows == 0).all(axis=1), what, "zero, without a direction", names)


def _is_tensor(values: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(values, torch.Tensor)


def _refuse(wrong: NDArray[np.bool_], what: str, problem: str, names: Sequence[str] | None) -> None:
    """`the embedding of 2 images (img0, img4) is zero`, five named, where any of `wrong` (n,) is true."""
    rows = np.flatnonzero(wrong).tolist()
    if rows:
        noun = ("image" if names is not None else "row") + ("s" if len(rows) > 1 else "")
        named = ", ".join(names[row] if names is not None else str(row) for row in rows[:5])
        raise ValueError(f"{what} of {len(rows)} {noun} ({named}{', …' if len(rows) > 5 else ''}) is {problem}")
