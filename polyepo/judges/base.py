"""What a judge is: groups of responses in, one label per response out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

from polyepo.domains import Domain, Problem, Strategy
from polyepo.labels import LabelStatus
from polyepo.names import slug
from polyepo.plugins import Coded


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
    status: LabelStatus
    rationale: str | None = None
    truncated: bool | None = None
    """Whether the judge saw a shortened response; None if it saw no text."""
    agreement: float | None = None
    """Share of the judge's own votes' pairs that agree on who shares this response's cluster; None for one vote."""


class Call(NamedTuple):
    """One request to a judge model and what came of it: a row of the judge_calls table."""

    problem_id: str
    attempt: int
    request_sha256: str
    raw_reply: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    latency_s: float
    cost: float | None
    error: str | None
    """Why it gave no labels: what went wrong, or what is wrong with the reply."""
    cost_bound: float | None = None
    """The most it can have cost, if that is not known."""

    @property
    def booked(self) -> float:
        """What it counts for under a limit: its cost, or the most that it can be."""
        return (self.cost_bound or 0.0) if self.cost is None else self.cost


class CallLog:
    """Where a judge that makes calls records them, and finds what came of earlier ones. This one only adds up costs."""

    def __init__(self, spent: float = 0.0) -> None:
        self._spent = spent

    def earlier(self, request_sha256: str) -> Sequence[Call]:
        """Calls of an identical request, oldest first. Which of them is an answer is for the judge to say."""
        return ()

    def record(self, call: Call) -> None:
        """Keep a call. Called from the judge's own thread; must not block."""
        self._spent += call.booked

    def spent(self) -> float:
        """What the judge's calls have cost so far, in the currency of its prices; at most, where that is not known."""
        return self._spent


class Estimate(NamedTuple):
    """What labelling would take, before anything is sent."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    """In the currency of the judge's prices; 0 if it has none."""


class MissingLabels(NamedTuple):
    """What scoring does about responses that the judge could not label."""

    policy: Literal["drop_prompt", "singleton"] = "drop_prompt"
    """The prompt gets no gradient, or each such response counts as a cluster of its own."""
    max_rate: float = 0.2
    """Share of a step's responses above which the run stops."""


class Judge(Coded):
    """A labeller of groups. Subclasses are configuration and behaviour."""

    name: str

    @property
    def judge_id(self) -> str:
        """The judge's name in the store: labels of two judges with one id can be compared.

        A user's own judge is its class' name, and a hash of its settings and code.
        """
        if self.code is None:
            return self.name
        settings = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return f"{slug(self.name.rpartition(':')[2])}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"

    @property
    def missing_labels(self) -> MissingLabels:
        """What scoring does about responses without a label."""
        return MissingLabels()

    @property
    def makes_calls(self) -> bool:
        """Whether labelling asks a server, so that its calls are worth keeping."""
        return False

    @property
    def can_fail(self) -> bool:
        """Whether it may leave responses without a label through no fault of theirs; too many stop a run."""
        return self.makes_calls

    @property
    def reuses_all_runs(self) -> bool:
        """Whether answers are looked for in all runs under a root, rather than in the judge's own run."""
        return False

    def clusters_by_answer(self, domain: Domain) -> bool:
        """Whether its clusters are final answers and nothing else."""
        return False

    def check_ready(self) -> None:
        """Raise ConfigError if the judge cannot work here: a package or an API key that it needs is missing."""

    def label(self, domain: Domain, groups: Sequence[Group], calls: CallLog | None = None) -> list[list[Label]]:
        """Exactly one label per response, in the responses' order, for each group.

        A judge that makes calls records them in `calls`, and makes none that gave labels there.
        """
        raise NotImplementedError

    def shown_order(self, domain: Domain, group: Group) -> list[int]:
        """Indices of the distinct responses in the order in which the judge (first) sees them."""
        return [group.responses.index(text) for text in dict.fromkeys(group.responses)]

    def estimate(self, domain: Domain, groups: Sequence[Group], calls: CallLog | None = None) -> Estimate:
        """What labelling these groups would take; what is answered in `calls` is free."""
        return Estimate(0, 0, 0, 0.0)


def cluster_by_strategy(strategies: Sequence[Strategy | None]) -> list[Label]:
    """Number the distinct strategies of one group by first appearance; None is degenerate."""
    numbers: dict[Strategy, int] = {}
    return [
        Label(None, True, None, None, LabelStatus.OK)
        if strategy is None
        else Label(numbers.setdefault(strategy, len(numbers)), False, strategy.macro, strategy.micro, LabelStatus.OK)
        for strategy in strategies
    ]
