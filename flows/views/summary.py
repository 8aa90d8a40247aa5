"""The one-screen summary of a run, or of a configuration's arms: held-out results and where the time went."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from flows.views.evaluation import evaluation_of
from flows.views.tables import fill, markdown_table
from polyepo.config import ConfigError, EvaluationConfig
from tasks.runs.evaluations import HELDOUT, evaluated_steps, planned, read_evaluation
from tasks.runs.groups import members
from tasks.runs.run import Run, open_run

STAGES = ("sample", "judge", "score", "update")


@dataclass(frozen=True)
class Size:
    """How much of an evaluation is there, and of how much."""

    problems: int
    of_problems: int
    samples: int
    """Per problem, of the problem that has fewest."""
    of_samples: int
    ungraded: int
    """Responses that could not be graded, and are left out."""

    @property
    def finished(self) -> bool:
        """Whether all that was asked for is there."""
        return self.problems >= self.of_problems and self.samples >= self.of_samples


@dataclass(frozen=True)
class Row:
    """Held-out results of one policy; None where too few samples are there, or none could be graded or labelled."""

    policy: str
    step: int
    size: Size
    pass_at: dict[int, float | None]
    strategies_at: dict[int, float | None]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Summary:
    """Base model first, then one row per run; of arms whose base models differ, all of these first."""

    rows: list[Row]
    seed: int


def summarize(root: str, run: str) -> Summary:
    """Summarize a run, or a configuration's arms. Raises ConfigError if there is none, or no held-out evaluation."""
    runs = [open_run(root, name) for name in members(root, run)]
    bases: list[Row] = []
    rows: list[Row] = []
    for arm in runs:
        label = arm.name.removeprefix(f"{run}-")
        evaluated = evaluated_steps(arm, HELDOUT)
        if evaluated and evaluated[0] == 0:
            base = _row(arm, 0, "base model" if not bases else f"base model of {label}")
            # Arms mostly share it: then it is there once.
            if not any(replace(base, policy=other.policy) == other for other in bases):
                bases.append(base)
        if evaluated and evaluated[-1] > 0:
            rows.append(_row(arm, evaluated[-1], label))
    if not bases and not rows:
        raise ConfigError(f"run {run!r} has no held-out evaluation yet")
    return Summary([*bases, *rows], runs[0].config.seed)


def render(summary: Summary) -> Table:
    """The summary for a terminal."""
    # Eighty columns hold it.
    table = Table(
        title=_title(summary),
        title_justify="left",
        caption="\n".join(_notes(summary)) or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    return fill(table, _cells(summary))


def markdown(summary: Summary) -> str:
    """The summary as a markdown table."""
    return "\n\n".join([_title(summary), markdown_table(_cells(summary)), *_notes(summary)])


def _row(run: Run, step: int, policy: str) -> Row:
    config = run.config.evaluation or EvaluationConfig()
    found = read_evaluation(run, HELDOUT, step, ["reward", "parsed_answer", "answer_class", "cluster", "degenerate"])
    asked = planned(run, HELDOUT, step)
    # It may have been extended since, or have been made by hand with fewer.
    of_samples = min(config.num_samples, asked.samples) if asked else config.num_samples
    rows = [row for row in found if row["sample"] < of_samples]
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row["problem_id"])]
    evaluation = evaluation_of(groups)
    return Row(
        policy=policy,
        step=step,
        size=Size(
            problems=len(groups),
            of_problems=asked.problems if asked else len(groups),
            samples=min(map(len, groups), default=0),
            of_samples=of_samples,
            ungraded=sum(row["reward"] is None for row in rows),
        ),
        pass_at={k: _mean(evaluation.pass_at(k)) for k in config.k},
        strategies_at={k: _mean(evaluation.strategies(k)) for k in config.k if k > 1},
        seconds=_seconds(run, step),
    )


def _mean(values_P: Any) -> float | None:
    """Over the problems that have a value."""
    known = values_P[~np.isnan(values_P)]
    return float(known.mean()) if known.size else None


def _seconds(run: Run, last_step: int) -> dict[str, float]:
    columns = [f"seconds_{stage}" for stage in STAGES]
    totals = dict.fromkeys(STAGES, 0.0)
    keys = (run.key("updates", step) for step in range(1, last_step + 1))
    for table in run.store.read_tables(keys, columns):
        for stage in STAGES:
            totals[stage] += table[f"seconds_{stage}"][0].as_py()
    return totals


def _title(summary: Summary) -> str:
    sizes = {(row.size.of_problems, row.size.of_samples) for row in summary.rows}
    size = " or ".join(f"{problems} held-out problems × {samples} samples" for problems, samples in sorted(sizes))
    return (
        f"{size}, seed {summary.seed}; "
        f"distinct@k: distinct successful strategies among k samples; seconds: {' + '.join(STAGES)}"
    )


def _notes(summary: Summary) -> list[str]:
    """What is missing of the evaluations."""
    notes = []
    for row in summary.rows:
        size = row.size
        if not size.finished:
            notes.append(
                f"{row.policy}, step {row.step}: not finished, {size.problems} of {size.of_problems} problems and "
                f"{size.samples} of {size.of_samples} samples each"
            )
        if size.ungraded:
            notes.append(
                f"{row.policy}, step {row.step}: {size.ungraded} responses could not be graded, and do not count"
            )
    return notes


def _cells(summary: Summary) -> list[list[str]]:
    pass_ks = sorted({k for row in summary.rows for k in row.pass_at})
    distinct_ks = sorted({k for row in summary.rows for k in row.strategies_at})
    header = ["policy", *(f"pass@{k}" for k in pass_ks), *(f"distinct@{k}" for k in distinct_ks), "seconds"]
    # Arms that stand at another step than the rest say so.
    last = max(row.step for row in summary.rows)
    body = [
        [
            row.policy + (f" (step {row.step})" if row.step not in (0, last) else ""),
            *(_cell(row.pass_at.get(k), 3) for k in pass_ks),
            *(_cell(row.strategies_at.get(k), 2) for k in distinct_ks),
            "+".join(f"{value:.0f}" for value in row.seconds.values()) if row.step else "",
        ]
        for row in summary.rows
    ]
    return [header, *body]


def _cell(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
