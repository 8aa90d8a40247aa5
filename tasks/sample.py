"""Sample: the policy's responses to one shard of a step's prompts."""

from __future__ import annotations

import time
from functools import partial

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from polyepo.schemas import ROLLOUTS
from tasks.runs.policies import again_if_killed, policy_at
from tasks.runs.rollouts import sample_rows
from tasks.runs.run import open_run


@task(name="sample", task_run_name="sample {name} {step}.{shard}", cache_policy=NO_CACHE, persist_result=False)
def sample(root: str, name: str, step: int, shard: int) -> str:
    """Commit N responses to each prompt of a shard, from the policy before this step's update."""
    run = open_run(root, name)
    key = run.key("rollouts", step, shard)
    if not run.store.exists(key):
        started = time.perf_counter()
        problems, numbers = run.shard_of_step(step, shard), range(run.config.sampling.num_responses)
        rows = again_if_killed(lambda: sample_rows(run, policy_at(run, step - 1), problems, step, numbers, "rollout"))
        table = pa.Table.from_pylist(rows, schema=ROLLOUTS)
        provenance = run.provenance(step - 1, time.perf_counter() - started)
        commit = partial(run.store.commit_table, key, table, table_name="rollouts", provenance=provenance)
        run.store.in_background(key, commit)  # while the next shard is sampled; its judge waits for it
    return key.path
