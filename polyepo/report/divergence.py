"""Where responses part: longest common token prefixes of all pairs, in linear space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

Decode = Callable[[list[int]], str]


class Divergence(NamedTuple):
    """Responses in lexicographic order of their tokens, and what each shares with the next.

    What two responses have in common is the least of what lies between them in this order, so N - 1 numbers tell all
    N (N - 1) / 2 pairs.
    """

    order: list[int]
    """Responses, (N,)."""
    tokens: list[int]
    """Length of the common prefix of neighbours in tokens, (N - 1,)."""
    units: list[int]
    """And in UTF-16 code units of the text, which is how browsers count, (N - 1,)."""


def divergence(token_ids: Sequence[list[int]], texts: Sequence[str], decode: Decode | None = None) -> Divergence:
    """Where the responses of a prompt part.

    Args:
        token_ids: (N,) lists.
        texts: (N,), decoded from them.
        decode: the tokenizer's; without it a mark stands where the texts part, not where the tokens do.
    """
    order = sorted(range(len(token_ids)), key=lambda i: (token_ids[i], i))
    tokens, units = [], []
    for a, b in pairwise(order):
        shared = _shared(token_ids[a], token_ids[b])
        text = texts[a][: _shared(texts[a], texts[b])] if shared else ""
        if decode is not None and text:
            # A prefix of the tokens may decode to more or less than a prefix of the text: half a character, a space.
            text = text[: _shared(text, decode(token_ids[a][:shared]))]
        tokens.append(shared)
        units.append(len(text.encode("utf-16-le", "surrogatepass")) // 2)
    return Divergence(order, tokens, units)


def _shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the longest common prefix."""
    for i, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return i
    return min(len(a), len(b))
