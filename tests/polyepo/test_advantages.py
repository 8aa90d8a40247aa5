"""Advantages against exact enumeration in rational numbers, written independently of the library."""

import math
import subprocess
import sys
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyepo.advantages import (
    DEGENERATE,
    MAX_ENUMERATED_SETS,
    grpo_advantages,
    grpo_div_advantages,
    marginal_set_advantages,
)
from polyepo.objectives import (
    BY_NAME,
    DistinctSuccessful,
    Lexicographic,
    MeanPlusDistinct,
    MeanReward,
    PassAtN,
    Polychromic,
)


def exact_score(objective, rewards, clusters):
    mean = sum(rewards) / Fraction(len(rewards))
    if isinstance(objective, MeanReward):
        return mean
    if isinstance(objective, PassAtN):
        return max(rewards)
    strategies = set(clusters) - {DEGENERATE}
    best = [max(0, *(r for r, c in zip(rewards, clusters, strict=True) if c == k)) for k in strategies]
    if isinstance(objective, DistinctSuccessful):
        return sum(best) / Fraction(len(rewards))
    if isinstance(objective, MeanPlusDistinct):
        return mean + sum(best) / Fraction(len(rewards))
    if isinstance(objective, Lexicographic):
        half = Fraction(1, 2)
        solved = [b for b in best if b > half]
        if max(rewards) > half:
            return 1 + Fraction(len(solved), len(rewards))
        return Fraction(len(strategies), len(rewards))
    distinct = len(strategies)
    if objective.require_two_clusters and distinct < 2:
        return Fraction(0)
    return mean * Fraction(distinct, len(rewards))


def exact_advantages(rewards, clusters, set_size, objective):
    sets = list(combinations(range(len(rewards)), set_size))
    scores = [exact_score(objective, [rewards[i] for i in s], [clusters[i] for i in s]) for s in sets]
    baseline = sum(scores) / Fraction(len(sets))
    result = []
    for i in range(len(rewards)):
        mine = [score - baseline for s, score in zip(sets, scores, strict=True) if i in s]
        result.append(sum(mine) / Fraction(len(mine)))
    return result


OBJECTIVES = [Polychromic(require_two_clusters=False), *(made() for made in BY_NAME.values())]


@st.composite
def prompts(draw, max_responses=7):
    num_responses = draw(st.integers(1, max_responses))
    reward = st.one_of(st.sampled_from([0, 1]), st.integers(-8, 8)).map(lambda v: Fraction(v, 4))
    rewards = draw(st.lists(reward, min_size=num_responses, max_size=num_responses))
    num_clusters = draw(st.integers(0, 4))
    cluster = st.integers(DEGENERATE, num_clusters - 1)
    clusters = draw(st.lists(cluster, min_size=num_responses, max_size=num_responses))
    return rewards, clusters, draw(st.integers(1, num_responses))


@settings(max_examples=400, deadline=None)
@given(prompts(), st.sampled_from(OBJECTIVES))
def test_equals_exact_enumeration(prompt, objective):
    rewards, clusters, set_size = prompt
    exact = exact_advantages(rewards, clusters, set_size, objective)
    floats = [float(r) for r in rewards]
    closed = marginal_set_advantages(floats, clusters, set_size, objective)
    listed = marginal_set_advantages(floats, clusters, set_size, lambda r, c: objective(r, c))
    np.testing.assert_allclose(closed, np.array(exact, dtype=float), atol=1e-12, rtol=0)
    np.testing.assert_allclose(listed, np.array(exact, dtype=float), atol=1e-12, rtol=0)
    assert [a == 0 for a in closed] == [e == 0 for e in exact], "exact zeros must be zeros, and nothing else"
    assert abs(closed.sum()) < 1e-12


@settings(max_examples=100, deadline=None)
@given(prompts(), st.sampled_from(OBJECTIVES), st.randoms())
def test_permutation_and_renaming(prompt, objective, random):
    rewards, clusters, set_size = prompt
    floats = np.array([float(r) for r in rewards])
    order = list(range(len(floats)))
    random.shuffle(order)
    names = list(range(100, 110))
    random.shuffle(names)
    before = marginal_set_advantages(floats, clusters, set_size, objective)
    permuted = marginal_set_advantages(floats[order], np.array(clusters)[order], set_size, objective)
    renamed = [DEGENERATE if c == DEGENERATE else names[c] for c in clusters]
    np.testing.assert_allclose(permuted, before[order], atol=1e-13)
    after = marginal_set_advantages(floats, renamed, set_size, objective)
    np.testing.assert_allclose(after, before, atol=1e-13)


