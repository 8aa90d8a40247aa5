"""The objective of Poly-EPO: mean reward times diversity (arXiv 2604.17654)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polyepo.objectives.base import Floats, Ints, by_cluster, miss_table, num_distinct

_GRID = 10_000
"""Shares that are tried: the best is known to 1e-4."""


@dataclass(frozen=True)
class Polychromic:
    """Mean reward of the set times its diversity: (distinct non-degenerate clusters) / n (arXiv 2604.17654).

    It takes for granted that a prompt has enough right strategies: a wrong response of another cluster raises the worth
    of the right ones beside it, so with one or two the best policy is wrong at times (`best_right_share`), and a wrong
    response may get more than a right one, the more so the larger n is. Rewards may be any real numbers.

    Args:
        require_two_clusters: a set with fewer than two non-degenerate clusters scores 0 (the indicator of the
            paper's Algorithm 1).
    """

    require_two_clusters: bool = True

    def __call__(self, rewards: Floats, clusters: Ints, /) -> Floats:
        """Set scores (...,) of rewards (..., n) and clusters (..., n)."""
        distinct = num_distinct(clusters)
        counted = np.where(distinct > 1, distinct, 0) if self.require_two_clusters else distinct
        return rewards.mean(-1) * counted / rewards.shape[-1]

    def best_right_share(self, set_size: int, num_right: int, num_wrong: int = 20) -> float:
        """The share p of right answers at which sets of n drawn from a policy score best: below 1, it pays to be wrong.

        A policy that is right in m clusters and wrong in w others, evenly in either, has the mean score

            p/n [ 1 + (m-1) (1 - (1 - p/m)^(n-1)) + w (1 - (1 - (1-p)/w)^(n-1)) ]

        (the chance that a response is right, times the clusters that are expected with it in its set), and with
        `require_two_clusters` p/n (p/m)^(n-1) less, for sets that sit in one cluster. By a grid of shares.

        Args:
            set_size: n.
            num_right: m, clusters of right responses that a problem has.
            num_wrong: w, clusters of wrong ones.
        """
        share = np.linspace(0, 1, _GRID + 1)
        draws = set_size - 1
        others = (num_right - 1) * (1 - (1 - share / num_right) ** draws)
        others += num_wrong * (1 - (1 - (1 - share) / num_wrong) ** draws)
        single = (share / num_right) ** draws if self.require_two_clusters else 0.0
        scores = share * (1 + others - single)
        # Of shares that score the same up to rounding, the one with most right answers.
        return float(share[np.flatnonzero(scores >= scores.max() * (1 - 1e-12))[-1]])

    def expected_scores(self, rewards_PN: Floats, clusters_PN: Ints, set_size: int) -> Floats:
        """Mean score of all sets of `set_size` that contain response i, (P, N), without enumerating them.

        The score is a sum over pairs (response, cluster), so its mean over sets is a sum of hypergeometric
        probabilities. With s_k the size of cluster k, R_k its total reward, R the prompt's and
        hit(s; M, m) = 1 - C(M-s, m) / C(M, m) the chance that m draws from M items touch a given s of them,
        a response i in cluster a has n^2 E[f | i in G] =

            r_i (1 + sum_{k!=a} hit(s_k; N-1, n-1))
            + (n-1)/(N-1) [ (R - r_i) (1 + sum_{k!=a} hit(s_k; N-2, n-2))
                            + sum_{k!=a} R_k (1 - hit(s_k; N-2, n-2)) ]

        where a degenerate i has no cluster of its own (no "1", no k left out). `require_two_clusters` takes
        away the sets that hold a single cluster, with D degenerate responses of total reward R_D and a pool
        of m = s_a + D:

            ( r_i C(m-1, n-1) + (R_a + R_D - r_i) C(m-2, n-2) ) / C(N-1, n-1)

        and, for a degenerate i, the sum over k of the same for the pool s_k + D, each minus that for the pool
        D. Cost: O(N) per prompt after tables. Responses alike in reward and cluster get bitwise one value.
        """
        num_responses = rewards_PN.shape[-1]
        miss1 = miss_table(num_responses - 1, set_size - 1, num_responses)
        miss2 = miss_table(num_responses - 2, set_size - 2, num_responses)
        pair = (set_size - 1) / max(num_responses - 1, 1)
        own_PN, sizes_PK, rewards_PK, ok_PN = by_cluster(rewards_PN, clusters_PN)
        hit1_PK, hit2_PK = 1 - miss1[sizes_PK], 1 - miss2[sizes_PK]

        def others(values_PK: Floats) -> Floats:
            """Sum over all clusters but the response's own."""
            own = np.where(ok_PN, np.take_along_axis(values_PK, own_PN, -1), 0.0)
            return values_PK.sum(-1, keepdims=True) - own

        rest_PN = rewards_PN.sum(-1, keepdims=True) - rewards_PN
        total_PN = rewards_PN * (ok_PN + others(hit1_PK))
        total_PN += pair * (rest_PN * (ok_PN + others(hit2_PK)) + others(rewards_PK * (1 - hit2_PK)))
        if self.require_two_clusters:
            inside1 = miss1[::-1]  # C(m-1, n-1) / C(N-1, n-1) for a pool of m: the N-m outside it are missed
            inside2 = pair * miss2[::-1]
            degenerate_PN = ~ok_PN
            num_degenerate_P1 = degenerate_PN.sum(-1, keepdims=True)
            degenerate_reward_P1 = (rewards_PN * degenerate_PN).sum(-1, keepdims=True)
            pool_PK = np.where(sizes_PK > 0, sizes_PK + num_degenerate_P1, 0)
            pool_reward_PK = np.where(sizes_PK > 0, rewards_PK + degenerate_reward_P1, 0.0)

            def within(pool: Ints, pool_reward: Floats, reward: Floats) -> Floats:
                """Summed rewards of the sets inside a pool that contain i, as a share of all sets with i."""
                return reward * inside1[pool] + (pool_reward - reward) * inside2[pool]

            own_pool = np.take_along_axis(pool_PK, own_PN, -1)
            own_pool_reward = np.take_along_axis(pool_reward_PK, own_PN, -1)
            single_ok = within(own_pool, own_pool_reward, rewards_PN)
            num_clusters_P1 = (sizes_PK > 0).sum(-1, keepdims=True)
            inside1_P1 = (inside1[pool_PK] * (sizes_PK > 0)).sum(-1, keepdims=True)
            inside2_PK = inside2[pool_PK] * (sizes_PK > 0)
            single_degenerate = (
                rewards_PN * (inside1_P1 - inside2_PK.sum(-1, keepdims=True))
                + (inside2_PK * pool_reward_PK).sum(-1, keepdims=True)
                - num_clusters_P1 * within(num_degenerate_P1, degenerate_reward_P1, rewards_PN)
            )
            total_PN -= np.where(ok_PN, single_ok, single_degenerate)
        return total_PN / set_size**2
