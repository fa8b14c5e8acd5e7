"""Supervised contrastive objectives on a batch of projections: SCHaNe, its easy form, SupCon and SimCLR.

This file can be copied out and used on its own (it then has the dense form only, see `Backend`)::

    from schane_cli.losses import SchaneLoss
    criterion = SchaneLoss()
    loss = criterion(projection, labels)      # (n, d) float, normalised inside; (n,) integer
    loss.backward()

**The objective** (SCHaNe, arXiv:2308.14893; the authors' release, GLA-IR/SCHaNe). `z_i` is the unit projection of
anchor i, `s_ij = z_i . z_j`, tau the temperature, beta the hardness. Views are concatenated: for `views` views of B
images, `projection` has views * B rows and the labels are repeated. ::

    P(i) = { p != i : y_p = y_i }      N(i) = { k : y_k != y_i }
    w_ik = exp(beta s_ik / tau) / mean_{k' in N(i)} exp(beta s_ik' / tau)
    Neg_i = sum_{k in N(i)} w_ik exp(s_ik / tau)
    positives="mean" (the release):        L_i = -log( Pos_i / (Pos_i + Neg_i) ),        Pos_i = mean_P exp(s_ip / tau)
    positives="sum" (CLCE, 2402.14551):    L_i = -log( S_i / (S_i + Neg_i) / |P(i)| ),   S_i = sum_P exp(s_ip / tau)

**The closed form.** Write the soft means (similarities in units of the temperature) ::

    pos_i = logsumexp_P(s / tau) - log|P(i)|
    neg_i = logsumexp_N((1 + beta) s / tau) - logsumexp_N(beta s / tau)

Then Neg_i = |N(i)| exp(neg_i), because the mean in w_ik is exp(logsumexp_N(beta s / tau)) / |N(i)|, and with
gap_i = neg_i + log|N(i)| - pos_i ::

    L_i = softplus(gap_i)                                  positives="mean"
    L_i = softplus(gap_i - log|P(i)|) + log|P(i)|          positives="sum"

**The gradient.** With sigma_i = sigmoid of the softplus's argument ::

    tau dL_i/ds_ij = sigma_i ( (1 + beta) softmax_N((1 + beta) s / tau)_j - beta softmax_N(beta s / tau)_j )  j in N(i)
    tau dL_i/ds_ij = -sigma_i softmax_P(s / tau)_j                                                             j in P(i)

With `stop_gradient` the weights w are constants, and the first line is sigma_i softmax_N((1 + beta) s / tau)_j. The
release lets the gradient through the weights (the default here). With G = dL/dS, dL/dZ = (G + G^T) Z.

**What counts.** An anchor without a positive or without a negative contributes nothing, and the mean runs over the
others (the release gives NaN); where none is left the loss is 0 with zero gradients. SupCon needs a positive only.
Everything is computed in fp32 with autocast off (float64 stays float64), in log space: any temperature is finite.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import torch
import torch.distributed as dist
from torch import Tensor, nn

Positives = Literal["mean", "sum"]
PoolScope = Literal["global", "local"]
Backend = Literal["auto", "dense", "tiled", "triton"]

DENSE_ROWS = 128  # up to here both take about 2 ms on 2 CPU cores; above, the tiled form is faster as well as smaller
NO_DIRECTION = 1e-12  # a projection shorter than this counts as zero: cosine 0 with everything, gradient 0


class Pairs(NamedTuple):
    """Which rows are positives of which. Anchor i is row `offset + i` of the pool (and never its own positive)."""

    classes: Tensor  # (N,) int64, equal where the labels are, in their order
    offset: int
    positives: Tensor  # (m,) |P(i)|, in the projection's dtype
    negatives: Tensor  # (m,) |N(i)|


class Weighting(NamedTuple):
    """The numbers of the soft means: one division by the temperature, one weight on hard negatives."""

    temperature: float
    hardness: float
    stop_gradient: bool


@contextmanager
def matmul_precision(allow_tf32: bool) -> Iterator[None]:
    """Products in full fp32 (or TF32 where asked), whatever the process has set for its own products."""
    wanted, before = "high" if allow_tf32 else "highest", torch.get_float32_matmul_precision()
    if wanted == before:
        yield
        return
    torch.set_float32_matmul_precision(wanted)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class CrossBatchMemory(nn.Module):
    """The last `size` projections and labels, a pool of extra positives and negatives (XBM, arXiv:1912.06798).

    Rows enter after the loss of their own batch, as constants, in rank order and from every rank, so the memory is the
    same on all ranks. They are never anchors. The state is in `state_dict`, so a resumed run continues with it.
    """

    projections: Tensor
    labels: Tensor
    seen: Tensor

    def __init__(self, size: int, dim: int) -> None:
        """`size` rows of `dim` features, both >= 1. Raises ValueError otherwise."""
        super().__init__()
        for name, value in (("size", size), ("dim", dim)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be an integer >= 1")
        self.register_buffer("projections", torch.zeros(size, dim))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self._seen = 0  # host copy of `seen`: reading the buffer would wait for the device at every step

    def rows(self) -> tuple[Tensor, Tensor]:
        """The filled part: projections (k, dim), labels (k,), k = min(rows seen, size)."""
        filled = min(self._seen, len(self.labels))
        return self.projections[:filled], self.labels[:filled]

    @torch.no_grad()
    def push(self, projection: Tensor, labels: Tensor) -> None:
        """Writes unit projections (n, dim) and labels (n,) over the oldest rows."""
        size = len(self.labels)
        kept = min(len(labels), size)
        slots = torch.arange(self._seen + len(labels) - kept, self._seen + len(labels), device=labels.device) % size
        self.projections[slots] = projection[len(labels) - kept :].to(self.projections.dtype)
        self.labels[slots] = labels[len(labels) - kept :]
        self._seen += len(labels)
        self.seen.fill_(self._seen)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._seen = int(self.seen)


class _Normalise(torch.autograd.Function):
    """Rows of (n, d) divided by their length; keeps only the result, not three (n, d) temporaries."""

    @staticmethod
    def forward(ctx: Any, projection: Tensor) -> Tensor:
        largest = projection.abs().amax(1, keepdim=True)  # squares of bf16's largest values overflow fp32
        scaled = projection / torch.where(largest > 0, largest, 1)
        length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
        has_direction = ~(length * largest < NO_DIRECTION)  # written so that NaN stays NaN
        unit = scaled.mul_(torch.where(has_direction, 1 / length, 0))
        ctx.save_for_backward(unit, torch.where(has_direction, 1 / (length * largest), 0))
        return unit

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        unit, inverse_length = ctx.saved_tensors
        along = (grad * unit).sum(1, keepdim=True)
        return torch.addcmul(grad, unit, along, value=-1).mul_(inverse_length)


class _Gather(torch.autograd.Function):
    """Rows of every rank, in rank order. Backward sums every rank's gradient with respect to this rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], rank: int) -> Tensor:
        ctx.rows_before, ctx.rows_here = sum(sizes[:rank]), sizes[rank]
        return _gather_uneven(rows, sizes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[ctx.rows_before : ctx.rows_before + ctx.rows_here], None, None


def _gather_uneven(rows: Tensor, sizes: list[int]) -> Tensor:
    """all_gather needs equal shapes: pad to the longest part, then cut."""
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def _dense_soft_means(pool: Tensor, pairs: Pairs, weighting: Weighting) -> tuple[Tensor, Tensor]:
    """(pos_i, neg_i) of the module docstring in plain torch on (m, N) matrices: the form to read."""
    anchors = slice(pairs.offset, pairs.offset + len(pairs.positives))
    similarity = pool[anchors] @ pool.T / weighting.temperature  # (m, N)
    same = pairs.classes[anchors, None] == pairs.classes
    itself = torch.zeros_like(same)
    itself.diagonal(pairs.offset).fill_(True)
    nothing = -1e30  # finite, so that a row without pairs has a zero gradient and not 0 * inf
    positive = similarity.masked_fill(~same | itself, nothing).logsumexp(1) - pairs.positives.clamp_min(1).log()
    negatives = similarity.masked_fill(same, nothing)
    largest = negatives.detach().amax(1, keepdim=True)
    centred = negatives - largest  # hard and soft share this maximum, and their difference loses its rounding error
    weight = weighting.hardness * (centred.detach() if weighting.stop_gradient else centred)
    hard = (centred + weight).logsumexp(1)
    soft = weight.masked_fill(same, nothing).logsumexp(1)  # masked again: at hardness 0 every weight is 1
    return positive, largest[:, 0] + hard - soft


SoftMeans = Callable[..., tuple[Tensor, Tensor]]
_BACKENDS: dict[str, SoftMeans] = {}


def register_backend(name: str, soft_means: SoftMeans) -> None:
    """Register `soft_means(pool, pairs, weighting, allow_tf32=...)` as `backend=name`.

    It returns what `_dense_soft_means` returns. The package registers `tiled` and `triton`; this file has `dense`.
    """
    _BACKENDS[name] = soft_means


def _soft_means(backend: Backend, allow_tf32: bool, pool: Tensor) -> SoftMeans:
    """The function that computes the soft means of this pool under `backend`.

    Raises ValueError for a backend that is not registered: on a platform without Triton, or in a copy of this file.
    """
    name: str = backend
    if backend == "auto":
        fused = pool.is_cuda and pool.dtype == torch.float32
        wanted = [*(["triton"] if fused else []), *(["tiled"] if fused or len(pool) > DENSE_ROWS else [])]
        name = next((choice for choice in wanted if choice in _BACKENDS), "dense")
    if name == "dense":
        return _dense_soft_means
    if name not in _BACKENDS:
        raise ValueError(f"backend {name!r} is not available here; available: {', '.join(['dense', *_BACKENDS])}")
    return partial(_BACKENDS[name], allow_tf32=allow_tf32)


class Shared(TypedDict, total=False):
    """Arguments that every objective has; `SchaneLoss` describes them, `_ContrastiveLoss` holds their defaults."""

    pool: PoolScope
    backend: Backend
    memory: CrossBatchMemory | None
    allow_tf32: bool
    check_finite: bool


class _ContrastiveLoss(nn.Module):
    """What all objectives share: checks, normalisation, the pool, the mean over valid anchors, the statistics."""

    hardness: float = 0.0
    stop_gradient: bool = False
    needs_negatives: bool = True
    by_image: bool = False  # the labels of forward are image ids, not classes

    def __init__(
        self,
        *,
        temperature: float = 0.5,
        pool: PoolScope = "global",
        backend: Backend = "auto",
        memory: CrossBatchMemory | None = None,
        allow_tf32: bool = False,
        check_finite: bool = True,
    ) -> None:
        """See `SchaneLoss`. Raises ValueError for a value outside its range."""
        super().__init__()
        _check_choice("pool", pool, ("global", "local"))
        _check_choice("backend", backend, ("auto", "dense", "tiled", "triton"))
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature}; it must be a finite number > 0")
        self.temperature = temperature
        self.pool = pool
        self.backend = backend
        self.memory = memory
        self.allow_tf32 = allow_tf32
        self.check_finite = check_finite
        self.stats: dict[str, Tensor] = {}

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, hardness={self.hardness}, pool={self.pool!r}, backend={self.backend!r}"

    def forward(self, projection: Tensor, labels: Tensor) -> Tensor:
        """The mean loss over valid anchors, a scalar in fp32 (float64 for float64 input).

        `projection` (n, d): any floating dtype, need not be normalised. `labels` (n,): integers. Fills `stats`.

        Across W processes with `pool="global"` each rank computes its own anchors against all ranks' rows. The value
        returned is the mean over the valid anchors of all ranks, the same on every rank. Its gradient is that of
        W * (sum over this rank's anchors) / (valid anchors of all ranks), and the gather adds the other ranks'
        gradients with respect to this rank's rows: the average over ranks, as DDP takes it, is the gradient of the
        global mean loss. Forward and backward both communicate, so every rank must run both.

        Raises ValueError for a wrong rank, dtype or length, and for NaN or infinite projections. This last check reads
        one flag back from the device; `check_finite=False` drops it for callers who check the loss, which is then NaN.
        """
        _check_input(projection, labels)
        dtype = projection.dtype if projection.dtype == torch.float64 else torch.float32
        with torch.autocast(projection.device.type, enabled=False), matmul_precision(self.allow_tf32):
            unit = _Normalise.apply(projection.to(dtype))
            if self.check_finite:
                _check_finite(unit)
            return self._loss(unit, labels.to(projection.device, torch.int64))

    def _loss(self, unit: Tensor, labels: Tensor) -> Tensor:
        pool, pool_labels, offset, world = self._gather(unit, labels)
        pool, pool_labels = self._remember(pool, pool_labels)
        pairs = make_pairs(pool_labels, offset, len(unit), unit.dtype)
        positive, negative = _soft_means(self.backend, self.allow_tf32, pool)(
            pool, pairs, Weighting(self.temperature, self.hardness, self.stop_gradient)
        )
        has_positive, has_negative = pairs.positives > 0, pairs.negatives > 0
        positive, negative = positive.where(has_positive, 0), negative.where(has_negative, 0)
        cosines = self._mean_cosines(pool, pairs)
        valid = has_positive & has_negative if self.needs_negatives else has_positive
        losses = self._per_anchor(positive, negative, cosines[0], pairs).where(valid, 0)
        with torch.no_grad():
            totals = self._totals(losses, valid, positive, negative, cosines[1], pairs)
            if world > 1:
                dist.all_reduce(totals)
            self.stats = self._statistics(totals)
            count = totals[0].clamp_min(1)
        own = losses.sum() * (world / count)
        return own if world == 1 else own + (totals[1] / count - own).detach()

    def _gather(self, unit: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int, int]:
        """Pool rows, their labels, where this rank's rows begin, and the number of ranks that share the loss."""
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if world == 1:
            return unit, labels, 0, 1
        if self.pool == "local":
            if self.memory is not None:
                raise ValueError("pool is 'local' with a memory, which would differ between ranks; use pool='global'")
            return unit, labels, 0, 1
        rank = dist.get_rank()
        counts = [labels.new_empty(1) for _ in range(world)]
        dist.all_gather(counts, labels.new_tensor([len(labels)]))
        sizes = torch.cat(counts).tolist()
        return _Gather.apply(unit, sizes, rank), _gather_uneven(labels, sizes), sum(sizes[:rank]), world

    def _remember(self, pool: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The pool with the memory's rows behind it; in training, the batch then enters the memory."""
        if self.memory is None:
            return pool, labels
        past, past_labels = self.memory.rows()
        if past.shape[1] != pool.shape[1]:
            raise ValueError(f"memory holds {past.shape[1]} features; projection has {pool.shape[1]}: they must agree")
        joined = torch.cat([pool, past.to(pool)]), torch.cat([labels, past_labels.to(labels)])
        if self.training:
            self.memory.push(pool, labels)
        return joined

    def _mean_cosines(self, pool: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Mean cosine of each anchor to its positives and to its negatives (m,), in O(N d) from class sums."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.needs_negatives):
            anchors = pool[pairs.offset : pairs.offset + len(pairs.positives)]
            classes = pairs.classes[pairs.offset : pairs.offset + len(pairs.positives)]
            sums = torch.zeros_like(pool).index_add_(0, pairs.classes, pool)
            to_class = (anchors * sums[classes]).sum(1)
            to_itself = anchors.square().sum(1)
            to_all = anchors @ pool.sum(0)
            return (
                (to_class - to_itself) / pairs.positives.clamp_min(1),
                (to_all - to_class) / pairs.negatives.clamp_min(1),
            )

    def _per_anchor(self, positive: Tensor, negative: Tensor, positive_cosine: Tensor, pairs: Pairs) -> Tensor:
        """L_i (m,) from the soft means; its values for invalid anchors are dropped, but must be finite."""
        raise NotImplementedError

    def _totals(
        self, losses: Tensor, valid: Tensor, positive: Tensor, negative: Tensor, negative_cosine: Tensor, pairs: Pairs
    ) -> Tensor:
        """Sums over this rank's anchors, in one vector so that one all_reduce makes them global."""
        rows = [
            valid,
            losses,
            torch.ones_like(losses),
            pairs.positives == 0,
            pairs.negatives == 0,
            pairs.positives,
            (self.temperature * positive).where(valid, 0),
            (self.temperature * negative).where(valid, 0),
            negative_cosine.where(valid, 0),
        ]
        return torch.stack([row.to(losses.dtype).sum() for row in rows])

    @staticmethod
    def _statistics(totals: Tensor) -> dict[str, Tensor]:
        valid, _, anchors, no_positive, no_negative, positives, positive, negative, plain = totals.unbind()
        valid = valid.clamp_min(1)
        return {
            "anchors": anchors,
            "anchors_without_positive": no_positive,
            "anchors_without_negative": no_negative,
            "positives_per_anchor": positives / anchors.clamp_min(1),
            "positive_similarity": positive / valid,
            "negative_similarity": negative / valid,
            "effective_hardness": (negative - plain) / valid,
        }


class SchaneLoss(_ContrastiveLoss):
    """The hardness-weighted supervised contrastive loss, arXiv:2308.14893 (closed form in the module docstring).

    - `temperature` tau > 0, `hardness` beta >= 0: 0 gives all negatives the same weight (the release's `easy`
      estimator; not SupCon, which averages outside the log).
    - `positives`: "mean" is the release's form, "sum" is CLCE's equation (arXiv:2402.14551).
    - `stop_gradient`: treat the weights of the negatives as constants (the release does not).
    - `pool`: "global" gathers projections from all ranks of `torch.distributed` with their gradient; "local" is each
      rank alone, as in the release.
    - `backend`: "dense" builds n x n matrices; "tiled" needs O(n d + tile n) memory on any device; "triton" is fused.
      "auto" is triton for fp32 on CUDA, dense for small n, else tiled.
    - `memory`: a `CrossBatchMemory` that enlarges the pool with past projections.
    - `allow_tf32`: TF32 products on CUDA, which round their factors to 10 bits; full fp32 by default.
    - `check_finite`: see `forward`.

    After each forward `stats` holds detached 0-dim tensors, over all ranks: counts `anchors`,
    `anchors_without_positive`, `anchors_without_negative` (these contribute nothing), the mean `positives_per_anchor`,
    and averaged over valid anchors, as cosines: `positive_similarity` tau * pos_i, `negative_similarity` tau * neg_i,
    and `effective_hardness`, negative_similarity less the plain mean cosine to negatives.

    Raises ValueError for a value outside its range.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.5,
        hardness: float = 1.0,
        positives: Positives = "mean",
        stop_gradient: bool = False,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(temperature=temperature, **shared)
        if not 0 <= hardness < math.inf:
            raise ValueError(f"hardness is {hardness}; it must be a finite number >= 0")
        _check_choice("positives", positives, ("mean", "sum"))
        self.hardness = float(hardness)
        self.positives = positives
        self.stop_gradient = stop_gradient

    def _per_anchor(self, positive: Tensor, negative: Tensor, positive_cosine: Tensor, pairs: Pairs) -> Tensor:
        gap = negative + pairs.negatives.clamp_min(1).log() - positive
        # logaddexp and not softplus, which turns linear at 20 and is off by 2e-9 there
        if self.positives == "mean":
            return torch.logaddexp(gap, torch.zeros_like(gap))
        log_count = pairs.positives.clamp_min(1).log()
        return torch.logaddexp(gap - log_count, torch.zeros_like(gap)) + log_count


class SupConLoss(_ContrastiveLoss):
    """Supervised contrastive loss L_out, arXiv:2004.11362 equation 2. Arguments and `stats` as in `SchaneLoss`. ::

        L_i = logsumexp_{k != i}(s_ik / tau) - mean_{p in P(i)} s_ip / tau

    There is no factor tau / base_temperature (the common implementation and the release hide tau / 0.07 here, 7.1 at
    tau = 0.5). An anchor with positives and no negatives counts, as in the equation: its denominator holds its
    positives. An anchor without positives contributes nothing. The soft means in `stats` are those at hardness 0.
    """

    needs_negatives = False

    def _per_anchor(self, positive: Tensor, negative: Tensor, positive_cosine: Tensor, pairs: Pairs) -> Tensor:
        log_positives = positive + pairs.positives.clamp_min(1).log()
        log_negatives = negative + pairs.negatives.clamp_min(1).log()
        log_negatives = log_negatives.where(pairs.negatives > 0, -1e30)  # finite: logaddexp's gradient stays defined
        return torch.logaddexp(log_positives, log_negatives) - positive_cosine / self.temperature


class SimCLRLoss(SupConLoss):
    """NT-Xent, arXiv:2002.05709 equation 1: the positives of an anchor are the other views of its own image.

    Pass image ids as the labels: `SimCLRLoss(temperature=0.5)(projection, image_ids)`, ids repeated for each view.
    With two views there is one positive, and SupCon over ids is NT-Xent; with more, the mean over the positives.
    """

    by_image = True


def make_pairs(labels: Tensor, offset: int, anchors: int, dtype: torch.dtype) -> Pairs:
    """Class ids and pair counts from the pool's labels (N,), in O(N log N) and without reading anything back."""
    ordered = labels.sort().values
    first = torch.searchsorted(ordered, labels)
    count = torch.searchsorted(ordered, labels, right=True) - first
    own = count[offset : offset + anchors]
    return Pairs(first, offset, (own - 1).to(dtype), (len(labels) - own).to(dtype))


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


def _check_input(projection: Tensor, labels: Tensor) -> None:
    if projection.ndim != 2:
        raise ValueError(f"projection has shape {tuple(projection.shape)}; it must be (n, d), views concatenated")
    if not projection.is_floating_point():
        raise ValueError(f"projection is {projection.dtype}; it must be a floating-point tensor")
    if labels.ndim != 1 or len(labels) != len(projection):
        raise ValueError(f"labels has shape {tuple(labels.shape)}; it must be ({len(projection)},), one per projection")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels is {labels.dtype}; it must be an integer tensor")


def _check_finite(unit: Tensor) -> None:
    """A NaN or infinity anywhere in a row makes its whole unit row NaN, so one column is enough."""
    finite = torch.isfinite(unit[:, 0])
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        bad = int((~finite).sum())
        raise ValueError(
            f"projection has NaN or infinity in {bad} of {len(unit)} rows, first row {row}; must be finite"
        )
