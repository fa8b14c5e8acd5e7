"""Sentences of the embedding report."""

from dataclasses import replace

import pytest

from schane_cli.metrics.embedding import PairedDifference
from schane_cli.metrics.registry import metric
from schane_cli.reports.embed import sentence


@pytest.mark.parametrize(
    ("direction", "change", "ci95", "better", "said"),
    [
        ("higher", 0.1, (0.05, 0.15), "second", "Higher under schane, which is better."),
        ("lower", 0.1, (0.05, 0.15), "first", "Higher under schane, which is worse."),
        ("lower", -0.1, (-0.15, -0.05), "second", "Lower under schane, which is better."),
        ("none", -0.1, (-0.15, -0.05), "neither", "Lower under schane; no direction of this metric is better."),
        ("higher", 0.1, (-0.05, 0.15), "neither", "These images cannot distinguish the difference from zero."),
    ],
)
def test_a_difference_is_one_sentence(
    direction: str, change: float, ci95: tuple[float, float], better: str, said: str
) -> None:
    known = replace(metric("silhouette"), direction=direction)
    p = 0.2 if ci95[0] < 0 < ci95[1] else 0.01
    difference = PairedDifference(0.5, 0.5 + change, change, ci95, 100, p, p, better)
    assert sentence(known, difference, "schane") == said
