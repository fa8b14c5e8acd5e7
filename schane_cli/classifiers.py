"""Few-shot classifiers on frozen features, batched over episodes, and the loop that scores them chunk by chunk.

Shapes throughout: `support` (E, n_way, n_shot, d), `query` (E, q, d), logits (E, q, n_way). Everything runs on the
device and in the precision of its inputs, except the logistic regression (see there).
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor

from schane_cli.episodes import Episodes
from schane_cli.errors import BadRequest, nearest

NORMALIZATIONS = ("none", "l2", "cl2n")
# Gathered features of one chunk of episodes: a few times the cache of a core on a CPU, ample on a GPU.
CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 1 << 30}
TILE_BYTES = 1 << 20  # the second-level cache of a core


def normalize_features(features: Tensor, how: str, base_mean: Tensor | None = None) -> Tensor:
    """Features (..., d): "none" as they are, "l2" to unit length, "cl2n" minus `base_mean` (d,), then to unit length.

    "l2" is RFS's choice (Tian et al., arXiv 2003.11539); "cl2n" SimpleShot's (Wang et al., arXiv 1911.04623, section
    3), with the mean feature of the base training classes.

    Raises:
        BadRequest: an unknown `how`, or "cl2n" without `base_mean`.
    """
    if how not in NORMALIZATIONS:
        raise BadRequest(f"unknown normalisation {how!r}: {', '.join(NORMALIZATIONS)}{nearest(how, NORMALIZATIONS)}")
    if how == "none":
        return features
    if how == "cl2n":
        if base_mean is None:
            raise BadRequest("CL2N (SimpleShot) needs base_mean, the mean feature of the base training classes")
        features = features - base_mean.to(features)
    return F.normalize(features, dim=-1)


def centroid(support: Tensor, query: Tensor, *, distance: str = "euclidean") -> Tensor:
    """Nearest class mean (ProtoNet; Snell et al., arXiv 1703.05175, equations 1 and 2).

    `distance`: "euclidean", minus the squared distance up to a term equal for all classes; "cosine", the cosine.
    """
    prototypes = support.mean(dim=2)  # (E, n_way, d)
    if distance == "cosine":
        return _products(F.normalize(query, dim=-1), F.normalize(prototypes, dim=-1))
    if distance != "euclidean":
        raise BadRequest(f"unknown distance {distance!r}: euclidean or cosine")
    return _minus_distances(_products(query, prototypes), prototypes)


def _minus_distances(products: Tensor, prototypes: Tensor) -> Tensor:
    """From inner products (E, q, n_way) with the prototypes; |q|^2 is left out: it moves no argmax and no softmax."""
    return 2 * products - prototypes.square().sum(dim=-1).unsqueeze(1)


def _tiled_centroid(
    features: Tensor, copies: Tensor | None, support: NDArray[np.int64], index: NDArray[np.int64]
) -> Tensor:
    """`centroid` on a CPU, of support (E, n_way, n_shot) and queries (E, q) given as rows of `features` (n, d).

    A few episodes at a time, so that their queries are multiplied while they are in the cache, and by NumPy, whose
    OpenBLAS multiplies a handful of rows without copying the others into blocks first: 1.5 times as fast in all.
    """
    sources = features.unsqueeze(0) if copies is None else copies
    shots = torch.from_numpy(support).flatten(0, 1)  # (E * n_way, n_shot)
    sums = torch.stack([F.embedding_bag(shots, one, mode="sum") for one in sources]).sum(dim=0)
    prototypes = sums.div_(len(sources) * support.shape[2]).view(*support.shape[:2], -1)
    rows, few = features.detach().numpy(), prototypes.detach().numpy()
    products = np.empty((*few.shape[:2], index.shape[1]), rows.dtype)  # (E, n_way, q)
    tile = max(1, TILE_BYTES // (index.shape[1] * rows[0].nbytes))
    gathered = np.empty((tile, index.shape[1], rows.shape[1]), rows.dtype)
    for start in range(0, len(index), tile):
        part = slice(start, start + tile)
        query = gathered[: len(index[part])]
        np.take(rows, index[part], axis=0, out=query, mode="clip")  # any other mode copies once more
        np.matmul(few[part], query.transpose(0, 2, 1), out=products[part])
    return _minus_distances(torch.from_numpy(products).mT, prototypes)


def _products(query: Tensor, rows: Tensor) -> Tensor:
    """Inner products (E, q, m) of queries and a few rows (E, m, d); rows on the left: half the time on a CPU."""
    return (rows @ query.mT).mT


def simpleshot(support: Tensor, query: Tensor, *, base_mean: Tensor | None = None) -> Tensor:
    """SimpleShot CL2N (Wang et al., arXiv 1911.04623): nearest Euclidean class mean, features normalised "cl2n"."""
    return centroid(normalize_features(support, "cl2n", base_mean), normalize_features(query, "cl2n", base_mean))


def ridge(support: Tensor, query: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Ridge regression on targets -1 and 1 with a free intercept, in closed form: scikit-learn's RidgeClassifier.

    Solved in the span of the support (m x m, not d x d; Bertinetto et al., arXiv 1805.08136, equation 6).
    """
    flat, targets = _flatten(support)
    center = flat.mean(dim=1, keepdim=True)
    flat, query = flat - center, query - center
    mean = 2 * targets.mean(dim=0) - 1
    gram = flat @ flat.mT
    gram.diagonal(dim1=-2, dim2=-1).add_(alpha)
    weights = torch.linalg.solve(gram, (2 * targets - 1 - mean).expand(len(flat), -1, -1))
    return _products(query, flat) @ weights + mean