A, B, C, D, E = range(5)
WITH_DEGENERATES = [0, 1, DEGENERATE, DEGENERATE, DEGENERATE, DEGENERATE, 2, 2]


@pytest.mark.parametrize(
    ("rewards", "clusters", "set_size", "switch", "expected"),
    [
        ([1] * 5 + [0] * 3, [A, A, A, A, B, C, D, E], 2, False, [0.0536] * 4 + [0.2679] + [-0.1607] * 3),
        ([1] * 5 + [0] * 3, [A, A, A, A, B, C, D, E], 4, False, [-0.0036] * 4 + [0.0839] + [-0.0232] * 3),
        ([1] + [0] * 7, [A, B, B, B, B, C, D, E], 4, False, [0.1018] + [-0.0214] * 4 + [-0.0054] * 3),
        ([1] * 5 + [0] * 3, [A] * 5 + [B, C, D], 6, False, [-0.0020] * 5 + [0.0033] * 3),
        ([1] * 8, [A] * 7 + [B], 4, False, [-0.017857] * 7 + [0.125]),
        ([1] * 8, [A] * 7 + [B], 4, True, [-0.035714] * 7 + [0.25]),
        ([1, 1] + [0] * 6, WITH_DEGENERATES, 4, False, [0.069643] * 2 + [-0.030357] * 4 + [-0.008929] * 2),
        ([1, 1] + [0] * 6, WITH_DEGENERATES, 4, True, [0.069643] * 2 + [-0.033929] * 4 + [-0.001786] * 2),
    ],
)
def test_published_numbers(rewards, clusters, set_size, switch, expected):
    got = marginal_set_advantages(rewards, clusters, set_size, Polychromic(switch))
    np.testing.assert_allclose(got, expected, atol=5.1e-5)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (DistinctSuccessful(), [-0.014286] * 4 + [0.121429] + [-0.021429] * 3),
        (Lexicographic(), [-0.014286] * 4 + [0.121429] + [-0.021429] * 3),
        (MeanPlusDistinct(), [0.039286] * 4 + [0.175] + [-0.110714] * 3),
    ],
)
def test_numbers_of_objectives_that_pay_for_success(objective, expected):
    got = marginal_set_advantages([1] * 5 + [0] * 3, [A, A, A, A, B, C, D, E], 4, objective)
    np.testing.assert_allclose(got, expected, atol=5.1e-7)


@settings(max_examples=300, deadline=None)
@given(prompts(), st.sampled_from([made() for made in BY_NAME.values() if made is not Polychromic]))
def test_right_is_never_worth_less_than_wrong(prompt, objective):
    """No sign flips but by `polychromic`: the others never pay more for a failure, whatever the clusters."""
    rewards, clusters, set_size = prompt
    binary = np.array([float(r > Fraction(1, 2)) for r in rewards])
    got = marginal_set_advantages(binary, clusters, set_size, objective)
    if 0 < binary.sum() < len(binary):
        assert got[binary == 1].min() >= got[binary == 0].max() - 1e-12


def test_only_the_lexicographic_objective_has_a_signal_where_everything_fails():
    failed, clusters = [0.0] * 8, [A, A, A, A, A, B, C, D]
    assert not marginal_set_advantages(failed, clusters, 4, DistinctSuccessful()).any()
    assert not marginal_set_advantages(failed, clusters, 4, MeanPlusDistinct()).any()
    got = marginal_set_advantages(failed, clusters, 4, Lexicographic())
    assert (got[:5] < 0).all()
    assert (got[5:] > 0).all()
    assert not marginal_set_advantages(failed, [DEGENERATE] * 8, 4, Lexicographic()).any()


def test_objectives_reduce_to_known_ones():
    rng = np.random.default_rng(3)
    rewards, clusters = rng.integers(0, 2, (50, 8)).astype(float), rng.integers(0, 4, (50, 8))
    np.testing.assert_allclose(
        marginal_set_advantages(rewards, clusters, 1, DistinctSuccessful()), grpo_advantages(rewards), atol=1e-12
    )
    one = np.zeros_like(clusters)
    for set_size in (2, 4, 7):
        np.testing.assert_allclose(
            marginal_set_advantages(rewards, one, set_size, DistinctSuccessful()) * set_size,
            marginal_set_advantages(rewards, one, set_size, PassAtN()),
            atol=1e-12,
            err_msg="one cluster: the best of the set, out of n",
        )
    assert not marginal_set_advantages(rewards, clusters, 8, DistinctSuccessful()).any(), "n = N: there is one set"


