"""Explore where everything fails, diversify where something succeeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polyepo.objectives.base import DEGENERATE, THRESHOLD, Floats, Ints, by_cluster, miss_table, num_distinct


@dataclass(frozen=True)
class Lexicographic:
    """1 + (distinct successful strategies) / n if a response of the set is right, else (distinct strategies) / n.

    Right is a reward above .5. Every set with a success scores above every set without, so the best policy is right
    always, and spreads evenly over the strategies; where nothing succeeds yet, it keeps trying different ones, and
    that pull fades by itself as (1 - p)^(n-1) with the share p of right answers. No response that is right gets less
    than one that is wrong. A degenerate response is no strategy, but a success if it is right.
    """

    def __call__(self, rewards: Floats, clusters: Ints, /) -> Floats:
        """Set scores (...,) of rewards (..., n) and clusters (..., n)."""
        right = rewards > THRESHOLD
        distinct_right = num_distinct(np.where(right, clusters, DEGENERATE))
        solved = 1 + distinct_right / rewards.shape[-1]
        return np.where(right.any(-1), solved, num_distinct(clusters) / rewards.shape[-1])

    def expected_scores(self, rewards_PN: Floats, clusters_PN: Ints, set_size: int) -> Floats:
        """Mean score of all sets of `set_size` that contain response i, (P, N), without enumerating them.

        With s_k the right and b_k the wrong responses of cluster k, R all right ones (degenerate ones too), a the
        cluster of i, and miss(s) = C(N-1-s, n-1) / C(N-1, n-1) the chance that n-1 draws from N-1 others miss s given
        ones, n E[f | i in G] =

            sum_k (1 - miss(s_k)) + n + miss(s_a)                                                  for a right i,
            sum_k (1 - miss(s_k)) + n (1 - miss(R))
                + sum_k (miss(R) - miss(R + b_k)) + miss(R + b_a)                                  for a wrong one,

        where a degenerate i has no cluster of its own, and so no last term.
        """
        num_responses = rewards_PN.shape[-1]
        miss = miss_table(num_responses - 1, set_size - 1, num_responses)
        right_PN = rewards_PN > THRESHOLD
        own_PN, sizes_PK, successes_PK, ok_PN = by_cluster(right_PN.astype(np.float64), clusters_PN)
        right_PK = successes_PK.astype(np.int64)
        right_P1 = right_PN.sum(-1, keepdims=True)
        without_PK = miss[right_P1 + sizes_PK - right_PK]
        """No right response, and none of this cluster."""

        def own(values_PK: Floats) -> Floats:
            return np.where(ok_PN, np.take_along_axis(values_PK, own_PN, -1), 0.0)

        successful_P1 = (1 - miss[right_PK]).sum(-1, keepdims=True)
        failing_P1 = (miss[right_P1] - without_PK).sum(-1, keepdims=True)
        if_right_PN = set_size + own(miss[right_PK])
        if_wrong_PN = set_size * (1 - miss[right_P1]) + failing_P1 + own(without_PK)
        return (successful_P1 + np.where(right_PN, if_right_PN, if_wrong_PN)) / set_size
