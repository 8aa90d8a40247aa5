"""Objectives of rewards alone, which need no judge: the best of a set, and its mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from polyepo.objectives.base import Floats, Ints, miss_table, starts


@dataclass(frozen=True)
class PassAtN:
    """The best reward in the set, any real number.

    Right responses are alike, whatever their strategies; no wrong one gets more than a right one, and where one in n
    is right anyhow, little is left to gain. n = 1 is GRPO, n = N gives no signal.
    """

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
        first_PN = np.where(starts(sorted_PN), np.arange(num_responses), 0)
        tied_PN = np.take_along_axis(values_PN, np.maximum.accumulate(first_PN, axis=-1), -1)
        expected_PN = np.empty_like(sorted_PN)
        np.put_along_axis(expected_PN, order_PN, tied_PN, -1)
        return expected_PN


@dataclass(frozen=True)
class MeanReward:
    """The mean reward of the set, any real number: GRPO times (N - n) / (n (N - 1)).

    Any mixture of right strategies is as good as any other, so that nothing keeps them apart.
    """

    uses_clusters: ClassVar[bool] = False

    def __call__(self, rewards: Floats, clusters: Ints, /) -> Floats:
        """Set scores (...,) of rewards (..., n); clusters do not matter."""
        return rewards.mean(-1)

    def expected_scores(self, rewards_PN: Floats, clusters_PN: Ints, set_size: int) -> Floats:
        """Mean score of all sets that contain response i, (P, N)."""
        rest_PN = rewards_PN.sum(-1, keepdims=True) - rewards_PN
        pair = (set_size - 1) / max(rewards_PN.shape[-1] - 1, 1)
        return (rewards_PN + pair * rest_PN) / set_size
