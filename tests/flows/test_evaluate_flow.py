"""poly-epo/evaluate against a real Prefect server: extended, killed, resumed, refused."""

import time
from pathlib import Path

import pytest

from polyepo.config import ConfigError
from polyepo.schemas import EVALS
from tasks.runs.benchmarks import heldout
from tasks.runs.evaluations import HELDOUT, read_evaluation
from tasks.runs.requests import check_evaluation
from tests.support.processes import STEPS, finish, start

pytestmark = pytest.mark.slow


def evaluate(server, of, **parameters):
    return start(server, f"from flows.evaluate import evaluate; evaluate(root={of.store.root!r}, **{parameters!r})")


def test_a_killed_evaluation_goes_on_and_draws_nothing_twice(server, run):
    evals = Path(run.store.root) / f"runs/run/evals/benchmark=heldout/step={STEPS:06d}"
    before = {path: path.read_bytes() for path in evals.rglob("*") if path.is_file()}
    process = evaluate(server, run, run="run", num_samples=52)
    while len(list(evals.rglob("manifest.json"))) < 3 and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    middle = {path: path.read_bytes() for path in evals.rglob("*") if path.is_file()}
    output = finish(evaluate(server, run, run="run", num_samples=52))
    assert "52 samples" in output
    assert "| 52 | " in output
    assert all(path.read_bytes() == content for path, content in (before | middle).items())
    rows = read_evaluation(run, HELDOUT, STEPS, EVALS.names)
    assert [(row["problem_id"], row["sample"]) for row in rows] == [
        (problem.problem_id, i) for problem in heldout(run).problems for i in range(52)
    ]
    manifests = set(evals.rglob("manifest.json"))
    finish(evaluate(server, run, run="run", num_samples=20))
    assert set(evals.rglob("manifest.json")) == manifests, "there are more samples than asked for"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, "give one of run"),
        ({"run": "run", "num_samples": 0}, "num_samples 0 must be at least 1"),
        ({"run": "run", "benchmark": "nowhere.jsonl"}, "must be 'heldout'"),
        ({"run": "run", "step": 99}, "step 99 of run 'run' must lie between 0 and 30"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sampled(undisturbed, parameters, said):
    asked = {"run": None, "model": None, "step": None, "benchmark": "heldout", "num_samples": 4, "judge": None,
             "config": None, "settings": None}  # fmt: skip
    with pytest.raises(ConfigError, match=said):
        check_evaluation(undisturbed.store.root, **(asked | parameters))
