"""SQL over every committed artifact of a root: views and table macros on a DuckDB connection.

Opening reads manifests and no rows: one manifest per finished step, which names its parents' files, and one per
artifact that no finished step covers. What is committed later shows after `Catalog.refresh`.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from itertools import chain
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs

from polyepo.schemas import TABLES
from storage.layout import is_name
from storage.manifest import Manifest, ParentRef
from storage.store import open_store

# Later stages name the files of earlier ones, so they are read first.
_STAGES = ("updates", "evals", "scores", "labels", "judge_calls", "rollouts", "problems")
# The last key=value of an artifact's folder; an evaluation is in shards, and was not in older versions.
_LAST_KEYS = {"evals": ("step", "shard"), **dict.fromkeys(("labels", "judge_calls", "rollouts"), ("shard",))}
_RUN_COLUMNS: list[tuple[str, pa.DataType]] = [
    ("run", pa.string()),
    ("state", pa.string()),  # finished, unfinished (going on, or stopped and resumable), or imported
    ("created_at", pa.timestamp("us", tz="UTC")),
    ("last_commit", pa.timestamp("us", tz="UTC")),  # of the latest finished step
    ("steps", pa.int32()),  # as configured
    ("steps_done", pa.int32()),
    ("rollouts", pa.int64()),
    ("bytes", pa.int64()),  # of all tables
    ("domain", pa.string()),
    ("judge", pa.string()),
    ("scoring", pa.string()),
    ("seed", pa.int64()),
    ("config_hash", pa.string()),
    ("code_version", pa.string()),
    ("config", pa.string()),  # JSON, with the latest settings
    ("arm_of", pa.string()),  # the configuration that the run is an arm of
    ("arm", pa.string()),
    ("parent", pa.string()),  # the run it was forked from; its steps up to parent_step are found under that name
    ("parent_step", pa.int32()),
]
_DUCKDB_TYPES = {
    "string": "VARCHAR",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float": "FLOAT",
    "double": "DOUBLE",
    "bool": "BOOLEAN",
    "timestamp[us, tz=UTC]": "TIMESTAMPTZ",
}


@dataclass(frozen=True)
class _Table:
    """A committed table, as its own manifest or a child's says."""

    path: str
    schema_version: int
    urls: tuple[str, ...]
    num_rows: int
    size: int

    @property
    def stage(self) -> str:
        return self.path.split("/")[2]

    @property
    def step(self) -> int:
        return next(int(part.removeprefix("step=")) for part in self.path.split("/") if part.startswith("step="))

    @property
    def partition_keys(self) -> tuple[str, ...]:
        return tuple(part.split("=")[0] for part in self.path.split("/") if "=" in part)


