"""The results of one evaluation, with intervals over its problems, as tables for the terminal and the Prefect UI."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table

from flows.views.report.heldout import Evaluation, powers_of_two, with_interval
from polyepo.config import ConfigError
from polyepo.metrics import branching
from tasks.runs.evaluations import read_evaluation
from tasks.runs.run import Run

TAUS = (0.1, 0.25, 0.5, 0.75, 1.0)
_COLUMNS = ["reward", "parsed_answer", "cluster", "degenerate", "response_token_ids", "finish_reason", "judge"]

Interval = tuple[float, float, float]
"""Mean over problems, and the ends of its 95 % bootstrap interval."""


@dataclass(frozen=True)
class Results:
    """What an evaluation found."""

    run: str
    step: int
    benchmark: str
    judge: str
    num_problems: int
    num_samples: int
    by_k: dict[int, dict[str, Interval]]
    """By k: pass@k, maj@k, vote share, distinct@k."""
    overall: dict[str, Interval]
    """Over all samples: coverage, cover@tau, strategies, branching, lengths, truncation."""


def results(run: Run, benchmark: str, step: int) -> Results:
    """The results of an evaluation. Raises ConfigError if nothing of it is committed."""
    rows = read_evaluation(run, benchmark, step, _COLUMNS)
    if not rows:
        raise ConfigError(f"run {run.name!r}, step {step}, is not evaluated on {benchmark!r} yet")
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row["problem_id"])]
    evaluation = Evaluation(
        [[(r["reward"] > 0.5, r["parsed_answer"], r["cluster"], r["degenerate"]) for r in group] for group in groups]
    )
    correct_PM = evaluation.correct_PM
    num_samples = correct_PM.shape[1]
    tokens = [[row["response_token_ids"] for row in group] for group in groups]
    trees = [branching(responses) for responses in tokens]
    overall = {
        "coverage": correct_PM.any(1),
        **{f"cover@{tau:g}": correct_PM.mean(1) >= tau for tau in TAUS},
        "distinct successful strategies": evaluation.strategies(num_samples),
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
        for k in powers_of_two(num_samples)
    }
    return Results(
        run.name,
        step,
        benchmark,
        rows[0]["judge"],
        len(groups),
        num_samples,
        by_k,
        {name: with_interval(np.asarray(values, dtype=float)) for name, values in overall.items()},
    )


def render(found: Results) -> Group:
    """The results for a terminal."""
    tables = []
    for title, (header, *body) in zip((_title(found), None), _tables(found), strict=True):
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
        for cells in body:
            table.add_row(*cells)
        tables.append(table)
    return Group(*tables)


def markdown(found: Results) -> str:
    """The results as markdown."""
    blocks = [_title(found)]
    for header, *body in _tables(found):
        lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
        blocks.append("\n".join("| " + " | ".join(cells) + " |" for cells in lines))
    return "\n\n".join(blocks)


def _title(found: Results) -> str:
    return (
        f"{found.run} · step {found.step} · {found.benchmark}: {found.num_problems} problems × {found.num_samples} "
        f"samples, strategies by judge {found.judge}; (95 % intervals over problems)"
    )


def _tables(found: Results) -> list[list[list[str]]]:
    names = list(next(iter(found.by_k.values())))
    by_k = [["k", *names], *([str(k), *map(_cell, values.values())] for k, values in found.by_k.items())]
    overall = [["over all samples", "mean"], *([name, _cell(value)] for name, value in found.overall.items())]
    return [by_k, overall]


def _cell(value: Interval) -> str:
    mean, low, high = (f"{x:.3f}" if abs(x) < 10 else f"{x:.1f}" for x in value)
    return f"{mean} ({low} – {high})"
