"""Runs with a learning-rate schedule: the same steps have the same rates, whatever becomes of the run."""

import shlex
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from flows.cli import app
from polyepo.config import ConfigError, parse_config
from polyepo.policy.schedule import learning_rate
from storage import connect, rows
from tasks.runs.forking import fork
from tasks.runs.preflight import describe, prepare
from tasks.runs.replaying import replay_policy
from tasks.runs.run import RunExistsError, create_or_resume, open_run
from tests.support.config import small_config
from tests.support.processes import PROJECT
from tests.support.runs import copied, final_weights, forget, start, tables, train

COSINE = {"schedule": "cosine", "warmup_steps": 2}

KILLED = """
import os, signal, sys
import tasks.update
from tasks.runs.run import open_run
from tests.support.runs import train

tasks.update.put_policy = lambda run, trainer: trainer.version < 5 or os.kill(os.getpid(), signal.SIGKILL)
train(open_run(sys.argv[1], "run"))
"""


def configured(**changes):
    return parse_config(small_config(**{"update": COSINE, **changes})).runs("run")["run"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = start(str(tmp_path_factory.mktemp("trained")), configured())
    train(run)
    return run


@pytest.fixture
def root(trained, tmp_path):
    with copied(trained, tmp_path / "root") as root:
        yield root


def rates(root):
    return [row["lr"] for row in rows(connect(root), "SELECT lr FROM updates WHERE run = 'run' ORDER BY step")]


def test_the_record_has_the_schedules_steps_and_the_updates_its_rates(trained):
    assert trained.config.update.schedule_steps == 6
    assert rates(trained.store.root) == [learning_rate(trained.config.update, step) for step in range(1, 7)]


@pytest.mark.slow
def test_a_run_that_is_killed_ends_with_the_same_bits(trained, tmp_path):
    """In step 5, after a checkpoint, when its update is committed."""
    run = start(str(tmp_path), configured())
    forget()
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=PROJECT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert run.last_step() == 5
    train(run)
    assert final_weights(run) == final_weights(trained)
    assert tables(run, 6) == tables(trained, 6)
    forget()
    assert replay_policy(run, 6)["weights"] == final_weights(trained)


def test_fewer_and_more_steps_change_no_rate(trained, tmp_path):
    run = start(str(tmp_path), configured())
    for steps in (3, 6, 8):
        run = create_or_resume(str(tmp_path), "run", configured(steps=steps))
        forget()
        train(run)
        assert run.config.update.schedule_steps == 6
    before = rates(trained.store.root)
    assert rates(str(tmp_path)) == [*before, before[-1], before[-1]]
    changes = [line for change in run.store.settings_changes("run") for line in change["changes"]]
    assert changes == ["steps: 6 -> 3", "steps: 3 -> 6", "steps: 6 -> 8"]
    mine, theirs = ({path: table.drop_columns({"checkpoint"} & set(table.column_names)) for path, table in
                     tables(run, 6).items()} for run in (run, trained))  # fmt: skip
    assert mine == theirs


def test_a_run_goes_on_by_its_name_with_fewer_steps_than_its_schedule(root):
    (run,) = prepare(root, describe(root, None, "run", {"steps": 7}))
    assert (run.config.steps, run.config.update.schedule_steps) == (7, 6)
    (run,) = prepare(root, describe(root, None, "run", {"steps": 6, "checkpoint_every": 2}))
    assert run.config.update.schedule_steps == 6


@pytest.mark.parametrize("update", [{"schedule": "linear"}, {**COSINE, "schedule_steps": 4}, {"schedule": "constant"}])
def test_another_schedule_is_refused_and_the_fork_that_is_named_has_it(root, update):
    wanted = configured(update={"warmup_steps": 2, **update})
    with pytest.raises(RunExistsError, match=r"update\.schedule") as caught:
        create_or_resume(root, "run", wanted)
    command = shlex.split(str(caught.value).splitlines()[-1])
    done = CliRunner().invoke(app, [*command[1:], "--set", "steps=9"])
    assert done.exit_code == 0, done.output
    assert open_run(root, "run-2").config.update == wanted.begun().update


def test_a_fork_keeps_its_parents_schedule_or_begins_one(root):
    assert fork(root, "run", 3, "same", {"steps": 9}).config.update.schedule_steps == 6
    longer = fork(root, "run", 3, "longer", {"steps": 9, "update.schedule_steps": 9})
    assert open_run(root, "longer").forked_from.changes == ["update.schedule_steps: 6 -> 9"]
    forget()
    train(longer)
    found = [longer.store.read_table(longer.key("updates", step))["lr"][0].as_py() for step in (3, 4, 9)]
    theirs, own = open_run(root, "run").config.update, longer.config.update
    assert found == [learning_rate(theirs, 3), learning_rate(own, 4), learning_rate(own, 9)]
    with pytest.raises(ConfigError, match="schedule_steps 6 goes with schedule linear or cosine"):
        fork(root, "run", 3, "flat", {"update.schedule": "constant"})
    fork(root, "run", 3, "flat", {"update.schedule": "constant", "update.schedule_steps": None})
