"""Log-probabilities of response tokens: by packs and tiles if it can be, by rows and logits if not."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from polyepo.config import ConfigError
from polyepo.policy.head import chosen_logprobs
from polyepo.policy.packing import Pack, first_fit, level, packed_attention

_log = logging.getLogger(__name__)

_PROBE = 14  # tokens that a model is tried on when it is loaded
_LARGE_LOGIT = 100.0  # soft-capping, usually at 30 to 50, shows in logits of this size
# Settings under which a head does more than a product: soft-capping, scales.
_HEAD_SETTINGS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier_scale")


@dataclass(frozen=True)
class Engine:
    """How a model's log-probabilities are computed."""

    tiled: bool = False
    """From hidden states and the head, in tiles; otherwise from the model's own logits, as a whole."""
    packed: bool = False
    """Sequences one after the other; otherwise in rows that are padded. Only with tiles."""
    why: str = ""
    """What is wrong with the model, if it is not both."""
    known: int | None = None
    """Ids that the tokenizer has tokens for, if the vocabulary is padded."""
    dtype: torch.dtype | None = None
    """That layers are computed in, over weights of another type; the weights' own if not given."""

    def __str__(self) -> str:
        if self.packed:
            return "packs without padding, and the head in tiles"
        return f"{'padded rows, and the head in tiles' if self.tiled else 'padded rows and whole logits'}: {self.why}"

    def micro_batches(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], budget: int, num_ranks: int = 1
    ) -> list[np.ndarray]:
        """Rows that are computed together: of at most `budget` tokens, padding included, or of a single row.

        Several ranks deal them out among themselves.
        """
        lengths = [(len(p), len(r)) for p, r in zip(prompts, responses, strict=True)]
        total = [sum(pair) for pair in lengths]
        if not self.packed:
            return micro_batches(lengths, min(budget, -(-sum(total) // num_ranks)))
        return first_fit(total, budget) if num_ranks == 1 else level(total, budget, num_ranks)


PLAIN = Engine(why="it was not tried")


def token_logprobs(
    model: Any,
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    temperature: float,
    with_entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """As `response_logprobs`, which it equals, by a model's engine; entropies only if they are wanted.

    A backward pass belongs into `backward_pass`.
    """
    if not engine.tiled:
        with computing_in(model, engine.dtype):
            logprobs_BR, entropy_BR, mask_BR = response_logprobs(model, prompts, responses, temperature, with_entropy)
        return logprobs_BR, entropy_BR, mask_BR
    body = model.base_model
    with computing_in(model, engine.dtype):
        if engine.packed:
            pack = Pack.of(prompts, responses, model.device)
            chosen_S = pack.chosen_S
            with packed_attention(model):
                hidden_1TH = body(
                    input_ids=pack.ids_1T, position_ids=pack.positions_1T, use_cache=False, **pack.attention()
                ).last_hidden_state
            hidden_SH = hidden_1TH[0].index_select(0, pack.before_S)
        else:
            ids_BL, attention_BL, mask_BR = _padded(prompts, responses, model.device)
            num_tokens = mask_BR.shape[1]
            hidden_BLH = body(
                input_ids=ids_BL, attention_mask=attention_BL, position_ids=position_ids(attention_BL), use_cache=False
            ).last_hidden_state
            places = np.flatnonzero(np.arange(num_tokens) < np.array([[len(response)] for response in responses]))
            places_S = torch.tensor(places, device=model.device)
            hidden_SH = hidden_BLH[:, -num_tokens - 1 : -1].flatten(0, 1).index_select(0, places_S)
            chosen_S = ids_BL[:, -num_tokens:].flatten().index_select(0, places_S)
    logprobs_S, entropy_S = chosen_logprobs(
        hidden_SH, model.get_output_embeddings().weight, chosen_S, temperature, with_entropy, engine.known, engine.dtype
    )
    lengths = [len(response) for response in responses]

    def rows(flat_S: torch.Tensor) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(flat_S.split(lengths), batch_first=True)

    mask_BR = rows(torch.ones_like(chosen_S, dtype=torch.bool))
    return rows(logprobs_S), None if entropy_S is None else rows(entropy_S), mask_BR


@contextmanager
def backward_pass(model: Any, engine: Engine, checkpointing: bool) -> Iterator[None]:
    """Where backward passes are made: layers that are computed again must find what they found the first time."""
    with gradient_checkpointing(model, checkpointing), packed_attention(model) if engine.packed else nullcontext():
        yield


@contextmanager
def computing_in(model: Any, dtype: torch.dtype | None) -> Iterator[None]:
    """While this lasts, layers compute in another type than that of the weights, which are cast when they are used.

    Casts are not cached: the copies would take as much memory as a second model.
    """
    if dtype is None:
        yield
        return
    # What goes from layer to layer takes the type that it begins with.
    handle = model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.to(dtype))
    try:
        with torch.autocast(model.device.type, dtype=dtype, cache_enabled=False):
            yield
    finally:
        handle.remove()


@torch.no_grad()
def choose_engine(model: Any, known: int | None = None, dtype: torch.dtype | None = None) -> Engine:
    """The fastest engine whose values are the model's own, by trying it on a few tokens.

    Args:
        model: a causal language model with its weights.
        known: ids that the tokenizer has tokens for, if the vocabulary is padded.
        dtype: that layers are to be computed in.
    """
    engine = engine_by_config(model, known, dtype)
    if engine.tiled and not _head_is_a_product(model):
        why = "its logits are not the product of its last hidden states and its head"
        engine = Engine(why=why, known=known, dtype=dtype)
    if engine.packed and (difference := _packing_differs(model)):
        engine = Engine(tiled=True, why=f"sequences in a pack do not come out as they do alone ({difference})",
                        known=known, dtype=dtype)  # fmt: skip
    _log.log(logging.INFO if engine.packed else logging.WARNING, "%s: %s", type(model).__name__, engine)
    return engine


def engine_by_config(model: Any, known: int | None = None, dtype: torch.dtype | None = None) -> Engine:
    """The fastest engine that a model's structure and settings allow: what can be told without its weights."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or head.bias is not None or model.base_model is model:
        return Engine(why="its head is no product without a bias", known=known, dtype=dtype)
    for name in _HEAD_SETTINGS:
        if getattr(config, name, None) not in (None, 1, 1.0):
            return Engine(why=f"its head does more than a product ({name} {getattr(config, name)})", known=known,
                          dtype=dtype)  # fmt: skip
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention"}
    if not getattr(config, "layer_types", None) and getattr(config, "sliding_window", None):
        kinds = {"sliding_attention"}
    why = f"it has layers of {' and '.join(sorted(kinds))}, which cannot be packed" if kinds else ""
    return Engine(tiled=True, packed=not kinds, why=why, known=known, dtype=dtype)


def _head_is_a_product(model: Any) -> bool:
    """Whether large hidden states, put in the place of the body's, come out as their product with the head."""
    ids_1T = _probe_ids(model)[None]
    weight_VH = model.get_output_embeddings().weight
    hidden_1TH = model.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state
    hidden_1TH = hidden_1TH * (_LARGE_LOGIT / (hidden_1TH @ weight_VH.T).abs().max())

    def replace(module: Any, args: Any, output: Any) -> Any:
        output.last_hidden_state = hidden_1TH
        return output

    handle = model.base_model.register_forward_hook(replace)
    try:
        logits_1TV = model(input_ids=ids_1T, use_cache=False).logits
    finally:
        handle.remove()
    product_1TV = (hidden_1TH @ weight_VH.T)[..., : logits_1TV.shape[-1]]
    return bool((logits_1TV - product_1TV).abs().max() <= _tolerance(model) * _LARGE_LOGIT)


def _packing_differs(model: Any) -> str | None:
    """How the hidden states of sequences in a pack differ from those that they have alone; None if they do not."""
    ids = _probe_ids(model).tolist()
    prompts, responses = [ids[:3], ids[5:6]], [ids[3:5], ids[6:]]
    pack = Pack.of(prompts, responses, model.device)
    try:
        with packed_attention(model):
            together_TH = model.base_model(
                input_ids=pack.ids_1T, position_ids=pack.positions_1T, use_cache=False, **pack.attention()
            ).last_hidden_state[0]
    except (NotImplementedError, TypeError, ValueError) as error:
        return str(error)
    alone_TH = torch.cat([
        model.base_model(input_ids=torch.tensor([[*p, *r]], device=model.device), use_cache=False).last_hidden_state[0]
        for p, r in zip(prompts, responses, strict=True)
    ])  # fmt: skip
    difference = float((together_TH - alone_TH).abs().max() / alone_TH.abs().max())
    return None if difference <= _tolerance(model) else f"by {difference:.0e}"


def _probe_ids(model: Any) -> torch.Tensor:
    return torch.arange(_PROBE, device=model.device) % model.config.get_text_config().vocab_size


def _tolerance(model: Any) -> float:
    return 1e-3 if torch.finfo(model.dtype).bits >= 32 else 5e-2


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both (B, longest), with the padding on the left."""
    width = max(len(row) for row in rows)
    ids_BL = torch.zeros(len(rows), width, dtype=torch.long)
    mask_BL = torch.zeros(len(rows), width, dtype=torch.long)
    for b, row in enumerate(rows):
        ids_BL[b, width - len(row) :] = torch.as_tensor(row)
        mask_BL[b, width - len(row) :] = 1
    return ids_BL.to(device), mask_BL.to(device)


def response_logprobs(
    model: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    temperature: float,
    with_entropy: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Log-probabilities of response tokens under softmax(logits / temperature), from the model's own logits.

    Args:
        model: a causal language model.
        prompts: B lists of token ids.
        responses: B lists of token ids, the longest of R tokens.
        temperature: that of the sampler.
        with_entropy: whether entropies are wanted.

    Returns:
        log-probabilities (B, R), entropies in nats (B, R) or None, and a boolean mask (B, R) of the real tokens. It
        comes from lengths, never from a padding id, which may equal EOS. Logits exist for response tokens alone.
    """
    ids_BL, attention_BL, mask_BR = _padded(prompts, responses, model.device)
    num_tokens = mask_BR.shape[1]
    logits_BRV = model(
        input_ids=ids_BL,
        attention_mask=attention_BL,
        position_ids=position_ids(attention_BL),
        use_cache=False,
        logits_to_keep=num_tokens + 1,
    ).logits[:, :-1]
    all_BRV = torch.log_softmax(_at_least_float32(logits_BRV) / temperature, dim=-1)
    logprobs_BR = all_BRV.gather(-1, ids_BL[:, -num_tokens:, None]).squeeze(-1)
    entropy_BR = -(all_BRV.detach().exp() * all_BRV.detach()).sum(-1) if with_entropy else None
    return logprobs_BR, entropy_BR, mask_BR


def _padded(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids and attention mask (B, P + R), prompts padded on the left, responses on the right; response mask (B, R)."""
    prompt_BP, prompt_mask_BP = left_padded(prompts, device)
    num_tokens = max(len(response) for response in responses)
    lengths_B = torch.tensor([len(response) for response in responses])
    mask_BR = (torch.arange(num_tokens)[None] < lengths_B[:, None]).to(device)
    response_BR = torch.zeros(len(responses), num_tokens, dtype=torch.long)
    for b, response in enumerate(responses):
        response_BR[b, : len(response)] = torch.as_tensor(response)
    ids_BL = torch.cat([prompt_BP, response_BR.to(device)], dim=1)
    return ids_BL, torch.cat([prompt_mask_BP, mask_BR.long()], dim=1), mask_BR


@contextmanager
def gradient_checkpointing(model: Any, wanted: bool) -> Iterator[None]:
    """While this lasts, layers keep their inputs alone and are computed again in the backward pass, if that is wanted.

    Not by the model's own switch: it works in training mode alone, whose dropout the sampler would not have.
    """
    layers = [module for module in model.modules() if wanted and isinstance(module, GradientCheckpointingLayer)]
    if wanted and not layers:
        raise ConfigError(f"update.gradient_checkpointing: {type(model).__name__} has no layers that can do it")
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the instance's; the class's is back


def position_ids(attention_BL: torch.Tensor) -> torch.Tensor:
    """Positions that do not count left padding, (B, L)."""
    return (attention_BL.cumsum(-1) - 1).clamp_min(0)


def micro_batches(lengths: Sequence[tuple[int, int]], budget: int) -> list[np.ndarray]:
    """Group rows so that each group's padded size (rows x (longest prompt + longest response)) is within `budget`.

    Args:
        lengths: (prompt, response) tokens of each row.
        budget: padded tokens; a single row that is larger gets a group of its own.
    """
    order = sorted(range(len(lengths)), key=lambda row: (sum(lengths[row]), row))
    groups: list[list[int]] = []
    widest = (0, 0)
    for row in order:
        grown = (max(widest[0], lengths[row][0]), max(widest[1], lengths[row][1]))
        if groups and (len(groups[-1]) + 1) * sum(grown) <= budget:
            groups[-1].append(row)
            widest = grown
        else:
            groups.append([row])
            widest = lengths[row]
    return [np.array(group) for group in groups]


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
