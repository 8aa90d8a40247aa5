"""What a plan knows of a model, and what it is called when it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class UnknownError(Exception):
    """Something about a model cannot be known here: why, and where it can be."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy


class MissingError(UnknownError):
    """It is known that there is no such thing: the run would fail."""


@dataclass(frozen=True)
class ModelFacts:
    """A model as its config.json describes it. `build` makes it, in whatever mode torch is in."""

    build: Callable[[], Any]
    num_parameters: int
    weights: int
    """Bytes of the weights, in the type that they are trained in."""
    positions: int | None
    vocabulary: int


@dataclass(frozen=True)
class Shape:
    """A padded batch: rows of so many prompt and response tokens."""

    rows: int
    prompt: int
    response: int
