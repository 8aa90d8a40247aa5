"""The LLM judge's settings, and what follows from them alone: its id, prices, key and instructions."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, field_validator, model_validator

from polyepo.errors import ConfigError
from polyepo.judges.base import Judge, MissingLabels
from polyepo.judges.llm.limits import JudgeError
from polyepo.judges.llm.prompt import PLACEHOLDERS, RENDERING_VERSION, all_examples, default_template
from polyepo.judges.llm.tokens import count_tokens
from polyepo.names import slug
from polyepo.section import Operational, added, operational

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class LLMSettings(Judge):
    """What an LLM judge is told. Settings marked Operational change how labels are got, but not which labels."""

    model_config = ConfigDict(hide_input_in_errors=True)

    name: Literal["llm"] = "llm"
    model: str = Field(min_length=1)
    """The model's name on the server."""
    base_url: Annotated[str, Operational()]
    """Address of an OpenAI-compatible API, up to and with /v1."""
    api_key_env: Annotated[str | None, Operational()] = None
    """Name of the environment variable with the API key; none for servers without keys."""
    temperature: float | None = Field(0.0, ge=0, le=2)
    """Null leaves it to the server: some models take no other."""
    max_tokens: int = Field(4096, ge=64)
    """Length limit of a reply. One that runs into it is asked for once more, with twice as many."""
    extra_body: dict[str, Any] = Field({})
    """More fields of each request, such as {chat_template_kwargs: {enable_thinking: false}}."""
    concurrency: Annotated[int, Operational()] = Field(64, ge=1)
    """Requests under way at a time, in all shards of this process."""
    requests_per_minute: Annotated[float | None, Operational()] = Field(None, gt=0)
    tokens_per_minute: Annotated[float | None, Operational()] = Field(None, gt=0)
    timeout_s: Annotated[float, Operational()] = Field(120.0, gt=0)
    """For one attempt as a whole."""
    deadline_s: Annotated[float, Operational()] = Field(600.0, gt=0)
    """For one request with all of its retries."""
    max_retries: Annotated[int, Operational()] = Field(5, ge=0)
    max_consecutive_failures: Annotated[int, Operational()] = Field(10, ge=1)
    """Prompts in a row without labels after which the stage fails."""
    price_per_million_input: Annotated[float | None, Operational()] = Field(None, ge=0)
    price_per_million_output: Annotated[float | None, Operational()] = Field(None, ge=0)
    max_cost: Annotated[float | None, Operational()] = Field(None, gt=0)
    """Of all of a run's calls of this judge, in the currency of the prices; no call starts that may exceed it. A call
    whose cost is not known (no answer in time, or none that counts its tokens) counts as the most it can have cost."""
    context_tokens: int = Field(32768, ge=256)
    """Tokens that the model takes, prompt and reply together."""
    tokenizer: str | None = added(None)
    """The model's tokenizer, by which groups are found too long: a directory with a tokenizer.json, or a hub id.
    Without it three bytes count as a token, until the server says otherwise."""
    max_response_tokens: int = Field(2048, ge=16)
    """Longer responses are shown by head and tail, to about so many tokens."""
    overflow: Literal["split", "refuse"] = "split"
    """A group that is too long: judged in parts, each with representatives of the clusters so far, or not labelled."""
    votes: int = Field(1, ge=1, le=32)
    """Requests per prompt, each in another order; labels are their consensus."""
    missing: Literal["drop_prompt", "singleton", "retry_later"] = "drop_prompt"
    """Responses without a label: their prompt gets no gradient; each counts as a cluster of its own; or the prompt is
    asked about once more at the end of the shard, in another order, and dropped if that fails."""
    max_missing_rate: Annotated[float, Operational()] = Field(0.2, ge=0, le=1)
    """Share of a step's responses without a label above which the run stops."""
    seed: int = 0
    """Of the order, the ids and the delimiters in each request."""
    reuse_calls: Annotated[Literal["run", "root"], Operational()] = "run"
    """Where answers to identical requests are looked for: in the run, or in all runs under the same root."""
    template: str | None = None
    """Instructions to the model, in place of llm/template.md. In a file give `template_path`: its text is kept here."""

    @model_validator(mode="before")
    @classmethod
    def _read_template(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "template_path" not in values:
            return values
        values = dict(values)
        path = str(values.pop("template_path"))
        if values.get("template") is not None:
            raise ValueError("set one of template and template_path, not both")
        try:
            return {**values, "template": Path(path).read_text(encoding="utf-8")}
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"template_path {path!r} cannot be read: {error}") from None

    @field_validator("template")
    @classmethod
    def _template_has_what_it_needs(cls, template: str | None) -> str | None:
        needed = [f"{{{name}}}" for name in PLACEHOLDERS if name in ("nonce", "ids")]
        if template is not None and (missing := [name for name in needed if name not in template]):
            raise ValueError(f"template must contain {' and '.join(missing)}")
        return template

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, name: str | None) -> str | None:
        # The value is not shown: someone may have put the key itself there.
        if name is not None and (not _VARIABLE.fullmatch(name) or name.startswith("sk_")):
            raise ValueError("must be the name of an environment variable, such as OPENAI_API_KEY, not the key")
        return name

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an http:// or https:// address, such as http://127.0.0.1:8000/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("must hold no user, password or query: name a variable with the key in api_key_env")
        return url

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.max_tokens >= self.context_tokens:
            raise ValueError(f"max_tokens {self.max_tokens} must be below context_tokens {self.context_tokens}")
        if (self.price_per_million_input is None) != (self.price_per_million_output is None):
            raise ValueError("set both of price_per_million_input and price_per_million_output, or none")
        if self.max_cost is not None and not self.has_prices:
            raise ValueError("max_cost needs price_per_million_input and price_per_million_output")
        return self

    @property
    def judge_id(self) -> str:
        """The model's name, and a hash of all that labels depend on: not of key, address, limits or prices."""
        content = {
            **self.model_dump(mode="json", exclude={*operational(type(self)), "template"}),
            "template": self.instructions,
            "examples": all_examples(),
            "rendering": RENDERING_VERSION,
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"llm-{slug(self.model, longest=60) or 'model'}-{digest[:8]}"

    @property
    def instructions(self) -> str:
        """The template of the instructions to the model."""
        return default_template() if self.template is None else self.template

    @property
    def missing_labels(self) -> MissingLabels:
        """What scoring does about responses without a label."""
        return MissingLabels("singleton" if self.missing == "singleton" else "drop_prompt", self.max_missing_rate)

    @property
    def makes_calls(self) -> bool:
        """It does."""
        return True

    @property
    def reuses_all_runs(self) -> bool:
        """Whether answers are also looked for in other runs."""
        return self.reuse_calls == "root"

    @property
    def has_prices(self) -> bool:
        """Whether what calls cost is known."""
        return self.price_per_million_input is not None and self.price_per_million_output is not None

    def price(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What tokens cost, in the currency of the prices; 0 without prices."""
        prices = (self.price_per_million_input or 0.0), (self.price_per_million_output or 0.0)
        return (prompt_tokens * prices[0] + completion_tokens * prices[1]) / 1e6

    def api_key(self) -> str:
        """The API key, read from the environment now. Raises JudgeError if it is not set."""
        if self.api_key_env is None:
            return "none"  # servers without keys take any
        if not (key := os.environ.get(self.api_key_env, "").strip()):
            raise JudgeError(
                f"judge.api_key_env: the environment variable {self.api_key_env} is not set; put the API key there"
            )
        return key

    def check_ready(self) -> None:
        """Raise ConfigError if the API key is not set."""
        try:
            self.api_key()
        except JudgeError as error:
            raise ConfigError(str(error)) from None

    def count_tokens(self, messages: Sequence[dict[str, str]]) -> int:
        """Tokens of messages, or about so many. Raises JudgeError if the tokenizer cannot be loaded."""
        return count_tokens(messages, self.tokenizer)
