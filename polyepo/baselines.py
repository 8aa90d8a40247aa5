"""Advantages that other papers propose, one function each: from rewards (and clusters) of a prompt's N responses.

All take (..., N) rewards, finite, and return (..., N) float64; docs/objectives.md says where each formula was
confirmed. A response is right if its reward is above .5. Standard deviations are those of the N (no N - 1), and there
is no epsilon: where all are alike every advantage is exactly 0. Needs numpy alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from polyepo.advantages import centred, validated
from polyepo.objectives import DEGENERATE, THRESHOLD, Floats, Ints, PassAtN, miss_table
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
    """MaxRL (arXiv 2602.02710; the authors' code): (r_i - mean r) / mean r, 0 where nothing succeeds.

    Rewards of 0 and 1 make it N/c - 1 for each of c right responses and -1 for the wrong ones: less is gained from what
    is solved already. Raises ValueError if a reward is negative: the mean would be no rate of success.
    """
    rewards_PN, shape = _rewards(rewards)
    if (rewards_PN < 0).any():
        raise ValueError(f"rewards must not be negative for MaxRL, but contain {rewards_PN.min()}")
    mean_P1 = rewards_PN.mean(-1, keepdims=True)
    return np.divide(centred(rewards_PN), mean_P1, out=np.zeros_like(rewards_PN), where=mean_P1 > 0).reshape(shape)


def pass_at_k_advantages(rewards: ArrayLike, k: int) -> Floats:
    """Pass@k training (arXiv 2508.10751, Eqs. 11, 12, 14, 15): groups of k are the units that are standardized.

    With c right of N, rho = 1 - C(N-c, k) / C(N, k) and sigma^2 = rho (1 - rho), a right response gets
    (1 - rho) / sigma, a wrong one (1 - rho - C(N-c-1, k-1) / C(N-1, k-1)) / sigma; all get 0 where sigma is 0. It is
    the marginal set advantage of `pass_at_n`, divided by the standard deviation of the set scores; k = 1 is GRPO,
    standardized.

    Raises ValueError unless 1 <= k <= N.
    """
    rewards_PN, shape = _rewards(rewards)
    _check_k(k, rewards_PN.shape[-1])
    right_PN = (rewards_PN > THRESHOLD).astype(np.float64)
    expected_PN = _expected_best(right_PN, k)
    rho_P1 = expected_PN.mean(-1, keepdims=True)  # each response is in as many sets as any other
    sigma_P1 = np.sqrt(np.clip(rho_P1 * (1 - rho_P1), 0, None))
    advantages_PN = centred(expected_PN, 1.0)
    return np.divide(advantages_PN, sigma_P1, out=np.zeros_like(rewards_PN), where=sigma_P1 > 0).reshape(shape)


def pkpo_advantages(rewards: ArrayLike, k: int) -> Floats:
    """PKPO (arXiv 2505.15201, Eq. 33): how much better the best of k is for having i, over all sets of k with i.

    s_i^(loo-1) = 1/C(N, k) sum over sets I of k that hold i of  max_I r - max_(I without i) r: an unbiased gradient of
    max@k. Only what lies below i counts,

        s_i = k/N int_{min r}^{r_i} C(#{j : r_j <= t}, k-1) / C(N-1, k-1) dt,

    so that with c right of N a right response gets k/N C(N-c, k-1) / C(N-1, k-1), and nothing is ever pushed down. For
    k = 1, where Eq. 33 has no baseline, it is Eq. 26, rewards less the mean of the others, as in the paper's runs:
    GRPO, divided by N - 1.

    Raises ValueError unless 1 <= k <= N.
    """
    rewards_PN, shape = _rewards(rewards)
    num_responses = rewards_PN.shape[-1]
    _check_k(k, num_responses)
    if k == 1:
        return (centred(rewards_PN) / max(num_responses - 1, 1)).reshape(shape)
    # Of s responses above t one is i: k-1 of the N-1 others must miss the s-1 others among them.
    weights = np.concatenate(([0.0], miss_table(num_responses - 1, k - 1, num_responses - 1)))
    above_lowest_PN = rewards_PN - rewards_PN.min(-1, keepdims=True)
    one_cluster_PN = np.zeros_like(rewards_PN, dtype=np.int64)
    return (k / num_responses * tail_integrals(above_lowest_PN, one_cluster_PN, weights)[0]).reshape(shape)


def max_at_k_advantages(rewards: ArrayLike, k: int) -> Floats:
    """max@k (arXiv 2510.23393, Eq. 9 with the variance reduction that its section 4.3 calls "BoN mean"), on-policy.

    The transformed reward is i's share of the best of all sets of k, sum_j w_ij r_j / C(N, k), where w_ij counts the
    sets that hold i and have j as their best; advantages are these, standardized. k = 1 is GRPO, standardized. The
    paper's off-policy weights (Eq. 10) are no function of rewards, and not here.

    Raises ValueError unless 1 <= k <= N.
    """
    rewards_PN, shape = _rewards(rewards)
    _check_k(k, rewards_PN.shape[-1])
    largest_P1 = np.abs(rewards_PN).max(-1, keepdims=True)
    return _standardized(_expected_best(rewards_PN, k), largest_P1).reshape(shape)


def darling_advantages(rewards: ArrayLike, clusters: ArrayLike, floor: float = 0.1) -> Floats:
    """DARLING (arXiv 2509.02534; the authors' code, `partition`): rewards times the share of the others that differ.

    A_i = z_i - mean z, z_i = r_i max((N - s_i) / (N - 1), floor), where s_i is the size of i's cluster; one cluster
    makes it GRPO times the floor. Whether the paper divides by the standard deviation was not confirmed; here it is
    not. A degenerate response is like none, and unlike none: it gets the floor. N = 1 gives 0.
    """
    rewards_PN, clusters_PN, shape = validated(rewards, clusters)
    factor_PN = np.where(clusters_PN == DEGENERATE, floor, np.maximum(_share_that_differs(clusters_PN), floor))
    return centred(rewards_PN * factor_PN).reshape(shape)


def uniqueness_advantages(rewards: ArrayLike, clusters: ArrayLike, alpha: float = 1.0) -> Floats:
    """Uniqueness-aware RL (arXiv 2601.08763, Eqs. 1, 3 to 5): (r_i - mean r) / std r / s_i^alpha.

    s_i is the size of i's cluster: among right and wrong responses alike, common ones move the policy less. alpha in
    0..1, whose value in the paper's runs is not stated; 0 is GRPO, standardized. Advantages of a prompt do not sum to
    0. A degenerate response, which the paper does not have, is a cluster of its own: its advantage is not made smaller.
    """
    rewards_PN, clusters_PN, shape = validated(rewards, clusters)
    sizes_PN = np.where(clusters_PN == DEGENERATE, 1, _sizes(clusters_PN))
    return (_standardized(rewards_PN) / sizes_PN**alpha).reshape(shape)


def f_grpo_advantages(rewards: ArrayLike, gamma: float = 1.0) -> Floats:
    """F-GRPO (arXiv 2602.06717, Eqs. 11 to 13): (1 - share right)^gamma (r_i - mean r) / std r: less of what is solved.

    gamma = 0 is GRPO, standardized; the paper uses .5 and 1.
    """
    rewards_PN, shape = _rewards(rewards)
    share_P1 = (rewards_PN > THRESHOLD).mean(-1, keepdims=True)
    return ((1 - share_P1) ** gamma * _standardized(rewards_PN)).reshape(shape)


def w_reinforce_advantages(rewards: ArrayLike, weight: float = 0.1) -> Floats:
    """W-REINFORCE (arXiv 2506.01347; the authors' code): +weight for a right response, -1 for a wrong one; no baseline.

    Where all are wrong, or all right, there is a signal too: it is negative reinforcement first.
    """
    rewards_PN, shape = _rewards(rewards)
    return np.where(rewards_PN > THRESHOLD, float(weight), -1.0).reshape(shape)


def unlikeliness_advantages(rewards: ArrayLike, logprobs: ArrayLike, beta: float = 0.25) -> Floats:
    """Unlikeliness reward (arXiv 2506.02355; the authors' code): of right responses the likeliest are worth less.

    A_i = (z_i - mean z) / std z, z_i = r_i (1 - beta rank_i / N), where rank_i counts the prompt's responses that are
    less likely than i by their mean log-probability per token; ties share the mean of their ranks, where the code
    orders them by chance. A report of the paper's formula has ranks that are larger by 1, and so factors that are
    smaller by beta / N. beta = 0 is GRPO, standardized.

    Args:
        rewards: (..., N) finite rewards.
        logprobs: (..., N) finite mean log-probabilities per token, of the policy that sampled.
        beta: how much less the likeliest right response is worth.

    Raises:
        ValueError: shapes differ, or something is not finite.
    """
    rewards_PN, shape = _rewards(rewards)
    logprobs_PN, logprobs_shape = _rewards(logprobs)
    if logprobs_shape != shape:
        raise ValueError(f"logprobs must have the shape of rewards {shape}, but has {logprobs_shape}")
    than_PNN = logprobs_PN[:, :, None] - logprobs_PN[:, None, :]
    rank_PN = (than_PNN > 0).sum(-1) + ((than_PNN == 0).sum(-1) - 1) / 2
    return _standardized(rewards_PN * (1 - beta * rank_PN / rewards_PN.shape[-1])).reshape(shape)


def dsdr_advantages(rewards: ArrayLike, clusters: ArrayLike, weight: float = 0.001) -> Floats:
    """DSDR's global scale (arXiv 2602.19895, Eqs. 2, 6, 10): a bonus for right responses that differ from the others.

    A_i = (z_i - mean z) / std z, z_i = r_i + weight d_i if i is right, else r_i. The paper's d_i averages the cosine
    distances of an embedding to the others (Eq. 6) with the share of formulas that are i's own (Eq. 8), and is clipped
    at a value that is not stated; here clusters say which differ, so d_i is the share of the others in another
    cluster, 0 for a degenerate response. The local scale, an entropy bonus on right responses' tokens (Eqs. 11 to 15),
    belongs to the loss, and is not here. weight is the paper's lambda_d; one cluster, or 0, is GRPO, standardized.
    """
    rewards_PN, clusters_PN, shape = validated(rewards, clusters)
    bonus_PN = np.where(clusters_PN == DEGENERATE, 0.0, _share_that_differs(clusters_PN))
    return _standardized(rewards_PN + weight * bonus_PN * (rewards_PN > THRESHOLD)).reshape(shape)


def _rewards(rewards: ArrayLike) -> tuple[Floats, tuple[int, ...]]:
    rewards_PN, _, shape = validated(rewards, np.zeros(np.shape(rewards), dtype=np.int64))
    return rewards_PN, shape


def _standardized(values_PN: Floats, scale_P1: Floats | float = 0.0) -> Floats:
    """(v - mean) / standard deviation of the N, 0 where all are alike up to rounding at the scale of their terms."""
    deviations_PN = centred(values_PN, scale_P1)
    std_P1 = np.sqrt((deviations_PN**2).mean(-1, keepdims=True))
    return np.divide(deviations_PN, std_P1, out=np.zeros_like(values_PN), where=std_P1 > 0)


def _expected_best(rewards_PN: Floats, k: int) -> Floats:
    """Mean of the best reward over all sets of k that hold i."""
    return _PASS.expected_scores(rewards_PN, np.zeros_like(rewards_PN, dtype=np.int64), k)


def _share_that_differs(clusters_PN: Ints) -> Floats:
    """Share of the other responses that are in another cluster; 0 where there are no others."""
    num_responses = clusters_PN.shape[-1]
    return np.asarray((num_responses - _sizes(clusters_PN)) / max(num_responses - 1, 1))


def _sizes(clusters_PN: Ints) -> Ints:
    return np.asarray((clusters_PN[:, :, None] == clusters_PN[:, None, :]).sum(-1))


def _check_k(k: int, num_responses: int) -> None:
    if not 1 <= k <= num_responses:
        raise ValueError(f"k must lie between 1 and N = {num_responses}, but is {k}")
