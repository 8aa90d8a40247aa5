"""Advantages that other papers propose, one function each: from rewards (and clusters) of a prompt's N responses.

All take (..., N) rewards, finite, and return (..., N) float64; docs/objectives.md says which formulas were confirmed
in a paper's text or code. A response is right if its reward is above .5. Needs numpy alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from polyepo.advantages import centred, validated
from polyepo.objectives import DEGENERATE, THRESHOLD, Floats, Ints, PassAtN
from polyepo.objectives.distinct import tail_integrals

_PASS = PassAtN()


def distinct_all_sizes_advantages(rewards: ArrayLike, clusters: ArrayLike) -> Floats:
    """Distinct successful strategies, averaged over sets of every size 1 .. N: there is no n, and no weight.

    With s_a(t) the responses of i's cluster with a reward above t, A_i = z_i - mean z,

        z_i = int_0^{r_i} dt / (1 + s_a(t)),  which for rewards of 0 and 1 is  r_i / (1 + s_a):

    the sum over n = 1 .. N of C(N-1-s, n-1) / C(N-1, n-1) is N / (1 + s). Degenerate responses earn nothing.
    Raises ValueError as `marginal_set_advantages`.
    """
    rewards_PN, clusters_PN, shape = validated(rewards, clusters)
    weights = 1 / (1 + np.arange(rewards_PN.shape[-1] + 1))
    return centred(tail_integrals(rewards_PN, clusters_PN, weights)[0]).reshape(shape)


def maxrl_advantages(rewards: ArrayLike) -> Floats:
    """MaxRL (arXiv 2602.02710): (r_i - mean r) / mean r, 0 where nothing succeeds; for rewards that are not negative.

    Raises ValueError if a reward is negative: the mean would be no rate of success.
    """
    rewards_PN, shape = _rewards(rewards)
    if (rewards_PN < 0).any():
        raise ValueError(f"rewards must not be negative for MaxRL, but contain {rewards_PN.min()}")
    mean_P1 = rewards_PN.mean(-1, keepdims=True)
    return np.divide(centred(rewards_PN), mean_P1, out=np.zeros_like(rewards_PN), where=mean_P1 > 0).reshape(shape)


def pass_at_k_advantages(rewards: ArrayLike, k: int) -> Floats:
    """Pass@k training (arXiv 2508.10751, its analytical derivation): groups of k as units, standardized.

    With c right of N, rho = 1 - C(N-c, k) / C(N, k) and sigma^2 = rho (1 - rho), a right response gets
    (1 - rho) / sigma, a wrong one (1 - rho - C(N-c-1, k-1) / C(N-1, k-1)) / sigma; all get 0 where sigma is 0. It is
    the marginal set advantage of `pass_at_n`, divided by the standard deviation of the set scores.

    Raises ValueError unless 1 <= k <= N.
    """
    rewards_PN, shape = _rewards(rewards)
    _check_k(k, rewards_PN.shape[-1])
    right_PN = (rewards_PN > THRESHOLD).astype(np.float64)
    expected_PN = _PASS.expected_scores(right_PN, np.zeros_like(right_PN, dtype=np.int64), k)
    rho_P1 = expected_PN.mean(-1, keepdims=True)  # each response is in as many sets as any other
    sigma_P1 = np.sqrt(np.clip(rho_P1 * (1 - rho_P1), 0, None))
    advantages_PN = centred(expected_PN, 1.0)
    return np.divide(advantages_PN, sigma_P1, out=np.zeros_like(rewards_PN), where=sigma_P1 > 0).reshape(shape)


def pkpo_advantages(rewards: ArrayLike, k: int) -> Floats:
    """PKPO (arXiv 2505.15201): rewards that make an unbiased gradient of pass@k (max@k), less their mean.

    A right response is worth k/N, a wrong one (k/N) rho(N-1, c, k-1), with rho(N, c, k) = 1 - C(N-c, k) / C(N, k);
    rewards that are not 0 or 1 give their max@k, as in arXiv 2510.23393. The paper's leave-one-out baselines lower the
    variance of these; here, as for every scoring, it is the prompt's mean.

    Raises ValueError unless 1 <= k <= N.
    """
    rewards_PN, shape = _rewards(rewards)
    num_responses = rewards_PN.shape[-1]
    _check_k(k, num_responses)
    expected_PN = _PASS.expected_scores(rewards_PN, np.zeros_like(rewards_PN, dtype=np.int64), k)
    return (centred(expected_PN, np.abs(rewards_PN).max(-1, keepdims=True)) * k / num_responses).reshape(shape)


def darling_advantages(rewards: ArrayLike, clusters: ArrayLike, floor: float = 0.1) -> Floats:
    """DARLING (arXiv 2509.02534): z_i - mean z, z_i = r_i max((N - s_i) / (N - 1), floor), s_i the size of i's cluster.

    The factor is the share of the other responses that differ. A degenerate response is like none, and unlike none: it
    gets the floor. N = 1 gives 0.
    """
    rewards_PN, clusters_PN, shape = validated(rewards, clusters)
    num_responses = rewards_PN.shape[-1]
    differ_PN = (num_responses - _sizes(clusters_PN)) / max(num_responses - 1, 1)
    factor_PN = np.where(clusters_PN == DEGENERATE, floor, np.maximum(differ_PN, floor))
    return centred(rewards_PN * factor_PN).reshape(shape)


def uniqueness_advantages(rewards: ArrayLike, clusters: ArrayLike, alpha: float = 1.0) -> Floats:
    """Uniqueness-aware RL (arXiv 2601.08763): standardized rewards, divided by the size of i's cluster to the alpha.

    A_i = (r_i - mean r) / std r / s_i^alpha. That advantages are weighted inversely with the cluster's size is in the
    abstract; this form of the weight was not confirmed. A degenerate response is a cluster of its own here: its
    advantage is not made smaller.
    """
    rewards_PN, clusters_PN, shape = validated(rewards, clusters)
    sizes_PN = np.where(clusters_PN == DEGENERATE, 1, _sizes(clusters_PN))
    return (_standardized(rewards_PN) / sizes_PN**alpha).reshape(shape)


def f_grpo_advantages(rewards: ArrayLike, gamma: float = 1.0) -> Floats:
    """F-GRPO (arXiv 2602.06717): (1 - share right)^gamma times the standardized rewards: less of what is solved."""
    rewards_PN, shape = _rewards(rewards)
    share_P1 = (rewards_PN > THRESHOLD).mean(-1, keepdims=True)
    return ((1 - share_P1) ** gamma * _standardized(rewards_PN)).reshape(shape)


def w_reinforce_advantages(rewards: ArrayLike, weight: float = 0.1) -> Floats:
    """W-REINFORCE (arXiv 2506.01347): +weight for a right response, -1 for a wrong one; no baseline.

    Where all are wrong, or all right, there is a signal too: it is negative reinforcement first.
    """
    rewards_PN, shape = _rewards(rewards)
    return np.where(rewards_PN > THRESHOLD, float(weight), -1.0).reshape(shape)


def _rewards(rewards: ArrayLike) -> tuple[Floats, tuple[int, ...]]:
    rewards_PN, _, shape = validated(rewards, np.zeros(np.shape(rewards), dtype=np.int64))
    return rewards_PN, shape


def _standardized(rewards_PN: Floats) -> Floats:
    """(r - mean) / standard deviation of the N, 0 where all are alike."""
    deviations_PN = centred(rewards_PN)
    std_P1 = np.sqrt((deviations_PN**2).mean(-1, keepdims=True))
    return np.divide(deviations_PN, std_P1, out=np.zeros_like(rewards_PN), where=std_P1 > 0)


def _sizes(clusters_PN: Ints) -> Ints:
    return np.asarray((clusters_PN[:, :, None] == clusters_PN[:, None, :]).sum(-1))


def _check_k(k: int, num_responses: int) -> None:
    if not 1 <= k <= num_responses:
        raise ValueError(f"k must lie between 1 and N = {num_responses}, but is {k}")
