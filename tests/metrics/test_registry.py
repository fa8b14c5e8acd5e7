"""The registry: names of summary.json, labels, and how values, intervals and differences are printed."""

import pytest

from schane_cli.metrics.caveats import CAVEATS
from schane_cli.metrics.registry import METRICS, find_metric, metric, significant, summary_rows


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.99876, "0.9988"), (41.567, "41.57"), (2001.6, "2002"), (-2.2, "-2.200"), (5.6e-5, "5.60e-05")],
)
def test_numbers_keep_four_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


def test_shares_are_in_percent_and_their_differences_in_points() -> None:
    for name in ("test_accuracy", "kNN accuracy, k=10", "recall@5", "5shot_centroid_accuracy", "test_ece", "auroc"):
        assert metric(name).text(0.98612) == "98.61 %"
        assert metric(name).change_text(-0.0123) == "-1.23 points"
        assert metric(name).heading.endswith(", %")


def test_other_metrics_keep_their_unit() -> None:
    assert metric("uniformity").text(-2.2003) == "-2.200"
    assert metric("alignment, within class").change(0.05) == "+0.05000"
    assert metric("test_nll").text(1.23456, (1.2, 1.27)) == "1.235 nats (1.200 to 1.270)"
    assert metric("test_nll").change_text(-0.026) == "-0.02600 nats"
    assert metric("peak_memory_bytes").text(3.21e9) == "3.210 GB"


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("accuracy", "top-1 accuracy"),
        ("test_accuracy", "test top-1 accuracy"),
        ("val_nll_scaled", "val NLL, temperature-scaled"),
        ("5shot_centroid_accuracy", "5-shot accuracy, centroid"),
        ("run_1_1shot_bd-cspn_accuracy", "1-shot accuracy, bd-cspn, run_1"),
        ("train_seconds", "training time"),
        ("kNN accuracy, k=10", "kNN accuracy, k=10"),
        ("recall@5", "recall@5"),
        ("isotropy, within class", "isotropy, within class"),
        ("digits test embedding, n=360: mAP@R", "mAP@R (digits test embedding, n=360)"),
    ],
)
def test_a_name_of_a_summary_finds_its_metric_and_its_label(name: str, label: str) -> None:
    assert metric(name).label == label
    assert metric(name).name == name


@pytest.mark.parametrize(
    "name", ["seed", "test_n", "best_epoch", "test_accuracy_ci95", "test_train_seconds", "temperature"]
)
def test_what_is_no_metric_has_none(name: str) -> None:
    assert find_metric(name) is None
    with pytest.raises(ValueError, match="no metric is called"):
        metric(name)


def test_every_metric_is_defined() -> None:
    for name, one in METRICS.items():
        assert one.name == name
        assert one.definition.endswith(".")
        assert one.direction in {"higher", "lower", "none"}
        assert one.kind != "result" or one.interval or one.no_interval
        assert one.misleads.endswith(".")
    assert set(CAVEATS) == set(METRICS)


def test_no_value_and_no_interval_are_said_and_not_printed_as_nan() -> None:
    accuracy = metric("test_accuracy")
    assert accuracy.text(float("nan")) == accuracy.text(None) == "n/a"
    assert accuracy.text(0.5, (float("nan"), float("nan"))) == accuracy.text(0.5, None) == "50.00 %"
    assert accuracy.plus_minus(0.5, (0.45, 0.55)) == "50.00 ± 5.00"
    assert accuracy.plus_minus(0.98, (0.9, 1.0)) == "98.00 (90.00 to 100.00)"


def test_rows_of_a_summary_are_those_it_has() -> None:
    summary = {"test_accuracy": 0.5, "test_accuracy_ci95": [0.4, 0.6], "test_nll": 1.0}
    assert summary_rows(summary, ["test_accuracy", "test_ece", "test_nll"], "100") == [
        ("test top-1 accuracy", "50.00 % (40.00 to 60.00)", "100"),
        ("test NLL", "1.000 nats", "100"),
    ]
