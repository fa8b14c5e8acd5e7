"""Episodes: what each one holds, that it depends on (seed, index) alone, and intervals against known answers."""

import numpy as np
import pytest
from scipy import stats

from schane_cli.fewshot.episodes import EpisodeBlocks, Episodes, disjoint_episodes, draw_episodes
from schane_cli.metrics.intervals import paired_comparison, t_interval

# Unsorted labels with gaps and classes of different size.
LABELS = np.random.default_rng(0).permutation(np.repeat([3, 7, 8, 20, 21, 40], [25, 30, 40, 25, 60, 33]))
PROTOCOL = {"n_way": 4, "n_shot": 2, "n_query": 5, "seed": 1}


def same(a: Episodes, b: Episodes) -> bool:
    return a.hash() == b.hash()


def part(episodes: Episodes, where: slice) -> Episodes:
    return Episodes(
        episodes.support[where], episodes.query[where], episodes.query_labels[where], episodes.classes[where]
    )


def check_one_episode(episodes: Episodes, e: int) -> None:
    """Distinct classes, distinct images, each image of the class its way stands for."""
    assert len(set(episodes.classes[e])) == episodes.classes.shape[1]
    images = [*episodes.support[e].ravel(), *episodes.query[e]]
    assert len(set(images)) == len(images)
    for way, label in enumerate(episodes.classes[e]):
        assert (LABELS[episodes.support[e, way]] == label).all()
    assert (LABELS[episodes.query[e]] == episodes.classes[e][episodes.query_labels[e]]).all()


@pytest.mark.parametrize("dirichlet", [None, 2.0])
def test_an_episode_holds_distinct_images_of_the_classes_it_names(dirichlet: float | None) -> None:
    protocol = PROTOCOL if dirichlet is None else {**PROTOCOL, "n_shot": 1, "n_query": 5}
    episodes = draw_episodes(LABELS, **protocol, n_episodes=200, dirichlet=dirichlet)
    assert episodes.support.shape == (200, 4, protocol["n_shot"])
    assert episodes.query.shape == episodes.query_labels.shape == (200, 20)
    for e in range(200):
        check_one_episode(episodes, e)


def test_balanced_episodes_have_the_same_number_of_queries_in_every_class() -> None:
    episodes = draw_episodes(LABELS, **PROTOCOL, n_episodes=50)
    assert (np.sort(episodes.query_labels, axis=1) == np.repeat(np.arange(4), 5)).all()


@pytest.mark.parametrize("n_episodes", [1, 2, 3, 4, 5, 97])
def test_an_episode_depends_on_its_number_and_not_on_how_many_are_drawn(n_episodes: int) -> None:
    many = draw_episodes(LABELS, **PROTOCOL, n_episodes=120)
    few = draw_episodes(LABELS, **PROTOCOL, n_episodes=n_episodes)
    assert same(part(many, slice(0, n_episodes)), few)


@pytest.mark.parametrize("size", [1, 7, 50])
def test_episodes_drawn_in_blocks_are_those_drawn_at_once(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EpisodeBlocks, "BLOCK", size)
    blocks = EpisodeBlocks(LABELS, **PROTOCOL, n_episodes=50, dirichlet=2.0)
    whole = draw_episodes(LABELS, **PROTOCOL, n_episodes=50, dirichlet=2.0)
    assert len(blocks) == 50
    for start, block in zip(range(0, 50, size), blocks, strict=True):
        assert same(block, part(whole, slice(start, start + size)))
    assert (blocks.hash() == whole.hash()) == (size == 50)


def test_blocks_of_episodes_refuse_at_once_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="7 ways asked for"):
        EpisodeBlocks(LABELS, **{**PROTOCOL, "n_way": 7}, n_episodes=50)
    with pytest.raises(ValueError, match="episodes must be at least 1"):
        EpisodeBlocks(LABELS, **PROTOCOL, n_episodes=0)


