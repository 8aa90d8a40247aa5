"""What a domain is: problems, a verifier, and an exact strategy function."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from polyepo.plugins import Coded

Split = Literal["train", "heldout"]
Prompt = str | list[dict[str, str]]


class Problem(BaseModel):
    """One problem. `problem_id` is stable: the same in every epoch, arm and run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    problem_id: str
    domain: str
    prompt: Prompt
    """Plain text, or chat messages ({"role": ..., "content": ...})."""
    answer: str | None = None
    metadata: dict[str, Any] = {}


def content_id(prompt: Prompt, answer: str | None) -> str:
    """The id of a problem whose data set gives it none: a hash of what it says."""
    content = json.dumps([prompt, answer], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class Verdict(NamedTuple):
    """What the verifier found in one response."""

    reward: float | None
    """None if it could not be graded, which is no 0."""
    parsed_answer: str | None
    ungraded: str | None = None
    """Why there is no reward: timeout, memory or crashed."""


class Strategy(NamedTuple):
    """How a response goes about its problem: two responses share a cluster iff both fields are equal."""

    macro: str
    micro: str


class Domain(Coded):
    """A source of problems. Subclasses are configuration (their fields are what a YAML file sets) and behaviour."""

    name: str
    has_one_answer: ClassVar[bool] = False
    """Whether a problem has one right answer, however it is written."""
    strategy_is_answer: ClassVar[bool] = False
    """Whether `strategy` is no more than the final answer."""

    def problems(self, split: Split) -> list[Problem]:
        """The problems of a split, in a fixed order. Raises ValueError naming the field that makes it impossible."""
        raise NotImplementedError

    def imported(self, problem_id: str, prompt: Prompt, answer: str | None) -> Problem:
        """A problem of somebody else's rollouts. Raises ValueError if this domain cannot make one of it."""
        raise ValueError(f"domain {self.name!r} cannot take problems from a file of rollouts")

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Grade one response; never raises on any response text."""
        raise NotImplementedError

    def verify_batch(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """Grade responses[i] against problems[i]; domains with slow verifiers override this with a parallel one."""
        return [self.verify(problem, response) for problem, response in zip(problems, responses, strict=True)]

    def strategy(self, problem: Problem, response: str) -> Strategy | None:
        """The exact strategy of a response (the program judge), or None if it is degenerate."""
        raise NotImplementedError

    def strategies(self, groups: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[Strategy | None]]:
        """The strategies of each problem's responses. Domains that find them by comparing override this."""
        return [[self.strategy(problem, text) for text in responses] for problem, responses in groups]

    def answer_classes(self, groups: Sequence[tuple[Problem, Sequence[str | None]]]) -> list[list[int | None]]:
        """Each problem's parsed answers numbered by what they mean, from 0 by first appearance; None stays None.

        Here equal text is equal meaning; domains with notations override this.
        """
        return [number_distinct(answers) for _, answers in groups]


def number_distinct(values: Sequence[Hashable | None]) -> list[int | None]:
    """The distinct values numbered from 0 by first appearance; None stays None."""
    numbers: dict[Hashable, int] = {}
    return [None if value is None else numbers.setdefault(value, len(numbers)) for value in values]


class Demonstrated(Domain):
    """A domain that can show (noisy, skewed) demonstrations, for warm-starting a small model from scratch."""

    def vocabulary(self) -> list[str]:
        """Every whitespace-separated word that prompts and demonstrations can contain, in a fixed order."""
        raise NotImplementedError

    def demonstration(self, problem: Problem, rng: np.random.Generator) -> str:
        """One response as a base model would give it: well-formed, often wrong, diverse, skewed."""
        raise NotImplementedError
