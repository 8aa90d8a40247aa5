"""The examples: what their files promise."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from polyepo import plugins
from polyepo.config import load_config
from polyepo.domains import Problem, Ungraded
from polyepo.imports import Columns
from polyepo.integrations.method import Method
from polyepo.judges import Group
from tasks.runs.imports import import_rollouts
from tests.support.byte_model import save_byte_model
from tests.support.runs import start, train

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _nothing_provided(monkeypatch):
    monkeypatch.setattr(plugins, "_provided", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(EXAMPLES.parent)


def module(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_naming():
    domain = load_config(EXAMPLES / "naming" / "naming.yaml").domain
    train_kinds, held_out = ({p.problem_id for p in domain.problems(s)} for s in ("train", "heldout"))
    assert held_out
    assert not train_kinds & held_out
    fruit = next(p for p in domain.problems("heldout") if p.problem_id == "a fruit")
    for response, name in (("Apple", "apple"), ("I like bananas.", "banana"), ("A car", None), ("", None)):
        assert domain.verify(fruit, response) == (float(name is not None), name, None)
        assert (domain.strategy(fruit, response) is None) == (name is None)


@pytest.mark.parametrize(
    ("code", "reward"),
    [
        ("def double(n): return 2 * n", 1.0),
        ("Here:\n```python\ndef double(n):\n    return sum([n, n])\n```\nIt adds.", 1.0),
        ("def double(n): return n * n", 2 / 3),
        ("def double(n): return double(n)", 0.0),
        ("while True: pass", 0.0),
        ("x = 'a' * 10**10\ndef double(n): return 2 * n", 0.0),
        ("open('f', 'w').write('x' * 10**6)\ndef double(n): return 2 * n", 0.0),
        ("import socket\nsocket.create_connection(('127.0.0.1', 9))\ndef double(n): return 2 * n", 0.0),
        ("import sys\nsys.stdout.write('[[4], [0], [-6]]')\nsys.exit()", 0.0),
        ("not python", 0.0),
    ],
)
def test_unit_tests_of_generated_functions(code, reward):
    verifier = module(EXAMPLES / "own_verifier" / "unit_tests.py")
    problem = Problem(
        problem_id="double", domain="dataset", prompt="x",
        metadata={"function": "double", "tests": [[[2], 4], [[0], 0], [[-3], -6]]},
    )  # fmt: skip
    assert verifier.score(problem, code) == pytest.approx(reward)


def test_strategies_of_generated_functions():
    verifier = module(EXAMPLES / "own_verifier" / "unit_tests.py")
    problem = Problem(problem_id="f", domain="dataset", prompt="x", metadata={"function": "f", "tests": []})
    texts = ["def f(n): return f(n - 1)", "def f(n):\n  for i in n: pass", "def f(n): return [i for i in n]",
             "def f(n): return max(n)", "def f(n): return n", "def g(n): return n", "no"]  # fmt: skip
    found = [verifier.strategy(problem, text) for text in texts]
    assert len(set(found[:5])) == 5
    assert found[5:] == [None, None]


def test_the_verifiers_configuration_grades_through_the_worker_processes():
    config = load_config(EXAMPLES / "own_verifier" / "unit_tests.yaml")
    problem = next(p for s in ("train", "heldout") for p in config.domain.problems(s) if p.problem_id == "double")
    assert problem.prompt[0]["content"].startswith("Write a Python function double(n)")
    found = config.domain.verify_batch([problem] * 2, ["def double(n): return n + n", "no"])
    assert [verdict.reward for verdict in found] == [1.0, 0.0]


def test_the_objective_trains(tmp_path):
    """Two steps, and the objective itself against a plain count."""
    own = module(EXAMPLES / "own_objective" / "objective.py").distinct_successful
    rng = np.random.default_rng(0)
    rewards, clusters = rng.integers(0, 2, (50, 4)).astype(float), rng.integers(-1, 3, (50, 4))
    plain = [len({c for r, c in zip(rs, cs, strict=True) if r > 0.5 and c >= 0}) / 4
             for rs, cs in zip(rewards, clusters, strict=True)]  # fmt: skip
    np.testing.assert_array_equal(own(rewards, clusters), plain)
    settings = {"steps": 2, "policy.warm_start.steps": 20, "evaluation": None}
    config = load_config(EXAMPLES / "own_objective" / "objective.yaml", settings).runs("own")["own-own"]
    run = start(str(tmp_path), config, "own")
    train(run)
    objectives = run.store.read_table(run.scores_key(2), ["objective"])["objective"].unique().to_pylist()
    assert objectives == ["objective.py:distinct_successful"]


def test_the_script_with_trl(tmp_path):
    """A step with a tiny model, and its rollouts as a run."""
    pytest.importorskip("trl", reason="needs TRL: pip install 'poly-epo[trl]'")
    model = save_byte_model(tmp_path / "model")
    command = [sys.executable, str(EXAMPLES / "trl" / "train.py"), "--model", model, "--steps", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "out" / "rollouts").glob("*.jsonl"))
    found = import_rollouts(str(tmp_path), files, "auto", Columns(), Ungraded(), "run", strict=True)
    assert (found.num_responses, found.num_problems, found.steps) == (64, 8, [1])


def test_the_task_for_verl(tmp_path):
    """Its data hold what the reward function and the judge's domain need of a problem."""
    task = module(EXAMPLES / "verl" / "task.py")
    task.write(tmp_path)
    kinds = {}
    for split in ("train", "heldout"):
        for row in pq.read_table(tmp_path / f"{split}.parquet").to_pylist():
            assert row["prompt"][-1]["content"].startswith("Name ")
            kinds[row["extra_info"]["problem_id"]] = row
    fruit = kinds["a fruit"]
    answer = fruit["reward_model"]["ground_truth"]
    for response, reward in (("Bananas!", 1.0), ("a car", 0.0)):
        assert task.compute_score(fruit["data_source"], response, answer, fruit["extra_info"]) == reward
    method = Method.load(EXAMPLES / "verl" / "method.yaml")
    responses = ["banana", "the bananas", "apple", "car"]
    group = method.group(fruit["prompt"], answer, fruit["extra_info"], responses)
    assert [label.cluster for label in method.label([group])[0]] == [0, 0, 1, None]


def test_the_judge_labels():
    config = load_config(EXAMPLES / "own_judge" / "judge.yaml")
    problem = config.domain.problems("train")[0]
    (labels,) = config.judge.label(config.domain, [Group(problem, ["2 4 5", "2 4 6", "3 9 1", ""])])
    assert [label.cluster for label in labels] == [0, 0, 1, None]
