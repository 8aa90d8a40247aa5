"""The policy of any version of a run, from checkpoints and committed updates; the newest stays in memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from transformers.utils.logging import disable_progress_bar

from polyepo.errors import PolyepoError
from polyepo.policy.group import GroupError
from polyepo.policy.trainer import Trainer, load_trainer
from polyepo.policy.update import Batch, UpdateMetrics
from storage import ArtifactKey
from tasks.runs.models import initial_model, load_run_language
from tasks.runs.run import Run
from tasks.runs.version import code_version

disable_progress_bar()  # transformers draws one for every model it loads, log file or not


T = TypeVar("T")
_log = logging.getLogger(__name__)

TOLERANCE = {"float32": 1e-2, "bfloat16": 1e-1}
"""By the type computed in: how far loss and gradient norm of an update may be from those recorded, relative to the
larger of the two, where it is not the same bits: rounding differs, and grows over the steps since the checkpoint."""

_FETCHED_STEPS = 16  # whose tables are asked for side by side before their updates are applied again

# One policy at a time: (root, run) and the live object. Version and weights always agree, or it is not here.
_live: dict[tuple[str, str], Trainer] = {}


class ReplayError(PolyepoError, RuntimeError):
    """Re-applying a committed update gave another result than the one recorded."""

    resumable = False


def policy_at(run: Run, version: int) -> Trainer:
    """The run's policy after `version` training steps: the live one if it fits, else rebuilt.

    Raises:
        ReplayError: as `rebuild`.
    """
    live = _live.get((run.store.root, run.name))
    if live is not None and live.version == version and live.alive:
        return live
    put_policy(run, None)
    trainer = rebuild(run, version, version)
    put_policy(run, trainer)
    return trainer


def rebuild(
    run: Run, version: int, newest_checkpoint: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> Trainer:
    """The policy after `version` steps: a checkpoint, then the committed updates after it.

    The updates are re-applied from their saved rollouts and scores; nothing is sampled or judged.

    Args:
        run: the run.
        version: training steps behind the policy.
        newest_checkpoint: no checkpoint of a later step is used; 0 starts from the initial model.
        progress: told how many of the run's updates are applied, and of how many.

    Raises:
        ReplayError: a re-applied update does not reproduce its recorded loss and gradient norm, as `check_replay`.
        GroupError: a process that the policy is spread over has died.
    """
    resources = run.config.resources.trainer
    checkpoints = [step for step in run.store.steps(run.name, "checkpoints") if step <= newest_checkpoint]
    if checkpoints:
        folder = run.store.local_files(run.key("checkpoints", checkpoints[-1]), verify=True)
        trainer = load_trainer(folder, run.config.policy, run.config.update, resources, resume=True)
    elif run.parent is not None:
        trainer = _inherited(run, run.parent, min(version, run.first_step - 1), newest_checkpoint, progress)
    else:
        model = initial_model(run.store, run.config)
        trainer = load_trainer(model, run.config.policy, run.config.update, resources)
    steps = range(trainer.version + 1, version + 1)
    off: dict[int, float] = {}
    for first in range(0, len(steps), _FETCHED_STEPS):
        some = steps[first : first + _FETCHED_STEPS]
        run.store.fetch(key for step in some for key in _update_keys(run, step))
        for done, step in enumerate(some, first):
            progress(done, len(steps))
            off[step] = check_replay(run, step, trainer, apply_update(run, trainer, step))
    if differing := [step for step, difference in off.items() if difference]:
        _log.warning(
            "%s: %d of %d updates that were applied again are not bit for bit what the run recorded, from step %d on, "
            "but within %.1e of it", run.name, len(differing), len(off), differing[0], max(off.values()),
        )  # fmt: skip
    return trainer


def _update_keys(run: Run, step: int) -> list[ArtifactKey]:
    """What a step's update is applied again from, and compared with."""
    rollouts = [run.key("rollouts", step, shard) for shard in range(run.config.sampling.shards)]
    return [*rollouts, run.scores_key(step), run.key("updates", step)]


def take_policy(run: Run, version: int) -> Trainer:
    """The policy of a version, taken out of memory: whoever changes it puts it back only once that has gone well."""
    trainer = policy_at(run, version)
    _live.clear()
    return trainer


def put_policy(run: Run, trainer: Trainer | None) -> None:
    """Keep a policy in memory for the tasks that come next; the one that was there is closed."""
    for live in _live.values():
        if live is not trainer:
            live.close()
    _live.clear()
    if trainer is not None:
        _live[(run.store.root, run.name)] = trainer


def again_if_killed(work: Callable[[], T]) -> T:
    """Do work with a policy; if a process that the policy is spread over is killed meanwhile, do it once more.

    `policy_at` then rebuilds the policy, in a new group, from what was committed.
    """
    try:
        return work()
    except GroupError as error:
        if not error.killed:
            raise
        _log.warning("%s\nThe policy is rebuilt from its checkpoint, and the work done again.", error)
        return work()


