"""How rewards and clusters become advantages: the sections that a run's `scoring` may be."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from polyepo.advantages import (
    MAX_ENUMERATED_SETS,
    grpo_advantages,
    grpo_div_advantages,
    marginal_set_advantages,
)
from polyepo.domains import Domain
from polyepo.judges import Judge
from polyepo.objectives import Floats, Ints, MeanReward, PassAtN, Polychromic, SetObjective
from polyepo.own_objective import OwnObjective
from polyepo.section import Operational, Section, added, digest, results_only

_OBJECTIVES = ("polychromic", "pass_at_n", "mean_reward")


class OverlongPenalty(Section):
    """The soft overlong punishment of DAPO (arXiv 2503.14476): long responses lose reward before sets are scored.

    Up to max_response_tokens - buffer_tokens nothing; from there on linearly, `factor` at max_response_tokens.
    """

    buffer_tokens: int = Field(ge=1)
    factor: float = Field(1.0, gt=0)


class AnyMethod(Section):
    """What every scoring has."""

    overlong_penalty: OverlongPenalty | None = added(None)
    max_ungraded_rate: Annotated[float, Operational()] = added(0.05, ge=0, le=1)
    """Share of a step's responses that could not be graded above which the run stops. Their prompts take no part."""

    @property
    def uses_clusters(self) -> bool:
        """Whether advantages depend on clusters: if they do, a prompt without labels takes no part."""
        return True

    @property
    def objective_name(self) -> str:
        """What the scores table calls the objective."""
        return str(getattr(self, "method", ""))

    def advantages(self, rewards_PN: Floats, clusters_PN: Ints, seed: int) -> Floats:
        """One advantage per response, (P, N); the seed is for scorings that draw sets."""
        raise NotImplementedError


class SetScoring(AnyMethod):
    """Marginal set advantages of a set objective (Poly-EPO)."""

    method: Literal["poly_epo"] = "poly_epo"
    objective: Literal["polychromic", "pass_at_n", "mean_reward"] | OwnObjective = "polychromic"
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
        named = isinstance(objective, str) and objective not in _OBJECTIVES
        return {"name": objective} if named else objective

    def set_objective(self) -> SetObjective:
        """The set objective this section names. Raises MissingCodeError if nobody here provides its code."""
        if isinstance(self.objective, OwnObjective):
            return self.objective.load()
        if self.objective == "polychromic":
            return Polychromic(self.require_two_clusters)
        return PassAtN() if self.objective == "pass_at_n" else MeanReward()

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

    def advantages(self, rewards_PN: Floats, clusters_PN: Ints, seed: int) -> Floats:
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


class GRPOScoring(AnyMethod):
    """A_i = r_i - mean r."""

    method: Literal["grpo"]

    @property
    def uses_clusters(self) -> bool:
        """No: rewards are all it takes."""
        return False

    def advantages(self, rewards_PN: Floats, clusters_PN: Ints, seed: int) -> Floats:
        """Rewards less their prompt's mean."""
        return grpo_advantages(rewards_PN)


class GRPODivScoring(AnyMethod):
    """A_i = z_i - mean z, with z_i = r_i + weight * d_i: an additive diversity bonus per response."""

    method: Literal["grpo_div"]
    weight: float = Field(0.5, ge=0)

    def advantages(self, rewards_PN: Floats, clusters_PN: Ints, seed: int) -> Floats:
        """Rewards and diversity bonus, less their prompt's mean."""
        return grpo_div_advantages(rewards_PN, clusters_PN, self.weight)


Scoring = SetScoring | GRPOScoring | GRPODivScoring
AnyScoring = Annotated[Scoring, Field(discriminator="method")]


def scoring_id(scoring: Scoring, judge: Judge, verifier: Domain | None = None) -> str:
    """The name of a scoring in the store: what it is, then what exactly, of which judge's labels.

    A verifier other than the run's own domain belongs to it.
    """
    content: dict[str, Any] = {"scoring": results_only(scoring), "judge": judge.judge_id}
    if verifier is not None:
        content["verifier"] = results_only(verifier)
    return f"{scoring.method}-{digest(content)[:8]}"


def check_scoring(scoring: Scoring, num_responses: int, max_response_tokens: int) -> None:
    """Raise ValueError if so many responses to a prompt, of so many tokens, cannot be scored so."""
    penalty, limit = scoring.overlong_penalty, max_response_tokens
    if penalty and penalty.buffer_tokens > limit:
        raise ValueError(
            f"scoring.overlong_penalty.buffer_tokens {penalty.buffer_tokens} must not exceed "
            f"sampling.max_response_tokens {limit}"
        )
    if isinstance(scoring, SetScoring):
        _check_sets(scoring, num_responses)


def _check_sets(scoring: SetScoring, num_responses: int) -> None:
    """Raise ValueError if sets of n, or K of them, cannot be drawn from N responses."""
    if scoring.set_size > num_responses:
        raise ValueError(
            f"scoring.set_size (n) {scoring.set_size} must not exceed sampling.num_responses (N) {num_responses}"
        )
    num_all = math.comb(num_responses, scoring.set_size)
    if scoring.num_sets and scoring.num_sets > num_all:
        raise ValueError(
            f"scoring.num_sets (K) {scoring.num_sets} must not exceed "
            f"C({num_responses}, {scoring.set_size}) = {num_all}"
        )
    own = isinstance(scoring.objective, OwnObjective) and not scoring.objective.has_closed_form
    if own and not scoring.num_sets and num_all > MAX_ENUMERATED_SETS:
        raise ValueError(
            f"scoring.objective {scoring.objective_name!r} has no expected_scores, and all {num_all} sets of "
            f"{scoring.set_size} of {num_responses} responses are too many to list: set scoring.num_sets"
        )
    if scoring.num_sets and scoring.num_sets > MAX_ENUMERATED_SETS:
        raise ValueError(
            f"scoring.num_sets (K) {scoring.num_sets} must not exceed {MAX_ENUMERATED_SETS}; "
            "leave it out for all sets in closed form"
        )
