"""`polyepo model`: a run's policy as a directory for plain transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from flows.cli import app
from tasks.checkpoint import checkpoint
from tasks.runs.policies import policy_at, rebuild
from tests.tasks.test_stages import start, train


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
    taken, own = AutoModelForCausalLM.from_pretrained(folder), rebuild(run, step, newest_checkpoint=step).model
    assert all(torch.equal(a, b) for a, b in zip(taken.parameters(), own.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(folder)("1 2 >")["input_ids"]
    assert not list(folder.glob("*optimizer*")), "what training needs stays with the run"


def test_the_last_step_if_none_is_given_and_nothing_overwritten(run, tmp_path):
    folder = tmp_path / "taken"
    assert cli("model", run.name, "-o", folder, "--root", run.store.root).exit_code == 0
    last = policy_at(run, 6).model
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
