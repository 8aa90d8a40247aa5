"""How many tokens a request has: counted with the judge's tokenizer where there is one, else estimated."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from polyepo.judges.llm.limits import JudgeError
from polyepo.judges.llm.prompt import MESSAGE_TOKENS, estimated_tokens


def count_tokens(messages: Sequence[dict[str, str]], tokenizer: str | None) -> int:
    """Tokens of messages, by a tokenizer (a directory or hub id), or about so many.

    Raises:
        JudgeError: the tokenizer cannot be loaded.
    """
    if tokenizer is None:
        return estimated_tokens(messages)
    loaded = _load(tokenizer)
    return sum(len(loaded.encode(m["content"], add_special_tokens=False)) + MESSAGE_TOKENS for m in messages)


@lru_cache(maxsize=4)
def _load(name: str) -> Any:
    """A tokenizer alone: no weights, and neither transformers nor torch."""
    from tokenizers import Tokenizer

    try:
        if Path(name).is_dir():
            loaded = Tokenizer.from_file(str(Path(name) / "tokenizer.json"))
        else:
            loaded = Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises plain Exception
        raise JudgeError(
            f"judge.tokenizer {name!r} cannot be loaded ({str(error)[:200]}): it must be a directory with a "
            "tokenizer.json, or a hub id; without it tokens are estimated"
        ) from error
    loaded.no_truncation()
    loaded.no_padding()
    return loaded