class Catalog:
    """Views `runs`, `problems`, `rollouts`, ... and the macros of storage/queries over all runs of a root."""

    def __init__(self, root: str) -> None:
        self._store = open_store(root)
        self._known: dict[str, _Table] = {}
        self._covered: set[str] = set()
        self._records: dict[str, dict[str, object]] = {}
        self._last_commit: dict[str, str] = {}
        self.connection = duckdb.connect()
        # Spilled rows go where the system keeps such things, not into the user's folder.
        self.connection.execute(f"SET temp_directory = {_quote(tempfile.gettempdir() + '/polyepo-duckdb')}")
        self.connection.execute("SET preserve_insertion_order = false")
        self.connection.execute("SET TimeZone = 'UTC'")
        self.refresh()

    def refresh(self) -> None:
        """Show what was committed since."""
        self._scan()
        files = self._store.files
        if files.fs is None:
            self.connection.execute(self.init_sql())
        else:
            # DuckDB asks for every file by name before a query: on object storage a request each. Arrow does not.
            for name, schema in TABLES.items():
                self.connection.register(name, _dataset(schema, self._tables(name), files.fs))
            self.connection.execute("\n".join([self._runs_view(), *queries().values()]))

    def init_sql(self) -> str:
        """SQL that makes the same views and macros in any DuckDB that can read the root's files."""
        views = [_view(name, schema, _readers(schema, self._tables(name))) for name, schema in TABLES.items()]
        return "\n".join([self._runs_view(), *views, *queries().values()])

    def _tables(self, stage: str) -> list[_Table]:
        return sorted((table for table in self._known.values() if table.stage == stage), key=lambda table: table.path)

    def _runs_view(self) -> str:
        runs = self._runs()
        return _view("runs", pa.schema(_RUN_COLUMNS), [_values(runs)] if runs else [])

    def _scan(self) -> None:
        with ThreadPoolExecutor(32) as pool:
            runs = [run for run in self._store.files.names("runs") if is_name(run)]
            for run, record in zip(runs, pool.map(self._store.run_record, runs), strict=True):
                if record is not None:
                    self._records[run] = record
            for stage in _STAGES:
                stages = ((run, stage) for run in self._records)
                paths = chain.from_iterable(pool.map(lambda pair: self._artifacts(*pair), stages))
                for manifest in pool.map(self._manifest, paths):
                    if manifest is not None:
                        self._learn(manifest)

    def _artifacts(self, run: str, stage: str) -> list[str]:
        """Paths of a stage's artifacts that are not known yet; they may be uncommitted."""
        paths = self._below(f"runs/{run}/{stage}", _LAST_KEYS.get(stage, ("step",)))
        return [path for path in paths if path not in self._known]

    def _below(self, folder: str, last: tuple[str, ...]) -> Iterator[str]:
        """Folders of artifacts: key=value all the way down to one of the keys `last`."""
        for name in self._store.files.names(folder):
            path = f"{folder}/{name}"
            if "=" not in name or path in self._covered:
                continue
            key = name.split("=")[0]
            if key in last:
                yield path
            if key != last[-1]:
                yield from self._below(path, last)

    def _manifest(self, path: str) -> Manifest | None:
        try:
            return Manifest.model_validate_json(self._store.files.read(f"{path}/manifest.json"))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _learn(self, manifest: Manifest) -> None:
        run, stage = manifest.path.split("/")[1:3]
        if stage == "updates":
            self._last_commit[run] = max(self._last_commit.get(run, ""), manifest.created_at)
        parents = [parent for parent in manifest.parents if parent.attempt]
        if stage != "labels":
            # What was made from a step's shards was made from all of them: there is no need to look for more. Labels
            # alone are made shard by shard.
            self._covered |= {parent.path.rsplit("/", 1)[0] for parent in parents if "/shard=" in parent.path}
        for ref in (manifest.reference, *parents):
            if ref.path.startswith("runs/") and ref.path.split("/")[2] in TABLES:
                self._known[ref.path] = self._table(ref)

    def _table(self, ref: ParentRef) -> _Table:
        urls = tuple(self._store.files.url(f"{ref.path}/{ref.attempt}/{file.path}") for file in ref.files)
        num_rows, size = sum(file.num_rows or 0 for file in ref.files), sum(file.size for file in ref.files)
        return _Table(ref.path, ref.schema_version, urls, num_rows, size)

    def _runs(self) -> list[list[object]]:
        tables = defaultdict(list)
        for table in self._known.values():
            tables[table.path.split("/")[1]].append(table)
        return [self._run(run, record, tables[run]) for run, record in self._records.items()]

    def _run(self, run: str, record: dict[str, object], tables: list[_Table]) -> list[object]:
        config = record.get("config")
        config = config if isinstance(config, dict) else {}
        last_stage = "rollouts" if "imported" in record else "updates"
        parent = record.get("parent")
        parent = parent if isinstance(parent, dict) else {}
        steps_done = parent.get("step", 0) + sum(table.stage == last_stage for table in tables)
        steps = config.get("steps")
        return [
            run,
            "imported" if "imported" in record else "finished" if steps_done >= (steps or 0) else "unfinished",
            record.get("created_at"),
            self._last_commit.get(run),
            steps,
            steps_done,
            sum(table.num_rows for table in tables if table.stage == "rollouts"),
            sum(table.size for table in tables),
            (config.get("domain") or {}).get("name"),
            record.get("judge"),
            record.get("scoring"),
            config.get("seed"),
            record.get("config_hash"),
            record.get("code_version"),
            json.dumps(config, sort_keys=True),
            record.get("group"),
            record.get("arm"),
            parent.get("run"),
            parent.get("step"),
        ]


