"""Stages on a real store, without Prefect: what is committed, resumed, refused and rebuilt."""

import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch

from polyepo.advantages import marginal_set_advantages
from polyepo.config import ConfigError, parse_config
from polyepo.domains import Polynomial, Verdict
from polyepo.policy.checkpoint import load_checkpoint
from polyepo.schemas import EVALS
from storage import StoreError, connect, open_store, rows
from tasks.evaluate import evaluate
from tasks.judge import judge
from tasks.runs import policies as policies
from tasks.runs.choices import choose_scoring
from tasks.runs.evaluations import read_evaluation
from tasks.runs.policies import ReplayError, policy_at
from tasks.runs.run import RunExistsError, create_or_resume
from tasks.runs.scores import commit_scores, score_table
from tasks.runs.statistics import read_updates
from tasks.sample import sample
from tasks.score import score
from tasks.update import update
from tests.support.config import small_config
from tests.support.runs import final_weights, forget, start, tables, train


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = start(str(tmp_path_factory.mktemp("undisturbed")))
    train(run)
    return run


def test_every_stage_is_committed_with_its_lineage(undisturbed):
    run = undisturbed
    scores = run.store.manifest(run.scores_key(2))
    assert {p.path for p in scores.parents} == {run.key("rollouts", 2, 0).path, run.labels_key(2, 0).path}
    row = run.store.read_table(run.key("updates", 6)).to_pylist()[0]
    assert row["policy_version"] == 6
    assert row["num_responses"] == 16
    assert row["logprob_mismatch_max"] < 1e-4
    assert row["checkpoint"] == run.key("checkpoints", 6).path
    signal = ("with_signal", "all_wrong", "one_cluster", "unlabelled", "other_zero")
    assert sum(row[f"prompts_{reason}"] for reason in signal) == row["prompts"] == 4
    assert row["prompts_with_signal"] > 0, "the other tests would show nothing"
    assert run.store.steps(run.name, "checkpoints") == [4, 6]
    advantages = run.store.read_table(run.scores_key(1))["advantage"].to_numpy().reshape(4, 4)
    np.testing.assert_allclose(advantages.sum(1), 0, atol=1e-12)


@pytest.mark.parametrize("stopped_after", [1, 3, 4, 5])
def test_a_run_that_is_resumed_is_the_same_run(undisturbed, tmp_path, stopped_after):
    run = start(str(tmp_path))
    train(run, until=stopped_after)
    forget()
    sample.fn(run.store.root, run.name, stopped_after + 1, 0)  # stopped between two stages
    forget()
    train(run)
    assert final_weights(run) == final_weights(undisturbed)
    mine, theirs = tables(run, 6), tables(undisturbed, 6)
    assert mine.keys() == theirs.keys()
    for path, table in mine.items():
        assert table.equals(theirs[path]), path


