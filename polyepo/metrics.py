"""Metrics of samples and clusters. Needs numpy alone. A response is correct when its reward is above `THRESHOLD`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyepo.objectives import DEGENERATE, Floats, Ints, num_distinct

THRESHOLD = 0.5


def pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, k: ArrayLike) -> Floats:
    """Unbiased chance that at least one of k samples is correct: 1 - C(M-c, k) / C(M, k) (Chen et al. 2021).

    Args:
        num_samples: M, samples drawn; broadcasts with the others.
        num_correct: c, how many of them are correct.
        k: at most M.

    Raises:
        ValueError: not 0 <= c <= M or not 1 <= k <= M.
    """
    samples, correct, draws = np.broadcast_arrays(num_samples, num_correct, k)
    if samples.size and not ((correct >= 0) & (correct <= samples)).all():
        raise ValueError(f"num_correct must lie between 0 and num_samples, but is {num_correct!r} of {num_samples!r}")
    if samples.size and not ((draws >= 1) & (draws <= samples)).all():
        raise ValueError(f"k must lie between 1 and num_samples {num_samples!r}, but is {k!r}")
    return 1 - _miss(samples, correct, draws)


def div_at_k(rewards: ArrayLike, clusters: ArrayLike, k: int) -> Floats:
    """Expected number of distinct successful strategies among k of a prompt's M samples, (..., M) -> (...,).

    A sum over non-degenerate clusters of 1 - C(M-s, k) / C(M, k), with s the cluster's correct samples.
    """
    reward_array, cluster_array = np.asarray(rewards, dtype=float), np.asarray(clusters)
    num_samples = reward_array.shape[-1]
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must lie between 1 and num_samples {num_samples}, but is {k}")
    good = (reward_array > THRESHOLD) & (cluster_array != DEGENERATE)
    same = (cluster_array[..., :, None] == cluster_array[..., None, :]) & good[..., None, :] & good[..., :, None]
    sizes = same.sum(-1)
    # Each cluster is counted once by sharing its term among its correct members.
    terms = (1 - _miss(np.full_like(sizes, num_samples), sizes, np.full_like(sizes, k))) / np.maximum(sizes, 1)
    return np.where(good, terms, 0.0).sum(-1)


def coverage(rewards: ArrayLike) -> float:
    """Share of prompts with at least one correct response, (P, N)."""
    return float((np.asarray(rewards, dtype=float) > THRESHOLD).any(-1).mean())


def cover_at_tau(rewards: ArrayLike, tau: float) -> float:
    """Share of prompts whose share of correct responses is at least tau, (P, N)."""
    return float(((np.asarray(rewards, dtype=float) > THRESHOLD).mean(-1) >= tau).mean())


def distinct_successful_strategies(rewards: ArrayLike, clusters: ArrayLike) -> Ints:
    """Non-degenerate clusters that hold at least one correct response, (..., N) -> (...,)."""
    correct = np.asarray(rewards, dtype=float) > THRESHOLD
    return num_distinct(np.where(correct, np.asarray(clusters), DEGENERATE))


def distinct_unsuccessful_strategies(rewards: ArrayLike, clusters: ArrayLike) -> Ints:
    """Non-degenerate clusters that hold at least one incorrect response, (..., N) -> (...,)."""
    correct = np.asarray(rewards, dtype=float) > THRESHOLD
    return num_distinct(np.where(correct, DEGENERATE, np.asarray(clusters)))


def maj_at_k(
    answers: Sequence[Hashable | None], correct: Sequence[bool], k: int, num_draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Accuracy of the most frequent of k answers, and its share of the votes, for one prompt.

    Exact for k = 1 and k = M; else the mean over `num_draws` random choices of k. Unreadable answers (None) never win
    but count as votes; ties share the win equally.
    """
    num_samples = len(answers)
    if not 1 <= k <= num_samples or len(correct) != num_samples:
        raise ValueError(f"k must lie between 1 and the {num_samples} answers, but is {k}; correct has {len(correct)}")
    if k == 1:
        draws = [[i] for i in range(num_samples)]
    elif k == num_samples:
        draws = [list(range(num_samples))]
    else:
        rng = np.random.default_rng(seed)
        draws = [rng.choice(num_samples, k, replace=False).tolist() for _ in range(num_draws)]
    right = {answer: bool(ok) for answer, ok in zip(answers, correct, strict=True)}
    accuracy, share = 0.0, 0.0
    for draw in draws:
        votes = Counter(answers[i] for i in draw if answers[i] is not None)
        best = max(votes.values(), default=0)
        winners = [answer for answer, count in votes.items() if count == best]
        accuracy += sum(right[w] for w in winners) / max(len(winners), 1)
        share += best / k
    return accuracy / len(draws), share / len(draws)


def answer_entropy(answers: Sequence[Hashable]) -> float:
    """Entropy of the empirical distribution of answers, in nats."""
    counts = np.array(list(Counter(answers).values()), dtype=float)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def distinct_answers_at_k(answers: Sequence[Hashable | None], k: int) -> float:
    """Expected number of distinct readable answers among k of the samples."""
    num_samples = len(answers)
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must lie between 1 and the {num_samples} answers, but is {k}")
    counts = np.array(list(Counter(a for a in answers if a is not None).values()), dtype=np.int64)
    return float((1 - _miss(np.full_like(counts, num_samples), counts, np.full_like(counts, k))).sum())