def logistic(support: Tensor, query: Tensor, *, C: float = 1.0) -> Tensor:  # noqa: N803 (scikit-learn's name)
    """Multinomial logistic regression with an L2 penalty: scikit-learn's LogisticRegression(C), to convergence."""
    flat, targets = _flatten(support)
    # Without their mean, which the intercept takes up, and in float64 the inner products keep all their digits.
    center = flat.mean(dim=1, keepdim=True)
    flat = flat - center
    rows = flat if flat.device.type == "mps" else flat.double()  # Apple's GPUs have no float64
    coefficients, intercept = fit_logistic(rows @ rows.mT, targets, C=C)
    products = _products(query, flat) - center @ flat.mT
    return products @ coefficients.to(query.dtype) + intercept.to(query.dtype)


def bd_cspn(support: Tensor, query: Tensor, *, sharpness: float = 10.0) -> Tensor:
    """BD-CSPN (Liu et al., "Prototype rectification for few-shot learning", ECCV 2020, arXiv 1911.10713); transductive.

    Logits are cosines to the rectified prototypes; `sharpness` is the paper's epsilon. All queries are pseudo-labelled,
    not the Z surest of each class. Expects features of unit length.
    """
    prototypes, query = _rectify(support, query, sharpness)
    return F.normalize(query, dim=-1) @ F.normalize(prototypes, dim=-1).mT


def laplacianshot(
    support: Tensor,
    query: Tensor,
    *,
    smoothness: float = 0.7,
    neighbours: int = 3,
    sharpness: float = 10.0,
    iterations: int = 20,
) -> Tensor:
    """LaplacianShot (Ziko et al., ICML 2020, arXiv 2006.15486, equation 9) on BD-CSPN's prototypes; transductive.

    Squared distance to the prototypes plus `smoothness` (lambda; the paper tunes 0.1 to 1.5 on validation classes)
    times the disagreement with each query's nearest `neighbours` queries. Expects features of unit length.
    """
    prototypes, query = _rectify(support, query, sharpness)
    unary = torch.cdist(query, prototypes).square()
    distances = torch.cdist(query, query)
    distances.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    nearest_queries = distances.topk(min(neighbours, query.shape[1] - 1), largest=False).indices
    affinity = torch.zeros_like(distances).scatter_(-1, nearest_queries, 1.0)
    logits = -unary
    for _ in range(iterations):
        logits = smoothness * (affinity @ logits.softmax(dim=-1)) - unary
    return logits


