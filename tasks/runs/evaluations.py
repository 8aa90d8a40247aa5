"""A run's evaluations in the store: which parts are there, what they say, and what is missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polyepo.config import ConfigError
from polyepo.domains import Domain, Problem
from polyepo.judges import AnswerJudge, AnyJudge, ProgramJudge
from storage import ArtifactKey
from tasks.runs.run import Run
from tasks.runs.scores import IMPORTED

HELDOUT = "heldout"


# Samples per problem that are drawn, labelled and committed together, at most: what a killed evaluation loses.
SAMPLES_PER_SHARD = 16


@dataclass(frozen=True)
class Benchmark:
    """Problems to evaluate on, and who verifies them."""

    name: str
    domain: Domain
    problems: tuple[Problem, ...]


def evaluation_due(run: Run, step: int) -> bool:
    """Before the first step, every `evaluation.every` steps, and after the last."""
    every = run.config.evaluation and run.config.evaluation.every
    return run.config.evaluation is not None and (step in (0, run.config.steps) or bool(every and step % every == 0))


def parts(run: Run, benchmark: str, step: int) -> list[ArtifactKey]:
    """The committed artifacts of an evaluation, in the order of their samples."""
    whole = run.key("evals", step, benchmark=benchmark)
    found = [whole] if run.store.exists(whole) else []  # by versions that did not write shards
    shard = 0
    while run.store.exists(key := run.key("evals", step, shard, benchmark=benchmark)):
        found.append(key)
        shard += 1
    return found


def read_evaluation(run: Run, benchmark: str, step: int, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of an evaluation, by problem in the benchmark's order and by sample; none if nothing is committed."""
    wanted = list(dict.fromkeys(["problem_id", "sample", *columns]))
    by_problem: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for key in parts(run, benchmark, step):
        for row in run.store.read_table(key, wanted).to_pylist():
            by_problem[row["problem_id"]].append(row)
    return [row for rows in by_problem.values() for row in rows]


def missing_shards(run: Run, benchmark: str, step: int, num_samples: int) -> list[tuple[int, range]]:
    """Shards to commit for so many samples per problem, each with the numbers of its samples."""
    committed = parts(run, benchmark, step)
    done = 0
    if committed:
        numbers: list[Any] = run.store.read_table(committed[-1], ["sample"])["sample"].to_pylist()
        done = 1 + max(numbers)
    first_shard = sum(key.shard is not None for key in committed)
    return [
        (first_shard + i, range(first, min(first + SAMPLES_PER_SHARD, num_samples)))
        for i, first in enumerate(range(done, num_samples, SAMPLES_PER_SHARD))
    ]


def choose_judge(run: Run, benchmark: Benchmark, step: int, judge: AnyJudge | None) -> AnyJudge:
    """The judge asked for, or the one that labelled the evaluation so far, or the run's own.

    Raises:
        ConfigError: another judge labelled the evaluation so far.
    """
    committed = parts(run, benchmark.name, step)
    chosen = judge or run.config.judge
    if committed:
        before = run.store.read_table(committed[0], ["judge"])["judge"][0].as_py()
        if judge is None and before in _PLAIN_JUDGES:
            return _PLAIN_JUDGES[before]
        if before != chosen.judge_id:
            raise ConfigError(
                f"judge {chosen.judge_id!r} cannot extend the evaluation of {run.name!r}, step {step}, on "
                f"{benchmark.name}: judge {before!r} labelled it so far"
            )
    return chosen


_PLAIN_JUDGES: dict[str, AnyJudge] = {judge.judge_id: judge for judge in (ProgramJudge(), AnswerJudge())}


def choose_step(run: Run, step: int | None) -> int:
    """A step whose policy can be had; the last if none is given. Raises ConfigError if there is no such step."""
    if run.config.policy.model == IMPORTED:
        raise ConfigError(f"run {run.name!r} was imported: it has no policy to evaluate")
    last = run.last_step()
    if step is not None and not 0 <= step <= last:
        raise ConfigError(f"step {step} of run {run.name!r} must lie between 0 and {last}")
    return last if step is None else step
