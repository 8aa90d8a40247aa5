"""Objectives that pay for successes alone: the distinct strategies that succeed, and the mean reward with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from polyepo.objectives.base import DEGENERATE, Floats, Ints, miss_table, starts
from polyepo.objectives.rewards import MeanReward


@dataclass(frozen=True)
class DistinctSuccessful:
    """Distinct successful strategies in the set, out of n: (1/n) sum over clusters of the best reward in each.

    Rewards below 0 count as 0, and a degenerate response has no cluster. A wrong response adds nothing and takes
    nothing away, so the best policy is right always, and spreads evenly over the strategies; no response that is
    right gets less than one that is wrong. A prompt whose responses are all wrong gives no signal. n = 1 is GRPO where
    no right response is degenerate; n = N gives none at all.
    """

    def __call__(self, rewards: Floats, clusters: Ints, /) -> Floats:
        """Set scores (...,) of rewards (..., n) and clusters (..., n)."""
        best, first, _ = _best_first(rewards, clusters)
        return np.where(first, best, 0.0).sum(-1) / rewards.shape[-1]

    def expected_scores(self, rewards_PN: Floats, clusters_PN: Ints, set_size: int) -> Floats:
        """Mean score of all sets of `set_size` that contain response i, (P, N), without enumerating them.

        Let s_k(t) be the responses of cluster k with a reward above t, and miss(s) = C(N-1-s, n-1) / C(N-1, n-1) the
        chance that n-1 draws from N-1 others miss s given ones. A set with i holds a reward above t in cluster k with
        probability 1 - miss(s_k(t)), or 1 if i is such a one itself. Over all t, with a the cluster of i,

            n E[f | i in G] = sum_k int_0^inf 1 - miss(s_k(t)) dt  +  int_0^{r_i} miss(s_a(t)) dt

        which for rewards of 0 and 1 is  sum_k (1 - miss(s_k)) + r_i miss(s_a).
        """
        num_responses = rewards_PN.shape[-1]
        miss = miss_table(num_responses - 1, set_size - 1, num_responses)
        common_P1 = tail_integrals(rewards_PN, clusters_PN, 1 - miss)[1]
        return (common_P1 + tail_integrals(rewards_PN, clusters_PN, miss)[0]) / set_size


@dataclass(frozen=True)
class MeanPlusDistinct:
    """The mean reward of the set, and its distinct successful strategies out of n.

    Its pull towards right answers does not fade where a strategy is common, which `DistinctSuccessful` alone has not:
    with rewards of 0 and 1, n E[f | i in G] = const + r_i ((N-n) / (N-1) + miss(s_a)).
    """

    def __call__(self, rewards: Floats, clusters: Ints, /) -> Floats:
        """Set scores (...,) of rewards (..., n) and clusters (..., n)."""
        return _MEAN(rewards, clusters) + _DISTINCT(rewards, clusters)

    def expected_scores(self, rewards_PN: Floats, clusters_PN: Ints, set_size: int) -> Floats:
        """Mean score of all sets that contain response i, (P, N)."""
        of_mean_PN = _MEAN.expected_scores(rewards_PN, clusters_PN, set_size)
        return of_mean_PN + _DISTINCT.expected_scores(rewards_PN, clusters_PN, set_size)


_MEAN, _DISTINCT = MeanReward(), DistinctSuccessful()


def tail_integrals(rewards_PN: Floats, clusters_PN: Ints, weights: Floats) -> tuple[Floats, Floats]:
    """Integrals over reward levels t of a weight of how many of a cluster lie above t.

    Args:
        rewards_PN: rewards; below 0 they count as 0.
        clusters_PN: clusters; a degenerate response has none.
        weights: w(0) .. w(N).

    Returns:
        int_0^{r_i} w(s_a(t)) dt with a the cluster of i, (P, N), and sum_k int_0^inf w(s_k(t)) dt without what is
        above all of a cluster, where s is 0, (P, 1). Responses alike in reward and cluster get bitwise one value.
    """
    best_PN, first_PN, order_PN = _best_first(rewards_PN, clusters_PN)
    num_responses = best_PN.shape[-1]
    columns = np.arange(num_responses)
    rank_PN = columns - np.maximum.accumulate(np.where(first_PN, columns, 0), -1)
    last_PN = np.ones_like(first_PN)
    last_PN[:, :-1] = first_PN[:, 1:]
    below_PN = np.where(last_PN, 0.0, np.roll(best_PN, -1, axis=-1))
    # Between a reward and the next lower one of its cluster, rank + 1 responses lie above t.
    steps_PN = (best_PN - below_PN) * weights[rank_PN + 1]
    sums_PN = steps_PN.copy()
    for column in range(num_responses - 2, -1, -1):
        sums_PN[:, column] += np.where(last_PN[:, column], 0.0, sums_PN[:, column + 1])
    own_PN = np.empty_like(sums_PN)
    np.put_along_axis(own_PN, order_PN, sums_PN, -1)
    return own_PN, np.where(first_PN, sums_PN, 0.0).sum(-1, keepdims=True)


def _best_first(rewards: Floats, clusters: Ints) -> tuple[Floats, np.ndarray[Any, np.dtype[np.bool_]], Ints]:
    """Rewards that count, clusters side by side and the best first in each; where one begins; and the order."""
    counted = np.where(clusters == DEGENERATE, 0.0, np.maximum(rewards, 0.0))
    order = np.lexsort((-counted, clusters), axis=-1)
    first = starts(np.take_along_axis(clusters, order, -1))
    return np.take_along_axis(counted, order, -1), first, order
