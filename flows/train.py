"""Train: sample, judge, score, update; step after step, arm after arm.

    prefect deployment run poly-epo/train --param config=configs/quickstart.yaml --param run=my-run

A run that exists with the same configuration is resumed: whatever is committed is never done again.
"""

from __future__ import annotations

import os
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.outcome import ends_plainly
from flows.progress import LatestRows, Progress, link_report
from flows.services.work_pools import ARM_FLOW
from flows.views import findings
from flows.views.summary import markdown, summarize
from polyepo.findings import RECENT, Severity, objective_findings, training_findings
from polyepo.names import slug
from polyepo.policy.group import stop_groups
from polyepo.samplers.vllm import stop_servers
from tasks.checkpoint import checkpoint, warm_start
from tasks.evaluate import evaluate
from tasks.judge import judge
from tasks.runs.curves import LiveCurves
from tasks.runs.evaluations import evaluation_due
from tasks.runs.keeping import remove_old_checkpoints
from tasks.runs.models import warm_start_digest
from tasks.runs.policies import check_prompts
from tasks.runs.preflight import describe, prepare
from tasks.runs.run import Run, checkpoint_due, open_run
from tasks.runs.statistics import read_updates
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
    progress = TrainingProgress(run, total=sum(arm.config.steps + 1 - arm.first_step for arm in prepared.values()))
    for name, arm in prepared.items():
        for finding in objective_findings(arm.config):
            get_run_logger().warning("%s: %s", name, finding)
        progress.say(f"{name} · base model")
        if arm.config.policy.warm_start:
            warm_start(root, arm.config, warm_start_digest(arm.config))
        check_prompts(arm)
    for name in prepared:
        train_arm(root, name, progress)
    stop_servers()  # if it ends otherwise, they and the group end with this process
    stop_groups()
    progress.finish()
    link_report(root, run, list(prepared))
    if any(arm.config.evaluation for arm in prepared.values()):
        text = f"{markdown(summarize(root, run))}\n\n{findings.markdown(findings.warnings(root, run))}"
        create_markdown_artifact(text, key=slug(f"{run}-summary"), description="Summary")


@flow(name=ARM_FLOW, flow_run_name="{run}", persist_result=False, validate_parameters=False)
def train_arm(root: str, run: str, progress: TrainingProgress) -> None:
    """Train one run in a flow run of its own, below the one that was asked for: its graph is its steps."""
    train_run(open_run(root, run), progress)


def train_run(run: Run, progress: TrainingProgress) -> None:
    """Train one run to its last step, from wherever it stands."""
    root, name = run.store.root, run.name
    committed = set(run.store.steps(name, "updates"))
    # If checkpoints are due more often by now, none is made for steps long past: that would replay the run.
    newest_checkpoint = max(run.store.steps(name, "checkpoints"), default=0)
    if last := run.last_step():
        get_run_logger().info("run %s goes on after step %d", name, last)
    latest = LatestRows(f"{name}-steps", f"{name}: latest steps")
    curves = LiveCurves(run)
    for step in range(run.first_step if run.forked_from else 0, run.config.steps + 1):
        if step and step not in committed:
            train_step(run, step)
            curves.write(step)
        if checkpoint_due(run, step) and step > newest_checkpoint:
            remove_old_checkpoints(run)  # first, as none is being uploaded after it
            checkpoint(root, name, step)
        if evaluation_due(run, step):
            evaluate(root, name, step)
        progress.advance(run, step, latest)
    curves.close()
    run.store.wait()  # for the last checkpoint
    remove_old_checkpoints(run)


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
    """Progress in steps, with a table of the latest steps of the arm that is trained."""

    _COLUMNS = ("step", "reward_mean", "distinct_successful", "loss", "grad_norm", "entropy", "logprob_mismatch",
                "prompts_ungraded")  # fmt: skip

    def __init__(self, run: str, total: int) -> None:
        super().__init__(run, total)
        self._read: list[dict[str, Any]] = []
        """Update rows of the run that goes on, for its findings: of its first and its latest steps."""
        self._warned: set[str] = set()

    def advance(self, run: Run, step: int, latest: LatestRows) -> None:
        """Count a finished step, and show it if it is time."""
        if step == 0:
            self._read, self._warned = [], set()
            return
        self.done += 1
        last = step == run.config.steps
        if not self.is_time() and not last:
            return
        row = run.store.read_table(run.key("updates", step), list(self._COLUMNS)).to_pylist()[0]
        latest.add({name: None if value is None else round(value, 5) for name, value in row.items()}, show=last)
        self.say(
            f"{run.name} · step {step}/{run.config.steps} · reward {_number(row['reward_mean'], 2)} · "
            f"successful strategies {_number(row['distinct_successful'], 1)}"
            + (f" · {row['prompts_ungraded']} prompts not graded" if row["prompts_ungraded"] else "")
            + self._warn(run, step)
        )

    def _warn(self, run: Run, step: int) -> str:
        """What is wrong by the steps so far: in the log when it is found, and how much of it there is in the line."""
        since = self._read[-1]["step"] if self._read else 0
        self._read += read_updates(run, [s for s in range(since + 1, step + 1) if s <= RECENT or s > step - RECENT])
        found = [f for f in training_findings(run.config, self._read) if f.severity > Severity.NOTE]
        for finding in found:
            # Its numbers change from step to step, and its remedy does not.
            if finding.remedy not in self._warned:
                self._warned.add(finding.remedy)
                get_run_logger().warning("%s: %s", run.name, finding)
        return f" · {found[0].what}" if found else ""


def _number(value: float | None, digits: int) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"
