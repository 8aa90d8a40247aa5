"""Who holds a policy's weights: whatever samples from, measures, updates or saves a policy asks a Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from polyepo.config import PolicyConfig, SamplingConfig, TrainerResources, UpdateConfig
from polyepo.policy.checkpoint import load_checkpoint, save_checkpoint, save_model
from polyepo.policy.group import GroupTrainer, group_of
from polyepo.policy.language import Language
from polyepo.policy.model import Policy, load_policy
from polyepo.policy.source import device_kind
from polyepo.policy.update import Batch, UpdateMetrics, compute_logprobs, update
from polyepo.samplers.base import Sample
from polyepo.samplers.transformers import TransformersSampler


class Trainer(Protocol):
    """A policy in training, wherever its weights are."""

    @property
    def language(self) -> Language:
        """What it speaks."""
        ...

    @property
    def version(self) -> int:
        """Training steps behind its weights."""
        ...

    @property
    def device(self) -> str:
        """The kind of device that it computes on: cpu, cuda, ..."""
        ...

    @property
    def dtype(self) -> str:
        """The type that log-probabilities are computed in, and a sampler's are to be: float32 or bfloat16."""
        ...

    @property
    def processes(self) -> int:
        """How many compute an update together: sums are rounded in another order by another number."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it still has the weights: a process that held a share of them may have died."""
        ...

    def update(self, batch: Batch, config: UpdateConfig, sampling: SamplingConfig, seed: int) -> UpdateMetrics:
        """One training step, as `polyepo.policy.update.update`. After a NonFiniteError the policy is to be closed."""
        ...

    def logprobs(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        temperature: float,
        micro_batch_tokens: int = 16384,
    ) -> list[np.ndarray]:
        """Of each response, the log-probabilities of its tokens under softmax(logits / temperature)."""
        ...

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: SamplingConfig
    ) -> list[list[Sample]]:
        """For each prompt, one sample per seed, as `polyepo.samplers.base.Sampler`."""
        ...

    def save(self, folder: Path) -> None:
        """Write a checkpoint into an empty folder: `load_trainer` goes on from it, bit for bit."""
        ...

    def export(self, folder: Path, dtype: str | None = None, head_apart: bool = False) -> None:
        """Write a Hugging Face model directory, tokenizer included.

        Args:
            folder: is made if it is not there.
            dtype: of the weights; that which they are learnt in if not given.
            head_apart: write the output head by its own name even if it is tied to the embeddings.
        """
        ...

    def close(self) -> None:
        """Give up the weights and what they take of memory. Nothing else may be asked afterwards."""
        ...


class LocalTrainer:
    """A policy in this process."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    @property
    def language(self) -> Language:
        """What it speaks."""
        return self.policy.language

    @property
    def version(self) -> int:
        """Training steps behind its weights."""
        return self.policy.version

    @property
    def device(self) -> str:
        """The kind of device that it computes on."""
        return self.policy.device.type

    @property
    def dtype(self) -> str:
        """The type that it computes in."""
        return str(self.policy.engine.dtype or self.policy.model.dtype).removeprefix("torch.")

    @property
    def processes(self) -> int:
        """One."""
        return 1

    @property
    def alive(self) -> bool:
        """It lives as long as this process."""
        return True

    def update(self, batch: Batch, config: UpdateConfig, sampling: SamplingConfig, seed: int) -> UpdateMetrics:
        """One training step. Raises NonFiniteError."""
        return update(self.policy, batch, config, sampling, seed)

    def logprobs(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        temperature: float,
        micro_batch_tokens: int = 16384,
    ) -> list[np.ndarray]:
        """Of each response, the log-probabilities of its tokens."""
        return compute_logprobs(self.policy, prompts, responses, temperature, micro_batch_tokens)

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: SamplingConfig
    ) -> list[list[Sample]]:
        """For each prompt, one sample per seed."""
        return TransformersSampler(self.policy, sampling).sample(prompts, seeds)

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""
        save_checkpoint(self.policy, folder)

    def export(self, folder: Path, dtype: str | None = None, head_apart: bool = False) -> None:
        """Write a Hugging Face model directory."""
        save_model(self.policy, folder, dtype, head_apart)

    def close(self) -> None:
        """Give up the weights."""
        del self.policy
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def load_trainer(
    source: str | Path,
    config: PolicyConfig,
    update: UpdateConfig,
    resources: TrainerResources | None = None,
    resume: bool = False,
) -> Trainer:
    """A Trainer of a model as it is, or of what `Trainer.save` wrote if it is to go on from there.

    Args:
        source: a Hugging Face model directory or hub id.
        config: how it is loaded.
        update: what its optimizer is made with.
        resources: the processes that compute; this one alone if not given.
        resume: whether the source is a checkpoint, of any number of processes.

    Raises:
        ConfigError: the directory or hub id holds no usable model, or there is no such device.
        GroupError: the processes do not start.
    """
    if resources is None or resources.in_process:
        return LocalTrainer((load_checkpoint if resume else load_policy)(source, config, update))
    return GroupTrainer(group_of(resources, device_kind(config.device)), source, config, update, resume)
