"""The soft means of `contrastive.py` and their gradient without n x n matrices, in plain torch on any device.

Similarities are computed tile by tile, reduced to a few numbers per anchor, dropped, and computed again in backward:
O(N d + tile N) memory, whatever is kept for backward included. There are two ways:

**Symmetric tiles**, where every row of the pool is an anchor and exponentials need no shift. S is symmetric, so a tile
above the diagonal serves its rows and its columns, and dZ = H Z with H = G + G^T, itself symmetric. Forward is half an
n x n x d product and backward one and a half (the bare z @ z.T forward and backward is three), and every
exponential is taken once for two entries. Rows are sorted by class first: only tiles near the diagonal then hold
positives, and all others need no mask. Cosines lie in [-1, 1], so with x = s / tau the exponential of (1 + beta) x
stays within exp(+-(1 + beta) / tau): no maximum is subtracted while that fits the dtype with room for n terms.

**Row panels**, for everything else: very low temperatures, a pool with rows that are not anchors (other ranks', a
memory's). A panel of rows against the whole pool, with the row's own maxima taken out of every exponential.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from schane_cli.losses.contrastive import Pairs, Weighting, matmul_precision

TILE = 512  # rows and columns of a symmetric tile: three fp32 tiles are 3 MB, about a core's second-level cache
PANEL_ELEMENTS = 1 << 19  # of a row panel: 2 MB in fp32, and five to eight such temporaries live at once
PANEL_MIN_ROWS = 64  # below this the products are too thin to run at speed
UNSHIFTED_EXPONENT = {torch.float32: 60.0, torch.float64: 600.0}  # exp of this, times n = 1e9 terms, is finite
NOTHING = -1e30  # similarity of a pair that is not in the set
DROPPED = -80.0  # exponents are cut here: 2e-35 of the largest term, and denormals cost 100 times as much


def tiled_soft_means(
    pool: Tensor, pairs: Pairs, weighting: Weighting, *, allow_tf32: bool = False
) -> tuple[Tensor, Tensor]:
    """(pos_i, neg_i) of `contrastive.py`, each (m,), of the anchors of `pool` (N, d) with unit rows."""
    positive, negative = _TiledSoftMeans.apply(pool, pairs, weighting, allow_tf32)
    return positive, negative


class _Tiles(Protocol):
    def sums(self) -> Tensor:
        """What the means are computed from, kept for backward: (5, m)."""

    def gradient(self, weights: Tensor) -> Tensor:
        """d/dpool (N, d) of sums whose derivatives by s / tau are `weights` (3, m) times their exponentials."""


class _TiledSoftMeans(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pool: Tensor, pairs: Pairs, weighting: Weighting, allow_tf32: bool) -> tuple[Tensor, Tensor]:
        with matmul_precision(allow_tf32):
            sums = _tiles(pool, pairs, weighting).sums()
        ctx.pairs, ctx.weighting, ctx.allow_tf32 = pairs, weighting, allow_tf32
        ctx.save_for_backward(pool, sums)
        positive_top, positive, negative_top, hard, soft = sums
        return (
            positive_top + (positive / pairs.positives.clamp_min(1)).log(),
            negative_top + hard.log() - soft.log(),
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_positive: Tensor, d_negative: Tensor) -> tuple[Tensor, None, None, None]:
        pool, sums = ctx.saved_tensors
        weights = derivative_weights(d_positive, d_negative, sums, ctx.weighting)
        with torch.autocast(pool.device.type, enabled=False), matmul_precision(ctx.allow_tf32):
            return _tiles(pool, ctx.pairs, ctx.weighting).gradient(weights), None, None, None


def derivative_weights(d_positive: Tensor, d_negative: Tensor, sums: Tensor, weighting: Weighting) -> Tensor:
    """Factors (3, m) of the positive, hard and soft exponentials in dL/ds: incoming gradient over tau times the sum.

    An anchor without such pairs has a sum of 0 and an incoming derivative of 0.
    """
    through_weights = 0.0 if weighting.stop_gradient else weighting.hardness
    hard, soft = d_negative * (1 + through_weights), d_negative * -through_weights
    scaled = torch.stack([d_positive, hard, soft]) / weighting.temperature
    return torch.where(scaled == 0, 0, scaled / sums[[1, 3, 4]])


def _tiles(pool: Tensor, pairs: Pairs, weighting: Weighting) -> _Tiles:
    bounded = (1 + weighting.hardness) / weighting.temperature <= UNSHIFTED_EXPONENT[pool.dtype]
    every_row_is_an_anchor = len(pairs.positives) == len(pool)
    return (_SymmetricTiles if bounded and every_row_is_an_anchor else _RowPanels)(pool, pairs, weighting)


class _SymmetricTiles:
    """Tiles on and above the diagonal of S, rows sorted by class. With x = s / tau a tile holds
    `e` = exp(x) and `f` = exp(hardness x); `e * f` are the terms of the hard sum, `f` those of the soft one."""

    def __init__(self, pool: Tensor, pairs: Pairs, weighting: Weighting) -> None:
        self.order = pairs.classes.argsort()
        self.rows = pool[self.order]
        self.classes = pairs.classes[self.order]
        self.negatives = pairs.negatives
        self.hardness, self.scale = weighting.hardness, 1 / weighting.temperature
        self.buffers = pool.new_empty(3, TILE * TILE)

    def _spans(self) -> Iterator[tuple[slice, slice, bool]]:
        """Rows, columns, and whether the tile holds pairs of one class."""
        n = len(self.rows)
        starts = range(0, n, TILE)
        first = self.classes[::TILE].tolist()
        last = self.classes[[min(start + TILE, n) - 1 for start in starts]].tolist()
        for i, top in enumerate(starts):
            for j, left in enumerate(starts[i:], start=i):
                yield slice(top, min(top + TILE, n)), slice(left, min(left + TILE, n)), last[i] >= first[j]

    def _buffer(self, index: int, rows: slice, columns: slice) -> Tensor:
        shape = rows.stop - rows.start, columns.stop - columns.start
        return self.buffers[index, : shape[0] * shape[1]].view(shape)

    def _exponentials(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor | None]:
        """`e` and `f`: no `f` at hardness 0, where it is 1, and the same tensor at hardness 1."""
        e = self._buffer(0, rows, columns)
        torch.addmm(e, self.rows[rows], self.rows[columns].T, beta=0, alpha=self.scale, out=e)
        if self.hardness == 0:
            return e.exp_(), None
        if self.hardness == 1:
            return e.exp_(), e
        f = torch.mul(e, self.hardness, out=self._buffer(1, rows, columns)).exp_()
        return e.exp_(), f

    def sums(self) -> Tensor:
        totals = self.rows.new_zeros(5, len(self.rows))  # in the sorted order; no maxima, so rows 0 and 2 stay 0
        for rows, columns, mixed in self._spans():
            e, f = self._exponentials(rows, columns)
            hard = e if f is None else torch.mul(e, f, out=self._buffer(2, rows, columns))
            if mixed:
                same = self._same(rows, columns)
                positive = e * same
                if rows == columns:
                    positive.fill_diagonal_(0)
                _add_both_ways(totals[1], positive, rows, columns)
                f = f if f is None else f.masked_fill(same, 0)
                hard.masked_fill_(same, 0)
            _add_both_ways(totals[3], hard, rows, columns)
            if f is not None:
                _add_both_ways(totals[4], f, rows, columns)
        totals = torch.empty_like(totals).index_copy_(1, self.order, totals)
        if self.hardness == 0:
            totals[4] = self.negatives
        return totals

    def gradient(self, weights: Tensor) -> Tensor:
        weights = weights[:, self.order]
        grad = torch.zeros_like(self.rows)
        for rows, columns, mixed in self._spans():
            h = self._slopes(weights, rows, columns, mixed)
            grad[rows].addmm_(h, self.rows[columns])
            if rows != columns:
                grad[columns].addmm_(h.T, self.rows[rows])
        return torch.empty_like(grad).index_copy_(0, self.order, grad)

    def _slopes(self, weights: Tensor, rows: slice, columns: slice, mixed: bool) -> Tensor:
        """H = G + G^T on a tile: f (e (hard_i + hard_j) + soft_i + soft_j) for negatives, e (pos_i + pos_j) else."""
        e, f = self._exponentials(rows, columns)
        h = self._buffer(2, rows, columns)
        positive, hard, soft = ((w[rows, None], w[columns]) for w in weights)
        torch.add(*hard, out=h).mul_(e)
        if f is not None:
            h.add_(soft[0]).add_(soft[1]).mul_(f)
        if mixed:
            h = torch.where(self._same(rows, columns), torch.add(*positive).mul_(e), h)
            if rows == columns:
                h.fill_diagonal_(0)
        return h

    def _same(self, rows: slice, columns: slice) -> Tensor:
        return self.classes[rows, None] == self.classes[columns]


def _add_both_ways(total: Tensor, tile: Tensor, rows: slice, columns: slice) -> None:
    """Adds a tile's row sums to its rows and, off the diagonal, its column sums to its columns."""
    total[rows] += tile.sum(1)
    if rows != columns:
        total[columns] += tile.sum(0)


