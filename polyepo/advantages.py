"""Marginal set advantages (Poly-EPO, arXiv 2604.17654) and the baselines' advantages. Needs numpy alone."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import chain, combinations, islice
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from polyepo.objectives import DEGENERATE, Floats, Ints, Polychromic, SetObjective

__all__ = [
    "DEGENERATE",
    "MAX_ENUMERATED_SETS",
    "grpo_advantages",
    "grpo_div_advantages",
    "marginal_set_advantages",
]

MAX_ENUMERATED_SETS = 2_000_000
"""Most sets per prompt that are ever listed one by one."""

_SETS_AT_A_TIME = 65_536
_POLYCHROMIC = Polychromic()


def marginal_set_advantages(
    rewards: ArrayLike,
    clusters: ArrayLike,
    set_size: int,
    objective: SetObjective = _POLYCHROMIC,
    num_sets: int | None = None,
    seed: int | None = None,
    aggregate: Literal["mean", "sum"] = "mean",
) -> Floats:
    """One advantage per response: how much better the sets that contain it score than the average set.

    A set's advantage is its score minus the mean score of the constructed sets; a response gets the mean of
    the advantages of the constructed sets that contain it, 0 if none does (arXiv 2604.17654, Algorithm 1).
    Over all sets this is A_i = E_i - mean_j E_j with E_i the mean score of the sets that contain i, so that
    the advantages of a prompt sum to 0. There is no division by a standard deviation.

    Args:
        rewards: (..., N) finite rewards, one prompt's N responses along the last axis.
        clusters: (..., N) integers: equal within a prompt means same strategy; DEGENERATE (-1) is none.
        set_size: n, responses per set.
        objective: a set objective, or any callable (rewards (..., n), clusters (..., n)) -> scores (...,).
        num_sets: K distinct sets per prompt, drawn uniformly without replacement and anew for each prompt;
            None (or K = C(N, n)) for all sets: no enumeration where the objective has a closed form.
        seed: of the drawn sets; the same seed gives the same sets. None draws afresh.
        aggregate: "mean" over the constructed sets that contain a response, or "sum" (C(N-1, n-1) times
            larger when all sets are used).

    Returns:
        (..., N) float64, in the unit of the scores. Values that are zero up to rounding, at most
        (N + 16) epsilon of the largest score (of the largest |reward| in closed form), are exactly 0.

    Raises:
        ValueError: an argument cannot be, all sets are too many to enumerate, or a "sum" overflows float64;
            the message names the argument, its value and what would be right.
    """
    rewards_PN, clusters_PN, shape = validated(rewards, clusters)
    num_responses = rewards_PN.shape[-1]
    _check_count("set_size", set_size, num_responses, f"N = {num_responses}")
    if aggregate not in ("mean", "sum"):
        raise ValueError(f"aggregate must be 'mean' or 'sum', but is {aggregate!r}")
    num_all = math.comb(num_responses, set_size)
    if num_sets is not None:
        _check_count("num_sets", num_sets, num_all, f"C({num_responses}, {set_size}) = {num_all}")
    if num_sets is not None and num_sets < num_all:
        if num_sets > MAX_ENUMERATED_SETS:
            raise ValueError(f"num_sets must be at most {MAX_ENUMERATED_SETS}, but is {num_sets}")
        rng = np.random.default_rng(seed)
        advantages_PN = np.zeros_like(rewards_PN)
        for p, (rewards_N, clusters_N) in enumerate(zip(rewards_PN, clusters_PN, strict=True)):
            sets_Kn = _drawn_sets(num_responses, set_size, num_sets, rng)
            advantages_PN[p] = _over_sets(rewards_N, clusters_N, sets_Kn, objective, aggregate)
        return advantages_PN.reshape(shape)
    expected_PN, scale_P1 = _expected_scores(rewards_PN, clusters_PN, set_size, objective)
    advantages_PN = centred(expected_PN, scale_P1)
    if aggregate == "sum":
        num_containing = math.comb(num_responses - 1, set_size - 1)
        with np.errstate(over="ignore", invalid="ignore"):
            factor = float(num_containing) if num_containing < 2**1023 else math.inf
            advantages_PN = advantages_PN * factor
        if not np.isfinite(advantages_PN).all():
            raise ValueError(
                f"aggregate 'sum' over all sets overflows at N = {num_responses}, n = {set_size}: use 'mean'"
            )
    return advantages_PN.reshape(shape)


def grpo_advantages(rewards: ArrayLike) -> Floats:
    """GRPO without division by the standard deviation: r_i - mean r, (..., N) -> (..., N).

    Raises:
        ValueError: rewards have no responses, or are not finite.
    """
    rewards_PN, _, shape = validated(rewards, np.zeros(np.shape(rewards), dtype=int))
    return centred(rewards_PN).reshape(shape)


def grpo_div_advantages(rewards: ArrayLike, clusters: ArrayLike, weight: float) -> Floats:
    """GRPO with an additive diversity bonus: z_i - mean z, z_i = r_i + weight * d_i, (..., N) -> (..., N).

    d_i = (N / |cluster of i| - 1) / (N - 1): 1 for a response alone with its strategy, 0 if all share it.
    A degenerate response earns no bonus, d_i = 0, and degenerates make no cluster. N = 1 gives 0.

    Args:
        rewards: (..., N) finite rewards.
        clusters: (..., N) integers, DEGENERATE (-1) for no strategy.
        weight: lambda, in units of reward.

    Raises:
        ValueError: as for `marginal_set_advantages`, or the weight is not finite.
    """
    rewards_PN, clusters_PN, shape = validated(rewards, clusters)
    if not math.isfinite(weight):
        raise ValueError(f"weight must be finite, but is {weight}")
    num_responses = rewards_PN.shape[-1]
    sizes_PN = (clusters_PN[:, :, None] == clusters_PN[:, None, :]).sum(-1)
    bonus_PN = (num_responses / sizes_PN - 1) / max(num_responses - 1, 1)
    bonus_PN[clusters_PN == DEGENERATE] = 0.0
    return centred(rewards_PN + weight * bonus_PN).reshape(shape)


def centred(values_PN: Floats, scale_P1: Floats | float = 0.0) -> Floats:
    """Values minus their row's mean, with what is only rounding residue set to exactly 0.

    Values are sums of up to N terms, so the residue is bounded by about N epsilon of the largest term; a
    true difference below that is beyond float64 anyway. Else prompts without signal would seem to have one.

    Args:
        values_PN: values of P rows.
        scale_P1: size of the terms the values were summed from, where these may have cancelled.
    """
    largest_P1 = np.maximum(np.abs(values_PN).max(-1, keepdims=True), scale_P1)
    return _without_residue(values_PN - values_PN.mean(-1, keepdims=True), largest_P1)


def _without_residue(deviations: Floats, scale: Floats | float) -> Floats:
    noise = (deviations.shape[-1] + 16) * np.finfo(np.float64).eps * scale
    return np.where(np.abs(deviations) <= noise, 0.0, deviations)


def _expected_scores(
    rewards_PN: Floats, clusters_PN: Ints, set_size: int, objective: SetObjective
) -> tuple[Floats, Floats]:
    """E[f | i in G] (P, N) over all sets, by closed form or by listing, and the scale (P, 1) of its terms."""
    closed_form = getattr(objective, "expected_scores", None)
    if closed_form is not None:
        expected_PN = np.asarray(closed_form(rewards_PN, clusters_PN, set_size), dtype=np.float64)
        return expected_PN, np.abs(rewards_PN).max(-1, keepdims=True)
    num_responses = rewards_PN.shape[-1]
    num_all = math.comb(num_responses, set_size)
    if num_all > MAX_ENUMERATED_SETS:
        raise ValueError(
            f"set_size {set_size} makes C({num_responses}, {set_size}) = {num_all} sets, more than the limit "
            f"of {MAX_ENUMERATED_SETS}, and this objective has no closed form: pass num_sets=K to draw K sets"
        )
    totals_PN, scale_P1 = np.zeros_like(rewards_PN), np.zeros((len(rewards_PN), 1))
    everything = combinations(range(num_responses), set_size)
    while len(sets_Kn := _listed(everything, set_size, _SETS_AT_A_TIME)):
        for p in range(len(rewards_PN)):
            scores_K = _set_scores(objective, rewards_PN[p], clusters_PN[p], sets_Kn)
            scale_P1[p] = max(scale_P1[p, 0], np.abs(scores_K).max())
            totals_PN[p] += _sum_by_member(sets_Kn, scores_K, num_responses)
    return totals_PN / math.comb(num_responses - 1, set_size - 1), scale_P1


def _over_sets(
    rewards_N: Floats,
    clusters_N: Ints,
    sets_Kn: Ints,
    objective: SetObjective,
    aggregate: Literal["mean", "sum"],
) -> Floats:
    """Marginal set advantages (N,) over the constructed sets; 0 for a response that is in none of them."""
    scores_K = _set_scores(objective, rewards_N, clusters_N, sets_Kn)
    sums_N = _sum_by_member(sets_Kn, scores_K - scores_K.mean(), len(rewards_N))
    counts_N = np.bincount(sets_Kn.ravel(), minlength=len(rewards_N))
    means_N = _without_residue(sums_N / np.maximum(counts_N, 1), float(np.abs(scores_K).max()))
    return means_N * counts_N if aggregate == "sum" else means_N


def _set_scores(objective: SetObjective, rewards_N: Floats, clusters_N: Ints, sets_Kn: Ints) -> Floats:
    """Scores (K,) of the sets; refuses an objective that does not give one finite number per set."""
    scores_K = np.asarray(objective(rewards_N[sets_Kn], clusters_N[sets_Kn]), dtype=np.float64)
    if scores_K.shape != (len(sets_Kn),):
        raise ValueError(
            f"objective must map (..., n) to (...,): one score for each of {len(sets_Kn)} sets, "
            f"but returned shape {scores_K.shape}"
        )
    bad = scores_K[~np.isfinite(scores_K)]
    if len(bad):
        raise ValueError(f"objective must return finite scores, but returned {bad[0]}")
    return scores_K


def _sum_by_member(sets_Kn: Ints, values_K: Floats, num_responses: int) -> Floats:
    """Sum (N,) of the values of the sets that contain each response.

    Summed in blocks of 32 sets, then pairwise, so that rounding does not grow with the number of sets.
    """
    block_K1 = np.arange(len(sets_Kn))[:, None] // 32
    num_blocks = -(-len(sets_Kn) // 32)
    cells = (block_K1 * num_responses + sets_Kn).ravel()
    partial = np.bincount(cells, np.repeat(values_K, sets_Kn.shape[1]), num_blocks * num_responses)
    return np.ascontiguousarray(partial.reshape(num_blocks, num_responses).T).sum(-1)


def _drawn_sets(num_responses: int, set_size: int, num_sets: int, rng: np.random.Generator) -> Ints:
    """K distinct sets (K, n), uniform without replacement.

    Few sets in all: a random choice from their list. Many: independent uniform sets with repeats dropped
    until K are left, which has the same distribution and lists nothing.
    """
    num_all = math.comb(num_responses, set_size)
    if num_all <= 4 * num_sets or num_all <= _SETS_AT_A_TIME:
        return _all_sets(num_responses, set_size)[rng.choice(num_all, num_sets, replace=False)]
    found: dict[tuple[int, ...], None] = {}
    while len(found) < num_sets:
        noise_KN = rng.random((num_sets, num_responses))
        draws_Kn = np.sort(np.argpartition(noise_KN, set_size - 1, axis=-1)[:, :set_size], axis=-1)
        found.update(dict.fromkeys(map(tuple, draws_Kn.tolist())))
    return np.array(list(islice(found, num_sets)), dtype=np.int64)


@lru_cache(maxsize=1)
def _all_sets(num_responses: int, set_size: int) -> Ints:
    sets_Kn = _listed(combinations(range(num_responses), set_size), set_size, 4 * MAX_ENUMERATED_SETS)
    sets_Kn.flags.writeable = False
    return sets_Kn


def _listed(sets: combinations[tuple[int, ...]], set_size: int, at_most: int) -> Ints:
    flat = np.fromiter(chain.from_iterable(islice(sets, at_most)), dtype=np.int64)
    return flat.reshape(-1, set_size)


def _check_count(name: str, value: int, largest: int, meaning: str) -> None:
    if not isinstance(value, (int, np.integer)) or not 1 <= value <= largest:
        raise ValueError(f"{name} must lie between 1 and {meaning}, but is {value}")


def validated(rewards: ArrayLike, clusters: ArrayLike) -> tuple[Floats, Ints, tuple[int, ...]]:
    """Both as (P, N), and the shape to give back."""
    reward_array, cluster_array = np.asarray(rewards, dtype=np.float64), np.asarray(clusters)
    shape = reward_array.shape
    if reward_array.ndim == 0 or shape[-1] == 0:
        raise ValueError(f"rewards must have shape (..., N) with N >= 1, but has shape {shape}")
    if cluster_array.shape != reward_array.shape:
        raise ValueError(f"clusters must have the shape of rewards {shape}, but has {cluster_array.shape}")
    if not np.isfinite(reward_array).all():
        raise ValueError(f"rewards must be finite, but contain {reward_array[~np.isfinite(reward_array)][0]}")
    if cluster_array.size and cluster_array.dtype.kind not in "iu":
        raise ValueError(f"clusters must be integers, but are {cluster_array.dtype}")
    if cluster_array.size and cluster_array.min() < DEGENERATE:
        raise ValueError(f"clusters must be >= {DEGENERATE} (degenerate), but contain {cluster_array.min()}")
    return reward_array.reshape(-1, shape[-1]), cluster_array.astype(np.int64).reshape(-1, shape[-1]), shape
