"""The soft means of `contrastive.py` and their gradient as two fused Triton kernels, for fp32 on CUDA.

No n x n matrix reaches memory. With x = s log2(e) / tau, a tile of x lives in registers for as long as it is needed:

- `_sums_kernel`: a program holds a block of anchors, walks over the pool and keeps five numbers per anchor (the largest
  x and the sum of its exponentials over positives; the largest x and the hard and soft sums over negatives).
- `_gradient_kernel`: a program holds a block of rows of the pool, walks over columns, rebuilds H = G + G^T from both
  sides' numbers and adds H Z to its rows. Every output row has one writer: no atomics, so that
  results are identical bit for bit.

Three n x n x d products where every row is an anchor: one in forward, two in backward. Where few row blocks would
leave multiprocessors idle, the walk is cut into `splits` pieces that are merged in a fixed order.

Products: "ieee" is plain fp32; "tf32x3" sums three TF32 products on the tensor cores and comes close to fp32
(the default on CUDA); "tf32" where the caller allows it. Pool rows that are not anchors have weights of zero.
"""

# As is usual for Triton: compile-time arguments in capitals, no annotations on what is not Python
# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def"

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from schane_cli.losses.contrastive import Pairs, Weighting
from schane_cli.losses.tiled import derivative_weights

LOG2_E = 1.4426950408889634
NOTHING = tl.constexpr(-1e30)  # x of a pair that is not in the set


class _Blocks(NamedTuple):
    """Block shapes and the precision of products. `rows` x `columns` is the tile, `inner` the depth of one load."""

    rows: int
    columns: int
    inner: int
    output: int  # columns of the gradient that one program accumulates
    warps: int
    stages: int  # loads in flight
    precision: str
    programs: int  # enough to fill the device


def _blocks(pool: Tensor, allow_tf32: bool) -> _Blocks:
    width = triton.next_power_of_2(max(16, pool.shape[1]))
    if not pool.is_cuda:  # the interpreter: small tiles, so that small tests reach their edges
        return _Blocks(16, 32, min(width, 32), min(width, 32), 4, 1, "ieee", 4)
    precision = "tf32" if allow_tf32 else "tf32x3"
    programs = 2 * torch.cuda.get_device_properties(pool.device).multi_processor_count
    # compiled for sm_90 these shapes spill nothing in forward and 152 bytes per thread in backward; not yet timed
    return _Blocks(128, 64, min(width, 32), min(width, 128), 8, 2, precision, programs)


def _splits(blocks: _Blocks, rows: int, columns: int) -> int:
    """Pieces to cut the walk over `columns` into, so that few row blocks still fill the device."""
    wanted = triton.cdiv(blocks.programs, triton.cdiv(max(rows, 1), blocks.rows))
    return min(wanted, max(1, triton.cdiv(columns, blocks.columns)))


def _per_split(blocks: _Blocks, columns: int, splits: int) -> int:
    return triton.cdiv(triton.cdiv(columns, splits), blocks.columns) * blocks.columns


@triton.jit
def _tile(pool, rows, columns, n, d, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
          PRECISION: tl.constexpr):  # fmt: skip
    """x (ROWS, COLUMNS) in units of log2(e) / tau. Rows beyond the pool read as zero."""
    x = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, d, INNER):
        inner = start + tl.arange(0, INNER)
        # 64-bit offsets: n d passes 2^31 at a million rows of 2,048
        a = tl.load(pool + rows.to(tl.int64)[:, None] * d + inner[None, :],
                    mask=(rows < n)[:, None] & (inner < d)[None, :], other=0.0)  # fmt: skip
        b = tl.load(pool + columns.to(tl.int64)[None, :] * d + inner[:, None],
                    mask=(columns < n)[None, :] & (inner < d)[:, None], other=0.0)  # fmt: skip
        x = tl.dot(a, b, x, input_precision=PRECISION)
    return x * scale


