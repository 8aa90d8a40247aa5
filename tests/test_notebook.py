"""The notebook of the examples, run from its first cell to its last, against SQL."""

import json
import shutil
from collections import Counter
from pathlib import Path

import nbclient
import nbformat
import pytest

from polyepo.config import parse_config
from polyepo.judges import AnswerJudge
from storage import connect, rows
from tasks.evaluate import evaluate
from tasks.runs.groups import Arm
from tasks.runs.labels import commit_labels
from tasks.runs.run import open_run
from tests.support.config import ARMS, small_config
from tests.support.runs import start, train

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook.ipynb"
STEPS = 2
SAID = """
print(json.dumps({
    "run": RUN,
    "curves": curves.to_dict("records"),
    "measured": {run: frame.reset_index().to_dict("records") for run, frame in measured.items()},
    "ways": {problem: int((row > 0).sum()) for problem, row in by_problem.iterrows()},
    "agreement": agreement.to_dict("records"),
}))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two arms, trained and evaluated."""
    root = str(tmp_path_factory.mktemp("notebook") / "artifacts")
    config = parse_config(small_config(steps=STEPS, evaluation={"num_samples": 8, "k": [1, 8]}) | {"arms": ARMS})
    for label, (name, run_config) in zip(config.arms, config.runs("small").items(), strict=True):
        run = start(root, run_config, name, Arm("small", label, list(config.arms)))
        train(run)
        evaluate.fn(root, name, STEPS)
    return root


@pytest.fixture(scope="module")
def said(root):
    """What the notebook made of them; it may not write to the store."""
    before = {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}
    folder = Path(root).parent / "examples"
    folder.mkdir()
    shutil.copy(NOTEBOOK, folder)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(SAID))
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute()
    assert {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()} == before
    pictures = [o for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 3
    return json.loads(notebook.cells[-1].outputs[-1].text)


def test_it_is_committed_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_curves_are_the_queries(root, said):
    connection = connect(root)
    rewards = rows(connection, "SELECT run, step, avg(reward) AS reward FROM scores GROUP BY ALL ORDER BY ALL")
    assert [(row["run"], row["step"]) for row in said["curves"]] == [(row["run"], row["step"]) for row in rewards]
    assert [row["reward"] for row in said["curves"]] == pytest.approx([row["reward"] for row in rewards])
    expected = Counter()
    sql = "SELECT DISTINCT run, step, problem_id, cluster FROM scores WHERE reward > 0.5 AND NOT degenerate"
    for row in rows(connection, sql):
        expected[row["run"], row["step"]] += 1 / 4  # prompts per step
    assert {(row["run"], row["step"]): row["distinct_successful"] for row in said["curves"]} == {
        (row["run"], row["step"]): expected[row["run"], row["step"]] for row in rewards
    }


def test_pass_at_k_and_distinct_strategies_are_the_queries(root, said):
    connection = connect(root)
    assert set(said["measured"]) == {"small-grpo", "small-poly"}
    for run, found in said["measured"].items():
        assert [row["index"] for row in found] == [1, 2, 4, 8]
        for row in found:
            for column, query in (("pass@k", "pass_at_k"), ("div@k", "div_at_k")):
                sql = f"SELECT {query} AS value FROM {query}({row['index']}) WHERE run = $run AND benchmark = 'heldout'"
                (expected,) = rows(connection, sql, run=run)
                assert row[column] == pytest.approx(expected["value"])


def test_strategies_are_those_of_each_problem(root, said):
    sql = """SELECT problem_id, count(DISTINCT cluster) AS n FROM evals
             WHERE run = $run AND reward > 0.5 AND NOT degenerate GROUP BY ALL"""
    found = rows(connect(root), sql, run=said["run"])
    assert said["ways"] == {row["problem_id"]: row["n"] for row in found}


def test_the_other_judge_is_the_one_that_rescoring_would_commit(root, said):
    commit_labels(open_run(root, said["run"]), AnswerJudge(), STEPS, 0)
    sql = "FROM agreement_by_prompt('program', 'answer') WHERE run = $run AND step = $step ORDER BY problem_id"
    found = rows(connect(root), sql, run=said["run"], step=STEPS)
    assert len(found) == 4
    assert [row["problem_id"] for row in said["agreement"]] == [row["problem_id"] for row in found]
    for mine, theirs in zip(said["agreement"], found, strict=True):
        pairs = {"ARI": "ari", "pairs alike": "pair_agreement", "clusters": "clusters_a",
                 "clusters of the other": "clusters_b"}  # fmt: skip
        assert {name: mine[name] for name in pairs} == pytest.approx({n: theirs[c] for n, c in pairs.items()})
