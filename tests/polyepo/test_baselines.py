"""Other papers' advantages, against hand-computed numbers, sums written out in rationals, and each other."""

from fractions import Fraction
from itertools import combinations
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyepo.advantages import DEGENERATE, grpo_advantages, grpo_div_advantages, marginal_set_advantages
from polyepo.baselines import (
    darling_advantages,
    distinct_all_sizes_advantages,
    dsdr_advantages,
    f_grpo_advantages,
    max_at_k_advantages,
    maxrl_advantages,
    pass_at_k_advantages,
    pkpo_advantages,
    uniqueness_advantages,
    unlikeliness_advantages,
    w_reinforce_advantages,
)
from polyepo.objectives import DistinctSuccessful

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


real_groups = st.lists(st.integers(-4, 4).map(lambda v: v / 4), min_size=1, max_size=7)


def best(rewards, members):
    return max(Fraction(rewards[i]) for i in members)


@given(real_groups, st.integers(1, 7))
def test_pkpo_is_equation_33(rewards, k):
    """Each term of the sum written out; and the mean of the others for k = 1, Eq. 26."""
    N = len(rewards)
    if k > N or N == 1:
        return
    exact = []
    for i in range(N):
        sets = [s for s in combinations(range(N), k) if i in s]
        if k == 1:
            exact.append((Fraction(rewards[i]) - sum(map(Fraction, rewards[:i] + rewards[i + 1 :])) / (N - 1)) / N)
        else:
            exact.append(sum(best(rewards, s) - best(rewards, set(s) - {i}) for s in sets) / Fraction(comb(N, k)))
    got = pkpo_advantages(rewards, k)
    np.testing.assert_allclose(got, [float(e) for e in exact], atol=1e-12)
    assert [a == 0 for a in got] == [e == 0 for e in exact]


def test_pkpo_by_hand():
    """5 of 8 right, k = 4: 1/2 C(3, 3) / C(7, 3) for each right one, and never less than nothing."""
    np.testing.assert_allclose(pkpo_advantages(REWARDS, 4), [1 / 70] * 5 + [0] * 3)
    np.testing.assert_allclose(pkpo_advantages([1, 0, 0, 0], 2), [1 / 2, 0, 0, 0])
    assert not pkpo_advantages([1, 1, 1, 1], 3).any()
    assert not pkpo_advantages([1.0], 1).any()


@given(real_groups, st.integers(1, 7))
def test_max_at_k_is_equation_9_standardized(rewards, k):
    """Its counts w_ij need an order of the responses; sums over sets do not."""
    N = len(rewards)
    if k > N:
        with pytest.raises(ValueError, match=f"between 1 and N = {N}"):
            max_at_k_advantages(rewards, k)
        return
    transformed = [sum(best(rewards, s) for s in combinations(range(N), k) if i in s) for i in range(N)]
    deviations = [t - sum(transformed) / N for t in transformed]
    variance = sum(d * d for d in deviations) / N
    got = max_at_k_advantages(rewards, k)
    if variance == 0:
        assert not got.any()
    else:
        np.testing.assert_allclose(got, [float(d) / sqrt(variance) for d in deviations], atol=1e-9)


def test_best_of_one_is_grpo():
    """Standardized, or by leaving one out."""
    std = sqrt(5 / 8 * 3 / 8)
    for function in (pass_at_k_advantages, max_at_k_advantages):
        np.testing.assert_allclose(function(REWARDS, 1), grpo_advantages(REWARDS) / std)
    np.testing.assert_allclose(pkpo_advantages(REWARDS, 1), grpo_advantages(REWARDS) / 7)


