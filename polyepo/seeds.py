"""Seeds derive from what they are for (run seed, step, problem, sample), never from time or order."""

from __future__ import annotations

import hashlib
import json


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a pure function of its parts, and unrelated for different parts."""
    key = json.dumps(parts, separators=(",", ":")).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
