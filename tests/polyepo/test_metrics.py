"""Metrics against brute force over every subset."""

import math
from itertools import combinations
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyepo import metrics
from polyepo.metrics import bootstrap_interval
from polyepo.objectives import DEGENERATE

samples = st.integers(1, 7).flatmap(
    lambda n: st.tuples(
        st.lists(st.sampled_from([0.0, 1.0]), min_size=n, max_size=n),
        st.lists(st.integers(-1, 3), min_size=n, max_size=n),
        st.integers(1, n),
    )
)


def successful(rewards, clusters, chosen):
    return {clusters[i] for i in chosen if rewards[i] > 0.5} - {DEGENERATE}


@settings(deadline=None)
@given(samples)
def test_pass_and_div_at_k(sample):
    rewards, clusters, k = sample
    draws = list(combinations(range(len(rewards)), k))
    passed = np.mean([any(rewards[i] for i in draw) for draw in draws])
    distinct = np.mean([len(successful(rewards, clusters, draw)) for draw in draws])
    assert metrics.pass_at_k(len(rewards), int(sum(rewards)), k) == pytest.approx(passed, abs=1e-12)
    assert metrics.div_at_k(rewards, clusters, k) == pytest.approx(distinct, abs=1e-12)
    everything = range(len(rewards))
    found = successful(rewards, clusters, everything)
    assert metrics.distinct_successful_strategies(rewards, clusters) == len(found)
    wrong = {c for r, c in zip(rewards, clusters, strict=True) if r == 0} - {DEGENERATE}
    assert metrics.distinct_unsuccessful_strategies(rewards, clusters) == len(wrong)


@settings(deadline=None)
@given(samples)
def test_distinct_answers_at_k(sample):
    _, clusters, k = sample
    answers = [None if c < 0 else c for c in clusters]
    draws = combinations(answers, k)
    expected = np.mean([len(set(draw) - {None}) for draw in draws])
    assert metrics.distinct_answers_at_k(answers, k) == pytest.approx(expected)


def test_majority():
    answers, correct = ["4", "4", "5", None], [True, True, False, False]
    assert metrics.maj_at_k(answers, correct, 4) == (1.0, 0.5)
    assert metrics.maj_at_k(answers, correct, 1) == (0.5, 0.75)
    assert metrics.maj_at_k(["4", "5"], [True, False], 2) == (0.5, 0.5)
    assert metrics.maj_at_k([None, None], [False, False], 2) == (0.0, 0.0)


def test_majority_of_random_choices_matches_all_choices():
    answers = ["4", "4", "4", "5", "5", "6", None]
    correct = [False, False, False, True, True, False, False]
    all_three = [
        metrics.maj_at_k([answers[i] for i in draw], [correct[i] for i in draw], 3)
        for draw in combinations(range(7), 3)
    ]
    got = metrics.maj_at_k(answers, correct, 3, seed=0, num_draws=4000)
    assert got == pytest.approx(tuple(np.mean(all_three, axis=0)), abs=0.03)
    assert got == metrics.maj_at_k(answers, correct, 3, seed=0, num_draws=4000)


def test_pass_at_k_broadcasts_and_takes_any_integers():
    got = metrics.pass_at_k(np.uint8(8), np.array([0, 1, 8], dtype=np.uint8), np.array([[1], [4]]))
    np.testing.assert_allclose(got, [[0, 1 / 8, 1], [0, 1 / 2, 1]], atol=1e-15)
    assert metrics.pass_at_k(1024, 3, 256) == pytest.approx(1 - math.comb(1021, 256) / math.comb(1024, 256))


def test_batches_and_threshold():
    rewards = np.array([[[0.2, 0.9], [0.4, 0.1]]])
    clusters = np.array([[[0, 1], [2, 2]]])
    assert metrics.distinct_successful_strategies(rewards, clusters).tolist() == [[1, 0]]
    assert metrics.distinct_successful_strategies(rewards, clusters, threshold=0.15).tolist() == [[2, 1]]
    assert metrics.div_at_k(rewards, clusters, 2).shape == (1, 2)
    assert metrics.coverage(rewards[0], threshold=0.3) == 1.0