class _RowPanels:
    """Panels of anchors against the whole pool, every exponential relative to the row's largest of its set."""

    def __init__(self, pool: Tensor, pairs: Pairs, weighting: Weighting) -> None:
        self.pool, self.pairs = pool, pairs
        self.hardness, self.scale = weighting.hardness, 1 / weighting.temperature

    def _spans(self) -> Iterator[slice]:
        """Anchors as rows of the pool."""
        height = max(PANEL_MIN_ROWS, PANEL_ELEMENTS // len(self.pool))
        end = self.pairs.offset + len(self.pairs.positives)
        for top in range(self.pairs.offset, end, height):
            yield slice(top, min(top + height, end))

    def _similarities(self, rows: slice) -> tuple[Tensor, Tensor]:
        """s / tau (rows, N) where the pair is positive, and where it is negative; NOTHING elsewhere."""
        x = (self.pool[rows] @ self.pool.T).mul_(self.scale)
        same = self.pairs.classes[rows, None] == self.pairs.classes
        positive = x.masked_fill(~same, NOTHING)
        positive.diagonal(rows.start).fill_(NOTHING)
        return positive, x.masked_fill_(same, NOTHING)

    def sums(self) -> Tensor:
        parts = [self._panel_sums(*self._similarities(rows)) for rows in self._spans()]
        sums = torch.cat([self.pool.new_zeros(5, 0), *parts], 1)
        if self.hardness == 0:
            sums[4] = self.pairs.negatives  # every weight is 1, also of the pairs that are not negatives
        return sums

    def _panel_sums(self, positive: Tensor, negative: Tensor) -> Tensor:
        positive_top, negative_top = positive.amax(1), negative.amax(1)
        positive = _shifted_exp(positive, positive_top).sum(1)
        soft = _shifted_exp(negative, negative_top, self.hardness).sum(1)
        hard = _shifted_exp(negative, negative_top, 1 + self.hardness).sum(1)
        return torch.stack([positive_top, positive, negative_top, hard, soft])

    def gradient(self, weights: Tensor) -> Tensor:
        grad = torch.zeros_like(self.pool)
        for rows in self._spans():
            anchors = slice(rows.start - self.pairs.offset, rows.stop - self.pairs.offset)
            slopes = self._panel_slopes(*self._similarities(rows), weights[:, anchors])
            grad[rows].addmm_(slopes, self.pool)
            grad.addmm_(slopes.T, self.pool[rows])
        return grad

    def _panel_slopes(self, positive: Tensor, negative: Tensor, weights: Tensor) -> Tensor:
        """G = dL/dS of a panel: each set's exponentials times the row's weight."""
        positive_top, negative_top = positive.amax(1), negative.amax(1)  # cheaper to recompute than to keep
        slopes = _shifted_exp(positive, positive_top).mul_(weights[0, :, None])
        slopes += _shifted_exp(negative, negative_top, 1 + self.hardness).mul_(weights[1, :, None])
        if self.hardness:
            slopes += _shifted_exp(negative, negative_top, self.hardness).mul_(weights[2, :, None])
        return slopes


def _shifted_exp(x: Tensor, top: Tensor, factor: float = 1.0) -> Tensor:
    return (x - top[:, None]).mul_(factor).clamp_(min=DROPPED).exp_()
