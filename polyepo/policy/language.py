"""What a policy speaks: tokens, their ends and their limits. Whoever counts or decodes tokens needs no weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from polyepo.config import ConfigError, PolicyConfig, SamplingConfig
from polyepo.domains import Problem


@dataclass(frozen=True)
class Language:
    """A model's tokenizer, and what its configuration says of tokens and positions."""

    tokenizer: Any
    model_config: Any
    eos_token_ids: frozenset[int]
    """Every id that ends a response: models may have several (<|im_end|> and <|endoftext|>)."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def vocabulary(self) -> int:
        """Rows of the model's output head, padding included."""
        return self.model_config.get_text_config().vocab_size

    @cached_property
    def padding_ids(self) -> range:
        """Ids that only fill up the model's vocabulary: the tokenizer has no token for them; none is ever sampled."""
        return range(self.known, self.vocabulary)

    @cached_property
    def known(self) -> int:
        """Ids below this have a token, and those from it on only pad the vocabulary."""
        return min(max(self.tokenizer.get_vocab().values()) + 1, self.vocabulary)

    def encode(self, problem: Problem) -> list[int]:
        """Token ids of a problem's prompt, in training as in evaluation. Raises ConfigError as `encode_prompt`."""
        return encode_prompt(self.tokenizer, problem, self.chat_template_kwargs)

    def decode(self, responses: Sequence[Sequence[int]]) -> list[str]:
        """Responses as text, for people and verifiers."""
        return self.tokenizer.batch_decode(responses, skip_special_tokens=True)

    def check_prompts(self, problems: Iterable[Problem], sampling: SamplingConfig, source: str) -> None:
        """Raise ConfigError, naming their source, if a prompt is empty, too long, or has ids that the model lacks."""
        limit, vocabulary = sampling.max_prompt_tokens, self.vocabulary
        for problem in problems:
            ids = self.encode(problem)
            if not 0 < len(ids) <= limit:
                raise ConfigError(
                    f"{source}: the prompt of problem {problem.problem_id!r} has {len(ids)} tokens; "
                    f"it must have between 1 and sampling.max_prompt_tokens {limit}"
                )
            if max(ids) >= vocabulary:
                raise ConfigError(
                    f"{source}: the prompt of problem {problem.problem_id!r} has token id {max(ids)}, and the model's "
                    f"vocabulary ends at {vocabulary - 1}: policy.model has another model's tokenizer, or one with "
                    "tokens that were added without resizing the model"
                )

    def check_context(self, sampling: SamplingConfig) -> None:
        """Raise ConfigError if prompt and response at their limits exceed the positions of the model."""
        positions = getattr(self.model_config.get_text_config(), "max_position_embeddings", None)
        if positions and sampling.max_prompt_tokens + sampling.max_response_tokens > positions:
            raise ConfigError(
                f"sampling.max_prompt_tokens {sampling.max_prompt_tokens} + max_response_tokens "
                f"{sampling.max_response_tokens} exceed the {positions} positions of the model"
            )


def load_language(source: str | Path, config: PolicyConfig) -> Language:
    """The language of a Hugging Face model, by a directory (weights need not be there) or hub id.

    Raises:
        ConfigError: there is no tokenizer or configuration, or nothing that ends a response.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig  # takes seconds to import

    options = {"trust_remote_code": config.trust_remote_code, "revision": config.revision or "main"}
    try:
        model_config = AutoConfig.from_pretrained(source, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"policy.model {str(source)!r} cannot be loaded: {error}") from None
    if not tokenizer("1")["input_ids"]:  # transformers makes an empty one where there is none
        raise ConfigError(f"policy.model {str(source)!r} has no tokenizer with it: put its files into the directory")
    try:
        generation = GenerationConfig.from_pretrained(source, revision=options["revision"])
    except OSError:  # older models have none
        generation = GenerationConfig.from_model_config(model_config)
    ends = generation.eos_token_id
    ids = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
    if not ids:
        raise ConfigError(
            f"policy.model {str(source)!r} names no end-of-sequence token: set eos_token_id in its tokenizer"
        )
    return Language(tokenizer, model_config, frozenset(ids), config.chat_template_kwargs)


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