def test_signal_accounting_names_the_reason():
    rewards = [[1, 0], [0, 0], [1, 1], [1, 1], [1, 0]]
    clusters = [[0, 1], [0, 1], [0, 0], [0, 1], [0, 1]]
    advantages = [[0.1, -0.1], [0, 0], [0, 0], [0, 0], [0, 0]]
    labelled = [True, True, True, True, False]
    got = metrics.signal_accounting(rewards, clusters, advantages, labelled)
    assert got == metrics.SignalAccounting(1, 1, 1, 1, 1)


def test_sign_flips():
    assert metrics.sign_flips([[1, 0], [1, 0]], [[-0.1, 0.1], [0.1, -0.1]]).tolist() == [True, False]


def test_branching():
    assert metrics.branching([[1, 2, 3], [1, 2, 4], [1, 5]]) == ([1, 2, 2], 1)
    assert metrics.branching([[1, 2], [1, 2]]) == ([1, 1], None)
    assert metrics.branching([[1, 2], [1]]) == ([1, 1], 1)
    assert metrics.branching([]) == ([], None)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), max_size=5), max_size=5))
def test_branching_equals_counting_prefixes(responses):
    longest = max(map(len, responses), default=0)
    alive = [len({tuple(r[: p + 1]) for r in responses if len(r) > p}) for p in range(longest)]
    parts = [p for p in range(longest) if len({tuple(r[p : p + 1]) for r in responses}) > 1]
    assert metrics.branching(responses) == (alive, parts[0] if parts else None)


labels = st.integers(1, 7).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(-1, 3), min_size=n, max_size=n) for _ in range(2)])
)


@settings(deadline=None)
@given(labels)
def test_agreement_equals_counting_pairs(pair):
    first, second = pair
    pairs = list(combinations(range(len(first)), 2))
    a = [first[i] == first[j] for i, j in pairs]
    b = [second[i] == second[j] for i, j in pairs]
    same = sum(x == y for x, y in zip(a, b, strict=True))
    assert metrics.pair_agreement(first, second) == pytest.approx(same / len(pairs) if pairs else 1.0)
    both, chance = sum(x and y for x, y in zip(a, b, strict=True)), sum(a) * sum(b) / max(len(pairs), 1)
    best = (sum(a) + sum(b)) / 2
    expected = (both - chance) / (best - chance) if best != chance else 1.0
    assert metrics.adjusted_rand_index(first, second) == pytest.approx(expected)
    assert 0 <= metrics.v_measure(first, second) <= 1 + 1e-12
    assert metrics.v_measure(first, second) == pytest.approx(metrics.v_measure(second, first))


def test_rank_correlation_shares_ranks_of_ties():
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: Pearson of the ranks is 4.5 / sqrt(4.5 * 5).
    assert metrics.rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(math.sqrt(0.9))


def test_coverage():
    rewards = [[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]]
    assert metrics.coverage(rewards) == pytest.approx(2 / 3)
    assert metrics.cover_at_tau(rewards, 0.5) == pytest.approx(1 / 3)


def test_agreement_known_values():
    # Hubert and Arabie's example layout: checked by hand from pair counts.
    first, second = [0, 0, 1, 1], [0, 0, 1, 2]
    assert metrics.adjusted_rand_index(first, second) == pytest.approx(4 / 7)
    assert metrics.pair_agreement(first, second) == pytest.approx(5 / 6)
    assert metrics.v_measure(first, second) == pytest.approx(0.8)
    for measure in (metrics.adjusted_rand_index, metrics.pair_agreement, metrics.v_measure):
        assert measure([5, 5, 7], [0, 0, 1]) == pytest.approx(1.0)
    assert metrics.rank_correlation([1, 2, 3], [10, 20, 15]) == pytest.approx(0.5)
    assert math.isnan(metrics.rank_correlation([1, 1], [1, 2]))
    assert metrics.answer_entropy(["a", "b"]) == pytest.approx(math.log(2))


