"""A section of a configuration, and which of its settings change no result."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Operational:
    """Marks a setting that changes how a run works, but not what comes out: `Annotated[int, Operational()]`.

    It may differ when a run is resumed; each change is recorded. A setting without this mark changes results.
    """


class Section(BaseModel):
    """A part of the configuration: immutable, and refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def operational(section: type[BaseModel]) -> set[str]:
    """Names of a section's settings that change no result."""
    fields = section.model_fields.items()
    return {name for name, field in fields if any(isinstance(mark, Operational) for mark in field.metadata)}