def _rectify(support: Tensor, query: Tensor, sharpness: float) -> tuple[Tensor, Tensor]:
    """BD-CSPN's prototypes (E, n_way, d) and the queries moved onto the support's mean (E, q, d).

    Each prototype is the mean of its support and of the queries nearest to it by cosine, weighted by
    softmax(sharpness * cosine) over these members.
    """
    flat, targets = _flatten(support)
    query = query + (flat.mean(dim=1, keepdim=True) - query.mean(dim=1, keepdim=True))
    members = torch.cat([flat, query], dim=1)  # (E, m + q, d)
    cosine = F.normalize(members, dim=-1) @ F.normalize(support.mean(dim=2), dim=-1).mT
    guess = F.one_hot(cosine[:, flat.shape[1] :].argmax(dim=-1), targets.shape[1])
    belongs = torch.cat([targets.expand(len(flat), -1, -1), guess.to(targets)], dim=1).bool()
    weights = (sharpness * cosine).masked_fill(~belongs, -torch.inf).softmax(dim=1)
    return weights.mT @ members, query


def _flatten(support: Tensor) -> tuple[Tensor, Tensor]:
    """Support as rows (E, m, d), m = n_way * n_shot, and their one-hot classes (m, n_way)."""
    n_way, n_shot = support.shape[1:3]
    targets = torch.eye(n_way, device=support.device, dtype=support.dtype).repeat_interleave(n_shot, dim=0)
    return support.flatten(1, 2), targets


