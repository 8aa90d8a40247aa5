"""The numbers that rules look at: rows of the updates table, and what they amount to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from polyepo.config import RunConfig
from polyepo.own_objective import OwnObjective
from polyepo.scoring import GRPODivScoring, SetScoring

RECENT = 20
"""Steps that count as now, and as the start: enough prompts for a rate, few enough to notice a change."""
MIN_PROMPTS = 16
"""Fewer say nothing: of 16 prompts of which each has a gradient with chance 1/5, none has one in 3 % of the cases."""

FLIPPED = 0.2
"""A fifth of the prompts teaching the opposite of the reward is more than noise about ties."""

_SOLVED = 0.9
_ROUNDING = 1e-9
"""A standard deviation of equal numbers."""


@dataclass(frozen=True)
class HeldOut:
    """Mean rewards of the same held-out problems by the base model and by a later policy."""

    step: int
    base: Sequence[float]
    now: Sequence[float]


@dataclass(frozen=True)
class Evidence:
    """Some steps of a run, and those at its start where these are others."""

    config: RunConfig
    rows: Sequence[Mapping[str, Any]]
    start: Evidence | None = None
    whole: Evidence | None = None
    """All steps, if `rows` are only the last of them."""

    @property
    def finished(self) -> bool:
        """Whether the run's last step is among them."""
        return int(self.rows[-1]["step"]) >= self.config.steps

    @property
    def complete(self) -> bool:
        """Whether they are all of the run's steps so far."""
        return len(self.rows) == self.rows[-1]["step"]

    @property
    def when(self) -> str:
        """What they are called in a sentence."""
        last, count = self.rows[-1]["step"], len(self.rows)
        if not self.complete:
            return f"in the last {count} of {last} steps"
        if count == 1:
            return "in the one step" if self.finished else "in the first step"
        return f"in all {count} steps" if self.finished else f"in the {count} steps so far"

    def total(self, name: str) -> int:
        """Sum of a column of counts; what is unknown adds nothing."""
        return sum(row.get(name) or 0 for row in self.rows)

    def mean(self, name: str) -> float | None:
        """Mean of a column over the steps in which it is known; None if it is in none."""
        known = [float(row[name]) for row in self.rows if row.get(name) is not None]
        return fmean(known) if known else None

    def over(self, name: str, threshold: float) -> bool:
        """Whether a column is known, and its mean above a threshold."""
        value = self.mean(name)
        return value is not None and value > threshold

    @cached_property
    def signal(self) -> float:
        """Share of prompts with a gradient."""
        return self.total("prompts_with_signal") / max(self.total("prompts"), 1)

    @property
    def solved(self) -> bool:
        """Whether nearly every response is right, which is why little is left to learn, or to vary."""
        return self.over("reward_mean", _SOLVED)

    @property
    def constant_reward(self) -> bool:
        """Whether every response of a step earned the same, in all steps."""
        spread = self.mean("reward_std")
        return spread is not None and spread < _ROUNDING

    @property
    def constant_since_the_start(self) -> bool:
        """Whether that was so from the beginning, and is not the end of a run that has learnt its problems."""
        return self.constant_reward and (self.complete or (self.start is not None and self.start.constant_reward))

    @property
    def uses_clusters(self) -> bool:
        """Whether the run's advantages depend on clusters."""
        scoring = self.config.scoring
        # Nobody knows what a user's own objective does with them.
        unknown = isinstance(scoring, SetScoring) and isinstance(scoring.objective, OwnObjective)
        unweighted = isinstance(scoring, GRPODivScoring) and scoring.weight == 0
        return scoring.uses_clusters and not unknown and not unweighted
