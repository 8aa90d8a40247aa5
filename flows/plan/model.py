"""What a model takes of memory, found by running it on fake tensors: they have shapes and types, but no memory.

So there is no formula for any architecture here, and nothing but a model's config.json is needed.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from flows.plan.facts import MissingError, ModelFacts, Shape, UnknownError
from polyepo.config import PolicyConfig, RunConfig
from polyepo.domains import Demonstrated, Problem
from polyepo.policy import warm_start
from polyepo.policy.language import encode_prompt
from polyepo.policy.logprobs import Engine, backward_pass, engine_by_config, token_logprobs
from polyepo.policy.model import compute_dtype
from polyepo.policy.source import hub_answers


def load_tokenizer(config: RunConfig) -> Any:
    """The policy's tokenizer. Raises MissingError if there is none, UnknownError if it is not at hand."""
    policy = config.policy
    if policy.warm_start and isinstance(config.domain, Demonstrated):
        return warm_start.word_tokenizer(config.domain.vocabulary())
    try:
        tokenizer = AutoTokenizer.from_pretrained(policy.model, **_options(policy))
    except (OSError, ValueError) as error:
        raise _missing(policy, "the tokenizer of policy.model", error) from None
    if not tokenizer("1")["input_ids"]:  # transformers makes an empty one where a directory holds none
        raise MissingError(
            f"policy.model {policy.model!r} has no tokenizer with it", "put the tokenizer's files into the directory"
        )
    return tokenizer


def prompt_lengths(tokenizer: Any, config: RunConfig, splits: dict[str, list[Problem]]) -> dict[str, int]:
    """Tokens of each problem's prompt, by problem id. Raises ConfigError if the tokenizer cannot take one."""
    kwargs = config.policy.chat_template_kwargs
    problems = (problem for split in splits.values() for problem in split)
    return {problem.problem_id: len(encode_prompt(tokenizer, problem, kwargs)) for problem in problems}


def load_model(policy: PolicyConfig, tokenizer: Any) -> ModelFacts:
    """What a policy's model is. Raises as `load_tokenizer`, by its config.json."""
    dtype = getattr(torch, policy.dtype)

    def build() -> Any:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=policy.trust_remote_code)

    try:
        if policy.warm_start:
            with torch.device("meta"):
                config = warm_start.small_llama(policy.warm_start, len(tokenizer), tokenizer).config
        else:
            config = AutoConfig.from_pretrained(policy.model, **_options(policy))
        with FakeTensorMode():
            model = build()
    except (OSError, ValueError, RuntimeError) as error:
        raise _missing(policy, "policy.model", error) from None
    parameters = list(model.parameters())
    return ModelFacts(
        build=build,
        num_parameters=sum(p.numel() for p in parameters),
        weights=sum(p.nbytes for p in parameters),
        positions=getattr(model.config, "max_position_embeddings", None),
        vocabulary=model.config.vocab_size,
    )


def micro_batch_bytes(model: ModelFacts, shape: Shape, engine: Engine, checkpointing: bool = False) -> int:
    """Memory of one micro-batch's forward and backward pass at its peak, beyond weights and gradients.

    Raises:
        UnknownError: the model does something that fake tensors cannot.
    """
    prompts, responses = [[0] * shape.prompt] * shape.rows, [[0] * shape.response] * shape.rows
    try:
        with FakeTensorMode(), _LiveBytes() as live:
            fake = model.build().eval()
            for parameter in fake.parameters():
                parameter.grad = torch.zeros_like(parameter)
            before = live.peak = live.now
            with backward_pass(fake, engine, checkpointing):
                logprobs_BR, _, _ = token_logprobs(fake, engine, prompts, responses, 1.0, with_entropy=True)
                logprobs_BR.sum().backward()
    except (RuntimeError, NotImplementedError) as error:
        raise UnknownError(f"a micro-batch's memory: {_first(error)}") from None
    return live.peak - before


def engine_of(model: ModelFacts, policy: PolicyConfig) -> Engine:
    """How the model's log-probabilities will be computed, unless trying it with its weights shows a difference."""
    with FakeTensorMode():
        return engine_by_config(model.build(), dtype=compute_dtype(policy))


def cache_bytes(model: ModelFacts, num_tokens: int) -> int:
    """Memory of the KV cache of one response, its prompt included. Raises UnknownError as `micro_batch_bytes`."""
    try:
        with FakeTensorMode(), torch.no_grad():
            fake = model.build().eval()
            kept = DynamicCache(config=fake.config)
            ids_BL = torch.zeros(1, num_tokens, dtype=torch.long)
            fake(input_ids=ids_BL, past_key_values=kept, use_cache=True, logits_to_keep=1)
            return sum(layer.keys.nbytes + layer.values.nbytes for layer in kept.layers)
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        raise UnknownError(f"the KV cache: {_first(error)}") from None


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that live, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, number: int) -> None:
        self.now -= self._sizes.pop(number)


def _missing(policy: PolicyConfig, what: str, error: Exception) -> UnknownError:
    """What could not be loaded is missing if it was looked for where it must be; not if the hub could not be asked."""
    reason = f"{what} {policy.model!r} is not at hand: {_first(error)}"
    if Path(policy.model or "").is_dir() or hub_answers():
        return MissingError(reason, "name a directory with a Hugging Face causal language model, or a hub id")
    return UnknownError(reason, "download the model, or plan where the hub answers")


def _options(policy: PolicyConfig) -> dict[str, Any]:
    local = Path(policy.model or "").is_dir() or not hub_answers()
    return {
        "trust_remote_code": policy.trust_remote_code,
        "revision": policy.revision or "main",
        "local_files_only": local,
    }


def _first(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
