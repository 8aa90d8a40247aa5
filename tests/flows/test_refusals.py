"""Mistakes are one message, from the command, before there is a server or a flow run; what it tells to do works."""

import json
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from flows import follow
from flows.cli import app
from flows.services import local_stack
from storage import open_store
from tasks.runs.preflight import check, describe, prepare
from tests.support.config import small_config

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory where starting anything is a mistake."""

    def nothing_starts(*arguments):
        raise AssertionError("the command was to be refused before this")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYEPO_ROOT", str(tmp_path / "artifacts"))
    monkeypatch.setattr(local_stack, "start", nothing_starts)
    return tmp_path


def write(path, **changes):
    path.write_text(yaml.safe_dump(small_config(**changes), sort_keys=False))
    return str(path)


def ask(*arguments):
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere.yaml"], "config 'nowhere.yaml' cannot be read: No such file"),
        (["train", "c.yaml", "--run", "a/b"], "run 'a/b' must be 1 to 100 letters"),
        (["train", "c.yaml", "--run", "x" * 101], "must be 1 to 100 letters"),
        (["train", "c.yaml", "--set", "seed=[1"], "--set 'seed=[1': '[1' is no YAML value"),
        (["train", "c.yaml", "--set", "seed"], "--set 'seed' must be name=value"),
        (["train", "c.yaml", "--set", "steps.x=1"], "setting 'steps.x' cannot be: 'steps' is no section"),
        (["train", "c.yaml", "--set", "update.lr=x"], "update.lr: Input should be a valid number"),
        (["train", "c.yaml", "--set", "policy.device=cuda:0"], "torch finds no cuda device on this machine"),
        (["train", "c.yaml", "--set", "sampling.max_prompt_tokens=1"], "has 4 tokens; it must have between 1 and"),
        (["train", "c.yaml", "--set", "sampling.max_response_tokens=505"], "exceed the 512 positions of the model"),
        (["train", "c.yaml", "--set", "sampling.prompts_per_step=999"], "must not exceed the"),
        (["train", "c.yaml", "--set", "domain={name: countdown, path: no.csv, target: 24}"], "'no.csv' cannot be read"),
        (["train", "m.yaml", "--set", "policy.model=./no"], "policy.model './no': no such directory"),
        (["train", "m.yaml", "--set", "policy.model=somebody/no"], "is no directory here, and no model that"),
        (["train", "m.yaml", "--set", "policy.model=empty"], "has no config.json"),
        (["train", "c.yaml", "--set", "judge={name: embedding, model: m}"], "pip install 'poly-epo[embedding]'"),
        (
            ["train", "c.yaml", "--set", "judge={name: llm, model: m, base_url: 'http://h/v1', api_key_env: NO_KEY}"],
            "the environment variable NO_KEY is not set",
        ),
        (
            ["train", "c.yaml", "--set", "sampler={name: vllm, launch: {python: no/python}}"],
            "sampler.launch.python 'no/python' is no program",
        ),
        (
            ["train", "c.yaml", "--set", "sampler={name: vllm, base_urls: ['http://h'], weights_dir: c.yaml}"],
            "sampler.weights_dir 'c.yaml' is a file",
        ),
        (["experiment", "e.yaml", "--name", "a..b"], "experiment name 'a..b'"),
        (["experiment", "e.yaml"], "policy.device 'cuda': torch finds no cuda device"),
        (["fork", "nobody", "--at", "1", "--run", "x"], "run 'nobody' does not exist"),
        (["summary", "nobody"], "run 'nobody' does not exist"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value[:5])[:60],
)
def test_a_mistake_is_one_message(folder, arguments, message):
    write(folder / "c.yaml")
    (folder / "m.yaml").write_text(yaml.safe_dump(small_config() | {"policy": {"model": "m", "device": "cpu"}}))
    (folder / "empty").mkdir()
    (folder / "artifacts").mkdir()
    write(folder / "gpu.yaml", policy={"device": "cuda"})
    (folder / "e.yaml").write_text(json.dumps({"config": "gpu.yaml", "seeds": [1], "arms": {"a": {}}}))
    code, output = ask(*arguments)
    assert code == 2, output
    assert message in output
    assert "Traceback" not in output
    assert "Resume" not in output
    assert open_store(str(folder / "artifacts")).runs() == []


def test_a_root_that_cannot_be_written(folder):
    (folder / "file").write_text("")
    code, output = ask("train", write(folder / "c.yaml"), "--root", "file")
    assert (code, "is not writable" in output) == (1, True), output


def test_another_setting_on_a_run_that_exists(folder):
    config = write(folder / "c.yaml")
    prepare(str(folder / "artifacts"), describe(str(folder / "artifacts"), config, None, None))
    code, output = ask("train", config, "--set", "update.lr=0.5")
    assert (code, "Resume" in output) == (2, False)
    assert output.splitlines()[:2] == [
        f"run 'c' exists under {str(folder / 'artifacts')!r} with another configuration:",
        "  update.lr: 0.001 -> 0.5",
    ]
    for works in (["--set", "update.lr=0.5", "--run", "d"], ["--set", "steps=9"]):
        with pytest.raises(AssertionError, match="refused before this"):
            ask("train", config, *works)


def test_a_run_that_exists_is_trained_on_without_its_file(folder):
    config = write(folder / "c.yaml", arms={"a": {}, "b": {"seed": 2}})
    prepare(str(folder / "artifacts"), describe(str(folder / "artifacts"), config, "mine", None))
    Path(config).unlink()
    for run in ("mine", "mine-a"):
        with pytest.raises(AssertionError, match="refused before this"):
            ask("train", "--run", run)
    code, output = ask("train", "--run", "mine", "--set", "sampling.temperature=0.5")
    assert (code, "sampling.temperature: 1.0 -> 0.5" in output) == (2, True)


@pytest.mark.parametrize(
    ("state", "code", "resume"),
    [
        ({"type": "FAILED", "name": "Failed", "message": "the judge is gone"}, 1, True),
        ({"type": "CRASHED", "name": "Crashed", "message": "killed"}, 1, True),
        ({"type": "CANCELLED", "name": "Cancelled", "message": None}, 1, True),
        ({"type": "FAILED", "name": "Refused", "message": "the weights do not fit"}, 2, False),
        ({"type": "FAILED", "name": "Stopped", "message": "step 3: loss is nan"}, 1, False),
    ],
)
def test_resume_is_said_where_the_same_command_goes_on(folder, monkeypatch, state, code, resume):
    config = write(folder / "c.yaml")
    monkeypatch.setattr(local_stack, "start", lambda say: None)
    monkeypatch.setattr(follow, "find_unfinished", lambda run, root: None)
    monkeypatch.setattr(follow, "run_deployment", lambda deployment, parameters: "id")
    monkeypatch.setattr(follow, "follow", lambda flow_run_id, console: state)
    monkeypatch.setattr(follow, "last_logs", lambda flow_run_id, count: [])
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    found, output = ask("train", config, "--set", "update.lr=3e-4")
    assert (found, "Resume" in output) == (code, resume)
    assert (state["message"] or "") in output
    if resume:
        command = shlex.split(output.split("Resume: ")[1])
        check(str(folder / "artifacts"), describe(str(folder / "artifacts"), command[2], "c", {"update.lr": 3e-4}))
        assert command[-2:] == ["--set", "update.lr=3e-4"]
