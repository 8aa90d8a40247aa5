"""Verification finds whatever is not as a manifest says; garbage collection never touches what one names."""

import os
import random
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polyepo.schemas import LABELS
from storage import ArtifactKey, Provenance, Store
from storage.gc import find_garbage, remove_garbage
from storage.verify import manifests, verify_run
from tests.support.artifacts import make_root, simple

PROVENANCE = Provenance("hash", "test")


@pytest.fixture
def store(tmp_path):
    return make_root(tmp_path / "root", [[[simple(), simple(1)]], [[simple(2)]]])


def findings(store, run="run"):
    return list(verify_run(store, run))


def part(store, stage):
    return sorted(Path(store.root).glob(f"runs/run/{stage}/**/part-00000.parquet"))[0]


def rewrite_manifest(store, stage, old, new):
    path = sorted(Path(store.root).glob(f"runs/run/{stage}/**/manifest.json"))[0]
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def child(store, problem_id="p0"):
    """Labels that name their rollouts as parent, as the judge task commits them."""
    rollouts = store.manifest(ArtifactKey("run", "rollouts", 1, (), 0))
    rows = [
        {"run": "run", "step": 1, "problem_id": problem_id, "sample": i, "judge": "third", "cluster": 0,
         "degenerate": False, "status": "ok"}
        for i in range(2)
    ]  # fmt: skip
    store.commit_table(
        ArtifactKey("run", "labels", 1, (("judge", "third"),), 0),
        pa.Table.from_pylist(rows, schema=LABELS),
        table_name="labels", provenance=PROVENANCE, parents=[rollouts],
    )  # fmt: skip


def test_a_good_run_has_no_findings(store):
    child(store)
    assert len(manifests(store, "run")) == 9
    assert findings(store) == []


def test_a_flipped_byte(store):
    path = part(store, "rollouts")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    [found] = findings(store)
    assert "SHA-256" in found.message
    assert found.path.startswith("runs/run/rollouts/step=000001")


def test_a_missing_and_a_shortened_file(store):
    part(store, "scores").unlink()
    path = part(store, "rollouts")
    path.write_bytes(path.read_bytes()[:-1])
    messages = [finding.message for finding in findings(store)]
    assert any("missing" in message for message in messages)
    assert any("bytes instead of" in message for message in messages)


def test_a_changed_row_count(store):
    rewrite_manifest(store, "scores", '"num_rows": 2,', '"num_rows": 3,')
    assert any("rows instead of" in finding.message for finding in findings(store))


def test_a_parent_with_other_content(store):
    child(store)
    digest = store.manifest(ArtifactKey("run", "rollouts", 1, (), 0)).content_digest
    rewrite_manifest(store, "labels/judge=third", digest, digest[::-1])
    assert any("other content" in finding.message for finding in findings(store))


def test_a_parent_that_is_gone(store):
    child(store)
    next(Path(store.root).glob("runs/run/rollouts/step=000001/**/manifest.json")).unlink()
    assert any("parent" in finding.message and "not committed" in finding.message for finding in findings(store))


def test_labels_of_responses_that_do_not_exist(store):
    child(store, problem_id="another")
    assert any("2 responses of its rollouts are missing, 2 are not in them" in f.message for f in findings(store))


def test_a_key_that_repeats_and_a_foreign_manifest(store):
    path = part(store, "scores")
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table.slice(0, 1), table.slice(0, 1)]), path)
    data = path.read_bytes()
    import hashlib
    import json

    manifest = next(Path(store.root).glob("runs/run/scores/**/step=000001/manifest.json"))
    record = json.loads(manifest.read_text())
    record["files"][0] |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_text(json.dumps(record))
    assert any("repeats" in finding.message for finding in findings(store))
    manifest.write_text("{")
    assert any("cannot be read" in finding.message for finding in findings(store))


def age(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


def stray(store, folder, seconds, attempt="0123456789abcdef"):
    path = Path(store.root) / folder / attempt / "part-00000.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")
    age(path, seconds)
    return path


def test_gc_deletes_what_died_long_ago_and_nothing_else(store):
    committed = {path: path.read_bytes() for path in Path(store.root).rglob("*") if path.is_file()}
    for path in committed:
        age(path, 1e6)
    next_to_a_commit = stray(store, "runs/run/rollouts/step=000001/shard=000", 1e6)
    never_committed = stray(store, "runs/run/labels/judge=x/step=000009/shard=000", 1e6)
    model = stray(store, "models/warm-start/0123456789abcdef", 1e6, attempt="fedcba9876543210")
    alive = stray(store, "runs/run/scores/scoring=own/step=000009", 10)
    names = ("scores/.manifest.json", ".run.json", ".import.json")
    temporary = [Path(store.root) / f"runs/run/{name}.{'0' * 32}" for name in names]
    for path in temporary:
        path.write_bytes(b"{")
        age(path, 1e6)
    garbage = find_garbage(store, older_than_s=3600)
    assert len(garbage) == 6
    assert remove_garbage(store, garbage) == 3 * len(b"half") + 3
    assert not any(path.exists() for path in (next_to_a_commit, never_committed, model, *temporary))
    assert alive.exists()
    assert {path: path.read_bytes() for path in committed} == committed
    assert find_garbage(store, 3600) == []


def test_gc_leaves_what_was_committed_meanwhile(store):
    folder = Path(store.root) / "runs/run/rollouts/step=000001/shard=000"
    manifest = folder / "manifest.json"
    hidden = manifest.read_bytes()
    manifest.unlink()
    for path in folder.rglob("*.parquet"):
        age(path, 1e6)
    garbage = find_garbage(store, 3600)
    assert len(garbage) == 1
    manifest.write_bytes(hidden)  # its writer was only slow
    remove_garbage(store, garbage)
    assert findings(store) == []


def test_gc_of_random_trees_never_deletes_named_files(tmp_path):
    generator = random.Random(0)
    store = make_root(tmp_path, [[[simple()]] for _ in range(3)])
    folders = [path.parent for path in tmp_path.rglob("manifest.json")]
    for i in range(40):
        stray(store, generator.choice(folders).relative_to(tmp_path), 1e6, attempt=f"{i:016x}")
    for path in tmp_path.rglob("*"):
        if path.is_file() and generator.random() < 0.5:
            age(path, 1e6)
    remove_garbage(store, find_garbage(store, 3600))
    assert findings(store) == []


@pytest.mark.slow
def test_verify_and_gc_on_object_storage(tmp_path, s3):
    root = f"{s3}/{tmp_path.name}"
    store = make_root(root, [[[simple()]]])
    store.files.write("runs/run/labels/judge=x/step=000009/shard=000/0123456789abcdef/part-00000.parquet", b"half")
    assert findings(store) == []
    assert find_garbage(store, older_than_s=3600) == []
    time.sleep(1.1)  # S3 tells whole seconds
    garbage = find_garbage(store, older_than_s=0)
    assert [item.path.rsplit("/", 1)[1] for item in garbage] == ["0123456789abcdef"]
    remove_garbage(store, garbage)
    assert find_garbage(store, older_than_s=0) == []
    assert findings(Store(root)) == []
