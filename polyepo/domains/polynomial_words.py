"""Polynomial solving in words, for a language model: any point of y = x^2 + bx + c. The strategy is the point."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Literal, NamedTuple

from pydantic import Field

from polyepo.domains.answers import final_answer
from polyepo.domains.base import Problem, Split, Strategy, Verdict
from polyepo.domains.prompted import Prompted
from polyepo.domains.text import split_problems

_NUMBER = r"(-?[0-9]{1,6}(?:\.[0-9]{1,6}|/[1-9][0-9]{0,5})?)"
_POINT = re.compile(rf"(?:\(x,y\)=)?\(?(?:x=)?{_NUMBER},(?:y=)?{_NUMBER}\)?", re.ASCII)
_FRACTION = re.compile(r"\\d?frac\{([0-9]+)\}\{([0-9]+)\}", re.ASCII)


class _Point(NamedTuple):
    x: Fraction
    y: Fraction


class PolynomialWords(Prompted):
    r"""Asks for a point of y = x^2 + 3x + 7; the response ends in \boxed{(x, y)} or "Answer: (x, y)".

    Every point of the curve is right, and each is a strategy of its own (arXiv 2604.17654). Coordinates may be
    integers, decimals or fractions; the arithmetic is exact.
    """

    name: Literal["polynomial_words"] = "polynomial_words"
    template: str = (
        "Find one point (x, y) on the curve {problem}. Any point on it is right.\n"
        "Reason step by step and put the point in \\boxed{}, as \\boxed{(x, y)}.\n"
    )
    max_abs_b: int = Field(20, ge=0, le=1000)
    max_c: int = Field(50, ge=0, le=1000)
    heldout_fraction: float = Field(0.1, gt=0, lt=1)
    split_seed: int = 0

    def problems(self, split: Split) -> list[Problem]:
        """Every (b, c) within the bounds."""
        everything = [
            Problem(
                problem_id=f"polynomial-words:{b}:{c}",
                domain=self.name,
                prompt=self.put(_equation(b, c)),
                metadata={"b": b, "c": c},
            )
            for b in range(-self.max_abs_b, self.max_abs_b + 1)
            for c in range(self.max_c + 1)
        ]
        return split_problems(everything, split, self.heldout_fraction, self.split_seed)

    def verify(self, problem: Problem, response: str) -> Verdict:
        """1 if the final answer is a point of the curve."""
        point = _point(response)
        if point is None:
            return Verdict(0.0, None)
        x, y = point
        on_curve = y == x * x + problem.metadata["b"] * x + problem.metadata["c"]
        return Verdict(float(on_curve), f"({x}, {y})")

    def strategy(self, problem: Problem, response: str) -> Strategy | None:
        """The point, on the curve or not; None if the response names none."""
        point = _point(response)
        return None if point is None else Strategy("evaluate at a point", f"({point.x}, {point.y})")


def _equation(b: int, c: int) -> str:
    linear = f" {'-' if b < 0 else '+'} {'' if abs(b) == 1 else abs(b)}x" if b else ""
    return f"y = x^2{linear}" + (f" + {c}" if c else "")


def _point(response: str) -> _Point | None:
    answer = final_answer(response) or ""
    text = re.sub(r"\\left|\\right|\\[,;! ]|\s|\$", "", answer)
    found = _POINT.fullmatch(_FRACTION.sub(r"\1/\2", text).replace("−", "-"))
    if found is None:
        return None
    x, y = found.groups()
    return _Point(Fraction(x), Fraction(y))
