"""Checkpoint: the policy after a step; and the base model that a run starts from."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from polyepo.config import RunConfig
from storage import Manifest, open_store
from tasks.runs.models import commit_warm_start
from tasks.runs.policies import again_if_killed, policy_at
from tasks.runs.run import Run, open_run


@task(name="checkpoint", task_run_name="checkpoint {name} {step}", cache_policy=NO_CACHE, persist_result=False)
def checkpoint(root: str, name: str, step: int) -> str:
    """Commit the policy after a step: weights, optimizer state and tokenizer."""
    run = open_run(root, name)
    key = run.key("checkpoints", step)
    if not run.store.exists(key):
        run.store.wait()  # for the checkpoint before: at most one is on its way
        scratch = tempfile.TemporaryDirectory()
        again_if_killed(lambda: policy_at(run, step).save(Path(scratch.name)))
        run.store.in_background(key, partial(_commit_checkpoint, run, step, scratch))
    return key.path


def _commit_checkpoint(run: Run, step: int, scratch: tempfile.TemporaryDirectory[str]) -> Manifest:
    with scratch:
        return run.store.commit_files(run.key("checkpoints", step), Path(scratch.name), provenance=run.provenance(step))


@task(name="warm-start", task_run_name="warm start {digest}", cache_policy=NO_CACHE, persist_result=False)
def warm_start(root: str, config: RunConfig, digest: str) -> str:
    """Train and commit the base model, once for every run and arm under the root that asks for the same one."""
    return commit_warm_start(open_store(root), config, digest).path
