"""A trainer group over two nodes, which are both this machine."""

import shlex
import signal
import subprocess
import sys

import pytest

from polyepo.config import ConfigError, TrainerResources
from polyepo.policy import group as groups
from polyepo.policy.group import GroupError, GroupTrainer, TrainerGroup
from polyepo.policy.nodes import join
from polyepo.policy.trainer import load_trainer
from tests.polyepo.test_group import (
    CLOSE,
    EVERYTHING,
    batches,
    difference,
    processes_of,
    settings,
    trained,
)
from tests.support.byte_model import save_byte_model
from tests.support.processes import PROJECT, free_port, until

CLI = [sys.executable, "-c", "from flows.cli import app; app()"]


@pytest.mark.slow
def test_a_node_that_never_joins_is_told_how_to_and_one_that_leaves_is_noticed(tmp_path, monkeypatch):
    model = save_byte_model(tmp_path / "model", padding=7)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    resources = TrainerResources(nodes=2, master=f"127.0.0.1:{free_port()}", logs=str(tmp_path / "logs"))
    group = TrainerGroup(resources, "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(groups, "_JOIN_S", 0.1)
        with pytest.raises(GroupError, match=r"not ready within 0 s.* or set resources\.trainer\.nodes to 1") as caught:
            GroupTrainer(group, model, settings(model), EVERYTHING)
    command = shlex.split(str(caught.value).split("`")[1])
    joined = subprocess.Popen([*CLI, *command[1:], "--device", "cpu"], cwd=tmp_path, stdout=subprocess.PIPE,
                              env={"PYTHONPATH": str(PROJECT), "PATH": ""})  # fmt: skip
    assert b"node 1 of 2: waiting" in joined.stdout.readline()
    try:
        own = trained(load_trainer(model, settings(model), EVERYTHING), EVERYTHING, batches(2), here)
        trainer = GroupTrainer(group, model, settings(model), EVERYTHING)
        assert trainer.processes == 2
        spread = trained(trainer, EVERYTHING, batches(2), there)
        assert [one.loss for one in own] == pytest.approx([one.loss for one in spread], abs=1e-6)
        assert difference(here, there) < CLOSE["float32"]
        assert sorted(path.name for path in there.glob("model-*")) == ["model-00001-of-00001.safetensors"]
        joined.send_signal(signal.SIGKILL)
        joined.wait()
        scratch = group.scratch
        with pytest.raises(GroupError, match="has lost its connection to another") as lost:
            trained(trainer, EVERYTHING, batches(1), there)
        assert lost.value.killed
        until(lambda: processes_of(scratch) == ([], []))
    finally:
        joined.kill()
        group.stop()


def test_what_cannot_be_joined_is_refused():
    with pytest.raises(
        ValueError, match=r"master None must be HOST:PORT of this machine, as 10\.0\.0\.1:29400, if nodes"
    ):
        TrainerResources(nodes=2)
    with pytest.raises(ValueError, match="goes with more nodes than 1"):
        TrainerResources(master="a:1")
    with pytest.raises(ConfigError, match="--node 2 must lie between 1 and 1: the run's machine is node 0"):
        join(TrainerResources(nodes=2, master="a:1"), 2, "cpu", print)
