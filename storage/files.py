"""The few file operations that the commit protocol needs: on a local disk by local.py, on object storage by s3.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

PARALLEL_REQUESTS = 64
"""To object storage, where each takes long and many are answered side by side."""


class FoundFile(NamedTuple):
    """A file that was found below a folder."""

    path: str
    """Relative to the root."""
    size: int
    modified: float
    """Seconds since 1970."""


class Files(Protocol):
    """Files under a root; paths are relative, with forward slashes."""

    fs: Any
    """The file system that fsspec knows them by; None where their `url` opens without it."""
    parallel: int
    """How many files are worth asking for at a time."""

    def write(self, path: str, content: bytes | Path) -> None:
        """Write a new file, durably, making its folders: some bytes, or a copy of a local file."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Write a file unless it exists, atomically: of callers with different data exactly one gets True."""
        ...

    def read(self, path: str) -> bytes:
        """A file's content. Raises FileNotFoundError."""
        ...

    def chunks(self, path: str, size: int) -> Iterator[bytes]:
        """The content of a file that should have a size, a part at a time. Raises FileNotFoundError."""
        ...

    def exists(self, path: str) -> bool:
        """Whether a file is there."""
        ...

    def names(self, path: str) -> list[str]:
        """Names of what a folder holds, sorted; empty if there is no such folder."""
        ...

    def find(self, path: str) -> list[FoundFile]:
        """Every file below a folder, however deep; empty if there is no such folder."""
        ...

    def remove(self, path: str) -> None:
        """Delete a file, or a folder with all it holds; no error if it is not there."""
        ...

    def local_copy(self, path: str, names: list[str]) -> Path:
        """A local folder with the given files of a folder."""
        ...

    def url(self, path: str) -> str:
        """What DuckDB and pyarrow call the file."""
        ...
