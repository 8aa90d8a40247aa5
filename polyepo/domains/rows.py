"""Problems of any kind from a file, verified by a function that the user brings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from polyepo.domains.base import Problem, Prompt, Split, Strategy, Verdict
from polyepo.domains.dataset import read_rows, value_at
from polyepo.domains.prompted import Prompted
from polyepo.domains.text import split_problems
from polyepo.functions import AnyFunction, Function, call, number
from polyepo.section import added

_ID_COLUMNS = ("id", "problem_id", "unique_id")


class Dataset(Prompted):
    """Rows of a JSONL or Parquet file, or of anything that the `datasets` library loads; all columns of a row are in
    the problem's `metadata`.

    `verify: "rewards.py:score"` names a function of (problem, response), or of (problems, responses) for the whole
    batch, plain or async, that returns a reward. `strategy` names one that returns the strategy of a response as text,
    or None if it has none: the program judge's exact strategies. Both are called in worker processes; what raises,
    hangs or returns no finite number is not graded, and says why.
    """

    # A file says `verify` and `strategy`, which are names of what a domain does.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, serialize_by_alias=True)

    name: Literal["dataset"] = "dataset"
    path: str
    subset: str | None = None
    split: str | None = None
    heldout_path: str | None = None
    """Held-out problems; a share of `path` if not given."""
    heldout_fraction: float = Field(0.1, gt=0, lt=1)
    split_seed: int = 0
    problem_column: str = "problem"
    """Column with the problem's text, or chat messages."""
    id_column: str | None = None
    """Column with an id of each problem; a hash of the row if there is none called id, problem_id or unique_id."""
    template: str = "{problem}"
    verify_with: AnyFunction = Field(alias="verify")
    strategy_by: AnyFunction | None = added(None, alias="strategy")
    reward_range: tuple[float, float] = added((0.0, 1.0))
    """Least and largest reward. One outside is a mistake of the function's, and the response is not graded."""
    num_workers: int = Field(2, ge=1)
    """Processes that call the functions."""
    timeout_s: float = Field(10.0, gt=0)
    """Seconds that a call may take."""

    @field_validator("reward_range")
    @classmethod
    def _is_range(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if not bounds[0] < bounds[1]:
            raise ValueError(f"the first must be below the second, but are {bounds[0]:g} and {bounds[1]:g}")
        return bounds

    def problems(self, split: Split) -> list[Problem]:
        """The problems of a split. Raises ValueError naming file and row if one cannot be used."""
        if self.heldout_path is None:
            return split_problems(self._read(self.path), split, self.heldout_fraction, self.split_seed)
        return self._read(self.heldout_path if split == "heldout" else self.path)

    def verify(self, problem: Problem, response: str) -> Verdict:
        """The function's reward."""
        return self.verify_batch([problem], [response])[0]

    def verify_batch(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """The function's rewards. Raises MissingCodeError if nobody here provides it."""
        verdicts = []
        for value, failure in self._called(self.verify_with, zip(problems, responses, strict=True)):
            try:
                reward = None if failure else self._in_range(number(value))
            except ValueError as error:
                reward, failure = None, f"{self.verify_with.function}: the reward {error}"
            verdicts.append(Verdict(reward, None, failure))
        return verdicts

    def strategy(self, problem: Problem, response: str) -> Strategy | None:
        """The function's strategy of one response."""
        return self.strategies([(problem, [response])])[0][0]

    def strategies(self, groups: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[Strategy | None]]:
        """The function's strategies; without a function every response that is not empty is one of its own.

        Raises:
            ValueError: the function raised, or returned neither text nor None; the message shows the response.
        """
        pairs = [(problem, response) for problem, responses in groups for response in responses]
        if self.strategy_by is None:
            found: list[Strategy | None] = [Strategy("the response itself", r) if r.strip() else None for _, r in pairs]
        else:
            found = []
            for (_, response), (value, failure) in zip(pairs, self._called(self.strategy_by, pairs), strict=True):
                if failure or not isinstance(value, str | int | None):
                    why = failure or f"{self.strategy_by.function} returned {value!r}, which is neither text nor None"
                    raise ValueError(f"domain.strategy: {why}, for the response {response[:200]!r}")
                found.append(None if value is None else Strategy("strategy", str(value)))
        each = iter(found)
        return [[next(each) for _ in responses] for _, responses in groups]

    def _in_range(self, reward: float) -> float:
        low, high = self.reward_range
        if not low <= reward <= high:
            raise ValueError(
                f"{reward:g} is outside of domain.reward_range [{low:g}, {high:g}]: set it if that is meant"
            )
        return reward

    def _called(self, function: Function, pairs: Any) -> Sequence[tuple[Any, str | None]]:
        items = [{"problem": problem.model_dump(mode="json"), "response": response} for problem, response in pairs]
        return call(function, items, self.num_workers, self.timeout_s)

    def _read(self, path: str) -> list[Problem]:
        rows = read_rows(path, self.subset, self.split)
        if not rows:
            raise ValueError(f"domain.path {path!r} holds no problems")
        problems: dict[str, Problem] = {}
        for line, row in enumerate(rows, start=1):
            problem = self._problem(row, f"domain.path {path!r}, row {line}")
            if problems.setdefault(problem.problem_id, problem) is not problem:
                raise ValueError(
                    f"domain.path {path!r}, row {line}: an earlier row has problem_id {problem.problem_id!r} already; "
                    "remove one, or set domain.id_column to a unique column"
                )
        return list(problems.values())

    def _problem(self, row: dict[str, Any], where: str) -> Problem:
        try:
            text = value_at(row, self.problem_column)
        except KeyError:
            there = ", ".join(sorted(map(str, row)))
            raise ValueError(
                f"{where}: no column {self.problem_column!r} among {there}; set domain.problem_column"
            ) from None
        metadata = json.loads(json.dumps(row, default=str))
        if self.id_column is not None and row.get(self.id_column) in (None, ""):
            raise ValueError(f"{where}: the id is empty, column {self.id_column!r} must hold text or a number")
        columns = [self.id_column] if self.id_column else _ID_COLUMNS
        ids = [str(row[column]) for column in columns if row.get(column) not in (None, "")]
        content = json.dumps(metadata, sort_keys=True).encode()
        return Problem(
            problem_id=ids[0] if ids else hashlib.sha256(content).hexdigest()[:16],
            domain=self.name,
            prompt=self._prompt(text, where),
            answer=None if row.get("answer") is None else str(row["answer"]),
            metadata=metadata,
        )

    def _prompt(self, text: Any, where: str) -> Prompt:
        if isinstance(text, str) and text.strip():
            return self.put(text)
        messages = text if isinstance(text, list) else []
        if messages and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages):
            return [{"role": str(m["role"]), "content": str(m["content"])} for m in text]
        raise ValueError(f"{where}: the problem must be text or chat messages with role and content, not {text!r}")
