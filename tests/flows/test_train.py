"""The flow against a real Prefect server: run, killed twenty times, cancelled, resumed; the result is the same run."""

import random
import re
from pathlib import Path

import httpx
import pytest
import yaml

from flows.views.summary import markdown, summarize
from tasks.runs.run import open_run
from tests.support.config import small_config
from tests.support.processes import STEPS, finish, kill_at, start, start_flow
from tests.support.runs import final_weights, tables
from tests.tasks.test_curves import points_of, read

pytestmark = pytest.mark.slow


def ended(config, run, root):
    """Code that runs the flow and prints the name of its last state."""
    return (
        f"from flows.train import train; state = train({str(config)!r}, run={run!r}, root={str(root)!r}, "
        "return_state=True); print('ended as', state.name)"
    )


def num_manifests(root):
    return sum(1 for _ in Path(root).rglob("manifest.json"))


def test_a_run_killed_twenty_times_is_the_same_run(server, config, undisturbed, tmp_path):
    generator = random.Random(0)
    # Twenty points of the run; some are passed before the process before is gone, and are then before any work.
    whole = num_manifests(undisturbed.store.root)
    for point in sorted(generator.sample(range(whole - 20), 20)):
        process = start_flow(server, config, tmp_path)
        kill_at(process, lambda: num_manifests(tmp_path), point, generator.random() * 0.05)
    committed = {path: path.read_bytes() for path in tmp_path.rglob("manifest.json")}
    finish(start_flow(server, config, tmp_path))
    for path, content in committed.items():
        assert path.read_bytes() == content, "what is committed is never done again"
    run = open_run(str(tmp_path), "run")
    assert final_weights(run) == final_weights(undisturbed)
    mine, theirs = tables(run, STEPS), tables(undisturbed, STEPS)
    assert mine.keys() == theirs.keys()
    for path, table in mine.items():
        assert table.equals(theirs[path]), path


def test_the_prefect_ui_has_table_progress_and_link(server, undisturbed):
    # The killed runs of the same name left progress artifacts of their own: the UI shows the latest of a key.
    found = httpx.post(f"{server['PREFECT_API_URL']}/artifacts/latest/filter", json={}).json()
    by_key = {artifact["key"]: artifact for artifact in found}
    assert by_key["run-progress"]["type"] == "progress"
    assert by_key["run-progress"]["data"] == 100
    assert by_key["run-steps"]["type"] == "table"
    assert "pass@1" in by_key["run-summary"]["data"]
    # A browser opens no file:// address that a page of the server links: the path is there to be copied.
    path = re.search(r"`(/[^`]+/reports/run/[0-9a-f]{12}\.html)`", by_key["run-report"]["data"])
    assert path, by_key["run-report"]
    assert "<h1>run</h1>" in Path(path.group(1)).read_text()


def test_a_finished_run_is_left_as_it_is(server, config, undisturbed):
    root = undisturbed.store.root
    before = {p: p.stat().st_mtime_ns for p in Path(root).rglob("*") if p.is_file()}
    finish(start_flow(server, config, root))
    assert {p: p.stat().st_mtime_ns for p in Path(root).rglob("*") if p.is_file()} == before


def test_summary_has_the_base_model_and_the_run(undisturbed):
    summary = summarize(undisturbed.store.root, "run")
    assert [row.policy for row in summary.rows] == ["base model", "run"]
    assert all(0 <= value <= 1 for row in summary.rows for value in row.pass_at.values())
    assert markdown(summary).count("\n") == 5


def test_another_configuration_is_refused_before_any_work(server, config, undisturbed, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(config.read_text().replace("lr: 0.001", "lr: 0.002"))
    output = finish(start(server, ended(other, "run", undisturbed.store.root)))
    assert "ended as Refused" in output
    assert "update.lr: 0.001 -> 0.002" in output
    assert 'File "' not in output


def test_what_fails_while_it_works_is_told_without_a_stack(server, tmp_path):
    """In a shard's task, in the arm's flow and in the one that was asked for: the message, and that it may go on."""
    dead = {"name": "llm", "model": "m", "base_url": "http://127.0.0.1:9/v1", "max_retries": 0}
    config = tmp_path / "dead.yaml"
    config.write_text(yaml.safe_dump(small_config(judge=dead | {"max_consecutive_failures": 2}, evaluation=None)))
    output = finish(start(server, ended(config, "dead", tmp_path / "root")))
    assert "ended as Failed" in output
    assert "the judge failed on 2 prompts in a row" in output
    assert 'File "' not in output


def test_a_run_that_learns_nothing_says_so_in_log_progress_and_summary(server, tmp_path):
    config = tmp_path / "lost.yaml"
    config.write_text(
        yaml.safe_dump(
            small_config(sampling={"max_response_tokens": 2}, scoring={"set_size": 3}, metrics=["tensorboard"])
        )
    )
    code = f"from flows.train import train; train({str(config)!r}, run='lost', root={str(tmp_path / 'root')!r})"
    output = finish(start(server, code))
    [said] = [line for line in output.splitlines() if "WARNING" in line and "lost: scoring.set_size 3 of" in line]
    assert "raise sampling.num_responses to 6" in said
    assert output.index(said) < output.index("lost: 0 of "), "before it starts"
    warned = [line for line in output.splitlines() if "WARNING" in line and "lost: 0 of " in line]
    assert len(warned) == 1  # when it was found, not at every step
    assert read(tmp_path / "root" / "tensorboard" / "lost") == points_of(str(tmp_path / "root"), "lost")
    assert "sampling.max_response_tokens 2 is too short" in warned[0]
    found = httpx.post(f"{server['PREFECT_API_URL']}/artifacts/latest/filter", json={}).json()
    by_key = {artifact["key"]: artifact for artifact in found}
    assert "✗ 0 of 24 prompts had a gradient in all 6 steps, so nothing was learnt" in by_key["lost-summary"]["data"]
