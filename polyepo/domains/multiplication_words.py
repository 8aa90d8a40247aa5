"""Multi-digit multiplication in words, for a language model. The strategy is how the factors are taken apart."""

from __future__ import annotations

import re
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from polyepo.domains.answers import final_answer
from polyepo.domains.base import Problem, Split, Strategy, Verdict
from polyepo.domains.expressions import Expression, parse
from polyepo.domains.prompted import Prompted
from polyepo.domains.text import split_problems, unit_interval

_FACTOR = r"(?:\(([0-9+\-]+)\)|([0-9]+))"
_PRODUCT = re.compile(rf"{_FACTOR}\*?{_FACTOR}", re.ASCII)
_TIMES = re.compile(r"\\times|\\cdot|[×·]")


class _Decomposition(NamedTuple):
    left: Expression
    right: Expression
    product: str


class MultiplicationWords(Prompted):
    r"""Asks for 343 * 67 by a decomposition of one's choice; the response ends in \boxed{(340 + 3)(70 - 3) = 22981}.

    Each bracket must be exactly its factor, and at least one must be a sum or a difference, whose parts are the
    strategy (arXiv 2604.17654). Between the factors may stand nothing, *, \times or \cdot.
    """

    name: Literal["multiplication_words"] = "multiplication_words"
    has_one_answer: ClassVar[bool] = True
    template: str = (
        "Compute {problem} by a decomposition of your choice: write at least one factor as a sum or a difference, "
        "multiply out, and add up.\n"
        "Reason step by step and put the decomposition and the product in \\boxed{}; for 47 * 18 that could be "
        "\\boxed{(40 + 7)(20 - 2) = 846}.\n"
    )
    min_a: int = Field(101, ge=11, le=9999)
    max_a: int = Field(999, ge=11, le=9999)
    min_b: int = Field(11, ge=11, le=999)
    max_b: int = Field(99, ge=11, le=999)
    num_problems: int = Field(4000, ge=2)
    """A fixed choice of the products within the bounds; factors that end in 0 are left out."""
    heldout_fraction: float = Field(0.1, gt=0, lt=1)
    split_seed: int = 0

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> MultiplicationWords:
        for smallest, largest in (("min_a", "max_a"), ("min_b", "max_b")):
            if getattr(self, smallest) > getattr(self, largest):
                raise ValueError(
                    f"{smallest} {getattr(self, smallest)} must not exceed {largest} {getattr(self, largest)}"
                )
        return self

    def problems(self, split: Split) -> list[Problem]:
        """`num_problems` of the products, or all if there are fewer."""
        pairs = [
            (a, b)
            for a in range(self.min_a, self.max_a + 1)
            for b in range(self.min_b, self.max_b + 1)
            if a % 10 and b % 10
        ]
        chosen = sorted(pairs, key=lambda pair: unit_interval("choose", self.split_seed, *pair))[: self.num_problems]
        everything = [
            Problem(
                problem_id=f"multiplication-words:{a}:{b}",
                domain=self.name,
                prompt=self.put(f"{a} * {b}"),
                answer=str(a * b),
                metadata={"a": a, "b": b},
            )
            for a, b in sorted(chosen)
        ]
        return split_problems(everything, split, self.heldout_fraction, self.split_seed)

    def verify(self, problem: Problem, response: str) -> Verdict:
        """1 if the decomposition is one of this product, and the product is right."""
        found = _decomposition(response)
        if found is None:
            return Verdict(0.0, None)
        right = self.strategy(problem, response) is not None and found.product == problem.answer
        return Verdict(float(right), found.product)

    def strategy(self, problem: Problem, response: str) -> Strategy | None:
        """The parts of both factors, whether or not the product is right; None if they do not make up the factors."""
        found = _decomposition(response)
        if found is None:
            return None
        for first, second in ((found.left, found.right), (found.right, found.left)):
            if (first.value, second.value) == (problem.metadata["a"], problem.metadata["b"]):
                return Strategy("decompose", f"{first.key} * {second.key}")
        return None


def _decomposition(response: str) -> _Decomposition | None:
    r"""The last two sides of the final answer, `343 * 67 = (340 + 3)(70 - 3) = 22981`, if they are one."""
    answer = final_answer(response) or ""
    text = re.sub(r"\\left|\\right|\\[,;! ]|\s|\$|\{,\}|(?<=[0-9]),(?=[0-9]{3})", "", answer)
    sides = _TIMES.sub("*", text).replace("−", "-").split("=")
    found = _PRODUCT.fullmatch(sides[-2]) if len(sides) > 1 else None
    if found is None or not re.fullmatch(r"[1-9][0-9]{0,8}", sides[-1], re.ASCII):
        return None
    left, right = (parse(bracket or plain, "+-") for bracket, plain in (found.groups()[:2], found.groups()[2:]))
    if left is None or right is None or 0 in left.numbers + right.numbers:
        return None
    taken_apart = len(left.numbers) > 1 or len(right.numbers) > 1
    return _Decomposition(left, right, sides[-1]) if taken_apart else None
