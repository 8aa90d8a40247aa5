"""Metrics against brute force over every subset."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyepo import metrics
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
    assert metrics.distinct_successful_strategies(rewards, clusters) == len(successful(rewards, clusters, everything))
    wrong = {c for r, c in zip(rewards, clusters, strict=True) if r == 0} - {DEGENERATE}
    assert metrics.distinct_unsuccessful_strategies(rewards, clusters) == len(wrong)


@settings(deadline=None)
@given(samples)
def test_distinct_answers_at_k(sample):
    _, clusters, k = sample
    answers = [None if c < 0 else c for c in clusters]
    draws = combinations(answers, k)
    assert metrics.distinct_answers_at_k(answers, k) == pytest.approx(np.mean([len(set(d) - {None}) for d in draws]))


def test_majority():
    answers, correct = ["4", "4", "5", None], [True, True, False, False]
    assert metrics.maj_at_k(answers, correct, 4) == (1.0, 0.5)
    assert metrics.maj_at_k(answers, correct, 1) == (0.5, 0.75)
    assert metrics.maj_at_k(["4", "5"], [True, False], 2) == (0.5, 0.5)


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
