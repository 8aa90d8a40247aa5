"""Checkpoints: weights, optimizer state and tokenizer in safetensors and JSON; nothing is pickled."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from polyepo.config import PolicyConfig, UpdateConfig
from polyepo.policy.model import Policy, load_policy


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
    save_file(state, str(directory / "optimizer.safetensors"))
    (directory / "trainer_state.json").write_text(json.dumps({"policy_version": policy.version}))


def load_checkpoint(directory: str | Path, config: PolicyConfig, update: UpdateConfig) -> Policy:
    """Read back what `save_checkpoint` wrote, bit for bit."""
    directory = Path(directory)
    policy = load_policy(directory, config, update)
    policy.version = json.loads((directory / "trainer_state.json").read_text())["policy_version"]
    parameters = dict(policy.model.named_parameters())
    for name, tensor in load_file(str(directory / "optimizer.safetensors")).items():
        key, parameter_name = name.split(":", 1)
        parameter = parameters[parameter_name]
        # AdamW keeps its step count on the CPU.
        device = torch.device("cpu") if key == "step" else parameter.device
        policy.optimizer.state[parameter][key] = tensor.to(device)
    return policy
