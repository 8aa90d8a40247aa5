"""Countdown and the Game of 24: reach a target from given numbers. The strategy is the expression's normal form."""

from __future__ import annotations

import csv
import re
from collections import Counter
from functools import lru_cache
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from polyepo.domains.base import Demonstrated, Problem, Prompt, Split, Strategy, Verdict
from polyepo.domains.expressions import Expression, all_expressions, parse
from polyepo.domains.text import MAX_RESPONSE_CHARACTERS, split_problems, unit_interval

_PUZZLE = re.compile(
    r"(?P<numbers>[1-9][0-9]{0,3}(?: [1-9][0-9]{0,3}){1,5})(?: = (?P<target>[0-9]{1,5}) ?>?)?", re.ASCII
)
_ANSWER = re.compile(r"answer\s*:", re.IGNORECASE)


class Countdown(Demonstrated):
    """Prompt `3 5 8 = 64 >`, response `( 3 + 5 ) * 8`: each number exactly once, exact arithmetic.

    Problems are generated (every solvable one within the bounds, or a fixed choice of `num_problems`), or read from the
    `Puzzles` column of a CSV file, with one target for all (the Game of 24). A response may end in `= target`, and the
    expression may follow "Answer:"; several answers are none.
    """

    name: Literal["countdown"] = "countdown"
    path: str | None = None
    """CSV file with a column `Puzzles` such as "1 1 4 6"; problems are generated if not given."""
    target: int | None = Field(None, ge=0, le=10_000)
    """Target of every puzzle of the file."""
    operators: str = "+-*"
    num_numbers: int = Field(3, ge=2, le=4)
    max_number: int = Field(9, ge=2, le=20)
    max_target: int = Field(99, ge=1, le=1000)
    num_problems: int | None = Field(None, ge=2)
    heldout_fraction: float = Field(0.2, gt=0, lt=1)
    split_seed: int = 0
    solved_rate: float = Field(0.15, ge=0, le=1)
    """Demonstrations reach the target with this probability; else they are any expression over the numbers."""

    @model_validator(mode="after")
    def _file_has_target(self) -> Countdown:
        if (self.path is None) != (self.target is None):
            raise ValueError(
                "path and target belong together: a file of puzzles needs a target, as 24; "
                f"path is {self.path!r}, target is {self.target}"
            )
        if not self.operators or set(self.operators) - set("+-*/") or len(set(self.operators)) < len(self.operators):
            raise ValueError(f"operators {self.operators!r} must be distinct ones of + - * /")
        return self

    def problems(self, split: Split) -> list[Problem]:
        """The problems of a split. Raises ValueError if the file cannot be read or a row is no puzzle."""
        puzzles = self._from_file() if self.path else self._generated()
        problems = [
            Problem(
                problem_id=f"countdown:{'-'.join(map(str, numbers))}:{target}",
                domain=self.name,
                prompt=f"{' '.join(map(str, numbers))} = {target} >",
                answer=str(target),
                metadata={"numbers": list(numbers), "target": target},
            )
            for numbers, target in puzzles
        ]
        if self.num_problems is not None and self.num_problems < len(problems):
            by_hash = sorted(problems, key=lambda p: unit_interval("choose", self.split_seed, p.problem_id))
            chosen = {p.problem_id for p in by_hash[: self.num_problems]}
            problems = [p for p in problems if p.problem_id in chosen]
        return split_problems(problems, split, self.heldout_fraction, self.split_seed)

    def imported(self, problem_id: str, prompt: Prompt, answer: str | None) -> Problem:
        """Numbers such as "1 1 4 6", or "1 1 4 6 = 24 >"; without a target of its own it is the domain's."""
        found = _PUZZLE.fullmatch(prompt.strip()) if isinstance(prompt, str) else None
        target = found and (found["target"] or self.target)
        if not found or target is None:
            raise ValueError(f"the problem must be numbers such as '1 1 4 6 = 24', but is {str(prompt)[:60]!r}")
        numbers = [int(word) for word in found["numbers"].split()]
        return Problem(
            problem_id=problem_id,
            domain=self.name,
            prompt=f"{found['numbers']} = {target} >",
            answer=str(target),
            metadata={"numbers": numbers, "target": int(target)},
        )

    def verify(self, problem: Problem, response: str) -> Verdict:
        """1 if the expression uses exactly the given numbers and is exactly the target."""
        expression = self._expression(problem, response)
        if expression is None:
            return Verdict(0.0, None)
        return Verdict(float(expression.value == problem.metadata["target"]), expression.key)

    def strategy(self, problem: Problem, response: str) -> Strategy | None:
        """The expression's normal form, also if it misses the target; None if it is malformed or uses other numbers."""
        expression = self._expression(problem, response)
        if expression is None:
            return None
        return Strategy(f"a {expression.kind} at the top", expression.key)

    def vocabulary(self) -> list[str]:
        """The numbers up to the largest target, and the signs."""
        largest = max(self.max_target, self.max_number, self.target or 0)
        if self.path:
            largest = max(largest, *(n for numbers, _ in self._from_file() for n in numbers))
        return ["+", "-", "*", "/", "(", ")", "=", ">", *map(str, range(largest + 1))]

    def demonstration(self, problem: Problem, rng: np.random.Generator) -> str:
        """An expression over the numbers: sometimes one that reaches the target, more often any."""
        texts, solutions = _catalogue(tuple(problem.metadata["numbers"]), problem.metadata["target"], self.operators)
        if solutions and rng.random() < self.solved_rate:
            return solutions[int(rng.integers(len(solutions)))]
        return texts[int(rng.integers(len(texts)))]

    def _expression(self, problem: Problem, response: str) -> Expression | None:
        if len(response) > MAX_RESPONSE_CHARACTERS:
            return None
        answers = _ANSWER.split(response)
        if len(answers) > 2:
            return None
        text, *results = answers[-1].strip().split("=")
        if len(results) > 1 or (results and results[0].strip() != str(problem.metadata["target"])):
            return None
        expression = parse(text, self.operators)
        if expression is None or Counter(expression.numbers) != Counter(problem.metadata["numbers"]):
            return None
        return expression

    def _generated(self) -> list[tuple[tuple[int, ...], int]]:
        return _solvable(self.num_numbers, self.max_number, self.max_target, self.operators)

    def _from_file(self) -> list[tuple[tuple[int, ...], int]]:
        assert self.target is not None
        return [(numbers, self.target) for numbers in _read_puzzles(str(self.path))]


