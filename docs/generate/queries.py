"""Every shipped query, from storage/queries."""

from __future__ import annotations

from storage.catalog import queries

_HEAD = """# Queries

Each is a macro that returns a table: `FROM pass_at_k(8) WHERE benchmark = 'heldout'`. `benchmark` is `train` for training
steps. `polyepo sql` lists them by `.help`; their text is in `storage/queries/`, and works in any DuckDB after `polyepo sql
--print-init`.
"""


def page() -> str:
    """The page, in Markdown."""
    parts = [_HEAD]
    for name, text in queries().items():
        if name == "views":
            continue
        comment = [line.removeprefix("--").strip() for line in text.splitlines() if line.startswith("--")]
        signature, _, answer = " ".join(comment).partition(": ")
        parts += [f"## {name}\n", f"`{signature}`: {answer}\n", '??? quote "The SQL"\n', "    ```sql"]
        parts += [f"    {line}" for line in text.strip().splitlines() if not line.startswith("--")]
        parts += ["    ```\n"]
    return "\n".join(parts)
