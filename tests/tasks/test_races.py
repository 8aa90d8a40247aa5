"""Several processes at one run: whoever comes second takes what is there, and nothing is left out or there twice."""

import json
import subprocess
import sys
import threading
from itertools import permutations
from pathlib import Path

import pyarrow as pa
import pytest

from flows.views.results import markdown, results
from flows.views.summary import markdown as summary_markdown
from flows.views.summary import summarize
from polyepo.config import ConfigError, parse_config
from polyepo.judges import AnswerJudge, ProgramJudge
from polyepo.schemas import EVALS
from storage import connect, rows
from tasks.judge import judge
from tasks.runs.benchmarks import heldout
from tasks.runs.evaluating import commit_samples, evaluate_missing
from tasks.runs.evaluations import HELDOUT, missing_samples, parts, plan_evaluation, read_evaluation, shard_key
from tasks.sample import sample
from tasks.score import score
from tests.support.config import small_config
from tests.support.runs import start


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr("tasks.runs.evaluations.SAMPLES_PER_SHARD", 4)


def small(**changes):
    return parse_config(small_config(**changes)).runs("run")["run"]


RACER = """
import hashlib, json, sys, time
from pathlib import Path
import torch
from storage.store import Store
from tasks.runs import policies
from tasks.runs.run import open_run
import tasks.update

root, me, other, nudge = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
commit, apply = Store.commit_table, tasks.update.apply_update

def commit_when_both_are_here(self, key, table, **more):
    if key.stage == "updates":
        me.touch()  # both have their update, and neither is committed
        while not other.exists() or (nudge and not Path(root, key.path, "manifest.json").exists()):
            time.sleep(0.01)
    return commit(self, key, table, **more)

def apply_otherwise(run, policy, step):
    measured = apply(run, policy, step)
    with torch.no_grad():  # as another kind of device would
        next(policy.policy.model.parameters()).add_(nudge)
    return measured

Store.commit_table, tasks.update.apply_update = commit_when_both_are_here, apply_otherwise
tasks.update.update.fn(root, "run", 1)
weights = policies.policy_at(open_run(root, "run"), 1).policy.model.state_dict()
print(hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest())
"""


def test_who_loses_the_race_for_an_update_takes_the_winners_weights(tmp_path):
    """Two processes make the same update; one of them makes other weights, and commits after the other."""
    root = tmp_path / "root"
    run = start(str(root))
    sample.fn(str(root), "run", 1, 0)
    judge.fn(str(root), "run", 1, 0)
    score.fn(str(root), "run", 1)
    first, second = tmp_path / "first", tmp_path / "second"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(root), str(mine), str(theirs), nudge],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )
        for mine, theirs, nudge in ((first, second, "0"), (second, first, "0.25"))
    ]  # fmt: skip
    found = [racer.communicate(timeout=300) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], found
    assert len(found[0][0].strip()) == 64
    assert found[0][0] == found[1][0]
    assert run.store.steps("run", "updates") == [1]


def test_the_loser_drops_its_own_weights(tmp_path, monkeypatch):
    """The row of another process lands between an update and its commit."""
    import tasks.update
    from tasks.runs import policies

    root = str(tmp_path)
    run = start(root)
    sample.fn(root, "run", 1, 0)
    judge.fn(root, "run", 1, 0)
    score.fn(root, "run", 1)
    commit, apply = type(run.store).commit_table, tasks.update.apply_update
    spoilt = []

    def apply_otherwise(run, policy, step):
        measured = apply(run, policy, step)
        spoilt.append(policy)
        return measured

    def lose(self, key, table, **more):
        if key.stage == "updates":
            row = table.to_pylist()[0]
            theirs = table.from_pylist([{**row, "seconds_update": row["seconds_update"] + 1}], schema=table.schema)
            commit(self, key, theirs, **more)
        return commit(self, key, table, **more)

    monkeypatch.setattr(tasks.update, "apply_update", apply_otherwise)
    monkeypatch.setattr(type(run.store), "commit_table", lose)
    tasks.update.update.fn(root, "run", 1)
    assert policies.policy_at(run, 1) is not spoilt[0]
    monkeypatch.setattr(type(run.store), "commit_table", commit)
    for stage in (sample.fn, judge.fn):
        stage(root, "run", 2, 0)
    score.fn(root, "run", 2)
    tasks.update.update.fn(root, "run", 2)
    assert policies.policy_at(run, 2) is spoilt[1], "who wins keeps them"


def evaluations_of(run, benchmark=HELDOUT):
    found = read_evaluation(run, benchmark, 0, EVALS.names)
    return [(row["problem_id"], row["sample"]) for row in found], found


