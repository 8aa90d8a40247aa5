"""Check a run from its manifests: files, hashes, rows, keys and lineage. Every file is read once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from polyepo.schemas import TABLES
from storage.errors import CorruptArtifactError
from storage.layout import check_name
from storage.manifest import FileEntry, Manifest, ParentRef
from storage.parquet import open_parquet
from storage.removal import removal
from storage.store import Store, check_keys, read_manifest

_KEY = ["problem_id", "sample"]


class Finding(NamedTuple):
    """Something that is not as a manifest says."""

    path: str
    message: str


@dataclass
class _Checked:
    """An artifact whose own files have been read."""

    path: str
    manifest: Manifest | None = None
    findings: list[Finding] = field(default_factory=list)
    responses: str = ""
    """Digest of the rows' keys, in their order."""
    responses_by_parent: list[str] = field(default_factory=list)
    """The same for the rows of each of the rollouts that labels or scores are of."""


def verify_run(store: Store, run: str) -> Iterator[Finding]:
    """Everything that is wrong with a run: its record, and its committed artifacts."""
    yield from verify_record(store, run)
    for found in verify_artifacts(store, manifests(store, run)):
        yield from found


def verify_record(store: Store, run: str) -> Iterator[Finding]:
    """Check that a run's record can be read."""
    try:
        store.run_record(run)
    except CorruptArtifactError as error:
        yield Finding(f"runs/{run}/run.json", str(error))


def manifests(store: Store, run: str, forks: tuple[str, ...] = ()) -> list[str]:
    """Paths of a run's committed artifacts; of a fork also those of its parent, up to the step that it shares.

    Args:
        store: where it is.
        run: its name.
        forks: those that are asked for this as their parent.

    Raises:
        CorruptArtifactError: a record cannot be read, or a run is its own ancestor.
    """
    check_name("run", run)  # a record may call anything its parent
    if run in forks:
        raise CorruptArtifactError(f"runs/{run}/run.json: run {run} cannot be a fork of itself")
    # Where a folder stands in a manifest's place, what is in it tells of it.
    found = (f"{file.path}/".partition("/manifest.json/") for file in store.files.find(f"runs/{run}"))
    paths = {path for path, is_manifest, _ in found if is_manifest}
    if parent := (store.run_record(run) or {}).get("parent"):
        paths |= {path for path in manifests(store, parent["run"], (*forks, run)) if _step(path) <= parent["step"]}
    return sorted(paths)


def _step(path: str) -> int:
    return next((int(part.removeprefix("step=")) for part in path.split("/") if part.startswith("step=")), 0)


def verify_artifacts(store: Store, paths: list[str]) -> Iterator[list[Finding]]:
    """Check committed artifacts, several at a time.

    Yields what is wrong with each one's own files, in the order of the paths: sizes and SHA-256, a table's rows,
    columns and keys. Then, once all are read, what is wrong between them and their parents.
    """
    known: dict[str, _Checked] = {}
    for checked in store.each(lambda path: _check(store, path), paths):
        known[checked.path] = checked
        yield checked.findings
    yield [finding for checked in known.values() for finding in _verify_parents(store, checked, known)]


def _check(store: Store, path: str) -> _Checked:
    checked = _Checked(path)
    try:
        manifest = read_manifest(store.files, path)
    except CorruptArtifactError as error:
        checked.findings.append(Finding(path, str(error)))
        return checked
    if manifest is None:
        checked.findings.append(Finding(path, "the manifest is gone"))
        return checked
    checked.manifest = manifest
    parts = []
    for entry in [] if _removed(store, checked) else manifest.files:
        part = _read(store, manifest, entry, checked.findings)
        if part is not None:
            parts.append(part)
    if manifest.table is not None and len(parts) == len(manifest.files):
        _check_table(checked, manifest, parts)
    return checked


def _removed(store: Store, checked: _Checked) -> bool:
    """Whether the artifact's files were removed to make room. Tables never are."""
    if checked.manifest is None or checked.manifest.table is not None:
        return False
    try:
        return removal(store.files, checked.path) is not None
    except CorruptArtifactError as error:
        checked.findings.append(Finding(checked.path, str(error)))
        return True


def _read(store: Store, manifest: Manifest, entry: FileEntry, findings: list[Finding]) -> bytes | None:
    """A table's file, or nothing of another one, if it is what the manifest says; hashed as it comes."""
    digest, size, kept = hashlib.sha256(), 0, []
    try:
        for chunk in store.files.chunks(f"{manifest.path}/{manifest.attempt}/{entry.path}", entry.size):
            digest.update(chunk)
            size += len(chunk)
            if manifest.table is not None:
                kept.append(chunk)
    except FileNotFoundError:
        findings.append(Finding(manifest.path, f"{entry.path} is missing"))
        return None
    except OSError as error:
        findings.append(Finding(manifest.path, f"{entry.path} cannot be read: {error.strerror or error}"))
        return None
    if size != entry.size:
        findings.append(Finding(manifest.path, f"{entry.path} has {size} bytes instead of {entry.size}"))
        return None
    if digest.hexdigest() != entry.sha256:
        findings.append(Finding(manifest.path, f"{entry.path} has another SHA-256 than the manifest says"))
        return None
    return b"".join(kept)


