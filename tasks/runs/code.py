"""Code that a run's maker brought: recorded and kept with the run, and asked for where it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from polyepo import plugins
from polyepo.config import RunConfig, load_config
from polyepo.plugins import Code, Coded
from storage import Store


def provide(path: str | None) -> None:
    """Import the code that a configuration of the user's names, for runs that were made with it."""
    if path:
        load_config(path)


def check_provided(config: RunConfig) -> None:
    """Raise MissingCodeError if a run's settings name code that nobody here provides, or that is another by now."""
    for reference, digest in _named(config):
        plugins.required(reference, digest)


def code_of(config: RunConfig) -> dict[str, Code]:
    """What was imported for a configuration, by reference."""
    return {reference: plugins.required(reference, digest) for reference, digest in _named(config)}


def code_record(config: RunConfig) -> dict[str, Any]:
    """What a run's record says of its code; nothing for a run that has none of its own."""
    codes = code_of(config)
    return {"code": {reference: code.record for reference, code in codes.items()}} if codes else {}


def keep_sources(store: Store, run: str, config: RunConfig) -> None:
    """Keep the text of a run's code next to it, as runs/{run}/code/{SHA-256}.py: to be read, never to be run."""
    for code in code_of(config).values():
        for digest, text in code.sources.items():
            store.keep_source(run, digest, text)


def _named(section: BaseModel) -> Iterator[tuple[str, str]]:
    """References and digests of the code behind a section and those in it."""
    if isinstance(section, Coded) and section.code is not None:
        yield section.reference, section.code
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _named(value)
