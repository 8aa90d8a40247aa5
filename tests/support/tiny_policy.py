"""A random Llama of a few thousand parameters, and what a sampler must give of it."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from polyepo.config import UpdateConfig
from polyepo.policy.language import Language
from polyepo.policy.logprobs import choose_engine, response_logprobs
from polyepo.policy.model import Policy, make_optimizer
from polyepo.policy.warm_start import word_tokenizer

VOCABULARY = 11


def tiny_policy(lr=1e-2, dtype=torch.float64):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=64,
        )
    ).to(dtype).eval()  # fmt: skip
    optimizer = make_optimizer(model, UpdateConfig(lr=lr))
    language = Language(word_tokenizer(list("abcdefgh")), model.config, frozenset({1}))
    return Policy(model, language, optimizer, engine=choose_engine(model))


PROMPTS = [[3 + p % 5, 2 + p % 7, 2 + p % 3] for p in range(10)]
SEEDS = [[100 * p + i for i in range(3)] for p in range(10)]


def check(policy, groups, temperature=1.0):
    """The samples are the policy's: as many as asked for, ended as they should, with its log-probabilities."""
    assert [len(group) for group in groups] == [3] * len(PROMPTS)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for one in group:
            with torch.no_grad():
                ours, _, _ = response_logprobs(policy.model, [prompt], [one.token_ids], temperature)
            np.testing.assert_allclose(one.logprobs, ours[0].numpy(), atol=1e-5)
            assert (one.token_ids[-1] == 1) == (one.finish_reason == "stop")
