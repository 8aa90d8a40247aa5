"""A run in the store: made or resumed once, then opened by name from any task."""

from __future__ import annotations

import json
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa

from polyepo.config import ConfigError, RunConfig, differences
from polyepo.domains import Problem
from polyepo.domains.leakage import leaks
from polyepo.judges import Judge
from polyepo.schemas import PROBLEMS
from polyepo.seeds import derive_seed
from storage import ArtifactKey, Manifest, Provenance, Store, open_store


class RunExistsError(ConfigError):
    """A run of this name exists with another configuration."""


@dataclass(frozen=True)
class Run:
    """An existing run: its configuration and where its artifacts are."""

    store: Store
    name: str
    config: RunConfig

    @property
    def config_hash(self) -> str:
        """Digest of the configuration, recorded with every artifact."""
        return self.config.digest

    def key(self, stage: str, step: int, shard: int | None = None, **partition: str) -> ArtifactKey:
        """The key of one of this run's artifacts."""
        return ArtifactKey(self.name, stage, step, tuple(partition.items()), shard)

    def labels_key(self, step: int, shard: int, judge: Judge | None = None) -> ArtifactKey:
        """Labels by a judge; by the run's own if none is given."""
        return self.key("labels", step, shard, judge=(judge or self.config.judge).judge_id)

    def scores_key(self, step: int, scoring_id: str | None = None) -> ArtifactKey:
        """Scores by a scoring; by the run's own if none is given."""
        return self.key("scores", step, scoring=scoring_id or self.config.scoring_id)

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


@lru_cache(maxsize=4)
def open_run(root: str, name: str) -> Run:
    """An existing run. Raises ConfigError if there is none of this name under the root."""
    store = open_store(root)
    record = store.run_record(name)
    if record is None:
        raise ConfigError(f"run {name!r} does not exist under {root!r}")
    return Run(store, name, RunConfig.model_validate(record["config"]))


def create_or_resume(root: str, name: str, config: RunConfig) -> Run:
    """Make a run, or open the one that exists with the same configuration.

    Raises:
        RunExistsError: it exists with another configuration; the message shows the difference.
        ConfigError: the domain's problems cannot be used.
        StoreError: the root cannot be written.
    """
    store = open_store(root)
    store.check()
    wanted = config.model_dump(mode="json")
    existing = store.run_record(name)
    if existing is None:
        read_splits(config)
        existing = store.create_run(name, run_record(name, config))
    if changed := differences(existing["config"], wanted):
        raise RunExistsError(
            "\n".join(
                [
                    f"run {name!r} exists under {root!r} with another configuration:",
                    *(f"  {line}" for line in changed),
                    "Give this one another run name, or restore the old values to resume it.",
                ]
            )
        )
    run = open_run(root, name)
    if not store.exists(run.key("problems", 0)):
        splits = read_splits(run.config)
        problems = ((split, problem) for split in splits for problem in splits[split])
        commit_problems(store, name, problems, run.provenance(None))
    return run


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


@lru_cache(maxsize=1)
def code_version() -> str:
    """The package's version, with the git commit if it runs from a checkout."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"],  # noqa: S607 - a fixed command
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return version("poly-epo") + (f"+{commit.stdout.strip()}" if commit.returncode == 0 else "")


def run_record(name: str, config: RunConfig) -> dict[str, object]:
    """What is written once, when a run is made."""
    return {
        "run": name,
        "config": config.model_dump(mode="json"),
        "config_hash": config.digest,
        # What the run's own labels and scores are called, for readers that know no configurations.
        "judge": config.judge.judge_id,
        "scoring": config.scoring_id,
        **_environment(),
    }


def _environment() -> dict[str, object]:
    packages = ("torch", "transformers", "numpy", "pyarrow", "prefect")
    return {
        "code_version": code_version(),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in packages},
    }


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
