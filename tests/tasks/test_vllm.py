"""Training through a real vLLM server on the CPU: `make test-vllm`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from polyepo.config import parse_config
from polyepo.samplers import vllm
from polyepo.samplers.vllm import SamplerError, VLLMSampler, WeightsMismatchError
from tasks.evaluate import evaluate
from tasks.runs.policies import policy_at
from tasks.runs.run import create_or_resume
from tasks.sample import sample
from tests.byte_model import byte_tokenizer, save_byte_model
from tests.conftest import small_config
from tests.polyepo.test_vllm_launch import PROJECT, wait_until_gone
from tests.tasks.test_maths import config_of, own_files
from tests.tasks.test_stages import forget, start, train

PYTHON = os.environ.get("POLYEPO_TEST_VLLM_PYTHON")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON, reason="needs vLLM: run `make test-vllm`, or set POLYEPO_TEST_VLLM_PYTHON"),
]
# vLLM's CPU attention has no heads smaller than 32.
WARM_START = {
    "steps": 250,
    "batch_size": 64,
    "hidden_size": 64,
    "num_heads": 2,
    "num_layers": 1,
    "intermediate_size": 64,
}


def vllm_config(folder, **changes):
    launch = {
        "python": PYTHON,
        "args": ["--enforce-eager"],
        "environment": {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
        "logs": str(folder / "logs"),
    }
    policy = {"warm_start": WARM_START, "device": "cpu", "num_threads": 1}
    sampler = {"name": "vllm", "launch": launch, "concurrency": 1}
    return small_config(policy=policy, sampler=sampler, **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    config = parse_config(vllm_config(folder, sampling={"temperature": 0.8})).runs("run")["run"]
    yield start(str(folder / "root"), config)
    vllm.stop_servers()


def the_process():
    (fleet,) = vllm._fleets.values()
    return fleet.servers[0].process


def session(leader):
    """Ids of the processes in a session."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(folder.name))
    return found


def test_the_trainers_log_probabilities_after_every_update(run):
    train(run, until=4)
    evaluate.fn(run.store.root, run.name, 4)
    rows = [run.store.read_table(run.key("updates", step)).to_pylist()[0] for step in range(1, 5)]
    assert max(row["logprob_mismatch_max"] for row in rows) < 1e-4
    assert all(row["grad_norm"] > 0 for row in rows)
    rollouts = run.store.read_table(run.key("rollouts", 1, 0)).to_pylist()
    assert {row["sampler"] for row in rollouts} == {"vllm"}
    # The seeds reach the server: responses to a prompt differ, and come again.
    sampler = VLLMSampler(policy_at(run, 4), run.config.sampler, run.config.sampling)
    prompts = [row["prompt_token_ids"] for row in rollouts[::4]]
    first, again = (sampler.sample(prompts, [[1, 2, 3, 4]] * 4) for _ in range(2))
    other = sampler.sample(prompts, [[5, 6, 7, 8]] * 4)
    assert [[s.token_ids for s in g] for g in first] == [[s.token_ids for s in g] for g in again]
    assert [[s.token_ids for s in g] for g in first] != [[s.token_ids for s in g] for g in other]
    assert len({tuple(s.token_ids) for s in first[0]}) > 1


def test_a_server_that_is_killed_in_mid_step_is_restarted(run, monkeypatch):
    train(run, until=4)
    first = the_process()._supervisor.pid
    complete, done = VLLMSampler._complete, []

    async def complete_then_kill(self, client, server, request):
        samples = await complete(self, client, server, request)
        done.append(request["seed"])
        # After the probe of its weights and the answers to two prompts of four.
        if len(done) == 3:
            for pid in session(first):
                if pid != first:
                    os.kill(pid, signal.SIGKILL)
        return samples

    monkeypatch.setattr(VLLMSampler, "_complete", complete_then_kill)
    sample.fn(run.store.root, run.name, 5, 0)
    assert the_process()._supervisor.pid != first, "it was restarted"
    rows = run.store.read_table(run.key("rollouts", 5, 0)).to_pylist()
    assert len({(row["problem_id"], row["sample"]) for row in rows}) == len(rows) == 16
    monkeypatch.undo()
    train(run)
    rows = [run.store.read_table(run.key("updates", step)).to_pylist()[0] for step in (5, 6)]
    assert max(row["logprob_mismatch_max"] for row in rows) < 1e-4
    wait_until_gone(session(first))


def test_weights_that_are_no_numbers(run):
    policy = policy_at(run, 0)
    forget()
    with torch.no_grad():
        policy.policy.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(SamplerError, match=r"not finite|not JSON compliant|differ from the trainer's by nan"):
        VLLMSampler(policy, run.config.sampler, run.config.sampling).sample([[3, 4, 5]], [[1, 2]])


def test_a_head_that_stays_as_it_was_is_noticed(run, monkeypatch):
    """vLLM 0.32 on the CPU does not renew a head that is not written by its own name."""
    policy = policy_at(run, 0)
    forget()
    sampler = VLLMSampler(policy, run.config.sampler, run.config.sampling)
    monkeypatch.setattr(sampler, "_write_weights", policy.export)
    with torch.no_grad():
        policy.policy.model.get_input_embeddings().weight.mul_(1.1)
    with pytest.raises(WeightsMismatchError, match=r"weights of version 0 .*differ"):
        sampler.sample([[3, 4, 5]], [[1, 2]])


RUN = """
import json, sys
from polyepo.samplers import vllm
from tests.tasks.test_vllm import parse_config, sample, start, the_process
start(sys.argv[1], parse_config(json.loads(sys.argv[2])).runs("run")["run"])
sample.fn(sys.argv[1], "run", 1, 0)
print(the_process()._supervisor.pid, flush=True)
sys.stdin.read()
"""


def test_a_server_is_gone_when_its_run_is_killed(tmp_path):
    config = json.dumps(vllm_config(tmp_path))
    killed = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path / "root"), config],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT,
    )  # fmt: skip
    leader = int(killed.stdout.readline())
    processes = session(leader)
    assert len(processes) > 2, "supervisor, API server, engine"
    killed.kill()
    killed.communicate()
    wait_until_gone(processes)
    assert not session(leader)


def test_a_padded_vocabulary_with_two_ends(tmp_path):
    """A third of the model's vocabulary is padding: it is never sampled, and log-probabilities are the trainer's."""
    vllm.stop_servers()
    tokenizer = byte_tokenizer()
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    model = save_byte_model(
        tmp_path / "model", tokenizer, padding=123, hidden_size=64, num_key_value_heads=2, eos_token_id=ends
    )
    sampler = vllm_config(tmp_path)["sampler"]
    limits = {"prompts_per_step": 4, "num_responses": 8, "max_prompt_tokens": 400, "max_response_tokens": 64}
    run = create_or_resume(
        str(tmp_path / "root"), "m", config_of(model, own_files(tmp_path), sampler=sampler, sampling=limits)
    )
    train(run)
    vllm.stop_servers()
    for step in (1, 2):
        (row,) = run.store.read_table(run.key("updates", step)).to_pylist()
        assert row["logprob_mismatch_max"] < 1e-4
        assert row["grad_norm"] > 0
    responses = [
        row["response_token_ids"]
        for step in (1, 2)
        for row in run.store.read_table(run.key("rollouts", step, 0)).to_pylist()
    ]
    assert max(max(response) for response in responses) < len(tokenizer)
    assert {response[-1] for response in responses if len(response) < 64} == set(ends)
    assert not set(ends) & {token for response in responses for token in response[:-1]}
