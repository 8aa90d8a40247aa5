"""Text that came from a model or a file, made fit for a terminal."""

from __future__ import annotations

import unicodedata


def safe_text(value: object, limit: int = 2000) -> str:
    """One line of visible characters: whatever could move the cursor or hide text is written as its escape.

    Args:
        value: any value; its `str` is shown.
        limit: characters to show; the rest is cut, and it is said how many there were.
    """
    text = str(value)
    shown = "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else _escape(c) for c in text[:limit])
    return shown if len(text) <= limit else f"{shown} … ({len(text):,} characters)"


def _escape(character: str) -> str:
    return {"\n": "⏎", "\t": "⇥"}.get(character) or character.encode("unicode_escape", "backslashreplace").decode()
