"""Ten million rollouts: seconds to open the catalog and to answer each shipped query, in less than 2 GiB.

    python benchmarks/catalog.py --rollouts 10_000_000 --root /tmp/ten-million

Makes a run of short texts, 16 prompts x 128 responses a step, labelled by two judges, unless the root has it already.
The files are written without the store's fsync per file; everything else is as a training leaves it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polyepo.schemas import LABELS, PROBLEMS, ROLLOUTS, SCORES, UPDATES
from storage import ArtifactKey, Manifest, Provenance
from storage.manifest import FileEntry
from storage.store import table_bytes

PROMPTS, RESPONSES, PROBLEM_POOL = 16, 128, 512
MEMORY = "1500MiB"  # for DuckDB; the process has the rest of the 2 GiB
PROVENANCE = Provenance("benchmark", "benchmark")
ARGUMENTS = {
    "pass_at_k": "8",
    "maj_at_k": "8",
    "div_at_k": "8",
    "cover_at_tau": "0.5",
    "judge_agreement": "'program', 'other'",
    "agreement_by_prompt": "'program', 'other'",
    "scoring_agreement": "'poly_epo', 'poly_epo'",
    "regraded": "'poly_epo', 'poly_epo'",
    "strategy_clusters": "'run', {step}, '{problem}'",
    "strategy_changes": "'run', 1, 'run', {step}",
}


def commit(root: Path, key: ArtifactKey, table: pa.Table, name: str, parents: list[Manifest]) -> Manifest:
    """Write an artifact as the store lays it out, without fsync."""
    data = table_bytes(table, name, PROVENANCE)
    entry = FileEntry(
        path="part-00000.parquet", size=len(data), sha256=hashlib.sha256(data).hexdigest(), num_rows=table.num_rows
    )
    manifest = Manifest(
        path=key.path, attempt="0" * 16, created_at="2026-01-01T00:00:00+00:00", files=[entry], table=name,
        num_rows=table.num_rows, config_hash="benchmark", code_version="benchmark",
        parents=[parent.reference for parent in parents],
    )  # fmt: skip
    folder = root / key.path / manifest.attempt
    folder.mkdir(parents=True)
    (folder / entry.path).write_bytes(data)
    (root / key.path / "manifest.json").write_text(manifest.model_dump_json())
    return manifest


def repeat(value: Any, dtype: pa.DataType, num_rows: int) -> pa.Array:
    """A constant column."""
    return pa.array([value] * num_rows, dtype)


def table_of(schema: pa.Schema, num_rows: int, columns: dict[str, Any]) -> pa.Table:
    """A table from its varying columns; the others get a constant of their type."""
    constants = {"string": "run", "int32": 0, "int64": 0, "double": 0.0, "bool": False}
    arrays = []
    for field in schema:
        value = columns.get(field.name, None if field.nullable else constants.get(str(field.type), [1]))
        is_column = isinstance(value, list | np.ndarray | pa.Array) and len(value) == num_rows
        arrays.append(pa.array(value, field.type) if is_column else repeat(value, field.type, num_rows))
    return pa.Table.from_arrays(arrays, schema=schema)


def make_step(root: Path, step: int) -> None:
    """One step: rollouts, labels of two judges, scores, update."""
    rng = np.random.default_rng(step)
    num_rows = PROMPTS * RESPONSES
    problems = rng.choice(PROBLEM_POOL, PROMPTS, replace=False)
    row = {
        "run": "run",
        "step": step,
        "problem_id": np.repeat([f"p{p}" for p in problems], RESPONSES).tolist(),
        "sample": np.tile(np.arange(RESPONSES), PROMPTS),
    }
    answers = rng.integers(0, 50, num_rows)
    tokens = rng.integers(0, 1000, (num_rows, 12))
    clusters = rng.integers(0, 8, num_rows)
    degenerate = rng.random(num_rows) < 0.05
    cluster = pa.array(clusters, pa.int32(), mask=degenerate)
    rollouts = row | {
        "response": [f"because {a} is {b}, the answer is {a}" for a, b in zip(answers, clusters, strict=True)],
        "response_token_ids": tokens.tolist(),
        "sampler_logprobs": rng.random((num_rows, 12)).astype(np.float32).tolist(),
        "seed": rng.integers(0, 2**60, num_rows),
        "finish_reason": "stop",
        "temperature": 1.0,
        "sampler": "transformers",
    }
    key = ArtifactKey("run", "rollouts", step, (), 0)
    sampled = commit(root, key, table_of(ROLLOUTS, num_rows, rollouts), "rollouts", [])
    made = [sampled]
    for judge, numbers in (("program", cluster), ("other", pa.array(clusters // 2, pa.int32()))):
        labels = row | {
            "judge": judge,
            "cluster": numbers,
            "degenerate": degenerate if judge == "program" else False,
            "macro_strategy": [f"strategy {c}" for c in clusters],
            "status": "ok",
        }
        key = ArtifactKey("run", "labels", step, (("judge", judge),), 0)
        made.append(commit(root, key, table_of(LABELS, num_rows, labels), "labels", [sampled]))
    scores = row | {
        "scoring": "poly_epo",
        "objective": "polychromic",
        "judge": "program",
        "reward": (rng.random(num_rows) < 0.3).astype(float),
        "parsed_answer": [str(a) for a in answers],
        "cluster": cluster,
        "degenerate": degenerate,
        "advantage": rng.normal(size=num_rows).round(2),
    }
    key = ArtifactKey("run", "scores", step, (("scoring", "poly_epo"),))
    made.append(commit(root, key, table_of(SCORES, num_rows, scores), "scores", made))
    update = table_of(UPDATES, 1, {"run": "run", "step": step})
    commit(root, ArtifactKey("run", "updates", step), update, "updates", made)


def make_run(root: Path, steps: int) -> None:
    """The run, step by step; a bar on standard error."""
    from rich.progress import track

    (root / "runs/run").mkdir(parents=True, exist_ok=True)
    config = {"steps": steps, "seed": 0, "domain": {"name": "benchmark"}}
    (root / "runs/run/run.json").write_text(json.dumps({"run": "run", "config": config}))
    problems = {
        "run": "run",
        "problem_id": [f"p{p}" for p in range(PROBLEM_POOL)],
        "split": "train",
        "domain": "benchmark",
    }
    key = ArtifactKey("run", "problems", 0)
    if not (root / key.path).exists():
        commit(root, key, table_of(PROBLEMS, PROBLEM_POOL, problems), "problems", [])
    for step in track(range(1, steps + 1), "making the run"):
        if not (root / f"runs/run/updates/step={step:06d}/manifest.json").exists():
            make_step(root, step)


def measure(root: str, query: str) -> None:
    """Open the catalog and answer one query; prints seconds of both, rows and MiB."""
    started = time.perf_counter()
    from storage import connect

    connection = connect(root)
    opened = time.perf_counter() - started
    connection.execute(f"SET memory_limit = '{MEMORY}'")
    started = time.perf_counter()
    rows = len(connection.execute(f"SELECT * FROM {query}").fetchall())
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{query.split('(')[0]:20} {opened:8.2f} {seconds:8.2f} {rows:9,} {peak:9.0f}")


def main() -> None:
    """Make the run, then measure every query in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=10_000_000)
    parser.add_argument("--root", required=True)
    parser.add_argument("--query", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.query:
        measure(arguments.root, arguments.query)
        return
    steps = -(-arguments.rollouts // (PROMPTS * RESPONSES))
    make_run(Path(arguments.root), steps)
    from storage.catalog import queries

    problem = f"p{np.random.default_rng(steps).choice(PROBLEM_POOL, PROMPTS, replace=False)[0]}"
    print(f"{steps * PROMPTS * RESPONSES:,} rollouts in {steps:,} steps, DuckDB's memory limited to {MEMORY}")
    print(f"{'query':20} {'open s':>8} {'query s':>8} {'rows':>9} {'peak MiB':>9}", flush=True)
    for name in sorted(queries().keys() - {"views"}):
        query = f"{name}({ARGUMENTS.get(name, '').format(step=steps, problem=problem)})"
        subprocess.run([sys.executable, __file__, "--root", arguments.root, "--query", query], check=True)


if __name__ == "__main__":
    main()
