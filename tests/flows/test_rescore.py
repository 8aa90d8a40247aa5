"""Re-scoring and replaying a finished run, through real flows against a real Prefect server."""

import csv
import json
import random
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.views.compare import compare, markdown, render
from polyepo.config import ConfigError, load_judge
from polyepo.judges import AnswerJudge
from polyepo.judges.sheet import response_id
from polyepo.metrics import adjusted_rand_index, rank_correlation
from polyepo.scoring import SetScoring, scoring_id
from tasks.replay import counterfactual, replay_policy
from tasks.runs.choices import choose_scoring, choose_steps, choose_verifier
from tests.support.processes import STEPS, finish, kill_at, start

pytestmark = pytest.mark.slow

ANSWER = "configs/judges/answer.yaml"


def rescore(server, run, **parameters):
    call = f"rescore('run', root={run.store.root!r}, **{parameters!r})"
    return start(server, f"from flows.rescore import rescore; {call}")


def contents(root):
    return {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}


def labels_of(run, judge, step):
    rows = []
    for shard in range(run.config.sampling.shards):
        rows += run.store.read_table(run.labels_key(step, shard, judge)).to_pylist()
    return {(row["problem_id"], row["sample"]): row for row in rows}


def test_a_rescore_killed_twenty_times_labels_everything_once(server, run):
    before = contents(run.store.root)
    generator = random.Random(1)
    manifests = Path(run.store.root) / "runs/run"
    judge = AnswerJudge()
    wanted_scoring = SetScoring(set_size=3)
    new_scoring = scoring_id(wanted_scoring, judge)

    def committed():
        return len(list(manifests.glob("labels/judge=answer/**/manifest.json"))) + len(
            list(manifests.glob(f"scores/scoring={new_scoring}/**/manifest.json"))
        )

    whole = STEPS * (run.config.sampling.shards + 1)
    for point in sorted(generator.sample(range(whole - 20), 20)):
        process = rescore(server, run, judge=ANSWER, set_size=3)
        kill_at(process, committed, point, generator.random() * 0.02)
    middle = contents(manifests)
    output = finish(rescore(server, run, judge=ANSWER, set_size=3))
    assert "adjusted Rand index" in output
    after = contents(run.store.root)
    assert all(after[path] == content for path, content in before.items()), "nothing old is rewritten"
    assert all(after[path] == middle[path] for path in middle if path.name == "manifest.json")
    for step in range(1, STEPS + 1):
        rollouts = [
            (row["problem_id"], row["sample"])
            for shard in range(run.config.sampling.shards)
            for row in run.store.read_table(run.key("rollouts", step, shard), ["problem_id", "sample"]).to_pylist()
        ]
        assert Counter(labels_of(run, judge, step).keys()) == Counter(rollouts)
        scores = run.store.read_table(run.scores_key(step, new_scoring), ["problem_id", "sample"]).to_pylist()
        assert Counter((row["problem_id"], row["sample"]) for row in scores) == Counter(rollouts)
    finish(rescore(server, run, judge=ANSWER, set_size=3))
    assert {path for path in contents(run.store.root) if path.name == "manifest.json"} == {
        path for path in after if path.name == "manifest.json"
    }, "doing it again does nothing"


def test_the_comparison_is_that_of_the_tables(server, run):
    finish(rescore(server, run, judge=ANSWER, steps="1-10"))
    judge = AnswerJudge()
    found = compare(run.store.root, "run", ("program", None), ("answer", None))
    aris, correlations = [], []
    for step in range(1, 11):
        mine, theirs = labels_of(run, run.config.judge, step), labels_of(run, judge, step)
        scores = [
            {(row["problem_id"], row["sample"]): row["advantage"] for row in run.store.read_table(key).to_pylist()}
            for key in (run.scores_key(step), run.scores_key(step, scoring_id(run.config.scoring, judge)))
        ]
        for problem in {key[0] for key in mine}:
            keys = [key for key in mine if key[0] == problem]
            names = [
                [-1 if labels[k]["degenerate"] else labels[k]["cluster"] for k in keys] for labels in (mine, theirs)
            ]
            aris.append(adjusted_rand_index(*names))
            correlations.append(rank_correlation([scores[0][k] for k in keys], [scores[1][k] for k in keys]))
    assert found.labels["prompts"] == len(aris)
    assert found.left_out == 20 * 4
    assert found.labels["ari"] == pytest.approx(np.mean(aris))
    expected = np.array(correlations)
    if not np.isnan(expected).all():
        assert found.scores["rank_correlation"] == pytest.approx(np.nanmean(expected))
    assert found.scores["rewards_changed"] == 0
    assert "adjusted Rand index" in markdown(found)
    assert render(found)
    artifacts = httpx.post(f"{server['PREFECT_API_URL']}/artifacts/latest/filter", json={}).json()
    assert any(artifact["key"] == "run-comparison" and "Rand" in artifact["data"] for artifact in artifacts)


def test_another_verifier_regrades_the_same_texts(server, run):
    """With hidden accepted sets half of the right answers are no longer accepted."""
    finish(rescore(server, run, verifier={"accepted_fraction": 0.5}, steps=[1, 2]))
    verifier = choose_verifier(run, {"accepted_fraction": 0.5})
    new = scoring_id(run.config.scoring, run.config.judge, verifier)
    found = compare(run.store.root, "run", ("program", run.config.scoring_id), ("program", new))
    changed = 0
    for step in (1, 2):
        old_rows, new_rows = (run.store.read_table(run.scores_key(step, s)).to_pylist() for s in (None, new))
        changed += sum(a["reward"] != b["reward"] for a, b in zip(old_rows, new_rows, strict=True))
    assert changed > 0
    assert found.scores["rewards_changed"] == changed
    assert found.regraded
    assert "graded differently" in markdown(found)