def test_refusals():
    with pytest.raises(ValueError, match="k must lie"):
        metrics.pass_at_k(4, 1, 5)
    with pytest.raises(ValueError, match="num_correct"):
        metrics.pass_at_k(4, 5, 1)
    with pytest.raises(ValueError, match="NaN"):
        metrics.coverage([[math.nan, 0.0]])
    with pytest.raises(ValueError, match="clusters must have the shape of rewards"):
        metrics.distinct_successful_strategies([[1, 0], [0, 1]], [0, 1])
    with pytest.raises(ValueError, match="advantages must have the shape"):
        metrics.sign_flips([[1, 0]], [0.1, -0.1])
    with pytest.raises(ValueError, match="first and second"):
        metrics.adjusted_rand_index([0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match="correct must have one grade per answer"):
        metrics.maj_at_k(["4", "5"], [True], 1)
    with pytest.raises(ValueError, match="num_draws"):
        metrics.maj_at_k(["4", "5", "6"], [True, False, False], 2, num_draws=0)


def test_bootstrap_intervals_cover_at_the_stated_rate():
    rng = np.random.default_rng(0)
    # Skewed, between 0 and 1, as pass@k of problems is.
    draws, truth = rng.beta(0.6, 1.8, (1000, 80)), 0.25
    for level in (0.8, 0.95):
        ends = [bootstrap_interval(values, level, num_resamples=600, seed=i) for i, values in enumerate(draws)]
        low, high = np.array(ends).T
        covered = ((low <= truth) & (truth <= high)).mean()
        # Four standard errors of the simulation, and a little for 80 problems not being infinitely many.
        assert abs(covered - level) < 4 * math.sqrt(level * (1 - level) / 1000) + 0.01
        misses = (truth < low).mean(), (truth > high).mean()
        assert max(misses) < 2.5 * (1 - level) / 2


def test_bootstrap_interval_by_its_definition():
    # Efron (1987) for the mean, written out: resample by choosing indices, acceleration from the jackknife.
    values = np.random.default_rng(3).gamma(1.0, size=40)
    rng = np.random.default_rng(4)
    means = np.array([rng.choice(values, 40).mean() for _ in range(40_000)])
    jackknife = np.array([np.delete(values, i).mean() for i in range(40)])
    centred = jackknife.mean() - jackknife
    acceleration = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5)
    normal = NormalDist()
    bias = normal.inv_cdf((means < values.mean()).mean())
    expected = []
    for quantile in (0.025, 0.975):
        shifted = bias + normal.inv_cdf(quantile)
        expected.append(np.quantile(means, normal.cdf(bias + shifted / (1 - acceleration * shifted))))
    found = bootstrap_interval(values, num_resamples=40_000, seed=5)
    np.testing.assert_allclose(found, expected, atol=0.02 * (expected[1] - expected[0]))


def test_bootstrap_intervals_of_several_means_are_those_of_each():
    values = np.random.default_rng(0).random((30, 3, 2))
    low, high = bootstrap_interval(values, seed=1)
    assert low.shape == high.shape == (3, 2)
    for index in np.ndindex(3, 2):
        alone = bootstrap_interval(values[(slice(None), *index)], seed=1)
        np.testing.assert_allclose(alone, (low[index], high[index]), rtol=1e-12)
    assert (low < values.mean(0)).all()
    assert (values.mean(0) < high).all()


def test_bootstrap_interval_where_all_problems_agree_and_what_it_refuses():
    assert bootstrap_interval([0.1] * 7) == (pytest.approx(0.1), pytest.approx(0.1))
    assert bootstrap_interval([0.3]) == (0.3, 0.3)
    for values, level in (([], 0.95), ([1, math.nan], 0.95), (1.0, 0.95), ([1, 2], 1.0)):
        with pytest.raises(ValueError, match="must"):
            bootstrap_interval(values, level)
