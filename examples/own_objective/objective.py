"""A set objective of one's own: how many strategies of a set succeed, whatever the others do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def distinct_successful(rewards: NDArray[np.float64], clusters: NDArray[np.int64]) -> NDArray[np.float64]:
    """Set scores (...,) of rewards (..., n) and clusters (..., n): the share of distinct clusters that hold a success.

    Responses without a strategy have cluster -1 and do not count.
    """
    succeeded = np.where(rewards > 0.5, clusters, -1)
    ordered = np.sort(succeeded, axis=-1)
    first = np.ones_like(ordered, dtype=bool)
    first[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    return (first & (ordered != -1)).sum(-1) / rewards.shape[-1]
