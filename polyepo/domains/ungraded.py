"""Problems and responses of any kind, graded by whoever made them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from polyepo.domains.base import Domain, Problem, Prompt, Split, Strategy, Verdict


class Ungraded(Domain):
    """The domain of imported rollouts that nobody here can verify: their rewards are the ones they came with."""

    name: Literal["ungraded"] = "ungraded"

    def problems(self, split: Split) -> list[Problem]:
        """None: there is nothing to sample from. Raises ValueError."""
        raise ValueError("domain 'ungraded' is for imported rollouts; it has no problems to train on")

    def imported(self, problem_id: str, prompt: Prompt, answer: str | None) -> Problem:
        """The problem as it is."""
        return Problem(problem_id=problem_id, domain=self.name, prompt=prompt, answer=answer)

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Not possible. Raises ValueError."""
        raise ValueError(
            "domain 'ungraded' has no verifier: give --domain when importing, or a verifier when re-scoring"
        )

    def verify_batch(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """Not possible. Raises ValueError."""
        return [self.verify(problem, response) for problem, response in zip(problems, responses, strict=True)]

    def strategy(self, problem: Problem, response: str) -> Strategy | None:
        """No strategy can be read off: every non-empty response is one of its own."""
        words = " ".join(response.split())
        return Strategy("the response itself", words) if words else None
