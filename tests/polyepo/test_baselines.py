"""Other papers' advantages, against hand-computed numbers, sums written out in rationals, and each other."""

from fractions import Fraction
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyepo.advantages import DEGENERATE, grpo_advantages, marginal_set_advantages
from polyepo.baselines import (
    darling_advantages,
    distinct_all_sizes_advantages,
    f_grpo_advantages,
    maxrl_advantages,
    pass_at_k_advantages,
    pkpo_advantages,
    uniqueness_advantages,
    w_reinforce_advantages,
)
from polyepo.objectives import DistinctSuccessful, PassAtN

A, B, C, D, E = range(5)
REWARDS, CLUSTERS = [1, 1, 1, 1, 1, 0, 0, 0], [A, A, A, A, B, C, D, E]
groups = st.integers(1, 8).flatmap(
    lambda n: st.tuples(
        st.lists(st.sampled_from([0.0, 1.0]), min_size=n, max_size=n),
        st.lists(st.integers(DEGENERATE, 3), min_size=n, max_size=n),
    )
)


@given(groups)
def test_all_sizes_is_the_mean_over_sizes(group):
    """n times the set advantages of every size n, averaged: enumerated elsewhere, summed here."""
    rewards, clusters = group
    sizes = range(1, len(rewards) + 1)
    summed = sum(n * marginal_set_advantages(rewards, clusters, n, DistinctSuccessful()) for n in sizes)
    np.testing.assert_allclose(distinct_all_sizes_advantages(rewards, clusters), summed / len(rewards), atol=1e-12)


def test_all_sizes_by_hand():
    z = np.array([1 / 5] * 4 + [1 / 2] + [0] * 3)
    np.testing.assert_allclose(distinct_all_sizes_advantages(REWARDS, CLUSTERS), z - z.mean(), atol=1e-15)
    assert not distinct_all_sizes_advantages([1.0] * 4, [DEGENERATE] * 4).any()


def test_maxrl():
    np.testing.assert_allclose(maxrl_advantages([1, 0, 0, 0]), [3, -1, -1, -1])
    np.testing.assert_allclose(maxrl_advantages(REWARDS), [0.6] * 5 + [-1] * 3)
    assert not maxrl_advantages([0, 0, 0]).any()
    assert not maxrl_advantages([1, 1, 1]).any()
    with pytest.raises(ValueError, match="must not be negative"):
        maxrl_advantages([1, -1])


@given(groups, st.integers(1, 8))
def test_pass_at_k_training(group, k):
    rewards, _ = group
    N, c = len(rewards), int(sum(rewards))
    if k > N:
        with pytest.raises(ValueError, match=f"between 1 and N = {N}"):
            pass_at_k_advantages(rewards, k)
        return
    rho = 1 - Fraction(comb(N - c, k), comb(N, k))
    got = pass_at_k_advantages(rewards, k)
    if rho in (0, 1):
        assert not got.any()
        return
    sigma = sqrt(rho * (1 - rho))
    right = float(1 - rho) / sigma
    wrong = float(1 - rho - Fraction(comb(N - c - 1, k - 1), comb(N - 1, k - 1))) / sigma if c < N else None
    np.testing.assert_allclose(got, [right if r else wrong for r in rewards], atol=1e-12)


@given(groups, st.integers(1, 8))
def test_pkpo(group, k):
    rewards, _ = group
    N, c = len(rewards), int(sum(rewards))
    if k > N:
        return
    missed = Fraction(comb(N - 1 - c, k - 1), comb(N - 1, k - 1)) if c < N else Fraction(0)
    worth = [Fraction(k, N) * (1 if r else 1 - missed) for r in rewards]
    exact = [float(w - sum(worth) / N) for w in worth]
    np.testing.assert_allclose(pkpo_advantages(rewards, k), exact, atol=1e-12)


def test_pkpo_of_real_rewards_is_max_at_k():
    rewards = [0.3, 1.5, -2.0, 0.3, 0.9]
    np.testing.assert_allclose(
        pkpo_advantages(rewards, 3), marginal_set_advantages(rewards, [0] * 5, 3, PassAtN()) * 3 / 5, atol=1e-15
    )


def test_darling():
    z = np.array([4 / 7] * 4 + [1] + [0] * 3)
    np.testing.assert_allclose(darling_advantages(REWARDS, CLUSTERS), z - z.mean())
    np.testing.assert_allclose(darling_advantages([1, 1, 0], [A, A, A]), grpo_advantages([0.1, 0.1, 0]), atol=1e-15)
    np.testing.assert_allclose(darling_advantages([1, 0, 0], [DEGENERATE, A, B]), grpo_advantages([0.1, 0, 0]))
    assert not darling_advantages([1.0], [A]).any()


def test_uniqueness():
    std = sqrt(5 / 8 * 3 / 8)
    expected = [3 / 8 / std / 4] * 4 + [3 / 8 / std] + [-5 / 8 / std] * 3
    np.testing.assert_allclose(uniqueness_advantages(REWARDS, CLUSTERS), expected)
    np.testing.assert_allclose(uniqueness_advantages(REWARDS, CLUSTERS, alpha=0), grpo_advantages(REWARDS) / std)
    np.testing.assert_allclose(
        uniqueness_advantages([1, 0, 0, 0], [DEGENERATE] * 4), uniqueness_advantages([1, 0, 0, 0], [A, B, C, D])
    )


def test_f_grpo():
    std = sqrt(5 / 8 * 3 / 8)
    np.testing.assert_allclose(f_grpo_advantages(REWARDS), 3 / 8 * grpo_advantages(REWARDS) / std)
    np.testing.assert_allclose(f_grpo_advantages(REWARDS, gamma=0), grpo_advantages(REWARDS) / std)
    assert not f_grpo_advantages([1, 1, 1]).any()


def test_w_reinforce():
    np.testing.assert_array_equal(w_reinforce_advantages([1, 0, 0]), [0.1, -1, -1])
    np.testing.assert_array_equal(w_reinforce_advantages([[0, 0], [1, 1]], weight=1), [[-1, -1], [1, 1]])


def test_any_leading_shape_and_refusals():
    rewards = np.zeros((2, 3, 4))
    clusters = np.zeros((2, 3, 4), int)
    for function in (maxrl_advantages, f_grpo_advantages, w_reinforce_advantages):
        assert function(rewards).shape == (2, 3, 4)
        with pytest.raises(ValueError, match="finite"):
            function([np.nan, 0])
    for function in (darling_advantages, uniqueness_advantages, distinct_all_sizes_advantages):
        assert function(rewards, clusters).shape == (2, 3, 4)
        with pytest.raises(ValueError, match="shape of rewards"):
            function([0, 1], [0])
