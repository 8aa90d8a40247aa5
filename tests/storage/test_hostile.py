"""Stores that somebody else made: nothing outside of them is read or deleted, and what lies about itself is refused."""

import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from polyepo.errors import ConfigError
from storage import ArtifactKey, Catalog, CorruptArtifactError, Provenance, Store, parquet
from storage.gc import find_garbage, remove_garbage
from storage.manifest import FileEntry
from storage.removal import remove_files
from storage.verify import manifests, verify_run
from tests.support.artifacts import make_root, simple

KEY = ArtifactKey("run", "rollouts", 1, (), 0)
LEADING_OUT = [
    "../../../../../secret",
    "/etc/passwd",
    "a/../../../../../../secret",
    "a//b",
    ".",
    "",
    "..\\secret",
    "*",
    "part-0000?",
]


@pytest.fixture
def secret(tmp_path):
    """A file that is none of the store's, with a folder's worth of others."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "secret").write_bytes(b"mine")
    return folder / "secret"


@pytest.fixture
def store(tmp_path, secret):
    return make_root(tmp_path / "root", [[[simple(), simple(1)]]])


def fresh(store):
    """The store as another process finds it."""
    return Store(store.root)


def edit(store, change, stage="rollouts"):
    path = next(Path(store.root).glob(f"runs/run/{stage}/**/manifest.json"))
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    return path.parent / record["attempt"]


@pytest.mark.parametrize("path", LEADING_OUT)
@pytest.mark.parametrize("where", ["file", "attempt", "parent"])
def test_a_manifest_that_leads_out_of_the_store_is_refused(store, secret, path, where):
    def change(record):
        if where == "file":
            record["files"][0]["path"] = path
        elif where == "attempt":
            record["attempt"] = path
        else:
            record["parents"] = [{"path": path, "content_digest": "0", "attempt": "0" * 16, "files": []}]

    edit(store, change)
    with pytest.raises(CorruptArtifactError, match="cannot be read as a manifest"):
        fresh(store).read_table(KEY)
    with pytest.raises(CorruptArtifactError):
        fresh(store).local_files(KEY)
    with pytest.raises(CorruptArtifactError):
        remove_files(fresh(store), KEY, "room")
    assert any("cannot be read as a manifest" in finding.message for finding in verify_run(fresh(store), "run"))
    assert secret.read_bytes() == b"mine"


@given(st.text(max_size=30))
def test_a_path_that_is_believed_stays_below_where_it_is_joined_to(path):
    try:
        entry = FileEntry(path=path, size=0, sha256="")
    except ValidationError:
        return
    joined = os.path.normpath(f"/root/run/{entry.path}")
    assert joined.startswith("/root/run/")


def linked(store, secret):
    """The first rollouts' file is a link to a file elsewhere, of which the manifest tells the truth."""
    good = next(Path(store.root).glob("runs/run/rollouts/**/part-00000.parquet"))
    outside = secret.parent / "part.parquet"
    good.rename(outside)
    good.symlink_to(outside)
    return good, outside


def test_a_file_that_is_a_link_is_not_read(store, secret):
    linked(store, secret)
    with pytest.raises(CorruptArtifactError, match="it leads out of the store"):
        fresh(store).read_table(KEY)
    with pytest.raises(PermissionError):
        fresh(store).local_files(KEY)
    assert Catalog(store.root).fetch("SELECT count(*) FROM rollouts")[1] == [(0,)]
    assert any("it leads out of the store" in finding.message for finding in verify_run(fresh(store), "run"))


def test_a_folder_that_is_a_link_is_not_read(store, secret):
    attempt = next(Path(store.root).glob("runs/run/rollouts/**/part-00000.parquet")).parent
    moved = secret.parent / "attempt"
    attempt.rename(moved)
    attempt.symlink_to(moved)
    with pytest.raises(CorruptArtifactError, match="it leads out of the store"):
        fresh(store).read_table(KEY)
    assert Catalog(store.root).fetch("SELECT count(*) FROM rollouts")[1] == [(0,)]


def test_a_run_may_be_a_link_to_another_disk(store, tmp_path):
    run, elsewhere = Path(store.root) / "runs" / "run", tmp_path / "disk"
    run.rename(elsewhere)
    run.symlink_to(elsewhere)
    assert fresh(store).read_table(KEY).num_rows == 2
    assert Catalog(store.root).fetch("SELECT count(*) FROM rollouts")[1] == [(2,)]
    assert list(verify_run(fresh(store), "run")) == []


