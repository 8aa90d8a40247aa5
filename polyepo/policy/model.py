"""A policy: a causal language model with its language and optimizer, and the log-probabilities it assigns."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from polyepo.config import ConfigError, PolicyConfig, UpdateConfig
from polyepo.policy.language import Language, load_language
from polyepo.policy.logprobs import PLAIN, Engine, choose_engine, token_logprobs
from polyepo.policy.ranks import ALONE, Ranks
from polyepo.policy.source import check_device, check_model_directory, device_kind, resolve_device


@dataclass
class Policy:
    """A model in training. `version` counts the training steps behind its weights."""

    model: Any
    language: Language
    optimizer: torch.optim.Optimizer
    version: int = 0
    ranks: Ranks = ALONE
    """The processes that the weights are spread over."""
    engine: Engine = PLAIN

    def __post_init__(self) -> None:
        # A method of the model's own, so that what spreads a model over processes can be told of it.
        self.model.token_logprobs = MethodType(token_logprobs, self.model)

    def logprobs(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        temperature: float,
        with_entropy: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Log-probabilities (B, R) of response tokens, entropies (B, R) or None, mask (B, R): see `token_logprobs`."""
        return self.model.token_logprobs(self.engine, prompts, responses, temperature, with_entropy)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def logprob_dtype(self) -> torch.dtype:
        """The type of log-probabilities: float32 also where the model computes in less."""
        return torch.float64 if self.model.dtype == torch.float64 else torch.float32


def set_up_torch(config: PolicyConfig) -> None:
    """How torch is to compute from now on: with how many threads, and by which kernels."""
    if config.num_threads:  # idle ones spin, and runs side by side would starve each other
        torch.set_num_threads(config.num_threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when a GPU is first used
    torch.use_deterministic_algorithms(config.deterministic)


def load_policy(source: str | Path, config: PolicyConfig, update: UpdateConfig) -> Policy:
    """Load a Hugging Face causal language model as a policy with a fresh optimizer.

    Raises:
        ConfigError: the directory or hub id holds no usable model, weights or tokenizer, or there is no such device.
    """
    check_device(config.device)
    model, language = load_model(source, config), load_language(source, config)
    cut_padding(model, language.known)
    model = model.to(resolve_device(config.device))
    engine = choose_engine(model, language.known, compute_dtype(config))
    return Policy(model, language, make_optimizer(model, update), engine=engine)


def compute_dtype(config: PolicyConfig) -> torch.dtype | None:
    """The type that layers are computed in if it is not the weights': as set, else bfloat16 on a GPU."""
    narrow = config.dtype == "float32" and device_kind(config.device) == "cuda"
    dtype = config.compute_dtype or ("bfloat16" if narrow else config.dtype)
    return None if dtype == config.dtype else getattr(torch, dtype)


def load_model(source: str | Path, config: PolicyConfig) -> Any:
    """A Hugging Face causal language model in CPU memory. Raises ConfigError as `load_policy`."""
    set_up_torch(config)
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
    """AdamW over the model's parameters, without state; matrices are a group of their own, as weight decay may be."""
    groups = [
        {"params": [p for p in model.parameters() if (p.ndim > 1) == matrices], "matrices": matrices}
        for matrices in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=update.lr, betas=update.betas, weight_decay=update.weight_decay)


def cut_padding(model: Any, known: int) -> None:
    """Cut the logits of ids from `known` on, which the tokenizer has no token for.

    Vocabularies are padded to round sizes. Cut in the model itself, the padding is out of every softmax: sampling,
    old and new log-probabilities, entropies.
    """

    def cut(module: Any, args: Any, output: Any) -> Any:
        output.logits = output.logits[..., :known]
        return output

    if known < model.config.get_text_config().vocab_size:
        model.register_forward_hook(cut)
