"""The gradient of one batch, whole or by gradient caching, which fits any batch on any card.

Gradient caching (GradCache, arXiv:2101.06983): embed all chunks without gradient; take the loss's gradient with
respect to the outputs once, over the whole batch; run each chunk again with its own random state and send its share
of that gradient through. The contrastive pool stays the whole batch. It costs one further forward pass.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from schane_cli.models.model import Outputs
from schane_cli.training.objective import LossParts, Objective
from schane_cli.training.random_state import RandomState, random_state, set_random_state

Forward = Callable[[torch.Tensor], Outputs]


@dataclass(frozen=True)
class Batch:
    """n = views x images rows, view-major. With mixup or cutmix the mixed rows follow (or, for cross-entropy
    alone, replace) the clean ones, and `soft_labels` (n, C) belong to them."""

    rows: torch.Tensor  # (n or 2n, 3, S, S), uint8 or float in [0, 255]
    labels: torch.Tensor  # (n,)
    indices: torch.Tensor  # (n,)
    soft_labels: torch.Tensor | None


def make_batch(
    views: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor, objective: Objective, device: torch.device
) -> Batch:
    """From the loader's views (B, V, 3, S, S), labels (B,) and indices (B,), on the CPU."""
    n_views = views.shape[1]
    rows = views.transpose(0, 1).flatten(0, 1)
    labels, indices = labels.repeat(n_views), indices.repeat(n_views)
    soft_labels = None
    if objective.mixer is not None:
        mixed, soft_labels = objective.mix(rows.float(), labels)
        rows = torch.cat([rows.float(), mixed]) if objective.weight else mixed
        soft_labels = soft_labels.to(device)
    return Batch(rows, labels.to(device), indices.to(device), soft_labels)


def _loss(objective: Objective, projection: torch.Tensor, logits: torch.Tensor, batch: Batch) -> LossParts:
    n = len(batch.labels)
    return objective(projection[:n], logits[-n:], batch.labels, batch.indices, batch.soft_labels)


def _detached(parts: LossParts) -> LossParts:
    return LossParts(*(part.detach() for part in parts))


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restores the buffers (running statistics) at its end."""
    saved = [buffer.clone() for buffer in model.buffers()]
    yield
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), saved, strict=True):
            buffer.copy_(before)


def whole_backward(
    forward: Forward,
    objective: Objective,
    batch: Batch,
    *,
    around_backward: Callable[[], AbstractContextManager] = nullcontext,
) -> LossParts:
    """One forward pass, and one backward within `around_backward`; gradients are added to those of the parameters."""
    outputs = forward(batch.rows)
    parts = _loss(objective, outputs.projection, outputs.logits, batch)
    with around_backward():
        parts.total.backward()
    return _detached(parts)


def cached_backward(
    forward: Forward,
    objective: Objective,
    batch: Batch,
    *,
    chunk_rows: int,
    model: nn.Module,
    device: torch.device,
    unsynchronised: Callable[[], AbstractContextManager],
    around_backward: Callable[[], AbstractContextManager] = nullcontext,
) -> LossParts:
    """The same gradient in chunks of `chunk_rows` rows, with one chunk's activations in memory at a time.

    `unsynchronised` opens DDP's no_sync for all chunks but the last. BatchNorm normalises each chunk on its own.
    """
    chunks = batch.rows.split(chunk_rows)
    states, outputs = _embed_all(forward, chunks, model, device, unsynchronised)
    projection = torch.cat([output.projection for output in outputs]).requires_grad_()
    logits = torch.cat([output.logits for output in outputs]).requires_grad_()
    parts = _loss(objective, projection, logits, batch)
    gradients = torch.autograd.grad(parts.total, [projection, logits], allow_unused=True, materialize_grads=True)
    shares = list(zip(*(gradient.split(chunk_rows) for gradient in gradients), strict=True))
    for number, (chunk, state, share) in enumerate(zip(chunks, states, shares, strict=True)):
        set_random_state(state, device)
        if number < len(chunks) - 1:
            with unsynchronised():
                _send(forward(chunk), share, around_backward)
        else:
            _send(forward(chunk), share, around_backward)
    return _detached(parts)


def chunk_backward(forward: Forward, rows: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One chunk forward and backward, with room kept for an optimiser state that AdamW makes in its first step.

    No process waits for another here, so that one that ran out of memory can try on its own.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = [] if optimizer.state else [torch.empty_like(parameter) for parameter in parameters for _ in range(2)]
    outputs = forward(rows)
    (outputs.projection.float().sum() + outputs.logits.float().sum()).backward()
    kept.clear()


def largest_fitting(attempt: Callable[[int], None], asked: int) -> int | None:
    """The first of asked // 2, asked // 4, ... that `attempt` runs without torch.OutOfMemoryError; None: not even 1."""
    chunk = asked // 2
    while chunk:
        try:
            attempt(chunk)
            return chunk
        except torch.OutOfMemoryError:
            chunk //= 2
    return None


def _embed_all(
    forward: Forward,
    chunks: Sequence[torch.Tensor],
    model: nn.Module,
    device: torch.device,
    unsynchronised: Callable[[], AbstractContextManager],
) -> tuple[list[RandomState], list[Outputs]]:
    """Random state before, and outputs of, each chunk. Buffers (running statistics) are restored: the second
    pass updates them."""
    states, outputs = [], []
    with torch.no_grad(), unsynchronised(), buffers_kept(model):
        for chunk in chunks:
            states.append(random_state(device))
            outputs.append(forward(chunk))
    return states, outputs


def _send(
    outputs: Outputs, share: tuple[torch.Tensor, ...], around_backward: Callable[[], AbstractContextManager]
) -> None:
    """Backward from the outputs that need a gradient (a frozen head or an unused projection does not)."""
    pairs = [
        (output, gradient)
        for output, gradient in zip((outputs.projection, outputs.logits), share, strict=True)
        if output.requires_grad
    ]
    with around_backward():
        torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])