def test_unlikeliness():
    """beta = 1/4, N = 4: the likeliest has rank 3, and what is wrong has no worth to lose."""
    z = np.array([1 - 3 / 16, 1 - 1 / 16, 1, 0])
    got = unlikeliness_advantages([1, 1, 1, 0], [-0.1, -2.0, -3.0, -1.0])
    np.testing.assert_allclose(got, (z - z.mean()) / z.std())
    std = sqrt(5 / 8 * 3 / 8)
    np.testing.assert_allclose(
        unlikeliness_advantages(REWARDS, -np.arange(8.0), beta=0), grpo_advantages(REWARDS) / std
    )
    tied = unlikeliness_advantages([1, 1, 1], [-1.0, -1.0, -2.0])
    assert tied[0] == tied[1] < tied[2]
    assert not unlikeliness_advantages([1, 1, 1], [-1.0] * 3).any()
    assert not unlikeliness_advantages([0, 0, 0], [-1.0, -2.0, -3.0]).any()
    with pytest.raises(ValueError, match="shape of rewards"):
        unlikeliness_advantages([1, 0], [-1.0])


def test_dsdr():
    z = np.array([1 + 0.5 * 4 / 7] * 4 + [1.5] + [0] * 3)
    np.testing.assert_allclose(dsdr_advantages(REWARDS, CLUSTERS, weight=0.5), (z - z.mean()) / z.std())
    std = sqrt(5 / 8 * 3 / 8)
    np.testing.assert_allclose(dsdr_advantages(REWARDS, [A] * 8, weight=0.5), grpo_advantages(REWARDS) / std)
    assert not dsdr_advantages([0, 0, 0], [A, B, C]).any(), "wrong answers that differ earn nothing"
    one, two, none = dsdr_advantages([1, 1, 1], [A, B, DEGENERATE], weight=0.5)
    assert one == two > none
    assert not dsdr_advantages([1.0], [A]).any()


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


RANKED = -np.arange(8.0)
BASELINES = {
    "grpo": lambda r, c: grpo_advantages(r),
    "grpo_div": lambda r, c: grpo_div_advantages(r, c, 1.0),
    "distinct_all_sizes": distinct_all_sizes_advantages,
    "maxrl": lambda r, c: maxrl_advantages(r),
    "pass_at_k": lambda r, c: pass_at_k_advantages(r, (len(r) + 1) // 2),
    "pkpo": lambda r, c: pkpo_advantages(r, (len(r) + 1) // 2),
    "max_at_k": lambda r, c: max_at_k_advantages(r, (len(r) + 1) // 2),
    "darling": darling_advantages,
    "uniqueness": uniqueness_advantages,
    "f_grpo": lambda r, c: f_grpo_advantages(r),
    "w_reinforce": lambda r, c: w_reinforce_advantages(r),
    "unlikeliness": lambda r, c: unlikeliness_advantages(r, RANKED[: len(r)], beta=1.0),
    "dsdr": dsdr_advantages,
}


@pytest.mark.parametrize("name", BASELINES)
@settings(max_examples=40, deadline=None)
@given(groups)
def test_no_wrong_response_is_worth_more_than_a_right_one(name, group):
    """GRPO+DIV is the one that can turn signs, from a weight above 1 on."""
    rewards, clusters = np.array(group[0]), np.array(group[1])
    got = BASELINES[name](rewards, clusters)
    if 0 < rewards.sum() < len(rewards):
        assert got[rewards == 1].min() >= got[rewards == 0].max() - 1e-12


def test_a_large_bonus_turns_signs():
    got = grpo_div_advantages(REWARDS, [A, A, A, A, A, B, C, D], 2.0)
    assert (got[:5] < 0).all()
    assert (got[5:] > 0).all()


def test_any_leading_shape_and_refusals():
    rewards = np.zeros((2, 3, 4))
    clusters = np.zeros((2, 3, 4), int)
    for function in (maxrl_advantages, f_grpo_advantages, w_reinforce_advantages):
        assert function(rewards).shape == (2, 3, 4)
        with pytest.raises(ValueError, match="finite"):
            function([np.nan, 0])
    for function in (darling_advantages, uniqueness_advantages, dsdr_advantages, distinct_all_sizes_advantages):
        assert function(rewards, clusters).shape == (2, 3, 4)
        with pytest.raises(ValueError, match="shape of rewards"):
            function([0, 1], [0])
