"""A run's evaluations in the store: which parts are there, what they say, and what is missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyarrow as pa

from polyepo.config import ConfigError
from polyepo.domains import Domain, Problem
from polyepo.judges import AnswerJudge, AnyJudge, Judge, ProgramJudge
from polyepo.schemas import EVALUATIONS
from storage import ArtifactKey
from tasks.runs.run import Run
from tasks.runs.scores import IMPORTED

# Splits of a run's own problems; a benchmark of others is called by its file.
TRAIN, HELDOUT = "train", "heldout"


# Samples per problem that are drawn, labelled and committed together, at most: what a killed evaluation loses.
SAMPLES_PER_SHARD = 16
# Older versions numbered an evaluation's shards from 0; now their numbers say where their samples begin.
_FIRST_SHARD = 1000


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
    """The committed artifacts of an evaluation, in the order in which they were committed."""
    keys = run.store.artifacts(run.owner(step).name, "evals", (("benchmark", benchmark),), step)
    # One without a shard is by a version that did not write any.
    return sorted(keys, key=lambda key: -1 if key.shard is None else key.shard)


def evaluated_steps(run: Run, benchmark: str) -> list[int]:
    """Steps of which something of an evaluation is committed, in order; of a fork also its parent's, up to there."""
    if run.parent is not None:
        before = [step for step in evaluated_steps(run.parent, benchmark) if step < run.first_step]
        return before + evaluated_steps(replace(run, forked_from=None), benchmark)
    return sorted({key.step for key in run.store.artifacts(run.name, "evals", (("benchmark", benchmark),))})


def read_evaluation(run: Run, benchmark: str, step: int, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of an evaluation, by problem in the benchmark's order and by sample; none if nothing is committed."""
    wanted = list(dict.fromkeys(["problem_id", "sample", *columns]))
    by_problem: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for table in run.store.read_tables(parts(run, benchmark, step), wanted):
        for row in table.to_pylist():
            by_problem[row["problem_id"]].append(row)
    return [row for rows in by_problem.values() for row in sorted(rows, key=lambda row: row["sample"])]


def missing_samples(run: Run, benchmark: str, step: int, num_samples: int) -> list[range]:
    """Numbers of the samples per problem that are not committed yet, lowest first, in ranges to commit together.

    They follow from the numbers that are there: an evaluation of another size that ran at the same time may have left
    any.
    """
    there: set[int] = set()
    for table in run.store.read_tables(parts(run, benchmark, step), ["sample"]):
        numbers: list[Any] = table["sample"].unique().to_pylist()
        there.update(numbers)
    ranges: list[range] = []
    for number in range(num_samples):
        if number in there:
            continue
        if ranges and ranges[-1].stop == number and len(ranges[-1]) < SAMPLES_PER_SHARD:
            ranges[-1] = range(ranges[-1].start, number + 1)
        else:
            ranges.append(range(number, number + 1))
    return ranges


def shard_key(run: Run, benchmark: str, step: int, first_sample: int) -> ArtifactKey:
    """Where the samples from a number on are committed.

    All who evaluate go on at the first sample that is missing, so of several one wins, and the others go on after it:
    no sample is left out and none is there twice, whatever the sizes of the evaluations.
    """
    return run.key("evals", step, _FIRST_SHARD + first_sample, benchmark=benchmark)


def plan_evaluation(run: Run, benchmark: Benchmark, step: int, num_samples: int) -> None:
    """Commit what is asked for, so that readers can say how much of it is there."""
    row = {
        "run": run.name,
        "step": step,
        "benchmark": benchmark.name,
        "problems": len(benchmark.problems),
        "samples": num_samples,
    }
    # One artifact for each number that is ever asked for.
    key = run.key("evaluations", step, num_samples, benchmark=benchmark.name)
    table = pa.Table.from_pylist([row], schema=EVALUATIONS)
    run.store.commit_table(key, table, table_name="evaluations", provenance=run.provenance(step))


class Planned(NamedTuple):
    """The size of an evaluation that was asked for."""

    problems: int
    samples: int


def planned(run: Run, benchmark: str, step: int) -> Planned | None:
    """The largest size of an evaluation that was asked for; None if that is not known, as of older versions."""
    config = run.config.evaluation
    asked = run.store.shards(run.owner(step).name, "evaluations", step, (("benchmark", benchmark),))
    if asked:
        key = run.key("evaluations", step, asked[-1], benchmark=benchmark)
        return Planned(*run.store.read_table(key, ["problems", "samples"]).to_pylist()[0].values())
    if benchmark == HELDOUT and config is not None and evaluation_due(run, step):
        return Planned(len(run.split("heldout")[: config.max_problems]), config.num_samples)
    return None


def choose_judge(run: Run, benchmark: Benchmark, step: int, judge: AnyJudge | None) -> AnyJudge:
    """The judge asked for, or the one that labelled the evaluation so far, or the run's own.

    Raises:
        ConfigError: another judge labelled the evaluation so far.
    """
    before = _judge_so_far(run, benchmark.name, step)
    if judge is None and before in _PLAIN_JUDGES:
        return _PLAIN_JUDGES[before]
    chosen = judge or run.config.judge
    check_judge(run, benchmark.name, step, chosen)
    return chosen


def check_judge(run: Run, benchmark: str, step: int, judge: Judge) -> None:
    """Raise ConfigError if another judge labelled the evaluation so far."""
    before = _judge_so_far(run, benchmark, step)
    if before not in (None, judge.judge_id):
        raise ConfigError(
            f"judge {judge.judge_id!r} cannot extend the evaluation of {run.name!r}, step {step}, on "
            f"{benchmark}: judge {before!r} labelled it so far"
        )


def _judge_so_far(run: Run, benchmark: str, step: int) -> str | None:
    committed = parts(run, benchmark, step)
    return str(run.store.read_table(committed[0], ["judge"])["judge"][0]) if committed else None


_PLAIN_JUDGES: dict[str, AnyJudge] = {judge.judge_id: judge for judge in (ProgramJudge(), AnswerJudge())}


def choose_step(run: Run, step: int | None) -> int:
    """A step whose policy can be had; the last if none is given. Raises ConfigError if there is no such step."""
    if run.config.policy.model == IMPORTED:
        raise ConfigError(f"run {run.name!r} was imported: it has responses, but no policy")
    last = run.last_step()
    if step is not None and not 0 <= step <= last:
        raise ConfigError(f"step {step} of run {run.name!r} must lie between 0 and {last}")
    return last if step is None else step
