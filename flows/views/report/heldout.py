"""Held-out results: each policy's metrics per problem, with intervals over problems."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flows.views.report.source import Source, evenly, quote
from polyepo import metrics
from polyepo.metrics import bootstrap_interval
from polyepo.objectives import DEGENERATE
from polyepo.report import Figure, Policy, Series

BASE = "base"


class HeldOut:
    """A benchmark's evaluations, per policy and problem."""

    def __init__(self, source: Source, benchmark: str) -> None:
        self.benchmark = benchmark
        self.sql = (
            "SELECT run, step, problem_id, sample, reward > 0.5 AS correct, parsed_answer, cluster, degenerate\n"
            f"FROM evals\nWHERE benchmark = {quote(benchmark)} AND {source.where}\nORDER BY ALL"
        )
        grades: dict[tuple[str, int], dict[str, list[tuple[Any, ...]]]] = defaultdict(lambda: defaultdict(list))
        for run, step, problem_id, _, *grade in source.rows(self.sql):
            grades[run, step][problem_id].append(tuple(grade))
        # Problems that every evaluation has: differences between policies are then differences on the same problems.
        self.problem_ids = sorted(set.intersection(*(set(problems) for problems in grades.values())))
        self.num_samples = min(len(problems[p]) for problems in grades.values() for p in self.problem_ids)
        self.evaluations = {
            key: Evaluation([problems[problem_id][: self.num_samples] for problem_id in self.problem_ids])
            for key, problems in grades.items()
        }
        self.source = source
        self.policies = self._policies()
        self.note = (
            f"{benchmark}: {len(self.problem_ids)} problems, {self.num_samples} samples each. Below each number: its "
            "95 % BCa bootstrap interval over problems. maj@k: accuracy of the most frequent of k answers. distinct@k: "
            "expected number of distinct successful strategies among k samples."
        )

    def _policies(self) -> dict[str, tuple[int, Evaluation]]:
        """The base models, once each, and then each run's last evaluation."""
        policies: dict[str, tuple[int, Evaluation]] = {}
        for run in self.source.names:
            base = self.evaluations.get((run, 0))
            if base and not any(np.array_equal(base.correct_PM, other.correct_PM) for _, other in policies.values()):
                policies[BASE if not policies else f"{BASE} of {self.source.label(run)}"] = (0, base)
        for run in self.source.names:
            if last := max((step for name, step in self.evaluations if name == run and step), default=0):
                policies[self.source.label(run)] = (last, self.evaluations[run, last])
        return policies

    def table(self) -> list[Policy]:
        """One row per policy."""
        last, some = self.num_samples, min(8, self.num_samples)
        wanted = {
            "pass@1": lambda e: e.pass_at(1),
            f"pass@{last}": lambda e: e.pass_at(last),
            f"maj@{last}": lambda e: e.majority(last)[0],
            f"distinct@{some}": lambda e: e.strategies(some),
            f"distinct@{last}": lambda e: e.strategies(last),
        }
        return [
            Policy(label, step, {name: with_interval(values(evaluation)) for name, values in wanted.items()})
            for label, (step, evaluation) in self.policies.items()
        ]

    def figures(self) -> list[Figure]:
        """pass@k, maj@k, vote share, strategies and branching of each policy; and how they went over steps."""
        ks = powers_of_two(self.num_samples)
        measures: list[tuple[str, str, str, Callable[[Evaluation, int], Any], str, bool]] = [
            ("pass", "pass@k", "Chance that one of k samples is correct.", Evaluation.pass_at, "pass@k", True),
            (
                "maj",
                "maj@k",
                "Accuracy of the most frequent of k answers.",
                lambda e, k: e.majority(k)[0],
                "maj@k",
                True,
            ),
            (
                "vote",
                "Vote share",
                "Share of k votes that the most frequent answer has.",
                lambda e, k: e.majority(k)[1],
                "share",
                True,
            ),
            (
                "div",
                "Distinct successful strategies among k",
                "Expected number, from all samples.",
                Evaluation.strategies,
                "strategies",
                False,
            ),
        ]
        figures = [
            self._figure(
                name,
                title,
                caption + " Bands: 95 % intervals over problems.",
                "k",
                y,
                share,
                {
                    label: (ks, [with_interval(measure(evaluation, k)) for k in ks])
                    for label, (_, evaluation) in self.policies.items()
                },
                log_x=True,
            )
            for name, title, caption, measure, y, share in measures
        ]
        figures.append(self._branching())
        some = min(8, self.num_samples)
        over_steps = [
            ("pass-steps", "pass@1 over steps", lambda e: e.pass_at(1), "pass@1", True),
            (
                "div-steps",
                f"Distinct successful strategies among {some}, over steps",
                lambda e: e.strategies(some),
                "strategies",
                False,
            ),
        ]
        for name, title, values, y, share in over_steps:
            lines = {}
            for run in self.source.names:
                steps = sorted(step for of_run, step in self.evaluations if of_run == run)
                if len(steps) > 2:
                    lines[self.source.label(run)] = (
                        steps,
                        [with_interval(values(self.evaluations[run, s])) for s in steps],
                    )
            figures.append(
                self._figure(
                    name, title, "On held-out problems, with 95 % intervals over problems.", "step", y, share, lines
                )
            )
        return figures

    def _branching(self) -> Figure:
        sql = (
            "SELECT run, step, problem_id, response_token_ids\n"
            f"FROM evals\nWHERE benchmark = {quote(self.benchmark)} AND {self.source.where}\nORDER BY ALL"
        )
        wanted = {}
        for label, (step, evaluation) in self.policies.items():
            run = next(key[0] for key, value in self.evaluations.items() if value is evaluation)
            wanted[run, step] = label
        tokens: dict[str, dict[str, list[list[int]]]] = defaultdict(lambda: defaultdict(list))
        for run, step, problem_id, token_ids in self.source.rows(sql):
            if (run, step) in wanted and problem_id in self.problem_ids:
                tokens[wanted[run, step]][problem_id].append(token_ids)
        lines = {}
        for label, problems in tokens.items():
            alive = [metrics.branching(responses)[0] for responses in problems.values()]
            positions = evenly(list(range(max(map(len, alive), default=0))), 200)
            lines[label] = (
                [position + 1 for position in positions],
                [with_interval(np.array([a[t] if t < len(a) else 0 for a in alive])) for t in positions],
            )
        return self._figure(
            "branching",
            "Branching",
            "Branches of the samples' token tree that are alive at each token, mean over "
            "problems: how early a policy's responses part.",
            "token",
            "branches",
            False,
            lines,
            sql=sql,
        )

    def _figure(
        self,
        name: str,
        title: str,
        caption: str,
        x: str,
        y: str,
        share: bool,
        lines: dict[str, tuple[list[int], list[tuple[float, float, float]]]],
        log_x: bool = False,
        sql: str | None = None,
    ) -> Figure:
        series = [
            Series(label, list(map(float, xs)), [v[0] for v in values], [v[1] for v in values], [v[2] for v in values])
            for label, (xs, values) in lines.items()
        ]
        suffix = "" if self.benchmark == self.source.benchmarks[0] else f" · {self.benchmark}"
        return Figure(
            f"{name}-{self.benchmark}",
            "heldout",
            title + suffix,
            caption,
            x,
            y,
            sql or self.sql,
            series,
            log_x=log_x,
            unit_interval=share,
        )


