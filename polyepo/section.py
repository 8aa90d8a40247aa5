"""A section of a configuration, and which of its settings change no result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Operational:
    """Marks a setting that changes how a run works, but not what comes out: `Annotated[int, Operational()]`.

    It may differ when a run is resumed; each change is recorded. A setting without this mark changes results.
    """


class Section(BaseModel):
    """A part of the configuration: immutable, and refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def results_only(section: BaseModel) -> dict[str, Any]:
    """A section as JSON values, without its operational settings: what decides what comes out."""
    return _without_operational(section, section.model_dump(mode="json"))


def _without_operational(section: BaseModel, dumped: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for name, field in type(section).model_fields.items():
        # A default that older versions did not have is left out of the dump.
        if name not in dumped or any(isinstance(mark, Operational) for mark in field.metadata):
            continue
        value = getattr(section, name)
        kept[name] = _without_operational(value, dumped[name]) if isinstance(value, BaseModel) else dumped[name]
    return kept