def _check_table(checked: _Checked, manifest: Manifest, parts: list[bytes]) -> None:
    name = str(manifest.table)
    if name not in TABLES:
        checked.findings.append(Finding(manifest.path, f"there is no table {name!r}"))
        return
    try:
        opened = [open_parquet(part, None, file.path) for part, file in zip(parts, manifest.files, strict=True)]
        tables = [file.read(use_threads=False) for file in opened]
        whole = pa.concat_tables(tables, promote_options="default")
    except (pa.ArrowException, OSError) as error:
        checked.findings.append(Finding(manifest.path, f"no valid Parquet: {error}"))
        return
    except CorruptArtifactError as error:
        checked.findings.append(Finding(manifest.path, str(error)))
        return
    for table, entry in zip(tables, manifest.files, strict=True):
        if table.num_rows != entry.num_rows:
            message = f"{entry.path} has {table.num_rows} rows instead of {entry.num_rows}"
            checked.findings.append(Finding(manifest.path, message))
    if whole.num_rows != manifest.num_rows:
        checked.findings.append(Finding(manifest.path, f"{whole.num_rows} rows instead of {manifest.num_rows}"))
    # A column that this version added is missing from what an older one wrote.
    fields = [field for field in TABLES[name] if field.name in whole.column_names or not field.nullable]
    try:
        check_keys(whole, name, pa.schema(fields))
    except ValueError as error:
        checked.findings.append(Finding(manifest.path, str(error)))
        return
    if name in ("rollouts", "labels", "scores"):
        checked.responses = _digest(whole)
        first = 0
        for parent in _rollouts(manifest):
            num_rows = sum(file.num_rows or 0 for file in parent.files)
            checked.responses_by_parent.append(_digest(whole.slice(first, num_rows)))
            first += num_rows
        if first < whole.num_rows:
            checked.responses_by_parent.append(_digest(whole.slice(first)))


def _digest(table: pa.Table) -> str:
    problem_ids = "\0".join(table["problem_id"].to_pylist())  # type: ignore[arg-type]
    return hashlib.sha256(problem_ids.encode() + table["sample"].to_numpy().tobytes()).hexdigest()


def _rollouts(manifest: Manifest) -> list[ParentRef]:
    """The rollouts that labels or scores are of."""
    of_responses = manifest.table in ("labels", "scores")
    return [p for p in manifest.parents if of_responses and "/rollouts/" in p.path and p.attempt]


def _verify_parents(store: Store, checked: _Checked, known: dict[str, _Checked]) -> Iterator[Finding]:
    """An artifact's parents are committed, with the content that it was made from, and it is of their responses."""
    if checked.manifest is None:
        return
    for parent in checked.manifest.parents:
        try:
            found = known[parent.path].manifest if parent.path in known else read_manifest(store.files, parent.path)
        except CorruptArtifactError:
            found = None
        if found is None:
            yield Finding(checked.path, f"its parent {parent.path} is not committed")
        elif found.content_digest != parent.content_digest:
            yield Finding(checked.path, f"its parent {parent.path} has other content than when it was made")
    rollouts = _rollouts(checked.manifest)
    if not rollouts or not checked.responses:
        return
    theirs = [known[parent.path].responses if parent.path in known else "" for parent in rollouts]
    if checked.responses_by_parent != theirs:  # another order, other responses, or another run's
        yield from _verify_responses(store, checked.manifest, rollouts)


def _verify_responses(store: Store, manifest: Manifest, rollouts: list[ParentRef]) -> Iterator[Finding]:
    """Labels and scores are of exactly the responses that their rollouts hold."""
    try:
        wanted = set().union(*(_responses(store, parent) for parent in rollouts))
        found = _responses(store, manifest.reference)
    except (OSError, pa.ArrowException):
        return  # the artifact's own check says so
    if found != wanted:
        missing, unknown = len(wanted - found), len(found - wanted)
        yield Finding(manifest.path, f"{missing} responses of its rollouts are missing, {unknown} are not in them")


def _responses(store: Store, ref: ParentRef) -> set[tuple[object, object]]:
    found: set[tuple[object, object]] = set()
    for file in ref.files:
        data = store.files.read(f"{ref.path}/{ref.attempt}/{file.path}")
        part = pq.ParquetFile(pa.BufferReader(data)).read(_KEY)
        found |= set(zip(*(part[name].to_pylist() for name in _KEY), strict=True))
    return found
