"""What each figure of embedding quality means: direction, one-sentence definition, source and choices."""

import math
from dataclasses import dataclass
from typing import Literal

Direction = Literal["higher", "lower", "none"]
Scope = Literal["overall", "within class"]


@dataclass(frozen=True)
class Definition:
    """`bounds`: the values the figure can take, which its interval keeps to."""

    direction: Direction
    definition: str
    source: str
    choices: str
    bounds: tuple[float, float] = (-math.inf, math.inf)


SHARE = (0.0, 1.0)
POSITIVE = (0.0, math.inf)
ISOTROPY = "Mu and Viswanath 2018 (arXiv 1702.01417), eq. 2, as in Mirror-BERT (arXiv 2104.08027)"
ISOTROPY_IS = "min over max, along the eigenvectors c of V^T V, of sum_v exp(c . v); 1 is isotropic"
BOTH_SIGNS = "each eigenvector with both signs; interval with eigenvectors kept"
ISO_SCORE = "Rudman et al. 2022 (arXiv 2108.07344), algorithm 1"
RANK = "RankMe, Garrido et al. 2023 (arXiv 2210.02885), eq. 1; Roy and Vetterli 2007"
RANK_IS = "exp of the entropy of the singular values divided by their sum, from 1 to the number of dimensions"
WANG = "Wang and Isola 2020 (arXiv 2005.10242)"
UNIFORMITY_IS = "log of the mean of exp(-2 |u_i - u_j|^2) over pairs of {}"
RESIDUALS = "the class mean taken off each vector, all classes pooled, not normalised"
PAIRS = "L2-normalised, not centred; every pair of two images counts once"
QUERIES = "cosine; every image queries all the others"

DEFINITIONS: dict[tuple[str, Scope], Definition] = {
    ("isotropy", "overall"): Definition(
        "none", f"{ISOTROPY_IS}.", ISOTROPY, f"not centred, not normalised; {BOTH_SIGNS}", SHARE
    ),
    ("isotropy of unit vectors", "overall"): Definition(
        "none",
        f"{ISOTROPY_IS}, of vectors of length 1.",
        ISOTROPY,
        f"L2-normalised, not centred, so that the scale of the embedding does not count; {BOTH_SIGNS}",
        SHARE,
    ),
    ("isotropy", "within class"): Definition(
        "none", f"{ISOTROPY_IS}, of the spread around class means.", ISOTROPY, f"{RESIDUALS}; {BOTH_SIGNS}", SHARE
    ),
    ("effective rank", "overall"): Definition("higher", f"{RANK_IS}.", RANK, "not centred, not normalised", POSITIVE),
    ("effective rank", "within class"): Definition(
        "none", f"{RANK_IS}, of the spread around class means.", RANK, RESIDUALS, POSITIVE
    ),
    ("IsoScore", "overall"): Definition(
        "none",
        "How evenly variance fills the dimensions after PCA: 0 where one direction has it all, 1 where all are equal.",
        ISO_SCORE,
        "centred, not normalised",
        SHARE,
    ),
    ("IsoScore", "within class"): Definition(
        "none", "IsoScore of the spread around class means.", ISO_SCORE, RESIDUALS, SHARE
    ),
    ("average cosine", "overall"): Definition(
        "none", "Mean cosine of two images.", "Ethayarajh 2019 (arXiv 1909.00512), section 4.1", PAIRS, (-1.0, 1.0)
    ),
    ("average cosine", "within class"): Definition(
        "higher",
        "Mean cosine of two images of the same class (positive pairs).",
        "arXiv 2308.14893",
        PAIRS,
        (-1.0, 1.0),
    ),
    ("average cosine of negative pairs", "overall"): Definition(
        "lower", "Mean cosine of two images of different classes.", "arXiv 2308.14893", PAIRS, (-1.0, 1.0)
    ),
    ("AUC of positive over negative cosines", "overall"): Definition(
        "higher",
        "Chance that a pair of the same class is more similar than a pair of different classes: 1 where the two "
        "distributions do not overlap, 0.5 where they are alike.",
        "Hanley and McNeil 1982",
        f"{PAIRS}; cosines in bins of 0.001, ties one half",
        SHARE,
    ),
    ("alignment", "within class"): Definition(
        "lower",
        "Mean squared distance of two images of the same class.",
        f"{WANG}, section 4.1, alpha = 2",
        f"{PAIRS}; positive pairs are images of a class, not views of an image",
        (0.0, 4.0),
    ),
    ("uniformity", "overall"): Definition(
        "lower", f"{UNIFORMITY_IS.format('images')}.", f"{WANG}, section 4.1, t = 2", PAIRS, (-8.0, 0.0)
    ),
    ("uniformity", "within class"): Definition(
        "none", f"{UNIFORMITY_IS.format('the same class')}.", f"{WANG}, section 4.1, t = 2", PAIRS, (-8.0, 0.0)
    ),
    ("kNN accuracy", "overall"): Definition(
        "higher",
        "Share of images that the votes of their k nearest others classify right.",
        "Wu et al. 2018 (arXiv 1805.01978), section 3.4; DINOv2 (arXiv 2304.07193)",
        f"{QUERIES}; votes weigh exp(cosine / 0.07); interval over queries, gallery kept",
        SHARE,
    ),
    ("recall", "overall"): Definition(
        "higher",
        "Share of images with one of their class among the k nearest others.",
        "Jegou et al. 2011; Oh Song et al. 2016 (arXiv 1511.06452)",
        f"{QUERIES}; images alone in their class left out; interval over queries, gallery kept",
        SHARE,
    ),
    ("mAP@R", "overall"): Definition(
        "higher",
        "Mean over images of the precision at each relevant rank up to R, divided by R, R being the other images of "
        "the class.",
        "Musgrave et al. 2020 (arXiv 2003.08505), section 3.3",
        f"{QUERIES}; images alone in their class left out; interval over images as queries and in the gallery",
        SHARE,
    ),
    ("linear-probe accuracy", "overall"): Definition(
        "higher",
        "Share of images that a linear classifier fitted on all the others gets right.",
        "ridge regression on one-hot labels; leave-one-out by Allen's PRESS (1974)",
        "centred, not normalised; penalty from 1e-4 to 10 mean variances by leave-one-out error; classifiers kept",
        SHARE,
    ),
    ("silhouette", "overall"): Definition(
        "higher",
        "Mean of (b - a) / max(a, b), a the mean distance to the image's class and b to the nearest other class.",
        "Rousseeuw 1987",
        "cosine distance, not centred; interval over images and the class means they form",
        (-1.0, 1.0),
    ),
    ("NMI of k-means", "overall"): Definition(
        "higher",
        "Mutual information of labels and k-means clusters over the mean of their entropies.",
        "Strehl and Ghosh 2002, with the arithmetic mean",
        "L2-normalised; as many clusters as classes, best of 3 k-means++ starts; clusters kept in resamples",
        SHARE,
    ),
    ("Fisher ratio", "overall"): Definition(
        "higher",
        "Scatter of class means around the overall mean over scatter of images around class means (traces).",
        "Fisher 1936",
        "not normalised; every image counts alike",
        POSITIVE,
    ),
    ("NC1", "overall"): Definition(
        "lower",
        "tr(S_W pinv(S_B)) / C of within-class and between-class covariance; 0 where every class is a point.",
        "Papyan, Han and Donoho 2020 (arXiv 2008.08186), section 2",
        "not normalised; S_B around the mean of class means; directions below 1e-6 of the largest left out",
        POSITIVE,
    ),
}
