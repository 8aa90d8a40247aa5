"""`polyepo model`: a run's policy as a directory for plain transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from flows.cli import app
from polyepo.config import parse_config
from tasks.checkpoint import checkpoint
from tasks.runs.exporting import export_policy
from tasks.runs.policies import policy_at, rebuild
from tests.support.byte_model import byte_tokenizer, save_byte_model
from tests.support.config import small_config
from tests.support.runs import start, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Six steps with a checkpoint after the fourth and the last."""
    run = start(str(tmp_path_factory.mktemp("store")))
    for step in (4, 6):
        train(run, step)
        checkpoint.fn(run.store.root, run.name, step)
        run.store.wait()
    return run


def cli(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("step", [0, 3, 4, 6])
def test_a_models_weights_are_the_runs(run, tmp_path, step):
    folder = tmp_path / "taken"
    result = cli("model", run.name, step, "-o", folder, "--root", run.store.root)
    assert result.exit_code == 0, result.output
    assert "from_pretrained" in result.output
    taken, own = AutoModelForCausalLM.from_pretrained(folder), rebuild(run, step, newest_checkpoint=step).policy.model
    assert all(torch.equal(a, b) for a, b in zip(taken.parameters(), own.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(folder)("1 2 >")["input_ids"]
    assert not list(folder.glob("*optimizer*")), "what training needs stays with the run"


def test_the_last_step_if_none_is_given_and_nothing_overwritten(run, tmp_path):
    folder = tmp_path / "taken"
    assert cli("model", run.name, "-o", folder, "--root", run.store.root).exit_code == 0
    last = policy_at(run, 6).policy.model
    taken = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(taken.parameters(), last.parameters(), strict=True))
    again = cli("model", run.name, "-o", folder, "--root", run.store.root)
    assert again.exit_code == 2
    assert "exists already" in again.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["run", "7"], "must lie between 0 and 6"), (["rum"], "did you mean run?"),
     (["run", "-o", "/nowhere/at/all"], "there is no folder")],
)  # fmt: skip
def test_what_cannot_be_is_said(run, tmp_path, arguments, says):
    result = cli("model", *arguments, "--root", run.store.root)
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())


def test_a_models_chat_template_is_taken_along(tmp_path):
    """Of a model that was begun with; rebuilt, or the base model itself, and nothing is said but what was made."""
    base = save_byte_model(tmp_path / "base")
    policy = {"model": base, "warm_start": None}
    run = start(
        str(tmp_path / "store"), parse_config(small_config(policy=policy, steps=1)).runs("chat")["chat"], "chat"
    )
    train(run, 1)
    for step in (0, 1):
        folder = tmp_path / f"taken-{step}"
        result = cli("model", "chat", step, "-o", folder, "--root", run.store.root)
        assert result.exit_code == 0, result.output
        assert result.output.startswith(f"{folder}: ")
        taken = AutoTokenizer.from_pretrained(folder)
        messages = [{"role": "user", "content": "1 2 > é"}]
        assert taken.apply_chat_template(messages, tokenize=False) == byte_tokenizer().apply_chat_template(
            messages, tokenize=False
        )
        assert taken("1 2 > é")["input_ids"] == byte_tokenizer()("1 2 > é")["input_ids"]
    weights = [AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (base, tmp_path / "taken-0")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_has_no_policy_is_refused(tmp_path):
    file = tmp_path / "others.jsonl"
    file.write_text('{"question": "q", "answer": "1", "response": "1", "reward": 1}\n')
    assert cli("import", file, "--run", "others", "--root", tmp_path / "store").exit_code == 0
    result = cli("model", "others", "-o", tmp_path / "taken", "--root", tmp_path / "store")
    assert (result.exit_code, result.output) == (2, "run 'others' was imported: it has responses, but no policy\n")
    assert not (tmp_path / "taken").exists()


def test_how_far_a_rebuild_is_is_told(run, tmp_path):
    told = []
    export_policy(run, 3, tmp_path / "three", lambda done, total: told.append((done, total)))
    assert told == [(0, 3), (1, 3), (2, 3)]
