"""Numbers and sentences of the embedding report."""

import pytest

from schane_cli.metrics.embedding import FigureDifference
from schane_cli.reports.embed import number, sentence, shown, signed


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.99876, "0.9988"), (41.567, "41.57"), (2001.6, "2002"), (-2.2, "-2.200"), (5.6e-5, "5.60e-05")],
)
def test_numbers_keep_four_significant_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_shares_are_in_per_cent_and_their_differences_in_points() -> None:
    assert shown("kNN accuracy, k=10", 0.98612) == "98.61 %"
    assert signed("recall@5", -0.0123) == "-1.23"
    assert shown("uniformity", -2.2003) == "-2.200"
    assert signed("alignment", 0.05) == "+0.05000"


@pytest.mark.parametrize(
    ("direction", "change", "ci95", "better", "said"),
    [
        ("higher", 0.1, (0.05, 0.15), "second", "Higher under schane, which is better."),
        ("lower", 0.1, (0.05, 0.15), "first", "Higher under schane, which is worse."),
        ("lower", -0.1, (-0.15, -0.05), "second", "Lower under schane, which is better."),
        ("none", -0.1, (-0.15, -0.05), "neither", "Lower under schane; this figure has no better direction."),
        ("higher", 0.1, (-0.05, 0.15), "neither", "No difference that these images can tell from zero."),
    ],
)
def test_a_difference_is_one_sentence(
    direction: str, change: float, ci95: tuple[float, float], better: str, said: str
) -> None:
    difference = FigureDifference("x", "overall", direction, 0.5, 0.5 + change, change, ci95, 100, better)
    assert sentence(difference, "schane") == said
