"""The numbers of an evaluation, problem by problem: groups of samples of any sizes, graded and labelled or not."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from polyepo import metrics
from polyepo.metrics import THRESHOLD, bootstrap_interval
from polyepo.objectives import DEGENERATE

Interval = tuple[float, float, float]
"""Mean over problems, and the ends of its 95 % bootstrap interval; NaN if there is no problem to speak of."""


class Grade(NamedTuple):
    """What is known of one sample."""

    reward: float | None
    """None if it could not be graded."""
    answer: Hashable | None
    """Equal for final answers that mean the same; None if there is none."""
    cluster: int | None
    degenerate: bool


class Evaluation:
    """A policy's samples of a benchmark's problems.

    Numbers are of each problem's own samples, however many there are: those that could be graded, and for strategies
    those of them that have a label. A problem with fewer than k such has none at k: NaN.

    Args:
        problems: each problem's samples.
    """

    def __init__(self, problems: Sequence[Sequence[Grade]]) -> None:
        self._graded = [[grade for grade in samples if grade.reward is not None] for samples in problems]
        self._majority: dict[int, tuple[Any, Any]] = {}
        self.num_problems = len(self._graded)
        self.num_samples = max(map(len, self._graded), default=0)
        """Graded samples of the problem that has most."""

    def pass_at(self, k: int) -> Any:
        """pass@k of each problem, (P,)."""
        return self._each(self._graded, k, lambda samples: metrics.pass_at_k(len(samples), sum(_correct(samples)), k))

    def coverage(self) -> Any:
        """Whether each problem has a correct sample, (P,)."""
        return self._each(self._graded, 1, lambda samples: any(_correct(samples)))

    def cover_at(self, tau: float) -> Any:
        """Whether at least this share of each problem's samples is correct, (P,)."""
        return self._each(self._graded, 1, lambda samples: np.mean(_correct(samples)) >= tau)

    def strategies(self, k: int) -> Any:
        """Expected distinct successful strategies among k samples of each problem, (P,)."""
        return self._each(self._labelled(), k, lambda samples: metrics.div_at_k(*_rewards_and_clusters(samples), k))

    def distinct_strategies(self) -> Any:
        """Distinct successful strategies among all samples of each problem, (P,)."""
        return self._each(
            self._labelled(),
            1,
            lambda samples: metrics.distinct_successful_strategies(*_rewards_and_clusters(samples)),
        )

    def majority(self, k: int) -> tuple[Any, Any]:
        """maj@k and the winner's share of the votes, for each problem, (P,) each."""
        if k not in self._majority:
            both = [
                metrics.maj_at_k([grade.answer for grade in samples], _correct(samples), k, num_draws=200)
                if len(samples) >= k
                else (np.nan, np.nan)
                for samples in self._graded
            ]
            accuracy, share = np.array(both, dtype=float).reshape(-1, 2).T
            self._majority[k] = (accuracy, share)
        return self._majority[k]

    def _labelled(self) -> list[list[Grade]]:
        return [[g for g in samples if g.degenerate or g.cluster is not None] for samples in self._graded]

    def _each(self, problems: list[list[Grade]], least: int, value: Callable[[list[Grade]], Any]) -> Any:
        return np.array([value(samples) if len(samples) >= least else np.nan for samples in problems], dtype=float)


def evaluation_of(problems: Sequence[Sequence[Mapping[str, Any]]]) -> Evaluation:
    """The evaluation of each problem's rows of evals; before schema version 5 answers go by their text."""
    return Evaluation(
        [
            [
                Grade(
                    row["reward"],
                    row["parsed_answer"] if row["answer_class"] is None else row["answer_class"],
                    row["cluster"],
                    row["degenerate"],
                )
                for row in samples
            ]
            for samples in problems
        ]
    )


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4, ... and the limit itself; none below 1."""
    return sorted({2**i for i in range(limit.bit_length())} | {limit}) if limit > 0 else []


def with_interval(values_P: Any) -> Interval:
    """Mean over the problems that have a value, with its 95 % bootstrap interval."""
    values = np.asarray(values_P, dtype=float)
    known = values[~np.isnan(values)]
    if not known.size:
        return (np.nan, np.nan, np.nan)
    low, high = bootstrap_interval(known)
    return float(np.mean(known)), float(low), float(high)


def _correct(samples: Sequence[Grade]) -> list[bool]:
    return [grade.reward is not None and grade.reward > THRESHOLD for grade in samples]


def _rewards_and_clusters(samples: Sequence[Grade]) -> tuple[list[float], list[int]]:
    clusters = [DEGENERATE if g.degenerate or g.cluster is None else g.cluster for g in samples]
    return [float(correct) for correct in _correct(samples)], clusters
