"""Where a run's objective wants something else than right answers, by its configuration alone.

They are said before a run starts, with what would mend them; what comes of it while it trains is a finding of `drift`.
"""

from __future__ import annotations

import math

from polyepo.config import RunConfig
from polyepo.findings.base import Finding, Severity
from polyepo.objectives import Polychromic
from polyepo.scoring import GRPODivScoring, SetScoring

ALTERNATIVES = "mean_plus_distinct, distinct_successful or lexicographic"
"""Objectives that never pay more for a wrong response than for a right one."""

_NEARLY_ALL = 0.99
"""A share of right answers that is as good as all."""


def objective_findings(config: RunConfig) -> list[Finding]:
    """What the objective of a run would teach it wrongly, or learn badly from sets of this size."""
    if not config.steps:
        return []
    return [finding for finding in (wrong_optimum(config), _sets_overlap(config)) if finding is not None]


def wrong_optimum(config: RunConfig) -> Finding | None:
    """An objective that is best served by some wrong answers, where all right ones are one strategy."""
    if not (config.domain.has_one_answer and config.judge.clusters_by_answer(config.domain)):
        return None
    by_answer = f"judge {config.judge.name!r} puts all right ones into one cluster"
    scoring, size = config.scoring, config.sampling.num_responses
    if isinstance(scoring, SetScoring) and scoring.objective == "polychromic" and scoring.set_size < size:
        n, objective = scoring.set_size, Polychromic(scoring.require_two_clusters)
        one, two = (objective.best_right_share(n, num_right) for num_right in (1, 2))
        if one > _NEARLY_ALL:
            return None
        return Finding(
            Severity.WARNING,
            f"scoring.objective polychromic pays for wrong answers that differ, and {by_answer}: sets of {n} score "
            f"best at {one:.0%} right answers (with two right strategies at {two:.0%}), so a policy that is better "
            "than that is made worse",
            f"set scoring.objective to {ALTERNATIVES}, for which 100% is best, or take a judge of strategies",
        )
    # Up to a weight of 1 no wrong response can earn more than a right one.
    if isinstance(scoring, GRPODivScoring) and scoring.weight > 1 and size > 1:
        share = div_right_share(scoring.weight, size)
        if share > _NEARLY_ALL:
            return None
        return Finding(
            Severity.WARNING,
            f"scoring.weight {scoring.weight:g} of grpo_div pays more for a wrong answer that differs than for a right "
            f"one that does not, and {by_answer}: nothing pulls beyond {share:.0%} right answers",
            "lower scoring.weight to at most 1, for which 100% is best, or take a judge of strategies",
        )
    return None


def div_right_share(weight: float, num_responses: int, num_wrong: int = 20) -> float:
    """The share p of right answers, all of one cluster, at which GRPO+DIV pulls neither way.

    That is where a right response i earns as much on average as another response j of its group, which differs as well
    in what i leaves it: d = (N/s - 1) / (N - 1) with s = 1 + Binomial(N-1, p) for i; with s = 2 + Binomial(N-2, p) for
    j if it is right, too; and with s = 1 + Binomial(N-2, (1-p)/w) for j if it is wrong.

    Args:
        weight: lambda.
        num_responses: N.
        num_wrong: w, clusters of wrong responses.
    """

    def bonus(smallest: int, draws: int, share: float) -> float:
        """Mean of d for a cluster of `smallest` responses and those of so many draws that fall into it."""
        chances = (math.comb(draws, k) * share**k * (1 - share) ** (draws - k) for k in range(draws + 1))
        inverse = sum(chance / (smallest + k) for k, chance in enumerate(chances))
        return (num_responses * inverse - 1) / (num_responses - 1)

    def pull(share: float) -> float:
        own = 1 + weight * bonus(1, num_responses - 1, share)
        other_right = 1 + weight * bonus(2, num_responses - 2, share)
        other_wrong = weight * bonus(1, num_responses - 2, (1 - share) / num_wrong)
        return own - share * other_right - (1 - share) * other_wrong

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if pull(middle) > 0 else (low, middle)
    return high


def _sets_overlap(config: RunConfig) -> Finding | None:
    """So few responses that every set holds most of every other."""
    if not isinstance(config.scoring, SetScoring):
        return None
    n, size = config.scoring.set_size, config.sampling.num_responses
    if not size / 2 < n < size:
        return None
    return Finding(
        Severity.WARNING,
        f"scoring.set_size {n} of sampling.num_responses {size}: any two sets share {2 * n - size} responses or more, "
        f"and a response is compared with the {math.comb(size - 1, n):,} sets without it",
        f"lower scoring.set_size to at most {size // 2}, or raise sampling.num_responses to {2 * n}",
    )
