"""Marginal set advantages: the scoring of Poly-EPO, with any set objective."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from polyepo.advantages import MAX_ENUMERATED_SETS, marginal_set_advantages
from polyepo.objectives import BY_NAME, Floats, Ints, Polychromic, SetObjective
from polyepo.own_objective import OwnObjective
from polyepo.scoring.base import AnyMethod

ObjectiveName = Literal[
    "polychromic", "distinct_successful", "mean_plus_distinct", "lexicographic", "pass_at_n", "mean_reward"
]

_TITLES = {"polychromic": "Poly-EPO", "pass_at_n": "pass@n"}


class SetScoring(AnyMethod):
    """Marginal set advantages of a set objective (Poly-EPO)."""

    method: Literal["poly_epo"] = "poly_epo"
    objective: ObjectiveName | OwnObjective = "polychromic"
    """One of ours; or a function or class of your own by reference, `objective.py:score`, with its settings in a
    section if it has any: {name: "objective.py:Score", weight: 2}."""
    require_two_clusters: bool = True
    """Polychromic only: a set that sits in a single cluster scores 0."""
    set_size: int = Field(4, ge=1)
    """n: responses per set."""
    num_sets: int | None = Field(None, ge=1)
    """K sets drawn without replacement; all C(N, n) of them, in closed form, if not given."""
    aggregate: Literal["mean", "sum"] = "mean"

    @field_validator("objective", mode="before")
    @classmethod
    def _by_reference(cls, objective: Any) -> Any:
        named = isinstance(objective, str) and objective not in BY_NAME
        return {"name": objective} if named else objective

    def set_objective(self) -> SetObjective:
        """The set objective this section names. Raises MissingCodeError if nobody here provides its code."""
        if isinstance(self.objective, OwnObjective):
            return self.objective.load()
        if self.objective == "polychromic":
            return Polychromic(self.require_two_clusters)
        return BY_NAME[self.objective]()

    @property
    def uses_clusters(self) -> bool:
        """Whether the set objective looks at clusters; one that does not say so does."""
        if isinstance(self.objective, OwnObjective):
            return True
        return bool(getattr(self.set_objective(), "uses_clusters", True))

    @property
    def objective_name(self) -> str:
        """What the scores table calls the objective."""
        return self.objective.name if isinstance(self.objective, OwnObjective) else self.objective

    def advantages(self, rewards_PN: Floats, clusters_PN: Ints, seed: int, logprobs_PN: Floats | None = None) -> Floats:
        """Marginal set advantages; zeros where there are too few responses for a single set."""
        if rewards_PN.shape[-1] < self.set_size:
            return np.zeros_like(rewards_PN)
        return marginal_set_advantages(
            rewards_PN,
            clusters_PN,
            self.set_size,
            self.set_objective(),
            num_sets=self.num_sets,
            seed=seed,
            aggregate=self.aggregate,
        )

    def title(self, num_responses: int) -> str:
        """What people call the objective, with its sets."""
        name = _TITLES.get(self.objective_name, self.objective_name.replace("_", " "))
        drawn = "" if self.num_sets is None else f", K = {self.num_sets} sets"
        return f"{name}, n = {self.set_size} of N = {num_responses}{drawn}"

    def check(self, num_responses: int) -> None:
        """Raise ValueError if sets of n, or K of them, cannot be drawn from N responses."""
        if self.set_size > num_responses:
            raise ValueError(
                f"scoring.set_size (n) {self.set_size} must not exceed sampling.num_responses (N) {num_responses}"
            )
        num_all = math.comb(num_responses, self.set_size)
        if self.num_sets and self.num_sets > num_all:
            raise ValueError(
                f"scoring.num_sets (K) {self.num_sets} must not exceed C({num_responses}, {self.set_size}) = {num_all}"
            )
        own = isinstance(self.objective, OwnObjective) and not self.objective.has_closed_form
        if own and not self.num_sets and num_all > MAX_ENUMERATED_SETS:
            raise ValueError(
                f"scoring.objective {self.objective_name!r} has no expected_scores, and all {num_all} sets of "
                f"{self.set_size} of {num_responses} responses are too many to list: set scoring.num_sets"
            )
        if self.num_sets and self.num_sets > MAX_ENUMERATED_SETS:
            raise ValueError(
                f"scoring.num_sets (K) {self.num_sets} must not exceed {MAX_ENUMERATED_SETS}; "
                "leave it out for all sets in closed form"
            )
