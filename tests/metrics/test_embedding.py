"""Every figure of embedding quality against an independent implementation and a case with a known answer."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import normalized_mutual_info_score, roc_auc_score, silhouette_samples, silhouette_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from schane_cli.metrics import neighbours
from schane_cli.metrics.embedding import (
    EmbeddingAnalysis,
    analyse_embeddings,
    compare_embeddings,
    pair_terms,
)
from schane_cli.metrics.intervals import Estimate
from schane_cli.metrics.neighbours import largest
from schane_cli.metrics.registry import JACKKNIFE, metric
from schane_cli.metrics.separation import (
    fisher_ratio,
    linear_probe_correct,
    linear_probe_halves,
    neural_collapse_1,
    silhouette,
)
from schane_cli.metrics.spectrum import effective_rank, iso_score, isotropy, principal_axes

N, D, C = 260, 12, 5


def clustered(n: int = N, seed: int = 0, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(99).normal(size=(C, D))
    labels = rng.integers(0, C, size=n)
    scale = np.arange(1, D + 1) ** -0.4
    return ((means[labels] + spread * rng.normal(size=(n, D))) * scale + 0.2).astype(np.float32), labels


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small are these products that on a busy machine two threads take ten times as long as one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    return clustered()


@pytest.fixture(scope="module")
def analysis(data) -> EmbeddingAnalysis:
    return analyse_embeddings(*data, seed=0)


@pytest.fixture(scope="module")
def cosines(data) -> np.ndarray:
    unit = data[0].astype(float) / np.linalg.norm(data[0].astype(float), axis=1, keepdims=True)
    return unit @ unit.T


def value(metrics: dict[str, Estimate], name: str) -> float:
    return metrics[name].value


def pairs_of(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks (n, n) of positive and of negative pairs, each pair once."""
    upper = np.triu(np.ones((len(labels), len(labels)), dtype=bool), 1)
    same = labels[:, None] == labels
    return same & upper, ~same & upper


def slow_isotropy(vectors: np.ndarray) -> float:
    _, directions = np.linalg.eigh(vectors.T @ vectors)
    f = [np.exp(vectors @ (sign * c)).sum() for c in directions.T for sign in (1, -1)]
    return min(f) / max(f)


