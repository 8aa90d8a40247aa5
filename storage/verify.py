"""Check a run from its manifests: files, hashes, rows, keys and lineage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from polyepo.schemas import TABLES
from storage.manifest import Manifest
from storage.store import Store, check_keys

_KEY = ["problem_id", "sample"]


class Finding(NamedTuple):
    """Something that is not as a manifest says."""

    path: str
    message: str


def manifests(store: Store, run: str) -> list[str]:
    """Paths of a run's committed artifacts; of a fork also those of its parent, up to the step that it shares."""
    suffix = "/manifest.json"
    paths = [file.path.removesuffix(suffix) for file in store.files.find(f"runs/{run}") if file.path.endswith(suffix)]
    if parent := (store.run_record(run) or {}).get("parent"):
        paths += [path for path in manifests(store, parent["run"]) if _step(path) <= parent["step"]]
    return paths


def _step(path: str) -> int:
    return next((int(part.removeprefix("step=")) for part in path.split("/") if part.startswith("step=")), 0)


def verify_artifact(store: Store, path: str) -> Iterator[Finding]:
    """Check one committed artifact: every file's size and SHA-256, a table's rows, columns and keys, its parents."""
    try:
        manifest = Manifest.model_validate_json(store.files.read(f"{path}/manifest.json"))
    except (ValidationError, OSError) as error:
        yield Finding(path, f"the manifest cannot be read: {error}")
        return
    if manifest.path != path:
        yield Finding(path, f"the manifest belongs to {manifest.path}")
    parts = []
    for entry in manifest.files:
        name = f"{path}/{manifest.attempt}/{entry.path}"
        try:
            data = store.files.read(name)
        except OSError:
            yield Finding(path, f"{entry.path} is missing")
            continue
        if len(data) != entry.size:
            yield Finding(path, f"{entry.path} has {len(data)} bytes instead of {entry.size}")
        elif hashlib.sha256(data).hexdigest() != entry.sha256:
            yield Finding(path, f"{entry.path} has another SHA-256 than the manifest says")
        else:
            parts.append(data)
    if manifest.table is not None and len(parts) == len(manifest.files):
        yield from _verify_table(store, manifest, parts)
    for parent in manifest.parents:
        try:
            found = Manifest.model_validate_json(store.files.read(f"{parent.path}/manifest.json"))
        except (ValidationError, OSError):
            yield Finding(path, f"its parent {parent.path} is not committed")
            continue
        if found.content_digest != parent.content_digest:
            yield Finding(path, f"its parent {parent.path} has other content than when it was made")


def _verify_table(store: Store, manifest: Manifest, parts: list[bytes]) -> Iterator[Finding]:
    name = str(manifest.table)
    if name not in TABLES:
        yield Finding(manifest.path, f"there is no table {name!r}")
        return
    try:
        tables = [pq.read_table(pa.BufferReader(part)) for part in parts]
    except (pa.ArrowException, OSError) as error:
        yield Finding(manifest.path, f"no valid Parquet: {error}")
        return
    for table, entry in zip(tables, manifest.files, strict=True):
        if table.num_rows != entry.num_rows:
            yield Finding(manifest.path, f"{entry.path} has {table.num_rows} rows instead of {entry.num_rows}")
    whole = pa.concat_tables(tables, promote_options="default")
    if whole.num_rows != manifest.num_rows:
        yield Finding(manifest.path, f"{whole.num_rows} rows instead of {manifest.num_rows}")
    # A column that this version added is missing from what an older one wrote.
    fields = [field for field in TABLES[name] if field.name in whole.column_names or not field.nullable]
    try:
        check_keys(whole, name, pa.schema(fields))
    except ValueError as error:
        yield Finding(manifest.path, str(error))
        return
    yield from _verify_responses(store, manifest, whole)


def _verify_responses(store: Store, manifest: Manifest, table: pa.Table) -> Iterator[Finding]:
    """Labels and scores are of exactly the responses that their rollouts hold."""
    rollouts = [parent for parent in manifest.parents if "/rollouts/" in parent.path and parent.attempt]
    if manifest.table not in ("labels", "scores") or not rollouts:
        return
    wanted: set[tuple[str, int]] = set()
    for parent in rollouts:
        for file in parent.files:
            try:
                data = store.files.read(f"{parent.path}/{parent.attempt}/{file.path}")
                part = pq.read_table(pa.BufferReader(data), columns=_KEY)
            except (OSError, pa.ArrowException):
                return  # the rollouts' own check says so
            wanted |= set(zip(*(part[name].to_pylist() for name in _KEY), strict=True))
    found = set(zip(*(table[name].to_pylist() for name in _KEY), strict=True))
    if found != wanted:
        missing, unknown = len(wanted - found), len(found - wanted)
        yield Finding(manifest.path, f"{missing} responses of its rollouts are missing, {unknown} are not in them")