@pytest.mark.parametrize("made", list(BY_NAME.values()))
def test_sets_of_one_are_grpo(made):
    rng = np.random.default_rng(4)
    rewards, clusters = rng.integers(0, 2, (50, 8)).astype(float), rng.integers(0, 4, (50, 8))
    objective = Polychromic(require_two_clusters=False) if made is Polychromic else made()
    times = 2 if made is MeanPlusDistinct else 1
    got = marginal_set_advantages(rewards, clusters, 1, objective)
    np.testing.assert_allclose(got, times * grpo_advantages(rewards), atol=1e-12)


def test_the_mean_reward_is_grpo_times_what_is_stated():
    rewards = np.random.default_rng(5).normal(size=(20, 8))
    got = marginal_set_advantages(rewards, np.zeros((20, 8), int), 3, MeanReward())
    np.testing.assert_allclose(got, grpo_advantages(rewards) * 5 / (3 * 7), atol=1e-12)


def test_known_zeros_are_exact():
    row = [1] * 5 + [0] * 3
    assert (marginal_set_advantages(row, [A] * 5 + [B, C, D], 4, Polychromic(False)) == 0).all()
    assert (marginal_set_advantages([0.0] * 8, range(8), 4) == 0).all()
    assert (marginal_set_advantages([1.0] * 8, [A] * 8, 4) == 0).all()
    assert (marginal_set_advantages(row, range(8), 1) == 0).all()
    assert (marginal_set_advantages(row, range(8), 8) == 0).all()


def test_sets_of_one_and_mean_reward_are_grpo():
    rewards = np.random.default_rng(0).random((5, 8))
    singles = marginal_set_advantages(rewards, np.zeros((5, 8), int), 1, MeanReward())
    np.testing.assert_allclose(singles, grpo_advantages(rewards), atol=1e-15)


