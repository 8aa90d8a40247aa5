"""What may be another when a run goes on: what changes no result, and it is noted. The rest is refused, or forked."""

import json
import re
import shlex
import shutil

import pytest
from typer.testing import CliRunner

from flows.cli import app
from polyepo.config import ConfigError, parse_config
from storage import connect, open_store, rows
from storage.gc import find_garbage
from tasks.evaluate import evaluate
from tasks.runs.evaluations import read_evaluation
from tasks.runs.preflight import check, check_here, describe, prepare
from tasks.runs.run import RunExistsError, create_or_resume, open_run
from tests.support.config import small_config
from tests.support.runs import copied, final_weights, start, train

SERVED = {"name": "vllm", "base_urls": ["http://a:1"], "weights_dir": "w"}
JUDGE = {"name": "llm", "model": "m", "base_url": "http://127.0.0.1:1/v1", "price_per_million_input": 1.0,
         "price_per_million_output": 2.0, "max_cost": 1.0}  # fmt: skip


def configured(name="run", **changes):
    return parse_config(small_config(**changes)).runs(name)[name]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = start(str(tmp_path_factory.mktemp("trained")), configured(steps=5))
    train(run)
    evaluate.fn(run.store.root, "run", 0)
    return run


@pytest.fixture
def root(trained, tmp_path):
    with copied(trained, tmp_path / "root") as root:
        yield root


@pytest.mark.parametrize(
    ("before", "after", "noted"),
    [
        ({"steps": 3}, {"steps": 9}, ["steps: 3 -> 9"]),
        ({"steps": 9}, {"steps": 3}, ["steps: 9 -> 3"]),
        ({"checkpoint_every": 3}, {"checkpoint_every": 1}, ["checkpoint_every: 3 -> 1"]),
        (
            {"evaluation": {"num_samples": 4, "k": [4]}},
            {"evaluation": {"num_samples": 8, "k": [1, 8]}},
            ["evaluation.k: [4] -> [1, 8]", "evaluation.num_samples: 4 -> 8"],
        ),
        ({}, {"policy": {"device": "cpu:0"}}, ['policy.device: "cpu" -> "cpu:0"']),
        ({}, {"metrics": ["tensorboard"]}, ['metrics: null -> ["tensorboard"]']),
        ({}, {"update": {"gradient_checkpointing": True}}, ["update.gradient_checkpointing: null -> true"]),
        (
            {"sampler": SERVED},
            {"sampler": {**SERVED, "base_urls": ["http://b:2"], "weights_dir": "v", "concurrency": 9, "request_s": 5}},
            [
                'sampler.base_urls: ["http://a:1"] -> ["http://b:2"]',
                "sampler.concurrency: 64 -> 9",
                "sampler.request_s: 1800.0 -> 5.0",
                'sampler.weights_dir: "w" -> "v"',
            ],
        ),
        (
            {"judge": JUDGE},
            {"judge": {**JUDGE, "max_cost": 5.0, "base_url": "http://127.0.0.1:2/v1", "concurrency": 3,
                       "timeout_s": 9, "max_missing_rate": 0.5}},
            [
                'judge.base_url: "http://127.0.0.1:1/v1" -> "http://127.0.0.1:2/v1"',
                "judge.concurrency: 64 -> 3",
                "judge.max_cost: 1.0 -> 5.0",
                "judge.max_missing_rate: 0.2 -> 0.5",
                "judge.timeout_s: 120.0 -> 9.0",
            ],
        ),
    ],
)  # fmt: skip
def test_what_changes_no_result_may_be_another_and_is_noted(tmp_path, before, after, noted):
    root = str(tmp_path)
    first = create_or_resume(root, "run", configured(**before))
    record = (tmp_path / "runs" / "run" / "run.json").read_bytes()
    again = create_or_resume(root, "run", configured(**after))
    assert again.config == configured(**after)
    assert again.config_hash == first.config_hash
    store = open_store(root)
    (change,) = store.settings_changes("run")
    assert change["changes"] == noted
    assert change["changed_at"] > json.loads(record)["created_at"]
    assert (tmp_path / "runs" / "run" / "run.json").read_bytes() == record, "nothing written is written again"
    open_run.cache_clear()
    assert open_run(root, "run").config == configured(**after), "another process opens it with the latest"
    (row,) = rows(connect(root), "SELECT config FROM runs")
    assert json.loads(row["config"]) == configured(**after).model_dump(mode="json")
    # The same again is no change; and back again is another.
    create_or_resume(root, "run", configured(**after))
    assert len(store.settings_changes("run")) == 1
    assert find_garbage(store, -1) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"update": {"lr": 0.5}}, "update.lr: 0.001 -> 0.5"),
        ({"sampling": {"temperature": 0.5}}, "sampling.temperature: 1.0 -> 0.5"),
        ({"policy": {"num_threads": 2}}, "policy.num_threads: 1 -> 2"),
        ({"judge": {"name": "answer"}}, 'judge.name: "program" -> "answer"'),
        ({"domain": {"name": "polynomial", "max_abs_b": 3, "max_c": 3}}, "domain.max_abs_b: 2 -> 3"),
    ],
)
def test_what_changes_results_is_refused_with_the_difference_alone(tmp_path, changes, line):
    root = str(tmp_path)
    create_or_resume(root, "run", configured())
    with pytest.raises(RunExistsError) as caught:
        create_or_resume(root, "run", configured(**changes, steps=7, checkpoint_every=1))
    assert str(caught.value).splitlines()[1:2] == [f"  {line}"]
    assert not {"steps", "checkpoint_every"} & set(re.findall(r"^  (\w+)", str(caught.value), re.M))
    assert open_store(root).settings_changes("run") == []
    # The remedies: another name, and the old values.
    create_or_resume(root, "another", configured("another", **changes))
    create_or_resume(root, "run", configured())


