"""Update: one training step's new policy, and the row that records it."""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from polyepo.policy.trainer import Trainer
from polyepo.policy.update import UpdateMetrics
from polyepo.schemas import UPDATES
from tasks.runs.policies import again_if_killed, apply_update, put_policy, take_policy
from tasks.runs.run import Run, checkpoint_due, open_run
from tasks.runs.statistics import batch_statistics, stage_keys, stage_seconds


@task(name="update", task_run_name="update {name} {step}", cache_policy=NO_CACHE, persist_result=False)
def update(root: str, name: str, step: int) -> str:
    """Update the policy with a step's scored responses and commit what was measured."""
    run = open_run(root, name)
    key = run.key("updates", step)
    if not run.store.exists(key):
        started = time.perf_counter()
        trainer, measured = again_if_killed(partial(_apply, run, step))
        seconds = time.perf_counter() - started
        row = {
            "run": name,
            "step": step,
            "policy_version": trainer.version,
            **asdict(measured),
            **batch_statistics(run, step),
            **stage_seconds(run, step),
            "seconds_update": seconds,
            "trainer_processes": trainer.processes,
            "checkpoint": run.key("checkpoints", step).path if checkpoint_due(run, step) else None,
        }
        parents = [run.store.manifest(parent) for keys in stage_keys(run, step).values() for parent in keys]
        provenance = run.provenance(trainer.version, seconds)
        table = pa.Table.from_pylist([row], schema=UPDATES)
        run.store.commit_table(key, table, table_name="updates", parents=parents, provenance=provenance)
        # Another process may have committed this step meanwhile. Then its update counts and these weights are dropped:
        # whoever needs the policy next rebuilds it from what was committed.
        if run.store.read_table(key, table.column_names).equals(table):
            put_policy(run, trainer)
        else:
            trainer.close()
    return key.path


def _apply(run: Run, step: int) -> tuple[Trainer, UpdateMetrics]:
    trainer = take_policy(run, step - 1)
    return trainer, apply_update(run, trainer, step)
