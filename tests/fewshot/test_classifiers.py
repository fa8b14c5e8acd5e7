"""Few-shot classifiers against scikit-learn, scipy and slow loops, on real features and on made ones."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import NearestCentroid
from torch import Tensor

from schane_cli.fewshot import scores as episode_scores
from schane_cli.fewshot.classifiers import CLASSIFIERS, TRANSDUCTIVE, centroid, normalize_features
from schane_cli.fewshot.episodes import Episodes, draw_episodes
from schane_cli.fewshot.logistic_regression import fit_logistic
from schane_cli.fewshot.scores import evaluate_episodes
from schane_cli.metrics.intervals import paired_comparison, t_interval

# CIFAR-FS test classes: fine indices of CIFAR-100 in alphabetical order.
CIFAR_FS_TEST = [2, 5, 8, 21, 34, 42, 46, 58, 60, 62, 69, 70, 77, 83, 84, 86, 94, 95, 98, 99]


def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32) / 16, torch.from_numpy(labels)


@torch.no_grad()
def mobilenet_features(real_data: Path, splits: tuple[str, ...], size: int) -> tuple[Tensor, Tensor]:
    """Features (n, 1280) of the CIFAR-FS test classes by the pretrained MobileNetV2 0.35, and labels 0 to 19."""
    norm = partial(torch.nn.BatchNorm2d, eps=1e-3)
    model = timm.create_model("mobilenetv2_035", num_classes=0, pad_type="same", norm_layer=norm).eval()
    weights = real_data / "weights" / "mobilenetv2_035_tf_imagenet_backbone.pt"
    model.load_state_dict(torch.load(weights, weights_only=True))
    names = sorted(json.loads((real_data / "cifar100" / "files.json").read_text())["train"])
    features, labels = [], []
    for label, name in enumerate(names[i] for i in CIFAR_FS_TEST):
        for split in splits:
            mosaic = np.asarray(Image.open(real_data / "cifar100" / split / f"{name}.webp").convert("RGB"))
            height, width = mosaic.shape[0] // 32, mosaic.shape[1] // 32
            images = mosaic.reshape(height, 32, width, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
            for part in np.array_split(images, max(1, len(images) // 50)):
                resized = [np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.BICUBIC)) for i in part]
                batch = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 127.5 - 1
                features.append(model(batch))
                labels += [label] * len(part)
    return torch.cat(features), torch.tensor(labels)


@pytest.fixture(scope="module")
def cifar_fs(real_data: Path) -> tuple[Tensor, Tensor]:
    """2,000 images: CIFAR-100's test split of the CIFAR-FS test classes, at 64 px."""
    return mobilenet_features(real_data, ("test",), 64)


def one_by_one(estimator: object, features: Tensor, episodes: Episodes) -> np.ndarray:
    """Predictions (E, q) of a scikit-learn estimator fitted again on each episode."""
    rows, n_shot = features.double().numpy(), episodes.support.shape[2]
    ways = np.repeat(np.arange(episodes.support.shape[1]), n_shot)
    fit = estimator.fit  # type: ignore[attr-defined]
    pairs = (episodes.support, episodes.query)
    return np.stack([fit(rows[s.ravel()], ways).predict(rows[q]) for s, q in zip(*pairs, strict=True)])


def converged(c: float = 1.0) -> LogisticRegression:
    # scikit-learn's default tolerance of 1e-4 stops early: up to 5 % of queries change between it and 1e-8.
    return LogisticRegression(C=c, tol=1e-8, max_iter=10_000)


