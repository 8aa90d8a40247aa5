"""What a report is made of. Nothing here knows where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from polyepo.findings import Finding

TRAIN = "train"


@dataclass(frozen=True)
class RunFacts:
    """A run, as the report's head tells of it."""

    name: str
    label: str
    """What figures call it: the name, less what all the report's runs have in common."""
    domain: str
    judge: str
    scoring: str
    seed: int
    num_responses: int
    steps: int
    steps_done: int
    finished: bool
    code_version: str
    config: str
    """JSON."""


@dataclass(frozen=True)
class Series:
    """One line of a figure."""

    policy: str
    """A run's label, or "base"."""
    x: list[float]
    y: list[float | None]
    low: list[float] | None = None
    high: list[float] | None = None
    part: str | None = None
    """What the line is of, in a figure of several quantities: a stage of a step, a status of labels."""


@dataclass(frozen=True)
class Figure:
    """A figure and the SQL its numbers come from."""

    id: str
    section: str
    title: str
    caption: str
    x: str
    y: str
    sql: str
    series: list[Series]
    kind: Literal["line", "stack"] = "line"
    log_x: bool = False
    unit_interval: bool = False
    """The quantity is a share: its axis is 0 to 1."""


@dataclass(frozen=True)
class Policy:
    """A row of the table of held-out results: a policy, and (mean, low, high) by metric."""

    label: str
    step: int
    metrics: dict[str, tuple[float, float, float] | None]
    """None where nothing is known."""


class Response(NamedTuple):
    """One response of a prompt."""

    text: str
    token_ids: list[int]
    truncated: bool
    reward: float | None
    """None if it could not be graded."""
    answer: str | None
    cluster: int | None
    degenerate: bool
    advantage: float | None
    macro_strategy: str | None
    micro_strategy: str | None
    status: str | None
    """Of the label; None if that was not kept."""
    ungraded: str | None = None
    """Why there is no reward."""


@dataclass(frozen=True)
class Prompt:
    """All responses of one policy to one problem: a training step's, or an evaluation's."""

    run: int
    """Its place among the report's runs."""
    benchmark: str
    """"train", or the evaluation's."""
    step: int
    problem_id: str
    responses: list[Response]
    others: dict[str, list[int | None]] = field(default_factory=dict)
    """Clusters by other judges, one per response; -1 is degenerate, None unlabelled."""
    reply: str | None = None
    """What the judge said, word for word, where it is one that speaks."""


class ProblemKey(NamedTuple):
    """A problem: runs, training and benchmarks may use one id for different ones."""

    run: int
    """Its place among the report's runs."""
    benchmark: str
    problem_id: str


@dataclass(frozen=True)
class Report:
    """Everything the page shows."""

    title: str
    runs: list[RunFacts]
    findings: list[Finding]
    """Worst first."""
    policies: list[Policy]
    policies_note: str
    policies_sql: str
    figures: list[Figure]
    problems: dict[ProblemKey, str]
    """Prompt texts."""
    prompts: list[Prompt]
    histories: dict[str, list[tuple[int, str, int, str, int, int]]]
    """By problem id: (run, benchmark, step, strategy, responses, of these correct)."""
    coverage_note: str
    """Which prompts the browser holds, of how many."""
    sql: dict[str, str]
    """Of what is no figure: the browser, the histories, the judges."""
    decoders: Sequence[Callable[[list[int]], str] | None] = ()
    """Token ids -> text, of each run's tokenizer; marks are where the texts part if there is none."""
