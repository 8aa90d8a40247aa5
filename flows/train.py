"""Train: sample, judge, score, update; step after step, arm after arm.

    prefect deployment run poly-epo/train --param config=configs/quickstart.yaml --param run=my-run

A run that exists with the same configuration is resumed: whatever is committed is never done again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from flows.outcome import ends_plainly
from flows.progress import Progress, link_report, slug
from flows.views.summary import markdown, summarize
from polyepo.samplers.vllm import stop_servers
from tasks.checkpoint import checkpoint, warm_start
from tasks.evaluate import evaluate
from tasks.judge import judge
from tasks.runs.evaluations import evaluation_due
from tasks.runs.models import warm_start_digest
from tasks.runs.policies import check_prompts
from tasks.runs.preflight import describe, prepare
from tasks.runs.run import Run, checkpoint_due
from tasks.sample import sample
from tasks.score import score
from tasks.update import update

DEFAULT_ROOT = "artifacts"


@flow(name="poly-epo", flow_run_name="train {run}", persist_result=False)
@ends_plainly
def train(
    config: str | None = None, run: str | None = None, root: str | None = None, settings: dict[str, Any] | None = None
) -> None:
    """Train the run that a configuration describes, or one run per arm.

    Args:
        config: path of a YAML file; not needed for runs that exist, which know their own.
        run: name of the run; the file's name if not given. Arms are called `{run}-{arm}`.
        root: where artifacts go: a path or s3://bucket/prefix; $POLYEPO_ROOT or "artifacts" if not given.
        settings: values that replace the file's, by dotted name, such as {"seed": 1, "domain.path": "24.csv"}.
    """
    root = root or os.environ.get("POLYEPO_ROOT", DEFAULT_ROOT)
    training = describe(root, config, run, settings)
    run = training.name
    # Everything that can be refused is refused before any work starts.
    prepared = {arm.name: arm for arm in prepare(root, training)}
    progress = TrainingProgress(run, total=sum(arm.config.steps for arm in prepared.values()))
    for name, arm in prepared.items():
        progress.say(f"{name} · base model")
        if arm.config.policy.warm_start:
            warm_start(root, arm.config, warm_start_digest(arm.config))
        check_prompts(arm)
    for arm in prepared.values():
        train_run(arm, progress)
    stop_servers()  # if it ends otherwise, they end with this process
    progress.finish()
    link_report(root, run, list(prepared))
    if any(arm.config.evaluation for arm in prepared.values()):
        create_markdown_artifact(markdown(summarize(root, run)), key=slug(f"{run}-summary"), description="Summary")


def train_run(run: Run, progress: TrainingProgress) -> None:
    """Train one run to its last step, from wherever it stands."""
    root, name = run.store.root, run.name
    committed = set(run.store.steps(name, "updates"))
    if last := run.last_step():
        get_run_logger().info("run %s goes on after step %d", name, last)
    create_link_artifact(_ui_link(run), key=slug(f"{name}-artifacts"), link_text=f"{name}: artifacts")
    for step in range(run.first_step if run.forked_from else 0, run.config.steps + 1):
        if step and step not in committed:
            train_step(run, step)
        if checkpoint_due(run, step):
            checkpoint(root, name, step)
        if evaluation_due(run, step):
            evaluate(root, name, step)
        progress.advance(run, step)
    run.store.wait()  # for the last checkpoint


def train_step(run: Run, step: int) -> None:
    """One training step; each line commits one artifact."""
    root, name = run.store.root, run.name
    last = run.config.sampling.shards - 1
    judged = []
    for shard in range(last):
        sample(root, name, step, shard)
        judged.append(judge.submit(root, name, step, shard))  # while the next shard is sampled
    sample(root, name, step, last)
    judge(root, name, step, last)
    for future in judged:
        future.result()
    score(root, name, step)
    update(root, name, step)


class TrainingProgress(Progress):
    """Progress in steps, with a table of the latest steps per run."""

    _ROWS = 20
    _COLUMNS = ("step", "reward_mean", "distinct_successful", "loss", "grad_norm", "entropy", "logprob_mismatch")

    def __init__(self, run: str, total: int) -> None:
        super().__init__(run, total)
        self._rows: list[dict[str, Any]] = []

    def advance(self, run: Run, step: int) -> None:
        """Count a finished step, and show it if it is time."""
        if step == 0:
            self._rows = []
            return
        self.done += 1
        if not self.is_time() and step != run.config.steps:
            return
        row = run.store.read_table(run.key("updates", step), list(self._COLUMNS)).to_pylist()[0]
        shown = {name: round(value, 5) for name, value in row.items()}
        self._rows = [*self._rows, shown][-self._ROWS :]
        self.say(
            f"{run.name} · step {step}/{run.config.steps} · reward {row['reward_mean']:.2f} · "
            f"successful strategies {row['distinct_successful']:.1f}"
        )
        create_table_artifact(self._rows, key=slug(f"{run.name}-steps"), description=f"{run.name}: latest steps")


def _ui_link(run: Run) -> str:
    url = run.store.files.url(f"runs/{run.name}")
    return url if "://" in url else Path(url).as_uri()
