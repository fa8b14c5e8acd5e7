"""Metrics of the embedding's spectrum: isotropy, IsoScore and effective rank.

Their jackknife keeps the eigenvectors of the whole set and leaves images out of the coordinates along them. For a
smooth function of the eigenvalues that is the exact first-order change (the eigenvectors' own move is of second order),
and it needs one eigendecomposition instead of one per image.
"""

from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from schane_cli.metrics.resampling import Floats, Measured, jackknife

BLOCK_CELLS = 250_000  # coordinates exponentiated at a time: 2 MB, which stay in the cache through all the passes


@dataclass(frozen=True)
class Axes:
    """Coordinates (n, d) of the images along the eigenvectors of V^T V, largest eigenvalue first."""

    coordinates: Floats

    @property
    def singular_values(self) -> Floats:
        """Singular values of V (d,), largest first."""
        values: Floats = np.sqrt((self.coordinates**2).sum(axis=0))
        return values


def principal_axes(vectors: Floats) -> Axes:
    """Rotate `vectors` (n, d) to the eigenvectors of V^T V. In float64: the rank needs the small eigenvalues.

    The eigenvectors on one thread: a second gains nothing at d = 768, and on a busy machine LAPACK's threads wait for
    one another (0.2 s became 13 s where two cores had other work).
    """
    v = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float64))
    squares = (v.T @ v).numpy()
    with threadpool_limits(1, user_api="blas"):
        _, directions = np.linalg.eigh(squares)
    return Axes((v @ torch.from_numpy(directions[:, ::-1].copy())).numpy())


def isotropy(axes: Axes) -> float:
    """min_c F(c) / max_c F(c) with F(c) = sum_v exp(c . v), c over the eigenvectors of V^T V and their opposites.

    An eigenvector's sign is arbitrary and F(c) differs from F(-c), so both are taken. Computed from log F, so that
    long vectors do not overflow. 1 is isotropic (Mu and Viswanath 2018, eq. 2; Liu et al. 2021, Mirror-BERT).
    """
    columns = torch.from_numpy(axes.coordinates)
    blocks = (block.contiguous() for block in columns.split(max(1, BLOCK_CELLS // len(columns)), dim=1))
    log_f = torch.cat([part.logsumexp(dim=0) for block in blocks for part in (block, -block)])
    return float((log_f.min() - log_f.max()).exp())


def iso_score(centred: Axes) -> Measured:
    """IsoScore of the variances along the principal axes of centred vectors: 1 where all are equal, 0 where one is all.

    Rudman et al. 2022 (arXiv 2108.07344), algorithm 1 with its rescaling. The mean stays where it is as images are
    left out: its move changes a variance in second order.
    """
    return jackknife(centred.coordinates**2, iso_score_of)


def iso_score_of(variances: Floats) -> Floats:
    """IsoScore (B,) of variances (B, d), d at least 2."""
    d = variances.shape[1]
    scaled = variances * np.sqrt(d) / np.linalg.norm(variances, axis=1, keepdims=True)
    defect = np.linalg.norm(scaled - 1, axis=1) / np.sqrt(2 * (d - np.sqrt(d)))
    used = (d - defect**2 * (d - np.sqrt(d))) ** 2 / d**2  # share of dimensions used
    score: Floats = (d * used - 1) / (d - 1)
    return score


def effective_rank(axes: Axes) -> Measured:
    """exp of the entropy of the singular values divided by their sum, from 1 to d.

    Roy and Vetterli 2007; RankMe, Garrido et al. 2023 (arXiv 2210.02885), eq. 1.
    """
    return jackknife(axes.coordinates**2, _effective_rank_of)


def _effective_rank_of(mean_squares: Floats) -> Floats:
    singular = np.sqrt(mean_squares)
    p = singular / singular.sum(axis=1, keepdims=True)
    rank: Floats = np.exp(-(p * np.log(np.maximum(p, np.finfo(np.float64).tiny))).sum(axis=1))
    return rank
