"""The results of one evaluation, with intervals over its problems, as tables for the terminal and the Prefect UI."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table

from flows.views.evaluation import Interval, evaluation_of, powers_of_two, with_interval
from flows.views.tables import fill, markdown_table
from polyepo.config import ConfigError
from polyepo.metrics import branching
from tasks.runs.evaluations import Planned, planned, read_evaluation
from tasks.runs.run import Run

TAUS = (0.1, 0.25, 0.5, 0.75, 1.0)
_COLUMNS = ["reward", "parsed_answer", "answer_class", "cluster", "degenerate", "response_token_ids", "finish_reason",
            "judge"]  # fmt: skip


@dataclass(frozen=True)
class Results:
    """What an evaluation found."""

    run: str
    step: int
    benchmark: str
    judge: str
    num_problems: int
    num_samples: int
    """Of the problem that has fewest."""
    asked: Planned | None
    """What the evaluation is to be when it is finished; None if that is not known."""
    num_ungraded: int
    """Samples that could not be graded, and are left out of what counts correct ones."""
    num_responses: int
    by_k: dict[int, dict[str, Interval]]
    """By k: pass@k, maj@k, vote share, distinct@k."""
    overall: dict[str, Interval]
    """Over all samples: coverage, cover@tau, strategies, branching, lengths, truncation."""


def results(run: Run, benchmark: str, step: int) -> Results:
    """The results of an evaluation, finished or not. Raises ConfigError if nothing of it is committed."""
    rows = read_evaluation(run, benchmark, step, _COLUMNS)
    if not rows:
        raise ConfigError(f"run {run.name!r}, step {step}, is not evaluated on {benchmark!r} yet")
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row["problem_id"])]
    evaluation = evaluation_of(groups)
    tokens = [[row["response_token_ids"] for row in group] for group in groups]
    trees = [branching(responses) for responses in tokens]
    overall = {
        "coverage": evaluation.coverage(),
        **{f"cover@{tau:g}": evaluation.cover_at(tau) for tau in TAUS},
        "distinct successful strategies": evaluation.distinct_strategies(),
        "branches at their most": np.array([max(alive, default=0) for alive, _ in trees]),
        "first branching (token)": np.array(
            [len(alive) if first is None else first for alive, first in trees]
        ),  # never: after the last
        "response tokens": np.array([np.mean([len(response) for response in responses]) for responses in tokens]),
        "truncated": np.array([np.mean([row["finish_reason"] == "length" for row in group]) for group in groups]),
    }
    by_k = {
        k: {
            "pass@k": with_interval(evaluation.pass_at(k)),
            "maj@k": with_interval(evaluation.majority(k)[0]),
            "vote share": with_interval(evaluation.majority(k)[1]),
            "distinct@k": with_interval(evaluation.strategies(k)),
        }
        for k in powers_of_two(evaluation.num_samples)
    }
    return Results(
        run=run.name,
        step=step,
        benchmark=benchmark,
        judge=rows[0]["judge"],
        num_problems=len(groups),
        num_samples=min(map(len, groups)),
        asked=planned(run, benchmark, step),
        num_ungraded=sum(row["reward"] is None for row in rows),
        num_responses=len(rows),
        by_k=by_k,
        overall={name: with_interval(values) for name, values in overall.items()},
    )


def render(found: Results) -> Group:
    """The results for a terminal."""
    tables = []
    for title, cells in zip((_title(found), None), _tables(found), strict=True):
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        tables.append(fill(table, cells))
    return Group(*tables)


def markdown(found: Results) -> str:
    """The results as markdown."""
    return "\n\n".join([_title(found), *map(markdown_table, _tables(found))])


def _title(found: Results) -> str:
    size = f"{found.num_problems} problems × {found.num_samples} samples"
    if found.asked and (found.num_problems < found.asked.problems or found.num_samples < found.asked.samples):
        size += f" of {found.asked.problems} × {found.asked.samples}: not finished"
    if found.num_ungraded:
        size += f", of which {found.num_ungraded} of {found.num_responses} responses could not be graded"
    return (
        f"{found.run} · step {found.step} · {found.benchmark}: {size}; strategies by judge {found.judge}; "
        "(95 % intervals over problems)"
    )


def _tables(found: Results) -> list[list[list[str]]]:
    names = ["pass@k", "maj@k", "vote share", "distinct@k"]
    by_k = [["k", *names], *([str(k), *(_cell(values[n]) for n in names)] for k, values in found.by_k.items())]
    overall = [["over all samples", "mean"], *([name, _cell(value)] for name, value in found.overall.items())]
    return [by_k, overall]


def _cell(value: Interval) -> str:
    if math.isnan(value[0]):
        return "–"
    mean, low, high = (f"{x:.3f}" if abs(x) < 10 else f"{x:.1f}" for x in value)
    return f"{mean} ({low} – {high})"
