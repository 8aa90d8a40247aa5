"""Leakage: problems to be evaluated on that are problems trained on, whatever their ids."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from polyepo.domains.base import Problem


def leaks(train: Iterable[Problem], evaluation: Iterable[Problem]) -> list[tuple[str, str]]:
    """Pairs of ids, (training problem, evaluation problem), whose texts are equal but for case, spaces and $."""
    first: dict[str, str] = {}
    for problem in train:
        first.setdefault(_normalised(problem), problem.problem_id)
    found = ((first.get(_normalised(problem)), problem.problem_id) for problem in evaluation)
    return [(trained, evaluated) for trained, evaluated in found if trained is not None]


def _normalised(problem: Problem) -> str:
    """What is asked, without a system prompt."""
    prompt = problem.prompt
    turns = [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt if m["role"] != "system"]
    text = unicodedata.normalize("NFKC", " ".join(turns)).casefold()
    return "".join(text.replace("$", "").split())
