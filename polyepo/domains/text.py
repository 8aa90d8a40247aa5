"""Reading integers and splitting problems, the same way in every domain."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from polyepo.domains.base import Problem, Split

# ASCII digits alone: str.isdigit and int() also take digits of other scripts. At most nine, checked before int().
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,8})")

MAX_RESPONSE_CHARACTERS = 10_000
"""Longer responses to the synthetic domains are not read at all."""


def integers(words: Sequence[str]) -> list[int] | None:
    """The words as integers in canonical form (no leading zero, no "+", no "-0"), or None if any is not one."""
    if all(_INTEGER.fullmatch(word) and word != "-0" for word in words):
        return [int(word) for word in words]
    return None


def words_of(response: str) -> list[str]:
    """The response's words, separated by ASCII spaces; none if it is too long to be an answer."""
    return response.split(" ") if len(response) <= MAX_RESPONSE_CHARACTERS else []


def unit_interval(*parts: object) -> float:
    """A number in [0, 1) that is a fixed hash of its parts."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_problems(problems: Sequence[Problem], split: Split, heldout_fraction: float, seed: int) -> list[Problem]:
    """One split of the problems, in their order: which one a problem is in depends on its id and the seed alone.

    round(fraction * number) problems are held out, those whose hashes are smallest; neither split is left empty.

    Raises:
        ValueError: there are fewer than two problems, so that no split is possible.
    """
    if len(problems) < 2:
        raise ValueError(f"domain: {len(problems)} problem(s) cannot be split into train and heldout; at least 2 can")
    num_heldout = min(max(1, round(heldout_fraction * len(problems))), len(problems) - 1)
    by_hash = sorted(problems, key=lambda problem: unit_interval("split", seed, problem.problem_id))
    held_out = {p.problem_id for p in by_hash[:num_heldout]}
    return [problem for problem in problems if (problem.problem_id in held_out) == (split == "heldout")]
