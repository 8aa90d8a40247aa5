"""A policy: a causal language model with its tokenizer and optimizer, and the log-probabilities it assigns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from polyepo.config import ConfigError, PolicyConfig, UpdateConfig
from polyepo.domains import Problem


@dataclass
class Policy:
    """A model in training. `version` counts the training steps behind its weights."""

    model: Any
    tokenizer: Any
    optimizer: torch.optim.Optimizer
    eos_token_ids: frozenset[int]
    version: int = 0

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
        ConfigError: the directory or hub id holds no usable model, weights or tokenizer.
    """
    limit_threads(config.num_threads)
    _check_model_directory(source)
    options = {"trust_remote_code": config.trust_remote_code}
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, config.dtype), **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"policy.model {str(source)!r} cannot be loaded: {error}") from error
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    # eval() for good: dropout in the update would make its log-probabilities differ from the sampler's.
    model = model.to(device).eval()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=update.lr, betas=update.betas, weight_decay=update.weight_decay
    )
    return Policy(model, tokenizer, optimizer, _eos_token_ids(model, tokenizer, str(source)))


def encode_prompt(tokenizer: Any, problem: Problem) -> list[int]:
    """Token ids of a problem's prompt: chat messages through the chat template, text as it is."""
    if isinstance(problem.prompt, str):
        return tokenizer(problem.prompt)["input_ids"]
    encoded = tokenizer.apply_chat_template(problem.prompt, add_generation_prompt=True, return_dict=True)
    return encoded["input_ids"]


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


def _check_model_directory(source: str | Path) -> None:
    path = Path(source)
    if not path.is_dir():
        if str(source).startswith((".", "/", "~")):
            raise ConfigError(f"policy.model {str(source)!r}: no such directory")
        return
    if not (path / "config.json").is_file():
        raise ConfigError(f"policy.model {str(source)!r} has no config.json: it is no Hugging Face model directory")
    if not any(path.glob("*.safetensors")):
        raise ConfigError(f"policy.model {str(source)!r} has no weights: a *.safetensors file is needed")


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