def test_any_step_is_rebuilt_bit_for_bit(undisturbed):
    run = undisturbed
    live = {}
    for step in (6, 5, 3, 4, 2):
        forget()
        live[step] = [p.detach().clone() for p in policy_at(run, step).policy.model.parameters()]
    forget()
    saved = load_checkpoint(run.store.local_files(run.key("checkpoints", 4)), run.config.policy, run.config.update)
    assert all(torch.equal(a, b) for a, b in zip(live[4], saved.model.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(live[5], live[6], strict=True))


def test_shards_change_no_seed(undisturbed, tmp_path):
    config = parse_config(small_config(sampling={"shards": 3})).runs("run")["run"]
    run = start(str(tmp_path), config)
    train(run, until=1)
    sharded = [row for s in range(3) for row in run.store.read_table(run.key("rollouts", 1, s)).to_pylist()]
    whole = undisturbed.store.read_table(undisturbed.key("rollouts", 1, 0)).to_pylist()
    same = ("problem_id", "sample", "seed", "response_token_ids")
    assert [[row[k] for k in same] for row in sharded] == [[row[k] for k in same] for row in whole]
    assert len({row["seed"] for row in whole}) == len(whole)


def test_evaluation_is_of_held_out_problems(undisturbed):
    run = undisturbed
    evaluate.fn(run.store.root, run.name, 0)
    rows = read_evaluation(run, "heldout", 0, EVALS.names)
    held_out = {p.problem_id for p in run.split("heldout")}
    assert {row["problem_id"] for row in rows} == held_out
    assert not held_out & {p.problem_id for step in range(1, 7) for p in run.problems_of_step(step)}
    assert len(rows) == 4 * len(held_out)


def test_epochs_see_every_problem_once(undisturbed):
    run = undisturbed
    steps = len(run.split("train")) // 4
    seen = [p.problem_id for step in range(1, steps + 1) for p in run.problems_of_step(step)]
    assert len(seen) == len(set(seen)) == 4 * steps


def test_another_configuration_is_refused(undisturbed):
    other = parse_config(small_config(update={"lr": 0.5})).runs("run")["run"]
    with pytest.raises(RunExistsError, match=r"update\.lr: 0\.001 -> 0\.5"):
        create_or_resume(undisturbed.store.root, "run", other)


def test_a_replay_that_differs_is_refused(undisturbed, monkeypatch):
    forget()
    monkeypatch.setattr(policies, "training_batch", lambda run, step, scoring_id=None: _scaled(real(run, step)))
    with pytest.raises(ReplayError, match="step 5"):
        policy_at(undisturbed, 5)
    forget()


@pytest.mark.parametrize(("factor", "refused"), [(1, False), (1.0000001, False), (1.5, True)])
def test_other_code_may_round_otherwise_and_no_more(undisturbed, monkeypatch, caplog, factor, refused):
    """Exactly the same is asked of the same code alone; what is off is said, with both versions if it is too much."""
    forget()
    monkeypatch.setattr(policies, "training_batch", lambda run, step, scoring_id=None: _scaled(real(run, step), factor))
    monkeypatch.setattr(policies, "code_version", lambda: "0.9+another")
    if refused:
        message = (
            r"step 5: .* off by .*; 0.01 of it is allowed, as it was made by other code.* and now by 0\.9\+another\."
        )
        with pytest.raises(ReplayError, match=message):
            policy_at(undisturbed, 5)
    else:
        assert policy_at(undisturbed, 5).version == 5
        assert ("not bit for bit what the run recorded" in caplog.text) == (factor != 1)
    forget()


def test_deterministic_kernels_change_nothing_on_the_cpu(undisturbed, tmp_path):
    config = parse_config(small_config(policy={"deterministic": True})).runs("run")["run"]
    assert config.digest != undisturbed.config.digest
    run = start(str(tmp_path), config)
    train(run, until=1)
    assert torch.are_deterministic_algorithms_enabled()
    rows = [r.store.read_table(r.key("updates", 1), ["loss", "grad_norm"]).to_pylist() for r in (run, undisturbed)]
    assert rows[0] == rows[1]
    forget()
    policy_at(undisturbed, 0)
    assert not torch.are_deterministic_algorithms_enabled(), "another run has its own"
    forget()


real = policies.training_batch


def _scaled(batch, factor=1.0000001):
    return dataclasses.replace(batch, advantages=batch.advantages * factor)


def test_prompts_over_the_limit_are_named(tmp_path):
    config = parse_config(small_config(sampling={"max_prompt_tokens": 3})).runs("run")["run"]
    with pytest.raises(ConfigError, match=r"prompt of problem 'polynomial:.*' has 4 tokens.*max_prompt_tokens 3"):
        start(str(tmp_path), config)


def test_more_prompts_than_problems_are_refused(tmp_path):
    config = parse_config(small_config(sampling={"prompts_per_step": 999})).runs("run")["run"]
    with pytest.raises(ConfigError, match="prompts_per_step 999 must not exceed the 16 training problems"):
        create_or_resume(str(tmp_path), "run", config)
    assert open_store(str(tmp_path)).runs() == []


@pytest.mark.parametrize(("ids", "message"), [(["a", "a"], "'a' occurs 4 times"), (["", "b"], "empty problem_id")])
def test_bad_problem_ids_are_refused(tmp_path, monkeypatch, ids, message):
    def problems(self, split):
        found = original(self, split)
        return [p.model_copy(update={"problem_id": i}) for p, i in zip(found, ids, strict=False)] + found[2:]

    original = Polynomial.problems
    monkeypatch.setattr(Polynomial, "problems", problems)
    with pytest.raises(ConfigError, match=message):
        create_or_resume(str(tmp_path), "run", parse_config(small_config()).runs("run")["run"])


def test_long_responses_lose_reward_before_sets_are_scored(tmp_path):
    """By hand: nothing up to 4 of 8 tokens, then linearly to 2; and saved rollouts are scored the same later."""
    scoring = {"method": "poly_epo", "set_size": 2, "overlong_penalty": {"buffer_tokens": 4, "factor": 2.0}}
    hot = {"temperature": 2.0}  # so that lengths differ
    run = start(str(tmp_path / "a"), parse_config(small_config(scoring=scoring, sampling=hot)).runs("run")["run"])
    train(run, until=1)
    lengths = {
        (row["problem_id"], row["sample"]): len(row["response_token_ids"])
        for row in run.store.read_table(run.key("rollouts", 1, 0)).to_pylist()
    }
    rows = run.store.read_table(run.scores_key(1)).to_pylist()
    for row in rows:
        assert row["overlong_penalty"] == 2 * max(0, lengths[(row["problem_id"], row["sample"])] - 4) / 4
        assert row["reward"] in (0.0, 1.0), "what the verifier says stays"
    assert len({row["overlong_penalty"] for row in rows}) > 1
    rewards = np.array([row["reward"] - row["overlong_penalty"] for row in rows]).reshape(4, 4)
    clusters = np.array([-1 if row["degenerate"] else row["cluster"] for row in rows]).reshape(4, 4)
    expected = marginal_set_advantages(rewards, clusters, 2, num_sets=6)  # every set, one by one
    np.testing.assert_allclose([row["advantage"] for row in rows], expected.ravel(), atol=1e-12)
    plain = start(str(tmp_path / "b"), parse_config(small_config(sampling=hot)).runs("run")["run"])
    train(plain, until=1)
    assert plain.store.read_table(plain.scores_key(1))["overlong_penalty"].null_count == len(rows)
    later = commit_scores(plain, choose_scoring(plain, scoring, None, None), plain.config.judge, 1)
    assert plain.store.read_table(later).to_pylist() == rows
    with pytest.raises(ConfigError, match=r"buffer_tokens 9 must not exceed sampling\.max_response_tokens 8"):
        choose_scoring(plain, {"method": "grpo", "overlong_penalty": {"buffer_tokens": 9}}, None, None)


def test_a_scoring_knows_how_likely_responses_were(undisturbed):
    """beta = 1 and four responses: the rank-th least likely right one is worth (4 - rank) / 4; then standardized."""
    run = undisturbed
    scoring = choose_scoring(run, {"method": "unlikeliness", "beta": 1.0}, None, None)
    sampled = run.store.read_table(run.key("rollouts", 1, 0)).to_pylist()
    scored = score_table(run, scoring, run.config.judge, 1).to_pylist()
    varied = 0
    for first in range(0, 16, 4):
        likely = [sum(row["sampler_logprobs"]) / len(row["sampler_logprobs"]) for row in sampled[first : first + 4]]
        group = scored[first : first + 4]
        worth = [row["reward"] * (4 - sorted(likely).index(p)) / 4 for row, p in zip(group, likely, strict=True)]
        spread = np.std(worth)
        varied += spread > 0
        expected = (np.array(worth) - np.mean(worth)) / spread if spread else [0.0] * 4
        np.testing.assert_allclose([row["advantage"] for row in group], expected, atol=1e-6)
    assert varied > 1, "or it shows nothing"


def test_a_scoring_knows_the_step(undisturbed):
    run = undisturbed

    def advantages(step, **settings):
        scoring = choose_scoring(run, {"method": "pkpo", **settings}, None, None)
        return score_table(run, scoring, run.config.judge, step)["advantage"].to_pylist()

    assert advantages(2, k=3, anneal_after=2) == advantages(2, k=3)
    assert advantages(3, k=3, anneal_after=2) == advantages(3, k=1) != advantages(3, k=3)


def test_the_update_knows_which_responses_are_truncated(tmp_path):
    limits = {"max_response_tokens": 6, "temperature": 3.0}
    run = start(str(tmp_path), parse_config(small_config(sampling=limits)).runs("run")["run"])
    train(run, until=1)
    truncated = policies.training_batch(run, 1).truncated
    reasons = run.store.read_table(run.key("rollouts", 1, 0))["finish_reason"].to_pylist()
    assert truncated.tolist() == [reason == "length" for reason in reasons]
    assert 0 < truncated.mean() < 1


def test_a_reward_that_is_no_number_stops_the_step(tmp_path, monkeypatch):
    run = start(str(tmp_path))
    sample.fn(run.store.root, run.name, 1, 0)
    judge.fn(run.store.root, run.name, 1, 0)
    with monkeypatch.context() as patch:
        patch.setattr(Polynomial, "verify", lambda self, problem, response: Verdict(math.nan, None))
        with pytest.raises(ValueError, match=r"reward of problem 'polynomial:.*', sample 0, step 1 is nan"):
            score.fn(run.store.root, run.name, 1)
    assert not run.store.exists(run.scores_key(1))
    score.fn(run.store.root, run.name, 1)


def test_an_update_that_cannot_be_committed_is_not_kept(tmp_path, monkeypatch):
    run = start(str(tmp_path))
    train(run, until=1)
    sample.fn(run.store.root, run.name, 2, 0)
    judge.fn(run.store.root, run.name, 2, 0)
    score.fn(run.store.root, run.name, 2)
    with monkeypatch.context() as patch:
        patch.setattr(type(run.store), "commit_table", lambda *a, **k: (_ for _ in ()).throw(StoreError("full")))
        with pytest.raises(StoreError):
            update.fn(run.store.root, run.name, 2)
    assert policies._live == {}
    update.fn(run.store.root, run.name, 2)
    assert policy_at(run, 2).version == 2


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer*"])
def test_a_model_directory_that_lacks_something(undisturbed, tmp_path, missing):
    model = tmp_path / "model"
    shutil.copytree(undisturbed.store.local_files(undisturbed.key("checkpoints", 4)), model)
    for file in [*model.glob(missing), model / "optimizer.safetensors"]:
        file.unlink()
    raw = small_config(policy={})
    raw["policy"] = {"model": str(model), "device": "cpu"}
    config = parse_config(raw).runs("m")["m"]
    with pytest.raises(ConfigError, match=r"(?s)policy\.model .* has no (config\.json|weights|tokenizer)"):
        create_or_resume(str(tmp_path / "root"), "m", config)


def test_problems_that_are_not_there_are_refused_before_there_is_a_run(tmp_path):
    domain = {"name": "countdown", "path": "nowhere.csv", "target": 24}
    config = parse_config(small_config(domain=domain)).runs("m")["m"]
    with pytest.raises(ConfigError, match=r"domain\.path 'nowhere\.csv' cannot be read"):
        create_or_resume(str(tmp_path), "m", config)
    assert open_store(str(tmp_path)).runs() == []


def test_any_model_directory_can_be_trained(undisturbed, tmp_path):
    raw = small_config(scoring={"method": "grpo"})
    model = undisturbed.store.local_files(undisturbed.key("checkpoints", 4))
    raw["policy"] = {"model": str(model), "device": "cpu", "num_threads": 1}
    run = create_or_resume(str(tmp_path), "m", parse_config(raw).runs("m")["m"])
    train(run, until=2)
    assert policy_at(run, 2).version == 2


def test_throughput_is_of_tokens_and_seconds(undisturbed):
    told = {row["step"]: row for row in rows(connect(undisturbed.store.root), "FROM throughput()")}
    for update_row in read_updates(undisturbed, range(1, undisturbed.config.steps + 1)):
        row = told[update_row["step"]]
        seconds = {name: update_row[f"seconds_{name}"] for name in ("sample", "judge", "score", "update")}
        assert row["sampled_per_s"] == pytest.approx(update_row["num_tokens"] / seconds["sample"])
        assert row["trained_per_s"] == pytest.approx(update_row["num_tokens"] / seconds["update"])
        shares = {name: row[f"share_{name}"] for name in seconds}
        assert shares == pytest.approx({name: value / sum(seconds.values()) for name, value in seconds.items()})
