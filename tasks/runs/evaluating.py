"""Making an evaluation: samples of a benchmark's problems, verified and labelled, in shards that are added to."""

from __future__ import annotations

import hashlib
import re
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from polyepo.config import ConfigError, PolicyConfig, RunConfig, SamplingConfig, digest, load_config
from polyepo.domains import Maths
from polyepo.judges import CallLog, Group, Judge, Label, ProgramJudge
from polyepo.policy.model import check_prompt_tokens
from polyepo.policy.source import identify
from polyepo.schemas import EVALS
from storage import ArtifactKey, open_store
from tasks.runs.benchmarks import benchmark_name, heldout, maths_of, open_benchmark
from tasks.runs.calls import FIRST_EVALUATION_SHARD, kept_calls
from tasks.runs.evaluations import HELDOUT, Benchmark, read_evaluation
from tasks.runs.policies import policy_at
from tasks.runs.rollouts import sample_rows
from tasks.runs.run import Run, commit_problems, create_or_resume


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
    check_prompt_tokens(policy_at(run, step), problems, run.config.sampling, f"benchmark {benchmark!r}")
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
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name).strip(".-")[:60] or "model"
    content = f"{model}\0{digest(run_config.model_dump(mode='json'))}"
    name = f"{stem}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    # A directory that holds another model by now is another run.
    if record := open_store(root).run_record(name):
        found = identify(run_config.policy)
        if record.get("model", found).get("files") != found.get("files"):
            name = f"{name}-{digest(found)[:8]}"
    return create_or_resume(root, name, run_config)
