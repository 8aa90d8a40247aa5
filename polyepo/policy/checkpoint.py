"""Checkpoints: weights, optimizer state and tokenizer in safetensors and JSON; nothing is pickled."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from polyepo.config import PolicyConfig, UpdateConfig
from polyepo.policy.model import Policy, load_policy

OPTIMIZER = "optimizer"


def save_model(policy: Policy, directory: Path, dtype: str | None = None, head_apart: bool = False) -> None:
    """Write a policy's weights and language as a Hugging Face model directory; arguments as of `Trainer.export`."""
    model = policy.model
    state = model.state_dict()
    if dtype is not None:
        cast = {tensor.data_ptr(): tensor.to(getattr(torch, dtype)) for tensor in state.values()}  # tied ones once
        state = {name: cast[tensor.data_ptr()] for name, tensor in state.items()}
    if head_apart:  # what shares its memory is written once, so here it must not
        head = model.get_output_embeddings().weight
        names = {name for name, weight in model.named_parameters(remove_duplicate=False) if weight is head}
        state |= {name: state[name].clone() for name in names}
    model.save_pretrained(directory, state_dict=state)
    if dtype is not None:
        config = copy.deepcopy(model.config)
        config.dtype = dtype
        config.save_pretrained(directory)
    policy.language.tokenizer.save_pretrained(directory)


def save_checkpoint(policy: Policy, directory: Path) -> None:
    """Write a policy into an empty directory; the result is itself a Hugging Face model directory."""
    save_model(policy, directory)
    names = {id(parameter): name for name, parameter in policy.model.named_parameters()}
    state = {
        f"{key}:{names[id(parameter)]}": value.contiguous().cpu()
        for parameter, entry in policy.optimizer.state.items()
        for key, value in entry.items()
    }
    save_file(state, str(directory / f"{OPTIMIZER}.safetensors"))
    write_version(directory, policy.version)


def load_checkpoint(directory: str | Path, config: PolicyConfig, update: UpdateConfig) -> Policy:
    """Read back what `save_checkpoint` or `save_sharded` wrote, bit for bit."""
    directory = Path(directory)
    policy = load_policy(directory, config, update)
    policy.version = read_version(directory)
    parameters = dict(policy.model.named_parameters())
    saved = TensorFiles(directory, OPTIMIZER)
    for name in saved:
        key, parameter_name = name.split(":", 1)
        parameter = parameters[parameter_name]
        # AdamW keeps its step count on the CPU.
        device = torch.device("cpu") if key == "step" else parameter.device
        policy.optimizer.state[parameter][key] = saved[name].to(device)
    return policy


class TensorFiles(Mapping[str, torch.Tensor]):
    """The tensors in a folder's `{stem}*.safetensors`, by name; each is read when it is asked for."""

    def __init__(self, directory: Path, stem: str) -> None:
        self._files: dict[str, Any] = {}
        for path in sorted(directory.glob(f"{stem}*.safetensors")):
            opened = safe_open(str(path), framework="pt")
            self._files |= dict.fromkeys(opened.keys(), opened)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._files))

    def __len__(self) -> int:
        return len(self._files)


def read_version(directory: Path) -> int:
    """Training steps behind a checkpoint."""
    return json.loads((directory / "trainer_state.json").read_text())["policy_version"]


def write_version(directory: Path, version: int) -> None:
    """Note in a checkpoint how many training steps are behind it."""
    (directory / "trainer_state.json").write_text(json.dumps({"policy_version": version}))
