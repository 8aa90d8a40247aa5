"""Metrics of samples and clusters (arXiv 2604.17654). Needs numpy alone.

A response is correct when its reward is above `threshold`, 0.5 unless told. Rewards of NaN are refused: a
response that could not be verified is neither right nor wrong, so leave it out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyepo.extras import require
from polyepo.objectives import DEGENERATE, THRESHOLD, Bools, Floats, Ints, num_distinct


def pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, k: ArrayLike) -> Floats:
    """Unbiased chance that at least one of k samples is correct: 1 - C(M-c, k) / C(M, k) (Chen et al. 2021).

    Args:
        num_samples: M, samples drawn; broadcasts with the others.
        num_correct: c, how many of them are correct.
        k: at most M.

    Returns:
        float64 of the broadcast shape; a plain number for plain numbers.

    Raises:
        ValueError: not 0 <= c <= M or not 1 <= k <= M.
    """
    samples, correct, draws = np.broadcast_arrays(num_samples, num_correct, k)
    if samples.size and not ((correct >= 0) & (correct <= samples)).all():
        raise ValueError(f"num_correct must lie in 0..num_samples, but is {num_correct!r} of {num_samples!r}")
    if samples.size and not ((draws >= 1) & (draws <= samples)).all():
        raise ValueError(f"k must lie between 1 and num_samples {num_samples!r}, but is {k!r}")
    return 1 - _miss(samples, correct, draws)


def div_at_k(rewards: ArrayLike, clusters: ArrayLike, k: int, threshold: float = THRESHOLD) -> Floats:
    """Expected number of distinct successful strategies among k of a prompt's M samples, (..., M) -> (...,).

    A sum over non-degenerate clusters of 1 - C(M-s, k) / C(M, k), with s the cluster's correct samples. At
    k = 1 it is pass@1 when no correct response is degenerate.

    Raises:
        ValueError: not 1 <= k <= M, shapes that differ, or NaN rewards.
    """
    correct, cluster_array = _correct_and(rewards, clusters, threshold)
    num_samples = correct.shape[-1]
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must lie between 1 and num_samples {num_samples}, but is {k}")
    good = correct & (cluster_array != DEGENERATE)
    same = cluster_array[..., :, None] == cluster_array[..., None, :]
    sizes = (same & good[..., None, :] & good[..., :, None]).sum(-1)
    # Each cluster is counted once by sharing its term among its correct members.
    hit = 1 - _miss(np.full_like(sizes, num_samples), sizes, np.full_like(sizes, k))
    return np.asarray(np.where(good, hit / np.maximum(sizes, 1), 0.0).sum(-1))


def coverage(rewards: ArrayLike, threshold: float = THRESHOLD) -> float:
    """Share of prompts with at least one correct response, (P, N)."""
    return float(_correct(rewards, threshold).any(-1).mean())


def cover_at_tau(rewards: ArrayLike, tau: float, threshold: float = THRESHOLD) -> float:
    """Share of prompts whose share of correct responses is at least tau, (P, N)."""
    return float((_correct(rewards, threshold).mean(-1) >= tau).mean())


def distinct_successful_strategies(
    rewards: ArrayLike,
    clusters: ArrayLike,
    threshold: float = THRESHOLD,
) -> Ints:
    """Non-degenerate clusters that hold at least one correct response, (..., N) -> (...,)."""
    correct, cluster_array = _correct_and(rewards, clusters, threshold)
    return num_distinct(np.where(correct, cluster_array, DEGENERATE))


def distinct_unsuccessful_strategies(
    rewards: ArrayLike,
    clusters: ArrayLike,
    threshold: float = THRESHOLD,
) -> Ints:
    """Non-degenerate clusters that hold at least one incorrect response, (..., N) -> (...,)."""
    correct, cluster_array = _correct_and(rewards, clusters, threshold)
    return num_distinct(np.where(correct, DEGENERATE, cluster_array))


def maj_at_k(
    answers: Sequence[Hashable | None],
    correct: Sequence[bool],
    k: int,
    seed: int = 0,
    num_draws: int = 1000,
) -> tuple[float, float]:
    """Accuracy of the most frequent of k answers, and its share of the votes, for one prompt.

    Exact for k = 1 and k = M; else the mean over `num_draws` random choices of k. Unreadable answers (None)
    never win but count as votes; answers that tie share the win equally; an answer that was graded both ways
    counts as its share of correct grades.

    Args:
        answers: M final answers, None where there was none to read.
        correct: M grades of them.
        k: votes cast, at most M.
        seed: of the random choices.
        num_draws: how many random choices.

    Returns:
        accuracy and vote share, each in 0..1; both 0 where nobody could be read.

    Raises:
        ValueError: not 1 <= k <= M, num_draws < 1, or lengths that differ.
    """
    num_samples = len(answers)
    if len(correct) != num_samples:
        raise ValueError(f"correct must have one grade per answer, {num_samples}, but has {len(correct)}")
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must lie between 1 and the {num_samples} answers, but is {k}")
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, but is {num_draws}")
    if k == 1:
        draws_DK = np.arange(num_samples)[:, None]
    elif k == num_samples:
        draws_DK = np.arange(num_samples)[None]
    else:
        shuffled = np.tile(np.arange(num_samples), (num_draws, 1))
        draws_DK = np.random.default_rng(seed).permuted(shuffled, axis=1)[:, :k]
    number = {answer: i for i, answer in enumerate(dict.fromkeys(a for a in answers if a is not None))}
    if not number:
        return 0.0, 0.0
    of_sample = np.array([number.get(answer, len(number)) for answer in answers])
    correct_A = np.bincount(of_sample, np.asarray(correct, dtype=float), len(number) + 1)
    right_A = (correct_A / np.maximum(np.bincount(of_sample, minlength=len(number) + 1), 1))[:-1]
    # Votes of all draws are counted at once, those for None in a column that is dropped.
    rows = np.arange(len(draws_DK))[:, None] * (len(number) + 1)
    votes = np.bincount((rows + of_sample[draws_DK]).ravel(), minlength=len(draws_DK) * (len(number) + 1))
    votes_DA = votes.reshape(len(draws_DK), -1)[:, :-1]
    best_D = votes_DA.max(1)
    wins_DA = (votes_DA == best_D[:, None]) & (best_D > 0)[:, None]
    accuracy_D = (wins_DA * right_A).sum(1) / np.maximum(wins_DA.sum(1), 1)
    return float(accuracy_D.mean()), float(best_D.mean() / k)


def answer_entropy(answers: Sequence[Hashable]) -> float:
    """Entropy of the distribution of answers, in nats; None counts as an answer. 0 for no answers."""
    counts = np.array(list(Counter(answers).values()), dtype=float)
    return _entropy(counts / max(counts.sum(), 1))


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
    ungraded: int = 0


def signal_accounting(
    rewards: ArrayLike,
    clusters: ArrayLike,
    advantages: ArrayLike,
    labelled: ArrayLike | None = None,
    threshold: float = THRESHOLD,
    uses_clusters: bool = True,
) -> SignalAccounting:
    """Split prompts (P, N) by whether any advantage differs from 0; if none, by the first reason that holds.

    The order of reasons: ungraded (a reward is NaN), unlabelled (`labelled` (P,) is false, and the scoring uses
    clusters), all wrong, one cluster (labelled, and at most one distinct that is not degenerate), other exact zeros.
    The six counts sum to P.

    Raises:
        ValueError: shapes that differ.
    """
    rewards_PN, clusters_PN = np.asarray(rewards, dtype=np.float64), np.asarray(clusters)
    ungraded = np.isnan(rewards_PN).any(-1)
    correct, advantages_PN = _correct_and(np.nan_to_num(rewards_PN), advantages, threshold, "advantages")
    _correct_and(correct, clusters_PN, threshold)
    silent = (advantages_PN == 0).all(-1)
    missing = ~np.asarray(labelled, dtype=bool) if labelled is not None else np.zeros_like(silent)
    reasons = {
        "ungraded": ungraded,
        "unlabelled": missing & uses_clusters,
        "all_wrong": ~correct.any(-1),
        "one_cluster": ~missing & (num_distinct(clusters_PN) <= 1),
        "other_zero": np.ones_like(silent),
    }
    counts, left = {}, silent
    for name, holds in reasons.items():
        counts[name] = int((left & holds).sum())
        left = left & ~holds
    return SignalAccounting(with_gradient=int((~silent).sum()), **counts)


def sign_flips(rewards: ArrayLike, advantages: ArrayLike, threshold: float = THRESHOLD) -> Bools:
    """Prompts where a correct response is pushed down and an incorrect one up, (..., N) -> (...,)."""
    correct, values = _correct_and(rewards, advantages, threshold, "advantages")
    return np.asarray((correct & (values < 0)).any(-1) & (~correct & (values > 0)).any(-1))


def branching(token_ids: Sequence[Sequence[int]]) -> tuple[list[int], int | None]:
    """A prompt's responses as a token-prefix tree.

    Returns:
        the number of branches (distinct prefixes) alive at each token position, and the first position at
        which two responses part: their tokens differ, or one of them ends. None if they never do.
    """
    alive: list[int] = []
    first: int | None = None
    node = dict.fromkeys(range(len(token_ids)), 0)  # the prefix that each unfinished response has followed
    for position in range(max(map(len, token_ids), default=0)):
        steps = {r: (node[r], token_ids[r][position]) for r in node if len(token_ids[r]) > position}
        names = {step: name for name, step in enumerate(dict.fromkeys(steps.values()))}
        node = {r: names[step] for r, step in steps.items()}
        alive.append(len(names))
        if first is None and (len(names) > 1 or len(node) < len(token_ids)):
            first = position
    return alive, first


def bootstrap_interval(
    values: ArrayLike, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[Floats, Floats]:
    """Bias-corrected and accelerated (BCa) bootstrap interval of a mean over problems (Efron 1987).

    Problems are what is drawn: give one value per problem, such as its pass@k, or its difference between two
    policies for a paired interval.

    Args:
        values: (P,), or (P, ...) for several means over the same problems, which share the resamples.
        level: coverage, between 0 and 1.
        num_resamples: bootstrap samples of P problems.
        seed: of the resamples.

    Returns:
        lower and upper ends, each of the shape of one problem's value. Both are the mean if all problems agree,
        and there is nothing to see a spread in if there is one problem.

    Raises:
        ValueError: no problems, NaN values, a level outside (0, 1), or num_resamples < 1.
    """
    values_P = np.asarray(values, dtype=np.float64)
    if values_P.ndim == 0 or not len(values_P) or np.isnan(values_P).any():
        raise ValueError("values must be numbers, one per problem, of at least one problem, and none NaN")
    if not 0 < level < 1 or num_resamples < 1:
        raise ValueError(f"level {level} must lie between 0 and 1, and num_resamples {num_resamples} be at least 1")
    num_problems, shape = len(values_P), values_P.shape[1:]
    values_PK = values_P.reshape(num_problems, -1)
    mean_K = values_PK.mean(0)
    counts_BP = np.random.default_rng(seed).multinomial(
        num_problems, np.full(num_problems, 1 / num_problems), num_resamples
    )
    means_BK = np.sort(counts_BP @ values_PK / num_problems, axis=0)
    centred_PK = values_PK - mean_K
    spread_K = (centred_PK**2).sum(0) ** 1.5
    # Of a mean, the jackknife's acceleration is its skewness / (6 sqrt(P)).
    acceleration_K = (centred_PK**3).sum(0) / np.where(spread_K > 0, 6 * spread_K, 1)
    # Sums in another order differ in the last bits: ties with the mean must be seen as ties.
    tolerance_K = 1e-12 * np.maximum(np.abs(mean_K), 1)
    below_K = (means_BK < mean_K - tolerance_K).mean(0) + (np.abs(means_BK - mean_K) <= tolerance_K).mean(0) / 2
    ends = []
    normal = NormalDist()
    for quantile in ((1 - level) / 2, (1 + level) / 2):
        end_K = mean_K.copy()
        for k in np.flatnonzero((below_K > 0) & (below_K < 1) & (spread_K > 0)):
            bias = normal.inv_cdf(below_K[k])
            shifted = bias + normal.inv_cdf(quantile)
            adjusted = normal.cdf(bias + shifted / (1 - acceleration_K[k] * shifted))
            end_K[k] = np.quantile(means_BK[:, k], adjusted)
        ends.append(end_K.reshape(shape))
    return ends[0], ends[1]


def t_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of a mean over few independent values, such as one difference of two arms per seed.

    Raises:
        ValueError: fewer than two values, NaN values, or a level outside (0, 1).
    """
    values_S = np.asarray(values, dtype=np.float64)
    if values_S.ndim != 1 or len(values_S) < 2 or np.isnan(values_S).any():
        raise ValueError(f"values must be at least two numbers, none NaN, but are {values!r}")
    if not 0 < level < 1:
        raise ValueError(f"level {level} must lie between 0 and 1")
    require("judge", "scipy")
    from scipy.stats import t  # here: the metrics alone need numpy only

    half = float(t.ppf((1 + level) / 2, len(values_S) - 1)) * values_S.std(ddof=1) / math.sqrt(len(values_S))
    return float(values_S.mean() - half), float(values_S.mean() + half)


