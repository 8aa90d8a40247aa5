"""Evaluate: samples of a benchmark's problems, verified and labelled, in shards that later ones are added to."""

from __future__ import annotations

import hashlib
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from polyepo.config import ConfigError, EvaluationConfig, PolicyConfig, RunConfig, SamplingConfig, load_config
from polyepo.domains import Domain, Maths, Problem
from polyepo.domains.leakage import leaks
from polyepo.judges import AnswerJudge, AnyJudge, CallLog, Group, Judge, Label, ProgramJudge
from polyepo.policy.model import check_prompt_tokens
from polyepo.schemas import EVALS
from storage import ArtifactKey, open_store
from storage.layout import check_name
from tasks.calls import FIRST_EVALUATION_SHARD, kept_calls
from tasks.policy import policy_at
from tasks.run import Run, commit_problems, create_or_resume, open_run, read_problems
from tasks.sample import sample_rows
from tasks.score import IMPORTED

HELDOUT = "heldout"

# Samples per problem that are drawn, labelled and committed together, at most: what a killed evaluation loses.
SAMPLES_PER_SHARD = 16


@dataclass(frozen=True)
class Benchmark:
    """Problems to evaluate on, and who verifies them."""

    name: str
    domain: Domain
    problems: tuple[Problem, ...]


@task(name="evaluate", task_run_name="evaluate {name} {step}", cache_policy=NO_CACHE, persist_result=False)
def evaluate(root: str, name: str, step: int) -> str:
    """Commit `evaluation.num_samples` graded responses to each held-out problem, by the policy after a step."""
    run = open_run(root, name)
    config = run.config.evaluation or EvaluationConfig()
    for shard, samples in missing_shards(run, HELDOUT, step, config.num_samples):
        commit_shard(run, heldout(run), step, shard, samples, run.config.judge)
    return run.key("evals", step, benchmark=HELDOUT).path


