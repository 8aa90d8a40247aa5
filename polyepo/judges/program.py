"""Judges that need no model: the domain's exact strategy function, and equal final answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from polyepo.domains import Domain, Strategy
from polyepo.judges.base import CallLog, Group, Judge, Label, cluster_by_strategy


class ProgramJudge(Judge):
    """Clusters by the domain's own exact strategy function."""

    name: Literal["program"] = "program"

    def clusters_by_answer(self, domain: Domain) -> bool:
        """As far as the domain's strategies are answers."""
        return domain.strategy_is_answer

    def label(self, domain: Domain, groups: Sequence[Group], calls: CallLog | None = None) -> list[list[Label]]:
        """Exactly one label per response, in the responses' order, for each group."""
        return [
            cluster_by_strategy(strategies)
            for strategies in domain.strategies([(group.problem, group.responses) for group in groups])
        ]


class AnswerJudge(Judge):
    """Clusters by final answers that mean the same, as the verifier reads them; no readable answer is degenerate."""

    name: Literal["answer"] = "answer"

    def clusters_by_answer(self, domain: Domain) -> bool:
        """Yes."""
        return True

    def label(self, domain: Domain, groups: Sequence[Group], calls: CallLog | None = None) -> list[list[Label]]:
        """Exactly one label per response, in the responses' order, for each group."""
        verdicts = iter(
            domain.verify_batch(
                [group.problem for group in groups for _ in group.responses],
                [text for group in groups for text in group.responses],
            )
        )
        answered = [(group.problem, [next(verdicts).parsed_answer for _ in group.responses]) for group in groups]
        return [
            cluster_by_strategy(_first_of_each(answers, classes))
            for (_, answers), classes in zip(answered, domain.answer_classes(answered), strict=True)
        ]


def _first_of_each(answers: Sequence[str | None], classes: Sequence[int | None]) -> list[Strategy | None]:
    """For each answer the strategy of its class, named by the first answer in it."""
    first: dict[int | None, str | None] = {}
    for answer, number in zip(answers, classes, strict=True):
        first.setdefault(number, answer)
    return [None if number is None else Strategy("answer", str(first[number])) for number in classes]
