"""What every scoring of a run has: how rewards and clusters become advantages."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from polyepo.objectives import Floats, Ints
from polyepo.section import Operational, Section, added


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

    def title(self, num_responses: int) -> str:
        """What people call it, of N responses."""
        return self.objective_name

    def check(self, num_responses: int) -> None:
        """Raise ValueError if N responses to a prompt cannot be scored so."""
