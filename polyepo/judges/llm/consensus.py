"""Several clusterings of the same responses, made one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def together(votes_VN: np.ndarray) -> np.ndarray:
    """Co-association counts (N, N): in how many votes two responses share a cluster. -1 (degenerate) is one cluster."""
    return np.asarray((votes_VN[:, :, None] == votes_VN[:, None, :]).sum(0))


def consensus(votes_VN: np.ndarray) -> np.ndarray:
    """Evidence accumulation (Fred and Jain 2005): clusters (N,), -1 where most votes say degenerate.

    Responses share a cluster if a chain of pairs joins them that share one in more than half of the votes.
    """
    num_votes, num_responses = votes_VN.shape
    degenerate_N = 2 * (votes_VN == -1).sum(0) > num_votes
    joined_NN = 2 * together(votes_VN) > num_votes
    joined_NN &= ~degenerate_N[:, None] & ~degenerate_N[None, :]
    reached_NN = joined_NN | np.eye(num_responses, dtype=bool)
    while (further_NN := reached_NN @ reached_NN).sum() > reached_NN.sum():
        reached_NN = further_NN
    return np.where(degenerate_N, -1, reached_NN.argmax(1))  # a cluster is named by its first response


def pair_agreement(votes_VN: np.ndarray) -> np.ndarray:
    """(N,): share of pairs of votes that agree whether a response and another share a cluster; mean over the others."""
    num_votes, num_responses = votes_VN.shape
    if num_responses == 1:
        return np.ones(1)
    same_NN = together(votes_VN)
    pairs_NN = same_NN * (same_NN - 1) + (num_votes - same_NN) * (num_votes - same_NN - 1)
    np.fill_diagonal(pairs_NN, 0)
    return np.asarray(pairs_NN.sum(1) / (num_votes * (num_votes - 1) * (num_responses - 1)))


def as_matrix(votes: Sequence[Sequence[int | None]]) -> np.ndarray:
    """Votes (V, N) as an array, degenerate as -1."""
    return np.array([[-1 if cluster is None else cluster for cluster in vote] for vote in votes], dtype=np.int64)
