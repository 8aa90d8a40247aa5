"""`polyepo rescore`, `replay` and `evaluate`: followed, and their results printed, on a local stack of their own."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.services import local_stack
from polyepo.config import parse_config
from tasks.checkpoint import checkpoint
from tasks.evaluate import evaluate
from tests.support.config import small_config
from tests.support.processes import PROJECT, free_port
from tests.support.runs import start, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the project's flows, a trained run below it, and a stack that runs there."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("flows", "tasks", "configs", "prefect.yaml"):
        (folder / name).symlink_to(PROJECT / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("PREFECT_HOME", raising=False)
        patch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
        config = parse_config(small_config(steps=2, evaluation={"num_samples": 4, "k": [1, 4]})).runs("run")["run"]
        run = start(str(folder / "artifacts"), config)
        train(run)
        checkpoint.fn(run.store.root, "run", 2)
        run.store.wait()
        evaluate.fn(run.store.root, "run", 2)
        yield folder
        local_stack.stop()


def polyepo(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_rescoring_ends_with_a_comparison(project):
    code, output = polyepo("rescore", "run", "--judge", "configs/judges/answer.yaml")
    assert code == 0, output
    assert "ARI" in output or "adjusted Rand" in output
    assert "polyepo compare run program answer" in output.replace("\n", " ")
    assert polyepo("compare", "run", "program", "answer")[0] == 0, "the next command works"


def test_a_replay_says_what_it_found(project):
    code, output = polyepo("replay", "run", 2)
    assert code == 0, output
    assert "bit-identical to the committed checkpoint" in output
    assert "polyepo show run 2 --root" in output.replace("\n", " ")
    assert polyepo("show", "run", 2)[0] == 0, "the next command works"
    code, output = polyepo("replay", "run", 2, "--scoring", '{"method": "grpo"}')
    assert code == 0, output
    assert "Cosine similarity" in output


def test_an_evaluation_is_extended(project):
    code, output = polyepo("evaluate", "run", "--samples", 6)
    assert code == 0, output
    assert "6 samples" in output
    assert "pass@k" in output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rescore", "run", "--steps", "7"], "have no committed rollouts"),
        (["rescore", "run", "--scoring", "grpo"], "is no JSON"),
        (["rescore", "run", "--judge", "nowhere.yaml"], "nowhere.yaml"),
        (["replay", "run", "9"], "it has steps 1 to 2"),
        (["evaluate", "run", "--benchmark", "nowhere.jsonl"], "must be 'heldout'"),
        (["evaluate"], "give one of run"),
        (["evaluate", "rum"], "did you mean run?"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(project, arguments, says, monkeypatch):
    monkeypatch.setattr(local_stack, "start", lambda say: pytest.fail("nothing may start"))
    code, output = polyepo(*arguments)
    assert code == 2
    assert says in " ".join(output.split())