def fit_logistic(
    gram: Tensor,
    targets: Tensor,
    *,
    C: float = 1.0,  # noqa: N803
    tolerance: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Minimise C * sum of cross-entropies + |W|^2 / 2 over weights W and a free intercept, for E problems at once.

    At the optimum W = C * (residual^T support), residual = one-hot targets - probabilities: the unknown is one number
    a support row and class, `dual`, and only inner products are needed. Features of unit length leave the
    probabilities near equal, where steps with the Hessian at equal probabilities, one m x m matrix for all classes,
    converge at once; the problems they do not solve go to Newton's method. Large features want a float64 `gram`.

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
    if not solved.all():
        dual[~solved], intercept[~solved] = _newton(kernel[~solved], target, tolerance)
    return C * dual, intercept


def _fixed_hessian_steps(
    kernel: Tensor, target: Tensor, tolerance: float, iterations: int = 40
) -> tuple[Tensor, Tensor, Tensor]:
    """Dual (E, m, n_way) and intercept (E, 1, n_way) after full steps with the Hessian at the start; solved (E,).

    Ends early where a step brings them less than a fifth nearer: Newton's method is the faster one from there.
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


def _newton(kernel: Tensor, target: Tensor, tolerance: float, iterations: int = 100) -> tuple[Tensor, Tensor]:
    """Dual and intercept by Newton's method with a line search, without which features of large norm make it cycle.

    The multinomial Hessian is inverted class by class as in Gaussian-process classification (Rasmussen and Williams,
    2006, algorithm 3.3): n_way systems of m x m in place of one of n_way * m.
    """
    dual = kernel.new_zeros(*kernel.shape[:2], target.shape[1])
    intercept, scores = dual[:, :1].clone(), dual.clone()
    for _ in range(iterations):
        probabilities = scores.softmax(dim=-1)
        residual = target - probabilities
        if (dual - residual).abs().amax() <= tolerance:
            break
        new_dual, new_intercept = _newton_target(kernel, probabilities, residual, scores)
        step = (new_dual - dual, new_intercept - intercept, kernel @ new_dual + new_intercept - scores)
        size = _best_step(dual, intercept, scores, step, target)
        state = (dual, intercept, scores)
        dual, intercept, scores = (old + size * change for old, change in zip(state, step, strict=True))
    return dual, intercept


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

    def apply_r(x: Tensor) -> Tensor:  # x (E, n_way, m, columns), one block a class
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


@dataclass(frozen=True)
class Method:
    """A classifier: its function, whether it looks at all queries of an episode together, and where it comes from."""

    logits: Callable[..., Tensor]
    transductive: bool
    source: str


CLASSIFIERS: dict[str, Method] = {
    "centroid": Method(centroid, False, "ProtoNet, arXiv 1703.05175"),
    "simpleshot": Method(simpleshot, False, "SimpleShot CL2N, arXiv 1911.04623"),
    "ridge": Method(ridge, False, "R2-D2's ridge regression, arXiv 1805.08136"),
    "logistic": Method(logistic, False, "RFS, arXiv 2003.11539"),
    "bd-cspn": Method(bd_cspn, True, "BD-CSPN, arXiv 1911.10713"),
    "laplacianshot": Method(laplacianshot, True, "LaplacianShot, arXiv 2006.15486"),
}
# Transductive methods use that the queries come together and, mostly, that classes are balanced: label them as such.
TRANSDUCTIVE = frozenset(name for name, method in CLASSIFIERS.items() if method.transductive)


def classify_logits(name: str, support: Tensor, query: Tensor, **options: Any) -> Tensor:
    """Logits (E, q, n_way) of classifier `name`; `options` are that classifier's own keyword arguments.

    Raises:
        BadRequest: an unknown name.
    """
    if name not in CLASSIFIERS:
        raise BadRequest(f"unknown classifier {name!r}: {', '.join(CLASSIFIERS)}{nearest(name, CLASSIFIERS)}")
    return CLASSIFIERS[name].logits(support, query, **options)


def classify(name: str, support: Tensor, query: Tensor, **options: Any) -> Tensor:
    """Predicted way (E, q), int64, of every query; see `classify_logits`."""
    return _best(classify_logits(name, support, query, **options))


def _best(logits: Tensor) -> Tensor:
    return logits.max(dim=-1).indices  # argmax: ten times slower on a CPU


@dataclass(frozen=True, eq=False)
class EpisodeScores:
    """Accuracy of each episode (E,), float64 from 0 to 1, and for each query (E, q) the predicted way and if right."""

    accuracies: NDArray[np.float64]
    predictions: NDArray[np.int16]
    correct: NDArray[np.bool_]


def evaluate_episodes(
    features: Tensor,
    episodes: Episodes,
    *,
    classifier: str,
    normalize: str = "none",
    base_mean: Tensor | None = None,
    augmented_support: Tensor | None = None,
    chunk: int | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> EpisodeScores:
    """Score one classifier on all episodes, a chunk at a time: extra memory is that of one chunk.

    Args:
        features: (n, d) one feature an image, in the order of the labels the episodes were drawn from.
        normalize: see `normalize_features`; done once, before the first episode. SimpleShot is CL2N and nothing else.
        base_mean: (d,) mean feature of the base classes, for "cl2n" and SimpleShot.
        augmented_support: (copies, n, d) features of randomly augmented copies; where given, a support image stands
            as all its copies (RFS: 5) and its plain feature is not used.
        chunk: episodes at a time (on a CPU, in each thread); by default as many as suit the device. Results do not
            depend on it.
        device: where to compute; by default where the features are.
        progress: called as progress(episodes done, episodes in all) after each chunk.
        options: the classifier's own.

    Raises:
        BadRequest: an unknown classifier or normalisation, features that are not finite, or of too few images.
    """
    _check_features(features, episodes, augmented_support)
    if classifier == "simpleshot":
        if normalize not in ("none", "cl2n"):
            raise BadRequest(f"simpleshot is CL2N on raw features: normalize must be none or cl2n, not {normalize}")
        classifier, normalize = "centroid", "cl2n"
    device = torch.device(device) if device is not None else features.device
    plain = normalize_features(features.to(device), normalize, base_mean)
    copies = None
    if augmented_support is not None:
        copies = normalize_features(augmented_support.to(device), normalize, base_mean)
    floats = plain.dtype in (torch.float32, torch.float64)  # what NumPy multiplies by BLAS
    tiled = classifier == "centroid" and device.type == "cpu" and floats and not options
    gathered = episodes.support[0].size * (1 if copies is None else len(copies)) + episodes.query.shape[1]
    chunk = chunk or _default_chunk(plain, 4 * episodes.support.shape[1] if tiled else gathered)
    predictions = np.empty(episodes.query.shape, dtype=np.int16)
    buffer = threading.local()

    def score(start: int) -> int:
        if not tiled and not hasattr(buffer, "rows"):
            # One for all chunks of a thread: megabytes allocated anew each time cost a page fault every 4 KiB.
            buffer.rows = plain.new_empty(chunk, episodes.query.shape[1], plain.shape[1])
        part = slice(start, start + chunk)
        if tiled:
            logits = _tiled_centroid(plain, copies, episodes.support[part], episodes.query[part])
        else:
            support = _gather_support(plain, copies, torch.from_numpy(episodes.support[part]).to(device))
            query = _gather(plain, torch.from_numpy(episodes.query[part]).to(device), buffer.rows)
            logits = classify_logits(classifier, support, query, **options)
        predictions[part] = _best(logits).to(torch.int16).cpu().numpy()
        return min(start + chunk, len(episodes))

    for done in _each(score, range(0, len(episodes), chunk), device):
        if progress is not None:
            progress(done, len(episodes))
    correct = predictions == episodes.query_labels
    return EpisodeScores(correct.mean(axis=1, dtype=np.float64), predictions, correct)


def _each(score: Callable[[int], int], starts: range, device: torch.device) -> Iterator[int]:
    """`score` of every start, in order; on a CPU in as many threads as torch may use, each working alone.

    Threads that share every small operation wait for each other at its end: slower, and many times slower where
    another program keeps one of the cores busy.
    """
    threads = min(torch.get_num_threads(), len(starts))
    if device.type != "cpu" or threads == 1:
        yield from map(score, starts)
        return
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        with _libraries().limit(limits=1, user_api="blas"):
            yield from pool.map(score, starts)
    finally:
        pool.shutdown(cancel_futures=True)
        # What a thread sets for itself also becomes the default of threads yet to start: put that back.
        torch.set_num_threads(torch.get_num_threads())


@cache
def _libraries() -> ThreadpoolController:
    """The loaded BLAS libraries; looking for them takes longer than a thousand episodes."""
    return ThreadpoolController()


def _gather(features: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """Rows (*index.shape, d), in the memory of `out` where given (index_select copies rows faster than indexing)."""
    flat = None if out is None else out[: len(index)].flatten(0, 1)
    return torch.index_select(features, 0, index.reshape(-1), out=flat).view(*index.shape, -1)


def _gather_support(plain: Tensor, copies: Tensor | None, index: Tensor) -> Tensor:
    """(E, n_way, n_shot, d), or with copies (E, n_way, n_shot * copies, d)."""
    if copies is None:
        return _gather(plain, index)
    return torch.cat([_gather(one, index) for one in copies], dim=2)


def _default_chunk(features: Tensor, vectors: int) -> int:
    """Episodes at a time, where each takes the room of so many vectors."""
    budget = CHUNK_BYTES.get(features.device.type, CHUNK_BYTES["cuda"])
    return max(1, budget // (vectors * features.shape[1] * features.element_size()))


def _check_features(features: Tensor, episodes: Episodes, augmented_support: Tensor | None) -> None:
    for name, one in (("features", features), ("augmented support features", augmented_support)):
        if one is None:
            continue
        last = max(int(episodes.support.max()), int(episodes.query.max()))
        if last >= one.shape[-2]:
            raise BadRequest(
                f"the episodes ask for image number {last}, but there are {name} of only {one.shape[-2]} images: "
                "features of another data set?"
            )
        if not one.sum().isfinite():  # one pass; isfinite().all() takes four
            raise BadRequest(f"{name} hold values that are not finite: the backbone's output is broken")
