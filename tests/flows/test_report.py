"""The report of real runs: its numbers are the store's, by the SQL that it shows."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import s3fs
from typer.testing import CliRunner

from flows.cli import app
from flows.views.report import assemble, publish_report, write_report
from polyepo.config import ConfigError, parse_config
from polyepo.judges import AnswerJudge
from polyepo.metrics import branching, distinct_successful_strategies, pass_at_k
from polyepo.objectives import DEGENERATE
from polyepo.report.page import render
from polyepo.schemas import EVALS, LABELS
from storage import connect, open_store
from tasks.evaluate import evaluate
from tasks.runs.evaluations import evaluation_due, read_evaluation
from tasks.runs.groups import Arm
from tasks.runs.labels import commit_labels
from tests.support.config import small_config
from tests.support.pages import payload
from tests.support.runs import start, train

STEPS = 5


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two arms that share a warm start, evaluated three times, labelled by a second judge."""
    root = str(tmp_path_factory.mktemp("store"))
    arms = {"arms": {"grpo": {"scoring": {"method": "grpo"}}, "set": {}}}
    config = parse_config(small_config(steps=STEPS, evaluation={"num_samples": 8, "k": [1, 8], "every": 3}) | arms)
    for label, (name, run_config) in zip(config.arms, config.runs("small").items(), strict=True):
        run = start(root, run_config, name, Arm("small", label, list(config.arms)))
        for step in range(STEPS + 1):
            if step:
                train(run, step)
                commit_labels(run, AnswerJudge(), step, 0)
            if evaluation_due(run, step):
                evaluate.fn(root, name, step)
    return root


@pytest.fixture(scope="module")
def report(root):
    return assemble(root, ["small"])


def test_curves_are_the_stores(root, report):
    store = open_store(root)
    from tasks.runs.run import open_run

    for label in ("grpo", "set"):
        run = open_run(root, f"small-{label}")
        for step in range(1, STEPS + 1):
            rows = store.read_table(run.scores_key(step)).to_pylist()
            clusters = [DEGENERATE if row["degenerate"] else row["cluster"] for row in rows]
            rewards_PN = np.reshape([row["reward"] for row in rows], (-1, 4))
            expected = {
                "reward_mean": rewards_PN.mean(),
                "distinct_successful": distinct_successful_strategies(rewards_PN, np.reshape(clusters, (-1, 4))).mean(),
            }
            for name, value in expected.items():
                line = next(s for f in report.figures if f.id == name for s in f.series if s.policy == label)
                assert line.y[line.x.index(step)] == pytest.approx(value)


def test_held_out_figures_against_a_plain_computation(root, report):
    from tasks.runs.run import open_run

    run = open_run(root, "small-set")
    rows = read_evaluation(run, "heldout", STEPS, EVALS.names)
    correct = np.reshape([row["reward"] > 0.5 for row in rows], (-1, 8)).sum(1)
    line = next(s for f in report.figures if f.id == "pass-heldout" for s in f.series if s.policy == "set")
    assert line.x == [1, 2, 4, 8]
    np.testing.assert_allclose(line.y, [pass_at_k(8, correct, k).mean() for k in (1, 2, 4, 8)])
    assert all(low <= y <= high for low, y, high in zip(line.low, line.y, line.high, strict=True))
    alive = [branching([r["response_token_ids"] for r in rows[i : i + 8]])[0] for i in range(0, len(rows), 8)]
    line = next(s for f in report.figures if f.id == "branching-heldout" for s in f.series if s.policy == "set")
    np.testing.assert_allclose(line.y[0], np.mean([a[0] for a in alive]))
    assert [policy.label for policy in report.policies] == ["base", "grpo", "set"]  # one base: both arms share it


def test_the_sql_shown_runs_as_it_is_and_gives_the_curves(root, report):
    connection = connect(root)
    for figure in report.figures:
        rows = connection.execute(figure.sql).fetchall()
        assert rows, figure.id
        if figure.section in ("learning", "exploring"):
            found = {(run.removeprefix("small-"), step): value for run, step, value in rows}
            shown = {(s.policy, x): y for s in figure.series for x, y in zip(s.x, s.y, strict=True)}
            assert found == pytest.approx(shown)
    for sql in [report.policies_sql, *report.sql.values()]:
        assert connection.execute(sql).fetchall()


