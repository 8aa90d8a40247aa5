"""What every set objective is, and what their closed forms are built from."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

DEGENERATE = -1
"""Cluster of gibberish, off-topic text, bare guesses and reward hacking: it never counts as a strategy."""

THRESHOLD = 0.5
"""A response is right, or a success, if its reward is above this."""


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


def num_distinct(clusters: Ints) -> Ints:
    """Number of distinct non-degenerate clusters along the last axis: (..., n) -> (...,)."""
    ordered = np.sort(clusters, axis=-1)
    return np.asarray((starts(ordered) & (ordered != DEGENERATE)).sum(-1))


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


def starts(ordered: NDArray[np.generic]) -> Bools:
    """Where a run of equal values starts along the last axis."""
    starts = np.ones(ordered.shape, dtype=bool)
    starts[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    return starts


def by_cluster(rewards_PN: Floats, clusters_PN: Ints) -> tuple[Ints, Ints, Floats, Bools]:
    """Each response's cluster numbered from 0, clusters' sizes and rewards, and who has one: all (P, N)."""
    num_prompts, num_responses = rewards_PN.shape
    ok_PN = clusters_PN != DEGENERATE
    order_PN = np.argsort(clusters_PN, axis=-1, kind="stable")
    ordered_PN = np.take_along_axis(clusters_PN, order_PN, -1)
    own_PN = np.empty((num_prompts, num_responses), dtype=np.int64)
    np.put_along_axis(own_PN, order_PN, np.cumsum(starts(ordered_PN), -1) - 1, -1)
    # Every index of a (P, N) table, row after row; degenerate responses weigh nothing.
    flat = (own_PN + num_responses * np.arange(num_prompts)[:, None]).ravel()
    size = num_prompts * num_responses
    sizes = np.bincount(flat, ok_PN.ravel(), size).reshape(num_prompts, num_responses)
    rewards = np.bincount(flat, (rewards_PN * ok_PN).ravel(), size).reshape(num_prompts, num_responses)
    return own_PN, np.asarray(sizes, dtype=np.int64), np.asarray(rewards, dtype=np.float64), np.asarray(ok_PN)
