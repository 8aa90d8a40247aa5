"""How rewards and clusters become advantages: the sections that a run's `scoring` may be."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from polyepo.domains import Domain
from polyepo.judges import Judge
from polyepo.scoring.base import AnyMethod, OverlongPenalty
from polyepo.scoring.baselines import (
    DarlingScoring,
    DistinctAllSizesScoring,
    DSDRScoring,
    FGRPOScoring,
    GRPODivScoring,
    GRPOScoring,
    MaxAtKScoring,
    MaxRLScoring,
    PassAtKScoring,
    PKPOScoring,
    UniquenessScoring,
    UnlikelinessScoring,
    WReinforceScoring,
)
from polyepo.scoring.sets import SetScoring
from polyepo.section import digest, results_only

__all__ = [
    "AnyMethod",
    "AnyScoring",
    "GRPODivScoring",
    "GRPOScoring",
    "OverlongPenalty",
    "Scoring",
    "SetScoring",
    "check_scoring",
    "scoring_id",
]

Scoring = (
    SetScoring
    | GRPOScoring
    | GRPODivScoring
    | DistinctAllSizesScoring
    | MaxRLScoring
    | PassAtKScoring
    | PKPOScoring
    | MaxAtKScoring
    | DarlingScoring
    | UniquenessScoring
    | FGRPOScoring
    | WReinforceScoring
    | UnlikelinessScoring
    | DSDRScoring
)
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
    scoring.check(num_responses)
