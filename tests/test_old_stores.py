"""Stores that earlier versions wrote: opened, queried, summarized, reported on, exported, extended and resumed.

Each archive is made by tests/data/make_store.py at the version's own commit.
"""

import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.views.compare import compare
from flows.views.export import export_run
from flows.views.report import assemble, write_report
from flows.views.results import results
from flows.views.runs import runs_table
from flows.views.show import show_prompt
from flows.views.summary import markdown, summarize
from polyepo.judges import AnswerJudge
from polyepo.schemas import SCHEMA_VERSION
from storage import connect, rows
from storage.catalog import queries
from storage.verify import verify_run
from tasks.evaluate import evaluate
from tasks.runs.benchmarks import open_benchmark
from tasks.runs.evaluating import evaluate_missing
from tasks.runs.evaluations import HELDOUT, read_evaluation
from tasks.runs.policies import policy_at
from tasks.runs.run import create_or_resume, open_run
from tests.data.make_store import STEPS, arms
from tests.support.runs import forget, train

ARCHIVES = sorted((Path(__file__).parent / "data").glob("store-v*.tar.xz"))
RUNS = ["graded", "old-grpo", "old-poly", "rewardless"]


@pytest.fixture(params=ARCHIVES, ids=lambda archive: archive.name.split(".")[0])
def root(request, tmp_path):
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    forget()
    yield str(tmp_path / "store")
    forget()


def content(root):
    return {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file() and "reports" not in path.parts}


def test_there_is_one():
    assert ARCHIVES
    assert all(archive.stat().st_size < 300_000 for archive in ARCHIVES)


def test_every_view_and_query_answers(root):
    connection = connect(root)
    assert [row["run"] for row in rows(connection, "SELECT run FROM runs ORDER BY run")] == RUNS
    for view in ("problems", "rollouts", "labels", "scores", "updates", "evals", "graded", "sampled", "strategies"):
        assert rows(connection, f"SELECT count(*) AS n FROM {view}")[0]["n"] > 0, view
    arguments = {
        "pass_at_k": "1", "div_at_k": "1", "maj_at_k": "1", "cover_at_tau": "0.5",
        "judge_agreement": "'program', 'answer'", "agreement_by_prompt": "'program', 'answer'",
        "scoring_agreement": "'imported', 'imported'", "regraded": "'imported', 'imported'",
        "strategy_clusters": "'old-grpo', 1, 'p'", "strategy_changes": "'old-grpo', 1, 'old-grpo', 2",
    }  # fmt: skip
    for name in queries().keys() - {"views"}:
        rows(connection, f"FROM {name}({arguments.get(name, '')})")
    # Answers went by their text, and still do; what was imported without being read is unknown.
    found = rows(connection, "SELECT scoring, maj_at_k FROM maj_at_k(4) WHERE run = 'graded' ORDER BY scoring")
    assert [row["scoring"].split("-")[0] for row in found] == ["poly_epo"]
    progress = rows(connection, "FROM evaluation_progress() WHERE run = 'old-grpo'")
    assert {(r["benchmark"], r["step"]): (r["problems"], r["of_problems"], r["of_samples"]) for r in progress} == {
        ("heldout", 0): (4, 4, 4), ("heldout", 2): (4, 4, 4), ("sums", 0): (3, 3, None),
    }  # fmt: skip


def test_every_view_for_people_shows_it(root, tmp_path):
    before = content(root)
    assert runs_table(root, width=200).row_count == len(RUNS)
    found = summarize(root, "old")
    assert [row.policy for row in found.rows] == ["base model", "poly", "grpo"]
    assert "not finished" not in markdown(found)
    assert results(open_run(root, "old-grpo"), HELDOUT, 2).num_samples == 4
    report = assemble(root, ["old"])
    assert report.policies
    assert write_report(root, RUNS, tmp_path / "report.html") > 10_000
    assert compare(root, "old-grpo", ("program", None), ("answer", None)).labels
    show_prompt(root, "old-grpo", None, None)
    assert not [finding for run in RUNS for finding in verify_run(open_run(root, run).store, run)]
    assert content(root) == before


def test_a_benchmark_with_the_ids_of_the_run_doubles_nothing(root, tmp_path):
    ids = {row["problem_id"] for row in rows(connect(root), "FROM problems WHERE split = 'sums'")}
    assert ids & {row["problem_id"] for row in rows(connect(root), "FROM rollouts WHERE run = 'old-grpo'")}
    for run in RUNS:
        num_rows = rows(connect(root), "SELECT count(*) AS n FROM rollouts WHERE run = $run", run=run)[0]["n"]
        assert export_run(root, run, tmp_path / run, "parquet", None) == num_rows
    exported = pq.read_table(tmp_path / "old-grpo" / "data" / "rollouts.parquet").to_pylist()
    assert {row["domain"] for row in exported} == {"polynomial"}
    texts = {(key.benchmark, key.problem_id): text for key, text in assemble(root, ["old-grpo"]).problems.items()}
    for problem_id in ids:
        assert "+ 1" in texts["sums", problem_id]
        assert texts.get(("train", problem_id)) not in (None, texts["sums", problem_id])


def test_an_evaluation_is_extended_in_the_old_way_of_counting_answers(root):
    run = open_run(root, "old-grpo")
    before = content(root)
    columns = ["cluster", "answer_class", "parsed_answer"]
    old = read_evaluation(run, "sums", 0, columns)
    evaluate_missing(run, open_benchmark(run, "sums"), 0, 7, AnswerJudge())
    found = read_evaluation(run, "sums", 0, columns)
    assert [row for row in found if row["sample"] < 4] == old
    assert sorted({row["sample"] for row in found}) == list(range(7))
    # Texts and numbers are not mixed: classes of a part would say less than the texts of all.
    assert {row["answer_class"] for row in found} == {None}
    assert all(path.read_bytes() == data for path, data in before.items())


def test_it_is_resumed_to_its_end(root):
    before = content(root)
    for name, config in arms().items():
        run = create_or_resume(root, name, config)
        assert policy_at(run, STEPS).version == STEPS
        train(run)
        evaluate.fn(root, name, config.steps)
        row = run.store.read_table(run.key("updates", config.steps)).to_pylist()[0]
        assert row["ungraded_rate"] == 0
        versions = json.loads((Path(root) / run.key("updates", config.steps).path / "manifest.json").read_text())
        assert versions["schema_version"] == SCHEMA_VERSION
    assert all(path.read_bytes() == data for path, data in before.items())
    assert {row.step for row in summarize(root, "old").rows} == {0, 4}
    assert assemble(root, ["old"]).policies
    steps = rows(connect(root), "SELECT run, count(*) AS n FROM coverage() WHERE benchmark = 'train' "
                 "AND starts_with(run, 'old') AND scoring IN (SELECT scoring FROM runs) GROUP BY run")  # fmt: skip
    assert {row["n"] for row in steps} == {4}
