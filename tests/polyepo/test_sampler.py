"""The sampler against the trainer's log-probabilities and against the model's own distribution."""

import numpy as np
import pytest
import torch

from polyepo.config import SamplingConfig
from polyepo.policy.logprobs import response_logprobs
from polyepo.samplers.transformers import TransformersSampler
from tests.polyepo.test_update import VOCABULARY, tiny_policy

PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 2]]


def sample(policy, prompts=PROMPTS, seeds=None, **options):
    config = SamplingConfig(**{"max_response_tokens": 12, "batch_size": 64, **options})
    seeds = seeds or [[100 * p + i for i in range(6)] for p in range(len(prompts))]
    return TransformersSampler(policy, config).sample(prompts, seeds)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_the_trainers(temperature):
    policy = tiny_policy(dtype=torch.float32)
    for prompt, group in zip(PROMPTS, sample(policy, temperature=temperature), strict=True):
        for one in group:
            with torch.no_grad():
                theirs, _, _ = response_logprobs(policy.model, [prompt], [one.token_ids], temperature)
            np.testing.assert_allclose(one.logprobs, theirs[0].numpy(), atol=2e-5)


def test_responses_end_at_eos_or_at_the_limit():
    groups = sample(tiny_policy())
    flat = [one for group in groups for one in group]
    assert {one.finish_reason for one in flat} == {"stop", "length"}
    for one in flat:
        assert 1 not in one.token_ids[:-1]
        assert (one.token_ids[-1] == 1) == (one.finish_reason == "stop")
        assert len(one.token_ids) == 12 or one.finish_reason == "stop"
        assert len(one.logprobs) == len(one.token_ids)


def test_a_sample_depends_on_its_own_seed_alone():
    policy = tiny_policy()
    together = sample(policy)
    alone = sample(policy, prompts=PROMPTS[1:2], seeds=[[100 + i for i in range(6)]])
    assert [s.token_ids for s in together[1]] == [s.token_ids for s in alone[0]]
    chunked = sample(policy, batch_size=6)
    assert [[s.token_ids for s in g] for g in chunked] == [[s.token_ids for s in g] for g in together]
    assert len({tuple(s.token_ids) for s in together[0]}) > 1


def test_repeatable_bit_for_bit():
    policy = tiny_policy(dtype=torch.float32)
    first, second = sample(policy), sample(policy)
    for a, b in zip((s for g in first for s in g), (s for g in second for s in g), strict=True):
        assert a.token_ids == b.token_ids
        assert a.logprobs.tobytes() == b.logprobs.tobytes()


def test_frequencies_are_the_models_probabilities():
    policy = tiny_policy()
    count = 4000
    drawn = sample(policy, prompts=[[3, 4]], seeds=[list(range(count))], max_response_tokens=1, batch_size=count)
    frequencies = np.bincount([s.token_ids[0] for s in drawn[0]], minlength=VOCABULARY) / count
    with torch.no_grad():
        probabilities = torch.softmax(policy.model(torch.tensor([[3, 4]])).logits[0, -1], -1).numpy()
    assert np.abs(frequencies - probabilities).max() < 5 * np.sqrt(0.25 / count)