@lru_cache(maxsize=4)
def _solvable(num_numbers: int, max_number: int, max_target: int, operators: str) -> list[tuple[tuple[int, ...], int]]:
    problems = []
    for numbers in combinations_with_replacement(range(1, max_number + 1), num_numbers):
        values = {e.value for e, _ in all_expressions(numbers, operators)}
        problems += [(numbers, t) for t in range(1, max_target + 1) if t in values]
    return problems


@lru_cache(maxsize=4096)
def _catalogue(numbers: tuple[int, ...], target: int, operators: str) -> tuple[list[str], list[str]]:
    """Texts of all expressions over the numbers, and of those that reach the target."""
    every = list(all_expressions(numbers, operators))
    return [text for _, text in every], [text for e, text in every if e.value == target]


@lru_cache(maxsize=4)
def _read_puzzles(path: str) -> list[tuple[int, ...]]:
    try:
        with open(Path(path), encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"domain.path {path!r} cannot be read: {error}") from error
    puzzles = []
    for line, row in enumerate(rows, start=2):
        words = (row.get("Puzzles") or "").split()
        if not 2 <= len(words) <= 6 or not all(re.fullmatch(r"[1-9][0-9]{0,3}", word) for word in words):
            raise ValueError(
                f"domain.path {path!r}, line {line}: column Puzzles must hold 2 to 6 numbers such as '1 1 4 6', "
                f"but is {row.get('Puzzles')!r}"
            )
        puzzle = tuple(map(int, words))
        if puzzle in puzzles:
            raise ValueError(f"domain.path {path!r}, line {line}: puzzle {row['Puzzles']!r} occurs twice; remove one")
        puzzles.append(puzzle)
    if not puzzles:
        raise ValueError(f"domain.path {path!r} holds no puzzles")
    return puzzles
