"""Runs whose policy is spread over a trainer group: the same run, whatever number of processes it goes on with."""

import os
import signal

import pytest

from polyepo.config import parse_config
from polyepo.policy.group import GroupTrainer, stop_groups
from storage import connect, rows
from tasks.runs import policies
from tasks.runs.replaying import replay_policy
from tasks.runs.run import create_or_resume
from tests.polyepo.test_group import difference, processes_of
from tests.support.config import small_config
from tests.support.runs import final_weights, forget, start, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def logs(tmp_path_factory):
    yield str(tmp_path_factory.mktemp("logs"))
    forget()
    stop_groups()


def configured(logs, processes, **changes):
    resources = {"trainer": {"processes": processes, "logs": logs}} if processes > 1 else {}
    return parse_config(small_config(resources=resources, **changes)).runs("run")["run"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    run = start(str(tmp_path_factory.mktemp("alone")))
    train(run)
    return run


@pytest.fixture(scope="module")
def spread(tmp_path_factory, logs):
    forget()
    run = start(str(tmp_path_factory.mktemp("spread")), configured(logs, 2))
    train(run)
    return run


def checkpoint_of(run):
    return run.store.local_files(run.key("checkpoints", run.config.steps))


def test_two_processes_train_the_run_that_one_trains(alone, spread):
    assert spread.config.digest == alone.config.digest
    assert difference(checkpoint_of(alone), checkpoint_of(spread)) < 1e-5
    for run, processes in ((alone, 1), (spread, 2)):
        found = rows(connect(run.store.root), "SELECT DISTINCT trainer_processes FROM updates")
        assert [row["trainer_processes"] for row in found] == [processes]


def test_a_run_goes_on_with_another_number_of_processes_and_back(alone, tmp_path, logs):
    """Step 4 is a checkpoint; all else is rebuilt from updates that another number of processes made."""
    run = start(str(tmp_path), configured(logs, 1))
    for processes, until in ((1, 2), (2, 3), (1, 5), (2, 6)):
        run = create_or_resume(str(tmp_path), "run", configured(logs, processes))
        forget()
        train(run, until=until)
    assert len(run.store.settings_changes("run")) == 3
    assert difference(checkpoint_of(alone), checkpoint_of(run)) < 1e-5
    assert replay_policy(run, 4)["weights"], "by two, what one and two had made"


def test_a_run_whose_rank_is_killed_in_an_update_goes_on_and_ends_the_same(spread, tmp_path, logs, monkeypatch):
    run = start(str(tmp_path), configured(logs, 2))
    forget()
    ask, killed = GroupTrainer._ask, []

    def kill_and_ask(self, request, **arguments):
        if request == "update" and self.version == 4 and not killed:
            killed.append(processes_of(self._group.scratch)[1][0])
            os.kill(killed[0], signal.SIGKILL)
        return ask(self, request, **arguments)

    monkeypatch.setattr(GroupTrainer, "_ask", kill_and_ask)
    train(run)
    assert killed
    assert final_weights(run) == final_weights(spread), "bit for bit: it was rebuilt and applied again by as many"


def test_a_policy_whose_group_died_between_two_tasks_is_rebuilt(spread, monkeypatch):
    forget()
    trainer = policies.policy_at(spread, 5)
    assert policies.policy_at(spread, 5) is trainer
    with monkeypatch.context() as patch:
        patch.setattr(GroupTrainer, "alive", False)
        again = policies.policy_at(spread, 5)
    assert again is not trainer
    assert again.alive
    assert not trainer.alive, "its group has the other by now"
