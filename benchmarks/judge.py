"""How much time the LLM judge adds to what its server takes, and whether judging hides behind sampling.

    python benchmarks/judge.py

First 1,000 prompts at concurrency 64 against a server that takes one second per reply: the ideal is 1,000 / 64 seconds.
Then one training step through the real flow, with a sampler that is made to take as long as the judge: the ideal is the
slower of the two, not their sum.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ |= {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "WARNING"}

from polyepo.config import parse_config
from polyepo.domains import Polynomial, Problem
from polyepo.judges import Group, LLMJudge

LATENCY_S = 1.0
PROMPTS, RESPONSES, CONCURRENCY = 1000, 8, 64
SHARDS, PROMPTS_PER_SHARD = 16, 8


def serve(ready: Connection, latency_s: float) -> None:
    """Answer every request correctly after a while, until killed."""
    from polyepo.testing.judge_server import JudgeServer, clusters_of, completion

    def slow(number: int, body: dict[str, Any]) -> Any:
        answer = completion(clusters_of(body))
        answer.delay_s = latency_s
        server.bodies.clear()
        return answer

    with JudgeServer(slow) as server:
        ready.send(server.url)
        threading.Event().wait()


@contextmanager
def judge_server(latency_s: float) -> Iterator[str]:
    """A server in a process of its own; its address."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(theirs, latency_s), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def resident_mib() -> float:
    """Resident memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def sample_memory(samples: list[float], done: threading.Event) -> None:
    """Resident memory twice a second."""
    while not done.wait(0.5):
        samples.append(resident_mib())


def throughput() -> None:
    """Print the time of many prompts against the ideal, and memory along the way."""
    with judge_server(LATENCY_S) as url:
        judge = LLMJudge(model="m", base_url=url, concurrency=CONCURRENCY)
        text = "We factor the polynomial and compare coefficients one by one. " * 20
        groups = [
            Group(
                Problem(problem_id=f"p{p}", domain="maths", prompt=f"problem {p}"),
                [f"way{r % 3} {text} {p} {r}" for r in range(RESPONSES)],
            )
            for p in range(PROMPTS)
        ]
        judge.label(Polynomial(), groups[:CONCURRENCY])  # imports and connections
        memory: list[float] = []
        done = threading.Event()
        watch = threading.Thread(target=sample_memory, args=(memory, done))
        watch.start()
        started = time.perf_counter()
        labels = judge.label(Polynomial(), groups)
        seconds = time.perf_counter() - started
        done.set()
        watch.join()
    assert all(len({label.cluster for label in found}) == 3 for found in labels)
    ideal = PROMPTS / CONCURRENCY * LATENCY_S
    waves = math.ceil(PROMPTS / CONCURRENCY) * LATENCY_S
    print(
        f"{PROMPTS} prompts x {RESPONSES} responses, concurrency {CONCURRENCY}: {seconds:.2f} s, "
        f"{seconds / ideal:.3f} x the ideal {ideal:.2f} s ({seconds / waves:.3f} x {waves:.0f} s of whole waves)"
    )
    quarter = max(1, len(memory) // 4)
    print(
        f"memory: {sum(memory[:quarter]) / quarter:.0f} MiB in the first quarter, "
        f"{sum(memory[-quarter:]) / quarter:.0f} MiB in the last, {max(memory):.0f} MiB at most"
    )


def overlap() -> None:
    """Print the time of a step whose judge is as slow as its sampler against the slower of the two."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE
    from prefect.testing.utilities import prefect_test_harness

    import flows.train as train_flow
    from tests.support.config import small_config

    real = train_flow.sample

    @task(name="sample", cache_policy=NO_CACHE, persist_result=False)
    def slow_sample(root: str, name: str, step: int, shard: int) -> str:
        """The real sampler, made to take the judge's time."""
        started = time.perf_counter()
        path = real.fn(root, name, step, shard)
        time.sleep(max(0.0, LATENCY_S - (time.perf_counter() - started)))
        return path

    with tempfile.TemporaryDirectory() as scratch, judge_server(LATENCY_S) as url, prefect_test_harness(60):
        config = small_config(
            steps=3,
            judge={"name": "llm", "model": "m", "base_url": url, "concurrency": PROMPTS_PER_SHARD},
            sampling={"prompts_per_step": SHARDS * PROMPTS_PER_SHARD, "shards": SHARDS},
            domain={"max_abs_b": 7, "max_c": 15},
        )
        del config["evaluation"]
        from tasks.checkpoint import warm_start
        from tasks.runs.models import warm_start_digest
        from tasks.runs.policies import check_prompts
        from tasks.runs.run import create_or_resume

        run_config = parse_config(config).runs("run")["run"]
        warm_start.fn(scratch, run_config, warm_start_digest(run_config))
        run = create_or_resume(scratch, "run", run_config)
        check_prompts(run)
        from prefect import flow

        @flow
        def step(number: int) -> None:
            train_flow.train_step(run, number)

        train_flow.sample = slow_sample
        step(1)  # imports, connections, the server's first queries
        for number in (2, 3):
            started = time.perf_counter()
            step(number)
            seconds = time.perf_counter() - started
            slower = SHARDS * LATENCY_S
            print(
                f"step of {SHARDS} shards, sampler and judge {LATENCY_S:.0f} s each per shard: {seconds:.2f} s, "
                f"{seconds / slower:.3f} x the slower, {seconds / (2 * slower):.3f} x the sum"
            )


if __name__ == "__main__":
    throughput()
    overlap()
