"""A small model made from nothing: built from a config, fine-tuned on noisy demonstrations."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from polyepo.config import WarmStart
from polyepo.domains import Demonstrated
from polyepo.policy.language import Language, encode_prompt
from polyepo.policy.logprobs import response_logprobs
from polyepo.seeds import derive_seed

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """One token per whitespace-separated word: integers as single tokens are learnt 5-10x faster than digits."""
    vocabulary = {word: i for i, word in enumerate([PAD, EOS, UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, padding_side="left"
    )


def warm_start(
    domain: Demonstrated,
    config: WarmStart,
    directory: Path,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> float:
    """Train a base model and write it, with its tokenizer, into an empty directory.

    Args:
        domain: where problems and demonstrations come from.
        config: sizes, steps and seed.
        directory: where the Hugging Face model directory goes.
        report: called with (step, loss) as training goes on.

    Returns:
        The mean loss per response token over the last tenth of the steps, in nats.
    """
    tokenizer = word_tokenizer(domain.vocabulary())
    problems = [*domain.problems("train"), *domain.problems("heldout")]
    prompts = [encode_prompt(tokenizer, problem) for problem in problems]
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = small_llama(config, len(tokenizer), tokenizer)
    rng = np.random.default_rng(derive_seed(config.seed, "warm start"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.98))
    losses = []
    for step in range(1, config.steps + 1):
        chosen = rng.integers(len(problems), size=config.batch_size)
        texts = [domain.demonstration(problems[i], rng) for i in chosen]
        responses = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
        logprobs_BR, _, mask_BR = response_logprobs(model, [prompts[i] for i in chosen], responses, 1.0)
        loss = -logprobs_BR[mask_BR].mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _warmup_then_cosine(step, config)
        optimizer.step()
        losses.append(float(loss.detach()))
        report(step, losses[-1])
    model.eval().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return float(np.mean(losses[-max(1, config.steps // 10) :]))


def small_llama(config: WarmStart, vocabulary_size: int, tokenizer: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(small_llama_config(config, vocabulary_size, tokenizer))


def small_llama_config(config: WarmStart, vocabulary_size: int, tokenizer: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def language_of(domain: Demonstrated, config: WarmStart) -> Language:
    """What a base model speaks that is not there yet."""
    tokenizer = word_tokenizer(domain.vocabulary())
    model_config = small_llama_config(config, len(tokenizer), tokenizer)
    return Language(tokenizer, model_config, frozenset({tokenizer.eos_token_id}))


def _warmup_then_cosine(step: int, config: WarmStart) -> float:
    """Linear warm-up, then a cosine down to 5 % of the peak."""
    if step <= config.warmup_steps:
        return step / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))
