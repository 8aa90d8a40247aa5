"""The one-screen summary of a run, or of a configuration's arms: held-out results and where the time went."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rich import box
from rich.table import Table

from polyepo.config import ConfigError, EvaluationConfig
from polyepo.metrics import div_at_k, pass_at_k
from polyepo.objectives import DEGENERATE
from tasks.runs.evaluations import HELDOUT, read_evaluation
from tasks.runs.groups import members
from tasks.runs.run import Run, open_run

STAGES = ("sample", "judge", "score", "update")


@dataclass(frozen=True)
class Row:
    """Held-out results of one policy."""

    policy: str
    step: int
    pass_at: dict[int, float]
    strategies_at: dict[int, float]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Summary:
    """Base model first, then one row per run."""

    rows: list[Row]
    num_problems: int
    num_samples: int
    seed: int


def summarize(root: str, run: str) -> Summary:
    """Summarize a run, or a configuration's arms. Raises ConfigError if there is none, or no held-out evaluation."""
    runs = [open_run(root, name) for name in members(root, run)]
    rows = [_row(arm, arm.last_step(), run) for arm in runs]
    base = _row(runs[0], 0, run)
    config = runs[0].config.evaluation or EvaluationConfig()
    held_out = len(runs[0].split("heldout")[: config.max_problems])
    return Summary([base, *(r for r in rows if r.step)], held_out, config.num_samples, runs[0].config.seed)


def render(summary: Summary) -> Table:
    """The summary for a terminal."""
    # Eighty columns hold it.
    table = Table(title=_title(summary), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    header, *body = _cells(summary)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for cells in body:
        table.add_row(*cells)
    return table


def markdown(summary: Summary) -> str:
    """The summary as a markdown table."""
    header, *body = _cells(summary)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "\n".join([_title(summary), "", *("| " + " | ".join(cells) + " |" for cells in lines)])


def _row(run: Run, step: int, config_run: str) -> Row:
    config = run.config.evaluation or EvaluationConfig()
    rows = read_evaluation(run, HELDOUT, step, ["reward", "cluster", "degenerate"])
    rows = [row for row in rows if row["sample"] < config.num_samples]  # it may have been extended since
    if not rows:
        raise ConfigError(f"run {run.name!r} has no held-out evaluation of step {step} yet")
    shape = (-1, config.num_samples)
    rewards_PM = np.array([row["reward"] for row in rows]).reshape(shape)
    clusters = [DEGENERATE if row["cluster"] is None else row["cluster"] for row in rows]
    clusters_PM = np.array(clusters).reshape(shape)
    correct_P = (rewards_PM > 0.5).sum(-1)
    return Row(
        policy=run.name.removeprefix(f"{config_run}-") if step else "base model",
        step=step,
        pass_at={k: float(pass_at_k(config.num_samples, correct_P, k).mean()) for k in config.k},
        strategies_at={k: float(div_at_k(rewards_PM, clusters_PM, k).mean()) for k in config.k if k > 1},
        seconds=_seconds(run, step),
    )


def _seconds(run: Run, last_step: int) -> dict[str, float]:
    columns = [f"seconds_{stage}" for stage in STAGES]
    totals = dict.fromkeys(STAGES, 0.0)
    for step in range(1, last_step + 1):
        row = run.store.read_table(run.key("updates", step), columns).to_pylist()[0]
        for stage in STAGES:
            totals[stage] += row[f"seconds_{stage}"]
    return totals


def _title(summary: Summary) -> str:
    return (
        f"{summary.num_problems} held-out problems × {summary.num_samples} samples, seed {summary.seed}; "
        f"distinct@k: distinct successful strategies among k samples; seconds: {' + '.join(STAGES)}"
    )


def _cells(summary: Summary) -> list[list[str]]:
    first = summary.rows[0]
    header = ["policy"]
    header += [f"pass@{k}" for k in first.pass_at] + [f"distinct@{k}" for k in first.strategies_at]
    header += ["seconds"]
    # Arms that stand at another step than the rest say so.
    last = max(row.step for row in summary.rows)
    body = [
        [
            row.policy + (f" (step {row.step})" if row.step not in (0, last) else ""),
            *(f"{value:.3f}" for value in row.pass_at.values()),
            *(f"{value:.2f}" for value in row.strategies_at.values()),
            "+".join(f"{value:.0f}" for value in row.seconds.values()) if row.step else "",
        ]
        for row in summary.rows
    ]
    return [header, *body]
