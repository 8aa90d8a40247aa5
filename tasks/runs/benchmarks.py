"""Benchmarks: problems to evaluate a run on, its own held-out ones or a file's, and who verifies them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from polyepo.config import ConfigError, EvaluationConfig, RunConfig
from polyepo.domains import Maths, Problem
from polyepo.domains.leakage import leaks
from storage.layout import check_name
from tasks.runs.evaluations import HELDOUT, TRAIN, Benchmark
from tasks.runs.run import Run, open_run, read_problems


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
    return Benchmark(name, maths_of(run.config, name), _committed(run.store.root, run.name, name))


@lru_cache(maxsize=8)
def _committed(root: str, run: str, name: str) -> tuple[Problem, ...]:
    opened = open_run(root, run)
    return tuple(problem for _, problem in read_problems(opened.store, opened.key("problems", 0, benchmark=name)))


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
    check_name("benchmark", name)
    if name in (TRAIN, HELDOUT) or not Path(benchmark).is_file():
        raise ConfigError(
            f"benchmark {benchmark!r} must be {HELDOUT!r}, the run's own held-out problems, or a JSONL or Parquet file "
            f"that is called neither {HELDOUT!r} nor {TRAIN!r}: these are the run's own problems"
        )
    return name


def maths_of(config: RunConfig, path: str) -> Maths:
    """The run's own way with mathematics, if it has one, on another file."""
    if isinstance(config.domain, Maths):
        return config.domain.of_file(path)
    return Maths(path=path)
