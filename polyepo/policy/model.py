"""A policy: a causal language model with its language and optimizer, and the log-probabilities it assigns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from polyepo.config import ConfigError, PolicyConfig, UpdateConfig
from polyepo.policy.language import Language, load_language
from polyepo.policy.ranks import ALONE, Ranks
from polyepo.policy.source import check_device, check_model_directory, resolve_device


@dataclass
class Policy:
    """A model in training. `version` counts the training steps behind its weights."""

    model: Any
    language: Language
    optimizer: torch.optim.Optimizer
    version: int = 0
    ranks: Ranks = ALONE
    """The processes that the weights are spread over."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def logprob_dtype(self) -> torch.dtype:
        """The type of log-probabilities: float32 also where the model computes in less."""
        return torch.float64 if self.model.dtype == torch.float64 else torch.float32


def limit_threads(num_threads: int | None) -> None:
    """Let torch use so many threads from now on: idle ones spin, and runs side by side would starve each other."""
    if num_threads:
        torch.set_num_threads(num_threads)


def load_policy(source: str | Path, config: PolicyConfig, update: UpdateConfig) -> Policy:
    """Load a Hugging Face causal language model as a policy with a fresh optimizer.

    Raises:
        ConfigError: the directory or hub id holds no usable model, weights or tokenizer, or there is no such device.
    """
    check_device(config.device)
    model, language = load_model(source, config), load_language(source, config)
    cut_padding(model, language)
    model = model.to(resolve_device(config.device))
    return Policy(model, language, make_optimizer(model, update))


def load_model(source: str | Path, config: PolicyConfig) -> Any:
    """A Hugging Face causal language model in CPU memory. Raises ConfigError as `load_policy`."""
    limit_threads(config.num_threads)
    check_model_directory(source)
    try:
        model = AutoModelForCausalLM.from_pretrained(source, **loading_options(config))
    except (OSError, ValueError) as error:
        raise ConfigError(f"policy.model {str(source)!r} cannot be loaded: {error}") from error
    # eval() for good: dropout in the update would make its log-probabilities differ from the sampler's.
    return model.eval()


def loading_options(config: PolicyConfig) -> dict[str, Any]:
    """How transformers is to load the model."""
    return {
        "dtype": getattr(torch, config.dtype),
        "trust_remote_code": config.trust_remote_code,
        "revision": config.revision or "main",
    }


def make_optimizer(model: Any, update: UpdateConfig) -> torch.optim.Optimizer:
    """AdamW over the model's parameters, without state."""
    return torch.optim.AdamW(model.parameters(), lr=update.lr, betas=update.betas, weight_decay=update.weight_decay)


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both (B, longest), with the padding on the left."""
    width = max(len(row) for row in rows)
    ids_BL = torch.zeros(len(rows), width, dtype=torch.long)
    mask_BL = torch.zeros(len(rows), width, dtype=torch.long)
    for b, row in enumerate(rows):
        ids_BL[b, width - len(row) :] = torch.as_tensor(row)
        mask_BL[b, width - len(row) :] = 1
    return ids_BL.to(device), mask_BL.to(device)


def response_logprobs(
    model: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities of response tokens under softmax(logits / temperature).

    Args:
        model: a causal language model.
        prompts: B lists of token ids.
        responses: B lists of token ids, the longest of R tokens.
        temperature: that of the sampler.

    Returns:
        log-probabilities (B, R), entropies in nats (B, R), and a boolean mask (B, R) of the real tokens. The mask
        comes from lengths, never from a padding id, which may equal EOS. Logits exist for response tokens alone.
    """
    prompt_BP, prompt_mask_BP = left_padded(prompts, model.device)
    num_tokens = max(len(response) for response in responses)
    lengths_B = torch.tensor([len(response) for response in responses])
    mask_BR = (torch.arange(num_tokens)[None] < lengths_B[:, None]).to(model.device)
    response_BR = torch.zeros(len(responses), num_tokens, dtype=torch.long)
    for b, response in enumerate(responses):
        response_BR[b, : len(response)] = torch.as_tensor(response)
    response_BR = response_BR.to(model.device)
    ids_BL = torch.cat([prompt_BP, response_BR], dim=1)
    attention_BL = torch.cat([prompt_mask_BP, mask_BR.long()], dim=1)
    logits_BRV = model(
        input_ids=ids_BL,
        attention_mask=attention_BL,
        position_ids=position_ids(attention_BL),
        use_cache=False,
        logits_to_keep=num_tokens + 1,
    ).logits[:, :-1]
    all_BRV = torch.log_softmax(_at_least_float32(logits_BRV) / temperature, dim=-1)
    logprobs_BR = all_BRV.gather(-1, response_BR[..., None]).squeeze(-1)
    entropy_BR = -(all_BRV.detach().exp() * all_BRV.detach()).sum(-1)
    return logprobs_BR, entropy_BR, mask_BR


@contextmanager
def gradient_checkpointing(model: Any, wanted: bool) -> Iterator[None]:
    """While this lasts, layers keep their inputs alone and are computed again in the backward pass, if that is wanted.

    Not by the model's own switch: it works in training mode alone, whose dropout the sampler would not have.
    """
    layers = [module for module in model.modules() if wanted and isinstance(module, GradientCheckpointingLayer)]
    if wanted and not layers:
        raise ConfigError(f"update.gradient_checkpointing: {type(model).__name__} has no layers that can do it")
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the instance's; the class's is back


def position_ids(attention_BL: torch.Tensor) -> torch.Tensor:
    """Positions that do not count left padding, (B, L)."""
    return (attention_BL.cumsum(-1) - 1).clamp_min(0)


def micro_batches(lengths: Sequence[tuple[int, int]], budget: int) -> list[np.ndarray]:
    """Group rows so that each group's padded size (rows x (longest prompt + longest response)) is within `budget`.

    Args:
        lengths: (prompt, response) tokens of each row.
        budget: padded tokens; a single row that is larger gets a group of its own.
    """
    order = sorted(range(len(lengths)), key=lambda row: (sum(lengths[row]), row))
    groups: list[list[int]] = []
    widest = (0, 0)
    for row in order:
        grown = (max(widest[0], lengths[row][0]), max(widest[1], lengths[row][1]))
        if groups and (len(groups[-1]) + 1) * sum(grown) <= budget:
            groups[-1].append(row)
            widest = grown
        else:
            groups.append([row])
            widest = lengths[row]
    return [np.array(group) for group in groups]


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def cut_padding(model: Any, language: Language) -> None:
    """Cut the logits of ids that the tokenizer has no token for.

    Vocabularies are padded to round sizes. Cut in the model itself, the padding is out of every softmax: sampling,
    old and new log-probabilities, entropies.
    """
    known = language.vocabulary - len(language.padding_ids)

    def cut(module: Any, args: Any, output: Any) -> Any:
        output.logits = output.logits[..., :known]
        return output

    if language.padding_ids:
        model.register_forward_hook(cut)
