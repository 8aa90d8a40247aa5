"""Experiments: every arm with every seed, trained by the deployment poly-epo/train, then compared arm by arm."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.console import Console, Group
from rich.table import Table

from flows import follow
from flows.outcome import REFUSED, STOPPED
from flows.services import local_stack
from flows.views.summary import Row, summarize
from flows.views.tables import fill, markdown_table
from polyepo.experiment import Experiment
from polyepo.metrics import t_interval


def parallel_runs(num_threads: int | None) -> int:
    """Flow runs at a time that this machine's cores can feed, each with so many threads."""
    return max(1, (os.cpu_count() or 1) // (num_threads or os.cpu_count() or 1))


def run_experiment(experiment: Experiment, root: str, jobs: int, console: Console, say: Callable[[str], None]) -> None:
    """Train all seeds, some at a time, from wherever they stand; what is committed is not done again.

    Raises:
        StackError: a flow run failed (the others are still followed to their end), or the stack does not work.
    """
    waiting = list(experiment.seeds)
    active: dict[int, follow.Followed] = {}
    failed: list[str] = []
    resumable = True
    local_stack.start(say)
    with local_stack.api_client() as client, follow.Bars(console) as bars:
        while waiting or active:
            while waiting and len(active) < jobs:
                seed = waiting.pop(0)
                active[seed] = follow.Followed(_start(experiment, seed, root))
            for seed, run in list(active.items()):
                run.poll(client, say)
                bars.show(f"seed {seed}", run.percent, run.text)
                if run.state is not None:
                    del active[seed]
                    if run.state["type"] != "COMPLETED":
                        state = f"{run.state['type'].lower()}: {run.state.get('message') or ''}"
                        failed.append(f"seed {seed}, flow run {run.flow_run_id}: {state}")
                        resumable &= run.state.get("name") not in (REFUSED, STOPPED)
            if active:
                time.sleep(follow.POLL_SECONDS)
    if failed:
        error = local_stack.StackError("\n".join(failed))
        error.resumable = resumable
        raise error


def _start(experiment: Experiment, seed: int, root: str) -> str:
    run = experiment.run(seed)
    parameters = {"config": str(experiment.config), "run": run, "root": root, "settings": experiment.settings[seed]}
    return follow.find_unfinished(run, root) or follow.run_deployment(local_stack.DEPLOYMENT, parameters)


@dataclass(frozen=True)
class Comparison:
    """Held-out results over seeds."""

    seeds: list[int]
    policies: list[str]
    """The base model (or models, if the arms' differ), then the arms."""
    values: dict[str, np.ndarray]
    """By measure: (P, S), of each policy and seed; NaN where it is not known."""
    first_arm: int = 1
    """Place of the first arm among the policies."""

    @property
    def means(self) -> dict[str, np.ndarray]:
        """By measure: (P,), over seeds."""
        return {name: values.mean(1) for name, values in self.values.items()}

    def difference(self, measure: str, policy: int) -> tuple[float, float, float]:
        """Mean over seeds of a policy's difference from the first arm, and Student's 95 % interval (NaN for one seed).

        Seeds are paired: the arms of a seed have one base model, and are evaluated with the same random numbers.
        """
        paired_S = self.values[measure][policy] - self.values[measure][self.first_arm]
        paired_S = paired_S[~np.isnan(paired_S)]
        if not len(paired_S):
            return math.nan, math.nan, math.nan
        low, high = t_interval(paired_S) if len(paired_S) > 1 else (math.nan, math.nan)
        return float(paired_S.mean()), low, high


def compare_arms(experiment: Experiment, root: str) -> Comparison:
    """Held-out results of an experiment. Raises ConfigError if a run of it is not evaluated."""
    summaries = [summarize(root, experiment.run(seed)) for seed in experiment.seeds]
    by_seed = [{row.policy: _measures(row) for row in summary.rows} for summary in summaries]
    rows = sorted((row for summary in summaries for row in summary.rows), key=lambda row: row.step > 0)
    policies = list(dict.fromkeys(row.policy for row in rows))
    names = list(dict.fromkeys(name for found in by_seed for measures in found.values() for name in measures))
    values = {
        name: np.array([[found.get(policy, {}).get(name, math.nan) for found in by_seed] for policy in policies])
        for name in names
    }
    return Comparison(experiment.seeds, policies, values, len({row.policy for row in rows if row.step == 0}))


def _measures(row: Row) -> dict[str, float]:
    found = {f"pass@{k}": value for k, value in row.pass_at.items()}
    found |= {f"distinct@{k}": value for k, value in row.strategies_at.items()}
    return {name: value for name, value in found.items() if value is not None}


def render(comparison: Comparison) -> Group:
    """Two tables for a terminal: means over seeds, and paired differences from the first arm."""
    tables = []
    for title, cells in zip(_titles(comparison), _tables(comparison), strict=True):
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        tables.append(fill(table, cells, wrap=True))
    return Group(*tables)


def markdown(comparison: Comparison) -> str:
    """The same as markdown."""
    titled = zip(_titles(comparison), _tables(comparison), strict=True)
    return "\n\n".join(f"{title}\n\n{markdown_table(cells)}" for title, cells in titled)


def _titles(comparison: Comparison) -> tuple[str, str]:
    seeds = ", ".join(map(str, comparison.seeds))
    first = comparison.policies[comparison.first_arm]
    return (
        f"Held out, means over seeds {seeds}; distinct@k: distinct successful strategies among k samples",
        f"Difference from {first}, paired by seed, with 95 % intervals (Student's t)",
    )


def _tables(comparison: Comparison) -> tuple[list[list[str]], list[list[str]]]:
    header = ["policy", *comparison.values]
    means = [
        [policy, *(_number(name, values[p]) for name, values in comparison.means.items())]
        for p, policy in enumerate(comparison.policies)
    ]
    differences = [
        [policy, *(_interval(name, *comparison.difference(name, p)) for name in comparison.values)]
        for p, policy in enumerate(comparison.policies)
        if p > comparison.first_arm
    ]
    return [header, *means], [header, *differences]


def _number(measure: str, value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.{_digits(measure)}f}"


def _interval(measure: str, mean: float, low: float, high: float) -> str:
    digits = _digits(measure)
    if math.isnan(mean):
        return "–"
    return f"{mean:+.{digits}f}" + ("" if math.isnan(low) else f" ({low:+.{digits}f} to {high:+.{digits}f})")


def _digits(measure: str) -> int:
    return 3 if measure.startswith("pass") else 2
