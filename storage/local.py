"""The file operations of the commit protocol on a local disk."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from storage.files import FoundFile

_CHUNK_BYTES = 1 << 20


class LocalFiles:
    """A folder on a local disk. fsspec's local "create" checks and then writes, so it is no lock: os.link is."""

    fs = None
    parallel = 4

    def __init__(self, root: str) -> None:
        self._root = Path(root).expanduser().absolute()

    def _inside(self, path: str) -> Path:
        """Where a file is. A run may be a link (to another disk); below it nothing is, so nothing leads out of it.

        Raises:
            PermissionError: it would lead out of the store.
        """
        target = self._root
        for depth, part in enumerate(path.split("/")):
            target = target / part
            if part == ".." or (depth > 1 and target.is_symlink()):
                raise PermissionError(errno.EPERM, "it leads out of the store", path)
        return target

    def write(self, path: str, content: bytes | Path) -> None:
        """Write a new file, durably, making its folders."""
        target = self._inside(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_and_sync(target, content)
        _sync_folder(target.parent)

    def create(self, path: str, data: bytes) -> bool:
        """Write a file unless it exists, atomically."""
        target = self._inside(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}"
        try:
            _write_and_sync(temporary, data)
            os.link(temporary, target)
        except FileExistsError:
            # NFS asks again when a reply is lost, and then finds the link that its first request made: it is ours.
            if target.read_bytes() != data:
                return False
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)
        return True

    def read(self, path: str) -> bytes:
        """A file's content."""
        return self._inside(path).read_bytes()

    def chunks(self, path: str, size: int) -> Iterator[bytes]:
        """A file's content, a part at a time."""
        with self._inside(path).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

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
        found: list[FoundFile] = []
        folders = [path]
        while folders:
            folder = folders.pop()
            try:
                entries = list(os.scandir(self._root / folder))
            except (FileNotFoundError, NotADirectoryError):
                continue
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{folder}/{entry.name}")
                    continue
                with contextlib.suppress(FileNotFoundError):  # a writer's temporary file
                    status = entry.stat(follow_symlinks=False)
                    found.append(FoundFile(f"{folder}/{entry.name}", status.st_size, status.st_mtime))
        return sorted(found)

    def remove(self, path: str) -> None:
        """Delete a file, a folder or a link; what a link leads to stays."""
        folder, _, name = path.rpartition("/")
        target = self._inside(folder) / name
        if target.is_dir() and not target.is_symlink():
            for name in os.listdir(target):
                self.remove(f"{path}/{name}")
            target.rmdir()
        else:
            target.unlink(missing_ok=True)

    def local_copy(self, path: str, names: list[str]) -> Path:
        """The folder itself."""
        for name in names:
            self._inside(f"{path}/{name}")
        return self._root / path

    def url(self, path: str) -> str:
        """The absolute path."""
        return str(self._inside(path)) if path else str(self._root)


def _write_and_sync(path: Path, content: bytes | Path) -> None:
    with open(path, "xb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            with content.open("rb") as source:
                shutil.copyfileobj(source, file, _CHUNK_BYTES)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
