"""Sequences one after the other in one row, without padding; attention keeps them apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heapreplace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

_NAME = "polyepo_packed"
# What a layer may ask of attention besides what is done here; None is how it does not.
_NOT_DONE = ("softcap", "s_aux", "sliding_window", "position_bias")


def first_fit(lengths: Sequence[int], budget: int) -> list[np.ndarray]:
    """Rows by pack, the longest first, each into the first pack with room for it.

    Args:
        lengths: tokens of each row.
        budget: tokens of a pack; a single row that is larger gets a pack of its own.
    """
    packs: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        for p, left in enumerate(room):
            if lengths[row] <= left:
                packs[p].append(row)
                room[p] -= lengths[row]
                break
        else:
            packs.append([row])
            room.append(budget - lengths[row])
    return [np.array(pack) for pack in packs]


def level(lengths: Sequence[int], budget: int, num_ranks: int) -> list[np.ndarray]:
    """Rows by pack, of which there are as many for every rank, all about as long: the longest row to the shortest pack.

    Arguments as of `first_fit`. In the time of one pass of the slowest rank the others wait for it.
    """
    num_packs = num_ranks * max(1, -(-sum(lengths) // (budget * num_ranks)))
    while True:
        packs: list[tuple[int, int, list[int]]] = [(0, p, []) for p in range(num_packs)]
        for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
            length, p, rows = packs[0]
            heapreplace(packs, (length + lengths[row], p, [*rows, row]))
        full = sorted(((length, p, rows) for length, p, rows in packs if rows), key=lambda pack: (-pack[0], pack[1]))
        if num_packs >= len(lengths) or all(length <= budget or len(rows) == 1 for length, _, rows in full):
            return [np.array(rows) for _, _, rows in full]
        num_packs += num_ranks


@dataclass(frozen=True)
class Pack:
    """R sequences, prompt and response each, as one row of T tokens; S of them are the responses'."""

    ids_1T: torch.Tensor
    positions_1T: torch.Tensor
    """They begin at 0 with every sequence."""
    bounds: np.ndarray
    """Where sequences begin and the last one ends, (R + 1,)."""
    before_S: torch.Tensor
    """Places in the pack of the token before each response token, whose hidden state it is predicted from."""
    chosen_S: torch.Tensor
    """The response tokens."""

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], device: torch.device) -> Pack:
        """Pack sequences in their order."""
        lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
        bounds = np.cumsum([0, *lengths])
        ids = np.concatenate([np.asarray([*p, *r]) for p, r in zip(prompts, responses, strict=True)])
        positions = np.concatenate([np.arange(length) for length in lengths])
        before = [np.arange(end - len(r), end) - 1 for end, r in zip(bounds[1:], responses, strict=True)]
        chosen = np.concatenate([np.asarray(r) for r in responses])

        def tensor(values: np.ndarray) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        return cls(tensor(ids)[None], tensor(positions)[None], bounds, tensor(np.concatenate(before)), tensor(chosen))

    def attention(self) -> dict[str, Any]:
        """What the model passes on to attention, by the names that transformers has for it."""
        lengths = np.diff(self.bounds)
        bounds: Any = self.bounds
        if self.ids_1T.is_cuda:
            bounds = torch.tensor(self.bounds, dtype=torch.int32, device=self.ids_1T.device)
        return {"cu_seq_lens_q": bounds, "max_length_q": int(lengths.max())}


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """While this lasts, the model takes packs alone. The backward pass belongs in it: it may compute layers again."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: Any,
    query_1ATD: torch.Tensor,
    key_1KTD: torch.Tensor,
    value_1KTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: Any,
    max_length_q: int,
    scaling: float | None = None,
    **asked: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence of a pack; A query heads share K key heads."""
    if attention_mask is not None or any(asked.get(name) is not None for name in _NOT_DONE):
        raise NotImplementedError("attention of this kind is not done in packs")
    query_1ATD, key_1KTD = query_1ATD.to(value_1KTD.dtype), key_1KTD.to(value_1KTD.dtype)  # autocast leaves norms wide
    if query_1ATD.is_cuda and query_1ATD.dtype == torch.bfloat16:
        from torch.nn.attention.varlen import varlen_attn

        query_TAD, key_TKD, value_TKD = (x[0].transpose(0, 1) for x in (query_1ATD, key_1KTD, value_1KTD))
        out_TAD = varlen_attn(
            query_TAD, key_TKD, value_TKD, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q,
            scale=scaling, window_size=(-1, 0), enable_gqa=True,
        )  # fmt: skip
        assert isinstance(out_TAD, torch.Tensor)
        return out_TAD[None], None
    bounds = cu_seq_lens_q if isinstance(cu_seq_lens_q, np.ndarray) else cu_seq_lens_q.cpu().numpy()
    lengths = np.diff(bounds)
    places = np.concatenate([row * max_length_q + np.arange(length) for row, length in enumerate(lengths)])
    places_T = torch.tensor(places, device=query_1ATD.device)

    def padded(packed_1ATD: torch.Tensor) -> torch.Tensor:
        _, num_heads, _, size = packed_1ATD.shape
        rows_PAD = packed_1ATD.new_zeros(len(lengths) * max_length_q, num_heads, size)
        rows_PAD = rows_PAD.index_copy(0, places_T, packed_1ATD[0].transpose(0, 1))
        return rows_PAD.view(len(lengths), max_length_q, num_heads, size).transpose(1, 2)

    # Padding is on the right, so that no token comes after it that would see it: no mask is needed.
    out_RALD = scaled_dot_product_attention(
        padded(query_1ATD), padded(key_1KTD), padded(value_1KTD), is_causal=True, scale=scaling,
        enable_gqa=query_1ATD.shape[1] != key_1KTD.shape[1],
    )  # fmt: skip
    return out_RALD.transpose(1, 2).flatten(0, 1).index_select(0, places_T)[None], None


AttentionInterface.register(_NAME, _attend)