def test_the_episodes_of_a_seed_are_these_on_every_machine() -> None:
    """Fixed once; a change here means that saved results can no longer be compared with new ones."""
    labels = np.repeat(np.arange(20), 600)
    episodes = draw_episodes(labels, n_way=5, n_shot=5, n_query=15, n_episodes=600, seed=0)
    assert episodes.hash() == "16a745152f974f60ad7f5fa8037d4c83d7c42bd8d424fc29b7f82f4a6622c7d7"
    skewed = draw_episodes(labels, n_way=5, n_shot=5, n_query=15, n_episodes=600, seed=0, dirichlet=2.0)
    assert skewed.hash() == "5ba42f9f09efaa696269f479b8b101c443fdbfb8cd6a8dbb07a6282f98f30806"
    disjoint = disjoint_episodes(labels, n_way=5, n_shot=5, n_query=15, seed=0)
    assert disjoint.hash() == "27d7458421c1566ebbb64fe8020f911b4b87c84ccb48e79716313b6cecae772f"


def test_another_seed_gives_other_episodes() -> None:
    hashes = {draw_episodes(LABELS, **{**PROTOCOL, "seed": seed}, n_episodes=5).hash() for seed in range(20)}
    assert len(hashes) == 20


def test_fewer_shots_are_the_first_shots_with_the_same_classes_and_queries() -> None:
    one, five = (draw_episodes(LABELS, n_way=4, n_shot=k, n_query=6, n_episodes=30, seed=2) for k in (1, 5))
    assert (one.query == five.query).all()
    assert (one.classes == five.classes).all()
    assert (one.support == five.support[:, :, :1]).all()


def test_classes_and_images_are_drawn_uniformly_and_episodes_independently() -> None:
    episodes = draw_episodes(np.repeat([0, 1, 2], 6), n_way=2, n_shot=1, n_query=2, n_episodes=20_000, seed=3)
    pairs = episodes.classes[:, 0] * 3 + episodes.classes[:, 1]
    counts = np.unique(pairs, return_counts=True)[1]
    assert stats.chisquare(counts).pvalue > 1e-3
    assert len(counts) == 6
    # Ordered pairs (support, first query) of class 0: 6 * 5 equally likely.
    rows = episodes.classes[:, 0] == 0
    chosen = episodes.support[rows, 0, 0] * 6 + episodes.query[rows, 0]
    counts = np.unique(chosen, return_counts=True)[1]
    assert len(counts) == 30
    assert stats.chisquare(counts).pvalue > 1e-3
    # One episode says nothing about the next.
    follows = np.unique(pairs[:-1] * 9 + pairs[1:], return_counts=True)[1]
    assert len(follows) == 36
    assert stats.chisquare(follows).pvalue > 1e-3


def test_the_images_drawn_are_those_of_a_fisher_yates_shuffle() -> None:
    """Taking every image of the class must give each exactly once, whatever the order."""
    episodes = draw_episodes(np.repeat([0, 1], 9), n_way=2, n_shot=4, n_query=5, n_episodes=300, seed=0)
    for e in range(300):
        assert sorted([*episodes.support[e].ravel(), *episodes.query[e]]) == list(range(18))


def test_dirichlet_queries_have_the_spread_of_a_dirichlet_sample() -> None:
    labels = np.repeat(np.arange(5), 400)
    episodes = draw_episodes(labels, n_way=5, n_shot=1, n_query=60, n_episodes=3000, seed=0, dirichlet=2.0)
    counts = np.stack([(episodes.query_labels == way).sum(axis=1) for way in range(5)], axis=1)
    assert (counts.sum(axis=1) == 300).all()
    # Each proportion is Beta(2, 8); rounding to 1/300 is far below what the test sees at 3,000 draws.
    assert stats.kstest(counts[:, 2] / 300 + 1e-9, stats.beta(2, 8).cdf).pvalue > 1e-3