@pytest.mark.parametrize(
    "changes",
    [
        {"update": {"lr": 0.5}},
        {"scoring": {"method": "grpo"}},
        {"scoring": {"set_size": 3}, "update": {"overlong_filtering": True, "betas": [0.8, 0.9]}},
        {"sampler": {**SERVED}},
        {"judge": {"name": "answer"}},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_refusal_says_how_to_fork_and_that_works(root, changes):
    with pytest.raises(RunExistsError) as caught:
        create_or_resume(root, "run", configured(steps=9, **changes))
    command = shlex.split(str(caught.value).splitlines()[-1])
    assert command[:5] == ["polyepo", "fork", "run", "--at", "5"]
    done = CliRunner().invoke(app, [*command[1:], "--set", "steps=9"])
    assert done.exit_code == 0, done.output
    assert "polyepo train --run run-2" in " ".join(done.output.split())
    assert open_run(root, "run-2").config == configured("run-2", steps=9, **changes)


def test_a_base_model_is_no_matter_of_a_fork(root):
    with pytest.raises(RunExistsError) as caught:
        create_or_resume(root, "run", configured(policy={"warm_start": {"steps": 3}}, steps=5))
    assert "fork" not in str(caught.value)


def test_steps_may_grow_and_the_run_is_the_one_that_had_them_from_the_start(root, tmp_path):
    run = create_or_resume(root, "run", configured(steps=7))
    train(run)
    straight = start(str(tmp_path / "straight"), configured(steps=7))
    train(straight)
    assert final_weights(run) == final_weights(straight)
    with pytest.raises(RunExistsError, match="7 committed steps: steps 6 must not be fewer"):
        create_or_resume(root, "run", configured(steps=6))
    assert create_or_resume(root, "run", configured(steps=7)).config.steps == 7


def test_an_evaluation_may_grow(root):
    config = configured(steps=5, evaluation={"num_samples": 6, "k": [1, 6]})
    create_or_resume(root, "run", config)
    before = read_evaluation(open_run(root, "run"), "heldout", 0, ["response"])
    evaluate.fn(root, "run", 0)
    after = read_evaluation(open_run(root, "run"), "heldout", 0, ["response"])
    assert [row for row in after if row["sample"] < 4] == before
    assert {row["sample"] for row in after} == set(range(6))
    with pytest.raises(RunExistsError, match=r"6 samples per held-out problem: evaluation\.num_samples 4 must not"):
        create_or_resume(root, "run", configured(steps=5))


def test_two_that_change_settings_at_once_are_both_noted(tmp_path):
    store = open_store(str(tmp_path))
    create_or_resume(str(tmp_path), "run", configured())
    names = store._settings  # what both saw before either wrote
    store._settings = lambda run: []
    for steps in (8, 9):
        store.add_settings("run", [f"steps: 6 -> {steps}"], {"config": configured(steps=steps).model_dump(mode="json")})
    store._settings = names
    assert [change["changes"] for change in store.settings_changes("run")] == [["steps: 6 -> 8"], ["steps: 6 -> 9"]]
    open_run.cache_clear()
    assert open_run(str(tmp_path), "run").config.steps == 9


def test_a_kind_of_device_is_kept(tmp_path, monkeypatch):
    root = str(tmp_path)
    create_or_resume(root, "run", configured(policy={"device": "auto"}))
    assert open_store(root).run_record("run")["device"] == "cpu", "there is no other here"
    create_or_resume(root, "run", configured())
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for device in ("auto", "cuda:1"):
        with pytest.raises(RunExistsError, match=r"was trained on cpu: .*set policy\.device to cpu"):
            create_or_resume(root, "run", configured(policy={"device": device}))
    assert create_or_resume(root, "run", configured(policy={"device": "cpu"})).config.policy.device == "cpu"
    create_or_resume(root, "there", configured("there", policy={"device": "cuda:0"}))
    create_or_resume(root, "there", configured("there", policy={"device": "cuda:1"}))
    with pytest.raises(RunExistsError, match="was trained on cuda"):
        create_or_resume(root, "there", configured("there", policy={"device": "cpu"}))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="the run was trained on cuda and goes on where there is one"):
        check(root, describe(root, None, "there", None))
    with pytest.raises(ConfigError, match=r"no cuda device on this machine; set policy\.device to cpu or auto"):
        check_here(configured(policy={"device": "cuda:0"}))
    check_here(configured(policy={"device": "auto"}))


def test_a_model_directory_that_holds_another_model_is_refused(root, tmp_path):
    model = tmp_path / "model"
    run = open_run(root, "run")
    shutil.copytree(run.store.local_files(run.key("checkpoints", 5)), model)
    raw = small_config(policy={})
    raw["policy"] = {"model": str(model), "device": "cpu"}
    config = parse_config(raw).runs("m")["m"]
    create_or_resume(root, "m", config)
    (model / "README.md").write_text("what it is")
    create_or_resume(root, "m", config)
    described = (model / "config.json").read_text()
    (model / "config.json").write_text(described.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    with pytest.raises(RunExistsError, match="began with another model than"):
        create_or_resume(root, "m", config)
    create_or_resume(root, "n", config)
    (model / "config.json").write_text(described)
    create_or_resume(root, "m", config)


def test_a_record_that_this_version_cannot_read_is_named(root):
    open_store(root).create_run("odd", {"run": "odd", "config": {"steps": "many"}})
    with pytest.raises(ConfigError, match=r"the record of run 'odd' cannot be used:\n  steps: .*'many'"):
        open_run(root, "odd")


def test_every_run_is_prepared_or_none(tmp_path):
    """The second arm's mistake is found before the first is made."""
    config = tmp_path / "c.yaml"
    bad = {"domain": {"name": "countdown", "path": "nowhere.csv", "target": 24}}
    config.write_text(json.dumps(small_config(arms={"good": {}, "bad": bad})))
    root = str(tmp_path / "root")
    with pytest.raises(ConfigError, match=r"nowhere\.csv"):
        prepare(root, describe(root, config, None, None))
    assert open_store(root).runs() == []
