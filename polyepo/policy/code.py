"""Which code computes an update: processes that compute one together must have the same."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def _digest() -> str:
    found = hashlib.sha256(f"torch {version('torch')}, transformers {version('transformers')}".encode())
    for path in sorted([*_PACKAGE.glob("*.py"), *(_PACKAGE / "policy").glob("*.py")]):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


CODE = _digest()
"""SHA-256 of this package's files and the versions of torch and transformers, when this process imported them."""