def apply_update(run: Run, trainer: Trainer, step: int, scoring_id: str | None = None) -> UpdateMetrics:
    """Apply one step's update to the policy, from the step's committed rollouts and scores."""
    batch = training_batch(run, step, scoring_id)
    return trainer.update(batch, run.config.update, run.config.sampling, run.config.seed)


def training_batch(run: Run, step: int, scoring_id: str | None = None) -> Batch:
    """A step's responses, rollouts joined with the scores of a scoring (the run's own if none is given)."""
    scores = run.store.read_table(run.scores_key(step, scoring_id), columns=["problem_id", "sample", "advantage"])
    problem_ids: list[Any] = scores["problem_id"].to_pylist()
    samples = scores["sample"].to_pylist()
    row_of = {key: row for row, key in enumerate(zip(problem_ids, samples, strict=True))}
    prompts: list[list[int]] = [[]] * len(row_of)
    responses, logprobs = list(prompts), [np.empty(0, np.float32)] * len(row_of)
    truncated = np.zeros(len(row_of), dtype=bool)
    columns = ["problem_id", "sample", "prompt_token_ids", "response_token_ids", "sampler_logprobs", "finish_reason"]
    for shard in range(run.config.sampling.shards):
        rollouts = run.store.read_table(run.key("rollouts", step, shard), columns=columns)
        values = (rollouts[name].to_pylist() for name in columns)
        for problem_id, sample, prompt, response, logprob, reason in zip(*values, strict=True):
            row = row_of[(problem_id, sample)]
            prompts[row], responses[row], logprobs[row] = prompt, response, np.array(logprob, np.float32)
            truncated[row] = reason == "length"
    return Batch(problem_ids, prompts, responses, logprobs, scores["advantage"].to_numpy(), truncated)


def check_prompts(run: Run) -> None:
    """Raise ConfigError if the run's prompts, or its limits on them and on responses, do not fit the policy."""
    language = load_run_language(run)
    language.check_context(run.config.sampling)
    problems = [problem for split in ("train", "heldout") for problem in run.split(split)]
    language.check_prompts(problems, run.config.sampling, "domain")


def _inherited(
    run: Run, parent: Run, version: int, newest_checkpoint: int, progress: Callable[[int, int], None]
) -> Trainer:
    """The policy that a fork has from its parent, made as the parent made it, to be updated as the fork says."""
    own = {"policy": run.config.policy, "resources": run.config.resources}
    here = replace(parent, config=parent.config.model_copy(update=own))
    return rebuild(here, version, min(version, newest_checkpoint), progress)


def check_replay(run: Run, step: int, trainer: Trainer, metrics: UpdateMetrics) -> float:
    """Compare an update that was applied again with what the run recorded of it.

    The same code, number of processes and kind of device give the same bits, on a GPU by deterministic kernels alone.
    Others add in another order, and agree within `TOLERANCE`.

    Returns:
        The largest difference of loss and gradient norm, relative to the larger of the two; usually exactly 0.

    Raises:
        ReplayError: they differ by more than they may.
    """
    key = run.key("updates", step)
    row = run.store.read_table(key, columns=["loss", "grad_norm", "trainer_processes"])
    (recorded,) = row.to_pylist()
    processes = recorded.pop("trainer_processes")
    manifest = run.store.manifest(key)
    assert manifest is not None
    codes = manifest.code_version, code_version()
    replayed = {"loss": metrics.loss, "grad_norm": metrics.grad_norm}
    reasons = []
    if (processes or 1) != trainer.processes:
        reasons.append(f"by {processes or 1} resources.trainer.processes, and now by {trainer.processes}")
    if codes[0] != codes[1] or processes is None:  # code that recorded no processes computed by padded rows
        reasons.append("by other code")
    if trainer.device != "cpu" and not run.config.policy.deterministic:
        reasons.append("by kernels that are not deterministic (policy.deterministic)")
    tolerance = (TOLERANCE.get(trainer.dtype) or TOLERANCE["float32"]) if reasons else 0.0
    off = max(abs(replayed[name] - recorded[name]) for name in replayed)
    if off:
        off /= max(abs(recorded["loss"]), abs(recorded["grad_norm"]), math.ulp(0.0))
    if not off <= tolerance:
        allowed = f"; {tolerance:g} of it is allowed, as it was made {', '.join(reasons)}" if reasons else ""
        raise ReplayError(
            f"run {run.name!r}, step {step}: replaying the update gave {replayed}, but the run recorded {recorded}, "
            f"which is off by {off:.1e} of it{allowed}. It was computed by code {codes[0]}, and now by {codes[1]}. The "
            "model, the versions of torch or transformers, or policy.num_threads are not those of the run."
        )
    return off