def test_disjoint_episodes_share_no_image_and_use_nearly_all() -> None:
    episodes = disjoint_episodes(LABELS, n_way=3, n_shot=1, n_query=4, seed=0)
    for e in range(len(episodes)):
        check_one_episode(episodes, e)
    images = np.concatenate([episodes.support.ravel(), episodes.query.ravel()])
    assert len(np.unique(images)) == len(images)
    # At the end fewer than three classes have five images left.
    left = [int((label == LABELS).sum() - (LABELS[images] == label).sum()) for label in np.unique(LABELS)]
    assert sum(n >= 5 for n in left) < 3
    assert not same(episodes, disjoint_episodes(LABELS, n_way=3, n_shot=1, n_query=4, seed=1))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n_way": 7}, "7 ways asked for, but there are only 6 classes"),
        ({"n_shot": 20, "n_query": 6}, "class 'label-3' has only 25"),
        ({"n_shot": 30}, "class 'label-3' has only 25"),
        ({"n_episodes": 0}, "episodes must be at least 1, not 0"),
        ({"n_query": -1}, "n_query must be at least 1, not -1"),
        ({"seed": -1}, "seed"),
        ({"dirichlet": 0.0}, "above 0"),
        # One class may have to give all 4 x 6 queries.
        ({"n_query": 6, "dirichlet": 2.0}, "24 query images .* ask for at most 5 queries"),
        ({"n_query": 24}, "24 query images .* ask for at most 23 queries"),
    ],
)
def test_a_protocol_that_cannot_be_met_is_refused_in_a_sentence(change: dict[str, object], sentence: str) -> None:
    names = [f"label-{label}" for label in range(41)]
    request = {**PROTOCOL, "n_episodes": 3, "class_names": names, **change}
    with pytest.raises(ValueError, match=sentence):
        draw_episodes(LABELS, **request)  # type: ignore[arg-type]


def test_the_interval_over_episodes_is_the_t_interval_of_a_known_sample() -> None:
    # 1, 2, 3, 4, 5: mean 3, s = sqrt(2.5), t(0.975, 4) = 2.776445.
    half = 2.7764451 * np.sqrt(2.5 / 5)
    estimate = t_interval([1, 2, 3, 4, 5])
    assert estimate.value == 3
    assert estimate.ci95 == pytest.approx((3 - half, 3 + half), abs=1e-6)
    assert t_interval([0.5]).value == 0.5
    assert t_interval([0.5]).ci95 is None


def test_the_interval_over_disjoint_episodes_covers_the_true_accuracy_and_the_usual_one_does_not() -> None:
    """1,500 images, each right with probability 0.7: the closed interval covers 0.7 far less often than it says."""
    labels = np.repeat(np.arange(10), 150)
    usual = draw_episodes(labels, n_way=5, n_shot=1, n_query=14, n_episodes=2000, seed=0)
    disjoint = disjoint_episodes(labels, n_way=5, n_shot=1, n_query=14, seed=0)
    covered = {"usual": 0, "disjoint": 0}
    rng = np.random.default_rng(0)
    for _ in range(200):
        right = rng.random(1500) < 0.7
        for name, episodes in (("usual", usual), ("disjoint", disjoint)):
            low, high = t_interval(right[episodes.query].mean(axis=1)).ci95
            covered[name] += low <= 0.7 <= high
    assert covered["disjoint"] >= 180
    assert covered["usual"] <= 60


def test_a_paired_comparison_is_the_t_test_of_the_differences() -> None:
    rng = np.random.default_rng(0)
    hardness = rng.normal(0.6, 0.1, 500)
    a, b = hardness + rng.normal(0, 0.02, 500), hardness + 0.01 + rng.normal(0, 0.02, 500)
    result = paired_comparison(a, b)
    change = t_interval(b - a)
    assert (result.difference, *result.ci95) == pytest.approx((change.value, *change.ci95))
    assert result.p_value == pytest.approx(stats.ttest_1samp(b - a, 0).pvalue)
    assert result.n == 500
    assert result.ci95[0] > 0
    assert np.ptp(t_interval(a).ci95) > 3 * np.ptp(change.ci95)  # what pairing buys


def test_a_paired_comparison_without_a_spread_gives_no_verdict() -> None:
    a = np.linspace(0.4, 0.8, 20)
    for other, resolution in ((a, 0.0), (a + 0.1, 0.0), (a + 0.01 * (np.arange(20) % 2), 0.01)):
        result = paired_comparison(a, other, resolution)
        assert (result.ci95, result.p_value) == (None, None)
        assert "no spread" in result.reason
    assert "too few" in paired_comparison([0.5, 0.6], [0.7, 0.81]).reason
    with pytest.raises(ValueError, match="not finite"):
        paired_comparison(a, np.where(a > 0.5, np.nan, a))
    with pytest.raises(ValueError, match="same two or more episodes"):
        paired_comparison(a, a[:-1])
