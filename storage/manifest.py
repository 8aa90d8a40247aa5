"""The manifest: the file whose existence is the commit, and the only thing that says which files count."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, NonNegativeInt

from polyepo.schemas import SCHEMA_VERSION

_UNSAFE = re.compile(r"[\\*?\[\0]")  # a path of another system, and what DuckDB takes for a pattern


def _below(path: str) -> str:
    """A path that stays below where it is joined to; raises ValueError. A manifest may come from anyone."""
    if _UNSAFE.search(path) or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"{path!r} must be a relative path without '..', '*', '?', '[' and backslashes")
    return path


def _folder(name: str) -> str:
    if "/" in name:
        raise ValueError(f"{name!r} must be the name of one folder")
    return _below(name)


_Below = Annotated[str, AfterValidator(_below)]
_Folder = Annotated[str, AfterValidator(_folder)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Record):
    """One file of an artifact."""

    path: _Below
    """Relative to the attempt's folder."""
    size: NonNegativeInt
    sha256: str
    num_rows: NonNegativeInt | None = None


class ParentRef(_Record):
    """An artifact that this one was computed from."""

    path: _Below
    content_digest: str
    schema_version: int = 1
    attempt: _Folder | None = None
    files: list[FileEntry] = []
    """With attempt and files a reader of many artifacts need not read each one's manifest."""


class Manifest(_Record):
    """A committed artifact."""

    schema_version: int = SCHEMA_VERSION
    path: _Below
    """The artifact's folder, relative to the root."""
    attempt: _Folder
    """The folder below it that holds the files."""
    created_at: str
    """UTC, ISO 8601."""
    files: list[FileEntry]
    parents: list[ParentRef] = []
    table: str | None = None
    num_rows: int | None = None
    config_hash: str
    code_version: str
    policy_version: int | None = None
    seconds: float | None = None
    """What the stage's work took."""

    @property
    def content_digest(self) -> str:
        """SHA-256 over file names and contents: equal for equal results, whenever and by whichever attempt."""
        content = sorted((entry.path, entry.sha256) for entry in self.files)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def reference(self) -> ParentRef:
        """How artifacts made from this one name it."""
        return ParentRef(
            path=self.path,
            content_digest=self.content_digest,
            schema_version=self.schema_version,
            attempt=self.attempt,
            files=self.files,
        )


@dataclass(frozen=True)
class Provenance:
    """What made an artifact."""

    config_hash: str
    code_version: str
    policy_version: int | None = None
    seconds: float | None = None