def test_the_browser_holds_every_prompt_with_its_responses(root, report):
    store = open_store(root)
    from tasks.runs.run import open_run

    run = open_run(root, "small-grpo")
    rows = store.read_table(run.key("rollouts", 2, 0)).to_pylist()
    scores = {(r["problem_id"], r["sample"]): r for r in store.read_table(run.scores_key(2)).to_pylist()}
    for problem_id in {row["problem_id"] for row in rows}:
        prompt = next(
            p for p in report.prompts if (p.run, p.benchmark, p.step, p.problem_id) == (0, "train", 2, problem_id)
        )
        expected = [row for row in rows if row["problem_id"] == problem_id]
        assert [r.text for r in prompt.responses] == [row["response"] for row in expected]
        assert [r.advantage for r in prompt.responses] == [scores[problem_id, i]["advantage"] for i in range(4)]
        assert len(prompt.others["answer"]) == 4
    assert len(report.prompts) == 2 * (STEPS * 4 + 3 * len(run.split("heldout")))
    assert report.coverage_note.startswith("All ")
    strategies = sum(n for p in report.histories.values() for _, b, _, _, n, _ in p if b == "train")
    labelled = connect(root).execute("SELECT count(*) FROM scores WHERE NOT degenerate").fetchone()
    assert labelled == (strategies,)


def test_a_report_is_published_once_for_one_content(root):
    first = publish_report(root, "small", ["small-grpo", "small-set"])
    assert publish_report(root, "small", ["small-grpo", "small-set"]) == first
    assert len(open_store(root).files.names("reports/small")) == 1
    assert first.startswith("file:///")


def test_the_command(root, tmp_path):
    output = tmp_path / "new" / "page.html"
    result = CliRunner().invoke(app, ["report", "small-set", "-o", str(output), "--root", root])
    assert result.exit_code == 0, result.output
    assert output.as_uri() in result.output
    page = payload(output.read_text())
    assert [run["name"] for run in page["runs"]] == ["small-set"]
    refused = CliRunner().invoke(app, ["report", "nothing", "--root", root])
    assert refused.exit_code == 2
    assert "'nothing' does not exist" in refused.output


def test_a_run_without_a_step_has_no_report(tmp_path):
    start(str(tmp_path))
    with pytest.raises(ConfigError, match="no step and no evaluation"):
        write_report(str(tmp_path), ["run"], tmp_path / "page.html")


def test_a_run_that_is_going_on_without_an_evaluation_has_one(tmp_path):
    config = parse_config(small_config(evaluation=None)).runs("run")["run"]
    run = start(str(tmp_path / "store"), config)
    train(run, 2)
    report = assemble(str(tmp_path / "store"), ["run"])
    assert str(report.findings[0]) == "run is not finished: 2 of 6 steps are here."
    assert not report.policies
    assert len(report.prompts) == 2 * 4
    write_report(str(tmp_path / "store"), ["run"], tmp_path / "page.html")


def test_labels_that_failed_are_shown_as_such(tmp_path):
    run = start(str(tmp_path))
    train(run, 1)
    rows = run.store.read_table(run.labels_key(1, 0)).to_pylist()
    broken = [row | {"judge": "other", "cluster": None, "status": "parse_failed"} for row in rows]
    key = run.key("labels", 1, 0, judge="other")
    table = pa.Table.from_pylist(broken, schema=LABELS)
    run.store.commit_table(key, table, table_name="labels", provenance=run.provenance(0))
    report = assemble(str(tmp_path), ["run"])
    assert all(p.others["other"] in ([None] * 4, [DEGENERATE] * 4) or None in p.others["other"] for p in report.prompts)
    assert json.loads(report.runs[0].config)["steps"] == 6


@pytest.mark.slow
def test_a_root_on_object_storage_has_the_same_report(root, report, s3, tmp_path):
    remote = f"{s3}/{tmp_path.name}"
    files = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"])
    for path in Path(root).rglob("*"):
        if path.is_file():
            files.put_file(str(path), f"{remote}/{path.relative_to(root)}")
    assert render(assemble(remote, ["small"])).replace(remote, root) == render(report)
    url = publish_report(remote, "small", ["small"])
    assert files.exists(url)
    shown = CliRunner().invoke(app, ["watch", "small", "--root", remote])
    assert shown.exit_code == 0, shown.output
    assert shown.output.count(f"{STEPS}/{STEPS}") == 2
