"""Judges that need no model: the domain's exact strategy function, and equal final answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from polyepo.domains import Domain, Strategy
from polyepo.judges.base import CallLog, Group, Judge, Label, cluster_by_strategy


class ProgramJudge(Judge):
    """Clusters by the domain's own exact strategy function."""

    name: Literal["program"] = "program"

    def label(self, domain: Domain, groups: Sequence[Group], calls: CallLog | None = None) -> list[list[Label]]:
        """Exactly one label per response, in the responses' order, for each group."""
        return [
            cluster_by_strategy([domain.strategy(group.problem, text) for text in group.responses]) for group in groups
        ]


class AnswerJudge(Judge):
    """Clusters by equal final answers, as the verifier reads them; no readable answer is degenerate."""

    name: Literal["answer"] = "answer"

    def label(self, domain: Domain, groups: Sequence[Group], calls: CallLog | None = None) -> list[list[Label]]:
        """Exactly one label per response, in the responses' order, for each group."""
        labels = []
        for group in groups:
            verdicts = domain.verify_batch([group.problem] * len(group.responses), group.responses)
            labels.append(
                cluster_by_strategy(
                    [None if v.parsed_answer is None else Strategy("answer", v.parsed_answer) for v in verdicts]
                )
            )
        return labels
