"""Multi-digit multiplication by a decomposition of one's choice, which is the strategy (arXiv 2604.17654)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from polyepo.domains.base import Demonstrated, Problem, Split, Strategy, Verdict
from polyepo.domains.text import integers, split_problems, words_of

# Each decomposition of a * b into p * q + r * s (or -), as (p, q, sign, r, s); None where it does not apply.
_Parts = tuple[int, int, str, int, int]
_DECOMPOSITIONS: dict[str, Callable[[int, int], _Parts | None]] = {
    "tens and ones": lambda a, b: (a - a % 10, b, "+", a % 10, b) if a % 10 else None,
    "round up": lambda a, b: (a + 10 - a % 10, b, "-", 10 - a % 10, b) if a % 10 else None,
    "halve": lambda a, b: (a // 2, b, "+", a - a // 2, b),
    "split the multiplier": lambda a, b: (a, b // 2, "+", a, b - b // 2),
    "from ten times": lambda a, b: (a, 10, "-", a, 10 - b),
    "one less": lambda a, b: (a, b - 1, "+", a, 1),
}


class Multiplication(Demonstrated):
    """Prompt `47 * 6 >`, response `40 * 6 + 7 * 6 : 240 + 42 = 282`: every part is checked.

    Responses have one shape, p * q (+ or -) r * s : pq (+ or -) rs = total, and the decomposition must be one of six
    of this very product: tens and ones, round up, halve a, split b, ten times less the rest, one less.
    """

    name: Literal["multiplication"] = "multiplication"
    has_one_answer: ClassVar[bool] = True
    min_a: int = Field(12, ge=11, le=999)
    max_a: int = Field(59, ge=11, le=999)
    multipliers: tuple[int, ...] = (4, 6, 8, 9)
    heldout_fraction: float = Field(0.2, gt=0, lt=1)
    split_seed: int = 0
    skew: float = Field(0.65, gt=0, le=1)
    """Demonstrations choose the i-th decomposition with probability proportional to skew ** i."""
    error_rate: float = Field(0.35, ge=0, le=1)
    """Demonstrations have one wrong product or total with this probability."""

    @model_validator(mode="after")
    def _factors_make_problems(self) -> Multiplication:
        if self.min_a > self.max_a:
            raise ValueError(f"min_a {self.min_a} must not exceed max_a {self.max_a}")
        b = self.multipliers
        if not b or len(set(b)) < len(b) or not set(b) <= set(range(3, 10)):
            raise ValueError(f"multipliers {b} must be distinct numbers from 3 to 9, as (4, 6, 8, 9)")
        return self

    def problems(self, split: Split) -> list[Problem]:
        """Every a between the bounds, that does not end in 0, times every multiplier."""
        everything = [
            Problem(
                problem_id=f"multiplication:{a}:{b}",
                domain=self.name,
                prompt=f"{a} * {b} >",
                answer=str(a * b),
                metadata={"a": a, "b": b},
            )
            for a in range(self.min_a, self.max_a + 1)
            for b in self.multipliers
            if a % 10
        ]
        return split_problems(everything, split, self.heldout_fraction, self.split_seed)

    def verify(self, problem: Problem, response: str) -> Verdict:
        """1 if the decomposition is one of this product's, and both products and the total are right."""
        parsed = self._parse(response)
        if parsed is None:
            return Verdict(0.0, None)
        parts, (left, right, total) = parsed
        p, q, sign, r, s = parts
        true_total = p * q + r * s if sign == "+" else p * q - r * s
        right_work = (left, right, total) == (p * q, r * s, true_total)
        return Verdict(float(right_work and self.strategy(problem, response) is not None), str(total))

    def strategy(self, problem: Problem, response: str) -> Strategy | None:
        """The decomposition, whether or not it was computed rightly; None if it is none of this product's."""
        parsed = self._parse(response)
        a, b = problem.metadata["a"], problem.metadata["b"]
        for name, decompose in _DECOMPOSITIONS.items():
            if parsed is not None and decompose(a, b) == parsed[0]:
                return Strategy("decompose", name)
        return None

    def vocabulary(self) -> list[str]:
        """Every integer of the work or a mistake in it, and the signs."""
        largest = (self.max_a + 10) * max(10, *self.multipliers) + _MAX_MISTAKE
        return ["*", "+", "-", "=", ":", ">", *map(str, range(largest + 1))]

    def demonstration(self, problem: Problem, rng: np.random.Generator) -> str:
        """A decomposition, the first ones oftenest; sometimes one of the three results is off by a little."""
        a, b = problem.metadata["a"], problem.metadata["b"]
        choices = [parts for decompose in _DECOMPOSITIONS.values() if (parts := decompose(a, b))]
        weights = self.skew ** np.arange(len(choices))
        p, q, sign, r, s = choices[int(rng.choice(len(choices), p=weights / weights.sum()))]
        results = [p * q, r * s, a * b]
        if rng.random() < self.error_rate:
            wrong = int(rng.integers(3))
            results[wrong] = max(0, results[wrong] + int(rng.choice([m for m in range(-_MAX_MISTAKE, 11) if m])))
        left, right, total = results
        return f"{p} * {q} {sign} {r} * {s} : {left} {sign} {right} = {total}"

    def _parse(self, response: str) -> tuple[_Parts, tuple[int, int, int]] | None:
        words = words_of(response)
        if len(words) != 13:
            return None
        signs = (words[1], words[5], words[7], words[11])
        numbers = integers([words[i] for i in (0, 2, 4, 6, 8, 10, 12)])
        if signs != ("*", "*", ":", "=") or words[3] not in ("+", "-") or words[9] != words[3] or numbers is None:
            return None
        p, q, r, s, left, right, total = numbers
        return (p, q, words[3], r, s), (left, right, total)


_MAX_MISTAKE = 10
