"""Few-shot classifiers on frozen features, batched over episodes.

Shapes throughout: `support` (E, n_way, n_shot, d), `query` (E, q, d), logits (E, q, n_way). Everything runs on the
device and in the precision of its inputs, except the logistic regression (see there).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from schane_cli.errors import nearest
from schane_cli.fewshot.logistic_regression import fit_logistic

LARGEST_SQUARE = 1e9
NORMALIZATIONS = ("none", "l2", "cl2n")


def normalize_features(features: Tensor, how: str, base_mean: Tensor | None = None) -> Tensor:
    """Features (..., d): "none" as they are, "l2" to unit length, "cl2n" minus `base_mean` (d,), then to unit length.

    "l2" is RFS's choice (Tian et al., arXiv 2003.11539); "cl2n" SimpleShot's (Wang et al., arXiv 1911.04623, section
    3), with the mean feature of the base training classes.

    Raises:
        ValueError: an unknown `how`, or "cl2n" without `base_mean`.
    """
    if how not in NORMALIZATIONS:
        raise ValueError(f"unknown normalisation {how!r}: {', '.join(NORMALIZATIONS)}{nearest(how, NORMALIZATIONS)}")
    if how == "none":
        return features
    if how == "cl2n":
        if base_mean is None:
            raise ValueError("CL2N (SimpleShot) needs base_mean, the mean feature of the base training classes")
        features = features - base_mean.to(features)
    return F.normalize(features, dim=-1)


def centroid(support: Tensor, query: Tensor) -> Tensor:
    """Nearest class mean (ProtoNet; Snell et al., arXiv 1703.05175, equations 1 and 2).

    Logits are minus the squared Euclidean distance, up to a term that is the same for all classes.
    """
    prototypes = support.mean(dim=2)  # (E, n_way, d)
    return minus_distances(_products(query, prototypes), prototypes)


def minus_distances(products: Tensor, prototypes: Tensor) -> Tensor:
    """From inner products (E, q, n_way) with the prototypes; |q|^2 is left out: it changes no argmax and no softmax."""
    return 2 * products - prototypes.square().sum(dim=-1).unsqueeze(1)


def _products(query: Tensor, rows: Tensor) -> Tensor:
    """Inner products (E, q, m) of queries and a few rows (E, m, d); rows on the left: half the time on a CPU."""
    return (rows @ query.mT).mT


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
    """Multinomial logistic regression with an L2 penalty: scikit-learn's LogisticRegression(C), to convergence.

    Features whose squared length exceeds LARGEST_SQUARE on average are fitted at that length: the probabilities of the
    support are 0 and 1 to the last digit by then, and longer ones leave float64 nothing to solve with.
    """
    flat, targets = _flatten(support)
    # Without their mean, which the intercept takes up, and in float64 the inner products keep all their digits.
    center = flat.mean(dim=1, keepdim=True)
    flat = flat - center
    rows = flat if flat.device.type == "mps" else flat.double()  # Apple's GPUs have no float64
    gram = rows @ rows.mT
    excess = (gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1) / LARGEST_SQUARE).clamp(min=1)[:, None, None]
    coefficients, intercept = fit_logistic(gram / excess, targets, C=C)
    coefficients = coefficients / excess
    products = _products(query, flat) - center @ flat.mT
    return products @ coefficients.to(query.dtype) + intercept.to(query.dtype)


def bd_cspn(support: Tensor, query: Tensor, *, sharpness: float = 10.0) -> Tensor:
    """BD-CSPN (Liu et al., "Prototype rectification for few-shot learning", ECCV 2020, arXiv 1911.10713); transductive.

    Logits are cosines of the shifted queries to the rectified prototypes; `sharpness` is the paper's epsilon. All
    queries are pseudo-labelled, not the Z surest of each class. Expects features of unit length.
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
    times the disagreement with each query's nearest `neighbours` queries, itself not among them (the authors' code
    counts it, and so takes one fewer). Expects features of unit length.
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


@dataclass(frozen=True)
class Method:
    """A classifier: its function, whether it looks at all queries of an episode together, and where it comes from.

    `deviation`: what differs from that source, printed beside every result; empty where nothing does. `normalize`: the
    normalisation that is part of the method, for `normalize_features`; empty where any will do. `chunks`: how many
    times as many episodes it takes at once as fit the cache, since its small steps cost the same for few.
    """

    logits: Callable[..., Tensor]
    transductive: bool
    source: str
    deviation: str = ""
    normalize: str = ""
    chunks: int = 1


CLASSIFIERS: dict[str, Method] = {
    "centroid": Method(centroid, False, "ProtoNet, arXiv 1703.05175"),
    "simpleshot": Method(centroid, False, "SimpleShot CL2N, arXiv 1911.04623", normalize="cl2n"),
    "ridge": Method(ridge, False, "R2-D2's ridge regression, arXiv 1805.08136"),
    "logistic": Method(logistic, False, "RFS, arXiv 2003.11539", chunks=4),
    "bd-cspn": Method(
        bd_cspn,
        True,
        "BD-CSPN, arXiv 1911.10713",
        "it pseudo-labels every query, not the Z surest of each class",
        normalize="l2",
    ),
    "laplacianshot": Method(
        laplacianshot,
        True,
        "LaplacianShot, arXiv 2006.15486",
        "lambda stays at 0.7, not tuned on validation classes; the prototypes are bd-cspn's; of 3 neighbours none is "
        "the query itself, as one is in the authors' code",
        normalize="l2",
    ),
}


def as_classifier(candidate: Any, source: str) -> Method:
    """A `Method` as it is, or one made of a function `(support, query) -> logits` and its attribute `transductive`.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(candidate, Method):
        return candidate
    if not callable(candidate):
        raise ValueError(
            f"a classifier is a function (support, query) -> logits or a Method, got {type(candidate).__name__}"
        )
    return Method(candidate, bool(getattr(candidate, "transductive", False)), source)


# Transductive methods exploit that the queries come together and, mostly, that classes are balanced: results say so.
TRANSDUCTIVE = frozenset(name for name, method in CLASSIFIERS.items() if method.transductive)


def classifier_named(name: str) -> Method:
    """The classifier of that name; ValueError for an unknown one."""
    if name not in CLASSIFIERS:
        raise ValueError(f"unknown classifier {name!r}: {', '.join(CLASSIFIERS)}{nearest(name, CLASSIFIERS)}")
    return CLASSIFIERS[name]


def best_way(logits: Tensor) -> Tensor:
    """The way (E, q) of the highest logit."""
    return logits.max(dim=-1).indices  # argmax: ten times slower on a CPU
