"""Names of runs, judges and whatever else becomes a part of a path or an id."""

from __future__ import annotations

import re

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def is_name(value: str) -> bool:
    """Whether a name is safe as a path component."""
    return bool(_NAME.fullmatch(value)) and ".." not in value


def name_of(text: str, longest: int, otherwise: str) -> str:
    """The beginning of a name that tells people of a text, such as a file's; what follows it must make it unique."""
    return re.sub(r"[^A-Za-z0-9._-]+|\.{2,}", "-", text).strip("._-")[:longest] or otherwise


def slug(text: str, longest: int | None = None) -> str:
    """Lower-case letters and digits with single dashes between: all of a text, or its end if that is too long."""
    whole = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return whole if longest is None else whole[-longest:].strip("-")
