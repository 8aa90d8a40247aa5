"""A section of a configuration, and which of its settings change no result."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, model_validator


@dataclass(frozen=True)
class Operational:
    """Marks a setting that changes how a run works, but not what comes out: `Annotated[int, Operational()]`.

    It may differ when a run is resumed; each change is recorded. A setting without this mark changes results.
    """


class Section(BaseModel):
    """A part of the configuration: immutable, and refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _no_subclass(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Refuse an object of a subclass: a run's record would be read back as the parent, without a word."""
        if isinstance(value, cls) and type(value) is not cls:
            raise ValueError(
                f"an object of {type(value).__qualname__} cannot stand for {cls.__qualname__}: it would come back from "
                f"the run's record as {cls.__qualname__}, and behave like it; give {cls.__qualname__} itself"
            )
        return handler(value)


def added(default: Any, **constraints: Any) -> Any:
    """A setting that older versions did not have: at its default it is left out of dumps, so that no digest changes.

    The names of scorings, judges and warm starts in a store are digests of settings. A new setting whose default is
    what was done before must not give them other names.

    Args:
        default: its value if not given.
        constraints: as pydantic's `Field` takes them.
    """
    return Field(default, exclude_if=lambda value: value == default, **constraints)


def operational(section: type[BaseModel]) -> set[str]:
    """Names of a section's settings that change no result."""
    fields = section.model_fields.items()
    return {name for name, field in fields if any(isinstance(mark, Operational) for mark in field.metadata)}


def results_only(section: BaseModel) -> dict[str, Any]:
    """A section as JSON values, without its operational settings: what decides what comes out."""
    return _without_operational(section, section.model_dump(mode="json"))


def _without_operational(section: BaseModel, dumped: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    # The dump leaves out defaults that older versions did not have, and holds the settings of code that is not here.
    for name, value in dumped.items():
        if name not in operational(type(section)):
            part = getattr(section, name)
            kept[name] = _without_operational(part, value) if isinstance(part, BaseModel) else value
    return kept


def digest(content: Any) -> str:
    """SHA-256 of content's canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
