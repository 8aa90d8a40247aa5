"""The store: artifacts are committed once, whole, and never change."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import re
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from polyepo.schemas import SCHEMA_VERSION, TABLES, VALUES
from storage.errors import CorruptArtifactError, StoreError
from storage.files import Files
from storage.layout import AnyKey, ArtifactKey, check_name, is_name, parse_path, stage_path
from storage.local import LocalFiles
from storage.manifest import FileEntry, Manifest, Provenance
from storage.parquet import open_parquet

_LOG = logging.getLogger(__name__)
_Key = TypeVar("_Key", bound=AnyKey)
_T = TypeVar("_T")
_R = TypeVar("_R")
_ROW_GROUP_BYTES = 64 << 20
_THREADED_BYTES = 1 << 20
_KEPT_BYTES = 256 << 20
REMOVED = "removed.json"
"""Next to a manifest: its files were removed since to make room, see storage/removal.py."""
_SETTINGS = re.compile(r"[0-9]{3,}\.json")
_DICTIONARY_COLUMNS = {
    "run", "problem_id", "domain", "split", "judge", "scoring", "objective", "benchmark", "sampler",
    "finish_reason", "status", "macro_strategy", "micro_strategy", "parsed_answer", "prompt_token_ids",
}  # fmt: skip


class Store:
    """Artifacts under a root: a local path, or a URL such as s3://bucket/prefix.

    An artifact's files are written under a fresh attempt id; then its manifest is created, once. Readers start from
    manifests, so an unfinished attempt is invisible, and of several writers of one artifact the first wins.
    """

    def __init__(self, root: str, **options: Any) -> None:
        self.root = root
        self.files = _open_files(root, **options)
        self._manifests: dict[str, Manifest] = {}
        self._kept: dict[str, bytes] = {}
        self._pending: dict[str, Future[Manifest]] = {}
        self._uploads = None if self.files.fs is None else ThreadPoolExecutor(4, "upload")
        self._lock = threading.Lock()  # shards are judged in threads of their own

    # --- committing

    def commit_table(
        self,
        key: AnyKey,
        table: pa.Table,
        *,
        table_name: str,
        provenance: Provenance,
        parents: Sequence[Manifest | None] = (),
    ) -> Manifest:
        """Commit a table of `polyepo.schemas.TABLES` as one Parquet file; returns the winner's manifest.

        The file's bytes depend on the rows and the provenance alone, not on time or attempt.

        Raises:
            ValueError: columns or types are not the schema's, a null stands where none may, or a key repeats.
            StoreError: it could not be written; nothing committed before is harmed.
        """
        if (there := self._seen(key)) is not None:
            return there
        table = conform(table, table_name)
        data = table_bytes(table, table_name, provenance)
        entry = FileEntry(
            path="part-00000.parquet", size=len(data), sha256=hashlib.sha256(data).hexdigest(), num_rows=table.num_rows
        )
        return self._commit(key, [(entry, data)], provenance, parents, table_name, table.num_rows)

    def commit_files(
        self, key: AnyKey, directory: Path, *, provenance: Provenance, parents: Sequence[Manifest | None] = ()
    ) -> Manifest:
        """Commit all files below a directory (a checkpoint, a model); returns the winner's manifest.

        Raises:
            ValueError: the directory is empty or holds a symbolic link.
            StoreError: it could not be written; nothing committed before is harmed.
        """
        if (there := self._seen(key)) is not None:
            return there
        paths = sorted(path for path in directory.rglob("*") if not path.is_dir())
        if not paths or any(path.is_symlink() for path in paths):
            raise ValueError(f"directory {str(directory)!r} must hold files, and no symbolic links")
        return self._commit(key, [(_entry(path, directory), path) for path in paths], provenance, parents)

    def in_background(self, key: AnyKey, commit: Callable[[], Manifest]) -> None:
        """Commit an artifact while the caller goes on, where that takes longer than on a local disk.

        Whoever asks for the artifact waits for it, so nothing is made from what is not committed. What goes wrong is
        raised by whatever asks first: for the artifact, or by `wait`.
        """
        if self._uploads is None:
            commit()
        else:
            self._pending[key.path] = self._uploads.submit(commit)

    def wait(self) -> None:
        """Wait for what is committed in the background. Raises what kept the first from it."""
        for path in list(self._pending):
            self._arrived(path)

    def create_run(self, run: str, record: dict[str, Any]) -> dict[str, Any]:
        """Write a run's record unless it exists; returns the one that is stored."""
        path = f"runs/{check_name('run', run)}/run.json"
        record = {"created_at": _now(), **record}
        try:
            self.files.create(path, json.dumps(record, indent=2, sort_keys=True).encode())
        except OSError as error:
            raise StoreError(f"run {run!r} could not be written under root {self.root!r}: {error}") from error
        return json.loads(self.files.read(path))

    def claim_run(self, run: str, content: dict[str, Any]) -> bool:
        """Take a run's name before there is a record; whether it is taken with this content, now or before."""
        path, data = f"runs/{check_name('run', run)}/import.json", json.dumps(content).encode()
        try:
            return self.files.create(path, data) or self.files.read(path) == data
        except OSError as error:
            raise StoreError(f"run {run!r} could not be written under root {self.root!r}: {error}") from error

    def add_settings(self, run: str, changes: Sequence[str], replaced: dict[str, Any]) -> None:
        """Note with a run, next to its record, that parts of the record are others from now on."""
        change = {"changed_at": _now(), "changes": list(changes), "replaced": replaced}
        data = json.dumps(change, indent=2, sort_keys=True).encode()
        number = len(self._settings(run))
        try:
            while not self.files.create(f"{_settings_folder(run)}/{number:03d}.json", data):
                number += 1
        except OSError as error:
            raise StoreError(f"settings of run {run!r} could not be written under {self.root!r}: {error}") from error

    # --- reading

    def manifest(self, key: AnyKey) -> Manifest | None:
        """An artifact's manifest, or None if it is not committed."""
        path = key.path
        return self._manifests.get(path) or self._arrived(path) or self._stored(path)

    def exists(self, key: AnyKey) -> bool:
        """Whether an artifact is committed."""
        return self.manifest(key) is not None

    def committed(self, keys: Iterable[_Key]) -> list[_Key]:
        """Those artifacts that are committed, in their order; asked for side by side."""
        keys = list(keys)
        return [key for key, there in zip(keys, self.each(self.exists, keys), strict=True) if there]

    def read_table(self, key: AnyKey, columns: list[str] | None = None, verify: bool = False) -> pa.Table:
        """A committed table, or some of its columns.

        Args:
            key: the artifact.
            columns: names; all that were written if None. One that an older version did not write is null.
            verify: check the files' SHA-256 as well as their sizes.

        Raises:
            StoreError: the artifact is not committed.
            CorruptArtifactError: a file is missing or differs from the manifest.
        """
        manifest = self._committed(key)
        parts = [self._checked(manifest, entry, verify) for entry in manifest.files]
        try:
            tables = [
                _read_part(open_parquet(part, entry.num_rows, key.path), len(part), columns, manifest.table)
                for part, entry in zip(parts, manifest.files, strict=True)
            ]
        except (pa.ArrowException, OSError) as error:
            raise CorruptArtifactError(f"{key.path} is no valid Parquet: {error}") from error
        return tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="default")

    def read_tables(self, keys: Iterable[AnyKey], columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Committed tables in the order of their keys, a few read ahead: on object storage many requests at a time.

        Raises:
            StoreError, CorruptArtifactError: as `read_table`, where the table would come.
        """
        return self.each(lambda key: self.read_table(key, columns), keys)

    def fetch(self, keys: Iterable[AnyKey]) -> None:
        """Bring committed tables of object storage near, side by side: who reads them next asks for nothing.

        Raises:
            StoreError, CorruptArtifactError: as `read_table`.
        """
        if self.files.fs is not None:
            for _ in self.each(self._fetch, keys):
                pass

    def local_files(self, key: AnyKey, names: Sequence[str] | None = None, verify: bool = False) -> Path:
        """A local directory with the files of a committed artifact; read-only by convention.

        Args:
            key: the artifact.
            names: of files, if these are enough; those that it does not have are not there.
            verify: check the files' SHA-256 as well as their sizes.

        Raises:
            StoreError: the artifact is not committed.
            CorruptArtifactError: a file is missing or differs from the manifest.
        """
        manifest = self._committed(key)
        wanted = [entry for entry in manifest.files if names is None or entry.path in names]
        folder = self.files.local_copy(f"{manifest.path}/{manifest.attempt}", [entry.path for entry in wanted])
        for entry in wanted:
            path = folder / entry.path
            size = path.stat().st_size if path.is_file() else None
            if size != entry.size:
                if self.files.exists(f"{manifest.path}/{REMOVED}"):
                    raise StoreError(f"the files of {manifest.path} were removed to make room: its {REMOVED} says when")
                raise CorruptArtifactError(f"{path} must have {entry.size} bytes, but has {size}")
            if verify and (found := _sha256(path)) != entry.sha256:
                raise CorruptArtifactError(f"{path} must have sha256 {entry.sha256}, but has {found}")
        return folder

    def artifacts(
        self, run: str, stage: str, partition: tuple[tuple[str, str], ...] = (), step: int | None = None
    ) -> list[ArtifactKey]:
        """Everything of a stage that is committed and not removed since, in the order of the paths, by one listing.

        Args:
            run: its name.
            stage: such as "labels".
            partition: what the partition of each begins with.
            step: this one alone; all if not given.
        """
        folder = stage_path(run, stage, partition) if step is None else ArtifactKey(run, stage, step, partition).path
        for path in list(self._pending):
            if path.startswith(f"{folder}/"):
                self._arrived(path)
        found = {file.path for file in self.files.find(folder)}
        paths = sorted(path.removesuffix("/manifest.json") for path in found if path.endswith("/manifest.json"))
        there = (path for path in paths if f"{path}/{REMOVED}" not in found)
        return [key for path in there if (key := parse_path(path)) is not None]

    def steps(
        self, run: str, stage: str, partition: tuple[tuple[str, str], ...] = (), shard: int | None = None
    ) -> list[int]:
        """Steps of a stage that are committed, in order; of a sharded stage, those whose `shard` is."""
        keys = self.artifacts(run, stage, partition)
        return sorted(key.step for key in keys if key.partition == partition and key.shard == shard)

    def shards(self, run: str, stage: str, step: int, partition: tuple[tuple[str, str], ...] = ()) -> list[int]:
        """Shards of a step that are committed, in order."""
        keys = self.artifacts(run, stage, partition, step)
        return sorted(key.shard for key in keys if key.shard is not None)

    def run_names(self) -> list[str]:
        """Names under which there is something of a run, whether or not it has a record."""
        return [name for name in self.files.names("runs") if is_name(name)]

    def runs(self) -> list[str]:
        """Names of all runs that have a record."""
        names = self.run_names()
        there = self.each(lambda run: self.files.exists(f"runs/{run}/run.json"), names)
        return [run for run, is_run in zip(names, there, strict=True) if is_run]

    def run_records(self, runs: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
        """The records of all runs, or of some, by name. One that cannot be read is left out, with a warning."""
        names = self.run_names() if runs is None else runs
        records = zip(names, self.each(self._record_or_none, names), strict=True)
        return {run: record for run, record in records if record is not None}

    def run_record(self, run: str) -> dict[str, Any] | None:
        """What was written when the run was made, with what was replaced since; None if there is no such run.

        Raises:
            CorruptArtifactError: the record cannot be read.
        """
        record = self._json(f"runs/{check_name('run', run)}/run.json")
        for change in self.settings_changes(run) if record is not None else []:
            record |= change["replaced"]
        return record

    def keep_source(self, run: str, digest: str, text: str) -> None:
        """Keep the text of code that a run was made with, under its SHA-256, to be read."""
        self.files.create(f"runs/{check_name('run', run)}/code/{check_name('digest', digest)}.py", text.encode())

    def settings_changes(self, run: str) -> list[dict[str, Any]]:
        """What was noted by `add_settings`, oldest first: `changed_at`, `changes` in words, and what was `replaced`."""
        return [self._json(f"{_settings_folder(run)}/{name}") or {"replaced": {}} for name in self._settings(run)]

    def check(self) -> None:
        """Make sure at the start that artifacts can be committed here.

        Raises:
            StoreError: the root cannot be written, or the store lets two writers create one file.
        """
        probe = f".probe/{uuid.uuid4().hex}"
        try:
            won = [self.files.create(probe, b"first"), self.files.create(probe, b"second")]
            self.files.remove(probe)
        except OSError as error:
            raise StoreError(f"root {self.root!r} is not writable: {error}") from error
        if won != [True, False]:
            raise StoreError(
                f"root {self.root!r} has no conditional create (it ignores If-None-Match: *): two writers could "
                "overwrite each other's artifacts. Use a store that has it."
            )

    def each(self, function: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
        """What a function gives for each item, in their order; called side by side, a little ahead of the reader."""
        with ThreadPoolExecutor(self.files.parallel) as pool:
            ahead: deque[Future[_R]] = deque()
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) > 2 * self.files.parallel:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    # --- inside

    def _json(self, path: str) -> dict[str, Any] | None:
        try:
            content = json.loads(self.files.read(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise CorruptArtifactError(f"{path} cannot be read: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise CorruptArtifactError(f"{path} is no valid JSON: {error}") from None
        if not isinstance(content, dict):
            raise CorruptArtifactError(f"{path} must be a JSON object, but is {type(content).__name__}")
        return content

    def _settings(self, run: str) -> list[str]:
        return [name for name in self.files.names(_settings_folder(run)) if _SETTINGS.fullmatch(name)]

    def _arrived(self, path: str) -> Manifest | None:
        """The manifest of what is being committed in the background, once it is; None if it is not."""
        if (pending := self._pending.get(path)) is None:
            return None
        try:
            return pending.result()
        finally:
            self._pending.pop(path, None)

    def _seen(self, key: AnyKey) -> Manifest | None:
        """The manifest on a local disk, where a look costs nothing; on object storage the attempt to commit tells.

        What is in memory does not count: what a commit does must not depend on what was asked before.
        """
        return self._stored(key.path) if self.files.fs is None else None

    def _fetch(self, key: AnyKey) -> None:
        manifest = self._committed(key)
        for entry in manifest.files:
            self._checked(manifest, entry, verify=False)

    def _record_or_none(self, run: str) -> dict[str, Any] | None:
        try:
            return self.run_record(run)
        except CorruptArtifactError as error:
            _LOG.warning("%s; run %s is left out", error, run)
            return None

    def _stored(self, path: str) -> Manifest | None:
        manifest = read_manifest(self.files, path)
        if manifest is not None:
            self._remember(manifest)
        return manifest

    def _commit(
        self,
        key: AnyKey,
        files: list[tuple[FileEntry, bytes | Path]],
        provenance: Provenance,
        parents: Sequence[Manifest | None],
        table: str | None = None,
        num_rows: int | None = None,
    ) -> Manifest:
        attempt = uuid.uuid4().hex[:16]
        manifest = Manifest(
            path=key.path,
            attempt=attempt,
            created_at=_now(),
            files=[entry for entry, _ in files],
            parents=[parent.reference for parent in parents if parent is not None],
            table=table,
            num_rows=num_rows,
            config_hash=provenance.config_hash,
            code_version=provenance.code_version,
            policy_version=provenance.policy_version,
            seconds=provenance.seconds,
        )
        folder = f"{key.path}/{attempt}"
        try:
            for entry, content in files:
                self.files.write(f"{folder}/{entry.path}", content)
        except (OSError, StoreError) as error:
            self._discard(folder)
            raise self._uncommitted(key, error) from error
        try:
            won = self.files.create(f"{key.path}/manifest.json", manifest.model_dump_json(indent=1).encode())
        except (OSError, StoreError) as error:
            # The files stay: the manifest may be there all the same, or come to be there yet.
            raise self._uncommitted(key, error) from error
        if not won:
            if (winner := self._stored(key.path)) is None:
                raise StoreError(f"{key.path} is committed under root {self.root!r}, but its manifest is gone")
            self._discard(folder)
            return winner
        for entry, content in files:
            if isinstance(content, bytes):
                self._keep(f"{folder}/{entry.path}", content)
        self._remember(manifest)
        return manifest

    def _discard(self, folder: str) -> None:
        """Remove an attempt's files; what is left if that fails, `polyepo gc` finds."""
        with contextlib.suppress(OSError, StoreError):
            self.files.remove(folder)

    def _uncommitted(self, key: AnyKey, error: Exception) -> StoreError:
        return StoreError(f"{key.path} could not be committed under root {self.root!r}: {error}")

    def _remember(self, manifest: Manifest) -> None:
        # Manifests never change, so they may be kept; a few, so that memory stays flat over thousands of steps.
        with self._lock:
            if len(self._manifests) >= 256:
                del self._manifests[next(iter(self._manifests))]
            self._manifests[manifest.path] = manifest

    def _keep(self, path: str, data: bytes) -> None:
        """Keep a file of a remote store, which never changes, for the stages that read it next."""
        if self.files.fs is None or len(data) > _KEPT_BYTES:
            return
        with self._lock:
            self._kept[path] = data
            while len(self._kept) > 256 or sum(map(len, self._kept.values())) > _KEPT_BYTES:
                del self._kept[next(iter(self._kept))]

    def _committed(self, key: AnyKey) -> Manifest:
        manifest = self.manifest(key)
        if manifest is None:
            raise StoreError(f"{key.path} is not committed under root {self.root!r}")
        return manifest

    def _checked(self, manifest: Manifest, entry: FileEntry, verify: bool) -> bytes:
        path = f"{manifest.path}/{manifest.attempt}/{entry.path}"
        if not verify and (kept := self._kept.get(path)) is not None:
            return kept
        try:
            data = self.files.read(path)
        except FileNotFoundError:
            raise CorruptArtifactError(f"{path} is named by its manifest, but missing") from None
        except OSError as error:
            raise CorruptArtifactError(f"{path} cannot be read: {error.strerror or error}") from None
        if len(data) != entry.size:
            raise CorruptArtifactError(f"{path} must have {entry.size} bytes, but has {len(data)}")
        if verify and (found := hashlib.sha256(data).hexdigest()) != entry.sha256:
            raise CorruptArtifactError(f"{path} must have sha256 {entry.sha256}, but has {found}")
        self._keep(path, data)
        return data


def _settings_folder(run: str) -> str:
    return f"runs/{check_name('run', run)}/settings"


def _open_files(root: str, **options: Any) -> Files:
    """Files under a local path or s3://bucket/prefix. Raises StoreError if the root is neither."""
    if root.startswith("s3://"):
        from storage.s3 import S3Files  # takes half a second to import

        return S3Files(root, **options)
    root = root.removeprefix("file://")
    if "://" in root:
        raise StoreError(f"root {root!r} must be a local path or s3://bucket/prefix")
    return LocalFiles(root)


@lru_cache(maxsize=8)
def open_store(root: str) -> Store:
    """The store of a root, one object per root and process."""
    return Store(root)


def read_manifest(files: Files, path: str) -> Manifest | None:
    """The manifest in an artifact's folder, or None if there is none.

    Raises:
        CorruptArtifactError: it cannot be read, or it is another artifact's.
    """
    try:
        manifest = Manifest.model_validate_json(files.read(f"{path}/manifest.json"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CorruptArtifactError(f"{path}/manifest.json cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "it"
        raise CorruptArtifactError(
            f"{path}/manifest.json cannot be read as a manifest: {field}: {first['msg']}"
        ) from None
    if manifest.path != path:
        raise CorruptArtifactError(f"{path}/manifest.json belongs to {manifest.path}")
    return manifest


def conform(table: pa.Table, table_name: str) -> pa.Table:
    """The table with exactly the schema's columns and types.

    Raises:
        ValueError: a column is missing or unknown, of another type, null where it must not be, or a key repeats.
    """
    schema = TABLES[table_name]
    if set(table.column_names) != set(schema.names):
        missing, unknown = (
            set(schema.names) - set(table.column_names),
            set(table.column_names) - set(schema.names),
        )
        raise ValueError(f"table {table_name}: columns missing {sorted(missing)}, unknown {sorted(unknown)}")
    table = table.select(schema.names)
    check_keys(table, table_name, schema)
    return table.cast(schema)


def _read_part(part: pq.ParquetFile, size: int, columns: list[str] | None, table_name: str | None) -> pa.Table:
    """Columns of a Parquet file; null where they are the table's and the file, of an older version, lacks them."""
    # pq.read_table would import pandas; and a small file is read before threads have started.
    table = part.read(columns, use_threads=size > _THREADED_BYTES)
    if columns is None or table_name not in TABLES:
        return table
    for name in set(columns) - set(table.column_names):
        field = TABLES[table_name].field(name)
        table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(columns)


def check_keys(table: pa.Table, table_name: str, schema: pa.Schema) -> None:
    """Raise ValueError if a column is missing, or null or of a value where it must not be, or a row's key repeats."""
    for field in schema:
        if field.name not in table.column_names:
            raise ValueError(f"table {table_name}: column {field.name} is missing")
        if not field.nullable and table[field.name].null_count:
            raise ValueError(f"table {table_name}: column {field.name} must not be null, but is in some row")
        allowed = VALUES.get((table_name, field.name))
        if allowed and (unknown := {str(v) for v in table[field.name].unique().drop_null().to_pylist()} - allowed):
            raise ValueError(
                f"table {table_name}: column {field.name} must be one of {', '.join(sorted(allowed))}, but is "
                f"{min(unknown)!r} in some row"
            )
    by: list[str] = [name for name in ("run", "step", "split", "problem_id", "sample") if name in schema.names]
    if "sample" in by or table_name == "problems":
        repeated = table.group_by(by, use_threads=False).aggregate([([], "count_all")])
        if repeated.num_rows < table.num_rows:
            import pyarrow.compute as pc  # late: what only reads does without

            first = repeated.filter(pc.field("count_all") > 1).select(by).slice(0, 1).to_pylist()[0]
            raise ValueError(f"table {table_name}: key {first} repeats")


def table_bytes(table: pa.Table, table_name: str, provenance: Provenance) -> bytes:
    """The Parquet file of a table, with its provenance in the footer; the same rows give the same bytes."""
    metadata = {
        "polyepo.table": table_name,
        "polyepo.schema_version": str(SCHEMA_VERSION),
        "polyepo.config_hash": provenance.config_hash,
        "polyepo.code_version": provenance.code_version,
        "polyepo.policy_version": str(provenance.policy_version),
    }
    split = [f"{f.name}.list.element" for f in table.schema if f.type == pa.list_(pa.float32())]
    dictionary = [
        f"{name}.list.element" if pa.types.is_list(table.schema.field(name).type) else name
        for name in table.column_names
        if name in _DICTIONARY_COLUMNS
    ]
    bytes_per_row = max(1, table.nbytes // max(1, table.num_rows))
    sink = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(metadata),
        sink,
        compression="zstd",
        use_dictionary=dictionary,  # type: ignore[arg-type]
        column_encoding=dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
        row_group_size=max(1024, _ROW_GROUP_BYTES // bytes_per_row),
    )
    return sink.getvalue()


def _entry(path: Path, directory: Path) -> FileEntry:
    return FileEntry(path=path.relative_to(directory).as_posix(), size=path.stat().st_size, sha256=_sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