class Evaluation:
    """A policy's graded samples of a benchmark.

    Args:
        grades: for each problem M tuples (correct, answer, cluster, degenerate).
    """

    def __init__(self, grades: Sequence[Sequence[tuple[Any, ...]]]) -> None:
        self.correct_PM = np.array([[bool(correct) for correct, *_ in row] for row in grades])
        self.answers = [[answer for _, answer, *_ in row] for row in grades]
        self.clusters_PM = np.array(
            [
                [DEGENERATE if degenerate or cluster is None else cluster for *_, cluster, degenerate in row]
                for row in grades
            ]
        )
        self._majority: dict[int, tuple[Any, Any]] = {}

    def pass_at(self, k: int) -> Any:
        """pass@k of each problem, (P,)."""
        return metrics.pass_at_k(self.correct_PM.shape[1], self.correct_PM.sum(1), k)

    def strategies(self, k: int) -> Any:
        """Expected distinct successful strategies among k samples of each problem, (P,)."""
        return metrics.div_at_k(self.correct_PM.astype(float), self.clusters_PM, k)

    def majority(self, k: int) -> tuple[Any, Any]:
        """maj@k and the winner's share of the votes, for each problem, (P,) each."""
        if k not in self._majority:
            rows = zip(self.answers, self.correct_PM.tolist(), strict=True)
            both = np.array([metrics.maj_at_k(answers, correct, k, num_draws=200) for answers, correct in rows])
            self._majority[k] = (both[:, 0], both[:, 1])
        return self._majority[k]


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4, ... and the limit itself."""
    return sorted({2**i for i in range(limit.bit_length())} | {limit})


def with_interval(values_P: Any) -> tuple[float, float, float]:
    """Mean over problems with its 95 % bootstrap interval."""
    low, high = bootstrap_interval(values_P)
    return float(np.mean(values_P)), float(low), float(high)
