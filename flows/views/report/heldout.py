"""Held-out results: each policy's metrics per problem, with intervals over problems."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from flows.views.evaluation import Evaluation, Grade, Interval, powers_of_two, with_interval
from flows.views.report.source import Source, evenly, quote
from polyepo import metrics
from polyepo.report import Figure, Policy, Series

BASE = "base"

_Identity = tuple[str, str | None]
"""What problem it is: its id and a digest of its prompt. Two files may both number theirs from 0."""


class HeldOut:
    """A benchmark's evaluations, per policy and problem."""

    def __init__(self, source: Source, benchmark: str) -> None:
        self.source = source
        self.benchmark = benchmark
        self.sql = (
            "SELECT run, step, problem_id, sample, reward, coalesce(answer_class::VARCHAR, parsed_answer) AS answer,\n"
            "       cluster, degenerate\n"
            f"FROM evals\nWHERE benchmark = {quote(benchmark)} AND {source.where}\nORDER BY ALL"
        )
        self._digests = {
            (run, problem_id): digest
            for run, problem_id, digest in source.rows(
                f"SELECT run, problem_id, md5(prompt) FROM problems WHERE split = {quote(benchmark)} "  # noqa: S608
                f"AND {source.where}"
            )
        }
        self._grades: dict[tuple[str, int], dict[_Identity, list[Grade]]] = defaultdict(lambda: defaultdict(list))
        for run, step, problem_id, _, *grade in source.rows(self.sql):
            self._grades[run, step][self._identity(run, problem_id)].append(Grade(*grade))
        # Problems that every evaluation has: differences between policies are then differences on the same problems.
        # Runs on different problems have none, and then each evaluation is of its own.
        self.common = sorted(set.intersection(*(set(problems) for problems in self._grades.values())), key=str)
        self.evaluations = {
            key: self._evaluation(key, self.common or sorted(problems, key=str))
            for key, problems in self._grades.items()
        }
        self._keys = self._policy_keys()
        self.policies = {label: (key[1], self.evaluations[key]) for label, key in self._keys.items()}
        self.num_samples = max(1, min(evaluation.num_samples for evaluation in self.evaluations.values()))
        """Of the evaluation that has fewest."""
        self.note = " ".join([*self._sizes(), *self._unfinished(), _NOTE])

    def _identity(self, run: str, problem_id: str) -> _Identity:
        return problem_id, self._digests.get((run, problem_id))

    def _evaluation(self, key: tuple[str, int], problems: list[_Identity]) -> Evaluation:
        return Evaluation([self._grades[key][problem] for problem in problems])

    def _policy_keys(self) -> dict[str, tuple[str, int]]:
        """The base models, once each, and then each run's last evaluation."""
        keys: dict[str, tuple[str, int]] = {}
        for run in self.source.names:
            base = self._grades.get((run, 0))
            if base and not any(base == self._grades[key] for key in keys.values()):
                keys[BASE if not keys else f"{BASE} of {self.source.label(run)}"] = (run, 0)
        for run in self.source.names:
            if last := max((step for name, step in self._grades if name == run and step), default=0):
                keys[self.source.label(run)] = (run, last)
        return keys

    def against_base(self, label: str) -> tuple[Evaluation, Evaluation] | None:
        """A policy and the base model that it was trained from, on the problems that both have; None without any."""
        run, step = self._keys[label]
        base = (run, 0) if (run, 0) in self._grades else self._keys.get(BASE)
        if not step or base is None:
            return None
        shared = sorted(set(self._grades[run, step]) & set(self._grades[base]), key=str)
        return (self._evaluation((run, step), shared), self._evaluation(base, shared)) if shared else None

    def _sizes(self) -> list[str]:
        if not self.common:
            return [
                f"{self.benchmark}: the runs have no problem in common, so each number is of the run's own problems."
            ]
        sizes = {evaluation.num_samples for evaluation in self.evaluations.values()}
        up_to = "up to " if len(sizes) > 1 else ""
        return [f"{self.benchmark}: {len(self.common)} problems, {up_to}{max(sizes)} samples each."]

    def _unfinished(self) -> list[str]:
        rows = self.source.rows(
            "SELECT run, step, problems, of_problems, fewest_samples, of_samples, complete, ungraded\n"
            f"FROM evaluation_progress()\nWHERE benchmark = {quote(self.benchmark)} AND {self.source.where}"
        )
        said = []
        for run, step, problems, of_problems, samples, of_samples, complete, ungraded in rows:
            where = f"{self.source.label(run)}, step {step}"
            if complete is False:
                said.append(f"{where} is not finished: {problems} of {of_problems} problems, "
                            f"{samples} of {of_samples} samples each.")  # fmt: skip
            if ungraded:
                said.append(f"{where}: {ungraded} samples could not be graded and are left out.")
        return said

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
            Policy(label, step, {name: _known(with_interval(values(evaluation))) for name, values in wanted.items()})
            for label, (step, evaluation) in self.policies.items()
        ]

    def figures(self) -> list[Figure]:
        """pass@k, maj@k, vote share, strategies and branching of each policy; and how they went over steps."""
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
                    for ks in (powers_of_two(evaluation.num_samples),)
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
        wanted = {key: label for label, key in self._keys.items()}
        tokens: dict[str, dict[str, list[list[int]]]] = defaultdict(lambda: defaultdict(list))
        for run, step, problem_id, token_ids in self.source.rows(sql):
            shown = not self.common or self._identity(run, problem_id) in self.common
            if (run, step) in wanted and shown:
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


_NOTE = (
    "Below each number: its 95 % BCa bootstrap interval over problems, of those with at least k samples that could be "
    "graded (and labelled, for strategies). maj@k: accuracy of the most frequent of k answers. distinct@k: expected "
    "number of distinct successful strategies among k samples."
)


def _known(interval: Interval) -> Interval | None:
    return None if math.isnan(interval[0]) else interval
