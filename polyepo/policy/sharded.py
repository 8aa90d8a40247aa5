"""A policy whose weights, gradients and optimizer state are spread over several processes by FSDP2.

All ranks call every function here at once.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, revert_weight_conversion
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_layers import GradientCheckpointingLayer

from polyepo.config import ConfigError, PolicyConfig, UpdateConfig
from polyepo.policy.checkpoint import OPTIMIZER, TensorFiles, read_version, write_version
from polyepo.policy.language import Language, load_language
from polyepo.policy.logprobs import Engine, choose_engine
from polyepo.policy.model import Policy, compute_dtype, cut_padding, load_model, make_optimizer, set_up_torch
from polyepo.policy.ranks import Ranks

_MOMENTS = ("exp_avg", "exp_avg_sq")


def load_sharded(
    source: str | Path,
    config: PolicyConfig,
    update: UpdateConfig,
    ranks: Ranks,
    device: torch.device,
    resume: bool = False,
    offload: bool = False,
) -> Policy:
    """A policy, spread over the ranks, from a model or from a checkpoint of any number of processes.

    The first rank reads the weights, into its CPU memory; the others never hold more than their share and one tensor.

    Args:
        source: a Hugging Face model directory or hub id.
        config: how it is loaded.
        update: what its optimizer is made with.
        ranks: this process and the others.
        device: this rank's.
        resume: whether the source is a checkpoint, whose version and optimizer state are gone on from.
        offload: whether weights and optimizer state stay in CPU memory and visit the device layer by layer.

    Raises:
        ConfigError: the source holds no usable model; on all ranks.
    """
    whole, error = None, None
    if ranks.rank == 0:
        try:
            whole = load_model(source, config)
        except ConfigError as found:
            error = str(found)
    if error := ranks.tell(error):
        raise ConfigError(error)
    set_up_torch(config)
    language, known = _language(source, config, ranks)
    chosen = choose_engine(whole) if whole is not None else Engine()
    tiled, packed, why = ranks.tell([chosen.tiled, chosen.packed, chosen.why])
    engine = Engine(tiled, packed, why, known, compute_dtype(config))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            language.model_config, dtype=getattr(torch, config.dtype), trust_remote_code=config.trust_remote_code
        ).eval()
    _check_files(model)
    if whole is not None:
        model.generation_config = whole.generation_config
    _shard(model, ranks.size, device, offload)
    _fill(model, whole, device, offload)
    policy = Policy(model, language, make_optimizer(model, update), ranks=ranks, engine=engine)
    register_fsdp_forward_method(model, "token_logprobs")
    cut_padding(model, known)
    if resume:
        _resume(policy, Path(source))
    return policy


def _language(source: str | Path, config: PolicyConfig, ranks: Ranks) -> tuple[Language, int]:
    """What the policy speaks, and its `known` ids; ranks on other nodes are told, and have no tokenizer."""
    if ranks.local:
        language = load_language(source, config)
    first = ranks.rank == 0
    told = [language.model_config.to_json_string(use_diff=False), language.known] if first else None
    description, known = ranks.tell(told)
    if not ranks.local:
        settings = json.loads(description)
        language = Language(None, AutoConfig.for_model(settings.pop("model_type"), **settings), frozenset())
    return language, known


def _check_files(model: Any) -> None:
    """Raise ConfigError if what is one tensor in the model's files is several in memory: we write one at a time."""
    for conversion in get_model_conversion_mapping(model, add_legacy=False):
        if isinstance(conversion, WeightConverter) and len(conversion.target_patterns) > 1:
            raise ConfigError(
                f"policy.model: {type(model).__name__} splits {conversion.source_patterns[0]!r} of its files, which "
                "several processes cannot write: set resources.trainer.processes to 1"
            )


def _shard(model: Any, size: int, device: torch.device, offload: bool) -> None:
    """Make each layer, and what is outside of them, a unit that is gathered before it is computed, and freed after."""
    mesh = init_device_mesh(device.type, (size,))
    policy = CPUOffloadPolicy() if offload else OffloadPolicy()
    for module in [*(m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)), model]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True, offload_policy=policy)


@torch.no_grad()
def _fill(model: Any, whole: Any, device: torch.device, offload: bool) -> None:
    """Give each rank its share of the weights, and all of the buffers, from the model that the first rank has."""
    weights = dict(whole.named_parameters()) if whole is not None else {}
    buffers = dict(whole.named_buffers()) if whole is not None else {}
    model.to_empty(device="cpu" if offload else device)
    # transformers, and we, put what goes into a model where its weights are: here, where they are computed with.
    type(model).device = property(lambda self: device)
    for module in model.modules():
        module._buffers.update({name: b.to(device) for name, b in module._buffers.items() if b is not None})
    for name, parameter in model.named_parameters():
        _scatter(weights.get(name), parameter)
    for name, buffer in model.named_buffers():  # the meta device has computed none of them
        if name in buffers:
            buffer.copy_(buffers[name])
        dist.broadcast(buffer, 0)