@task(
    name="evaluate-shard",
    task_run_name="evaluate {name} {benchmark} {step}.{shard}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
def evaluate_shard(
    root: str, name: str, benchmark: str, step: int, shard: int, samples: tuple[int, int], judge: AnyJudge
) -> str:
    """Commit one shard of an evaluation: the first to the last sample; the benchmark's problems are committed."""
    run = open_run(root, name)
    return commit_shard(run, open_benchmark(run, benchmark), step, shard, range(*samples), judge).path


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


def commit_shard(run: Run, benchmark: Benchmark, step: int, shard: int, numbers: range, judge: Judge) -> ArtifactKey:
    """Commit the samples of one shard, unless they are there; those of earlier shards must be."""
    key = run.key("evals", step, shard, benchmark=benchmark.name)
    if not run.store.exists(key):
        started = time.perf_counter()
        # Every step and arm draws with the same random numbers: differences are the policies', not the dice's.
        rows = sample_rows(run, policy_at(run, step), benchmark.problems, 0, numbers, "evaluation")
        verdicts = benchmark.domain.verify_batch(
            [problem for problem in benchmark.problems for _ in numbers], [row["response"] for row in rows]
        )
        with kept_calls(run, judge, step, FIRST_EVALUATION_SHARD + shard) as calls:
            labels = _labels(run, benchmark, step, judge, rows, calls)
        for row, verdict, label in zip(rows, verdicts, labels, strict=True):
            row |= {
                "step": step,
                "benchmark": benchmark.name,
                "judge": judge.judge_id,
                "cluster": label.cluster,
                "degenerate": label.degenerate,
                "macro_strategy": label.macro_strategy,
                "micro_strategy": label.micro_strategy,
                **verdict._asdict(),
            }
        table = pa.Table.from_pylist(rows, schema=EVALS)
        provenance = run.provenance(step, time.perf_counter() - started)
        run.store.commit_table(key, table, table_name="evals", provenance=provenance)
    return key


def _labels(
    run: Run, benchmark: Benchmark, step: int, judge: Judge, rows: list[dict[str, Any]], calls: CallLog | None
) -> list[Label]:
    """Labels of new samples, numbered on from those of earlier shards.

    The judge sees the new samples of a problem after one response of each cluster there is: what it puts together with
    one of these belongs to that cluster. So labels that stand never change, and a judge's prompt stays short.
    """
    known: dict[str, dict[int, str]] = defaultdict(dict)
    for row in read_evaluation(run, benchmark.name, step, ["response", "cluster"]):
        if row["cluster"] is not None:
            known[row["problem_id"]].setdefault(row["cluster"], row["response"])
    new: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        new[row["problem_id"]].append(row["response"])
    groups = [Group(p, [*known[p.problem_id].values(), *new[p.problem_id]]) for p in benchmark.problems]
    labels = []
    for group, found in zip(groups, judge.label(benchmark.domain, groups, calls), strict=True):
        clusters = list(known[group.problem.problem_id])
        number: dict[int, int] = {}
        for old, label in zip(clusters, found, strict=False):
            if label.cluster is not None:
                number.setdefault(label.cluster, old)
        free = max(clusters, default=-1) + 1
        for label in found[len(clusters) :]:
            if label.cluster is not None and label.cluster not in number:
                number[label.cluster], free = free, free + 1
            labels.append(label._replace(cluster=None if label.cluster is None else number[label.cluster]))
    return labels


def heldout(run: Run) -> Benchmark:
    """The run's own held-out problems. Raises ConfigError if it has none."""
    config = run.config.evaluation or EvaluationConfig()
    problems = run.split("heldout")[: config.max_problems]
    if not problems:
        raise ConfigError(f"run {run.name!r} has no held-out problems: give benchmark=FILE")
    return Benchmark(HELDOUT, run.config.domain, tuple(problems))


def open_benchmark(run: Run, name: str) -> Benchmark:
    """A benchmark whose problems are committed with the run."""
    if name == HELDOUT:
        return heldout(run)
    return Benchmark(name, _maths(run.config, name), _committed(run.store.root, run.name, name))


@lru_cache(maxsize=8)
def _committed(root: str, run: str, name: str) -> tuple[Problem, ...]:
    opened = open_run(root, run)
    return tuple(problem for _, problem in read_problems(opened.store, opened.key("problems", 0, benchmark=name)))


def add_benchmark(run: Run, benchmark: str, step: int) -> Benchmark:
    """`heldout`, or the problems of a file of mathematics, which are committed with the run under the file's name.

    Raises:
        ConfigError: the file cannot be used, its prompts are too long, or other problems have its name.
    """
    if benchmark == HELDOUT:
        return heldout(run)
    name = benchmark_name(benchmark)
    domain = _maths(run.config, benchmark)
    try:
        problems = [problem for split in ("train", "heldout") for problem in domain.problems(split)]
    except ValueError as error:
        raise ConfigError(f"benchmark {benchmark!r}: {error}") from None
    problems.sort(key=lambda problem: problem.problem_id)
    check_prompt_tokens(policy_at(run, step), problems, run.config.sampling, f"benchmark {benchmark!r}")
    commit_problems(run.store, run.name, [(name, p) for p in problems], run.provenance(None), benchmark=name)
    found = open_benchmark(run, name)
    if list(found.problems) != problems:
        raise ConfigError(
            f"benchmark {benchmark!r}: run {run.name!r} was evaluated on other problems under the name {name!r}; "
            "give the file another name"
        )
    return found


def leakage(run: Run, benchmark: Benchmark) -> str | None:
    """What to say if the run was trained on problems of a benchmark; None if it was not."""
    leaked = leaks(run.split("train"), benchmark.problems)
    if not leaked:
        return None
    trained, evaluated = leaked[0]
    return (
        f"{len(leaked)} of {len(benchmark.problems)} problems of {benchmark.name} are training problems of {run.name}, "
        f"such as {evaluated!r}, which is {trained!r}: the policy has seen them"
    )


def benchmark_name(benchmark: str) -> str:
    """A benchmark's name in the store: `heldout`, or the name of the file. Raises ConfigError if it cannot be one."""
    if benchmark == HELDOUT:
        return HELDOUT
    name = Path(benchmark).stem
    try:
        check_name("benchmark", name)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if name == HELDOUT or not Path(benchmark).is_file():
        raise ConfigError(
            f"benchmark {benchmark!r} must be {HELDOUT!r}, the run's own held-out problems, or a JSONL or Parquet file "
            f"of another name"
        )
    return name


def _maths(config: RunConfig, path: str) -> Maths:
    """The run's own way with mathematics, if it has one, on another file."""
    if isinstance(config.domain, Maths):
        return config.domain.of_file(path)
    return Maths(path=path)


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
    last = max(run.store.steps(run.name, "updates"), default=0)
    if step is not None and not 0 <= step <= last:
        raise ConfigError(f"step {step} of run {run.name!r} must lie between 0 and {last}")
    return last if step is None else step


def model_run(root: str, model: str, benchmark: str, config: str | None, settings: dict[str, Any] | None) -> Run:
    """The run that stands for a model that nobody trained here: no step, a record, a benchmark's problems.

    Its settings are a configuration's, or else those of mathematics from the benchmark's file.

    Raises:
        ConfigError: the configuration cannot be used, or there is none and the benchmark is no file.
    """
    policy: dict[str, Any] = {
        "policy.model": model,
        "policy.warm_start": None,
        "steps": 0,
        "evaluation": None,
        "arms": {},
    }
    if config:
        described = load_config(config, {**policy, **(settings or {})})
        run_config = RunConfig.model_validate(described.model_dump(mode="json", exclude={"arms"}))
    elif benchmark == HELDOUT:
        raise ConfigError(
            "model without config needs benchmark=FILE; give config=FILE for a domain's held-out problems"
        )
    else:
        benchmark_name(benchmark)
        run_config = RunConfig(
            steps=0,
            domain=Maths(path=benchmark),
            policy=PolicyConfig(model=model),
            sampling=SamplingConfig(prompts_per_step=1),
            judge=ProgramJudge(),
        )
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name).strip(".-")[:60] or "model"
    identity = hashlib.sha256(f"{model}\0{run_config.digest}".encode()).hexdigest()[:8]
    return create_or_resume(open_store(root).root, f"{stem}-{identity}", run_config)
