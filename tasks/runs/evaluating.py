"""Making an evaluation: samples of a benchmark's problems, verified and labelled, in shards that are added to."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from polyepo.config import ConfigError, PolicyConfig, RunConfig, SamplingConfig, load_config
from polyepo.domains import Maths
from polyepo.judges import CallLog, Group, Judge, Label, ProgramJudge
from polyepo.names import name_of
from polyepo.policy.source import identify
from polyepo.schemas import EVALS
from polyepo.section import digest
from storage import ArtifactKey, open_store
from tasks.runs.benchmarks import benchmark_name, heldout, maths_of, open_benchmark
from tasks.runs.calls import FIRST_EVALUATION_SHARD, kept_calls
from tasks.runs.evaluations import (
    HELDOUT,
    Benchmark,
    check_judge,
    missing_samples,
    plan_evaluation,
    read_evaluation,
    shard_key,
)
from tasks.runs.models import load_run_language
from tasks.runs.policies import again_if_killed, policy_at
from tasks.runs.record import read_record
from tasks.runs.rollouts import sample_rows
from tasks.runs.run import Run, commit_problems, create_or_resume
from tasks.runs.scores import grade


def evaluate_missing(run: Run, benchmark: Benchmark, step: int, num_samples: int, judge: Judge) -> None:
    """Commit so many samples per problem of a benchmark, by the policy after a step, as far as they are not there."""
    if missing_samples(run, benchmark.name, step, num_samples):
        plan_evaluation(run, benchmark, step, num_samples)
    # Asked anew each time: another evaluation may be going on.
    while missing := missing_samples(run, benchmark.name, step, num_samples):
        commit_samples(run, benchmark, step, missing[0], judge)


def commit_samples(run: Run, benchmark: Benchmark, step: int, numbers: range, judge: Judge) -> ArtifactKey:
    """Commit a range of samples, which must begin at the first that is missing, unless others have begun there.

    Raises:
        ConfigError: another judge labelled the samples before.
    """
    key = shard_key(run, benchmark.name, step, numbers.start)
    if not run.store.exists(key):
        started = time.perf_counter()
        check_judge(run, benchmark.name, step, judge)
        columns = ["response", "cluster", "parsed_answer", "answer_class"]
        before = read_evaluation(run, benchmark.name, step, columns)
        # Every step and arm draws with the same random numbers: differences are the policies', not the dice's.
        rows = again_if_killed(
            lambda: sample_rows(run, policy_at(run, step), benchmark.problems, 0, numbers, "evaluation")
        )
        verdicts = grade(benchmark.domain, [p for p in benchmark.problems for _ in numbers], rows, step)
        assert key.shard is not None
        with kept_calls(run, judge, step, FIRST_EVALUATION_SHARD + key.shard) as calls:
            labels = _labels(benchmark, judge, before, rows, calls)
        classes = _answer_classes(benchmark, before, [verdict.parsed_answer for verdict in verdicts])
        for row, verdict, answer_class, label in zip(rows, verdicts, classes, labels, strict=True):
            row |= {
                "step": step,
                "benchmark": benchmark.name,
                **verdict._asdict(),
                "answer_class": answer_class,
                "judge": judge.judge_id,
                "cluster": label.cluster,
                "degenerate": label.degenerate,
                "macro_strategy": label.macro_strategy,
                "micro_strategy": label.micro_strategy,
                "status": label.status,
            }
        table = pa.Table.from_pylist(rows, schema=EVALS)
        provenance = run.provenance(step, time.perf_counter() - started)
        run.store.commit_table(key, table, table_name="evals", provenance=provenance)
    return key


def _labels(
    benchmark: Benchmark, judge: Judge, before: list[dict[str, Any]], rows: list[dict[str, Any]], calls: CallLog | None
) -> list[Label]:
    """Labels of new samples, numbered on from those of the samples before.

    The judge sees the new samples of a problem after one response of each cluster there is: what it puts together with
    one of these belongs to that cluster. So labels that stand never change, and a judge's prompt stays short.
    """
    known = _representatives(before, "cluster", "response")
    new: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        new[row["problem_id"]].append(row["response"])
    groups = [Group(p, [*known[p.problem_id].values(), *new[p.problem_id]]) for p in benchmark.problems]
    labels = []
    for group, found in zip(groups, judge.label(benchmark.domain, groups, calls), strict=True):
        clusters = number_on(list(known[group.problem.problem_id]), [label.cluster for label in found])
        later = found[len(found) - len(clusters) :]
        labels += [label._replace(cluster=cluster) for label, cluster in zip(later, clusters, strict=True)]
    return labels


def _answer_classes(benchmark: Benchmark, before: list[dict[str, Any]], answers: list[str | None]) -> list[int | None]:
    """Classes of new samples' answers, numbered on from those of the samples before, as labels are.

    Null if samples before have none, which an older version committed: then all of them go by their text.
    """
    if any(row["answer_class"] is None and row["parsed_answer"] is not None for row in before):
        return [None] * len(answers)
    known = _representatives(before, "answer_class", "parsed_answer")
    size = len(answers) // len(benchmark.problems)
    groups = [
        (problem, [*known[problem.problem_id].values(), *answers[i * size : (i + 1) * size]])
        for i, problem in enumerate(benchmark.problems)
    ]
    return [
        number
        for (problem, _), found in zip(groups, benchmark.domain.answer_classes(groups), strict=True)
        for number in number_on(list(known[problem.problem_id]), found)
    ]


def _representatives(rows: list[dict[str, Any]], number: str, text: str) -> dict[str, dict[int, str]]:
    """Of each problem, the first text of each number."""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for row in rows:
        if row[number] is not None:
            found[row["problem_id"]].setdefault(row[number], row[text])
    return found


def number_on(known: list[int], found: list[int | None]) -> list[int | None]:
    """New items' groups in numbers that stand.

    Args:
        known: numbers of the groups there are.
        found: groups by some other numbering, of one item of each known group, in their order, and then of new ones.
    """
    number: dict[int | None, int | None] = {None: None}
    for old, group in zip(known, found, strict=False):
        number.setdefault(group, old)
    free = max(known, default=-1) + 1
    for group in found[len(known) :]:
        if group not in number:
            number[group], free = free, free + 1
    return [number[group] for group in found[len(known) :]]


def add_benchmark(run: Run, benchmark: str, step: int) -> Benchmark:
    """`heldout`, or the problems of a file of mathematics, which are committed with the run under the file's name.

    Raises:
        ConfigError: the file cannot be used, its prompts are too long, or other problems have its name.
    """
    if benchmark == HELDOUT:
        return heldout(run)
    name = benchmark_name(benchmark)
    domain = maths_of(run.config, benchmark)
    try:
        problems = [problem for split in ("train", "heldout") for problem in domain.problems(split)]
    except ValueError as error:
        raise ConfigError(f"benchmark {benchmark!r}: {error}") from None
    problems.sort(key=lambda problem: problem.problem_id)
    load_run_language(run).check_prompts(problems, run.config.sampling, f"benchmark {benchmark!r}")
    commit_problems(run.store, run.name, [(name, p) for p in problems], run.provenance(None), benchmark=name)
    found = open_benchmark(run, name)
    if list(found.problems) != problems:
        raise ConfigError(
            f"benchmark {benchmark!r}: run {run.name!r} was evaluated on other problems under the name {name!r}; "
            "give the file another name"
        )
    return found


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
    stem = name_of(Path(model).name, longest=60, otherwise="model")
    content = f"{model}\0{digest(run_config.model_dump(mode='json'))}"
    name = f"{stem}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    # A directory that holds another model by now is another run.
    if record := read_record(open_store(root), name):
        found = identify(run_config.policy)
        if (record.model or found).get("files") != found.get("files"):
            name = f"{name}-{digest(found)[:8]}"
    return create_or_resume(root, name, run_config)
