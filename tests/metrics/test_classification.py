"""Classification metrics against scikit-learn, SciPy and slow loops."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from scipy.stats import norm, t
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    roc_auc_score,
    roc_curve,
    top_k_accuracy_score,
)

from schane_cli.metrics import classification as metrics
from schane_cli.metrics import intervals, ood
from schane_cli.metrics.intervals import mean_accuracy_interval, paired_accuracies, skewed_mean_interval, wilson
from schane_cli.metrics.resampling import jackknife


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, size=400)
    logits = rng.normal(size=(400, 7))
    logits[np.arange(400), labels] += 1.5
    return logits, labels


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_topk_accuracy_equals_scikit_learns(scored, k):
    logits, labels = scored
    expected = top_k_accuracy_score(labels, logits, k=k)
    assert metrics.topk_accuracy(logits, labels, k).value == pytest.approx(expected)
    assert metrics.topk_accuracy(torch.tensor(logits), torch.tensor(labels), k).value == pytest.approx(expected)


def test_constant_logits_score_as_argmax_does_and_not_all_right():
    labels = np.array([0, 1, 2, 3])
    assert metrics.topk_accuracy(np.zeros((4, 4)), labels, 1).value == 0.25
    assert metrics.topk_accuracy(np.zeros((4, 4)), labels, 2).value == 0.5


def test_half_precision_tensors_are_taken(scored):
    logits, labels = torch.tensor(scored[0]).bfloat16(), scored[1]
    assert metrics.topk_accuracy(logits, labels).value == accuracy_score(labels, logits.float().numpy().argmax(1))


def test_the_accuracy_interval_is_wilsons_formula():
    p, n, z = 47 / 60, 60, norm.ppf(0.975)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert intervals.accuracy_interval(47, 60).ci95 == pytest.approx((centre - half, centre + half))
    low, high = intervals.accuracy_interval(20, 20).ci95
    assert low == pytest.approx(20 / (20 + z**2))
    assert high == pytest.approx(1)


def test_per_class_accuracy_averages_to_balanced_accuracy_and_is_none_without_images(scored):
    logits, labels = scored
    rows = metrics.per_class_accuracy(logits, labels)
    assert np.mean([row.value for row in rows]) == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))
    assert metrics.per_class_accuracy(logits[labels != 3], labels[labels != 3])[3] is None


def test_the_confusion_matrix_counts_label_by_prediction(scored):
    logits, labels = scored
    slow = np.zeros((7, 7), dtype=int)
    for row, label in zip(logits, labels, strict=True):
        slow[label, row.argmax()] += 1
    np.testing.assert_array_equal(metrics.confusion(logits, labels), slow)


def test_calibration_equals_a_slow_loop_and_scikit_learns_log_loss(scored):
    logits, labels = scored
    result = metrics.calibration(logits, labels, seed=0)
    p = softmax(logits)
    confidence, correct = p.max(1), p.argmax(1) == labels
    ece = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            ece += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    assert result.ece.value == pytest.approx(ece)
    assert result.nll.value == pytest.approx(log_loss(labels, p, labels=np.arange(7)))
    assert result.brier.value == pytest.approx(((p - np.eye(7)[labels]) ** 2).sum(1).mean())
    assert sum(b.n for b in result.reliability) == 400
    gaps = [b.n / 400 * abs(b.accuracy.value - b.confidence) for b in result.reliability if b.n]
    assert sum(gaps) == pytest.approx(ece)
    for estimate in (result.ece, result.nll, result.brier):
        assert estimate.ci95[0] < estimate.value < estimate.ci95[1]


def test_accuracy_and_nll_alone_are_the_same_bits_as_with_their_intervals(scored):
    logits, labels = torch.from_numpy(scored[0]).float(), torch.from_numpy(scored[1])
    logits[:20] = 0  # ties
    with_intervals = metrics.topk_accuracy(logits, labels), metrics.calibration(logits, labels, seed=0).nll
    assert metrics.accuracy_and_nll(logits, labels) == tuple(estimate.value for estimate in with_intervals)


def test_calibration_of_known_cases():
    sure = np.array([[50.0, 0.0], [50.0, 0.0], [50.0, 0.0], [50.0, 0.0]])
    half_wrong = metrics.calibration(sure, np.array([0, 0, 1, 1]), seed=0)
    assert half_wrong.ece.value == pytest.approx(0.5)
    assert half_wrong.brier.value == pytest.approx(1.0)
    right = metrics.calibration(sure, np.zeros(4, dtype=int), seed=0)
    assert right.ece.value == pytest.approx(0, abs=1e-9)
    uniform = metrics.calibration(np.zeros((8, 4)), np.arange(8) % 4, seed=0)
    assert uniform.nll.value == pytest.approx(np.log(4))
    assert uniform.ece.value == pytest.approx(0)


def test_the_interval_of_a_mean_loss_has_the_standard_error_of_the_mean(scored):
    result = metrics.calibration(*scored, seed=0)
    nll = -np.log(softmax(scored[0])[np.arange(400), scored[1]])
    width = result.nll.ci95[1] - result.nll.ci95[0]
    assert width == pytest.approx(2 * 1.96 * nll.std() / 20, rel=0.06)


def test_the_interval_of_a_skewed_mean_reaches_further_on_the_side_of_its_long_tail():
    terms = np.random.default_rng(0).exponential(size=40)
    low, high = skewed_mean_interval(terms)
    assert high - terms.mean() > 1.2 * (terms.mean() - low)
    mirrored = skewed_mean_interval(-terms)
    assert mirrored == pytest.approx((-high, -low))
    assert skewed_mean_interval(terms, (0.0, 1.1))[1] <= 1.1


def test_the_interval_of_a_symmetric_mean_is_students():
    terms = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    assert skewed_mean_interval(terms) == pytest.approx(stats.t.interval(0.95, 4, 0, stats.sem(terms)))
    assert skewed_mean_interval(np.full(5, 3.0)) == (3.0, 3.0)


def test_means_of_losses_have_no_interval_where_every_image_is_right():
    logits = 4 * np.eye(3)[np.arange(60) % 3] + np.random.default_rng(0).normal(size=(60, 3)) * 0.1
    right = metrics.calibration(logits, np.arange(60) % 3, seed=0)
    assert right.nll.ci95 is None
    assert right.brier.ci95 is None
    assert right.ece.ci95 is not None
    one_wrong = metrics.calibration(logits, np.append(np.arange(59) % 3, 0), seed=0)
    assert one_wrong.nll.ci95[0] < one_wrong.nll.value < one_wrong.nll.ci95[1]
    assert mean_accuracy_interval(np.ones(50)) is None
    assert mean_accuracy_interval(np.zeros(50)) is None
    assert mean_accuracy_interval(np.append(np.ones(49), 0.0)) is not None


def test_the_jackknifes_terms_of_a_ratio_are_its_values_with_an_image_left_out():
    samples = np.random.default_rng(0).random((20, 2)) + 1

    def ratio(means):
        return means[:, 0] / means[:, 1]

    measured = jackknife(samples, ratio)
    assert measured.value == pytest.approx(samples[:, 0].sum() / samples[:, 1].sum())
    assert measured.terms.mean() == pytest.approx(measured.value)
    without = [float(ratio(np.delete(samples, i, axis=0).mean(axis=0)[None])[0]) for i in range(20)]
    assert np.diff(measured.terms) == pytest.approx(-19 * np.diff(without))


def test_the_fitted_temperature_undoes_a_known_scale():
    rng = np.random.default_rng(1)
    true_logits = rng.normal(size=(8_000, 5)) * 2
    labels = np.array([rng.choice(5, p=p) for p in softmax(true_logits)])
    fit = metrics.fit_temperature(true_logits * 3, labels)
    assert fit.temperature == pytest.approx(3, rel=0.06)
    assert fit.nll_after < fit.nll_before
    assert not fit.at_bound
    grid = np.linspace(2.5, 3.5, 51)
    nll = [log_loss(labels, softmax(true_logits * 3 / temperature)) for temperature in grid]
    assert fit.temperature == pytest.approx(grid[np.argmin(nll)], abs=0.021)


def test_a_temperature_without_optimum_says_that_it_ended_at_the_bound():
    fit = metrics.fit_temperature(np.eye(4), np.arange(4))
    assert fit.at_bound
    assert fit.temperature == pytest.approx(0.01, rel=1e-3)


def test_the_mean_over_seeds_has_students_interval():
    result = intervals.t_interval([0.8, 0.82, 0.85])
    low, high = t.interval(0.95, 2, loc=np.mean([0.8, 0.82, 0.85]), scale=np.std([0.8, 0.82, 0.85], ddof=1) / 3**0.5)
    assert result.ci95 == pytest.approx((low, high))
    assert result.n == 3
    assert intervals.t_interval([0.8]).ci95 is None
    assert intervals.t_interval([0.25, 0.25]).ci95 is None  # no spread to judge by, not one of no width
    with pytest.raises(ValueError, match="finite"):
        intervals.t_interval([0.8, np.nan])


def test_an_interval_of_shares_over_seeds_stays_within_zero_and_one():
    assert intervals.t_interval([0.97, 0.999], bounds=(0.0, 1.0)).ci95[1] == 1.0
    assert intervals.t_interval([0.02, 0.04, 0.001], bounds=(0.0, 1.0)).ci95[0] == 0.0


def test_out_of_distribution_detection_equals_scikit_learns_curve():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 300).round(1), rng.normal(0, 1, 200).round(1)
    result = ood.ood_detection(inside, outside)
    truth, scores = np.repeat([1, 0], [300, 200]), np.concatenate([inside, outside])
    assert result.auroc.value == pytest.approx(roc_auc_score(truth, scores))
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert result.fpr95.value == pytest.approx(fpr[np.argmax(tpr >= 0.95)])
    assert result.auroc.ci95[0] < result.auroc.value < result.auroc.ci95[1]
    perfect = ood.ood_detection([2.0, 3.0], [0.0, 1.0])
    assert (perfect.auroc.value, perfect.fpr95.value) == (1.0, 0.0)


def test_intervals_at_the_ends_are_not_empty():
    """None of 200 accepted: Wilson's upper end is 1.9 %, and an area of 1 over so few images is not certain."""
    rng = np.random.default_rng(0)
    apart = ood.ood_detection(rng.uniform(2, 3, 359), rng.uniform(0, 1, 200))
    assert apart.fpr95.ci95[0] == 0
    assert apart.fpr95.ci95[1] == pytest.approx(0.0188, abs=1e-3)
    assert 0.98 < apart.auroc.ci95[0] < 0.997
    assert apart.auroc.ci95[1] == 1.0
    alike = ood.ood_detection(np.zeros(50), np.zeros(40))
    assert alike.auroc.value == 0.5
    assert alike.auroc.ci95[0] < 0.5 < alike.auroc.ci95[1]


