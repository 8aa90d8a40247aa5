"""Runs trained in this process, without Prefect."""

import shutil
from contextlib import contextmanager
from pathlib import Path

from polyepo.config import parse_config
from polyepo.policy.weights import weights_digest
from polyepo.schemas import TIMING_COLUMNS
from tasks.checkpoint import checkpoint, warm_start
from tasks.judge import judge
from tasks.runs import policies
from tasks.runs.models import warm_start_digest
from tasks.runs.policies import check_prompts
from tasks.runs.run import checkpoint_due, create_or_resume
from tasks.sample import sample
from tasks.score import score
from tasks.update import update
from tests.support.config import small_config

_models: list[Path] = []


def start(root, config=None, name="run", arm=None):
    """A run that is ready to train; the warm start, the same for all tests here, is trained once and copied."""
    config = config or parse_config(small_config()).runs(name)[name]
    if _models and not (Path(root) / "models").exists():
        shutil.copytree(_models[0], Path(root) / "models")
    warm_start.fn(root, config, warm_start_digest(config))
    if config.policy.warm_start:
        _models.append(Path(root) / "models")
    run = create_or_resume(root, name, config, arm)
    check_prompts(run)
    return run


def train(run, until=None):
    """Train a run's own steps, from the first on."""
    for step in range(run.first_step, (until or run.config.steps) + 1):
        for shard in range(run.config.sampling.shards):
            sample.fn(run.store.root, run.name, step, shard)
            judge.fn(run.store.root, run.name, step, shard)
        score.fn(run.store.root, run.name, step)
        update.fn(run.store.root, run.name, step)
        if checkpoint_due(run, step):
            checkpoint.fn(run.store.root, run.name, step)


@contextmanager
def copied(run, folder):
    """A copy of all that is under a run's root, for a process that knows nothing of it."""
    shutil.copytree(run.store.root, folder)
    forget()
    yield str(folder)
    forget()


def forget():
    """What a new process knows: nothing."""
    policies._live.clear()


def tables(run, until):
    """Every committed table's content, without the columns that say how long something took."""
    found = {}
    shards = range(run.config.sampling.shards)
    for step in range(1, until + 1):
        keys = [run.key("rollouts", step, s) for s in shards] + [run.labels_key(step, s) for s in shards]
        for key in [*keys, run.scores_key(step), run.key("updates", step)]:
            table = run.store.read_table(key, verify=True)
            found[key.path] = table.drop_columns([c for c in table.column_names if c in TIMING_COLUMNS])
    return found


def final_weights(run):
    return weights_digest(run.store.local_files(run.key("checkpoints", run.config.steps)))