def adjusted_rand_index(first: ArrayLike, second: ArrayLike) -> float:
    """Agreement of two labelings of the same items, (M,) each: 1 if equal up to names, 0 by chance."""
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
    mutual = max(rows + columns - _entropy(joint.ravel()), 0.0)
    homogeneity = mutual / rows if rows else 1.0
    completeness = mutual / columns if columns else 1.0
    total = homogeneity + completeness
    return float(2 * homogeneity * completeness / total) if total > 0 else 0.0


def pair_agreement(first: ArrayLike, second: ArrayLike) -> float:
    """Share of pairs of items that both labelings put together or both put apart (the Rand index)."""
    a, b = _paired(first, second)
    if len(a) < 2:
        return 1.0
    rows, columns = np.triu_indices(len(a), 1)
    return float(((a[rows] == a[columns]) == (b[rows] == b[columns])).mean())


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's correlation with average ranks for ties; nan if either is constant."""
    values_a, values_b = _paired(first, second)
    a, b = _ranks(values_a), _ranks(values_b)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / scale) if scale else math.nan


def _correct(rewards: ArrayLike, threshold: float) -> Bools:
    reward_array = np.asarray(rewards, dtype=np.float64)
    if np.isnan(reward_array).any():
        raise ValueError("rewards must not be NaN: leave out responses that were not verified")
    return reward_array > threshold