@pytest.mark.parametrize("num_responses", [2, 3, 8, 64, 1024])
def test_zeros_are_exact_at_any_size(num_responses):
    """Rewards that are no sums of powers of two: rounding leaves a residue to be told from a signal."""
    rng = np.random.default_rng(num_responses)
    N = num_responses
    rewards, clusters = rng.normal(size=N), rng.integers(-1, N // 2 + 1, N)
    same = np.full(N, 0.1)
    for set_size in {1, 2, N // 2, N - 1, N} - {0}:
        one_cluster = np.where(rng.random(N) < 0.3, DEGENERATE, 0)
        for silent in (
            marginal_set_advantages(rewards, clusters, N, Polychromic()),
            marginal_set_advantages(rewards, clusters, N, Polychromic(False)),
            marginal_set_advantages(rewards, clusters, N, PassAtN()),
            marginal_set_advantages(rewards, clusters, 1, Polychromic()),
            marginal_set_advantages(rewards, one_cluster, set_size, Polychromic()),
            marginal_set_advantages(rewards, np.full(N, DEGENERATE), set_size, Polychromic(False)),
            marginal_set_advantages(same, np.zeros(N, int), set_size, Polychromic(False)),
            marginal_set_advantages(same, np.arange(N), set_size, Polychromic()),
            marginal_set_advantages(same, clusters, set_size, PassAtN()),
            grpo_advantages(same),
        ):
            assert (silent == 0).all()


def test_listed_and_drawn_zeros_are_exact():
    same, clusters = np.full(16, 0.1), np.arange(16)
    listed = marginal_set_advantages(np.full(20, 0.1), np.arange(20), 10, lambda r, c: r.mean(-1))
    assert (listed == 0).all()
    assert (marginal_set_advantages(same, clusters, 8, num_sets=999, seed=0) == 0).all()
    rewards = [0.1, 0.7, 0.3, 0.1, 0.7, 0.3]
    for seed in range(100):
        drawn = marginal_set_advantages(rewards, [0, 1, 2, 0, 1, 2], 3, num_sets=10, seed=seed)
        assert ((drawn == 0) | (np.abs(drawn) > 1e-6)).all()


def test_small_scores_of_large_rewards_are_no_residue():
    def diversity(rewards, clusters):
        return np.array([len(set(row)) for row in clusters.tolist()]) / 2

    large = marginal_set_advantages([1e15, 0, 0, 0], [0, 1, 1, 2], 2, diversity)
    np.testing.assert_allclose(large, np.array([1, -1, -1, 1]) / 12, atol=1e-15)


def test_equal_responses_get_the_same_advantage_to_the_bit():
    rng = np.random.default_rng(0)
    rewards, clusters = rng.integers(0, 3, 64) / 3, rng.integers(-1, 3, 64)
    for objective in OBJECTIVES:
        got = marginal_set_advantages(rewards, clusters, 7, objective)
        alike = rewards if not getattr(objective, "uses_clusters", True) else 10 * clusters + rewards
        for kind in np.unique(alike):
            assert len(set(got[alike == kind])) == 1


@settings(max_examples=200, deadline=None)
@given(prompts(), st.integers(-4, 4))
def test_diversity_baseline_equals_exact(prompt, quarters):
    rewards, clusters, _ = prompt
    N, weight = len(rewards), Fraction(quarters, 4)
    z = list(rewards)
    for i, cluster in enumerate(clusters):
        if cluster != DEGENERATE and N > 1:
            z[i] += weight * (Fraction(N, clusters.count(cluster)) - 1) / (N - 1)
    exact = [float(v - sum(z) / N) for v in z]
    got = grpo_div_advantages([float(r) for r in rewards], clusters, float(weight))
    np.testing.assert_allclose(got, exact, atol=1e-12, rtol=0)


def test_baselines():
    np.testing.assert_allclose(grpo_advantages([1, 0, 0, 0]), [0.75, -0.25, -0.25, -0.25])
    z = np.array([1 + 0.5 * (4 / 1 - 1) / 3, 0.5 * (4 / 2 - 1) / 3, 0.5 * (4 / 2 - 1) / 3, 0.0])
    np.testing.assert_allclose(grpo_div_advantages([1, 0, 0, 0], [A, B, B, DEGENERATE], 0.5), z - z.mean())
    np.testing.assert_array_equal(grpo_div_advantages([1.0], [0], 1.0), [0.0])


def test_all_sets_by_number_equals_closed_form():
    rng = np.random.default_rng(1)
    rewards, clusters = rng.integers(0, 2, (6, 8)), rng.integers(-1, 4, (6, 8))
    all_of_them = marginal_set_advantages(rewards, clusters, 4, num_sets=70, seed=3)
    np.testing.assert_array_equal(all_of_them, marginal_set_advantages(rewards, clusters, 4))


@pytest.mark.parametrize("aggregate", ["mean", "sum"])
def test_drawn_sets_alone_make_baseline_and_advantages(aggregate):
    """The objective notes the sets that it is shown; the advantages are worked out from these."""
    shown = []

    def scores(rewards, clusters):
        shown.extend(clusters.tolist())
        return rewards.max(-1)

    rewards = np.arange(12.0)
    got = marginal_set_advantages(rewards, range(12), 3, scores, num_sets=5, seed=4, aggregate=aggregate)
    assert len({frozenset(s) for s in shown}) == len(shown) == 5
    baseline = Fraction(sum(max(s) for s in shown), 5)
    for i in range(12):
        mine = [max(s) - baseline for s in shown if i in s]
        divisor = len(mine) if mine and aggregate == "mean" else 1
        assert got[i] == pytest.approx(float(sum(mine) / Fraction(divisor)), abs=1e-12)


def test_seed_fixes_the_sets_and_prompts_draw_their_own():
    rewards, clusters = np.tile(np.arange(20.0), (2, 1)), np.tile(np.arange(20), (2, 1))
    first, again, other = (
        marginal_set_advantages(rewards, clusters, set_size=8, num_sets=9, objective=PassAtN(), seed=seed)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first[0] != first[1]).any()


@pytest.mark.parametrize(("num_responses", "set_size"), [(64, 8), (1024, 256)])
def test_drawing_lists_nothing(num_responses, set_size):
    rewards = np.arange(float(num_responses))
    got = marginal_set_advantages(rewards, range(num_responses), set_size, num_sets=20, seed=0)
    assert np.isfinite(got).all()
    assert (got != 0).any()


@pytest.mark.parametrize(("num_responses", "set_size", "num_sets"), [(6, 3, 5), (20, 10, 300), (64, 8, 50)])
def test_drawn_sets_are_distinct_and_uniform(num_responses, set_size, num_sets):
    from polyepo.advantages import _drawn_sets

    rng = np.random.default_rng(0)
    rounds = 400
    members = np.zeros(num_responses)
    for _ in range(rounds):
        sets = _drawn_sets(num_responses, set_size, num_sets, rng)
        assert len({tuple(sorted(s)) for s in sets.tolist()}) == num_sets == len(sets)
        assert all(len(set(s)) == set_size for s in sets.tolist())
        members += np.bincount(sets.ravel(), minlength=num_responses)
    share = members / (rounds * num_sets)
    tolerance = 5 * math.sqrt(0.25 / (rounds * num_sets))
    assert np.abs(share - set_size / num_responses).max() < tolerance


def test_drawn_sets_are_uniform_over_sets():
    from polyepo.advantages import _drawn_sets

    rng = np.random.default_rng(0)
    seen = {}
    for _ in range(4000):
        for chosen in _drawn_sets(5, 2, 3, rng).tolist():
            seen[tuple(chosen)] = seen.get(tuple(chosen), 0) + 1
    assert len(seen) == 10
    assert max(abs(count - 1200) for count in seen.values()) < 5 * math.sqrt(1200)


def test_response_in_no_drawn_set_has_no_advantage():
    got = marginal_set_advantages(np.arange(20.0), range(20), 2, num_sets=1, seed=0)
    assert (got == 0).all()


def test_drawn_sets_average_to_all_sets():
    rng = np.random.default_rng(2)
    rewards, clusters = rng.integers(0, 2, 10), rng.integers(-1, 4, 10)
    draws = [marginal_set_advantages(rewards, clusters, 4, num_sets=120, seed=s) for s in range(400)]
    np.testing.assert_allclose(np.mean(draws, 0), marginal_set_advantages(rewards, clusters, 4), atol=2e-3)


def test_sum_is_mean_times_sets_with_each_response():
    rewards, clusters = [1, 0, 1, 0, 0, 0, 1, 1], [0, 1, 2, 1, 0, -1, 2, 3]
    mean = marginal_set_advantages(rewards, clusters, 4)
    np.testing.assert_allclose(marginal_set_advantages(rewards, clusters, 4, aggregate="sum"), 35 * mean)


def test_sum_that_overflows_is_refused():
    rewards, clusters = np.arange(2048.0), np.zeros(2048, int)
    with pytest.raises(ValueError, match="overflows at N = 2048, n = 1024"):
        marginal_set_advantages(rewards, clusters, 1024, PassAtN(), aggregate="sum")


@pytest.mark.parametrize("switch", [False, True])
@pytest.mark.parametrize("set_size", [2, 4, 256])
def test_large_groups_match_exact_classes(set_size, switch):
    """N = 1024 against exact integer binomials: responses of one (reward, cluster) class are alike."""
    num_responses = 1024
    classes = {(1, 0): 500, (0, 0): 24, (1, 1): 100, (0, 2): 300, (0, DEGENERATE): 60, (1, DEGENERATE): 40}
    rewards = np.concatenate([[float(r)] * count for (r, _), count in classes.items()])
    clusters = np.concatenate([[c] * count for (_, c), count in classes.items()])
    sizes = {0: 524, 1: 100, 2: 300}

    def hit(fixed, k, drawn_from, draws):
        """Chance that cluster k is in the set, given the clusters of fixed members."""
        if k in fixed:
            return Fraction(1)
        return 1 - Fraction(math.comb(drawn_from - sizes[k], draws), math.comb(drawn_from, draws))

    def expected(reward, cluster):
        own = sum(hit({cluster}, k, num_responses - 1, set_size - 1) for k in sizes)
        total = reward * own
        for (other_reward, other_cluster), count in classes.items():
            others = count - ((other_reward, other_cluster) == (reward, cluster))
            both = sum(hit({cluster, other_cluster}, k, num_responses - 2, set_size - 2) for k in sizes)
            total += other_reward * others * Fraction(set_size - 1, num_responses - 1) * both
        return (total - switch * single(reward, cluster)) / set_size**2

    def single(reward, cluster):
        """Summed rewards of the sets with one non-degenerate cluster that hold such a response, per set."""
        total = 0
        for k in sizes if cluster == DEGENERATE else [cluster]:
            for keys, sign in (({k, DEGENERATE}, 1), ({DEGENERATE}, -1)):
                if cluster not in keys:
                    continue
                pool = sum(count for (_, c), count in classes.items() if c in keys)
                rest = sum(r * count for (r, c), count in classes.items() if c in keys) - reward
                inside = reward * math.comb(pool - 1, set_size - 1) + rest * math.comb(pool - 2, set_size - 2)
                total += sign * inside
        return Fraction(total, math.comb(num_responses - 1, set_size - 1))

    exact = {key: expected(*key) for key in classes}
    mean = sum(exact[key] * count for key, count in classes.items()) / num_responses
    got = marginal_set_advantages(rewards, clusters, set_size, Polychromic(switch))
    want = np.concatenate([[float(exact[key] - mean)] * count for key, count in classes.items()])
    np.testing.assert_allclose(got, want, atol=1e-12, rtol=0)
    assert abs(got.sum()) < 1e-12


def test_large_groups_match_exact_pass_at_n():
    """n = 256 of 1024 with 3 graded best responses: the best of a set has one of three values."""
    N, n = 1024, 256
    rewards = np.zeros(N)
    rewards[:3] = [0.5, 1.0, 0.5]

    def none_of(group):  # chance that the n - 1 others miss a group
        return Fraction(math.comb(N - 1 - group, n - 1), math.comb(N - 1, n - 1))

    exact = np.array([Fraction(0)] * N)
    exact[1] = Fraction(1)
    exact[[0, 2]] = 1 - none_of(1) / 2
    exact[3:] = 1 - none_of(1) / 2 - none_of(3) / 2
    want = (exact - exact.sum() / N).astype(float)
    got = marginal_set_advantages(rewards, np.zeros(N, int), n, PassAtN())
    np.testing.assert_allclose(got, want, atol=1e-12, rtol=0)


def test_any_leading_shape():
    rng = np.random.default_rng(0)
    rewards, clusters = rng.random((2, 3, 6)), rng.integers(-1, 3, (2, 3, 6))
    got = marginal_set_advantages(rewards, clusters, 3)
    assert got.shape == (2, 3, 6)
    np.testing.assert_array_equal(got[1, 2], marginal_set_advantages(rewards[1, 2], clusters[1, 2], 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"set_size": 9}, "set_size must lie between 1 and N = 8, but is 9"),
        ({"set_size": 0}, "set_size"),
        ({"num_sets": 71}, r"num_sets must lie between 1 and C\(8, 4\) = 70, but is 71"),
        ({"num_sets": 0}, "num_sets"),
        ({"set_size": 2.5}, "set_size must lie between 1 and N = 8, but is 2.5"),
        ({"objective": lambda r, c: r}, r"objective .* one score for each of 70 sets"),
        ({"objective": lambda r, c: r.mean(-1) * math.nan}, "objective must return finite scores"),
        ({"rewards": [math.nan] + [0] * 7}, "rewards must be finite"),
        ({"rewards": [math.inf] + [0] * 7}, "rewards must be finite"),
        ({"clusters": [-2] + [0] * 7}, "clusters must be >= -1"),
        ({"clusters": [0.5] * 8}, "clusters must be integers"),
        ({"clusters": [0] * 7}, "shape"),
        ({"aggregate": "max"}, "aggregate"),
    ],
)
def test_refusals(change, message):
    arguments = {"rewards": [0.0] * 8, "clusters": [0] * 8, "set_size": 4} | change
    with pytest.raises(ValueError, match=message):
        marginal_set_advantages(**arguments)


def test_enumeration_of_too_many_sets_is_refused():
    message = rf"C\(64, 8\) = {math.comb(64, 8)} .* {MAX_ENUMERATED_SETS}.* num_sets=K"
    with pytest.raises(ValueError, match=message):
        marginal_set_advantages(np.zeros(64), np.zeros(64, int), 8, lambda r, c: r.mean(-1))
    with pytest.raises(ValueError, match=f"num_sets must be at most {MAX_ENUMERATED_SETS}"):
        marginal_set_advantages(np.zeros(64), np.zeros(64, int), 8, num_sets=MAX_ENUMERATED_SETS + 1)


def test_needs_numpy_alone():
    code = (
        "import sys, polyepo.advantages, polyepo.metrics;"
        "heavy = {'torch', 'transformers', 'prefect', 'pandas', 'pyarrow', 'scipy', 'duckdb', 'pydantic'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