def connect(root: str) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with views over every committed artifact of a root, and the macros of storage/queries.

    Args:
        root: a local path, or a URL such as s3://bucket/prefix.
    """
    return Catalog(root).connection


def rows(connection: duckdb.DuckDBPyConnection, sql: str, **parameters: object) -> list[dict[str, Any]]:
    """A query's rows by column name; $name in it stands for a parameter."""
    result = connection.execute(sql, parameters)
    names = [column[0] for column in result.description or []]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def queries() -> dict[str, str]:
    """The shipped SQL by name; the views that the others start from come first."""
    folder = resources.files("storage") / "queries"
    files = sorted(folder.iterdir(), key=lambda file: (file.name != "views.sql", file.name))
    return {file.name.removesuffix(".sql"): file.read_text() for file in files if file.name.endswith(".sql")}


def _view(name: str, schema: pa.Schema, sources: Iterable[str]) -> str:
    """A view with the schema's columns: null where a source, written by an older version, has no such column."""
    columns = ", ".join(f"NULL::{_duckdb_type(field.type)} AS {field.name}" for field in schema)
    selects = "\nUNION ALL BY NAME ".join([f"SELECT {columns} WHERE false", *sources])
    return f"CREATE OR REPLACE VIEW {name} AS {selects};"


def _readers(schema: pa.Schema, tables: list[_Table]) -> list[str]:
    """SELECTs of the tables' files; those with the same columns and folders together, so that one footer tells all."""
    by_layout = defaultdict(list)
    for table in tables:
        by_layout[table.schema_version, table.partition_keys].append(table)
    return [_reader(schema, keys, some) for (_, keys), some in sorted(by_layout.items())]


def _reader(schema: pa.Schema, keys: tuple[str, ...], tables: list[_Table]) -> str:
    files = ",\n".join(_quote(url) for table in tables for url in table.urls)
    # Steps and judges are in the path as well, so a query of one step opens that step's files alone.
    types = ", ".join(f"{key!r}: {'INTEGER' if key in ('step', 'shard') else 'VARCHAR'}" for key in keys)
    others = [key for key in keys if key not in schema.names]
    columns = f"* EXCLUDE ({', '.join(others)})" if others else "*"
    options = f"hive_partitioning = true, hive_types = {{{types}}}"
    return f"SELECT {columns} FROM read_parquet([{files}], {options})"  # noqa: S608 - every URL is quoted


def _dataset(schema: pa.Schema, tables: list[_Table], filesystem: Any) -> ds.Dataset:
    """The tables' files as one Arrow dataset; columns that an older version did not write are null."""
    files = [(url.split("://", 1)[1], table) for table in tables for url in table.urls]
    # A query of one step opens that step's files alone.
    step_of = [ds.field("step") == table.step if "step" in schema.names else ds.scalar(True) for _, table in files]
    return ds.FileSystemDataset.from_paths(
        [path for path, _ in files],
        schema=schema,
        format=ds.ParquetFileFormat(),
        filesystem=pa.fs.PyFileSystem(pa.fs.FSSpecHandler(filesystem)),  # type: ignore[abstract]
        partitions=step_of,
    )


def _values(rows: list[list[object]]) -> str:
    names = ", ".join(name for name, _ in _RUN_COLUMNS)
    columns = ", ".join(f"{name}::{_duckdb_type(dtype)} AS {name}" for name, dtype in _RUN_COLUMNS)
    lines = ",\n".join("(" + ", ".join(map(_literal, row)) + ")" for row in rows)
    return f"SELECT {columns} FROM (VALUES {lines}) AS t({names})"  # noqa: S608 - every value is a literal


def _duckdb_type(dtype: pa.DataType) -> str:
    if pa.types.is_list(dtype):
        return f"{_duckdb_type(dtype.value_type)}[]"
    return _DUCKDB_TYPES[str(dtype)]


def _literal(value: object) -> str:
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int) else _quote(str(value))


def _quote(text: str) -> str:
    """A string literal. What stands in quotes can end only at a quote, and every quote is doubled."""
    return "'" + text.replace("'", "''") + "'"
