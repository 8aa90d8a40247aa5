"""A fork: the same weights, optimizer and history up to a step, found where they are; from there on its own."""

from pathlib import Path

import pytest
import torch

from flows.views.findings import run_findings
from flows.views.show import show_prompt
from flows.views.summary import summarize
from flows.views.watch import Watched
from polyepo.config import ConfigError, parse_config
from storage import connect, open_store, rows
from storage.gc import find_garbage, remove_garbage
from storage.verify import manifests, verify_run
from tasks.evaluate import evaluate
from tasks.judge import judge
from tasks.runs.choices import choose_steps
from tasks.runs.evaluations import HELDOUT, evaluated_steps, missing_samples, read_evaluation
from tasks.runs.forking import fork
from tasks.runs.models import load_decoder
from tasks.runs.policies import policy_at
from tasks.runs.replaying import counterfactual, replay_policy
from tasks.runs.run import RunExistsError, create_or_resume, open_run
from tasks.sample import sample
from tasks.score import score
from tasks.update import update
from tests.support.config import small_config
from tests.support.runs import copied, final_weights, forget, start, tables, train

STEPS = 6  # with checkpoints after the steps 4 and 6


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    run = start(str(tmp_path_factory.mktemp("parent")))
    train(run)
    for step in (0, STEPS):
        evaluate.fn(run.store.root, "run", step)
    return run


@pytest.fixture
def root(parent, tmp_path):
    with copied(parent, tmp_path / "root") as root:
        yield root


def go_on(run):
    """Train a fork's own steps."""
    train(run)
    return run


def named(run, until):
    """Tables by stage and step, without the run's name."""
    return {
        path.split("/", 2)[2]: table.drop_columns(["run", *({"checkpoint"} & set(table.column_names))])
        for path, table in tables(run, until).items()
    }


@pytest.mark.parametrize("at", [0, 2, 4, 5])  # before, at and after a checkpoint
def test_a_fork_without_changes_is_the_run_itself(root, at):
    parent = open_run(root, "run")
    made = go_on(fork(root, "run", at, "new", {}))
    assert final_weights(made) == final_weights(parent)
    mine, theirs = named(made, STEPS), named(parent, STEPS)
    assert all(mine[path].equals(theirs[path]) for path in theirs)
    assert open_store(root).steps("new", "updates") == list(range(at + 1, STEPS + 1)), "nothing is copied"
    forget()
    assert replay_policy(made, STEPS)["weights"] == final_weights(parent)


def test_other_settings_take_effect_after_the_step_and_never_before(root):
    parent = open_run(root, "run")
    made = go_on(fork(root, "run", 3, "new", {"update.lr": 2e-3, "update.betas": [0.5, 0.9], "sampling.shards": 2}))
    assert made.config.update.lr == 2e-3
    rates = [made.store.read_table(made.key("updates", step))["lr"][0].as_py() for step in range(1, STEPS + 1)]
    assert rates == [1e-3] * 3 + [2e-3] * 3
    mine, theirs = made.store.read_table(made.key("updates", 4)), parent.store.read_table(parent.key("updates", 4))
    # Step 4 samples from one policy with the same seeds; its update is another, so from step 5 on responses are too.
    assert mine["loss"].equals(theirs["loss"])
    responses = [run.store.read_table(run.key("rollouts", 5, 0))["sampler_logprobs"] for run in (made, parent)]
    assert responses[0] != responses[1].slice(0, len(responses[0]))
    assert final_weights(made) != final_weights(parent)
    forget()
    group = policy_at(made, 4).policy.optimizer.param_groups[0]
    assert tuple(group["betas"]) == (0.5, 0.9)
    forget()
    for step in (2, 3):  # the parent's, updated as the parent does
        mine, theirs = (list(policy_at(run, step).policy.model.parameters()) for run in (made, parent))
        assert all(map(torch.equal, mine, theirs))


