"""A run in the terminal while it trains, read from the store alone: it may run anywhere."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flows.views.findings import finding_line
from flows.views.terminal import safe_text
from polyepo.findings import Severity, training_findings
from tasks.runs.groups import members
from tasks.runs.run import Run, open_run

_REFRESH_SECONDS = 1.0
_WIDTH = 28
_LEVELS = "▁▂▃▄▅▆▇█"
_CURVES = {
    "reward": "reward_mean",
    "successful strategies": "distinct_successful",
    "coverage": "coverage",
    "entropy": "entropy",
    "mismatch": "logprob_mismatch",
    "seconds": "seconds",
}
_SECONDS = [f"seconds_{stage}" for stage in ("sample", "judge", "score", "update")]


@dataclass
class Watched:
    """What has been read of a run: each step's row once, since what is committed never changes."""

    run: Run
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)

    def refresh(self) -> None:
        """Read the steps that were committed since."""
        store = self.run.store
        steps = range(self.step + 1, self.run.last_step() + 1)
        for step, table in zip(steps, store.read_tables(self.run.key("updates", step) for step in steps), strict=True):
            row = table.to_pylist()[0]
            self.rows[step] = row | {"seconds": sum(row[name] for name in _SECONDS)}

    @property
    def step(self) -> int:
        """The last finished step."""
        return max(self.rows, default=0)

    @property
    def finished(self) -> bool:
        """Whether all steps are there."""
        return self.step >= self.run.config.steps

    def stage(self) -> str:
        """What the run is at, by what is committed of the next step."""
        if self.finished:
            return "finished"
        run, step = self.run, self.step + 1
        shards = range(run.config.sampling.shards)
        if run.store.exists(run.scores_key(step)):
            return "updating"
        judged = sum(run.store.exists(run.labels_key(step, shard)) for shard in shards)
        sampled = sum(run.store.exists(run.key("rollouts", step, shard)) for shard in shards)
        if judged == len(shards):
            return "scoring"
        if sampled == len(shards):
            return f"judging {judged + 1} of {len(shards)}" if len(shards) > 1 else "judging"
        return f"sampling {sampled + 1} of {len(shards)}" if len(shards) > 1 else "sampling"


def watch(root: str, name: str, console: Console) -> None:
    """Show a run, or a configuration's arms, until all are finished; once, if the output is no terminal.

    Raises:
        ConfigError: there is no such run under the root.
    """
    runs = [Watched(open_run(root, run)) for run in members(root, name)]
    for watched in runs:
        watched.refresh()
    if not console.is_terminal or all(watched.finished for watched in runs):
        console.print(view(runs))
        return
    with Live(view(runs), console=console, auto_refresh=False) as live:
        while not all(watched.finished for watched in runs):
            time.sleep(_REFRESH_SECONDS)
            # Arms that start later show up when they do.
            known = {watched.run.name for watched in runs}
            runs += [Watched(open_run(root, run)) for run in members(root, name) if run not in known]
            for watched in runs:
                watched.refresh()
            live.update(view(runs), refresh=True)


def view(runs: list[Watched]) -> Group:
    """One line per run, what is wrong, the curves of the one that is going on, and the clusters of its last step."""
    current = next((watched for watched in runs if not watched.finished), runs[-1])
    lines = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("run", "step", "stage", "reward", "successful strategies"):
        lines.add_column(column, justify="left" if column in ("run", "stage") else "right", no_wrap=True)
    for watched in runs:
        row = watched.rows.get(watched.step, {})
        lines.add_row(
            Text(watched.run.name, style="bold" if watched is current else ""),
            f"{watched.step}/{watched.run.config.steps}",
            watched.stage(),
            _number(row.get("reward_mean"), 2) if row else "",
            _number(row.get("distinct_successful"), 1) if row else "",
        )
    parts: list[Any] = [lines, *_warnings(runs)]
    if current.rows:
        parts += [Text(), _curves(current), Text(), *_clusters(current)]
    return Group(*parts)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def sparkline(values: list[float], width: int = _WIDTH) -> str:
    """Values as bars, from their least to their greatest; means of neighbours where there is no room for all."""
    if len(values) > width:
        bounds = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]
    low, high = min(values), max(values)
    scale = (len(_LEVELS) - 1) / (high - low) if high > low else 0.0
    return "".join(_LEVELS[round((value - low) * scale)] for value in values)


def _warnings(runs: list[Watched]) -> list[Text]:
    """What is wrong with each run by its steps so far; an empty line before, if there is anything."""
    found = [
        finding_line(finding, watched.run.name if len(runs) > 1 else "")
        for watched in runs
        for finding in training_findings(watched.run.config, list(watched.rows.values()))
        if finding.severity > Severity.NOTE
    ]
    return [Text(), *found] if found else []


def _curves(watched: Watched) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, style="dim")
    for name, column in _CURVES.items():
        values = [row[column] for row in watched.rows.values() if row[column] is not None]
        if not values:
            continue
        table.add_row(name, sparkline(values), f"{values[-1]:.2g}", f"{min(values):.2g} … {max(values):.2g}")
    return table


def _clusters(watched: Watched) -> list[Any]:
    """The clusters of the last step's first prompt."""
    run, step = watched.run, watched.step
    columns = ["problem_id", "sample", "reward", "advantage", "cluster", "degenerate"]
    scores = run.store.read_table(run.scores_key(step), columns).to_pylist()
    problem_id = scores[0]["problem_id"]
    texts = _texts(run, step, problem_id)
    groups: dict[tuple[bool, int | None], list[dict[str, Any]]] = defaultdict(list)
    for row in scores:
        if row["problem_id"] == problem_id:
            groups[row["degenerate"], row["cluster"]].append(row)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("cluster", no_wrap=True)
    for column in ("size", "reward", "advantage"):
        table.add_column(column, justify="right")
    table.add_column("a response", no_wrap=True, overflow="ellipsis")
    for (degenerate, cluster), rows in sorted(groups.items(), key=lambda item: -len(item[1])):
        strategy, response = texts.get(rows[0]["sample"], ("", ""))
        name = "degenerate" if degenerate else strategy if cluster is not None else "unlabelled"
        table.add_row(
            Text(safe_text(name, 28)),
            str(len(rows)),
            _mean_reward(rows),
            f"{sum(row['advantage'] for row in rows) / len(rows):+.3f}",
            Text(safe_text(response, 60)),
        )
    return [Text(f"step {step}, problem {safe_text(problem_id, 60)}", style="dim"), table]


def _mean_reward(rows: list[dict[str, Any]]) -> str:
    graded = [row["reward"] for row in rows if row["reward"] is not None]
    return f"{sum(graded) / len(graded):.2f}" if graded else "–"


def _texts(run: Run, step: int, problem_id: str) -> dict[int, tuple[str, str]]:
    """Strategy and response by sample."""
    texts: dict[int, tuple[str, str]] = {}
    for shard in range(run.config.sampling.shards):
        rollouts = run.store.read_table(
            run.key("rollouts", step, shard), ["problem_id", "sample", "response"]
        ).to_pylist()
        labels = run.store.read_table(
            run.labels_key(step, shard), ["problem_id", "sample", "macro_strategy", "micro_strategy", "cluster"]
        ).to_pylist()
        names = {
            row["sample"]: row["micro_strategy"] or row["macro_strategy"] or f"cluster {row['cluster']}"
            for row in labels
            if row["problem_id"] == problem_id
        }
        for row in rollouts:
            if row["problem_id"] == problem_id:
                texts[row["sample"]] = (names.get(row["sample"], ""), row["response"])
    return texts
