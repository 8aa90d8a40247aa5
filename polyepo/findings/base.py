"""What a finding is, and those that follow from a configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from polyepo.config import RunConfig
from polyepo.scoring import SetScoring


class Severity(IntEnum):
    """How bad a finding is."""

    NOTE = 0
    """Worth knowing; nothing has to be done."""
    UNKNOWN = 1
    """Nobody can tell here."""
    WARNING = 2
    """The run goes on, and is worth less than it could be."""
    FATAL = 3
    """The run would stop, or it learns nothing."""


@dataclass(frozen=True)
class Finding:
    """One thing about a run: what is wrong, with its numbers, and what would mend it, by a setting's name."""

    severity: Severity
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}" if self.remedy else self.what


def config_findings(config: RunConfig) -> list[Finding]:
    """What makes every advantage or every update 0, whatever is sampled."""
    scoring, size = config.scoring, config.sampling.num_responses
    silent = "every advantage is 0, and nothing is learnt"
    found: list[Finding] = []

    def fatal(what: str, remedy: str) -> None:
        found.append(Finding(Severity.FATAL, what, remedy))

    if not config.steps:
        return found
    if config.update.lr == 0:
        fatal("update.lr 0: nothing is learnt", "it must be positive")
    if size == 1:
        fatal(f"sampling.num_responses 1: {silent}", "it must be at least 2")
    elif isinstance(scoring, SetScoring):
        n = scoring.set_size
        if n == size:
            fatal(
                f"scoring.set_size {n} is sampling.num_responses: there is one set, the baseline is its own score, "
                f"{silent}",
                f"it must be below {size}",
            )
        elif scoring.num_sets == 1:
            fatal(f"scoring.num_sets 1: the baseline is the set's own score, {silent}", "leave it out")
        elif n == 1 and scoring.objective == "polychromic" and scoring.require_two_clusters:
            fatal(
                f"scoring.set_size 1 with require_two_clusters: no set has two clusters, {silent}",
                "it must be at least 2",
            )
    return found
