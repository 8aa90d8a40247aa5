"""The place of a domain whose code a run's maker brought, and nobody here provides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from pydantic import ConfigDict

from polyepo.domains.base import Domain, Problem, Prompt, Split, Strategy, Verdict
from polyepo.plugins import required


class MissingDomain(Domain):
    """Keeps what the run's record says. Everything that needs the code raises MissingCodeError."""

    model_config = ConfigDict(frozen=True, extra="allow")

    def problems(self, split: Split) -> list[Problem]:
        """Needs the code."""
        self._needed()

    def imported(self, problem_id: str, prompt: Prompt, answer: str | None) -> Problem:
        """Needs the code."""
        self._needed()

    def verify_batch(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """Needs the code."""
        self._needed()

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Needs the code."""
        self._needed()

    def strategy(self, problem: Problem, response: str) -> Strategy | None:
        """Needs the code."""
        self._needed()

    def _needed(self) -> NoReturn:
        required(self.name, self.code)
        raise AssertionError("code that is provided has its own class")
