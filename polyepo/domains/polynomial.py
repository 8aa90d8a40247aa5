"""Polynomial solving: any point on y = x^2 + bx + c, work shown. The strategy is the x (arXiv 2604.17654)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from polyepo.domains.base import Demonstrated, Problem, Split, Strategy, Verdict
from polyepo.domains.text import integers, split_problems, unit_interval, words_of


class Polynomial(Demonstrated):
    """Prompt `b x c >`, response `x x^2 bx x^2+bx y`: five integers, of which every one is checked.

    With `accepted_fraction` below 1, each x is accepted for a prompt with that probability by a fixed hash
    that the model cannot see: what works has to be found by exploring, and one favourite x cannot work everywhere.
    """

    name: Literal["polynomial"] = "polynomial"
    max_abs_b: int = Field(5, ge=0, le=1000)
    max_c: int = Field(9, ge=0, le=1000)
    max_abs_x: int = Field(10, ge=1, le=1000)
    accepted_fraction: float = Field(1.0, gt=0, le=1)
    accept_seed: int = 0
    heldout_fraction: float = Field(0.2, gt=0, lt=1)
    split_seed: int = 0
    favourite_x: int = 2
    """Demonstrations choose x with probability proportional to exp(-|x - favourite_x| / spread)."""
    spread: float = Field(3.0, gt=0)
    error_rate: float = Field(0.30, ge=0, le=1)
    """Demonstrations have one wrong field with probability error_rate + error_rate_per_x |x|."""
    error_rate_per_x: float = Field(0.02, ge=0, le=1)

    def problems(self, split: Split) -> list[Problem]:
        """Every (b, c) within the bounds."""
        everything = [
            Problem(
                problem_id=f"polynomial:{b}:{c}",
                domain=self.name,
                prompt=f"{b} x {c} >",
                metadata={"b": b, "c": c},
            )
            for b in range(-self.max_abs_b, self.max_abs_b + 1)
            for c in range(self.max_c + 1)
        ]
        return split_problems(everything, split, self.heldout_fraction, self.split_seed)

    def verify(self, problem: Problem, response: str) -> Verdict:
        """1 if all five numbers are right and x is accepted."""
        fields = self._fields(response)
        if fields is None:
            return Verdict(0.0, None)
        right = fields == self._work(problem, fields[0]) and self.accepts(problem, fields[0])
        return Verdict(float(right), f"({fields[0]}, {fields[-1]})")

    def strategy(self, problem: Problem, response: str) -> Strategy | None:
        """The x, whether or not the rest is right; None unless the response is five integers with x in range."""
        fields = self._fields(response)
        return None if fields is None else Strategy("evaluate at a point", f"x={fields[0]}")

    def accepts(self, problem: Problem, x: int) -> bool:
        """Whether an x counts for a problem. At least one does: the one whose hash is smallest."""
        if self.accepted_fraction == 1:
            return True
        hashes = {
            candidate: unit_interval("accept", self.accept_seed, problem.problem_id, candidate)
            for candidate in range(-self.max_abs_x, self.max_abs_x + 1)
        }
        return hashes[x] < self.accepted_fraction or hashes[x] == min(hashes.values())

    def vocabulary(self) -> list[str]:
        """Every integer that the work or a one-field mistake can contain, and the prompt's signs."""
        largest = self.max_abs_x**2 + self.max_abs_b * self.max_abs_x + self.max_c + _MAX_MISTAKE
        return ["x", ">", *map(str, range(-largest, largest + 1))]

    def demonstration(self, problem: Problem, rng: np.random.Generator) -> str:
        """Five fields for a favourite x; sometimes one is off by up to three."""
        candidates = np.arange(-self.max_abs_x, self.max_abs_x + 1)
        distances = np.abs(candidates - self.favourite_x)
        weights = np.exp(-(distances - distances.min()) / self.spread)
        x = int(rng.choice(candidates, p=weights / weights.sum()))
        fields = self._work(problem, x)
        if rng.random() < self.error_rate + self.error_rate_per_x * abs(x):
            field = int(rng.integers(1, len(fields)))
            fields[field] += int(rng.choice([m for m in range(-_MAX_MISTAKE, _MAX_MISTAKE + 1) if m]))
        return " ".join(map(str, fields))

    def _work(self, problem: Problem, x: int) -> list[int]:
        b, c = problem.metadata["b"], problem.metadata["c"]
        return [x, x * x, b * x, x * x + b * x, x * x + b * x + c]

    def _fields(self, response: str) -> list[int] | None:
        fields = integers(words_of(response))
        return fields if fields and len(fields) == 5 and abs(fields[0]) <= self.max_abs_x else None


_MAX_MISTAKE = 3