def _correct_and(
    rewards: ArrayLike, others: ArrayLike, threshold: float, name: str = "clusters"
) -> tuple[Bools, NDArray[Any]]:
    """Which responses are correct, and another array of the same shape."""
    correct, array = _correct(rewards, threshold), np.asarray(others)
    if array.shape != correct.shape:
        raise ValueError(f"{name} must have the shape of rewards {correct.shape}, but has {array.shape}")
    return correct, array


def _paired(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    a, b = np.asarray(first), np.asarray(second)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"first and second must both have one shape (M,), but have {a.shape} and {b.shape}")
    return a, b


def _miss(num_samples: NDArray[Any], group: NDArray[Any], k: NDArray[Any]) -> Floats:
    """C(M-s, k) / C(M, k), elementwise, as a product of at most k ratios."""
    miss = np.ones(num_samples.shape)
    for t in range(int(k.max()) if k.size else 0):
        ratio = (num_samples - group - t) / np.maximum(num_samples - t, 1)
        miss = np.where(t < k, miss * np.clip(ratio, 0, None), miss)
    return miss


def _contingency(first: ArrayLike, second: ArrayLike) -> Floats:
    labels_a, labels_b = _paired(first, second)
    _, a = np.unique(labels_a, return_inverse=True)
    _, b = np.unique(labels_b, return_inverse=True)
    table = np.zeros((a.max(initial=-1) + 1, b.max(initial=-1) + 1))
    np.add.at(table, (a, b), 1)
    return table


def _pairs(counts: Floats) -> Floats:
    return counts * (counts - 1) / 2


def _entropy(shares: Floats) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum()) + 0.0  # never -0.0


def _ranks(values: NDArray[Any]) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