def test_a_fork_that_was_killed_is_the_same_fork(root, tmp_path):
    straight = go_on(fork(root, "run", 3, "straight", {"update.lr": 2e-3}))
    made = fork(root, "run", 3, "new", {"update.lr": 2e-3})
    sample.fn(root, "new", 4, 0)
    forget()
    judge.fn(root, "new", 4, 0)
    score.fn(root, "new", 4)
    update.fn(root, "new", 4)
    forget()
    assert fork(root, "run", 3, "new", {"update.lr": 2e-3}) == made, "the same again is the same fork"
    go_on(made)
    assert final_weights(made) == final_weights(straight)


def test_a_fork_of_a_fork(root):
    parent = open_run(root, "run")
    first = go_on(fork(root, "run", 2, "first", {"update.lr": 2e-3}))
    again = go_on(fork(root, "first", 4, "again", {"update.lr": 1e-3}))
    same = go_on(fork(root, "first", 4, "same", {}))
    deep = go_on(fork(root, "again", 1, "deep", {"update.lr": 1e-3}))
    assert final_weights(same) == final_weights(first) != final_weights(again)
    assert final_weights(deep) == final_weights(parent), "its steps up to 1 are those of the first run of all"
    assert [again.owner(step).name for step in range(STEPS + 1)] == ["run"] * 3 + ["first"] * 2 + ["again"] * 2
    assert open_store(root).run_record("again")["parent"] == {
        "run": "first", "step": 4, "changes": ["update.lr: 0.002 -> 0.001"],
    }  # fmt: skip


def test_readers_find_the_first_steps_where_they_are(root, tmp_path):
    made = fork(root, "run", 3, "new", {"update.lr": 2e-3, "judge": {"name": "answer"}})
    assert made.last_step() == 3
    assert evaluated_steps(made, HELDOUT) == [0]
    assert load_decoder(made)([3])
    assert [row.policy for row in summarize(root, "new").rows] == ["base model"]
    show_prompt(root, "new", None, None)  # its parent's, as long as it has none
    go_on(made)
    evaluate.fn(root, "new", STEPS)
    assert evaluated_steps(made, HELDOUT) == [0, STEPS]
    assert read_evaluation(made, HELDOUT, 0, ["reward"]) == read_evaluation(
        open_run(root, "run"), HELDOUT, 0, ["reward"]
    )
    rows_of = {name: summarize(root, name).rows for name in ("new", "run")}
    assert [row.policy for row in rows_of["new"]] == ["base model", "new"]
    assert rows_of["new"][0] == rows_of["run"][0]
    watched = Watched(made)
    watched.refresh()
    assert watched.finished
    run_findings(made)
    for step in (2, 5):
        show_prompt(root, "new", step, None)
    with pytest.raises(ConfigError, match=r"steps \[2\] .*it has 4 to 6; those before were made by 'run'"):
        choose_steps(made, 2)
    assert choose_steps(made, "all") == choose_steps(made, "4-6") == [4, 5, 6]
    assert counterfactual(made, 2, made.config.scoring, open_run(root, "run").config.judge).cosine == pytest.approx(1)
    # SQL has each row once, under the run that made it, and says who that is.
    connection = connect(root)
    found = rows(connection, "SELECT run, list(step ORDER BY step) AS steps FROM updates GROUP BY run ORDER BY run")
    assert found == [{"run": "new", "steps": [4, 5, 6]}, {"run": "run", "steps": [1, 2, 3, 4, 5, 6]}]
    (row,) = rows(connection, "FROM runs WHERE run = 'new'")
    assert (row["parent"], row["parent_step"], row["state"], row["steps_done"]) == ("run", 3, "finished", 6)


def test_verify_covers_what_a_fork_stands_on_and_gc_leaves_it(root):
    made = go_on(fork(root, "run", 3, "new", {"update.lr": 2e-3}))
    store = made.store
    checked = manifests(store, "new")
    assert made.key("updates", 3).path in checked
    assert open_run(root, "run").key("updates", 4).path not in checked
    assert list(verify_run(store, "new")) == []
    remove_garbage(store, find_garbage(store, -1))
    forget()
    assert list(verify_run(store, "new")) == []
    assert policy_at(made, 5).version == 5
    (part,) = (Path(root) / made.key("scores", 2, scoring=open_run(root, "run").config.scoring_id).path).rglob(
        "*.parquet"
    )
    part.unlink()
    assert [finding.path for finding in verify_run(store, "new")] == [str(part.parents[1].relative_to(root))]