def made(seed: int, n_way: int = 4, n_shot: int = 3, n_query: int = 20, d: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(5, n_way, 1, d, generator=generator, dtype=torch.float64)
    support = centers + torch.randn(5, n_way, n_shot, d, generator=generator, dtype=torch.float64)
    query = centers[:, torch.arange(n_query) % n_way, 0]
    return support, query + torch.randn(5, n_query, d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("n_shot", [1, 5])
@pytest.mark.parametrize(
    ("normalize", "n"),  # scikit-learn needs many more steps on un-normalised features
    [("l2", 250), pytest.param("l2", 1000, marks=pytest.mark.long), ("none", 25)],
)
def test_logistic_regression_agrees_with_scikit_learn_on_real_episodes(
    cifar_fs: tuple[Tensor, Tensor], n_shot: int, normalize: str, n: int
) -> None:
    features, labels = cifar_fs
    episodes = draw_episodes(labels, n_way=5, n_shot=n_shot, n_query=15, n_episodes=n, seed=0)
    ours = evaluate_episodes(features, episodes, classifier="logistic", normalize=normalize)
    theirs = one_by_one(converged(), normalize_features(features, normalize), episodes)
    assert (ours.predictions == theirs).mean() >= 0.995
    assert abs(ours.correct.mean() - (theirs == episodes.query_labels).mean()) <= 0.0005


@pytest.mark.parametrize("c", [0.1, 1.0, 30.0])
def test_logistic_regression_finds_the_weights_scikit_learn_finds(c: float) -> None:
    features, labels = digits()
    episodes = draw_episodes(labels, n_way=10, n_shot=7, n_query=5, n_episodes=4, seed=0)
    support = features[torch.from_numpy(episodes.support)].flatten(1, 2).double()  # (4, 70, 64)
    targets = torch.eye(10, dtype=torch.float64).repeat_interleave(7, dim=0)
    coefficients, intercept = fit_logistic(support @ support.mT, targets, C=c, tolerance=1e-10)
    for e in range(4):
        model = LogisticRegression(C=c, tol=1e-10, max_iter=100_000).fit(support[e], targets.argmax(dim=1))
        np.testing.assert_allclose(coefficients[e].T @ support[e], model.coef_, atol=1e-4)
        np.testing.assert_allclose(intercept[e, 0] - intercept[e].mean(), model.intercept_, atol=1e-4)


@pytest.mark.parametrize("d", [40, 6])  # 6: more support rows than dimensions, so a singular Gram matrix
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1000.0])
def test_logistic_regression_solves_its_optimality_conditions_at_any_feature_norm(scale: float, d: int) -> None:
    support, _ = made(0, n_way=5, n_shot=5, d=d)
    flat = scale * support.flatten(1, 2)
    targets = torch.eye(5, dtype=torch.float64).repeat_interleave(5, dim=0)
    coefficients, intercept = fit_logistic(flat @ flat.mT, targets)
    residual = targets - (flat @ flat.mT @ coefficients + intercept).softmax(dim=-1)
    assert (coefficients - residual).abs().max() <= 2e-5  # 1.2e-5 on some processors: a floor of rounding
    assert residual.sum(dim=1).abs().max() <= 1e-4


def test_repeated_support_images_do_not_break_logistic_regression() -> None:
    support, query = made(1)
    doubled = torch.cat([support, support], dim=2)
    # Twice each image is once at twice the weight.
    torch.testing.assert_close(
        CLASSIFIERS["logistic"].logits(doubled, query).softmax(-1),
        CLASSIFIERS["logistic"].logits(support, query, C=2.0).softmax(-1),
        atol=1e-4,
        rtol=0,
    )


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_ridge_is_scikit_learns_ridge_classifier(cifar_fs: tuple[Tensor, Tensor], alpha: float) -> None:
    features, labels = cifar_fs
    episodes = draw_episodes(labels, n_way=5, n_shot=5, n_query=15, n_episodes=50, seed=1)
    ours = evaluate_episodes(features, episodes, classifier="ridge", normalize="l2", alpha=alpha)
    theirs = one_by_one(RidgeClassifier(alpha=alpha), normalize_features(features, "l2"), episodes)
    assert (ours.predictions == theirs).mean() >= 0.9999


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")  # digits has pixels that are always 0
def test_the_euclidean_centroid_is_scikit_learns_nearest_centroid() -> None:
    features, labels = digits()
    episodes = draw_episodes(labels, n_way=10, n_shot=3, n_query=10, n_episodes=40, seed=0)
    ours = evaluate_episodes(features, episodes, classifier="centroid")
    assert (ours.predictions == one_by_one(NearestCentroid(), features, episodes)).mean() >= 0.9999


