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

    Args:
        rewards: (..., N) finite rewards, one prompt's N responses along the last axis.
        clusters: (..., N) integers: equal within a prompt means same strategy; DEGENERATE (-1) is no strategy.
        set_size: n, responses per set.
        objective: a set objective, or any callable (rewards (..., n), clusters (..., n)) -> scores (...,).
        num_sets: K distinct sets per prompt, drawn uniformly without replacement; None for all C(N, n), which costs
            no enumeration where the objective has a closed form.
        seed: of the drawn sets; the same seed gives the same sets.
        aggregate: "mean" over the constructed sets that contain a response, or "sum" (C(N-1, n-1) times larger when
            all sets are used).

    Returns:
        (..., N) float64. Values that are zero up to rounding are exactly 0.

    Raises:
        ValueError: an argument cannot be; the message names it, its value and what would be right.
    """
    rewards_PN, clusters_PN, shape = _validated(rewards, clusters)
    num_responses = rewards_PN.shape[-1]
    if not 1 <= set_size <= num_responses:
        raise ValueError(f"set_size must lie between 1 and N = {num_responses}, but is {set_size}")
    if aggregate not in ("mean", "sum"):
        raise ValueError(f"aggregate must be 'mean' or 'sum', but is {aggregate!r}")
    num_all = math.comb(num_responses, set_size)
    if num_sets is not None and not 1 <= num_sets <= num_all:
        raise ValueError(
            f"num_sets must lie between 1 and C({num_responses}, {set_size}) = {num_all}, but is {num_sets}"
        )
    if num_sets is not None and num_sets < num_all:
        rng = np.random.default_rng(seed)
        advantages_PN = (
            np.stack(
                [
                    _over_sets(
                        r, c, _drawn_sets(num_responses, set_size, num_sets, rng), objective, aggregate
                    )
                    for r, c in zip(rewards_PN, clusters_PN, strict=True)
                ]
            )
            if len(rewards_PN)
            else np.zeros_like(rewards_PN)
        )
        return advantages_PN.reshape(shape)
    expected_PN = _expected_scores(rewards_PN, clusters_PN, set_size, objective)
    advantages_PN = centred(expected_PN)
    if aggregate == "sum":
        try:
            advantages_PN = advantages_PN * float(math.comb(num_responses - 1, set_size - 1))
        except OverflowError:
            raise ValueError(
                f"aggregate 'sum' over all sets overflows at N = {num_responses}, n = {set_size}: use 'mean'"
            ) from None
    return advantages_PN.reshape(shape)


def grpo_advantages(rewards: ArrayLike) -> Floats:
    """GRPO without division by the standard deviation: r_i - mean r, (..., N) -> (..., N)."""
    rewards_PN, _, shape = _validated(rewards, np.zeros(np.shape(rewards), dtype=int))
    return centred(rewards_PN).reshape(shape)


def grpo_div_advantages(rewards: ArrayLike, clusters: ArrayLike, weight: float) -> Floats:
    """GRPO with an additive diversity bonus: z_i - mean z, z_i = r_i + weight * d_i, (..., N) -> (..., N).

    d_i = (N / |cluster of i| - 1) / (N - 1): 1 for a response that is alone with its strategy, 0 if all share it.
    A degenerate response has d_i = 0.
    """
    rewards_PN, clusters_PN, shape = _validated(rewards, clusters)
    if not math.isfinite(weight):
        raise ValueError(f"weight must be finite, but is {weight}")
    num_responses = rewards_PN.shape[-1]
    sizes_PN = (clusters_PN[:, :, None] == clusters_PN[:, None, :]).sum(-1)
    bonus_PN = (num_responses / sizes_PN - 1) / max(num_responses - 1, 1)
    bonus_PN[clusters_PN == DEGENERATE] = 0.0
    return centred(rewards_PN + weight * bonus_PN).reshape(shape)


def centred(values_PN: Floats) -> Floats:
    """Values minus their row's mean, with what is only rounding residue set to exactly 0.

    Rows come from sums of up to N terms, so residue is bounded by a few N epsilon of the row's largest value; a true
    difference below that is beyond float64 anyway. Without this, prompts without signal would look as if they had one.
    """
    if values_PN.shape[-1] == 0:
        return values_PN.copy()
    deviations_PN = values_PN - values_PN.mean(-1, keepdims=True)
    noise_P1 = 8 * np.finfo(np.float64).eps * values_PN.shape[-1] * np.abs(values_PN).max(-1, keepdims=True)
    return np.where(np.abs(deviations_PN) <= noise_P1, 0.0, deviations_PN)


def _expected_scores(rewards_PN: Floats, clusters_PN: Ints, set_size: int, objective: SetObjective) -> Floats:
    """E[f | i in G] over all sets, (P, N): closed form where there is one, else by listing every set."""
    closed_form = getattr(objective, "expected_scores", None)
    if closed_form is not None:
        return closed_form(rewards_PN, clusters_PN, set_size)
    num_responses = rewards_PN.shape[-1]
    num_all = math.comb(num_responses, set_size)
    if num_all > MAX_ENUMERATED_SETS:
        raise ValueError(
            f"set_size {set_size} of N = {num_responses} makes {num_all} sets, more than {MAX_ENUMERATED_SETS}, and this "
            "objective has no closed form: pass num_sets=K to draw K of them"
        )
    totals_PN = np.zeros_like(rewards_PN)
    everything = combinations(range(num_responses), set_size)
    while len(sets_Kn := _listed(everything, set_size, _SETS_AT_A_TIME)):
        for p in range(len(rewards_PN)):
            scores_K = np.asarray(objective(rewards_PN[p][sets_Kn], clusters_PN[p][sets_Kn]), dtype=float)
            totals_PN[p] += _sum_by_member(sets_Kn, scores_K, num_responses)
    return totals_PN / math.comb(num_responses - 1, set_size - 1)


def _over_sets(
    rewards_N: Floats,
    clusters_N: Ints,
    sets_Kn: Ints,
    objective: SetObjective,
    aggregate: Literal["mean", "sum"],
) -> Floats:
    """Marginal set advantages (N,) over the constructed sets alone; 0 for a response that is in none of them."""
    scores_K = np.asarray(objective(rewards_N[sets_Kn], clusters_N[sets_Kn]), dtype=float)
    set_advantages_K = centred(scores_K[None])[0]
    sums_N = _sum_by_member(sets_Kn, set_advantages_K, len(rewards_N))
    if aggregate == "sum":
        return sums_N
    counts_N = _sum_by_member(sets_Kn, np.ones(len(sets_Kn)), len(rewards_N))
    return sums_N / np.maximum(counts_N, 1)


def _sum_by_member(sets_Kn: Ints, values_K: Floats, num_responses: int) -> Floats:
    return np.bincount(sets_Kn.ravel(), np.repeat(values_K, sets_Kn.shape[1]), num_responses)


def _drawn_sets(num_responses: int, set_size: int, num_sets: int, rng: np.random.Generator) -> Ints:
    """K distinct sets (K, n), uniform without replacement.

    Few sets in all: a random choice from their list. Many: independent uniform sets with repeats dropped until K are
    left, which has the same distribution and lists nothing.
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


