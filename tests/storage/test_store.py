"""The commit protocol: on a local disk and on a real S3 server, raced, killed, corrupted and out of space."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyepo.labels import LabelStatus
from polyepo.schemas import LABELS, ROLLOUTS
from storage import ArtifactKey, CorruptArtifactError, Provenance, Store, StoreError
from storage.store import conform

KEY = ArtifactKey("run", "labels", 3, (("judge", "program"),), 0)
PROVENANCE = Provenance("config", "code", 2)


def labels(num_rows=8, text="x"):
    row = {"run": "run", "step": 3, "problem_id": "p", "judge": "program", "cluster": 1, "degenerate": False,
           "macro_strategy": text, "micro_strategy": None, "status": "ok"}  # fmt: skip
    return pa.Table.from_pylist([{**row, "sample": i} for i in range(num_rows)], schema=LABELS)


def commit(store, table=None, key=KEY):
    return store.commit_table(key, labels() if table is None else table, table_name="labels", provenance=PROVENANCE)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def root(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "root")
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}-{random.getrandbits(32)}"


def test_commit_and_read_back(root, tmp_path):
    store = Store(root)
    store.check()
    assert store.manifest(KEY) is None
    manifest = commit(store)
    fresh = Store(root)
    assert fresh.manifest(KEY) == manifest
    assert fresh.read_table(KEY, verify=True).equals(labels())
    assert fresh.read_table(KEY, columns=["sample"]).column_names == ["sample"]
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "a.bin").write_bytes(b"\0" * 10)
    (model / "sub" / "b.json").write_text("{}")
    checkpoint = ArtifactKey("run", "checkpoints", 4)
    store.commit_files(checkpoint, model, provenance=PROVENANCE, parents=[manifest])
    assert fresh.manifest(checkpoint).parents == [manifest.reference]
    folder = fresh.local_files(checkpoint)
    assert (folder / "sub" / "b.json").read_text() == "{}"
    assert fresh.steps("run", "checkpoints") == [4]


def test_runs_are_made_once(root):
    store = Store(root)
    first = store.create_run("run", {"config": {"a": 1}})
    assert Store(root).create_run("run", {"config": {"a": 2}}) == first == store.run_record("run")
    assert store.run_record("other") is None
    assert store.runs() == ["run"]


def test_first_commit_wins_and_is_never_rewritten(root):
    first = commit(Store(root), labels(text="first"))
    second = commit(Store(root), labels(text="second"))
    assert first == second
    assert Store(root).read_table(KEY)["macro_strategy"][0].as_py() == "first"


@pytest.mark.parametrize("asked", [True, False])
def test_what_was_asked_before_does_not_alter_a_commit(root, asked):
    store = Store(root)
    first = commit(store)
    assert not asked or store.exists(KEY)
    assert commit(store) == first
    Store(root).files.remove(KEY.path)  # by hand, to make it anew
    assert not asked or store.exists(KEY), "manifests never change, so they are kept"
    assert commit(store).attempt != first.attempt
    assert Store(root).read_table(KEY, verify=True).equals(labels())


def test_a_name_is_claimed_once(root):
    assert [Store(root).claim_run("run", {"digest": d}) for d in ("a", "a", "b")] == [True, True, False]
    assert Store(root).run_names() == ["run"]
    assert Store(root).runs() == []


def test_some_files_of_an_artifact(root, tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("a", "b"):
        (tmp_path / "model" / name).write_text(name * 3)
    key = ArtifactKey("run", "checkpoints", 1)
    Store(root).commit_files(key, tmp_path / "model", provenance=PROVENANCE)
    fresh = Store(root)
    folder = fresh.local_files(key, ["b", "c"])
    assert (folder / "b").read_text() == "bbb"
    assert not (folder / "c").exists()
    assert fresh.files.fs is None or not (folder / "a").exists()


def _race(arguments):
    root, number = arguments
    store = Store(root)
    store._manifests.clear()
    return store._commit(KEY, [], PROVENANCE, []).attempt, number


def test_of_sixteen_racing_processes_one_wins(tmp_path):
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(_race, [(str(tmp_path), i) for i in range(16)]))
    assert len({attempt for attempt, _ in results}) == 1


@pytest.mark.slow
def test_of_sixteen_racing_writers_on_s3_one_wins(s3):
    root = f"{s3}/race"
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda i: Store(root, skip_instance_cache=True).files.create("x", bytes([i])), range(16)))
    assert sum(won) == 1


def test_a_link_whose_reply_was_lost_is_no_lost_race(tmp_path, monkeypatch):
    """NFS repeats a request that was carried out, and the second one finds what the first has made."""
    real = os.link

    def link(source, target):
        real(source, target)
        raise FileExistsError(errno.EEXIST, "File exists", source, None, target)

    monkeypatch.setattr(os, "link", link)
    store = Store(str(tmp_path))
    store.check()
    mine = commit(store, labels(text="mine"))
    assert Store(str(tmp_path)).manifest(KEY) == mine
    assert Store(str(tmp_path)).read_table(KEY, verify=True)["macro_strategy"][0].as_py() == "mine"
    monkeypatch.undo()
    assert commit(Store(str(tmp_path)), labels(text="theirs")) == mine
    attempts = {path.name for path in (tmp_path / KEY.path).iterdir()}
    assert attempts == {mine.attempt, "manifest.json"}, "the loser's files are gone, and the winner's are there"


def test_asking_does_not_change_what_a_commit_does(tmp_path):
    """Whether or not a store was asked before, the first commit wins and the second is told so."""
    asked, other = Store(str(tmp_path)), Store(str(tmp_path))
    assert not asked.exists(KEY)
    mine = commit(other)
    assert commit(asked, labels(text="late")) == mine
    assert not asked.exists(ArtifactKey("run", "labels", 4, KEY.partition, 0))
    assert asked.exists(KEY)


def test_many_are_asked_for_at_once(root):
    store = Store(root)
    keys = [ArtifactKey("run", "labels", step, KEY.partition, 0) for step in range(20)]
    for key in keys[::2]:
        commit(store, labels(text=str(key.step)), key)
    fresh = Store(root)
    assert fresh.committed(keys) == keys[::2]
    assert fresh.steps("run", "labels", KEY.partition, 0) == list(range(0, 20, 2))
    assert fresh.steps("run", "labels", KEY.partition, 1) == fresh.steps("run", "labels", KEY.partition) == []
    texts = [table["macro_strategy"][0].as_py() for table in fresh.read_tables(keys[::2], ["macro_strategy"])]
    assert texts == [str(step) for step in range(0, 20, 2)]
    with pytest.raises(StoreError, match=r"step=000001.*not committed"):
        list(fresh.read_tables(keys))
    fresh.fetch(keys[::2])
    assert fresh.read_table(keys[0]).num_rows == 8


def test_same_rows_give_the_same_bytes(tmp_path):
    one, two = commit(Store(str(tmp_path / "a"))), commit(Store(str(tmp_path / "b")))
    assert one.files == two.files
    assert one.content_digest == two.content_digest
    assert one.attempt != two.attempt


def test_unfinished_attempts_are_invisible(tmp_path):
    store = Store(str(tmp_path))
    store.files.write(f"{KEY.path}/deadbeef/part-00000.parquet", b"half")
    assert not store.exists(KEY)
    assert store.steps("run", "labels", KEY.partition) == []
    commit(store)
    assert store.read_table(KEY).num_rows == 8


def test_corruption_is_noticed(tmp_path):
    store = Store(str(tmp_path))
    manifest = commit(store)
    part = tmp_path / KEY.path / manifest.attempt / "part-00000.parquet"
    data = bytearray(part.read_bytes())
    data[10] ^= 1
    part.write_bytes(data)
    with pytest.raises(CorruptArtifactError, match="sha256"):
        store.read_table(KEY, verify=True)
    part.write_bytes(data[:-1])
    with pytest.raises(CorruptArtifactError, match=r"must have \d+ bytes, but has"):
        store.read_table(KEY)
    part.unlink()
    with pytest.raises(CorruptArtifactError, match="missing"):
        store.read_table(KEY)


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_full_disk_harms_nothing(tmp_path, monkeypatch, call):
    store = Store(str(tmp_path))
    other = ArtifactKey("run", "labels", 2, KEY.partition, 0)
    commit(store, key=other)
    calls = []
    real = os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        commit(store)
    monkeypatch.undo()
    fresh = Store(str(tmp_path))
    assert fresh.read_table(other, verify=True).num_rows == 8
    # Either nothing was committed, or (the very last sync failed) all of it.
    if fresh.exists(KEY):
        assert fresh.read_table(KEY, verify=True).num_rows == 8
    commit(fresh)
    assert fresh.read_table(KEY, verify=True).num_rows == 8


@pytest.mark.slow
def test_killed_at_any_moment_it_is_all_or_nothing(tmp_path):
    code = (
        "import sys; from tests.storage.test_store import *\n"
        "store = Store(sys.argv[1]); labels(); print('go', flush=True)\n"  # the first table takes an import
        "for step in range(10000): commit(store, key=ArtifactKey('run', 'labels', step, KEY.partition, 0))"
    )
    random.seed(0)
    for _ in range(20):
        writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(random.random() * 0.1)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    store = Store(str(tmp_path))
    names = store.files.names("runs/run/labels/judge=program")
    keys = [ArtifactKey("run", "labels", int(name[5:]), KEY.partition, 0) for name in names]
    committed = [key for key in keys if store.exists(key)]
    assert len(committed) >= 20
    for key in committed:
        assert store.read_table(key, verify=True).equals(labels())


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a..b", ".hidden", "x' OR 1=1", "x\n", "é", "a" * 101])
def test_hostile_names_are_refused(name):
    with pytest.raises(ValueError, match="run"):
        ArtifactKey(name, "labels", 0)
    with pytest.raises(ValueError, match="judge"):
        ArtifactKey("run", "labels", 0, (("judge", name),))


def test_tables_must_fit_their_schema(tmp_path):
    store = Store(str(tmp_path))
    with pytest.raises(ValueError, match="missing"):
        commit(store, labels().drop_columns(["status"]))
    with pytest.raises(ValueError, match="unknown"):
        commit(store, labels().append_column("extra", pa.array([1] * 8)))
    with pytest.raises(ValueError, match="repeats"):
        commit(store, pa.concat_tables([labels(), labels()]))
    nulls = labels().set_column(9 - 0, "status", pa.nulls(8, pa.string()))
    with pytest.raises(ValueError, match="status must not be null"):
        commit(store, nulls)
    assert not store.exists(KEY)


def test_unwritable_root(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="not writable"):
        Store(str(tmp_path / "file" / "root")).check()


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=50), st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_any_text_and_every_bit_of_logprobs_survive(tmp_path_factory, text, logprobs):
    text = text.encode("utf-8", "replace").decode()
    row = {"run": "run", "step": 1, "problem_id": text, "sample": 0, "prompt_token_ids": [1], "response": text,
           "response_token_ids": [2] * len(logprobs), "sampler_logprobs": logprobs, "finish_reason": "stop",
           "temperature": 1.0, "top_p": 1.0, "seed": 1, "policy_version": 0, "sampler": "transformers"}  # fmt: skip
    key = ArtifactKey("run", "rollouts", 1, (), 0)
    store = Store(str(tmp_path_factory.mktemp("store")))
    table = pa.Table.from_pylist([row], schema=ROLLOUTS)
    store.commit_table(key, table, table_name="rollouts", provenance=PROVENANCE)
    back = store.read_table(key, verify=True).to_pylist()[0]
    assert back["response"] == text
    assert np.array(back["sampler_logprobs"], np.float32).tobytes() == np.array(logprobs, np.float32).tobytes()


def test_a_label_has_one_of_the_listed_statuses(tmp_path):
    """The list that judges, checks and views take it from: what is in none of them is a mistake of a judge."""

    def table(status):
        row = {"run": "run", "step": 1, "problem_id": "p", "sample": 0, "judge": "j", "degenerate": False}
        return pa.Table.from_pylist([{**row, "status": status}], schema=LABELS)

    for status in LabelStatus:
        assert conform(table(str(status)), "labels").num_rows == 1
    with pytest.raises(ValueError, match=r"column status must be one of .*unlabelled, but is 'lost' in some row"):
        conform(table("lost"), "labels")