def test_simpleshot_matches_a_slow_loop() -> None:
    features, labels = digits()
    episodes = draw_episodes(labels, n_way=4, n_shot=3, n_query=5, n_episodes=5, seed=2)
    mean = features.mean(dim=0)
    ours = evaluate_episodes(features.double(), episodes, classifier="simpleshot", base_mean=mean).predictions
    unit = [row / np.linalg.norm(row) for row in (features - mean).double().numpy()]
    for e, (ways, queries) in enumerate(zip(episodes.support, episodes.query, strict=True)):
        centers = [np.mean([unit[image] for image in way], axis=0) for way in ways]
        for j, image in enumerate(queries):
            assert ours[e, j] == np.argmin([np.linalg.norm(unit[image] - center) for center in centers])


def rectified(support: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """BD-CSPN's prototypes for one episode by loops, and the shifted queries."""
    n_way = len(support)
    query = query + support.mean(axis=(0, 1)) - query.mean(axis=0)
    start = support.mean(axis=1)
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    members: list[list[np.ndarray]] = [list(way) for way in support]
    for q in query:
        members[int(np.argmax([cosine(q, p) for p in start]))].append(q)
    weights = [np.array([np.exp(10 * cosine(x, start[c])) for x in members[c]]) for c in range(n_way)]
    return np.stack([w @ np.stack(x) / w.sum() for w, x in zip(weights, members, strict=True)]), query


def test_bd_cspn_matches_a_slow_loop() -> None:
    support, query = (normalize_features(x, "l2") for x in made(3))
    logits = CLASSIFIERS["bd-cspn"].logits(support, query)
    for e in range(5):
        prototypes, shifted = rectified(support[e].numpy(), query[e].numpy())
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (shifted, prototypes)]
        np.testing.assert_allclose(logits[e], unit[0] @ unit[1].T, atol=1e-10)


def test_laplacianshot_matches_a_slow_loop() -> None:
    support, query = (normalize_features(x, "l2") for x in made(4))
    logits = CLASSIFIERS["laplacianshot"].logits(support, query, smoothness=0.5, neighbours=2, iterations=3)
    for e in range(5):
        prototypes, shifted = rectified(support[e].numpy(), query[e].numpy())
        unary = np.array([[np.sum((q - p) ** 2) for p in prototypes] for q in shifted])
        scores = -unary
        for _ in range(3):
            soft = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            for i, q in enumerate(shifted):
                near = np.argsort(np.linalg.norm(shifted - q, axis=1))[1:3]
                scores[i] = -unary[i] + 0.5 * soft[near].sum(axis=0)
        np.testing.assert_allclose(logits[e], scores, atol=1e-7)


@pytest.mark.parametrize("seed", range(6, 10))
def test_twenty_rounds_of_laplacianshot_predict_what_it_comes_to_rest_at(seed: int) -> None:
    support, query = (normalize_features(x, "l2") for x in made(seed))
    after_20, after_500, after_501 = (
        CLASSIFIERS["laplacianshot"].logits(support, query, iterations=rounds) for rounds in (20, 500, 501)
    )
    assert torch.allclose(after_500, after_501, atol=1e-12)
    assert torch.equal(after_20.argmax(dim=-1), after_500.argmax(dim=-1))


@pytest.mark.parametrize("name", sorted(TRANSDUCTIVE))
def test_transductive_classifiers_take_features_at_unit_length_as_their_papers_do(name: str) -> None:
    features, labels = digits()
    episodes = draw_episodes(labels, n_way=5, n_shot=1, n_query=5, n_episodes=10, seed=0)
    long = features * torch.linspace(1, 100, len(features))[:, None]
    at_unit_length = evaluate_episodes(features, episodes, classifier=name).predictions
    assert (evaluate_episodes(long, episodes, classifier=name).predictions == at_unit_length).all()


