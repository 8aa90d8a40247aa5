"""A judge that is a function of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from polyepo.domains import Domain, Strategy
from polyepo.functions import AnyFunction, call
from polyepo.judges.base import CallLog, Group, Judge, Label, cluster_by_strategy
from polyepo.labels import LabelStatus


class FunctionJudge(Judge):
    """Clusters by `judge.py:cluster`, a function of (problem, responses) that returns a label for each response: text
    or a number, equal for equal strategies, None for a response that has none. It is called in worker processes."""

    name: Literal["function"] = "function"
    function: AnyFunction
    num_workers: int = Field(2, ge=1)
    """Processes that call it."""
    timeout_s: float = Field(60.0, gt=0)
    """Seconds that a call may take."""

    @property
    def judge_id(self) -> str:
        """The function's name, and a part of its code's digest."""
        name = self.function.function.rpartition(":")[2].lower().replace("_", "-").strip("-")
        return f"function-{name}-{str(self.function.code)[:8]}"

    @property
    def can_fail(self) -> bool:
        """It can."""
        return True

    def label(self, domain: Domain, groups: Sequence[Group], calls: CallLog | None = None) -> list[list[Label]]:
        """Exactly one label per response; none with the reason for a prompt whose call failed.

        Raises:
            MissingCodeError: nobody here provides the function.
        """
        items = [{"problem": g.problem.model_dump(mode="json"), "responses": list(g.responses)} for g in groups]
        found = []
        for group, (value, failure) in zip(
            groups, call(self.function, items, self.num_workers, self.timeout_s), strict=True
        ):
            if failure is None and not _is_labels(value, len(group.responses)):
                failure = f"{self.function.function} must return a label for each of {len(group.responses)} responses"
            if failure is not None:
                found.append([Label(None, False, None, None, LabelStatus.PARSE_FAILED, failure)] * len(group.responses))
            else:
                strategies = [None if v is None else Strategy(self.function.function, str(v)) for v in value]
                found.append(cluster_by_strategy(strategies))
        return found


def _is_labels(value: object, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(isinstance(v, str | int | None) for v in value)
