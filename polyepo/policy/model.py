"""A policy: a causal language model with its tokenizer and optimizer, and the log-probabilities it assigns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_layers import GradientCheckpointingLayer

from polyepo.config import ConfigError, PolicyConfig, SamplingConfig, UpdateConfig
from polyepo.domains import Problem
from polyepo.policy.source import check_device, check_model_directory, resolve_device


@dataclass
class Policy:
    """A model in training. `version` counts the training steps behind its weights."""

    model: Any
    tokenizer: Any
    optimizer: torch.optim.Optimizer
    eos_token_ids: frozenset[int]
    version: int = 0
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    padding_ids: range = range(0)
    """Ids that only fill up the model's vocabulary: the tokenizer has no token for them, and none is ever sampled."""

    def encode(self, problem: Problem) -> list[int]:
        """Token ids of a problem's prompt, in training as in evaluation. Raises ConfigError as `encode_prompt`."""
        return encode_prompt(self.tokenizer, problem, self.chat_template_kwargs)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device


def limit_threads(num_threads: int | None) -> None:
    """Let torch use so many threads from now on: idle ones spin, and runs side by side would starve each other."""
    if num_threads:
        torch.set_num_threads(num_threads)


def load_policy(source: str | Path, config: PolicyConfig, update: UpdateConfig) -> Policy:
    """Load a Hugging Face causal language model as a policy with a fresh optimizer.

    Raises:
        ConfigError: the directory or hub id holds no usable model, weights or tokenizer, or there is no such device.
    """
    limit_threads(config.num_threads)
    check_model_directory(source)
    check_device(config.device)
    options = {"trust_remote_code": config.trust_remote_code, "revision": config.revision or "main"}
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, config.dtype), **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"policy.model {str(source)!r} cannot be loaded: {error}") from error
    if not tokenizer("1")["input_ids"]:  # transformers makes an empty one where there is none
        raise ConfigError(f"policy.model {str(source)!r} has no tokenizer with it: put its files into the directory")
    # eval() for good: dropout in the update would make its log-probabilities differ from the sampler's.
    model = model.to(resolve_device(config.device)).eval()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=update.lr, betas=update.betas, weight_decay=update.weight_decay
    )
    return Policy(
        model,
        tokenizer,
        optimizer,
        _eos_token_ids(model, tokenizer, str(source)),
        chat_template_kwargs=config.chat_template_kwargs,
        padding_ids=_cut_padding(model, tokenizer),
    )


