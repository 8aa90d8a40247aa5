"""The vLLM sampler against a server that fails in every way a server can; tests/tasks/test_vllm.py has the real one."""

import copy
import logging
import time

import numpy as np
import pytest
import torch

from polyepo.config import ConfigError, SamplingConfig, VLLMSampling
from polyepo.policy.logprobs import response_logprobs
from polyepo.policy.trainer import LocalTrainer
from polyepo.samplers import vllm
from polyepo.samplers.vllm import SamplerError, VLLMSampler, WeightsMismatchError
from tests.polyepo.fake_vllm import FakeVLLM
from tests.polyepo.test_update import tiny_policy

PROMPTS = [[3 + p % 5, 2 + p % 7, 2 + p % 3] for p in range(10)]
SEEDS = [[100 * p + i for i in range(3)] for p in range(10)]


@pytest.fixture(autouse=True)
def no_servers_left():
    yield
    vllm.stop_servers()


@pytest.fixture
def policy():
    return tiny_policy(dtype=torch.float32)


@pytest.fixture
def server(policy):
    with FakeVLLM(copy.deepcopy(policy.model)) as server:
        yield server


@pytest.fixture
def sampler(policy, server, tmp_path):
    return make(policy, [server.url], tmp_path)


def make(policy, urls, folder, sampling=None, **options):
    (folder / "weights").mkdir(exist_ok=True)
    config = VLLMSampling(name="vllm", base_urls=urls, weights_dir=str(folder / "weights"), **options)
    limits = {"max_prompt_tokens": 8, "max_response_tokens": 12, **(sampling or {})}
    return VLLMSampler(LocalTrainer(policy), config, SamplingConfig(**limits))


def change(policy):
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    policy.version += 1


def check(policy, groups, temperature=1.0):
    """The samples are the policy's: as many as asked for, ended as they should, with its log-probabilities."""
    assert [len(group) for group in groups] == [3] * len(PROMPTS)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for one in group:
            with torch.no_grad():
                ours, _, _ = response_logprobs(policy.model, [prompt], [one.token_ids], temperature)
            np.testing.assert_allclose(one.logprobs, ours[0].numpy(), atol=1e-5)
            assert (one.token_ids[-1] == 1) == (one.finish_reason == "stop")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_are_the_policys(policy, server, tmp_path, temperature):
    sampler = make(policy, [server.url + "/v1/"], tmp_path, {"temperature": temperature})
    groups = sampler.sample(PROMPTS, SEEDS)
    check(policy, groups, temperature)
    assert len({tuple(s.token_ids) for group in groups for s in group}) > 15
    again = sampler.sample(PROMPTS[::-1], SEEDS[::-1])[::-1]
    assert [[s.token_ids for s in g] for g in again] == [[s.token_ids for s in g] for g in groups]


def test_every_update_reaches_the_server(policy, server, sampler, tmp_path):
    versions = set()
    for _ in range(3):
        check(policy, sampler.sample(PROMPTS, SEEDS))
        versions.add(server.version)
        check(policy, sampler.sample(PROMPTS, SEEDS))
        assert server.version in versions, "the same weights are not sent twice"
        change(policy)
    assert len(versions) == 3
    assert not any((tmp_path / "weights").iterdir())


def test_another_policy_of_the_same_version_is_not_taken_for_this_one(policy, server, sampler, tmp_path):
    sampler.sample(PROMPTS, SEEDS)
    other = tiny_policy(dtype=torch.float32)
    change(other)
    other.version = policy.version
    check(other, make(other, [server.url], tmp_path).sample(PROMPTS, SEEDS))