@pytest.mark.parametrize("order", sorted(set(permutations((0, 0, 1, 1, 2))))[::3])
def test_evaluations_of_different_sizes_leave_no_hole(tmp_path, order):
    """Steps of three evaluations in any order, each with the plan it made before the others committed anything."""
    run = start(str(tmp_path))
    sizes, plans = (10, 6, 3), {}
    for who in order:
        # What is planned may be stale by the time it is committed.
        numbers = plans.pop(who, None) or next(iter(missing_samples(run, HELDOUT, 0, sizes[who])), None)
        for other in range(3):
            ahead = missing_samples(run, HELDOUT, 0, sizes[other])
            if other != who and ahead:
                plans.setdefault(other, ahead[0])
        if numbers:
            commit_samples(run, heldout(run), 0, numbers, ProgramJudge())
    for size in sizes:
        evaluate_missing(run, heldout(run), 0, size, ProgramJudge())
    keys, found = evaluations_of(run)
    assert keys == [(problem.problem_id, i) for problem in heldout(run).problems for i in range(10)]
    for problem in heldout(run).problems:
        group = [row for row in found if row["problem_id"] == problem.problem_id]
        strategies = {(row["macro_strategy"], row["micro_strategy"]) for row in group if row["cluster"] is not None}
        pairs = {(row["cluster"], row["macro_strategy"], row["micro_strategy"]) for row in group
                 if row["cluster"] is not None}  # fmt: skip
        assert len(pairs) == len(strategies), "one number for each strategy, whoever labelled it"


def test_two_at_once_in_threads(tmp_path):
    run = start(str(tmp_path))
    evaluate_missing(run, heldout(run), 0, 1, ProgramJudge())  # the policy is loaded
    failures = []

    def evaluate(size):
        try:
            evaluate_missing(run, heldout(run), 0, size, ProgramJudge())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=evaluate, args=(size,)) for size in (11, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    keys, _ = evaluations_of(run)
    assert keys == [(problem.problem_id, i) for problem in heldout(run).problems for i in range(11)]


def test_a_hole_that_an_older_version_left_is_filled(tmp_path):
    run, whole = start(str(tmp_path / "a")), start(str(tmp_path / "b"))
    evaluate_missing(whole, heldout(whole), 0, 12, ProgramJudge())
    _, found = evaluations_of(whole)
    for shard, numbers in ((0, range(4)), (1, range(4, 6)), (2, range(8, 12))):
        table = [row for row in found if row["sample"] in numbers]
        run.store.commit_table(run.key("evals", 0, shard, benchmark=HELDOUT), pa.Table.from_pylist(table, schema=EVALS),
                               table_name="evals", provenance=run.provenance(0))  # fmt: skip
    assert missing_samples(run, HELDOUT, 0, 14) == [range(6, 8), range(12, 14)]
    evaluate_missing(run, heldout(run), 0, 14, ProgramJudge())
    assert evaluations_of(run)[0] == [(p.problem_id, i) for p in heldout(run).problems for i in range(14)]
    progress = rows(connect(run.store.root), "FROM evaluation_progress()")[0]
    assert (progress["fewest_samples"], progress["most_samples"], progress["complete"]) == (14, 14, True)


def test_judges_are_not_mixed(tmp_path):
    run = start(str(tmp_path))
    ahead = missing_samples(run, HELDOUT, 0, 8)
    commit_samples(run, heldout(run), 0, ahead[0], ProgramJudge())
    # Planned before the other judge labelled anything.
    assert commit_samples(run, heldout(run), 0, ahead[0], AnswerJudge()) == shard_key(run, HELDOUT, 0, 0)
    with pytest.raises(ConfigError, match="judge 'program' labelled it so far"):
        commit_samples(run, heldout(run), 0, ahead[1], AnswerJudge())
    assert len(parts(run, HELDOUT, 0)) == 1


def test_an_unfinished_evaluation_says_how_much_of_it_is_there(tmp_path):
    run = start(str(tmp_path), small(evaluation={"num_samples": 64, "k": [1, 8, 64]}))
    problems = len(heldout(run).problems)
    plan_evaluation(run, heldout(run), 0, 64)
    for _ in range(2):
        commit_samples(run, heldout(run), 0, missing_samples(run, HELDOUT, 0, 64)[0], ProgramJudge())
    found = results(run, HELDOUT, 0)
    assert (found.num_problems, found.num_samples, found.asked) == (problems, 8, (problems, 64))
    assert f"{problems} problems × 8 samples of {problems} × 64: not finished" in markdown(found)
    summary = summarize(str(tmp_path), "run")
    text = summary_markdown(summary)
    assert f"{problems} of {problems} problems and 8 of 64 samples each" in text
    assert summary.rows[0].pass_at[64] is None
    assert summary.rows[0].pass_at[8] == pytest.approx(found.by_k[8]["pass@k"][0])
    progress = rows(connect(str(tmp_path)), "FROM evaluation_progress()")[0]
    assert json.loads(json.dumps(progress)) == {
        "run": "run", "benchmark": "heldout", "step": 0, "problems": problems, "of_problems": problems,
        "fewest_samples": 8, "most_samples": 8, "of_samples": 64, "complete": False, "ungraded": 0,
    }  # fmt: skip
    for k in (1, 8):
        assert rows(connect(str(tmp_path)), f"FROM pass_at_k({k})")[0]["pass_at_k"] == pytest.approx(
            summary.rows[0].pass_at[k]
        )
    assert rows(connect(str(tmp_path)), "FROM pass_at_k(64)") == []


def test_what_was_asked_for_and_is_not_begun_is_there_too(tmp_path):
    run = start(str(tmp_path))
    plan_evaluation(run, heldout(run), 0, 16)
    progress = rows(connect(str(tmp_path)), "FROM evaluation_progress()")[0]
    assert (progress["problems"], progress["of_samples"], progress["complete"]) == (0, 16, False)
