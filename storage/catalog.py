"""SQL over every committed artifact of a root: views and table macros on a DuckDB connection.

Opening reads manifests and no rows: one manifest per finished step, which names its parents' files, and one per
artifact that no finished step covers. What is committed later shows after `Catalog.refresh`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import chain
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from polyepo.schemas import COMMENTS, TABLES, Column
from storage.errors import CorruptArtifactError
from storage.files import Files
from storage.manifest import Manifest, ParentRef
from storage.store import open_store, read_manifest

_LOG = logging.getLogger(__name__)

# Later stages name the files of earlier ones, so they are read first.
_STAGES = ("updates", "evaluations", "evals", "scores", "labels", "judge_calls", "rollouts", "problems")
# The last key=value of an artifact's folder; an evaluation is in shards, and was not in older versions.
_LAST_KEYS = {
    "evals": ("step", "shard"),
    **dict.fromkeys(("labels", "judge_calls", "rollouts", "evaluations"), ("shard",)),
}
RUN_COLUMNS = [
    Column("run", pa.string()),
    Column("state", pa.string(), "finished, unfinished (going on, or stopped and resumable), or imported"),
    Column("created_at", pa.timestamp("us", tz="UTC")),
    Column("last_commit", pa.timestamp("us", tz="UTC"), "of the latest finished step"),
    Column("steps", pa.int32(), "as configured"),
    Column("steps_done", pa.int32()),
    Column("rollouts", pa.int64()),
    Column("bytes", pa.int64(), "of all tables"),
    Column("domain", pa.string()),
    Column("judge", pa.string()),
    Column("scoring", pa.string()),
    Column("seed", pa.int64()),
    Column("config_hash", pa.string()),
    Column("code_version", pa.string()),
    Column("config", pa.string(), "JSON, with the latest settings"),
    Column("arm_of", pa.string(), "the configuration that the run is an arm of"),
    Column("arm", pa.string()),
    Column("parent", pa.string(), "the run it was forked from; its steps up to parent_step are found under that name"),
    Column("parent_step", pa.int32()),
]
# What DuckDB raises for a file that it cannot decode, without naming it; not what is wrong with a statement.
_OF_FILES = (duckdb.Error, duckdb.IOException, duckdb.InvalidInputException, duckdb.SerializationException)
_RUNS = pa.schema([(column.name, column.dtype) for column in RUN_COLUMNS])
_T = TypeVar("_T")
_DUCKDB_TYPES = {
    "string": "VARCHAR",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float": "FLOAT",
    "double": "DOUBLE",
    "bool": "BOOLEAN",
    "timestamp[us, tz=UTC]": "TIMESTAMPTZ",
}


_TABLE_PATH = re.compile(r"runs/(?P<run>[^/=]+)/(?P<stage>[^/=]+)/(?:[^/=]+=[^/]*/)*step=(?P<step>[0-9]+)(?:/.*)?")


@dataclass(frozen=True)
class _Table:
    """A committed table, as its own manifest or a child's says."""

    path: str
    run: str
    stage: str
    step: int
    schema_version: int
    files: tuple[tuple[str, int], ...]
    """Paths relative to the root, and sizes."""
    num_rows: int

    @property
    def size(self) -> int:
        return sum(size for _, size in self.files)

    @property
    def partition_keys(self) -> tuple[str, ...]:
        return tuple(part.split("=")[0] for part in self.path.split("/") if "=" in part)


