"""What the commands that only read cost: processor seconds of each, on a store of the quickstart's size.

    python benchmarks/command_line.py --root /tmp/like-quickstart

Makes three arms of 250 steps x 128 responses with their held-out evaluations, unless the root has them already: in the
shape that `make train` leaves, with random answers instead of a training.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from catalog import commit, table_of

from polyepo.config import load_config
from polyepo.schemas import EVALS, LABELS, ROLLOUTS, SCORES, UPDATES
from storage import ArtifactKey, Manifest
from tasks.runs.groups import Arm
from tasks.runs.run import Run, create_or_resume

CONFIG = "configs/quickstart.yaml"
NAME = "demo"
# A command, and how often it says its result in rows, for the speed of those that write them all.
COMMANDS = {
    "--help": [],
    "runs": [],
    "summary": [NAME],
    "show": [f"{NAME}-grpo"],
    "sql": ["-c", "SELECT 1"],
    "compare": [f"{NAME}-grpo", "program", "answer"],
    "watch": [NAME],
    "export": [f"{NAME}-grpo", "-o", "{scratch}/export"],
    "verify": [f"{NAME}-grpo"],
    "gc": [],
    "report": [NAME, "-o", "{scratch}/report.html"],
    "plan": [CONFIG],
}


def make_run(root: Path, run: Run) -> None:
    """A run's artifacts from the first step to the last."""
    for step in range(1, run.config.steps + 1):
        if not (root / run.key("updates", step).path / "manifest.json").exists():
            make_step(root, run, step)
    for step in (0, run.config.steps):
        key = run.key("evals", step, 0, benchmark="heldout")
        if not (root / key.path / "manifest.json").exists():
            problems = [p.problem_id for p in run.split("heldout")]
            columns = responses(run, step, problems, run.config.evaluation.num_samples if run.config.evaluation else 1)
            columns |= {"benchmark": "heldout", "judge": run.config.judge.judge_id, "macro_strategy": "root"}
            commit(root, key, table_of(EVALS, len(columns["sample"]), columns), "evals", [])


def make_step(root: Path, run: Run, step: int) -> None:
    """One step: rollouts, labels (of one arm, by two judges), scores, update."""
    problems = [problem.problem_id for problem in run.problems_of_step(step)]
    columns = responses(run, step, problems, run.config.sampling.num_responses)
    num_rows = len(columns["sample"])
    sampled = commit(root, run.key("rollouts", step, 0), pick(ROLLOUTS, num_rows, columns), "rollouts", [])
    labelled: list[Manifest] = []
    for judge in ("program", "answer")[: 2 if run.name == f"{NAME}-grpo" else 1]:
        labels = columns | {"judge": judge, "macro_strategy": "root", "status": "ok"}
        key = ArtifactKey(run.name, "labels", step, (("judge", judge),), 0)
        labelled.append(commit(root, key, pick(LABELS, num_rows, labels), "labels", [sampled]))
    scores = columns | {
        "scoring": run.config.scoring_id,
        "objective": run.config.scoring.method,
        "judge": run.config.judge.judge_id,
    }
    scored = commit(root, run.scores_key(step), pick(SCORES, num_rows, scores), "scores", [sampled, labelled[0]])
    update = {"run": run.name, "step": step, "policy_version": step, "num_responses": num_rows, "num_tokens": num_rows,
              "prompts": len(problems), "prompts_with_signal": len(problems), "reward_mean": 0.5}  # fmt: skip
    made = [sampled, labelled[0], scored]
    commit(root, run.key("updates", step), table_of(UPDATES, 1, update), "updates", made)


def pick(schema: pa.Schema, num_rows: int, columns: dict[str, Any]) -> pa.Table:
    """A table of the columns that its schema has."""
    return table_of(schema, num_rows, {name: value for name, value in columns.items() if name in schema.names})


def responses(run: Run, step: int, problems: list[str], num_samples: int) -> dict[str, Any]:
    """Columns of random responses to problems, graded and labelled."""
    rng = np.random.default_rng(step)
    num_rows = len(problems) * num_samples
    degenerate = rng.random(num_rows) < 0.05
    answers = rng.integers(0, 50, num_rows)
    return {
        "run": run.name,
        "step": step,
        "problem_id": [problem for problem in problems for _ in range(num_samples)],
        "sample": np.tile(np.arange(num_samples), len(problems)),
        "prompt_token_ids": rng.integers(3, 15, (num_rows, 6)).tolist(),
        "response": [f"={answer}" for answer in answers],
        "response_token_ids": rng.integers(3, 15, (num_rows, 4)).tolist(),
        "sampler_logprobs": rng.random((num_rows, 4)).astype(np.float32).tolist(),
        "finish_reason": "stop",
        "temperature": 1.0,
        "seed": rng.integers(0, 2**60, num_rows),
        "sampler": "transformers",
        "reward": (rng.random(num_rows) < 0.5).astype(float),
        "parsed_answer": [str(answer) for answer in answers],
        "cluster": pa.array(rng.integers(0, 4, num_rows), pa.int32(), mask=degenerate),
        "degenerate": degenerate,
        "advantage": rng.normal(size=num_rows).round(3),
    }


def measure(arguments: list[str]) -> tuple[float, float, int]:
    """Processor seconds, seconds and exit status of a command."""
    program = Path(sys.executable).with_name("polyepo")
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([program, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, seconds, done.returncode


def main() -> None:
    """Make the store, then run every command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--command", choices=COMMANDS, help="this one alone")
    arguments = parser.parse_args()
    config = load_config(CONFIG)
    for arm in config.arms:
        name = f"{NAME}-{arm}"
        run = create_or_resume(arguments.root, name, config.runs(NAME)[name], Arm(NAME, arm, list(config.arms)))
        make_run(Path(arguments.root), run)
    print(f"{'command':10} {'processor s':>11} {'s':>7} {'exit':>5}")
    os.environ["POLYEPO_ROOT"] = arguments.root
    with tempfile.TemporaryDirectory() as scratch:
        for command, rest in COMMANDS.items():
            if arguments.command in (None, command):
                used, seconds, status = measure([command, *(word.format(scratch=scratch) for word in rest)])
                print(f"{command:10} {used:11.2f} {seconds:7.2f} {status:5}", flush=True)


if __name__ == "__main__":
    main()