@triton.jit
def _exponentials(x, positive_top, negative_top, in_positive, in_negative, hardness, HARDNESS_KIND: tl.constexpr):
    """2^(x - top), each pair against its own set's maximum, and 2^(hardness (x - top)); 0 for pairs in no set.

    The sets are disjoint, so one exponential serves both; the special function units are the bottleneck after the
    products. HARDNESS_KIND: 0 and 1 for that very hardness, 2 for any other.
    """
    shifted = tl.where(in_positive, x - positive_top, tl.where(in_negative, x - negative_top, NOTHING))
    e = tl.exp2(shifted)
    f = e
    if HARDNESS_KIND == 0:
        f = tl.where(in_negative, 1.0, 0.0)
    if HARDNESS_KIND == 2:
        f = tl.exp2(hardness * shifted)
    return e, f


@triton.jit
def _sums_kernel(pool, classes, sums, n, d, first, anchors, per_split, scale, hardness,
                 ROWS: tl.constexpr, HARDNESS_KIND: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
                 PRECISION: tl.constexpr):  # fmt: skip
    """sums (splits, 5, anchors): positive maximum and sum, negative maximum, hard sum, soft sum of one split."""
    anchor = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = tl.where(anchor < anchors, first + anchor, n)
    row_class = tl.load(classes + rows, mask=rows < n, other=-1)
    positive_top = tl.full((ROWS,), NOTHING, dtype=tl.float32)
    negative_top = tl.full((ROWS,), NOTHING, dtype=tl.float32)
    positive = tl.zeros((ROWS,), dtype=tl.float32)
    hard = tl.zeros((ROWS,), dtype=tl.float32)
    soft = tl.zeros((ROWS,), dtype=tl.float32)
    begin = tl.program_id(1) * per_split
    for start in range(begin, tl.minimum(begin + per_split, n), COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        x = _tile(pool, rows, columns, n, d, scale, ROWS, COLUMNS, INNER, PRECISION)
        column_class = tl.load(classes + columns, mask=columns < n, other=-1)
        same = row_class[:, None] == column_class[None, :]
        inside = (columns < n)[None, :]
        in_positive = same & inside & (rows[:, None] != columns[None, :])
        in_negative = inside & (same == 0)
        new_positive_top = tl.maximum(positive_top, tl.max(tl.where(in_positive, x, NOTHING), 1))
        new_negative_top = tl.maximum(negative_top, tl.max(tl.where(in_negative, x, NOTHING), 1))
        e, f = _exponentials(x, new_positive_top[:, None], new_negative_top[:, None], in_positive, in_negative,
                             hardness, HARDNESS_KIND)  # fmt: skip
        # sums so far move to the new maxima; the factor is 2^(NOTHING) = 0 at the first pair, where the sum is 0 too
        positive *= tl.exp2(positive_top - new_positive_top)
        positive += tl.sum(tl.where(in_positive, e, 0.0), 1)
        hard *= tl.exp2((1.0 + hardness) * (negative_top - new_negative_top))
        hard += tl.sum(tl.where(in_negative, e * f, 0.0), 1)
        soft *= tl.exp2(hardness * (negative_top - new_negative_top))
        soft += tl.sum(tl.where(in_negative, f, 0.0), 1)
        positive_top, negative_top = new_positive_top, new_negative_top
    out = sums + tl.program_id(1).to(tl.int64) * 5 * anchors + anchor
    tl.store(out, positive_top, mask=anchor < anchors)
    tl.store(out + anchors, positive, mask=anchor < anchors)
    tl.store(out + 2 * anchors, negative_top, mask=anchor < anchors)
    tl.store(out + 3 * anchors, hard, mask=anchor < anchors)
    tl.store(out + 4 * anchors, soft, mask=anchor < anchors)


@triton.jit
def _slopes(x, positive_top, negative_top, positive, hard, soft, in_positive, in_negative, hardness,
            HARDNESS_KIND: tl.constexpr):  # fmt: skip
    """G on a tile: each set's exponentials times the anchor's weights, all broadcast to the tile's shape."""
    e, f = _exponentials(x, positive_top, negative_top, in_positive, in_negative, hardness, HARDNESS_KIND)
    return tl.where(in_positive, positive * e, (hard * e + soft) * f)


@triton.jit
def _numbers(numbers, index, n):
    """The five numbers of each row `index`: maxima of positives and negatives, weights positive, hard and soft."""
    inside = index < n
    at = numbers + index
    return (tl.load(at, mask=inside, other=0.0), tl.load(at + n, mask=inside, other=0.0),
            tl.load(at + 2 * n, mask=inside, other=0.0), tl.load(at + 3 * n, mask=inside, other=0.0),
            tl.load(at + 4 * n, mask=inside, other=0.0))  # fmt: skip


@triton.jit
def _gradient_kernel(pool, classes, numbers, grad, n, d, first_row, last_row, first_column, last_column, per_split,
                     scale, hardness, HARDNESS_KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                     INNER: tl.constexpr, OUTPUT: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """grad (splits, n, d): H Z of one split of the columns, for a block of rows and OUTPUT of the d features."""
    rows = first_row + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = tl.where(rows < last_row, rows, n)
    row_class = tl.load(classes + rows, mask=rows < n, other=-1)
    row_p_top, row_n_top, row_p, row_h, row_s = _numbers(numbers, rows, n)
    features = tl.program_id(1) * OUTPUT + tl.arange(0, OUTPUT)
    total = tl.zeros((ROWS, OUTPUT), dtype=tl.float32)
    begin = first_column + tl.program_id(2) * per_split
    for start in range(begin, tl.minimum(begin + per_split, last_column), COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        columns = tl.where(columns < last_column, columns, n)
        x = _tile(pool, rows, columns, n, d, scale, ROWS, COLUMNS, INNER, PRECISION)
        column_class = tl.load(classes + columns, mask=columns < n, other=-1)
        same = row_class[:, None] == column_class[None, :]
        inside = (rows < n)[:, None] & (columns < n)[None, :]
        in_positive = same & inside & (rows[:, None] != columns[None, :])
        in_negative = inside & (same == 0)
        col_p_top, col_n_top, col_p, col_h, col_s = _numbers(numbers, columns, n)
        h = _slopes(x, row_p_top[:, None], row_n_top[:, None], row_p[:, None], row_h[:, None], row_s[:, None],
                    in_positive, in_negative, hardness, HARDNESS_KIND)  # fmt: skip
        h += _slopes(x, col_p_top[None, :], col_n_top[None, :], col_p[None, :], col_h[None, :], col_s[None, :],
                     in_positive, in_negative, hardness, HARDNESS_KIND)  # fmt: skip
        z = tl.load(pool + columns.to(tl.int64)[:, None] * d + features[None, :],
                    mask=(columns < n)[:, None] & (features < d)[None, :], other=0.0)  # fmt: skip
        total = tl.dot(h, z, total, input_precision=PRECISION)
    at = tl.program_id(2).to(tl.int64) * n * d + rows.to(tl.int64)[:, None] * d + features[None, :]
    tl.store(grad + at, total, mask=(rows < n)[:, None] & (features < d)[None, :])


def triton_soft_means(
    pool: Tensor, pairs: Pairs, weighting: Weighting, *, allow_tf32: bool = False
) -> tuple[Tensor, Tensor]:
    """(pos_i, neg_i) of `contrastive.py`, each (m,), of the anchors of `pool` (N, d) fp32 with unit rows.

    Raises ValueError for another dtype, and off CUDA unless TRITON_INTERPRET=1 was set before the import.
    """
    if pool.dtype != torch.float32:
        raise ValueError(f"backend is 'triton' and projection is {pool.dtype}; it computes fp32: use 'tiled'")
    if not pool.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(f"backend is 'triton' and projection is on {pool.device}; it must be on CUDA: use 'tiled'")
    positive, negative = _TritonSoftMeans.apply(pool, pairs, weighting, allow_tf32)
    return positive, negative


class _TritonSoftMeans(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pool: Tensor, pairs: Pairs, weighting: Weighting, allow_tf32: bool) -> tuple[Tensor, Tensor]:
        pool = pool.contiguous()
        ctx.blocks, ctx.pairs, ctx.weighting = _blocks(pool, allow_tf32), pairs, weighting
        ctx.classes = pairs.classes.to(torch.int32)  # ids are below N
        with torch.cuda.device_of(pool):  # Triton launches on the current device, not on the tensor's
            sums = _sums(pool, ctx.classes, pairs, weighting, ctx.blocks)
        ctx.save_for_backward(pool, sums)
        positive_top, positive, negative_top, hard, soft = sums
        return (
            positive_top / LOG2_E + (positive / pairs.positives.clamp_min(1)).log(),
            negative_top / LOG2_E + hard.log() - soft.log(),
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_positive: Tensor, d_negative: Tensor) -> tuple[Tensor, None, None, None]:
        pool, sums = ctx.saved_tensors
        weights = derivative_weights(d_positive, d_negative, sums, ctx.weighting)
        first, last = ctx.pairs.offset, ctx.pairs.offset + len(ctx.pairs.positives)
        numbers = pool.new_zeros(5, len(pool))  # rows that are not anchors: weight 0 times 2^(x - 1e30) = 0
        numbers[:2] = 1e30
        numbers[:, first:last] = torch.cat([sums[[0, 2]], weights])
        with torch.cuda.device_of(pool):
            grad = _gradient(pool, ctx.classes, numbers, (first, last), ctx.weighting, ctx.blocks)
        return grad, None, None, None


def _scalars(weighting: Weighting) -> tuple[float, float, int]:
    """scale, hardness and the kind of hardness, as the kernels take them."""
    kind = int(weighting.hardness) if weighting.hardness in (0.0, 1.0) else 2
    return LOG2_E / weighting.temperature, weighting.hardness, kind


def _sums(pool: Tensor, classes: Tensor, pairs: Pairs, weighting: Weighting, blocks: _Blocks) -> Tensor:
    """(5, m) over the whole pool: positive maximum and sum, negative maximum, hard sum, soft sum."""
    (n, d), anchors = pool.shape, len(pairs.positives)
    splits = _splits(blocks, anchors, n)
    parts = pool.new_empty(splits, 5, anchors)
    scale, hardness, kind = _scalars(weighting)
    grid = (triton.cdiv(anchors, blocks.rows), splits)
    if anchors:
        _sums_kernel[grid](
            pool, classes, parts, n, d, pairs.offset, anchors, _per_split(blocks, n, splits), scale, hardness,
            HARDNESS_KIND=kind, ROWS=blocks.rows, COLUMNS=blocks.columns, INNER=blocks.inner,
            PRECISION=blocks.precision, num_warps=blocks.warps, num_stages=blocks.stages,
        )  # fmt: skip
    return parts[0] if splits == 1 else _merge(parts, hardness)


def _merge(parts: Tensor, hardness: float) -> Tensor:
    """One (5, m) from that of each split: every sum moved to the common maximum."""
    tops = parts[:, [0, 2]].amax(0)
    moved = parts[:, [0, 2]] - tops
    sums = [
        (parts[:, 1] * moved[:, 0].exp2()).sum(0),
        (parts[:, 3] * ((1 + hardness) * moved[:, 1]).exp2()).sum(0),
        (parts[:, 4] * (hardness * moved[:, 1]).exp2()).sum(0),
    ]
    return torch.stack([tops[0], sums[0], tops[1], sums[1], sums[2]])


def _gradient(
    pool: Tensor, classes: Tensor, numbers: Tensor, anchors: tuple[int, int], weighting: Weighting, blocks: _Blocks
) -> Tensor:
    """(N, d). Anchors meet every column; other rows meet the anchors only, as nothing else depends on them."""
    n, d = pool.shape
    splits = _splits(blocks, n, n)
    parts = pool.new_empty(splits, n, d)
    scale, hardness, kind = _scalars(weighting)
    first, last = anchors
    for (row, last_row), (column, last_column) in (
        ((0, first), (first, last)),
        ((first, last), (0, n)),
        ((last, n), (first, last)),
    ):
        if row == last_row:
            continue
        grid = (triton.cdiv(last_row - row, blocks.rows), triton.cdiv(d, blocks.output), splits)
        per_split = _per_split(blocks, max(last_column - column, 1), splits)
        _gradient_kernel[grid](
            pool, classes, numbers, parts, n, d, row, last_row, column, last_column, per_split, scale, hardness,
            HARDNESS_KIND=kind, ROWS=blocks.rows, COLUMNS=blocks.columns, INNER=blocks.inner, OUTPUT=blocks.output,
            PRECISION=blocks.precision, num_warps=blocks.warps, num_stages=blocks.stages,
        )  # fmt: skip
    return parts[0] if splits == 1 else parts.sum(0)
