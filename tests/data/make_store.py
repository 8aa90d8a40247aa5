"""Make a small store of all kinds of artifacts, to be kept as an archive of what this version writes.

    python -m tests.data.make_store tests/data/store-vN.tar.xz

Run it at the commit whose stores are to stay readable; tests/test_old_stores.py opens every archive there is.
"""

import json
import sys
import tarfile
import tempfile
from pathlib import Path

from polyepo.config import Config
from polyepo.domains import Maths
from polyepo.imports import Columns
from polyepo.judges import AnswerJudge
from polyepo.scoring import GRPOScoring
from tasks.checkpoint import checkpoint, warm_start
from tasks.evaluate import evaluate
from tasks.judge import judge
from tasks.runs.evaluating import add_benchmark, evaluate_missing
from tasks.runs.evaluations import evaluation_due
from tasks.runs.imports import import_rollouts
from tasks.runs.labels import commit_labels
from tasks.runs.models import warm_start_digest
from tasks.runs.run import checkpoint_due, create_or_resume, open_run
from tasks.runs.scores import commit_scores
from tasks.sample import sample
from tasks.score import score
from tasks.update import update
from tests.support.config import small_config

STEPS = 3
"""Of 4 that the runs are configured for, so that they can be resumed."""


def arms():
    """Two arms of a tiny configuration."""
    model = {"steps": 250, "hidden_size": 16, "num_heads": 2, "num_layers": 1, "intermediate_size": 32}
    config = small_config(
        steps=4,
        policy={"warm_start": model},
        sampling={"shards": 2, "max_prompt_tokens": 64},
        evaluation={"num_samples": 4, "k": [1, 4], "every": 2, "max_problems": 6},
        checkpoint_every=1,
        arms={"poly": {}, "grpo": {"scoring": {"method": "grpo"}}},
    )
    return Config.model_validate(config).runs("old")


def train(root, name, config):
    """Train an arm, but not to its end."""
    warm_start.fn(root, config, warm_start_digest(config))
    run = create_or_resume(root, name, config)
    for step in range(STEPS + 1):
        for shard in range(config.sampling.shards if step else 0):
            sample.fn(root, name, step, shard)
            judge.fn(root, name, step, shard)
        if step:
            score.fn(root, name, step)
            update.fn(root, name, step)
        if checkpoint_due(run, step) and step == STEPS:
            checkpoint.fn(root, name, step)
        if evaluation_due(run, step):
            evaluate.fn(root, name, step)
    return run


def make(root, folder):
    """A store with two unfinished arms, one of them scored and evaluated in other ways too, and two imports."""
    for name, config in arms().items():
        run = train(root, name, config)
    # A benchmark whose problems have the ids of the run's own.
    ids = [problem.problem_id for problem in run.split("train")[:3]]
    (folder / "sums.jsonl").write_text(
        "".join(json.dumps({"id": ids[i], "problem": f"{i} + 1", "answer": str(i + 1)}) + "\n" for i in range(3))
    )
    benchmark = add_benchmark(run, str(folder / "sums.jsonl"), 0)
    for num_samples in (2, 4):
        evaluate_missing(run, benchmark, 0, num_samples, AnswerJudge())
    for step in range(1, STEPS + 1):
        for shard in range(run.config.sampling.shards):
            commit_labels(run, AnswerJudge(), step, shard)
        commit_scores(run, GRPOScoring(method="grpo"), AnswerJudge(), step)
    rows = [("1/2", 1), ("0.5", 1), ("1/2", 1), ("7", 0)]
    (folder / "graded.jsonl").write_text(
        "".join(
            json.dumps({"problem": "Half of 1?", "answer": "1/2", "response": f"\\boxed{{{a}}}", "reward": r}) + "\n"
            for a, r in rows
        )
    )
    for name, map_ in (("graded", []), ("rewardless", ["reward="])):
        files = [folder / "graded.jsonl"]
        import_rollouts(root, files, "auto", Columns.parse(map_), Maths(path="graded.jsonl"), name, True)
    graded = open_run(root, "graded")
    commit_labels(graded, AnswerJudge(), 1, 0)
    commit_scores(graded, graded.config.scoring, AnswerJudge(), 1)


def main(archive):
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "store"
        make(str(root), Path(scratch))
        with tarfile.open(archive, "w:xz") as tar:
            tar.add(root, "store", filter=lambda entry: None if "/.probe" in entry.name else entry)


if __name__ == "__main__":
    main(sys.argv[1])