def test_an_evaluation_of_an_early_step_is_the_parents(root):
    made = fork(root, "run", 3, "new", {"update.lr": 2e-3})
    owner = made.owner(2)
    assert owner.name == "run"
    evaluate.fn(root, owner.name, 2)
    assert not missing_samples(made, HELDOUT, 2, 4)
    assert read_evaluation(made, HELDOUT, 2, ["reward"])


def test_the_configuration_can_be_changed_in_what_is_operational(root):
    from tasks.runs.preflight import check, describe, prepare

    fork(root, "run", 3, "new", {"update.lr": 2e-3})
    check(root, describe(root, None, "new", {"steps": 9}))
    (made,) = prepare(root, describe(root, None, "new", {"steps": 9, "checkpoint_every": 2}))
    assert (made.config.steps, made.config.checkpoint_every, made.forked_from.step) == (9, 2, 3)
    with pytest.raises(RunExistsError, match="3 committed steps: steps 2 must not be fewer"):
        check(root, describe(root, None, "new", {"steps": 2}))
    with pytest.raises(RunExistsError, match=r"polyepo fork new --at 3 --run new-2 --set update\.lr=0\.5"):
        check(root, describe(root, None, "new", {"update.lr": 0.5}))


@pytest.mark.parametrize(
    ("step", "name", "settings", "message"),
    [
        (7, "new", {}, "--at 7: run 'run' has committed steps 0 to 6"),
        (-1, "new", {}, "--at -1: run 'run' has committed steps 0 to 6"),
        (6, "new", {}, "leaves none of 6 steps to train: --set steps=7 or more"),
        (3, "a/b", {}, "run 'a/b' must be 1 to 100 letters"),
        (3, "run", {}, "run 'run' exists .* and is no such fork; choose another --run"),
        (3, "new", {"update.ler": 1}, "a fork of run 'run' cannot be used:\n  update.ler: unknown key; did you mean"),
        (3, "new", {"update.lr": -1}, "update.lr: "),
        (3, "new", {"policy.warm_start.seed": 1}, "has the weights of its parent, .*warm_start.seed: 0 -> 1"),
        (3, "new", {"policy.dtype": "bfloat16", "update.lr": 0.5}, "has the weights of its parent, .*policy.dtype"),
        (3, "new", {"domain.max_abs_b": 3}, "has the problems of its parent"),
        (3, "new", {"arms.a.seed": 1}, "arms: unknown key"),
    ],
)
def test_what_cannot_be_forked(root, step, name, settings, message):
    before = open_store(root).runs()
    with pytest.raises(ConfigError, match=message):
        fork(root, "run", step, name, settings)
    assert open_store(root).runs() == before


def test_the_remedies_of_these(root):
    assert fork(root, "run", 6, "longer", {"steps": 7}).config.steps == 7
    fork(root, "run", 3, "new", {"domain.error_rate": 0.2})  # the same problems
    with pytest.raises(RunExistsError, match="no such fork"):
        fork(root, "run", 2, "new", {})
    with pytest.raises(ConfigError, match=r"run 'runn' does not exist under .*did you mean run\?"):
        fork(root, "runn", 2, "other", {})


def test_a_run_of_an_older_version_can_be_forked(tmp_path):
    root = str(tmp_path)
    config = parse_config(small_config()).runs("old")["old"].model_dump(mode="json")
    open_store(root).create_run("old", {"run": "old", "config": config, "config_hash": "older"})
    with pytest.raises(ConfigError, match="run 'old' has not begun: train it first"):
        fork(root, "old", 0, "new", {})
    create_or_resume(root, "old", parse_config(small_config()).runs("old")["old"])
    made = fork(root, "old", 0, "new", {"update.lr": 2e-3})
    assert made.problems.keys() == open_run(root, "old").problems.keys()
    with pytest.raises(ConfigError, match="--at 1: run 'old' has committed steps 0 to 0"):
        fork(root, "old", 1, "other", {})