@dataclass(frozen=True)
class SignalAccounting:
    """How many prompts have a gradient, and why the others have none."""

    with_gradient: int
    all_wrong: int
    one_cluster: int
    unlabelled: int
    other_zero: int


def signal_accounting(
    rewards: ArrayLike, clusters: ArrayLike, advantages: ArrayLike, labelled: ArrayLike | None = None
) -> SignalAccounting:
    """Split prompts (P, N) by whether any advantage differs from 0, and those without by the first reason that holds.

    The order of reasons: unlabelled, all wrong, one cluster (at most one distinct non-degenerate), other exact zeros.
    """
    silent = (np.asarray(advantages) == 0).all(-1)
    missing = ~np.asarray(labelled, dtype=bool) if labelled is not None else np.zeros_like(silent)
    wrong = (np.asarray(rewards, dtype=float) <= THRESHOLD).all(-1)
    single = num_distinct(np.asarray(clusters)) <= 1
    return SignalAccounting(
        with_gradient=int((~silent).sum()),
        all_wrong=int((silent & ~missing & wrong).sum()),
        one_cluster=int((silent & ~missing & ~wrong & single).sum()),
        unlabelled=int((silent & missing).sum()),
        other_zero=int((silent & ~missing & ~wrong & ~single).sum()),
    )


def sign_flips(rewards: ArrayLike, advantages: ArrayLike) -> NDArray[np.bool_]:
    """Prompts (P,) where a correct response is pushed down while an incorrect one is pushed up."""
    correct, values = np.asarray(rewards, dtype=float) > THRESHOLD, np.asarray(advantages)
    return np.asarray((correct & (values < 0)).any(-1) & (~correct & (values > 0)).any(-1))


def branching(token_ids: Sequence[Sequence[int]]) -> tuple[list[int], int | None]:
    """A prompt's responses as a token-prefix tree.

    Returns:
        the number of branches (distinct prefixes) alive at each token position, and the first position at which two
        responses part: their tokens differ, or one of them ends. None if they never do.
    """
    longest = max(map(len, token_ids), default=0)
    alive = [len({tuple(r[: p + 1]) for r in token_ids if len(r) > p}) for p in range(longest)]
    parts = (p for p in range(longest) if len({r[p] if len(r) > p else None for r in token_ids}) > 1)
    return alive, next(parts, None)


def adjusted_rand_index(first: ArrayLike, second: ArrayLike) -> float:
    """Agreement of two labelings of the same items, (M,) each: 1 if equal up to names, 0 in expectation by chance."""
    table = _contingency(first, second)
    together = _pairs(table).sum()
    rows, columns, everything = _pairs(table.sum(1)).sum(), _pairs(table.sum(0)).sum(), _pairs(table.sum())
    expected = rows * columns / everything if everything else 0.0
    best = (rows + columns) / 2
    return float((together - expected) / (best - expected)) if best != expected else 1.0


def v_measure(first: ArrayLike, second: ArrayLike) -> float:
    """Harmonic mean of homogeneity and completeness of two labelings, (M,) each; symmetric."""
    table = _contingency(first, second)
    joint = table / max(table.sum(), 1)
    rows, columns = _entropy(joint.sum(1)), _entropy(joint.sum(0))
    mutual = rows + columns - _entropy(joint.ravel())
    homogeneity = mutual / rows if rows else 1.0
    completeness = mutual / columns if columns else 1.0
    total = homogeneity + completeness
    return float(2 * homogeneity * completeness / total) if total > 0 else 0.0


def pair_agreement(first: ArrayLike, second: ArrayLike) -> float:
    """Share of pairs of items that both labelings put together or both put apart (the Rand index)."""
    a, b = np.asarray(first), np.asarray(second)
    if len(a) < 2:
        return 1.0
    rows, columns = np.triu_indices(len(a), 1)
    return float(((a[rows] == a[columns]) == (b[rows] == b[columns])).mean())


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's correlation with average ranks for ties; nan if either is constant."""
    a, b = _ranks(np.asarray(first, dtype=float)), _ranks(np.asarray(second, dtype=float))
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / scale) if scale else math.nan


def _miss(num_samples: Ints, group: Ints, k: Ints) -> Floats:
    """C(M-s, k) / C(M, k), elementwise, as a product of at most k ratios."""
    miss = np.ones(num_samples.shape)
    for t in range(int(k.max()) if k.size else 0):
        ratio = (num_samples - group - t) / np.maximum(num_samples - t, 1)
        miss = np.where(t < k, miss * np.clip(ratio, 0, None), miss)
    return miss


def _contingency(first: ArrayLike, second: ArrayLike) -> Floats:
    _, a = np.unique(np.asarray(first), return_inverse=True)
    _, b = np.unique(np.asarray(second), return_inverse=True)
    if len(a) != len(b):
        raise ValueError(f"two labelings must have one length, but have {len(a)} and {len(b)}")
    table = np.zeros((a.max(initial=-1) + 1, b.max(initial=-1) + 1))
    np.add.at(table, (a, b), 1)
    return table


def _pairs(counts: Floats) -> Floats:
    return counts * (counts - 1) / 2


def _entropy(shares: Floats) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