def test_transductive_classifiers_look_at_the_other_queries_and_the_rest_do_not() -> None:
    support, query = made(5)
    for name in CLASSIFIERS:
        together = CLASSIFIERS[name].logits(support, query)
        fewer = CLASSIFIERS[name].logits(support, query[:, 5:])
        assert torch.allclose(together[:, 5:], fewer, atol=1e-4) == (name not in TRANSDUCTIVE), name


def test_transductive_classifiers_gain_on_balanced_queries_and_lose_it_on_imbalanced_ones(
    cifar_fs: tuple[Tensor, Tensor],
) -> None:
    features, labels = cifar_fs
    gain = []
    for dirichlet in (None, 0.5):
        episodes = draw_episodes(labels, n_way=5, n_shot=5, n_query=15, n_episodes=300, seed=0, dirichlet=dirichlet)
        rectified, plain = (
            evaluate_episodes(features, episodes, classifier=name, normalize="l2").accuracies
            for name in ("bd-cspn", "centroid")
        )
        gain.append(paired_comparison(plain, rectified))
    balanced, imbalanced = gain
    assert balanced.ci95[0] > 0
    assert imbalanced.ci95[1] < 0


@pytest.mark.parametrize("name", sorted(CLASSIFIERS))
def test_scores_do_not_depend_on_the_chunk(name: str) -> None:
    features, labels = digits()
    episodes = draw_episodes(labels, n_way=5, n_shot=2, n_query=4, n_episodes=23, seed=0)
    mean = features.mean(dim=0)
    seen: list[tuple[int, int]] = []
    whole = evaluate_episodes(features, episodes, classifier=name, base_mean=mean)
    parts = evaluate_episodes(
        features, episodes, classifier=name, base_mean=mean, chunk=10, progress=lambda *done: seen.append(done)
    )
    assert (whole.predictions == parts.predictions).all()
    assert seen == [(10, 23), (20, 23), (23, 23)]
    assert whole.accuracies.shape == (23,)
    assert (whole.accuracies == (whole.predictions == episodes.query_labels).mean(axis=1)).all()


def test_augmented_support_stands_in_for_the_plain_images() -> None:
    features, labels = digits()
    copies = torch.stack([features.roll(k, dims=1) for k in range(3)])
    episodes = draw_episodes(labels, n_way=5, n_shot=2, n_query=4, n_episodes=9, seed=0)
    scores = evaluate_episodes(features, episodes, classifier="logistic", augmented_support=copies, chunk=4)
    for e in range(9):
        rows = np.concatenate([copies[:, i].numpy() for i in episodes.support[e].ravel()])
        model = converged().fit(rows, np.repeat(np.arange(5), 6))
        assert (scores.predictions[e] == model.predict(features[episodes.query[e]].numpy())).all()


def test_what_cannot_be_scored_is_refused_in_a_sentence() -> None:
    features, labels = digits()
    episodes = draw_episodes(labels, n_way=5, n_shot=2, n_query=4, n_episodes=9, seed=0)
    with pytest.raises(ValueError, match="did you mean 'logistic'"):
        evaluate_episodes(features, episodes, classifier="logistics")
    with pytest.raises(ValueError, match="features of another data set"):
        evaluate_episodes(features[:50], episodes, classifier="centroid")
    with pytest.raises(ValueError, match="not finite"):
        evaluate_episodes(features.log() - features.log(), episodes, classifier="centroid")
    with pytest.raises(ValueError, match="base_mean"):
        evaluate_episodes(features, episodes, classifier="simpleshot")
    with pytest.raises(ValueError, match="CL2N on raw features"):
        evaluate_episodes(features, episodes, classifier="simpleshot", normalize="l2")
    with pytest.raises(ValueError, match="unknown normalisation 'l3'"):
        evaluate_episodes(features, episodes, classifier="centroid", normalize="l3")