def test_out_of_distribution_scores_equal_their_formulas():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 4)) * 3
    np.testing.assert_allclose(ood.max_softmax_score(logits), softmax(logits).max(1))
    np.testing.assert_allclose(ood.energy_score(logits), np.log(np.exp(logits).sum(1)))
    np.testing.assert_allclose(ood.energy_score(logits, 2.0), 2 * np.log(np.exp(logits / 2).sum(1)))
    queries, train = rng.normal(size=(6, 3)), rng.normal(size=(30, 3))
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (queries, train)]
    distances = np.sort(np.linalg.norm(unit[0][:, None] - unit[1][None], axis=2), axis=1)
    np.testing.assert_allclose(ood.knn_score(queries, train, k=5), -distances[:, 4])


@pytest.mark.parametrize(
    ("logits", "labels", "sentence"),
    [
        (np.zeros((3, 2)), np.zeros(4, dtype=int), "must go together"),
        (np.zeros((0, 2)), np.zeros(0, dtype=int), "no images"),
        (np.array([[0.0, 1.0], [np.nan, 0.0]]), np.zeros(2, dtype=int), r"1 row \(1\) is not finite"),
        (np.zeros((2, 2)), np.array([0, 2]), "run from 0 to 2"),
        (np.zeros((2, 2)), np.array([0.0, 1.0]), "integers"),
    ],
)
def test_malformed_input_is_refused_in_a_sentence(logits, labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        metrics.topk_accuracy(logits, labels)


def test_a_k_beyond_the_classes_and_too_few_training_embeddings_are_refused(scored):
    with pytest.raises(ValueError, match="from 1 to the 7 classes"):
        metrics.topk_accuracy(*scored, k=8)
    with pytest.raises(ValueError, match="at least 50 training embeddings"):
        ood.knn_score(np.ones((2, 3)), np.ones((10, 3)))
    with pytest.raises(ValueError, match=r"score of 1 row \(0\) is not finite"):
        ood.ood_detection([np.nan], [1.0])


def confidences(n: int, seed: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Two-class logits (n, 2) and labels (n,): calibrated at sharpness 1, over-confident above."""
    rng = np.random.default_rng(seed)
    logits = np.stack([np.abs(rng.normal(1.5, 1.0, n)), np.zeros(n)], axis=1)
    return logits * sharpness, (rng.random(n) > softmax(logits)[:, 0]).astype(int)


def test_the_ece_of_a_calibrated_model_is_told_from_zero_by_chance_alone():
    held = 0
    for seed in range(40):
        result = metrics.calibration(*confidences(300, seed, 1.0), seed=0)
        held += result.ece.ci95[0] == 0.0
        assert result.ece_debiased.value <= result.ece.value <= result.ece.ci95[1]
        assert result.ece_debiased.ci95 == result.ece.ci95
    assert held >= 36
    assert result.ece_calibrated == pytest.approx(0.045, abs=0.02)


def test_the_ece_of_an_over_confident_model_lies_in_its_interval_and_above_a_calibrated_ones():
    result = metrics.calibration(*confidences(3000, 0, 3.0), seed=0)
    truth = metrics.calibration(*confidences(300_000, 1, 3.0), seed=0).ece.value
    assert result.ece.ci95[0] < truth < result.ece.ci95[1]
    assert result.ece_calibrated < result.ece.ci95[0]
    assert abs(result.ece_debiased.value - truth) < 0.02


def test_class_means_are_scikit_learns_and_their_intervals_hold_them() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(5, 400, p=[0.6, 0.2, 0.1, 0.07, 0.03])
    logits = rng.normal(size=(400, 5)) + 1.5 * np.eye(5)[labels]
    means = metrics.class_means(logits, labels)
    predicted = logits.argmax(1)
    for ours, theirs in (
        (means.balanced_accuracy, balanced_accuracy_score(labels, predicted)),
        (means.macro_f1, f1_score(labels, predicted, average="macro")),
    ):
        assert ours.value == pytest.approx(theirs)
        assert ours.ci95 is not None
        assert ours.ci95[0] < ours.value < ours.ci95[1]
        assert ours.n == 400


def test_balanced_accuracy_has_the_spread_of_fresh_images() -> None:
    """60, 25 and 15 images of three classes that are right with probability 0.8, 0.5 and 0.3."""
    right = np.repeat([0.8, 0.5, 0.3], [60, 25, 15])
    labels = np.repeat(np.arange(3), [60, 25, 15])
    rng, values, halves = np.random.default_rng(1), [], []
    for _ in range(300):
        predicted = np.where(rng.random(100) < right, labels, (labels + 1) % 3)
        balanced = metrics.class_means(np.eye(3)[predicted], labels).balanced_accuracy
        values.append(balanced.value)
        halves.append((balanced.ci95[1] - balanced.ci95[0]) / 3.92)
    assert np.mean(halves) == pytest.approx(np.std(values), rel=0.12)


def test_macro_f1_has_the_jackknifes_variance_image_by_image() -> None:
    rng = np.random.default_rng(2)
    labels = np.append(rng.choice(4, 60, p=[0.6, 0.2, 0.15, 0.05]), 4)  # one image of the last class
    predicted = np.where(rng.random(61) < 0.7, labels, rng.integers(0, 5, 61))
    value, left_out, weights = metrics._macro_f1_left_out(metrics.confusion(np.eye(5)[predicted], labels))
    assert value == pytest.approx(f1_score(labels, predicted, average="macro"))
    slow = [f1_score(np.delete(labels, i), np.delete(predicted, i), average="macro") for i in range(61)]
    assert sorted(np.repeat(left_out, weights)) == pytest.approx(sorted(slow))


def test_a_model_that_calls_everything_by_one_class_has_a_balanced_accuracy_with_an_interval() -> None:
    labels = np.repeat(np.arange(10), 8)
    means = metrics.class_means(np.tile(np.eye(10)[0], (80, 1)), labels)
    assert means.balanced_accuracy.value == pytest.approx(0.1)
    low, high = means.balanced_accuracy.ci95
    assert low < 0.09
    assert high > 0.12
    assert means.macro_f1.ci95[0] < means.macro_f1.value < means.macro_f1.ci95[1]
    perfect = metrics.class_means(np.eye(10)[labels], labels)
    assert perfect.balanced_accuracy.ci95 == pytest.approx((wilson(1.0, 80)[0], 1.0))
    assert perfect.macro_f1.ci95[1] == pytest.approx(1.0)
    assert perfect.macro_f1.ci95[0] < 0.96


def test_the_interval_of_two_accuracies_on_the_same_images_ends_where_the_score_is_1_96() -> None:
    gained, lost, n = 16, 3, 100
    second, first = np.arange(n) < gained, (np.arange(n) >= gained) & (np.arange(n) < gained + lost)
    compared = paired_accuracies(first, second)
    assert (compared.difference, compared.n) == (0.13, n)
    assert compared.p_value == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
    for d in compared.ci95 or ():

        def surprise(share: float, d: float = d) -> float:
            shares = [share + d, share, 1 - 2 * share - d]
            return -float(stats.multinomial.logpmf([gained, lost, n - gained - lost], n, shares))

        bounds = (max(0.0, -d) + 1e-9, (1 - d) / 2 - 1e-9)
        share = optimize.minimize_scalar(surprise, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x
        variance = n * (2 * share + d - d**2)
        assert abs(gained - lost - n * d) / np.sqrt(variance) == pytest.approx(1.959964, abs=1e-4)


def test_two_models_that_are_right_on_the_same_images_are_not_known_to_be_equal() -> None:
    right = np.arange(44) % 2 == 0
    compared = paired_accuracies(right, right)
    assert (compared.difference, compared.p_value) == (0.0, 1.0)
    assert compared.ci95 == pytest.approx((-wilson(0, 44)[1], wilson(0, 44)[1]))
    assert paired_accuracies(np.zeros(5), np.ones(5)).ci95[1] == 1
    with pytest.raises(ValueError, match="the same images"):
        paired_accuracies(right, right[:3])


def test_rows_at_a_time_give_the_bits_of_all_at_once(scored, monkeypatch):
    logits, labels = scored
    whole = metrics.image_losses(logits, labels, 2.0)
    monkeypatch.setattr(metrics, "BLOCK_CELLS", 3 * logits.shape[1])
    parts = metrics.image_losses(logits, labels, 2.0)
    for field in fields(whole):
        np.testing.assert_array_equal(getattr(parts, field.name), getattr(whole, field.name))
