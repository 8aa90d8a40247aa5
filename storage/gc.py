"""Find and delete what no manifest names: attempts of writers that died, and their temporary files."""

from __future__ import annotations

import re
import time
from typing import NamedTuple

from pydantic import ValidationError

from storage.files import FoundFile
from storage.manifest import Manifest
from storage.store import REMOVED, Store

_ATTEMPT = re.compile(r"[0-9a-f]{16}")
_TEMPORARY = re.compile(r"\.(manifest|removed|run|import|[0-9]+)\.json\.[0-9a-f]{32}")


class Garbage(NamedTuple):
    """An unfinished attempt's folder, or a temporary file."""

    path: str
    size: int
    age_s: float
    """Since its newest file was written."""


def find_garbage(store: Store, older_than_s: float) -> list[Garbage]:
    """Unfinished attempts and temporary files whose newest file is older than an age.

    A writer that is at work now is young; one whose newest file is as old as that has died.
    """
    now = time.time()
    groups: dict[str, list[FoundFile]] = {}
    for top in ("runs", "models", ".probe"):
        for file in store.files.find(top):
            if folder := _attempt_of(file.path):
                groups.setdefault(folder, []).append(file)
    found = []
    for folder, files in sorted(groups.items()):
        age = now - max(file.modified for file in files)
        if age > older_than_s and not _is_committed(store, folder):
            found.append(Garbage(folder, sum(file.size for file in files), age))
    return found


def remove_garbage(store: Store, garbage: list[Garbage]) -> int:
    """Delete what was found; what a manifest names by now is left alone. Returns the bytes that were freed."""
    freed = 0
    for item in garbage:
        if not _is_committed(store, item.path):
            store.files.remove(item.path)
            freed += item.size
    return freed


def _attempt_of(path: str) -> str | None:
    """The attempt's folder that a file belongs to, or the file itself if it is a temporary one; else None."""
    parts = path.split("/")
    if parts[0] == ".probe" or _TEMPORARY.fullmatch(parts[-1]):
        return path
    depth = 3  # models/{kind}/{digest}/{attempt}
    if parts[0] == "runs":  # runs/{run}/{stage}/{key=value}.../{attempt}
        while depth < len(parts) and "=" in parts[depth]:
            depth += 1
    is_attempt = depth < len(parts) - 1 and _ATTEMPT.fullmatch(parts[depth])
    return "/".join(parts[: depth + 1]) if is_attempt else None


def _is_committed(store: Store, folder: str) -> bool:
    """Whether a manifest names this attempt, and it was not removed since. One that cannot be read may name it."""
    artifact, _, attempt = folder.rpartition("/")
    if not _ATTEMPT.fullmatch(attempt):
        return False
    try:
        named = Manifest.model_validate_json(store.files.read(f"{artifact}/manifest.json")).attempt == attempt
        return named and not store.files.exists(f"{artifact}/{REMOVED}")
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValidationError):
        return True
