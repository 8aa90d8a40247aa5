"""Checkpoints: weights, optimizer state and tokenizer in safetensors and JSON; nothing is pickled."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from polyepo.config import PolicyConfig, UpdateConfig
from polyepo.policy.model import Policy, load_policy


def save_checkpoint(policy: Policy, directory: Path) -> None:
    """Write a policy into an empty directory; the result is itself a Hugging Face model directory."""
    policy.model.save_pretrained(directory)
    policy.tokenizer.save_pretrained(directory)
    names = {id(parameter): name for name, parameter in policy.model.named_parameters()}
    state = {
        f"{key}:{names[id(parameter)]}": value.contiguous().cpu()
        for parameter, entry in policy.optimizer.state.items()
        for key, value in entry.items()
    }
    save_file(state, str(directory / "optimizer.safetensors"))
    (directory / "trainer_state.json").write_text(json.dumps({"policy_version": policy.version}))


def load_checkpoint(directory: Path, config: PolicyConfig, update: UpdateConfig) -> Policy:
    """Read back what `save_checkpoint` wrote, bit for bit."""
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
