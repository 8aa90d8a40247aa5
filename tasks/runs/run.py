"""A run in the store: made or resumed once, then opened by name from any task."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pyarrow as pa

from polyepo.config import ConfigError, RunConfig
from polyepo.domains import Problem
from polyepo.domains.leakage import leaks
from polyepo.judges import Judge
from polyepo.schemas import PROBLEMS
from polyepo.seeds import derive_seed
from storage import ArtifactKey, Manifest, Provenance, Store, open_store
from tasks.runs.code import code_record, keep_sources
from tasks.runs.groups import Arm, no_such_run
from tasks.runs.record import (
    Parent,
    RunExistsError,
    RunRecord,
    as_record,
    check_resume,
    new_record,
    read_record,
    trained_record,
)
from tasks.runs.version import code_version

__all__ = ["Run", "RunExistsError", "code_version", "create_or_resume", "open_run"]


@dataclass(frozen=True)
class Run:
    """An existing run: its configuration and where its artifacts are.

    Steps up to the one that a run was forked at are its parent's: they are found there, and nothing is copied.
    """

    store: Store
    name: str
    config: RunConfig
    config_hash: str
    """Digest of the configuration that the run was made with, recorded with every artifact."""
    forked_from: Parent | None = None

    @cached_property
    def parent(self) -> Run | None:
        """The run that this one was forked from."""
        return open_run(self.store.root, self.forked_from.run) if self.forked_from else None

    def owner(self, step: int) -> Run:
        """The run that made a step: this one, or the one that it was forked from."""
        if self.forked_from is None or step > self.forked_from.step:
            return self
        assert self.parent is not None
        return self.parent.owner(step)

    @property
    def first_step(self) -> int:
        """The first training step of the run's own."""
        return self.forked_from.step + 1 if self.forked_from else 1

    def last_step(self) -> int:
        """The last committed step, 0 if there is none."""
        return max(self.store.steps(self.name, "updates"), default=self.first_step - 1)

    def key(self, stage: str, step: int, shard: int | None = None, **partition: str) -> ArtifactKey:
        """The key of an artifact: the run's own, or its parent's for a step before the fork. Problems are its own."""
        owner = self if stage == "problems" else self.owner(step)
        return ArtifactKey(owner.name, stage, step, tuple(partition.items()), shard)

    def labels_key(self, step: int, shard: int, judge: Judge | None = None) -> ArtifactKey:
        """Labels by a judge; by the own one of the run that made the step if none is given."""
        return self.key("labels", step, shard, judge=(judge or self.owner(step).config.judge).judge_id)

    def scores_key(self, step: int, scoring_id: str | None = None) -> ArtifactKey:
        """Scores by a scoring; by the own one of the run that made the step if none is given."""
        return self.key("scores", step, scoring=scoring_id or self.owner(step).config.scoring_id)

    def provenance(self, policy_version: int | None, seconds: float | None = None) -> Provenance:
        """What is recorded with an artifact of this run."""
        return Provenance(self.config_hash, code_version(), policy_version, seconds)

    @cached_property
    def problems(self) -> dict[str, Problem]:
        """Training problems by id, as committed at the run's start: a file that changes later changes nothing."""
        return {problem.problem_id: problem for problem in self.split("train")}

    @cached_property
    def _splits(self) -> list[tuple[str, Problem]]:
        return read_problems(self.store, self.key("problems", 0))

    def split(self, name: str) -> list[Problem]:
        """The problems of a split, in their fixed order."""
        return [problem for split, problem in self._splits if split == name]

    def problems_of_step(self, step: int) -> list[Problem]:
        """The problems of a training step (from 1): shuffled anew each epoch, each at most once per step."""
        problems = self.split("train")
        size = self.config.sampling.prompts_per_step
        epoch, position = divmod(step - 1, len(problems) // size)
        order = np.random.default_rng(derive_seed(self.config.seed, "epoch", epoch)).permutation(len(problems))
        return [problems[i] for i in order[position * size : (position + 1) * size]]

    def shard_of_step(self, step: int, shard: int) -> list[Problem]:
        """One shard's share of a step's problems."""
        problems = self.problems_of_step(step)
        bounds = np.linspace(0, len(problems), self.config.sampling.shards + 1).round().astype(int)
        return problems[bounds[shard] : bounds[shard + 1]]


@lru_cache(maxsize=8)
def open_run(root: str, name: str) -> Run:
    """An existing run, with its latest settings. Raises ConfigError if there is none of this name under the root."""
    store = open_store(root)
    record = read_record(store, name)
    if record is None:
        raise no_such_run(store, name)
    config = record.run_config(name)
    return Run(store, name, config, record.config_hash or config.digest, record.parent)


def create_or_resume(
    root: str, name: str, config: RunConfig, arm: Arm | None = None, allow_changed_code: bool = False
) -> Run:
    """Make a run, or open the one that exists; settings that change no result may differ, which is noted with it.

    Raises:
        RunExistsError: it exists with a configuration of other results; the message shows the difference.
        ConfigError: the domain's problems, the model or the device cannot be used.
        StoreError: the root cannot be written.
    """
    store = open_store(root)
    store.check()
    record = read_record(store, name)
    if record is None:
        read_splits(config)
        made = new_record(name, config, arm).model_copy(update=trained_record(config))
        record = as_record(name, store.create_run(name, made.written()))
    check_arm(name, record, arm)
    steps_done = open_run(root, name).last_step()
    config = config.gone_on_from(record.run_config(name))
    changes = check_resume(store, name, record, config, steps_done, allow_changed_code)
    replaced = {"config": config.model_dump(mode="json"), **code_record(config)} if changes else {}
    keep_sources(store, name, config)
    if record.model is None and config.policy.model:  # by a version that pinned none
        try:
            replaced |= trained_record(config)
            changes.append(f"model: {json.dumps(replaced['model'])}")
        except ConfigError:
            if not store.steps(name, "checkpoints"):  # with one, the model is not needed any more
                raise
    if replaced:
        store.add_settings(name, changes, replaced)
        open_run.cache_clear()
    run = open_run(root, name)
    if not store.exists(run.key("problems", 0)):
        splits = read_splits(run.config)
        problems = ((split, problem) for split in splits for problem in splits[split])
        commit_problems(store, name, problems, run.provenance(None))
    return run


def check_arm(name: str, record: RunRecord, arm: Arm | None) -> None:
    """Raise RunExistsError if a run exists as another configuration's arm, or as none, although it is to be one."""
    if arm is None or not record.knows_groups or record.group == arm.group:  # older records say nothing
        return
    whose = f"as an arm of {record.group!r}" if record.group else "as a run of its own"
    raise RunExistsError(
        f"run {name!r} exists {whose}, so that {arm.group!r} can have no arm {arm.arm!r}; choose another --run"
    )


def checkpoint_due(run: Run, step: int) -> bool:
    """Every `checkpoint_every` steps, and always after the last."""
    return step > 0 and (step % run.config.checkpoint_every == 0 or step == run.config.steps)


def read_splits(config: RunConfig) -> dict[str, list[Problem]]:
    """A configuration's problems by split.

    Raises:
        ConfigError: they cannot be read, ids are empty or repeated, the splits overlap, or training is smaller than a
            step.
    """
    try:
        splits = {"train": config.domain.problems("train"), "heldout": config.domain.problems("heldout")}
    except ValueError as error:
        raise ConfigError(str(error)) from error
    ids = Counter(problem.problem_id for problems in splits.values() for problem in problems)
    if "" in ids:
        raise ConfigError("domain: a problem has an empty problem_id; every problem needs an id of its own")
    if repeated := [problem_id for problem_id, count in ids.items() if count > 1]:
        raise ConfigError(f"domain: problem_id {repeated[0]!r} occurs {ids[repeated[0]]} times; ids must be unique")
    if config.steps and (leaked := leaks(splits["train"], splits["heldout"])):
        trained, heldout = leaked[0]
        raise ConfigError(
            f"domain: {len(leaked)} of {len(splits['heldout'])} held-out problems are training problems by their text, "
            f"such as {heldout!r}, which is {trained!r}; remove them, or leave them out of training by "
            "domain.unusable: drop"
        )
    if len(splits["train"]) < config.sampling.prompts_per_step:
        raise ConfigError(
            f"sampling.prompts_per_step {config.sampling.prompts_per_step} must not exceed the "
            f"{len(splits['train'])} training problems of domain {config.domain.name!r}"
        )
    if config.evaluation and not splits["heldout"]:
        raise ConfigError(f"evaluation needs held-out problems, and domain {config.domain.name!r} has none")
    return splits


def commit_problems(
    store: Store, run: str, problems: Iterable[tuple[str, Problem]], provenance: Provenance, **partition: str
) -> Manifest:
    """Commit a run's problems, (split, problem) pairs; those of a benchmark under its partition."""
    rows = [
        {
            "run": run,
            "problem_id": problem.problem_id,
            "split": split,
            "domain": problem.domain,
            "prompt": problem.prompt if isinstance(problem.prompt, str) else json.dumps(problem.prompt),
            "prompt_is_chat": not isinstance(problem.prompt, str),
            "answer": problem.answer,
            "metadata": json.dumps(problem.metadata, sort_keys=True),
        }
        for split, problem in problems
    ]
    table = pa.Table.from_pylist(rows, schema=PROBLEMS)
    key = ArtifactKey(run, "problems", 0, tuple(partition.items()))
    return store.commit_table(key, table, table_name="problems", provenance=provenance)


def read_problems(store: Store, key: ArtifactKey) -> list[tuple[str, Problem]]:
    """Committed problems, (split, problem) pairs in their order."""
    return [(row["split"], _problem(row)) for row in store.read_table(key).to_pylist()]


def _problem(row: dict[str, str]) -> Problem:
    return Problem(
        problem_id=row["problem_id"],
        domain=row["domain"],
        prompt=json.loads(row["prompt"]) if row["prompt_is_chat"] else row["prompt"],
        answer=row["answer"],
        metadata=json.loads(row["metadata"]),
    )