@pytest.mark.parametrize(
    ("choose", "said"),
    [
        (lambda run: choose_scoring(run, {"method": "poly"}, None, None), "poly"),
        (lambda run: choose_scoring(run, None, "best", None), "objective"),
        (lambda run: choose_scoring(run, None, None, 5), "set_size (n) 5"),
        (lambda run: choose_steps(run, "1-9999"), "no committed rollouts"),
        (lambda run: choose_steps(run, "one"), "1-50"),
        (lambda run: choose_verifier(run, {"nonsense": 1}), "nonsense"),
        (lambda run: load_judge("configs/judges/none.yaml"), "none.yaml"),
        (lambda run: replay_policy.fn(run.store.root, "run", STEPS + 1), f"steps 1 to {STEPS}"),
        (lambda run: compare(run.store.root, "run", ("program", None), ("nobody", None)), "nobody"),
    ],
)
def test_bad_input_is_refused_with_a_reason(undisturbed, choose, said):
    with pytest.raises(ConfigError) as refused:
        choose(undisturbed)
    assert said in str(refused.value)


def test_replay_is_bit_identical_to_the_checkpoints(undisturbed):
    steps = undisturbed.store.steps("run", "checkpoints")
    for step in random.Random(2).sample([s for s in steps if s], 3):
        found = replay_policy.fn(undisturbed.store.root, "run", step)
        assert found["checkpoint"] is not None
        assert found["weights"] == found["checkpoint"], step


def test_replay_flow_writes_a_model(server, undisturbed, tmp_path):
    target = tmp_path / "policy"
    call = f"replay('run', 5, output={str(target)!r}, root={undisturbed.store.root!r})"
    output = finish(start(server, f"from flows.replay import replay; {call}"))
    assert "no checkpoint" in output
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(target)
    assert start(server, f"from flows.replay import replay; {call}").wait() != 0, "nothing is overwritten"


def test_the_own_scoring_is_the_own_update(run):
    found = counterfactual.fn(run.store.root, "run", 9, run.config.scoring, run.config.judge)
    assert found["cosine"] == pytest.approx(1.0, abs=1e-12)
    assert found["norm_own"] == found["norm_other"]
    assert all(row["change_own"] == row["change_other"] for row in found["clusters"])


def test_a_counterfactual_update(server, run):
    """GRPO pushes every correct response up; the clusters say so."""
    scoring = json.dumps({"method": "grpo"})
    call = f"replay('run', 9, scoring={scoring}, root={run.store.root!r})"
    assert "Cosine similarity" in finish(start(server, f"from flows.replay import replay; {call}"))
    chosen = choose_scoring(run, {"method": "grpo"}, None, None)
    found = counterfactual.fn(run.store.root, "run", 9, chosen, run.config.judge)
    assert -1 <= found["cosine"] < 1
    changes = [(row["advantage_other"], row["change_other"]) for row in found["clusters"] if row["advantage_other"]]
    assert np.corrcoef(*zip(*changes, strict=True))[0, 1] > 0


def test_imported_rollouts_are_rescored_like_any_other(server, tmp_path):
    """With an unequal number of responses per problem; the rewards they came with are compared with ours."""
    path = tmp_path / "dump.jsonl"
    records = [
        {"question": f"{q}+{q}?", "answer": str(2 * q), "response": f"\\boxed{{{a}}}", "reward": float(a in (2 * q, 9))}
        for q in range(1, 5)
        for a in (2 * q, 9, 2 * q, 1)[: q + 1]
    ]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    root = tmp_path / "root"
    found = CliRunner().invoke(app, ["import", str(path), "--run", "dump", "--root", str(root)])
    assert found.exit_code == 0, found.output
    assert "13 responses (13 graded) to 4 problems, 0 malformed rows" in found.output
    code = f"from flows.rescore import rescore; rescore('dump', judge={ANSWER!r}, set_size=2, root={str(root)!r})"
    output = finish(start(server, code))
    # The foreign grader took 9 for an answer to everything; it stood in every group, and is right in none.
    assert "| rewards that change | 4 of 13 |" in output
    exported = CliRunner().invoke(app, ["export", "dump", "-o", str(tmp_path / "out"), "--root", str(root)])
    assert "13 responses" in exported.output, exported.output


def test_labels_by_hand(server, run, tmp_path):
    """A sheet, filled in as the program judge would, is a judge that agrees with it wherever it has labels."""
    path = tmp_path / "sheet.csv"
    found = CliRunner().invoke(
        app, ["judge-sheet", "run", "-o", str(path), "--prompts", "4", "--root", run.store.root], env={"COLUMNS": "400"}
    )
    assert found.exit_code == 0, found.output
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert len({row["problem_id"] for row in rows}) == 4
    strategies = {
        response_id(row["problem_id"], row["response"]): run.config.domain.strategy(
            run.problems[row["problem_id"]], row["response"]
        )
        for step in range(1, STEPS + 1)
        for shard in range(run.config.sampling.shards)
        for row in run.store.read_table(run.key("rollouts", step, shard)).to_pylist()
    }
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            strategy = strategies[row["id"]]
            writer.writerow(row | {"cluster": strategy.micro if strategy else "x"})
    finish(rescore(server, run, judge=str(path.with_suffix(".yaml"))))
    judge = load_judge(path.with_suffix(".yaml"))
    found = compare(run.store.root, "run", ("program", None), (judge.judge_id, None))
    assert found.labels["ari"] == 1
    assert 4 <= found.labels["prompts"] < found.labels["prompts"] + found.left_out
    again = CliRunner().invoke(app, ["judge-sheet", "run", "-o", str(path), "--root", run.store.root])
    assert (again.exit_code, "somebody's labels" in again.output) == (2, True)