def test_nothing_is_deleted_through_a_link(store, secret):
    """By gc: an attempt that died, in which a link leads to somebody's folder."""
    folder = Path(store.root) / "runs/run/labels/judge=x/step=000009/shard=000/0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "home").symlink_to(secret.parent)
    (folder / "file").symlink_to(secret)
    garbage = find_garbage(store, older_than_s=-time.time())
    assert [item.path for item in garbage] == [str(folder.relative_to(store.root))]
    remove_garbage(store, garbage)
    assert not folder.exists()
    assert secret.read_bytes() == b"mine"


def test_nothing_is_written_or_deleted_below_a_link(store, secret):
    stage = Path(store.root) / "runs" / "run" / "scores"
    for path in list(stage.rglob("*"))[::-1]:
        path.rmdir() if path.is_dir() else path.unlink()
    stage.rmdir()
    stage.symlink_to(secret.parent)
    for act in (
        lambda: store.files.remove("runs/run/scores/secret"),
        lambda: store.files.write("runs/run/scores/new", b""),
        lambda: store.files.create("runs/run/scores/new", b""),
        lambda: store.files.read("runs/../home/secret"),
    ):
        with pytest.raises(PermissionError):
            act()
    assert os.listdir(secret.parent) == ["secret"]


@pytest.mark.parametrize("parent", ["../../home", "run", "/etc"])
def test_a_record_that_calls_anything_its_parent(store, parent):
    path = Path(store.root) / "runs" / "run" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parent": {"run": parent, "step": 1}}))
    with pytest.raises((ConfigError, CorruptArtifactError), match="run"):
        manifests(fresh(store), "run")


def replace_part(store, table, num_rows, **options):
    """Another file in the place of the rollouts', of which the manifest says size, SHA-256 and so many rows."""
    part = next(Path(store.root).glob("runs/run/rollouts/**/part-00000.parquet"))
    pq.write_table(table, part, **options)
    data = part.read_bytes()
    entry = {"path": part.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "num_rows": num_rows}
    edit(store, lambda record: record.update(files=[entry], num_rows=num_rows))
    return len(data)


def test_a_file_with_other_rows_than_its_manifest_says_is_not_decoded(store):
    replace_part(store, pa.table({"sample": pa.array([0] * 10_000_000, pa.int32())}), 4)
    with pytest.raises(CorruptArtifactError, match="must have 4 rows, but has 10000000"):
        fresh(store).read_table(KEY)


def test_a_file_that_would_unpack_to_a_thousand_times_its_size_is_not_decoded(store, monkeypatch):
    monkeypatch.setattr(parquet, "_UNPACKED_BYTES", 1 << 20)
    table = pa.table({"response": pa.array(["x" * (1 << 20)] * 50)})
    size = replace_part(store, table, 50, compression="zstd", use_dictionary=False)
    assert size < 50_000
    with pytest.raises(CorruptArtifactError, match="would unpack to"):
        fresh(store).read_table(KEY)
    assert any("would unpack to" in finding.message for finding in verify_run(fresh(store), "run"))


@pytest.mark.parametrize("value", [-1, 1 << 70, "x", None])
def test_sizes_that_cannot_be_are_no_manifest(store, value):
    edit(store, lambda record: record["files"][0].update(size=value))
    with pytest.raises(CorruptArtifactError):
        fresh(store).read_table(KEY)


def test_weights_that_are_not_what_was_committed_are_not_handed_out(store, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    key = ArtifactKey("run", "checkpoints", 1)
    store.commit_files(key, folder, provenance=Provenance("hash", "test"))
    assert store.local_files(key, verify=True)
    next(Path(store.root).glob("runs/run/checkpoints/**/model.safetensors")).write_bytes(b"pickles")
    with pytest.raises(CorruptArtifactError, match="must have sha256"):
        fresh(store).local_files(key, verify=True)


@pytest.mark.parametrize("header", [1 << 60, 1 << 20, 0])
def test_safetensors_that_lie_about_their_size_are_refused(tmp_path, header):
    path = tmp_path / "model.safetensors"
    save_file({"weight": np.zeros(4, np.float32)}, path)
    path.write_bytes(header.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(SafetensorError):
        load_file(path)


def test_tensors_beyond_their_file_are_refused(tmp_path):
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 16)
    with pytest.raises(SafetensorError):
        load_file(path)
