"""Every interval that is printed has been simulated: the registry against results/benchmarks/coverage.md."""

import re
from pathlib import Path

import pytest

from schane_cli.metrics.registry import METRICS

TABLE = Path(__file__).parents[2] / "results" / "benchmarks" / "coverage.md"
OF_NO_METRIC = {"mean over seeds", "paired difference"}  # intervals of any metric, over seeds or images


def rows() -> list[tuple[str, int, float, float]]:
    """(metric, draws that print an interval, coverage, width) of each row of the table."""
    lines = [line.strip("|\n ").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    return [
        (name, round(int(draws) * float(printed[:-1]) / 100), float(coverage.removesuffix(" %")) / 100, float(width))
        for name, _, _, draws, printed, coverage, width, _ in lines[2:]
    ]


def test_a_metric_prints_an_interval_exactly_where_the_table_has_a_row() -> None:
    names = {re.sub(r", k=\d+|@\d+|^difference of ", "", name) for name, *_ in rows()} - OF_NO_METRIC
    simulated = {name for name in METRICS if name in names}
    assert names == simulated
    results = {name for name, one in METRICS.items() if one.kind == "result"}
    assert simulated == {name for name in results if METRICS[name].interval}
    assert all(METRICS[name].no_interval for name in results - simulated)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_no_interval_falls_short_by_more_than_its_draws_can_explain(row: tuple[str, int, float, float]) -> None:
    name, draws, coverage, _ = row
    assert coverage >= 0.93 - 2.6 * (0.93 * 0.07 / draws) ** 0.5, name
