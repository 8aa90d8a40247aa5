"""A configuration's arms over several seeds, without Prefect; two processes at a time.

python benchmarks/seeds.py configs/quickstart.yaml --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np


def train_arms(config: str, seed: int, root: str) -> None:
    """Train every arm of one seed, calling the tasks as plain functions; the warm start has the seed too."""
    from polyepo.config import load_config
    from tasks.evaluate import evaluate
    from tasks.judge import judge
    from tasks.policy import warm_start, warm_start_digest
    from tasks.run import create_or_resume
    from tasks.sample import sample
    from tasks.score import score
    from tasks.update import update

    runs = load_config(config, {"seed": seed, "policy.warm_start.seed": seed}).runs(f"seed{seed}")
    for name, run_config in runs.items():
        warm_start.fn(root, run_config, warm_start_digest(run_config))
        create_or_resume(root, name, run_config)
        evaluate.fn(root, name, 0)
        for step in range(1, run_config.steps + 1):
            for shard in range(run_config.sampling.shards):
                sample.fn(root, name, step, shard)
                judge.fn(root, name, step, shard)
            score.fn(root, name, step)
            update.fn(root, name, step)
        evaluate.fn(root, name, run_config.steps)
        print(f"{name} done", file=sys.stderr)


def main() -> None:
    """Train in child processes, then print each policy's mean over seeds, and every seed behind it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--root", help="keep the artifacts here")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        train_arms(arguments.config, arguments.child, arguments.root)
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.root or scratch

        def child(seed: int) -> None:
            # One root per seed: processes share nothing but the disk.
            command = [sys.executable, __file__, arguments.config, "--child", str(seed), "--root", f"{root}/{seed}"]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(child, arguments.seeds))
        report(root, arguments.seeds, Path(arguments.config).stem)


def report(root: str, seeds: list[int], title: str) -> None:
    """A markdown table: mean over seeds (each seed)."""
    from flows.summary import summarize

    summaries = [summarize(f"{root}/{seed}", f"seed{seed}") for seed in seeds]
    first = summaries[0].rows[0]
    header = [f"pass@{k}" for k in first.pass_at] + [f"distinct@{k}" for k in first.strategies_at]
    print(f"{title}, seeds {', '.join(map(str, seeds))}\n\n| policy | {' | '.join(header)} |")
    print("|---|" + "---:|" * len(header))
    for rows in zip(*(summary.rows for summary in summaries), strict=True):
        columns = [[*row.pass_at.values(), *row.strategies_at.values()] for row in rows]
        cells = [f"{np.mean(c):.2f} ({', '.join(f'{v:.2f}' for v in c)})" for c in zip(*columns, strict=True)]
        print(f"| {rows[0].policy} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