@lru_cache(maxsize=8)
def _all_sets(num_responses: int, set_size: int) -> Ints:
    sets_Kn = _listed(combinations(range(num_responses), set_size), set_size, 4 * MAX_ENUMERATED_SETS)
    sets_Kn.flags.writeable = False
    return sets_Kn


def _listed(sets: combinations[tuple[int, ...]], set_size: int, at_most: int) -> Ints:
    flat = np.fromiter(chain.from_iterable(islice(sets, at_most)), dtype=np.int64)
    return flat.reshape(-1, set_size)


def _validated(rewards: ArrayLike, clusters: ArrayLike) -> tuple[Floats, Ints, tuple[int, ...]]:
    """Both as (P, N), and the shape to give back."""
    reward_array, cluster_array = np.asarray(rewards, dtype=np.float64), np.asarray(clusters)
    if reward_array.ndim == 0 or reward_array.shape[-1] == 0:
        raise ValueError(f"rewards must have shape (..., N) with N >= 1, but has shape {reward_array.shape}")
    if cluster_array.shape != reward_array.shape:
        raise ValueError(
            f"clusters must have the shape of rewards {reward_array.shape}, but has {cluster_array.shape}"
        )
    if not np.isfinite(reward_array).all():
        raise ValueError(f"rewards must be finite, but contain {reward_array[~np.isfinite(reward_array)][0]}")
    if cluster_array.size and cluster_array.dtype.kind not in "iu":
        raise ValueError(f"clusters must be integers, but are {cluster_array.dtype}")
    if cluster_array.size and cluster_array.min() < DEGENERATE:
        raise ValueError(f"clusters must be >= {DEGENERATE} (degenerate), but contain {cluster_array.min()}")
    shape = reward_array.shape
    return reward_array.reshape(-1, shape[-1]), cluster_array.astype(np.int64).reshape(-1, shape[-1]), shape