@pytest.mark.parametrize("fault", [500, 503, 429, "reset", "cut", "duplicate", "missing", "short", "abort", "no json"])
def test_what_may_pass_is_repeated_and_nothing_is_there_twice(policy, server, sampler, fault, monkeypatch):
    monkeypatch.setattr(vllm, "_PAUSE_S", 0.001)
    server.faults.extend([None, fault, None, None, fault])
    check(policy, sampler.sample(PROMPTS, SEEDS))
    assert not server.faults
    assert len(server.answered) == len(PROMPTS)
    # A connection that breaks may take others' answers along; else each request is answered once.
    if fault != "reset":
        assert set(server.answered.values()) == {1}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan", "not finite"),
        ("null", "not finite"),
        ("floor", "not finite"),
        ("model", r"answered as model 'another', not sampler.served_model 'policy'"),
        ("no ids", "returns no token ids"),
        ("prompt", "changed the prompt"),
        (400, "answered 400: no luck"),
    ],
)
def test_what_does_not_pass_is_an_error_that_says_so(server, sampler, fault, message):
    server.faults.append(fault)
    with pytest.raises(SamplerError, match=message):
        sampler.sample(PROMPTS, SEEDS)


def test_a_failure_that_stays_ends_the_step(server, sampler, monkeypatch):
    monkeypatch.setattr(vllm, "_PAUSE_S", 0.001)
    server.faults.extend([500] * 1000)
    with pytest.raises(SamplerError, match=r"failed 5 times; .*answered 500: no luck"):
        sampler.sample(PROMPTS, SEEDS)


def test_a_server_of_another_model(policy, tmp_path):
    with FakeVLLM(policy.model, served_model="llama") as server:
        sampler = make(policy, [server.url], tmp_path)
        with pytest.raises(SamplerError, match=r"serves \['llama'\], not sampler.served_model 'policy'"):
            sampler.sample(PROMPTS, SEEDS)


def test_a_context_that_is_too_short(policy, tmp_path):
    with FakeVLLM(policy.model, max_model_len=14) as server:
        sampler = make(policy, [server.url], tmp_path)
        with pytest.raises(SamplerError, match=r"--max-model-len\) of 14 tokens is too short .* 15 tokens"):
            sampler.sample(PROMPTS, SEEDS)
    with pytest.raises(ConfigError, match=r"max_prompt_tokens 60 .* 12 exceed the 64 positions"):
        make(policy, [server.url], tmp_path, {"max_prompt_tokens": 60})


def test_weights_that_do_not_arrive_stop_the_run(policy, server, sampler):
    sampler.sample(PROMPTS, SEEDS)
    server.deaf = True
    change(policy)
    with pytest.raises(WeightsMismatchError, match=r"weights of version 1 .* differ .* nats"):
        sampler.sample(PROMPTS, SEEDS)


def test_a_server_without_development_endpoints(server, sampler):
    server.missing = {"/collective_rpc"}
    with pytest.raises(SamplerError, match="VLLM_SERVER_DEV_MODE=1"):
        sampler.sample(PROMPTS, SEEDS)


@pytest.mark.parametrize("missing", [set(), {"/weight_info", "/update_weight_version"}])
def test_a_server_that_lost_its_weights_in_mid_step(policy, server, sampler, missing, caplog):
    """Whether or not this vLLM can name its weights."""
    server.missing = missing
    change(policy)
    sampler.sample(PROMPTS, SEEDS)
    done = []

    def restart_once():
        done.append(1)
        if len(done) == 4:
            server.restart()

    server.on_completion = restart_once
    check(policy, sampler.sample(PROMPTS, SEEDS))
    assert "its samples are dropped" in caplog.text


def test_servers_share_the_work(policy, tmp_path):
    with FakeVLLM(policy.model) as one, FakeVLLM(policy.model) as two:
        sampler = make(policy, [one.url, two.url], tmp_path, concurrency=1)
        check(policy, sampler.sample(PROMPTS, SEEDS))
        assert one.answered
        assert two.answered
        assert sum((one.answered + two.answered).values()) == len(PROMPTS)