def class_centred(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return vectors - np.stack([vectors[labels == label].mean(axis=0) for label in labels])


def slow_rank(vectors: np.ndarray) -> float:
    p = np.linalg.svd(vectors, compute_uv=False)
    p = p / p.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def slow_iso_score(vectors: np.ndarray) -> float:
    d = vectors.shape[1]
    variances = np.sort(np.linalg.eigvalsh(np.cov(vectors.T)))
    normalised = np.sqrt(d) * variances / np.sqrt((variances**2).sum())
    defect = np.sqrt(((normalised - np.ones(d)) ** 2).sum()) / np.sqrt(2 * (d - np.sqrt(d)))
    return ((d - defect**2 * (d - np.sqrt(d))) ** 2 - d) / (d * (d - 1))


def test_spectral_figures_equal_direct_decompositions(data, analysis):
    vectors, labels = data[0].astype(float), data[1]
    within = class_centred(vectors, labels)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    metrics = analysis.metrics
    assert value(metrics, "isotropy") == pytest.approx(slow_isotropy(vectors), rel=1e-5)
    assert value(metrics, "isotropy of unit vectors") == pytest.approx(slow_isotropy(unit), rel=1e-5)
    assert value(metrics, "isotropy, within class") == pytest.approx(slow_isotropy(within), rel=1e-4)
    assert value(metrics, "effective rank") == pytest.approx(slow_rank(vectors), rel=1e-5)
    assert value(metrics, "effective rank, within class") == pytest.approx(slow_rank(within), rel=1e-5)
    assert value(metrics, "IsoScore") == pytest.approx(slow_iso_score(vectors), rel=1e-5)
    assert value(metrics, "IsoScore, within class") == pytest.approx(slow_iso_score(within), rel=1e-5)
    np.testing.assert_allclose(analysis.singular_values, np.linalg.svd(vectors, compute_uv=False), rtol=1e-6)


def test_a_cross_is_isotropic_and_has_full_rank_and_a_line_has_neither():
    cross = np.concatenate([np.eye(6), -np.eye(6)])
    assert isotropy(principal_axes(cross)) == pytest.approx(1)
    assert effective_rank(principal_axes(cross)).value == pytest.approx(6)
    assert iso_score(principal_axes(cross)).value == pytest.approx(1)
    line = np.outer(np.linspace(-1, 1, 12), np.eye(6)[0])
    assert effective_rank(principal_axes(line)).value == pytest.approx(1)
    assert iso_score(principal_axes(line)).value == pytest.approx(0)


def test_iso_score_of_k_equal_directions_is_k_minus_1_over_d_minus_1():
    plane = np.concatenate([np.eye(8)[:3], -np.eye(8)[:3]])
    assert iso_score(principal_axes(plane)).value == pytest.approx(2 / 7)


def test_isotropy_of_long_vectors_neither_overflows_nor_warns():
    long = np.concatenate([np.eye(4), -np.eye(4)]) * 5000.0
    long[0] *= 1.01
    assert isotropy(principal_axes(long)) == pytest.approx(np.exp(-50.0), 1e-3)


def test_cosine_figures_equal_sums_over_all_pairs(data, analysis, cosines):
    positive, negative = pairs_of(data[1])
    metrics, everyone = analysis.metrics, positive | negative
    squared = 2 - 2 * cosines
    assert value(metrics, "average cosine") == pytest.approx(cosines[everyone].mean(), abs=1e-6)
    assert value(metrics, "average cosine, within class") == pytest.approx(cosines[positive].mean(), abs=1e-6)
    assert value(metrics, "average cosine of negative pairs") == pytest.approx(cosines[negative].mean(), abs=1e-6)
    assert value(metrics, "alignment, within class") == pytest.approx(squared[positive].mean(), abs=1e-6)
    assert value(metrics, "uniformity") == pytest.approx(np.log(np.exp(-2 * squared[everyone]).mean()), abs=1e-5)
    within = np.log(np.exp(-2 * squared[positive]).mean())
    assert value(metrics, "uniformity, within class") == pytest.approx(within, abs=1e-5)


def test_uniformity_equals_wang_and_isolas_own_formula(data, analysis):
    unit = torch.nn.functional.normalize(torch.tensor(data[0]).double())
    expected = torch.pdist(unit).pow(2).mul(-2).exp().mean().log().item()
    assert value(analysis.metrics, "uniformity") == pytest.approx(expected, abs=5e-5)


def test_the_auc_and_histograms_equal_those_of_all_pairs(data, analysis, cosines):
    positive, negative = pairs_of(data[1])
    truth = np.repeat([1, 0], [positive.sum(), negative.sum()])
    expected = roc_auc_score(truth, np.concatenate([cosines[positive], cosines[negative]]))
    assert value(analysis.metrics, "AUC of positive over negative cosines") == pytest.approx(expected, abs=5e-5)
    for counts, mask in ((analysis.pairs.positive_histogram, positive), (analysis.pairs.negative_histogram, negative)):
        assert counts.sum() == 2 * mask.sum()  # each pair from both its ends
        coarse = counts.reshape(20, -1).sum(axis=1) / 2
        np.testing.assert_allclose(coarse, np.histogram(cosines[mask], bins=20, range=(-1, 1))[0], atol=2)


def test_the_auc_holds_in_a_narrow_cone_with_ties_and_with_an_outlier():
    """Cosines that spread over 0.0003 were all ties in bins of 0.001."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    cone = 100 * np.eye(8)[0] + 0.4 * np.eye(8)[labels + 1] + 0.5 * rng.normal(size=(200, 8))
    tied = np.eye(4)[labels] + np.eye(4)[rng.integers(0, 4, 200)]
    outlier = np.concatenate([cone[:-1], -cone[-1:]])
    for vectors in (cone, tied, outlier):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        positive, negative = pairs_of(labels)
        own = (unit @ unit.T).round(12)
        truth = np.repeat([1, 0], [positive.sum(), negative.sum()])
        expected = roc_auc_score(truth, np.concatenate([own[positive], own[negative]]))
        pairs = neighbours.pass_over_pairs(unit, labels)
        assert pairs.auc.value == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("k", [1, 10, 20])
def test_knn_accuracy_equals_scikit_learns_with_one_image_left_out(data, analysis, k):
    vectors, labels = data
    right = []
    for i in range(len(labels)):
        rest = np.arange(len(labels)) != i
        model = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07), algorithm="brute")
        right.append(model.fit(vectors[rest], labels[rest]).predict(vectors[i : i + 1])[0] == labels[i])
    assert value(analysis.metrics, f"kNN accuracy, k={k}") == pytest.approx(np.mean(right), abs=1e-9)


def slow_average_precision(cosines: np.ndarray, labels: np.ndarray, query: int, gallery: np.ndarray) -> float:
    gallery = gallery[gallery != query]
    ranked = gallery[np.argsort(-cosines[query, gallery])]
    relevant = labels[ranked] == labels[query]
    r = relevant.sum()
    return float(sum(relevant[i] * relevant[: i + 1].mean() for i in range(r)) / r)


def test_recall_and_map_equal_a_slow_loop(data, analysis, cosines):
    labels, everyone = data[1], np.arange(N)
    for k in (1, 5, 10):
        hits = []
        for i in range(N):
            rest = everyone[everyone != i]
            hits.append((labels[rest[np.argsort(-cosines[i, rest])[:k]]] == labels[i]).any())
        assert value(analysis.metrics, f"recall@{k}") == pytest.approx(np.mean(hits))
    expected = np.mean([slow_average_precision(cosines, labels, i, everyone) for i in range(N)])
    assert value(analysis.metrics, "mAP@R") == pytest.approx(expected, rel=1e-5)


def test_the_gallery_gain_is_what_average_precision_loses_without_the_image(data, analysis, cosines):
    labels, everyone = data[1], np.arange(N)
    for image in (0, 17, 101):
        others = everyone[everyone != image]
        with_it = sum(slow_average_precision(cosines, labels, i, everyone) for i in others)
        without = sum(slow_average_precision(cosines, labels, i, others) for i in others)
        assert analysis.pairs.gallery_gain[image] == pytest.approx(with_it - without, abs=1e-4)


def test_neighbours_and_hardest_negatives_are_the_most_similar(data, analysis, cosines):
    labels, pairs = data[1], analysis.pairs
    for i in range(0, N, 13):
        rest = np.delete(np.arange(N), i)
        np.testing.assert_array_equal(pairs.neighbours[i], rest[np.argsort(-cosines[i, rest])[:10]])
        other = np.flatnonzero(labels != labels[i])
        assert pairs.hardest_negative[i] == other[cosines[i, other].argmax()]
        assert pairs.hardest_negative_cosine[i] == pytest.approx(cosines[i, other].max(), abs=1e-6)


def test_chunks_of_rows_change_nothing(data, analysis, monkeypatch):
    monkeypatch.setattr(neighbours, "CHUNK_CELLS", 7 * N)
    monkeypatch.setattr(neighbours, "CHUNK_ROWS", 7)
    chunked_metrics = analyse_embeddings(*data, seed=0).metrics
    for whole, chunked in zip(analysis.metrics.values(), chunked_metrics.values(), strict=True):
        assert chunked.value == pytest.approx(whole.value, rel=1e-5)
        assert (chunked.ci95 is None) == (whole.ci95 is None)
        assert chunked.ci95 is None or chunked.ci95 == pytest.approx(whole.ci95, rel=1e-3, abs=1e-5)


def test_the_linear_probe_equals_ridge_classifiers_each_fitted_without_the_image(data):
    vectors, labels = data[0][:80], data[1][:80]
    wide = vectors.astype(float)
    correct, penalty = linear_probe_correct(principal_axes(wide - wide.mean(axis=0)), labels)
    alpha = penalty * np.trace(np.cov(vectors.T, bias=True)) * 80 / D
    for i in range(80):
        rest = np.arange(80) != i
        # the fold's own mean is the intercept, as leaving one out has it
        model = RidgeClassifier(alpha=alpha).fit(vectors[rest].astype(float), labels[rest])
        assert correct[i] == (model.predict(vectors[i : i + 1].astype(float))[0] == labels[i])


def test_the_linear_probe_of_halves_equals_ridge_classifiers_of_each_half(data):
    vectors, labels = data[0][:120], data[1][:120]
    half = np.random.default_rng(0).permutation(120) < 60
    measured = linear_probe_halves(vectors, labels, 0.1, half[None])[:, 0]
    for accuracy, part in zip(measured, (half, ~half), strict=True):
        x, y = vectors[part].astype(float), labels[part]
        alpha = 0.1 * np.trace(np.cov(x.T, bias=True)) * 60 / D
        folds = cross_val_predict(RidgeClassifier(alpha=alpha), x, y, cv=LeaveOneOut())
        assert accuracy == pytest.approx((folds == y).mean())


def test_the_largest_of_each_row_are_those_of_topk_with_equals_from_left_to_right():
    values = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    values[:, [7, 30]] = 9.0  # equals, beyond all others
    for k in (1, 2, 6, 40):
        columns, found = largest(values, k)
        assert torch.equal(found, values.topk(k, dim=1).values)
        assert torch.equal(values.gather(1, columns), found)
        assert k < 2 or (columns[:, :2] == torch.tensor([7, 30])).all()


def test_silhouette_equals_scikit_learns(data, analysis):
    assert value(analysis.metrics, "silhouette") == pytest.approx(silhouette_score(*data, metric="cosine"), abs=1e-5)
    vectors, labels = data[0], data[1].copy()
    labels[3] = C  # alone in its class
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    with_loner = silhouette(unit, labels).value
    assert with_loner == pytest.approx(silhouette_samples(vectors, labels, metric="cosine").mean(), abs=1e-5)


def test_nmi_equals_scikit_learns_and_is_1_where_clusters_are_classes(data, analysis):
    expected = normalized_mutual_info_score(data[1], analysis.clusters)
    assert value(analysis.metrics, "NMI of k-means") == pytest.approx(expected)
    apart = clustered(spread=0.01)
    assert value(analyse_embeddings(*apart, seed=0).metrics, "NMI of k-means") == pytest.approx(1)


def test_fisher_ratio_and_nc1_equal_sums_of_outer_products(data, analysis):
    vectors, labels = data[0].astype(float), data[1]
    means = np.stack([vectors[labels == c].mean(axis=0) for c in range(C)])
    residuals, sizes = vectors - means[labels], np.bincount(labels)
    between = (sizes * ((means - vectors.mean(axis=0)) ** 2).sum(axis=1)).sum()
    assert value(analysis.metrics, "Fisher ratio") == pytest.approx(between / (residuals**2).sum(), rel=1e-5)
    s_w = sum(np.outer(r, r) for r in residuals) / N
    s_b = sum(np.outer(m, m) for m in means - means.mean(axis=0)) / C
    assert value(analysis.metrics, "NC1") == pytest.approx(
        np.trace(s_w @ np.linalg.pinv(s_b, rcond=1e-10)) / C, rel=1e-4
    )


def test_the_fisher_ratio_of_one_dimension_is_linear_discriminant_analysis_eigenvalue():
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    x = (labels * 1.0 + rng.normal(size=90))[:, None]
    model = LinearDiscriminantAnalysis(solver="eigen", store_covariance=True).fit(x, labels)
    between = np.cov(x.T, bias=True) - model.covariance_
    ratio = fisher_ratio(x, labels).value
    assert ratio == pytest.approx((between / model.covariance_).item())


def test_neural_collapse_of_known_spread():
    """Two classes at +-1 on one axis, images at +-e around them: S_W = e^2, S_B = 1, so NC1 = e^2 / 2."""
    vectors = np.array([[1.3, 0.0], [0.7, 0.0], [-0.7, 0.0], [-1.3, 0.0]])
    nc1 = neural_collapse_1(vectors, np.array([0, 0, 1, 1]))
    assert nc1.value == pytest.approx(0.3**2 / 2)


@pytest.mark.parametrize("figure", [fisher_ratio, neural_collapse_1])
@pytest.mark.parametrize("image", [4, 20, 33])
def test_the_terms_are_the_metrics_derivative(data, figure, image):
    """Every image repeated 200 times, and two copies of one replaced by two of another."""
    vectors, labels = data[0][:60].astype(float), data[1][:60]
    terms = figure(vectors, labels).terms
    index = np.repeat(np.arange(60), 200)
    moved = np.concatenate([np.delete(index, 50 * 200 + np.arange(2)), [image, image]])
    base, exact = (figure(vectors[i], labels[i]).value for i in (index, moved))
    assert exact - base == pytest.approx((terms[image] - terms[50]) / 60 * 2 / 200, rel=0.1, abs=2e-6)


def slow_silhouette(cosines: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    scores = []
    for i, own in enumerate(labels):
        others = weights * (np.arange(len(labels)) != i)
        distance = {c: 1 - np.average(cosines[i], weights=others * (labels == c)) for c in set(labels)}
        a, b = distance.pop(own), min(distance.values())
        scores.append((b - a) / max(a, b))
    return float(np.average(scores, weights=weights))


@pytest.mark.parametrize("image", [4, 20, 33])
def test_the_silhouettes_terms_are_its_derivative_with_class_means_moving(data, cosines, image):
    vectors, labels = data[0][:60].astype(float), data[1][:60]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    terms = silhouette(unit, labels).terms
    weights = np.ones(60)
    weights[[image, 50]] = 1.001, 0.999
    change = slow_silhouette(cosines[:60, :60], labels, weights) - slow_silhouette(
        cosines[:60, :60], labels, np.ones(60)
    )
    assert (terms[image] - terms[50]) / 60 / 1000 == pytest.approx(change, rel=0.15, abs=1e-6)


def test_pair_terms_average_to_the_pairs_and_move_as_one_more_image_does(cosines):
    sums, n = cosines.sum(axis=1) - 1, float(N)
    terms = pair_terms(sums, np.full(N, n - 1))
    assert terms.mean() == pytest.approx(sums.sum() / (n * (n - 1)))
    weights = np.random.default_rng(0).multinomial(N, np.full(N, 1 / N)).astype(float)
    ordered = np.outer(weights, weights)
    np.fill_diagonal(ordered, 0)
    exact = (ordered * cosines).sum() / ordered.sum()
    assert terms @ weights / n == pytest.approx(exact, abs=2e-3)


def test_intervals_have_the_spread_of_fresh_samples():
    """30 fresh draws of the images: the jackknife's spread against the draws' own, within what 30 draws can tell.

    What is measured on halves has its coverage in results/benchmarks/coverage.md.
    """
    runs = [analyse_embeddings(*clustered(300, seed), seed=seed) for seed in range(30)]
    for name in runs[0].metrics:
        if metric(name).interval == JACKKNIFE:
            spread = np.std([run.metrics[name].value for run in runs], ddof=1)
            own = np.mean([run.terms[name].std() / 300**0.5 for run in runs])
            assert 0.6 < own / spread < 1.6, name


def test_every_metric_has_its_definition_and_an_interval_around_its_value(analysis):
    for name, estimate in analysis.metrics.items():
        known = metric(name)
        assert bool(known.interval) == (estimate.ci95 is not None)
        assert known.interval or known.no_interval
        if estimate.ci95 is not None:
            assert estimate.ci95[0] <= estimate.value <= estimate.ci95[1]
        assert known.definition.endswith(".")
        assert known.source
        assert known.choices
    assert {metric(name).direction for name in analysis.metrics if "sotropy" in name or "IsoScore" in name} == {"none"}


def test_an_image_alone_in_its_class_is_left_out_of_retrieval(data):
    labels = data[1].copy()
    labels[0] = 77
    metrics = analyse_embeddings(data[0], labels, seed=0).metrics
    n = {name: estimate.n for name, estimate in metrics.items()}
    assert n["mAP@R"] == n["recall@1"] == N - 1
    assert n["kNN accuracy, k=1"] == N


def test_the_same_seed_gives_the_same_metrics_and_tensors_are_taken(data, analysis):
    again = analyse_embeddings(torch.tensor(data[0]), torch.tensor(data[1]), seed=0)
    assert again.metrics == analysis.metrics


def test_a_checkpoint_does_not_differ_from_itself_and_tighter_classes_are_better(data, analysis):
    for row in compare_embeddings(analysis, analysis).values():
        assert row.difference == 0
        assert row.ci95 in {(0, 0), None}
        assert row.better == "neither"
    tighter = analyse_embeddings(*clustered(spread=0.3), seed=0)
    rows = compare_embeddings(analysis, tighter)
    for name in ("mAP@R", "silhouette", "Fisher ratio", "NC1", "linear-probe accuracy"):
        assert rows[name].better == "second"
    assert rows["isotropy"].better == "neither"


def test_two_opposite_tight_classes_have_every_known_answer():
    """6 images at e_1 and 6 at -e_1: 30 of 66 pairs positive at cosine 1, 36 negative at -1."""
    labels = np.repeat([0, 1], 6)
    vectors = np.where(labels == 0, 1.0, -1.0)[:, None] * np.eye(4)[0]
    vectors = vectors + 1e-4 * np.random.default_rng(0).normal(size=(12, 4))
    metrics = analyse_embeddings(vectors, labels, seed=0).metrics
    ones = ["kNN accuracy, k=1", "kNN accuracy, k=10", "recall@1", "recall@5", "recall@10", "mAP@R", "silhouette"]
    ones += ["AUC of positive over negative cosines", "linear-probe accuracy", "NMI of k-means", "effective rank"]
    for name in ones:
        assert value(metrics, name) == pytest.approx(1, abs=5e-3), name
    assert value(metrics, "average cosine, within class") == pytest.approx(1, abs=1e-5)
    assert value(metrics, "average cosine of negative pairs") == pytest.approx(-1, abs=1e-5)
    assert value(metrics, "average cosine") == pytest.approx((30 - 36) / 66, abs=1e-5)
    assert value(metrics, "alignment, within class") == pytest.approx(0, abs=1e-5)
    assert value(metrics, "uniformity") == pytest.approx(np.log((30 + 36 * np.exp(-8)) / 66), abs=1e-4)
    assert value(metrics, "uniformity, within class") == pytest.approx(0, abs=1e-5)
    assert value(metrics, "NC1") == pytest.approx(0, abs=1e-6)
    assert value(metrics, "isotropy of unit vectors") == pytest.approx(1 / np.cosh(1), rel=1e-3)


def test_paired_intervals_are_narrower_than_independent_ones(data, analysis):
    noisy = data[0] + np.random.default_rng(5).normal(size=data[0].shape).astype(np.float32) * 0.1
    other = analyse_embeddings(noisy, data[1], seed=0)
    row = compare_embeddings(analysis, other)["silhouette"]
    widths = [float(np.ptp(one.metrics["silhouette"].ci95)) for one in (analysis, other)]
    assert row.ci95[1] - row.ci95[0] < 0.5 * np.hypot(*widths)


def test_a_comparison_needs_the_same_images_and_halves(data, analysis):
    with pytest.raises(ValueError, match="labels differ"):
        compare_embeddings(analysis, analyse_embeddings(*clustered(seed=1), seed=0))
    with pytest.raises(ValueError, match="seeds 0 and 1"):
        compare_embeddings(analysis, analyse_embeddings(*data, seed=1))


def test_progress_ends_with_every_step_done(data):
    told: list[tuple[str, float]] = []
    analyse_embeddings(*data, seed=0, progress=lambda step, share: told.append((step, share)))
    assert ("pairs", 1.0) in told
    assert told[-1] == ("classes", 1.0)


def with_rows(rows: list[int], fill: float) -> np.ndarray:
    vectors = np.ones((9, 4)) + np.arange(9)[:, None]
    vectors[rows] = fill
    return vectors


@pytest.mark.parametrize(
    ("vectors", "labels", "sentence"),
    [
        (np.ones((9, 4)), np.zeros(8), "must go together"),
        (np.ones((9, 1)), np.arange(9) % 2, "at least 2 dimensions"),
        (with_rows([2, 5], np.nan), np.arange(9) % 2, r"2 rows \(2, 5\) is not finite"),
        (with_rows([0], 0.0), np.arange(9) % 2, r"1 row \(0\) is zero"),
        (with_rows([0], 3.0), np.zeros(9), "at least 2; got 1"),
        (with_rows([0], 3.0), np.arange(9), "no class has two images"),
        (np.repeat(np.eye(2), 5, axis=0), np.repeat([0, 1], 5), "its class's mean embedding"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(vectors, labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        analyse_embeddings(vectors, labels, seed=0)


def test_the_smallest_sets_have_metrics():
    vectors = np.random.default_rng(0).normal(size=(6, 3))
    metrics = analyse_embeddings(vectors, [0, 0, 0, 1, 1, 1], seed=0).metrics
    assert np.isfinite([estimate.value for estimate in metrics.values()]).all()