class Catalog:
    """Views `runs`, `problems`, `rollouts`, ... and the macros of storage/queries over a root's runs.

    What of a run cannot be read is left out with a warning, which names it: the others answer all the same.

    Args:
        root: a local path, or a URL such as s3://bucket/prefix.
        runs: names of the runs to show; all if not given. Fewer take less time to open.
    """

    def __init__(self, root: str, runs: Sequence[str] | None = None) -> None:
        self._store = open_store(root)
        self._runs_wanted = runs
        self._known: dict[str, _Table] = {}
        self._unreadable: set[str] = set()
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
            from storage.dataset import TableFile, dataset

            for name, schema in TABLES.items():
                tables = self._tables(name)
                parts = [TableFile(*part, table.step) for table in tables for part in table.files]
                self.connection.register(name, dataset(schema, parts, files))
            self.connection.execute("\n".join([self._runs_view(), *queries().values(), *_comments()]))

    def execute(self, sql: str | duckdb.Statement, parameters: object = None) -> duckdb.DuckDBPyConnection:
        """Run a statement. If it meets a file that is corrupt, this is left out, and the statement is run again.

        Rows are read as they are fetched, so that a fault may come only then: `fetch` has them all.
        """
        return self._without_corrupt(lambda: self.connection.execute(sql, parameters))

    def fetch(self, sql: str, parameters: object = None) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Names and rows of a query's result; files that are corrupt are left out of it."""

        def run() -> tuple[list[str], list[tuple[Any, ...]]]:
            result = self.connection.execute(sql, parameters)
            return [column[0] for column in result.description or []], result.fetchall()

        return self._without_corrupt(run)

    def _without_corrupt(self, run: Callable[[], _T]) -> _T:
        try:
            return run()
        except duckdb.Error as error:
            if type(error) not in _OF_FILES or not self._leave_out_corrupt():
                raise
        return run()

    def _leave_out_corrupt(self) -> bool:
        """Read all tables, which takes long; leave out those that cannot be decoded. Whether there was one."""
        faults = zip(list(self._known), self._store.each(self._decoded, self._known.values()), strict=True)
        found = [(path, fault) for path, fault in faults if fault]
        for path, fault in found:
            del self._known[path]
            self._leave_out(path, fault)
        if found:
            self.refresh()
        return bool(found)

    def _decoded(self, table: _Table) -> str | None:
        for path, _ in table.files:
            try:
                pq.ParquetFile(pa.BufferReader(self._store.files.read(path))).read()
            except (pa.ArrowException, OSError) as error:
                return f"{path} cannot be read: {str(error).splitlines()[0]}"
        return None

    def init_sql(self) -> str:
        """SQL that makes the same views and macros in any DuckDB that can read the root's files.

        It names the files that are committed now, by absolute path.
        """
        note = "-- A snapshot: the files that were committed when this was printed, by absolute path."
        # DuckDB opens a view's files whenever something is made that uses it: all is made of empty views first.
        empty = [_view(name, schema, []) for name, schema in [("runs", _RUNS), *TABLES.items()]]
        views = [_view(name, schema, self._readers(name)) for name, schema in TABLES.items()]
        return "\n".join([note, *empty, *queries().values(), self._runs_view(), *views, *_comments()])

    def step_bytes(self, run: str, stage: str) -> dict[int, int]:
        """The size of a stage's files, step by step."""
        sizes: dict[int, int] = defaultdict(int)
        for table in self._tables(stage):
            if table.run == run:
                sizes[table.step] += table.size
        return dict(sizes)

    def last_steps(self, stage: str) -> dict[str, int]:
        """The last step of each run that has a stage."""
        last: dict[str, int] = {}
        for table in self._known.values():
            if table.stage == stage:
                last[table.run] = max(table.step, last.get(table.run, 0))
        return last

    def _tables(self, stage: str) -> list[_Table]:
        return sorted((table for table in self._known.values() if table.stage == stage), key=lambda table: table.path)

    def _readers(self, stage: str) -> list[str]:
        """SELECTs of a stage's files: those with the same columns and folders together, so that one footer does."""
        by_layout = defaultdict(list)
        for table in self._tables(stage):
            by_layout[table.schema_version, table.partition_keys].append(table)
        # DuckDB takes every key=value of a path for a column, those above the root too.
        pruned = "=" not in self._store.files.url("")
        url = self._store.files.url
        return [
            _reader(TABLES[stage], keys if pruned else (), [url(path) for table in some for path, _ in table.files])
            for (_, keys), some in sorted(by_layout.items())
        ]

    def _runs_view(self) -> str:
        runs = self._runs()
        return _view("runs", _RUNS, [_values(runs)] if runs else [])

    def _scan(self) -> None:
        each = self._store.each
        self._records.update(self._store.run_records(self._runs_wanted))
        for stage in _STAGES:
            stages = [f"runs/{run}/{stage}" for run in self._records]
            paths = chain.from_iterable(each(self._artifacts, stages))
            for manifest in each(self._manifest, paths):
                if manifest is not None:
                    self._learn(manifest)

    def _artifacts(self, stage: str) -> list[str]:
        """Paths of a stage's artifacts that are not known yet; they may be uncommitted."""
        paths = self._below(stage, _LAST_KEYS.get(stage.rsplit("/", 1)[1], ("step",)))
        return [path for path in paths if path not in self._known and path not in self._unreadable]

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
            return read_manifest(self._store.files, path)
        except CorruptArtifactError as error:
            self._leave_out(path, str(error))
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
            if ref.path in self._known or ref.path in self._unreadable:
                continue
            place = _TABLE_PATH.fullmatch(ref.path)
            if place and place["stage"] in TABLES:
                self._add(_table(ref, place["run"], place["stage"], int(place["step"])))

    def _add(self, table: _Table) -> None:
        """Know a table, unless a file of it cannot be Parquet; on object storage its size would be a request."""
        if self._store.files.fs is None:
            for path, size in table.files:
                if fault := _fault(self._store.files, path, size):
                    self._leave_out(table.path, f"{path} {fault}")
                    return
        self._known[table.path] = table

    def _leave_out(self, path: str, fault: str) -> None:
        self._unreadable.add(path)
        _LOG.warning("%s; it is left out, and `polyepo verify %s` says more", fault, path.split("/")[1])

    def _runs(self) -> list[list[object]]:
        tables = defaultdict(list)
        for table in self._known.values():
            tables[table.run].append(table)
        return [self._run(run, record, tables[run]) for run, record in self._records.items()]

    def _run(self, run: str, record: dict[str, object], tables: list[_Table]) -> list[object]:
        config = record.get("config")
        config = config if isinstance(config, dict) else {}
        domain = config.get("domain")
        last_stage = "rollouts" if "imported" in record else "updates"
        parent = record.get("parent")
        parent = parent if isinstance(parent, dict) else {}
        steps_done = parent.get("step", 0) + sum(table.stage == last_stage for table in tables)
        steps = config.get("steps")
        finished = steps_done >= (steps if isinstance(steps, int) else 0)
        return [
            run,
            "imported" if "imported" in record else "finished" if finished else "unfinished",
            record.get("created_at"),
            self._last_commit.get(run),
            steps,
            steps_done,
            sum(table.num_rows for table in tables if table.stage == "rollouts"),
            sum(table.size for table in tables),
            domain.get("name") if isinstance(domain, dict) else None,
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


def connect(root: str, runs: Sequence[str] | None = None) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with views over a root's committed artifacts, and the macros of storage/queries.

    Args:
        root: a local path, or a URL such as s3://bucket/prefix.
        runs: names of the runs to show; all if not given.
    """
    return Catalog(root, runs).connection


def rows(connection: duckdb.DuckDBPyConnection | Catalog, sql: str, **parameters: object) -> list[dict[str, Any]]:
    """A query's rows by column name; $name in it stands for a parameter."""
    if isinstance(connection, Catalog):
        names, found = connection.fetch(sql, parameters)
    else:
        result = connection.execute(sql, parameters)
        names, found = [column[0] for column in result.description or []], result.fetchall()
    return [dict(zip(names, row, strict=True)) for row in found]


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


def _comments() -> list[str]:
    """Statements that say in DuckDB what the views' columns hold: SELECT comment FROM duckdb_columns()."""
    runs = {("runs", column.name): column.comment for column in RUN_COLUMNS if column.comment}
    return [
        f"COMMENT ON {f'COLUMN {table}.{column}' if column else f'VIEW {table}'} IS {_quote(comment)};"
        for (table, column), comment in (runs | COMMENTS).items()
    ]


def _reader(schema: pa.Schema, keys: tuple[str, ...], urls: list[str]) -> str:
    files = ",\n".join(map(_quote, urls))
    if not keys:
        return f"SELECT * FROM read_parquet([{files}], hive_partitioning = false)"  # noqa: S608 - every URL is quoted
    # Steps and judges are in the path as well, so a query of one step opens that step's files alone.
    types = ", ".join(f"{key!r}: {'INTEGER' if key in ('step', 'shard') else 'VARCHAR'}" for key in keys)
    others = [key for key in keys if key not in schema.names]
    columns = f"* EXCLUDE ({', '.join(others)})" if others else "*"
    options = f"hive_partitioning = true, hive_types = {{{types}}}"
    return f"SELECT {columns} FROM read_parquet([{files}], {options})"  # noqa: S608 - every URL is quoted


def _table(ref: ParentRef, run: str, stage: str, step: int) -> _Table:
    files = tuple((f"{ref.path}/{ref.attempt}/{file.path}", file.size) for file in ref.files)
    return _Table(ref.path, run, stage, step, ref.schema_version, files, sum(file.num_rows or 0 for file in ref.files))


def _fault(files: Files, path: str, size: int) -> str | None:
    """Why a local file of a table cannot be what its manifest says, as far as its ends tell."""
    try:
        with open(files.url(path), "rb") as stream:
            if (found := os.fstat(stream.fileno()).st_size) != size:
                return f"must have {size} bytes, but has {found}"
            if os.pread(stream.fileno(), 4, max(0, size - 4)) != b"PAR1":
                return "is no Parquet file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


def _values(rows: list[list[object]]) -> str:
    names = ", ".join(_RUNS.names)
    # What a broken record says is null; a value of another type may stand anywhere.
    columns = ", ".join(f"TRY_CAST({field.name} AS {_duckdb_type(field.type)}) AS {field.name}" for field in _RUNS)
    lines = ",\n".join("(" + ", ".join(map(_literal, row)) + ")" for row in rows)
    return f"SELECT {columns} FROM (VALUES {lines}) AS t({names})"  # noqa: S608 - every value is a literal


def _duckdb_type(dtype: pa.DataType) -> str:
    if pa.types.is_list(dtype):
        return f"{_duckdb_type(dtype.value_type)}[]"
    return _DUCKDB_TYPES[str(dtype)]


def _literal(value: object) -> str:
    return "NULL" if value is None else _quote(str(value).encode("utf-8", "replace").decode().replace("\0", "�"))


def _quote(text: str) -> str:
    """A string literal. What stands in quotes can end only at a quote, and every quote is doubled."""
    return "'" + text.replace("'", "''") + "'"