@pytest.mark.parametrize("concurrency", [1, 2, 64])
@pytest.mark.parametrize("fault", [500, 503, 429, 400, 404, "reset", "cut", "abort", "no json"])
def test_a_server_that_fails_fast_leaves_the_work_to_a_slow_one(policy, tmp_path, fault, concurrency, monkeypatch):
    monkeypatch.setattr(vllm, "_PAUSE_S", 0.001)
    with FakeVLLM(policy.model) as broken, FakeVLLM(policy.model) as slow:
        sampler = make(policy, [broken.url, slow.url], tmp_path, concurrency=concurrency)
        sampler.sample(PROMPTS, SEEDS)  # both have the weights
        broken.answered.clear()
        slow.answered.clear()
        broken.always = fault
        slow.on_completion = lambda: time.sleep(0.01)
        check(policy, sampler.sample(PROMPTS, SEEDS))
        assert not broken.answered
        assert len(slow.answered) == len(PROMPTS)
        if fault != "reset":
            assert set(slow.answered.values()) == {1}
        broken.always = None
        check(policy, sampler.sample(PROMPTS, SEEDS))
        assert broken.answered, "it is asked again in the next round"


def test_a_server_that_refuses_from_the_start_is_done_without(policy, server, tmp_path, caplog):
    with FakeVLLM(policy.model) as lost:
        lost.missing = {"/v1/completions"}
        check(policy, make(policy, [lost.url, server.url], tmp_path).sample(PROMPTS, SEEDS))
    assert "sampling goes on without" in caplog.text
    assert "answered 404" in caplog.text


def test_a_server_that_fails_now_and_then_is_not_set_aside(policy, server, tmp_path, caplog):
    with FakeVLLM(policy.model) as other:
        other.faults.extend([500, None] * 100)
        check(policy, make(policy, [other.url, server.url], tmp_path, concurrency=1).sample(PROMPTS, SEEDS))
        assert other.answered
    assert "set aside" not in caplog.text
    assert "are repeated" not in caplog.text


def test_all_servers_failing_ends_the_step(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm, "_PAUSE_S", 0.001)
    with FakeVLLM(policy.model) as one, FakeVLLM(policy.model) as two:
        sampler = make(policy, [one.url, two.url], tmp_path, concurrency=2)
        sampler.sample(PROMPTS, SEEDS)
        one.always = two.always = 500
        with pytest.raises(SamplerError, match=r"failed 5 times; .*answered 500: no luck"):
            sampler.sample(PROMPTS, SEEDS)
        one.always = two.always = 400
        with pytest.raises(SamplerError, match=r"answered 400: no luck"):
            sampler.sample(PROMPTS, SEEDS)


def test_a_server_that_does_not_go_to_sleep_ends_nothing(policy, server, tmp_path, caplog):
    server.missing = {"/sleep"}
    check(policy, make(policy, [server.url], tmp_path, sleep=True).sample(PROMPTS, SEEDS))
    assert "was not put to sleep" in caplog.text


def test_one_server_of_two_is_enough(policy, server, tmp_path, caplog):
    with FakeVLLM(policy.model) as gone:
        pass
    check(policy, make(policy, [gone.url, server.url], tmp_path).sample(PROMPTS, SEEDS))
    assert f"sampling goes on without: {gone.url} does not answer" in caplog.text


def test_no_server_answers(policy, tmp_path):
    with FakeVLLM(policy.model) as gone:
        pass
    sampler = make(policy, [gone.url], tmp_path, wait_s=0.05)
    with pytest.raises(SamplerError, match=r"no vLLM server answers after sampler.wait_s 0.05 s: .*start the server"):
        sampler.sample(PROMPTS, SEEDS)


def test_a_server_that_comes_back_is_waited_for(policy, tmp_path):
    with FakeVLLM(policy.model) as gone:
        pass
    back = []

    class StartsIt(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("waiting up to 60 s for a vLLM server") and not back:
                back.append(FakeVLLM(policy.model, gone.server_address[1]).__enter__())

    handler = StartsIt()
    vllm._log.addHandler(handler)
    try:
        check(policy, make(policy, [gone.url], tmp_path, wait_s=60).sample(PROMPTS, SEEDS))
    finally:
        vllm._log.removeHandler(handler)
        for server in back:
            server.__exit__()


def test_servers_sleep_while_the_policy_is_updated(policy, server, tmp_path):
    sampler = make(policy, [server.url], tmp_path, sleep=True)
    for _ in range(2):
        check(policy, sampler.sample(PROMPTS, SEEDS))
        assert server.asleep
        change(policy)