def _scatter(full: torch.Tensor | None, share: DTensor) -> None:
    """Fill a sharded tensor from the first rank's whole one."""
    kind = share.device_mesh.device_type
    full = torch.empty(share.shape, dtype=share.dtype, device=kind) if full is None else full.to(kind, share.dtype)
    share.to_local().copy_(distribute_tensor(full.detach(), share.device_mesh, share.placements).to_local())


@torch.no_grad()
def _resume(policy: Policy, folder: Path) -> None:
    """Version and optimizer state of a checkpoint."""
    first = policy.ranks.rank == 0
    saved = TensorFiles(folder, OPTIMIZER) if first else None
    policy.version = policy.ranks.tell(read_version(folder) if first else None)
    for name, parameter in policy.model.named_parameters():
        step = policy.ranks.tell(float(saved[f"step:{name}"]) if saved and f"step:{name}" in saved else None)
        if step is None:  # there was no update yet
            continue
        state = policy.optimizer.state[parameter]
        state["step"] = torch.tensor(step)
        for moment in _MOMENTS:
            state[moment] = torch.zeros_like(parameter)
            _scatter(saved[f"{moment}:{name}"] if saved else None, state[moment])


def save_sharded(policy: Policy, folder: Path) -> None:
    """Write a checkpoint that `load_checkpoint` reads, in as many files as the first node has ranks."""
    export_sharded(policy, folder)
    state = policy.optimizer.state
    names = [(name, p) for name, p in policy.model.named_parameters() if state[p]]
    moments = [(f"{moment}:{name}", state[p][moment]) for name, p in names for moment in _MOMENTS]
    steps = [(f"step:{name}", state[p]["step"]) for name, p in names]
    _write(policy.ranks, folder, OPTIMIZER, [*moments, *steps])
    if policy.ranks.rank == 0:
        write_version(folder, policy.version)
    policy.ranks.wait()


def export_sharded(policy: Policy, folder: Path, dtype: str | None = None, head_apart: bool = False) -> None:
    """Write a Hugging Face model directory, in as many files as the first node has ranks.

    Arguments as of `Trainer.export`.
    """
    model = policy.model
    if policy.ranks.local:
        folder.mkdir(parents=True, exist_ok=True)
    kept = model.state_dict().keys()
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name in kept]
    weights = [*model.named_parameters(remove_duplicate=not head_apart), *buffers]
    plain = _unsharded(model)
    size = 0

    def as_files(tensor: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        nonlocal size
        written = revert_weight_conversion(plain, tensor)  # some models have other names in files
        if dtype is not None:
            wanted = getattr(torch, dtype)
            written = {name: t.to(wanted) if t.is_floating_point() else t for name, t in written.items()}
        size += sum(value.nbytes for value in written.values())
        return written

    files = _write(policy.ranks, folder, "model", weights, as_files)
    if policy.ranks.rank == 0:
        index = {"metadata": {"total_size": size}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
        _describe(plain, folder, dtype or str(model.dtype).removeprefix("torch."))
        policy.language.tokenizer.save_pretrained(folder)
    policy.ranks.wait()


def _unsharded(model: Any) -> Any:
    """The same model without weights, of the class that it had before `fully_shard` gave it one of its own."""
    with torch.device("meta"):
        plain = type(model).__bases__[1](model.config)
    plain.generation_config = model.generation_config
    return plain


def _describe(model: Any, folder: Path, dtype: str) -> None:
    """Write what `save_pretrained` writes besides weights."""
    config = copy.deepcopy(model.config)
    config.dtype = dtype
    config.architectures = [type(model).__name__]
    if model.is_remote_code():
        custom_object_save(model, folder, config=config)
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


@torch.no_grad()
def _write(
    ranks: Ranks,
    folder: Path,
    stem: str,
    tensors: Iterable[tuple[str, torch.Tensor]],
    as_files: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = lambda tensor: tensor,
) -> dict[str, str]:
    """Gather one tensor at a time; the ranks on the first node take turns to write.

    Args:
        ranks: this process and the others.
        folder: where to.
        stem: begins the names of the files, one for each rank.
        tensors: by name, each rank's share of them.
        as_files: what a whole tensor is in the files, by name.

    Returns:
        The names of the files by tensor, on all ranks.
    """
    own: dict[str, torch.Tensor] = {}
    files: dict[str, str] = {}
    for i, (name, tensor) in enumerate(tensors):
        written = as_files({name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor})
        writer = i % ranks.num_local
        files |= dict.fromkeys(written, f"{stem}-{writer + 1:05d}-of-{ranks.num_local:05d}.safetensors")
        if writer == ranks.rank:
            own |= {key: value.to("cpu", copy=True).contiguous() for key, value in written.items()}
    if own:
        save_file(own, str(folder / files[next(iter(own))]), metadata={"format": "pt"})
    return files
