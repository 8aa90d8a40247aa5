"""The manifest: the file whose existence is the commit, and the only thing that says which files count."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from polyepo.schemas import SCHEMA_VERSION


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Record):
    """One file of an artifact."""

    path: str
    """Relative to the attempt's folder."""
    size: int
    sha256: str
    num_rows: int | None = None


class ParentRef(_Record):
    """An artifact that this one was computed from."""

    path: str
    content_digest: str
    schema_version: int = 1
    attempt: str | None = None
    files: list[FileEntry] = []
    """With attempt and files a reader of many artifacts need not read each one's manifest."""


class Manifest(_Record):
    """A committed artifact."""

    schema_version: int = SCHEMA_VERSION
    path: str
    """The artifact's folder, relative to the root."""
    attempt: str
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
