"""Every table and column, from the schemas that stores are written by."""

from __future__ import annotations

from polyepo.schemas import COMMENTS, SCHEMA_VERSION, TABLES
from storage.catalog import RUN_COLUMNS, queries

_HEAD = f"""# Tables

What is in a store, as `polyepo sql` and `storage.connect` show it; this is version {SCHEMA_VERSION} of the schema. `run`, `step`,
`problem_id` and `sample` are the join key everywhere. A column that is not null has a value in every row; what an older version
did not write is null. In DuckDB the same words are the columns' comments: `SELECT column_name, comment FROM duckdb_columns()`.
"""


def page() -> str:
    """The page, in Markdown."""
    parts = [_HEAD, "## `runs`\n", "One row per run.\n", "| column | type | |\n|---|---|---|"]
    parts += [f"| `{column.name}` | {column.dtype} | {column.comment} |" for column in RUN_COLUMNS]
    for name, schema in TABLES.items():
        parts += [f"\n## `{name}`\n", f"{COMMENTS[name, '']}\n", "| column | type | null | |\n|---|---|---|---|"]
        for field in schema:
            kind = str(field.type).replace("element: ", "").replace("<", "\\<")
            null = "may be" if field.nullable else ""
            parts.append(f"| `{field.name}` | {kind} | {null} | {COMMENTS.get((name, field.name), '')} |")
    parts += ["\n## Views on them\n", "These are made of the tables, for the queries.\n"]
    parts += [f"```sql\n{queries()['views'].strip()}\n```\n"]
    return "\n".join(parts)
