"""The LLM judge as a stage: labels and calls in the store, nothing paid twice, nothing hidden."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from polyepo.clusters import cluster_matrix
from polyepo.config import parse_config
from polyepo.judges.llm import client as client_module
from polyepo.judges.llm.limits import JudgeError
from polyepo.schemas import JUDGE_CALLS, ROLLOUTS, TABLES
from polyepo.testing.judge_server import JudgeServer, clusters_of, completion, error
from storage.catalog import connect
from tasks.judge import judge
from tasks.runs import calls as calls_module
from tasks.runs.labels import MissingLabelsError, commit_labels, estimate_labels, label_rows
from tasks.runs.run import create_or_resume, open_run
from tasks.score import score
from tests.support.config import small_config

CANARY = "sk-canary-0123456789abcdef"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(client_module, "_FIRST_BACKOFF_S", 0.001)
    monkeypatch.setenv("CANARY_KEY", CANARY)
    monkeypatch.setenv("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")


def make_run(root, url, name="run", prompts=4, shards=1, **settings):
    """A run with rollouts of its first step, each response a word and its number."""
    llm = {"name": "llm", "model": "m", "base_url": url, "api_key_env": "CANARY_KEY", **settings}
    raw = small_config(judge=llm, sampling={"prompts_per_step": prompts, "shards": shards})
    run = create_or_resume(str(root), name, parse_config(raw).runs(name)[name])
    for shard in range(shards):
        rows = [
            {
                "run": name, "step": 1, "problem_id": problem.problem_id, "sample": i,
                "prompt_token_ids": [1], "response": f"{word} {problem.problem_id}", "response_token_ids": [1],
                "sampler_logprobs": [0.0], "finish_reason": "stop", "temperature": 1.0, "top_p": 1.0, "seed": i,
                "policy_version": 0, "sampler": "s",
            }
            for problem in run.shard_of_step(1, shard)
            for i, word in enumerate(["add", "double", "add", "square"])
        ]  # fmt: skip
        table = pa.Table.from_pylist(rows, schema=ROLLOUTS)
        provenance = run.provenance(0)
        run.store.commit_table(run.key("rollouts", 1, shard), table, table_name="rollouts", provenance=provenance)
    return run


def forget():
    """What a new process knows: nothing."""
    calls_module._RUN_CALLS.clear()
    open_run.cache_clear()


def rows_of(run, stage):
    return connect(run.store.root).execute(f"SELECT * FROM {stage}").to_arrow_table().to_pylist()


def test_labels_and_calls_are_committed_with_lineage(tmp_path):
    with JudgeServer() as server:
        run = make_run(
            tmp_path, server.url, shards=2, price_per_million_input=1.0, price_per_million_output=1.0, max_cost=1.0
        )
        for shard in range(2):
            judge.fn(run.store.root, "run", 1, shard)
    labels = rows_of(run, "labels")
    assert len(labels) == 16
    assert {(row["sample"], row["cluster"], row["macro_strategy"]) for row in labels} == {
        (0, 0, "add"), (1, 1, "double"), (2, 0, "add"), (3, 2, "square"),
    }  # fmt: skip
    assert {row["judge"] for row in labels} == {run.config.judge.judge_id}
    assert all(row["rationale"] == "so it seems" and row["truncated"] is False for row in labels)
    calls = rows_of(run, "judge_calls")
    assert Counter(row["problem_id"] for row in calls) == {p.problem_id: 1 for p in run.problems_of_step(1)}
    assert all(json.loads(row["raw_reply"])["responses"] for row in calls)
    parents = [parent.path for parent in run.store.manifest(run.labels_key(1, 1)).parents]
    assert [path.split("/")[2] for path in parents] == ["rollouts", "judge_calls"]
    score.fn(run.store.root, "run", 1)
    (cost,) = connect(run.store.root).execute("FROM judge_cost()").to_arrow_table().to_pylist()
    assert (cost["calls"], cost["problems"], cost["cost"]) == (4, 4, pytest.approx(4 * 150e-6))


def test_a_shard_that_failed_pays_only_for_the_rest(tmp_path):
    def behave(number, body):
        return error(401, f"bad key {CANARY}") if number == 7 else completion(clusters_of(body))

    with JudgeServer(behave) as server:
        run = make_run(tmp_path, server.url, prompts=12, concurrency=1)
        with pytest.raises(JudgeError, match="refuses the API key"):
            judge.fn(run.store.root, "run", 1, 0)
        assert not run.store.exists(run.labels_key(1, 0))
        forget()
        judge.fn(run.store.root, "run", 1, 0)
        assert len(server.bodies) == 13
        calls = rows_of(run, "judge_calls")
        assert Counter(row["error"] is None for row in calls) == {True: 12, False: 1}
        judge.fn(run.store.root, "run", 1, 0)
        assert len(server.bodies) == 13
    for path in Path(tmp_path).rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path


def test_max_cost_counts_what_earlier_processes_spent(tmp_path):
    settings = {"price_per_million_input": 0, "price_per_million_output": 1000, "max_cost": 0.5, "max_tokens": 100}
    with JudgeServer() as server:
        run = make_run(tmp_path, server.url, prompts=12, **settings)
        for _ in range(2):
            with pytest.raises(JudgeError, match="max_cost"):
                judge.fn(run.store.root, "run", 1, 0)
            assert 0.4 <= sum(row["cost"] for row in rows_of(run, "judge_calls")) <= 0.5
            forget()
        assert len(server.bodies) <= 10


def test_answers_are_shared_between_runs_only_if_asked(tmp_path):
    with JudgeServer() as server:
        for name, settings, expected in (
            ("first", {}, 4), ("second", {}, 8), ("third", {"reuse_calls": "root"}, 8),
            ("fourth", {"reuse_calls": "root", "max_missing_rate": 0.5}, 8),
        ):  # fmt: skip
            run = make_run(tmp_path, server.url, name=name, **settings)
            judge.fn(run.store.root, name, 1, 0)
            assert len(server.bodies) == expected
    labels = rows_of(run, "labels")
    assert len(labels) == 64
    assert len({row["judge"] for row in labels}) == 1


def test_an_estimate_is_of_what_is_left_and_asks_nothing(tmp_path):
    with JudgeServer() as server:
        prices = {"price_per_million_input": 1.0, "price_per_million_output": 1.0}
        run = make_run(tmp_path, server.url, shards=2, **prices)
        before = estimate_labels(run, run.config.judge, [1])
        assert (before.calls, server.bodies) == (4, [])
        assert before.cost == pytest.approx((before.prompt_tokens + before.completion_tokens) / 1e6)
        judge.fn(run.store.root, "run", 1, 0)
        assert estimate_labels(run, run.config.judge, [1]).calls == 2
        judge.fn(run.store.root, "run", 1, 1)
        assert estimate_labels(run, run.config.judge, [1]).calls == 0


def test_a_store_that_fails_stops_the_spending(tmp_path, monkeypatch):
    monkeypatch.setattr(calls_module, "_FIRST_COMMIT_S", 0.01)

    def slow(number, body):
        answer = completion(clusters_of(body))
        answer.delay_s = 0.05
        return answer

    with JudgeServer(slow) as server:
        run = make_run(tmp_path, server.url, prompts=12, concurrency=1)
        commit, full = type(run.store).commit_table, OSError("disk full")

        def fail(store, key, *args, **options):
            if key.stage == "judge_calls":
                raise full
            return commit(store, key, *args, **options)

        monkeypatch.setattr(type(run.store), "commit_table", fail)
        with pytest.raises(OSError, match="disk full"):
            judge.fn(run.store.root, "run", 1, 0)
        assert len(server.bodies) < 12


def test_two_processes_on_one_shard_keep_both_their_calls(tmp_path):
    with JudgeServer() as server:
        run = make_run(tmp_path, server.url)
        first = calls_module.ShardCalls(run, run.config.judge, 1, 0)
        second = calls_module.ShardCalls(run, run.config.judge, 1, 0)
        for log, request in ((first, "a"), (second, "b")):
            log.record(calls_module.Call("p", 0, request, "{}", "stop", 1, 1, 1.0, None, None))
            log.close()
    assert sorted(row["request_sha256"] for row in rows_of(run, "judge_calls")) == ["a", "b"]


@pytest.mark.parametrize(
    "garbage",
    [
        completion("I would rather not sort them."),
        completion('{"responses": [{"id": "bcdf"', finish_reason="length"),
        completion(None),
        completion(None, refusal="I cannot help with that"),
        completion("", finish_reason="content_filter"),
    ],
)
@pytest.mark.parametrize("new_process", [False, True])
def test_what_gave_no_labels_is_asked_again_by_the_same_command(tmp_path, garbage, new_process):
    state = {"broken": True}
    with JudgeServer(lambda n, b: garbage if state["broken"] else completion(clusters_of(b))) as server:
        run = make_run(tmp_path, server.url)
        for _ in range(2):  # as often as it is tried in vain
            before = len(server.bodies)
            with pytest.raises(MissingLabelsError, match="the same command asks again for what failed"):
                commit_labels(run, run.config.judge, 1, 0)
            assert len(server.bodies) > before
        state["broken"] = False
        if new_process:
            forget()
        commit_labels(run, run.config.judge, 1, 0)
        calls = rows_of(run, "judge_calls")
        assert Counter(row["error"] is None for row in calls)[True] == 4
        assert all(row["raw_reply"] is not None for row in calls), "attempts are kept"
        assert len(calls) == len(server.bodies)
    assert {(row["cluster"], row["status"]) for row in rows_of(run, "labels")} == {(0, "ok"), (1, "ok"), (2, "ok")}


def test_a_reply_that_was_mended_by_asking_is_bought_once(tmp_path):
    """The first reply gave no labels, but what came of it did: a new process asks for neither again."""

    def behave(number, body):
        return completion("hm") if len(body["messages"]) == 2 else completion(clusters_of(body))

    with JudgeServer(behave) as server:
        run = make_run(tmp_path, server.url)
        with calls_module.kept_calls(run, run.config.judge, 1, 0) as calls:
            rows = run.store.read_table(run.key("rollouts", 1, 0)).to_pylist()
            first = label_rows(run, run.config.judge, rows, calls)
        forget()
        with calls_module.kept_calls(run, run.config.judge, 1, 0) as calls:
            assert label_rows(run, run.config.judge, rows, calls) == first
        assert estimate_labels(run, run.config.judge, [1]).calls == 0
    assert len(server.bodies) == 8
    assert {row["status"] for row in first} == {"repaired"}


def test_stores_of_earlier_versions_kept_unreadable_replies_as_answers(tmp_path, monkeypatch):
    """Their tables have no cost_bound either."""
    with JudgeServer() as server:
        run = make_run(tmp_path, server.url, price_per_million_input=1.0, price_per_million_output=1.0)
        with calls_module.kept_calls(run, run.config.judge, 1, 0) as calls:
            rows = run.store.read_table(run.key("rollouts", 1, 0)).to_pylist()
            label_rows(run, run.config.judge, rows, calls)
        (key,) = calls.keys
        rows = run.store.read_table(key).to_pylist()
        rows[2]["raw_reply"], rows[3]["raw_reply"] = "garbage", None
        schema = JUDGE_CALLS.remove(JUDGE_CALLS.get_field_index("cost_bound"))
        other = make_run(tmp_path / "old", server.url, price_per_million_input=1.0, price_per_million_output=1.0)
        with monkeypatch.context() as earlier:
            earlier.setitem(TABLES, "judge_calls", schema)
            other.store.commit_table(
                key, pa.Table.from_pylist(rows, schema=schema), table_name="judge_calls", provenance=other.provenance(0)
            )
        forget()
        assert estimate_labels(other, other.config.judge, [1]).calls == 2
        commit_labels(other, other.config.judge, 1, 0)
    assert len(server.bodies) == 6
    assert {row["status"] for row in rows_of(other, "labels")} == {"ok"}


@pytest.mark.parametrize(
    "answer", [lambda body: completion(clusters_of(body), usage=None), lambda body: error(500, "perhaps it was billed")]
)
def test_max_cost_holds_across_processes_where_no_cost_is_known(tmp_path, answer):
    settings = {
        "price_per_million_input": 0, "price_per_million_output": 1000, "max_cost": 0.55, "max_tokens": 100,
        "max_retries": 0, "max_consecutive_failures": 100, "concurrency": 1,
    }  # fmt: skip
    with JudgeServer(lambda n, body: answer(body)) as server:
        run = make_run(tmp_path, server.url, prompts=12, **settings)
        for _ in range(3):
            with pytest.raises(JudgeError, match=r"max_cost 0\.55 is reached: 0\.5000 is spent"):
                judge.fn(run.store.root, "run", 1, 0)
            forget()
    assert len(server.bodies) == 5
    rows = rows_of(run, "judge_calls")
    assert {(row["cost"], row["cost_bound"]) for row in rows} == {(None, 0.1)}, "what is not known is no number"


MISSING = [
    {"cluster": 0, "degenerate": False, "status": "ok"},
    {"cluster": None, "degenerate": False, "status": "parse_failed"},
    {"cluster": None, "degenerate": True, "status": "ok"},
    {"cluster": None, "degenerate": False, "status": "http_failed"},
]
OK = [{"cluster": c, "degenerate": False, "status": "ok"} for c in (0, 0, 1, 2)]


def test_missing_labels_drop_the_prompt_or_stand_alone():
    clusters, labelled = cluster_matrix(MISSING + OK, 4)
    assert labelled.tolist() == [False, True]
    clusters, labelled = cluster_matrix(MISSING + OK, 4, "singleton")
    assert labelled.tolist() == [True, True]
    np.testing.assert_array_equal(clusters[1], [0, 0, 1, 2])
    assert clusters[0, 2] == -1
    assert len({0, clusters[0, 1], clusters[0, 3]}) == 3


def test_too_many_missing_labels_stop_the_run(tmp_path):
    """The limit is for the step: one failed prompt of four passes 0.25, the second does not, and is asked for again."""
    state = {"broken": True}

    def behave(number, body):
        return error(400) if state["broken"] else completion(clusters_of(body))

    with JudgeServer(behave) as server:
        run = make_run(tmp_path, server.url, shards=4, max_missing_rate=0.25)
        commit_labels(run, run.config.judge, 1, 2)
        with pytest.raises(MissingLabelsError, match=r"step 1: 8 of 16 .*8 http_failed.*0.25 allows"):
            commit_labels(run, run.config.judge, 1, 0)
        assert not run.store.exists(run.labels_key(1, 0))
        state["broken"] = False
        for shard in range(4):
            commit_labels(run, run.config.judge, 1, shard)
    score.fn(run.store.root, "run", 1)
    rows = run.store.read_table(run.scores_key(1)).to_pylist()
    assert sum(row["cluster"] is None for row in rows) == 4


@pytest.mark.parametrize("missing", ["drop_prompt", "singleton"])
def test_a_prompt_without_labels_is_scored_as_configured(tmp_path, missing):
    with JudgeServer(lambda n, b: error(400) if n == 0 else completion(clusters_of(b))) as server:
        run = make_run(tmp_path, server.url, concurrency=1, missing=missing, max_missing_rate=0.25)
        judge.fn(run.store.root, "run", 1, 0)
    score.fn(run.store.root, "run", 1)
    rows = run.store.read_table(run.scores_key(1)).to_pylist()
    failed = run.problems_of_step(1)[0].problem_id
    assert {row["problem_id"] for row in rows if row["cluster"] is None} == {failed}
    assert not any(row["degenerate"] for row in rows)
    assert {row["status"] for row in rows_of(run, "labels") if row["problem_id"] == failed} == {"http_failed"}


JUDGE_ONE_SHARD = """
import sys
from tasks.runs.labels import commit_labels
from tasks.runs.run import open_run
run = open_run(sys.argv[1], "run")
commit_labels(run, run.config.judge, 1, 0)
"""


@pytest.mark.slow
def test_a_killed_shard_pays_again_only_for_what_was_under_way(tmp_path):
    def slow(number, body):
        answer = completion(clusters_of(body))
        answer.delay_s = 0.25
        return answer

    with JudgeServer(slow) as server:
        run = make_run(tmp_path, server.url, prompts=16, concurrency=1)
        child = subprocess.Popen(
            [sys.executable, "-c", JUDGE_ONE_SHARD, str(tmp_path)], env={**os.environ, "PYTHONPATH": os.getcwd()}
        )
        stage = Path(tmp_path) / "runs/run/judge_calls"
        for _ in range(600):
            if list(stage.rglob("manifest.json")):
                break
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        child.wait()
        committed = {row["request_sha256"] for row in rows_of(run, "judge_calls")}
        assert 0 < len(committed) < 16
        before = len(server.bodies)
        forget()
        commit_labels(run, run.config.judge, 1, 0)
        assert len(server.bodies) - before == 16 - len(committed), "what was committed was not asked again"
    assert len(rows_of(run, "labels")) == 64
    assert Counter(row["request_sha256"] for row in rows_of(run, "judge_calls")).most_common(1)[0][1] == 1
