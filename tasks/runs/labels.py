"""A run's labels: committed by any judge, counted, and asked for what is missing."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import pyarrow as pa

from polyepo.clusters import is_labelled
from polyepo.errors import PolyepoError
from polyepo.judges import CallLog, Estimate, Group, Judge
from polyepo.schemas import LABELS
from storage import ArtifactKey
from tasks.runs.calls import kept_calls
from tasks.runs.run import Run

_COMMITTING = threading.Lock()


class MissingLabelsError(PolyepoError, RuntimeError):
    """The judge left too many responses without a label."""


def commit_labels(run: Run, judge: Judge, step: int, shard: int, max_missing_rate: float | None = None) -> ArtifactKey:
    """Commit one label per response of a shard, by any judge, unless they are there; returns their key.

    The limit on responses without a label is the judge's own, if none is given.

    Raises:
        MissingLabelsError: too many of the step's responses would have no label. Nothing is committed then, so that
            what failed is asked for again when the run is resumed; what was answered is kept with the calls.
    """
    key = run.labels_key(step, shard, judge)
    if not run.store.exists(key):
        started = time.perf_counter()
        rollouts = run.key("rollouts", step, shard)
        rows = run.store.read_table(rollouts, columns=["problem_id", "sample", "response"]).to_pylist()
        with kept_calls(run, judge, step, shard) as calls:
            labelled = label_rows(run, judge, rows, calls)
        table = pa.Table.from_pylist(
            [{"run": run.name, "step": step, "judge": judge.judge_id, **row} for row in labelled],
            schema=LABELS,
        )
        parents = [run.store.manifest(parent) for parent in (rollouts, *(calls.keys if calls else ()))]
        provenance = run.provenance(step - 1, time.perf_counter() - started)
        with _COMMITTING:  # shards are judged side by side, and the limit is for all of them
            if judge.can_fail:
                check_missing(run, judge, step, labelled, max_missing_rate)
            run.store.commit_table(key, table, table_name="labels", parents=parents, provenance=provenance)
    return key


def check_missing(
    run: Run, judge: Judge, step: int, labelled: list[dict[str, Any]], max_rate: float | None = None
) -> None:
    """Raise MissingLabelsError if new labels, with those of the step's other shards, lack too many."""
    rows = list(labelled)
    for shard in range(run.config.sampling.shards):
        key = run.labels_key(step, shard, judge)
        if run.store.exists(key):
            rows += run.store.read_table(key, ["cluster", "degenerate", "status"]).to_pylist()
    missing = Counter(row["status"] for row in rows if not is_labelled(row))
    num_responses = run.config.sampling.prompts_per_step * run.config.sampling.num_responses
    max_rate = judge.missing_labels.max_rate if max_rate is None else max_rate
    if missing.total() > max_rate * num_responses:
        counts = ", ".join(f"{count} {status}" for status, count in missing.most_common())
        if judge.makes_calls:
            why = f"judge.max_missing_rate {max_rate:g} allows. The errors are in judge_calls (polyepo sql)"
        else:  # it has neither that setting nor that table
            reasons = (row["rationale"] for row in labelled if not is_labelled(row) and row["rationale"])
            why = f"the {max_rate:.0%} that may have none: {next(reasons, 'no reason given')}"
        raise MissingLabelsError(
            f"step {step}: {missing.total()} of {num_responses} responses have no label ({counts}), more than {why}; "
            "the same command asks again for what failed."
        )


def estimate_labels(run: Run, judge: Judge, steps: Iterable[int]) -> Estimate:
    """What a judge's labels of some steps would take, beyond what is committed or answered already."""
    total = Estimate(0, 0, 0, 0.0)
    for step in steps:
        for shard in range(run.config.sampling.shards):
            if not run.store.exists(run.labels_key(step, shard, judge)):
                columns = ["problem_id", "sample", "response"]
                rows = run.store.read_table(run.key("rollouts", step, shard), columns).to_pylist()
                groups = [group for _, group in groups_of(run, rows)]
                with kept_calls(run, judge, step, shard) as calls:
                    found = judge.estimate(run.config.domain, groups, calls)
                total = Estimate(
                    total.calls + found.calls,
                    total.prompt_tokens + found.prompt_tokens,
                    total.completion_tokens + found.completion_tokens,
                    total.cost + found.cost,
                )
    return total


def label_rows(
    run: Run, judge: Judge, rows: list[dict[str, Any]], calls: CallLog | None = None
) -> list[dict[str, Any]]:
    """Labels of rollout rows (problem_id, sample, response), which must be grouped by problem; same order."""
    grouped = groups_of(run, rows)
    labels = judge.label(run.config.domain, [group for _, group in grouped], calls)
    return [
        {"problem_id": row["problem_id"], "sample": row["sample"], **label._asdict()}
        for (group_rows, _), group_labels in zip(grouped, labels, strict=True)
        for row, label in zip(group_rows, group_labels, strict=True)
    ]


def groups_of(run: Run, rows: list[dict[str, Any]]) -> list[tuple[list[dict[str, Any]], Group]]:
    """Rows that are in order of problems, problem by problem, each with its group."""
    grouped = [list(group) for _, group in groupby(rows, key=lambda row: row["problem_id"])]
    return [(g, Group(run.problems[g[0]["problem_id"]], [row["response"] for row in g])) for g in grouped]
