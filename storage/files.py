"""The few file operations that the commit protocol needs, on a local disk and on object storage."""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import fsspec


class FoundFile(NamedTuple):
    """A file that was found below a folder."""

    path: str
    """Relative to the root."""
    size: int
    modified: float
    """Seconds since 1970."""


class Files(Protocol):
    """Files under a root; paths are relative, with forward slashes."""

    def write(self, path: str, data: bytes) -> None:
        """Write a new file, durably, making its folders."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Write a file unless it exists, atomically: of any number of callers exactly one gets True."""
        ...

    def read(self, path: str) -> bytes:
        """A file's content. Raises FileNotFoundError."""
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


class LocalFiles:
    """A folder on a local disk. fsspec's local "create" checks and then writes, so it is no lock: os.link is."""

    def __init__(self, root: str) -> None:
        self._root = Path(root).expanduser().absolute()

    def write(self, path: str, data: bytes) -> None:
        """Write a new file, durably, making its folders."""
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_and_sync(target, data)
        _sync_folder(target.parent)

    def create(self, path: str, data: bytes) -> bool:
        """Write a file unless it exists, atomically."""
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}"
        try:
            _write_and_sync(temporary, data)
            os.link(temporary, target)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)
        return True

    def read(self, path: str) -> bytes:
        """A file's content."""
        return (self._root / path).read_bytes()

    def exists(self, path: str) -> bool:
        """Whether a file is there."""
        return (self._root / path).is_file()

    def names(self, path: str) -> list[str]:
        """Names of what a folder holds."""
        try:
            return sorted(os.listdir(self._root / path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def find(self, path: str) -> list[FoundFile]:
        """Every file below a folder."""
        found = []
        for folder, _, names in os.walk(self._root / path):
            for name in names:
                file = Path(folder) / name
                try:
                    status = file.lstat()
                except FileNotFoundError:  # a writer's temporary file
                    continue
                relative = file.relative_to(self._root).as_posix()
                found.append(FoundFile(relative, status.st_size, status.st_mtime))
        return sorted(found)

    def remove(self, path: str) -> None:
        """Delete a file or folder."""
        target = self._root / path
        if target.is_dir():
            for name in os.listdir(target):
                self.remove(f"{path}/{name}")
            target.rmdir()
        else:
            target.unlink(missing_ok=True)

    def local_copy(self, path: str, names: list[str]) -> Path:
        """The folder itself."""
        return self._root / path

    def url(self, path: str) -> str:
        """The absolute path."""
        return str(self._root / path)


class RemoteFiles:
    """A prefix of an object store, through fsspec. Creation is conditional: s3fs sends If-None-Match: *."""

    def __init__(self, root: str, **options: Any) -> None:
        self.fs, prefix = fsspec.core.url_to_fs(root, **options)
        self._prefix = prefix.rstrip("/")
        self._protocol = root.split("://", 1)[0]
        self._copies = tempfile.TemporaryDirectory(prefix="polyepo-")

    def write(self, path: str, data: bytes) -> None:
        """Write a new object."""
        self.fs.pipe_file(self._full(path), data)

    def create(self, path: str, data: bytes) -> bool:
        """Write an object unless it exists, atomically."""
        try:
            self.fs.pipe_file(self._full(path), data, mode="create")
        except FileExistsError:
            return False
        return True

    def read(self, path: str) -> bytes:
        """An object's content."""
        return self.fs.cat_file(self._full(path))

    def exists(self, path: str) -> bool:
        """Whether an object is there, asked of the store and not of a cached listing."""
        self.fs.invalidate_cache()
        return self.fs.isfile(self._full(path))

    def names(self, path: str) -> list[str]:
        """Names of what a prefix holds."""
        try:
            return sorted(
                name.rstrip("/").rsplit("/", 1)[-1] for name in self.fs.ls(self._full(path), detail=False, refresh=True)
            )
        except FileNotFoundError:
            return []

    def find(self, path: str) -> list[FoundFile]:
        """Every object below a prefix."""
        self.fs.invalidate_cache()
        found = self.fs.find(self._full(path), detail=True)
        start = len(self._full(""))
        return sorted(
            FoundFile(name[start:], info["size"], info["LastModified"].timestamp()) for name, info in found.items()
        )

    def remove(self, path: str) -> None:
        """Delete an object, or all below a prefix."""
        if self.fs.exists(self._full(path)):
            self.fs.rm(self._full(path), recursive=True)

    def local_copy(self, path: str, names: list[str]) -> Path:
        """A download, kept for as long as this object lives."""
        folder = Path(self._copies.name) / path
        for name in names:
            target = folder / name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
                self.fs.get_file(self._full(f"{path}/{name}"), str(partial))
                partial.rename(target)
        return folder

    def url(self, path: str) -> str:
        """With the protocol in front."""
        return f"{self._protocol}://{self._full(path)}"

    def _full(self, path: str) -> str:
        return f"{self._prefix}/{path}"


def open_files(root: str, **options: Any) -> Files:
    """Files under a local path or a URL such as s3://bucket/prefix."""
    if "://" in root and not root.startswith("file://"):
        return RemoteFiles(root, **options)
    return LocalFiles(root.removeprefix("file://"))


def _write_and_sync(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
