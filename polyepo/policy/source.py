"""Where a policy's model comes from and where it is computed, checked without loading either it or torch's weights."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

from polyepo.config import ConfigError, PolicyConfig, TrainerResources

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
_KEPT = (".json", ".safetensors", ".model", ".txt", ".jinja", ".py")
_HASHED_BYTES = 16 << 20


def check_model_directory(source: str | Path) -> None:
    """Raise ConfigError if a local directory holds no Hugging Face model; what is no directory may be a hub id."""
    path = Path(source)
    if not path.is_dir():
        if path.exists() or str(source).startswith((".", "/", "~")):
            raise ConfigError(f"policy.model {str(source)!r}: no such directory")
        return
    if not (path / "config.json").is_file():
        raise ConfigError(f"policy.model {str(source)!r} has no config.json: it is no Hugging Face model directory")
    if not any(file.name != "optimizer.safetensors" for file in path.glob("*.safetensors")):
        raise ConfigError(f"policy.model {str(source)!r} has no weights: a *.safetensors file is needed")
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise ConfigError(f"policy.model {str(source)!r} has no tokenizer with it: put its files into the directory")


def identify(policy: PolicyConfig) -> dict[str, str]:
    """What a run's record says of the model that it starts from: a hub id's commit, or a digest of a directory's files.

    Raises:
        ConfigError: it is neither a usable directory nor a model of the hub that can be reached.
    """
    if policy.model is None:
        return {}
    check_model_directory(policy.model)
    if Path(policy.model).is_dir():
        return {"files": files_digest(Path(policy.model))}
    return {"revision": resolve_revision(policy.model, policy.revision)}


def resolve_revision(model: str, revision: str | None) -> str:
    """The commit that a hub id's branch or tag means now; without a network, what it meant when it was downloaded.

    Raises:
        ConfigError: the hub has no such model or revision, or cannot be reached and nothing was downloaded.
    """
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(model, "config.json", revision=revision, local_files_only=not hub_answers())
    except (OSError, ValueError) as error:
        reason = (
            str(error).strip().split("\n")[0] if hub_answers() else "it does not answer, and nothing was downloaded"
        )
        wanted = f"{model!r}" + (f" with policy.revision {revision!r}" if revision else "")
        raise ConfigError(
            f"policy.model {wanted} is no directory here, and no model that the Hugging Face hub gives: {reason}"
        ) from None
    return Path(path).parent.name  # …/snapshots/{commit}/config.json


@cache
def hub_answers() -> bool:
    """Whether the hub can be asked; found out once, as its own client would try for minutes, for each file."""
    import httpx
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=10)
    except httpx.HTTPError:
        return False
    return True


def files_digest(directory: Path) -> str:
    """SHA-256 of a model directory's files: of small ones by content, of large ones (weights) by name and size."""
    found = []
    for path in sorted(path for path in directory.iterdir() if path.suffix in _KEPT and path.is_file()):
        size = path.stat().st_size
        content = hashlib.sha256(path.read_bytes()).hexdigest() if size <= _HASHED_BYTES else None
        found.append([path.name, size, content])
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def resolve_device(device: str) -> str:
    """The torch device that a setting means on this machine."""
    if device != "auto":
        return device
    import torch  # takes seconds to import

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_kind(device: str) -> str:
    """cpu, cuda, ...: what floating-point results depend on."""
    return resolve_device(device).split(":")[0]


def check_device(device: str, instead: str = "set policy.device to cpu or auto, or go to one that has") -> None:
    """Raise ConfigError, saying what to do instead, if this machine has no such device."""
    if device == "auto" or device.split(":")[0] == "cpu":
        return
    import torch

    kind, _, number = device.partition(":")
    count = getattr(torch, kind).device_count()
    if int(number or 0) >= count:
        raise ConfigError(
            f"policy.device {device!r}: torch finds {count or 'no'} {kind} device{'s' if count > 1 else ''} on this "
            f"machine; {instead}"
        )


def check_trainer(trainer: TrainerResources, device: str) -> None:
    """Raise ConfigError if there are fewer GPUs here than processes that are to have one each, or none to offload."""
    kind = device_kind(device)
    if trainer.offload and kind != "cuda":
        raise ConfigError(f"resources.trainer.offload is for GPUs, and policy.device is {kind}: leave it out")
    if trainer.processes == 1 or kind == "cpu":
        return
    wanted = f"resources.trainer.processes {trainer.processes}"
    if kind != "cuda":
        raise ConfigError(f"{wanted}: several processes need policy.device cuda or cpu, and it is {kind}")
    if ":" in device:
        raise ConfigError(
            f"{wanted} need a GPU each, and policy.device {device!r} names one: set it to cuda "
            "(CUDA_VISIBLE_DEVICES chooses which)"
        )
    import torch

    if trainer.processes > (count := torch.cuda.device_count()):
        raise ConfigError(f"{wanted} must not exceed the {count} GPUs of this machine: each has one of its own")
