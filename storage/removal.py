"""Making room: the files of a committed artifact go, and a record next to its manifest says when and why."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from storage.errors import CorruptArtifactError, StoreError
from storage.files import Files
from storage.layout import AnyKey
from storage.store import REMOVED, Store


def remove_files(store: Store, key: AnyKey, reason: str) -> int:
    """Remove the files of a committed artifact; returns the bytes that were freed, 0 if they were gone already.

    The manifest stays, so that what was made from it still has its parents, and the name is never given again. The
    record comes first: whoever is killed in between leaves files that `polyepo gc` finds.

    Raises:
        StoreError: the artifact is not committed, or the record cannot be written.
    """
    manifest = store.manifest(key)
    if manifest is None:
        raise StoreError(f"{key.path} is not committed, so there is nothing to remove")
    size = sum(entry.size for entry in manifest.files)
    record = {"removed_at": datetime.now(UTC).isoformat(timespec="milliseconds"), "reason": reason, "bytes": size}
    try:
        first = store.files.create(f"{key.path}/{REMOVED}", json.dumps(record, indent=1).encode())
        store.files.remove(f"{key.path}/{manifest.attempt}")
    except OSError as error:
        raise StoreError(f"{key.path} could not be removed under root {store.root!r}: {error}") from error
    return size if first else 0


def removal(files: Files, path: str) -> dict[str, Any] | None:
    """When and why the files of the artifact at a path were removed; None if they were not.

    Raises:
        CorruptArtifactError: the record cannot be read.
    """
    try:
        record = json.loads(files.read(f"{path}/{REMOVED}"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptArtifactError(f"{path}/{REMOVED} cannot be read: {error}") from None
    return record if isinstance(record, dict) else {}
