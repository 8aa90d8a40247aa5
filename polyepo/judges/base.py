"""What a judge is: groups of responses in, one label per response out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from polyepo.domains import Domain, Problem, Strategy


class Group(NamedTuple):
    """One prompt and all of its sampled responses."""

    problem: Problem
    responses: Sequence[str]


class Label(NamedTuple):
    """A response's cluster within its group. `cluster` is None if degenerate or unlabelled; `status` tells which."""

    cluster: int | None
    degenerate: bool
    macro_strategy: str | None
    micro_strategy: str | None
    status: str


class Judge(BaseModel):
    """A labeller of groups. Subclasses are configuration and behaviour."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str

    @property
    def judge_id(self) -> str:
        """The judge's name in the store: labels of two judges with one id can be compared."""
        return self.name

    def label(self, domain: Domain, groups: Sequence[Group]) -> list[list[Label]]:
        """Exactly one label per response, in the responses' order, for each group."""
        raise NotImplementedError


def cluster_by_strategy(strategies: Sequence[Strategy | None]) -> list[Label]:
    """Number the distinct strategies of one group by first appearance; None is degenerate."""
    numbers: dict[Strategy, int] = {}
    return [
        Label(None, True, None, None, "ok")
        if strategy is None
        else Label(numbers.setdefault(strategy, len(numbers)), False, strategy.macro, strategy.micro, "ok")
        for strategy in strategies
    ]
