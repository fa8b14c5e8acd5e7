"""Multinomial logistic regression with an L2 penalty, for many small problems at once, from inner products alone."""

import torch
from torch import Tensor


def fit_logistic(
    gram: Tensor,
    targets: Tensor,
    *,
    C: float = 1.0,  # noqa: N803
    tolerance: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Minimise C * sum of cross-entropies + |W|^2 / 2 over weights W and a free intercept, for E problems at once.

    At the optimum W = C * (residual^T support), residual = one-hot targets - probabilities: the unknown is one number
    per support row and class, `dual`, and only inner products are needed. Features of unit length leave the
    probabilities near equal, where steps with the Hessian at equal probabilities, one m x m matrix for all classes,
    converge at once; the problems that they do not solve go to Newton's method, first with steps solved roughly, then
    exactly. Large features need a float64 `gram`.

    Args:
        gram: (E, m, m) inner products of the support rows.
        targets: (m, n_way) one-hot classes, the same for every problem.
        tolerance: largest |dual - residual|, in units of probability, at which a problem is solved.

    Returns:
        coefficients (E, m, n_way) and intercept (E, 1, n_way), in the dtype of `gram`: the logits of a query are its
        inner products with the support rows @ coefficients + intercept.
    """
    kernel, target = C * gram, targets.to(gram.dtype)
    # Rounding may leave inner products with slightly negative eigenvalues; this lifts them above zero.
    diagonal = kernel.diagonal(dim1=-2, dim2=-1)
    diagonal.add_(torch.finfo(gram.dtype).eps * diagonal.sum(dim=-1, keepdim=True))
    dual, intercept, solved = _fixed_hessian_steps(kernel, target, tolerance)
    for solve in (_rough_newton_steps, _newton):
        left = ~solved
        if left.any():
            dual[left], intercept[left], solved[left] = solve(kernel[left], target, tolerance)
    return C * dual, intercept


def _fixed_hessian_steps(
    kernel: Tensor, target: Tensor, tolerance: float, iterations: int = 40
) -> tuple[Tensor, Tensor, Tensor]:
    """Dual (E, m, n_way) and intercept (E, 1, n_way) after full steps with the Hessian at the start; solved (E,).

    Stops early where a step brings them less than a fifth closer: from there Newton's method is faster.
    """
    n_way = target.shape[1]
    inverse = _inverse_at_equal_probabilities(kernel, n_way)
    dual = kernel.new_zeros(*kernel.shape[:2], n_way)
    scores = torch.zeros_like(dual)  # logits of the support
    gradient = 1 / n_way - target.expand_as(dual)
    worst = float("inf")
    for _ in range(iterations):
        step = inverse @ gradient
        dual = dual - step
        scores = scores - n_way * (gradient - step)  # kernel @ step + the intercept's step, by the form of the inverse
        gradient = dual - target + scores.softmax(dim=-1)
        distance = gradient.abs().amax(dim=(-2, -1))
        before, worst = worst, float(distance.max())
        if worst <= tolerance or worst > 0.8 * before:
            break
    return dual, (scores - kernel @ dual).mean(dim=1, keepdim=True), distance <= tolerance


def _inverse_at_equal_probabilities(kernel: Tensor, n_way: int) -> Tensor:
    """(I + H K H / n_way)^-1 - 1 1^T / m (E, m, m), H the centring matrix: maps a gradient to the Newton step there.

    Centring is what a free intercept does to the kernel; the last term is the intercept's share.
    """
    m = kernel.shape[-1]
    system = kernel - kernel.mean(dim=-1, keepdim=True) - kernel.mean(dim=-2, keepdim=True)
    system = (system + kernel.mean(dim=(-2, -1), keepdim=True)) / n_way
    system.diagonal(dim1=-2, dim2=-1).add_(1)
    return torch.cholesky_inverse(torch.linalg.cholesky(system)) - 1 / m


def _rough_newton_steps(kernel: Tensor, target: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Dual (E, m, n_way) and intercept (E, 1, n_way) by Newton's method, its steps solved roughly; solved (E,).

    A step is solved only as far as it leads somewhere (Dembo, Eisenstat and Steihaug, "Inexact Newton methods", 1982),
    in float32, which is enough for a direction. Stops early where one brings the worst problem no nearer.
    """
    target = target.mT
    dual = kernel.new_zeros(len(kernel), *target.shape)  # (E, n_way, m): few rows on the left multiply faster
    intercept, scores = dual[..., :1].clone(), dual.clone()
    rough, worst = kernel.float(), float("inf")
    while True:
        probabilities = scores.softmax(dim=1)
        residual = target - probabilities
        distance = (dual - residual).abs().amax(dim=(1, 2))
        before, worst = worst, float(distance.max())
        if worst <= tolerance or not worst < 0.9 * before:
            return dual.mT, intercept.mT, distance <= tolerance
        accuracy = max(min(0.7, worst), 1e-3) * worst
        inverse = _inverse_of_sums(probabilities)
        change = _rough_step(rough, probabilities, inverse, residual, dual, accuracy).to(kernel)
        sums = (residual - _curved(probabilities, change @ kernel)).sum(dim=2, keepdim=True)
        shift = inverse @ sums
        step = (change, shift, change @ kernel + shift)
        size = _best_step(dual.mT, intercept.mT, scores.mT, (step[0].mT, step[1].mT, step[2].mT), target.mT)
        state = (dual, intercept, scores)
        dual, intercept, scores = (old + size * part for old, part in zip(state, step, strict=True))


def _rough_step(
    kernel: Tensor, probabilities: Tensor, inverse: Tensor, residual: Tensor, dual: Tensor, accuracy: float
) -> Tensor:
    """The change of the dual (E, n_way, m) that a Newton step makes, by conjugate gradients to `accuracy`.

    `inverse` is that of `_inverse_of_sums`.

    With W the Hessian of the cross-entropies, x solves x + V K x = residual - dual - W 1 (1^T W 1)^-1 1^T residual,
    V = W - W 1 (1^T W 1)^-1 1^T W: the intercept's step is eliminated, and with it the condition that the dual sums to
    0 over the support. I + V K is symmetric in the inner product x^T K y, in which the conjugate gradients are taken.
    """
    constant = _curved(probabilities, inverse @ residual.sum(dim=2, keepdim=True))
    left = (residual - dual - constant).to(kernel)
    probabilities, inverse = probabilities.to(kernel), inverse.to(kernel)
    found, image_left = torch.zeros_like(left), left @ kernel
    direction, image, length = left, image_left, _inner(left, image_left)
    for iteration in range(4 * left.shape[2]):
        curved = _curved(probabilities, image)
        applied = direction + curved - _curved(probabilities, inverse @ curved.sum(dim=2, keepdim=True))
        size = _ratio(length, _inner(image, applied))
        found.addcmul_(size, direction)
        left = torch.addcmul(left, size, applied, value=-1)
        image_left = left @ kernel
        if iteration % 2:
            unseen = image_left.abs().amax(dim=(1, 2), keepdim=True) <= accuracy
            if (unseen | (left.abs().amax(dim=(1, 2), keepdim=True) <= accuracy)).all():
                break
        before, length = length, _inner(left, image_left).clamp(min=0)
        ratio = _ratio(length, before)
        direction = torch.addcmul(left, ratio, direction)
        image = torch.addcmul(image_left, ratio, image)
    return torch.where(unseen, found + left, found)  # K maps what is left to 0, and so I + V K to itself


def _curved(probabilities: Tensor, x: Tensor) -> Tensor:
    """W x: the Hessian of each row's cross-entropy, diag(p) - p p^T, applied to scores (E, n_way, m or 1)."""
    weighted = probabilities * x
    return torch.addcmul(weighted, probabilities, weighted.sum(dim=1, keepdim=True), value=-1)


def _inverse_of_sums(probabilities: Tensor) -> Tensor:
    """(1^T W 1)^-1 (E, n_way, n_way), for vectors that sum to 0 over the classes: the others change no probability."""
    sums = torch.diag_embed(probabilities.sum(dim=2)) - probabilities @ probabilities.mT
    sums.diagonal(dim1=1, dim2=2).add_(1e-12)  # where every probability is 0 or 1
    return torch.linalg.inv(sums + 1 / probabilities.shape[1])


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, 0 where rounding has left nothing below."""
    return torch.where(below > 0, above / below, 0)


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """Inner products (E, 1, 1) of each problem."""
    return torch.linalg.vecdot(x.flatten(1), y.flatten(1))[:, None, None]


def _newton(kernel: Tensor, target: Tensor, tolerance: float, iterations: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    """Dual (E, m, n_way), intercept (E, 1, n_way) and solved (E,) by Newton's method.

    A line search keeps it from cycling on features of large norm.

    The multinomial Hessian is inverted class by class as in Gaussian-process classification (Rasmussen and Williams,
    2006, algorithm 3.3): n_way systems of m x m in place of one of n_way * m.
    """
    dual = kernel.new_zeros(*kernel.shape[:2], target.shape[1])
    intercept, scores = dual[:, :1].clone(), dual.clone()
    for _ in range(iterations):
        probabilities = scores.softmax(dim=-1)
        residual = target - probabilities
        solved = (dual - residual).abs().amax(dim=(1, 2)) <= tolerance
        if solved.all():
            break
        new_dual, new_intercept = _newton_target(kernel, probabilities, residual, scores)
        step = (new_dual - dual, new_intercept - intercept, kernel @ new_dual + new_intercept - scores)
        size = _best_step(dual, intercept, scores, step, target)
        state = (dual, intercept, scores)
        dual, intercept, scores = (old + size * change for old, change in zip(state, step, strict=True))
    return dual, intercept, solved


def _newton_target(kernel: Tensor, probabilities: Tensor, residual: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Where one full Newton step leads: dual (E, m, n_way) and intercept (E, 1, n_way).

    With W the Hessian of the cross-entropies and R = (K + W^-1)^-1, the step solves dual = v - R (K v + intercept),
    v = residual + W scores, under the intercept's own condition that the dual sums to 0 over the support.
    """
    root = probabilities.mT.sqrt()  # (E, n_way, m)
    system = root.unsqueeze(-1) * kernel.unsqueeze(1) * root.unsqueeze(-2)
    system.diagonal(dim1=-2, dim2=-1).add_(1)
    # E_c = D^1/2 (I + D^1/2 K D^1/2)^-1 D^1/2, D the probabilities of class c: R for that class if it stood alone.
    alone = torch.cholesky_inverse(torch.linalg.cholesky(system)) * root.unsqueeze(-1) * root.unsqueeze(-2)
    joint = torch.linalg.cholesky(alone.sum(dim=1))

    def apply_r(x: Tensor) -> Tensor:  # x (E, n_way, m, columns), one block per class
        own = alone @ x
        return own - alone @ torch.cholesky_solve(own.sum(dim=1), joint).unsqueeze(1)

    v = residual + probabilities * (scores - (probabilities * scores).sum(dim=-1, keepdim=True))
    v = v.mT.unsqueeze(-1)  # (E, n_way, m, 1)
    free = v - apply_r(kernel.unsqueeze(1) @ v)
    n_way, m = root.shape[1:]
    ones = torch.eye(n_way, dtype=v.dtype, device=v.device)[:, None, :].expand(n_way, m, n_way)
    response = apply_r(ones.expand(len(v), -1, -1, -1))  # (E, n_way, m, n_way): dual's answer to each intercept
    # A constant added to all intercepts changes nothing; the + 1 picks the solution that sums to 0.
    intercept = torch.linalg.solve(response.sum(dim=2) + 1, free.sum(dim=2))  # (E, n_way, 1)
    return (free - response @ intercept.unsqueeze(1)).squeeze(-1).mT, intercept.mT


def _best_step(
    dual: Tensor, intercept: Tensor, scores: Tensor, step: tuple[Tensor, Tensor, Tensor], target: Tensor
) -> Tensor:
    """Per problem the best of the steps 1, 1/2, ... 1/256 (E, 1, 1); only looks past 1 where some problem got worse."""

    def objective(size: float) -> Tensor:
        new_dual, new_intercept, new_scores = (
            old + size * change for old, change in zip((dual, intercept, scores), step, strict=True)
        )
        loss = new_scores.logsumexp(dim=-1).sum(dim=-1) - (target * new_scores).sum(dim=(-1, -2))
        return loss + (new_dual * (new_scores - new_intercept)).sum(dim=(-1, -2)) / 2

    start, full = objective(0.0), objective(1.0)
    if (full <= start + 1e-10 * start.abs()).all():  # up to rounding
        return torch.ones_like(full)[:, None, None]
    sizes = [2.0**-k for k in range(9)]
    best = torch.stack([full] + [objective(size) for size in sizes[1:]]).argmin(dim=0)
    return torch.tensor(sizes, dtype=dual.dtype, device=dual.device)[best][:, None, None]
