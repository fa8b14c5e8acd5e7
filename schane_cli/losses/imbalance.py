"""Cross-entropy under class imbalance: class weights, and the adjustment of logits by the classes' shares."""

import torch

CLASS_WEIGHTS = ("none", "balanced", "effective")


def class_weights(counts: torch.Tensor, how: str) -> torch.Tensor | None:
    """Weights (C,) of the classes in the cross-entropy, with mean 1; None for `how` "none".

    `counts` (C,): training images of each class; one without images gets weight 0. "balanced": inversely proportional
    to the count. "effective": inversely proportional to the effective number of images (1 - b^n) / (1 - b) with
    b = (N - 1) / N, N all training images (Cui et al. 2019, arXiv:1901.05555, equation 2; their N is the volume of a
    class's data space, which is unknown).

    Raises:
        ValueError: an unknown `how`, or no positive count.
    """
    if how not in CLASS_WEIGHTS:
        raise ValueError(f"unknown class weights {how!r}; allowed: {', '.join(CLASS_WEIGHTS)}")
    if how == "none":
        return None
    counts = counts.double()
    if counts.sum() <= 0:
        raise ValueError("class weights need at least one training image")
    amount = counts
    if how == "effective":
        b = (counts.sum() - 1) / counts.sum()
        amount = (1 - b**counts) / (1 - b)
    weights = torch.where(counts > 0, 1 / amount.clamp_min(1e-12), 0.0)
    return (weights * (counts > 0).sum() / weights.sum()).float()


def log_shares(counts: torch.Tensor) -> torch.Tensor:
    """log of each class's share of the training images (C,), what logit adjustment adds to the logits (Menon et al.
    2021, arXiv:2007.07314, equation 10); a class without images counts as half of one, so that it stays finite."""
    counts = counts.double().clamp_min(0.5)
    return (counts / counts.sum()).log().float()