def encode_prompt(tokenizer: Any, problem: Problem, chat_template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
    """Token ids of a problem's prompt: chat messages through the chat template, text as it is.

    A chat template writes all special tokens itself, so none are added to what it made.

    Raises:
        ConfigError: the tokenizer cannot take the prompt as it is meant.
    """
    if isinstance(problem.prompt, str):
        ids: list[int] = tokenizer(problem.prompt)["input_ids"]
        if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
            raise ConfigError(
                f"domain: the prompt of problem {problem.problem_id!r} begins with {tokenizer.bos_token!r}, which the "
                "tokenizer adds itself: leave it out of domain.template"
            )
        eos = tokenizer.eos_token
        if eos is not None and ids[-1:] == [tokenizer.eos_token_id] and not problem.prompt.endswith(eos):
            raise ConfigError(
                f"domain: the tokenizer ends the prompt of problem {problem.problem_id!r} with {eos!r}, so there is "
                "nothing to go on from: set add_eos_token to false in the tokenizer_config.json of policy.model"
            )
        return ids
    options = chat_template_kwargs or {}
    _check_chat_template(tokenizer, options)
    try:
        encoded = tokenizer.apply_chat_template(problem.prompt, add_generation_prompt=True, return_dict=True, **options)
    except (TemplateError, TypeError, ValueError) as error:
        raise ConfigError(f"the chat template refuses problem {problem.problem_id!r}: {error}") from error
    return encoded["input_ids"]


def check_prompt_tokens(policy: Policy, problems: Iterable[Problem], sampling: SamplingConfig, source: str) -> None:
    """Raise ConfigError, naming their source, if a prompt is empty, too long, or has ids that the model lacks."""
    check_encoded(policy.encode, policy.model.config, problems, sampling, source)


def check_encoded(
    encode: Callable[[Problem], list[int]],
    model_config: Any,
    problems: Iterable[Problem],
    sampling: SamplingConfig,
    source: str,
) -> None:
    """The same without a model's weights: by how its tokenizer encodes problems, and its config."""
    limit, vocabulary = sampling.max_prompt_tokens, model_config.get_text_config().vocab_size
    for problem in problems:
        ids = encode(problem)
        if not 0 < len(ids) <= limit:
            raise ConfigError(
                f"{source}: the prompt of problem {problem.problem_id!r} has {len(ids)} tokens; "
                f"it must have between 1 and sampling.max_prompt_tokens {limit}"
            )
        if max(ids) >= vocabulary:
            raise ConfigError(
                f"{source}: the prompt of problem {problem.problem_id!r} has token id {max(ids)}, and the model's "
                f"vocabulary ends at {vocabulary - 1}: policy.model has another model's tokenizer, or one with tokens "
                "that were added without resizing the model"
            )


def check_context(model: Any, sampling: SamplingConfig) -> None:
    """Raise ConfigError if prompt and response at their limits exceed the positions of the model."""
    check_positions(model.config, sampling)


def check_positions(model_config: Any, sampling: SamplingConfig) -> None:
    """The same by the model's config alone."""
    positions = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if positions and sampling.max_prompt_tokens + sampling.max_response_tokens > positions:
        raise ConfigError(
            f"sampling.max_prompt_tokens {sampling.max_prompt_tokens} + max_response_tokens "
            f"{sampling.max_response_tokens} exceed the {positions} positions of the model"
        )


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


def _check_chat_template(tokenizer: Any, options: Mapping[str, Any]) -> None:
    try:
        template = tokenizer.get_chat_template()
    except ValueError:
        raise ConfigError(
            "the prompts are chat messages, and the tokenizer of policy.model has no chat template: take a model that "
            "has one, or ask in plain text (domain.chat: false)"
        ) from None
    # A template ignores what it does not know: a misspelt name would change nothing, silently.
    for name in options:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise ConfigError(f"policy.chat_template_kwargs: the tokenizer's chat template does not use {name!r}")


def _cut_padding(model: Any, tokenizer: Any) -> range:
    """Cut the logits of ids that the tokenizer has no token for; returns these ids.

    Vocabularies are padded to round sizes. Cut in the model itself, the padding is out of every softmax: sampling,
    old and new log-probabilities, entropies.
    """
    known = max(tokenizer.get_vocab().values()) + 1
    padding = range(known, model.config.get_text_config().vocab_size)

    def cut(module: Any, args: Any, output: Any) -> Any:
        output.logits = output.logits[..., :known]
        return output

    if padding:
        model.register_forward_hook(cut)
    return padding


def _eos_token_ids(model: Any, tokenizer: Any, source: str) -> frozenset[int]:
    """Every id that ends a response: models may have several (<|im_end|> and <|endoftext|>)."""
    configured = model.generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured])
    ids = (ids | {tokenizer.eos_token_id}) - {None}
    if not ids:
        raise ConfigError(f"policy.model {source!r} names no end-of-sequence token: set eos_token_id in its tokenizer")
    return frozenset(ids)


def weights_digest(directory: Path) -> str:
    """SHA-256 over names, shapes and bytes of all tensors of a model directory, in name order."""
    import hashlib

    from safetensors import safe_open

    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("model*.safetensors")):
        with safe_open(str(file), framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(json.dumps([name, list(tensors[name].shape), str(tensors[name].dtype)]).encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
