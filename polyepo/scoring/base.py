"""What every scoring of a run has: how rewards and clusters become advantages."""

from __future__ import annotations

from typing import Annotated, Self

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
    def uses_logprobs(self) -> bool:
        """Whether advantages depend on how likely responses were, which imported rollouts may not tell."""
        return False

    @property
    def objective_name(self) -> str:
        """What the scores table calls the objective."""
        return str(getattr(self, "method", ""))

    def at(self, step: int) -> Self:
        """The scoring as it is at a step: itself, unless its settings change while the run goes on."""
        return self

    def advantages(self, rewards_PN: Floats, clusters_PN: Ints, seed: int, logprobs_PN: Floats | None = None) -> Floats:
        """One advantage per response, (P, N).

        Args:
            rewards_PN: (P, N) finite rewards.
            clusters_PN: (P, N) clusters.
            seed: for scorings that draw sets.
            logprobs_PN: (P, N) mean log-probabilities per token by the sampler, for a scoring that `uses_logprobs`.
        """
        raise NotImplementedError

    def title(self, num_responses: int) -> str:
        """What people call it, of N responses."""
        return self.objective_name

    def check(self, num_responses: int) -> None:
        """Raise ValueError if N responses to a prompt cannot be scored so."""
