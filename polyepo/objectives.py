"""Set objectives: how good is a *set* of n responses to one prompt? (arXiv 2604.17654)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

DEGENERATE = -1
"""Cluster of gibberish, off-topic text, bare guesses and reward hacking: it never counts as a strategy."""


class SetObjective(Protocol):
    """Any symmetric function of the rewards and clusters in a set.

    An objective that never looks at the clusters has `uses_clusters = False`: it needs no labels.
    An objective that also has `expected_scores(rewards_PN, clusters_PN, set_size)`, as those below do, is
    averaged over all sets in closed form; any other is enumerated or sampled. Closed forms are taken to round
    at the scale of the largest |reward|.
    """

    def __call__(self, rewards: Floats, clusters: Ints, /) -> Floats:
        """Set scores (...,) of rewards (..., n) and clusters (..., n)."""
        ...


@dataclass(frozen=True)
class Polychromic:
    """Mean reward of the set times its diversity: (distinct non-degenerate clusters) / n (arXiv 2604.17654).

    Args:
        require_two_clusters: a set with fewer than two non-degenerate clusters scores 0 (the indicator of the
            paper's Algorithm 1).
    """

    require_two_clusters: bool = True

    def __call__(self, rewards: Floats, clusters: Ints, /) -> Floats:
        """Set scores (...,) of rewards (..., n) and clusters (..., n)."""
        distinct = num_distinct(clusters)
        counted = np.where(distinct > 1, distinct, 0) if self.require_two_clusters else distinct
        return rewards.mean(-1) * counted / rewards.shape[-1]

    def expected_scores(self, rewards_PN: Floats, clusters_PN: Ints, set_size: int) -> Floats:
        """Mean score of all sets of `set_size` that contain response i, (P, N), without enumerating them.

        The score is a sum over pairs (response, cluster), so its mean over sets is a sum of hypergeometric
        probabilities. With s_k the size of cluster k, R_k its total reward, R the prompt's and
        hit(s; M, m) = 1 - C(M-s, m) / C(M, m) the chance that m draws from M items touch a given s of them,
        a response i in cluster a has n^2 E[f | i in G] =

            r_i (1 + sum_{k!=a} hit(s_k; N-1, n-1))
            + (n-1)/(N-1) [ (R - r_i) (1 + sum_{k!=a} hit(s_k; N-2, n-2))
                            + sum_{k!=a} R_k (1 - hit(s_k; N-2, n-2)) ]

        where a degenerate i has no cluster of its own (no "1", no k left out). `require_two_clusters` takes
        away the sets that hold a single cluster, with D degenerate responses of total reward R_D and a pool
        of m = s_a + D:

            ( r_i C(m-1, n-1) + (R_a + R_D - r_i) C(m-2, n-2) ) / C(N-1, n-1)

        and, for a degenerate i, the sum over k of the same for the pool s_k + D, each minus that for the pool
        D. Cost: O(N) per prompt after tables. Responses alike in reward and cluster get bitwise one value.
        """
        num_responses = rewards_PN.shape[-1]
        miss1 = miss_table(num_responses - 1, set_size - 1, num_responses)
        miss2 = miss_table(num_responses - 2, set_size - 2, num_responses)
        pair = (set_size - 1) / max(num_responses - 1, 1)
        own_PN, sizes_PK, rewards_PK, ok_PN = _clusters(rewards_PN, clusters_PN)
        hit1_PK, hit2_PK = 1 - miss1[sizes_PK], 1 - miss2[sizes_PK]

        def others(values_PK: Floats) -> Floats:
            """Sum over all clusters but the response's own."""
            own = np.where(ok_PN, np.take_along_axis(values_PK, own_PN, -1), 0.0)
            return values_PK.sum(-1, keepdims=True) - own

        rest_PN = rewards_PN.sum(-1, keepdims=True) - rewards_PN
        total_PN = rewards_PN * (ok_PN + others(hit1_PK))
        total_PN += pair * (rest_PN * (ok_PN + others(hit2_PK)) + others(rewards_PK * (1 - hit2_PK)))
        if self.require_two_clusters:
            inside1 = miss1[::-1]  # C(m-1, n-1) / C(N-1, n-1) for a pool of m: the N-m outside it are missed
            inside2 = pair * miss2[::-1]
            degenerate_PN = ~ok_PN
            num_degenerate_P1 = degenerate_PN.sum(-1, keepdims=True)
            degenerate_reward_P1 = (rewards_PN * degenerate_PN).sum(-1, keepdims=True)
            pool_PK = np.where(sizes_PK > 0, sizes_PK + num_degenerate_P1, 0)
            pool_reward_PK = np.where(sizes_PK > 0, rewards_PK + degenerate_reward_P1, 0.0)

            def within(pool: Ints, pool_reward: Floats, reward: Floats) -> Floats:
                """Summed rewards of the sets inside a pool that contain i, as a share of all sets with i."""
                return reward * inside1[pool] + (pool_reward - reward) * inside2[pool]

            own_pool = np.take_along_axis(pool_PK, own_PN, -1)
            own_pool_reward = np.take_along_axis(pool_reward_PK, own_PN, -1)
            single_ok = within(own_pool, own_pool_reward, rewards_PN)
            num_clusters_P1 = (sizes_PK > 0).sum(-1, keepdims=True)
            inside1_P1 = (inside1[pool_PK] * (sizes_PK > 0)).sum(-1, keepdims=True)
            inside2_PK = inside2[pool_PK] * (sizes_PK > 0)
            single_degenerate = (
                rewards_PN * (inside1_P1 - inside2_PK.sum(-1, keepdims=True))
                + (inside2_PK * pool_reward_PK).sum(-1, keepdims=True)
                - num_clusters_P1 * within(num_degenerate_P1, degenerate_reward_P1, rewards_PN)
            )
            total_PN -= np.where(ok_PN, single_ok, single_degenerate)
        return total_PN / set_size**2


@dataclass(frozen=True)
class PassAtN:
    """The best reward in the set."""

    uses_clusters: ClassVar[bool] = False

    def __call__(self, rewards: Floats, clusters: Ints, /) -> Floats:
        """Set scores (...,) of rewards (..., n); clusters do not matter."""
        return rewards.max(-1)

    def expected_scores(self, rewards_PN: Floats, clusters_PN: Ints, set_size: int) -> Floats:
        """Mean score of all sets that contain response i, (P, N).

        With the others sorted downwards, their best is the p-th (from 0) with probability
        C(N-2-p, n-2) / C(N-1, n-1); response i replaces it where it is better. Equal rewards get one value.
        """
        num_responses = rewards_PN.shape[-1]
        if set_size == 1:
            return rewards_PN.copy()
        order_PN = np.argsort(-rewards_PN, axis=-1, kind="stable")
        sorted_PN = np.take_along_axis(rewards_PN, order_PN, -1)
        pair = (set_size - 1) / (num_responses - 1)
        weights_N = pair * miss_table(num_responses - 2, set_size - 2, num_responses - 1)
        before_PN = np.zeros_like(sorted_PN)
        before_PN[:, 1:] = np.cumsum(weights_N * sorted_PN, axis=-1)[:, :-1]
        remaining_N = miss_table(num_responses - 1, set_size - 1, num_responses - 1)
        values_PN = before_PN + remaining_N * sorted_PN
        # Ties differ by rounding alone: all take the value of the first of them.
        first_PN = np.where(_starts(sorted_PN), np.arange(num_responses), 0)
        tied_PN = np.take_along_axis(values_PN, np.maximum.accumulate(first_PN, axis=-1), -1)
        expected_PN = np.empty_like(sorted_PN)
        np.put_along_axis(expected_PN, order_PN, tied_PN, -1)
        return expected_PN


@dataclass(frozen=True)
class MeanReward:
    """The mean reward of the set: GRPO up to scale."""

    uses_clusters: ClassVar[bool] = False

    def __call__(self, rewards: Floats, clusters: Ints, /) -> Floats:
        """Set scores (...,) of rewards (..., n); clusters do not matter."""
        return rewards.mean(-1)

    def expected_scores(self, rewards_PN: Floats, clusters_PN: Ints, set_size: int) -> Floats:
        """Mean score of all sets that contain response i, (P, N)."""
        rest_PN = rewards_PN.sum(-1, keepdims=True) - rewards_PN
        pair = (set_size - 1) / max(rewards_PN.shape[-1] - 1, 1)
        return (rewards_PN + pair * rest_PN) / set_size


def num_distinct(clusters: Ints) -> Ints:
    """Number of distinct non-degenerate clusters along the last axis: (..., n) -> (...,)."""
    ordered = np.sort(clusters, axis=-1)
    return np.asarray((_starts(ordered) & (ordered != DEGENERATE)).sum(-1))


def miss_table(num_items: int, num_draws: int, max_group: int) -> Floats:
    """Chance that draws without replacement miss a given group: C(M-s, m) / C(M, m), for s = 0 .. max_group.

    A running product of ratios below 1: no factorial, no overflow, relative error about s rounding errors.
    0 where fewer than m items are left, and everywhere if m or M is negative.
    """
    table = np.zeros(max_group + 1)
    if num_draws < 0 or num_items < 0:
        return table
    sizes = np.arange(min(num_items, max_group))
    table[0] = 1.0
    ratios = (num_items - num_draws - sizes) / (num_items - sizes)
    table[1 : len(sizes) + 1] = np.cumprod(np.clip(ratios, 0, None))
    return table


def _starts(ordered: NDArray[np.generic]) -> Bools:
    """Where a run of equal values starts along the last axis."""
    starts = np.ones(ordered.shape, dtype=bool)
    starts[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    return starts


def _clusters(rewards_PN: Floats, clusters_PN: Ints) -> tuple[Ints, Ints, Floats, Bools]:
    """Each response's cluster numbered from 0, clusters' sizes and rewards, and who has one: all (P, N)."""
    num_prompts, num_responses = rewards_PN.shape
    ok_PN = clusters_PN != DEGENERATE
    order_PN = np.argsort(clusters_PN, axis=-1, kind="stable")
    ordered_PN = np.take_along_axis(clusters_PN, order_PN, -1)
    own_PN = np.empty((num_prompts, num_responses), dtype=np.int64)
    np.put_along_axis(own_PN, order_PN, np.cumsum(_starts(ordered_PN), -1) - 1, -1)
    # Every index of a (P, N) table, row after row; degenerate responses weigh nothing.
    flat = (own_PN + num_responses * np.arange(num_prompts)[:, None]).ravel()
    size = num_prompts * num_responses
    sizes = np.bincount(flat, ok_PN.ravel(), size).reshape(num_prompts, num_responses)
    rewards = np.bincount(flat, (rewards_PN * ok_PN).ravel(), size).reshape(num_prompts, num_responses)
    return own_PN, np.asarray(sizes, dtype=np.int64), np.asarray(rewards, dtype=np.float64), np.asarray(ok_PN)