@pytest.mark.gpu
def test_a_gpu_gives_the_predictions_of_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    features, labels = digits()
    episodes = draw_episodes(labels, n_way=5, n_shot=5, n_query=15, n_episodes=200, seed=0)
    for name in CLASSIFIERS:
        here, there = (
            evaluate_episodes(features, episodes, classifier=name, base_mean=features.mean(dim=0), device=device)
            for device in ("cpu", "cuda")
        )
        assert (here.predictions == there.predictions).mean() >= 0.999, name


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("splits", [("test",), pytest.param(("train", "test"), marks=pytest.mark.long)], ids=len)
def test_the_reference_numbers_on_cifar_fs_are_met(real_data: Path, splits: tuple[str, ...]) -> None:
    """README.md of the test data: nearest centroid by cosine at 112 px, 600 episodes: 66.3 +- 0.9 and 84.0 +- 0.6.

    By Euclidean distance on features of unit length, as here, it is within these intervals; so it is on a sixth of the
    images, those of CIFAR-100's test split.
    """
    features, labels = mobilenet_features(real_data, splits, 112)
    for n_shot, expected, interval in ((1, 0.663, 0.009), (5, 0.840, 0.006)):
        episodes = draw_episodes(labels, n_way=5, n_shot=n_shot, n_query=15, n_episodes=600, seed=0)
        scores = evaluate_episodes(features, episodes, classifier="centroid", normalize="l2")
        estimate = t_interval(scores.accuracies)
        mean, half = estimate.value, np.ptp(estimate.ci95) / 2
        assert abs(mean - expected) <= interval + half
        assert half == pytest.approx(interval, abs=0.001)


@pytest.mark.parametrize("copies", [None, 3])
def test_the_streamed_centroids_of_a_cpu_are_the_classifiers(
    copies: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episode_scores, "TILE_BYTES", 20 * 24 * 4 * 4)  # four episodes of 20 queries in a tile
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 24, generator=generator)
    augmented = None if copies is None else torch.randn(copies, 200, 24, generator=generator)
    episodes = draw_episodes(np.arange(200) % 8, n_way=4, n_shot=3, n_query=5, n_episodes=37, seed=1)
    given = {"augmented_support": augmented}
    streamed = evaluate_episodes(features, episodes, classifier="centroid", **given)
    sources = features.unsqueeze(0) if augmented is None else augmented
    support = torch.cat([one[episodes.support] for one in sources], dim=2)  # (E, n_way, n_shot * copies, d)
    gathered = centroid(support, features[episodes.query]).argmax(dim=-1)
    assert np.array_equal(streamed.predictions, gathered.numpy())
    few = evaluate_episodes(features, episodes, classifier="centroid", chunk=5, **given)
    assert np.array_equal(few.predictions, streamed.predictions)


@pytest.mark.parametrize("norm", [1e3, 1e5, 1e8])
def test_logistic_regression_fits_features_of_any_length_as_scikit_learn_does(norm: float) -> None:
    features, labels = digits()
    features = norm * torch.nn.functional.normalize(features, dim=-1)
    episodes = draw_episodes(labels, n_way=5, n_shot=5, n_query=10, n_episodes=3, seed=0)
    scores = evaluate_episodes(features, episodes, classifier="logistic")
    agreement = []
    for support, query, ways, predicted in zip(
        episodes.support, episodes.query, episodes.query_labels, scores.predictions, strict=True
    ):
        # theirs is fitted at a length where their solver still comes near its optimum
        scale = min(1.0, 1e4 / norm)
        theirs = LogisticRegression(max_iter=5000, tol=1e-8).fit(
            scale * features[support.reshape(-1)].double().numpy(), np.repeat(np.arange(5), 5)
        )
        expected = theirs.predict(scale * features[query].double().numpy())
        agreement.append((expected == predicted).mean())
        assert (predicted == ways).mean() > 0.75
    assert np.mean(agreement) >= 0.95
