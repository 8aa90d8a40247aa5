"""Where a run's objective wants something else than right answers, by its configuration alone.

They are said before a run starts, with what would mend them; what comes of it while it trains is a finding of `drift`.
"""

from __future__ import annotations

import math

from polyepo.config import RunConfig
from polyepo.findings.base import Finding, Severity
from polyepo.objectives import Polychromic
from polyepo.scoring import SetScoring

ALTERNATIVES = "mean_plus_distinct, distinct_successful or lexicographic"
"""Objectives that never pay more for a wrong response than for a right one."""


def objective_findings(config: RunConfig) -> list[Finding]:
    """What the objective of a run would teach it wrongly, or learn badly from sets of this size."""
    if not config.steps:
        return []
    return [finding for finding in (wrong_optimum(config), _sets_overlap(config)) if finding is not None]


def wrong_optimum(config: RunConfig) -> Finding | None:
    """A product of reward and diversity, where all right responses are one strategy."""
    scoring, judge = config.scoring, config.judge
    if not isinstance(scoring, SetScoring) or scoring.objective != "polychromic":
        return None
    if not (config.domain.has_one_answer and judge.clusters_by_answer(config.domain)):
        return None
    objective, n = Polychromic(scoring.require_two_clusters), scoring.set_size
    one, two = (objective.best_right_share(n, num_right) for num_right in (1, 2))
    if one == 1 or n >= config.sampling.num_responses:
        return None
    return Finding(
        Severity.WARNING,
        f"scoring.objective polychromic pays for wrong answers that differ, and judge {judge.name!r} puts all right "
        f"ones into one cluster: sets of {n} score best at {one:.0%} right answers (with two right strategies at "
        f"{two:.0%}), so a policy that is better than that is made worse",
        f"set scoring.objective to {ALTERNATIVES}, for which 100% is best, or take a judge of strategies",
    )


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
