"""What is broken of one run is named and left out; the others answer as if it were not there."""

import json
import shutil

import duckdb
import pytest

from storage import Catalog, CorruptArtifactError, Store, connect, rows
from storage.verify import verify_run
from tests.support.artifacts import ask, make_root, simple

STEPS = [[[simple(), simple(1)]], [[simple(2)]]]


@pytest.fixture(params=["plain", "run=3/artifacts", "step=7", "a=b=c", "judge=first/scoring=own/x"])
def folder(request, tmp_path):
    """Roots of all kinds: what stands above a store says nothing of what is in it."""
    return tmp_path / request.param


def answers(catalog):
    where = "WHERE run = 'good'"
    return [
        ask(catalog.connection, sql)
        for sql in (
            f"FROM rollouts {where} ORDER BY ALL",
            f"FROM scores {where} AND step = 2 ORDER BY ALL",
            f"FROM labels {where} AND judge = 'second' ORDER BY ALL",
            f"FROM pass_at_k(1) {where} ORDER BY ALL",
            f"SELECT * EXCLUDE (created_at, last_commit) FROM runs {where}",
        )
    ]


def test_key_value_in_a_roots_path_is_no_column(folder, tmp_path):
    make_root(folder, STEPS, "good")
    make_root(tmp_path / "elsewhere", STEPS, "good")
    found = answers(Catalog(str(folder)))
    assert found == answers(Catalog(str(tmp_path / "elsewhere")))
    assert found[0][0]["run"] == "good"


def test_of_a_relative_root_too(folder, tmp_path, monkeypatch):
    make_root(folder, STEPS, "good")
    monkeypatch.chdir(folder.parent)
    assert len(ask(connect(folder.name), "FROM rollouts WHERE run = 'good'")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["run=3/artifacts", "step=7"])
def test_key_value_in_a_prefix_of_object_storage(s3, tmp_path, prefix):
    root = f"{s3}/{tmp_path.name}/{prefix}"
    make_root(root, STEPS, "good")
    make_root(tmp_path / "elsewhere", STEPS, "good")
    assert answers(Catalog(root)) == answers(Catalog(str(tmp_path / "elsewhere")))
    assert list(verify_run(Store(root), "good")) == []


RECORDS = {
    "empty": b"",
    "blank": b"\n",
    "half": b'{"config": {"steps": 1',
    "a list": b"[1, 2]",
    "a number": b"1",
    "null": b"null",
    "not UTF-8": b'{"run": "\xff"}',
    "deep": b"[" * 100_000,
    "a folder": None,
}


def replace(path, content):
    """Content in a file's place; None makes it a folder."""
    path.unlink()
    if content is None:
        path.mkdir()
        (path / "file").write_bytes(b"")
    else:
        path.write_bytes(content)


@pytest.fixture
def root(tmp_path):
    for run in ("bad", "good"):
        make_root(tmp_path, STEPS, run)
    return tmp_path


@pytest.mark.parametrize("content", RECORDS.values(), ids=RECORDS)
def test_a_record_that_cannot_be_read(root, content, caplog):
    expected = answers(Catalog(str(root)))
    replace(root / "runs/bad/run.json", content)
    assert answers(Catalog(str(root))) == expected
    assert "runs/bad/run.json" in caplog.text
    store = Store(str(root))
    assert list(store.run_records()) == ["good"]
    with pytest.raises(CorruptArtifactError, match=r"runs/bad/run\.json"):
        store.run_record("bad")
    assert any("run.json" in finding.path for finding in verify_run(store, "bad"))
    assert list(verify_run(store, "good")) == []


ODD = [
    {},
    {"config": None},
    {"config": [1]},
    {"config": {"steps": "many", "seed": "x", "domain": "maths"}},
    {"config": {"steps": 10**30, "seed": 1.5, "domain": {"name": [1]}}},
    {
        "config": {"steps": -1},
        "created_at": "yesterday",
        "judge": {"a": 1},
        "scoring": "\ud800",
        "code_version": "a\0b",
    },
]


@pytest.mark.parametrize("record", ODD)
def test_a_record_of_odd_content(root, record):
    expected = answers(Catalog(str(root)))
    (root / "runs/bad/run.json").write_text(json.dumps(record))
    catalog = Catalog(str(root))
    assert answers(catalog) == expected
    assert len(ask(catalog.connection, "FROM runs")) == 2


@pytest.mark.parametrize("content", RECORDS.values(), ids=RECORDS)
@pytest.mark.parametrize("stage", ["scores", "labels"])
def test_a_manifest_that_cannot_be_read(root, stage, content, caplog):
    expected = answers(Catalog(str(root)))
    manifest = sorted((root / "runs/bad" / stage).rglob("manifest.json"))[0]
    replace(manifest, content)
    catalog = Catalog(str(root))
    assert answers(catalog) == expected
    assert manifest.relative_to(root).as_posix() in caplog.text
    assert len(ask(catalog.connection, "FROM rollouts WHERE run = 'bad'")) == 3, "the rest of the run is there"
    path = manifest.parent.relative_to(root).as_posix()
    assert path in {finding.path for finding in verify_run(Store(str(root)), "bad")}


PARTS = {"empty": b"", "short": b"PAR1", "text": b"no Parquet" * 1000, "a folder": None}


@pytest.mark.parametrize("content", [*PARTS.values(), "cut", "scrambled"], ids=[*PARTS, "cut", "scrambled"])
@pytest.mark.parametrize("stage", ["rollouts", "scores", "labels"])
def test_a_file_that_is_no_parquet(root, stage, content, caplog):
    expected = answers(Catalog(str(root)))
    part = sorted((root / "runs/bad" / stage).rglob("*.parquet"))[0]
    data = part.read_bytes()
    replace(
        part, {"cut": data[:-1], "scrambled": bytes(len(data))}.get(content) if isinstance(content, str) else content
    )
    catalog = Catalog(str(root))
    assert answers(catalog) == expected
    assert len(ask(catalog.connection, f"FROM {stage}")) > 0
    assert part.name in caplog.text
    assert "polyepo verify bad" in caplog.text
    path = part.parents[1].relative_to(root).as_posix()
    assert path in {finding.path for finding in verify_run(Store(str(root)), "bad")}


@pytest.mark.parametrize("stage", ["rollouts", "scores", "labels"])
def test_a_file_that_is_corrupt_inside(root, stage, caplog):
    """Its ends are those of Parquet, so that DuckDB alone finds out, and does not say which file it is."""
    part = sorted((root / "runs/bad" / stage).rglob("*.parquet"))[0]
    data = part.read_bytes()
    part.write_bytes(data[:8] + bytes(byte ^ 0x5A for byte in data[8:400]) + data[400:])
    catalog = Catalog(str(root))
    whole = len(rows(Catalog(str(root), ["good"]), f"FROM {stage}"))
    assert whole < len(rows(catalog, f"FROM {stage}")) < 2 * whole
    assert part.relative_to(root).as_posix() in caplog.text
    with pytest.raises(duckdb.Error, match="nonsense"):
        catalog.execute("SELECT nonsense FROM runs")


def test_a_file_that_is_gone(root):
    expected = answers(Catalog(str(root)))
    for part in (root / "runs/bad").rglob("*.parquet"):
        part.unlink()
    assert answers(Catalog(str(root))) == expected


def test_a_run_that_was_copied_is_not_the_run_that_it_was_copied_from(root, caplog):
    expected = answers(Catalog(str(root)))
    shutil.copytree(root / "runs/good", root / "runs/copy")
    assert answers(Catalog(str(root))) == expected
    assert "belongs to runs/good/" in caplog.text


def test_what_is_no_run_is_no_run(root):
    (root / "runs/.DS_Store").write_bytes(b"\0")
    (root / "runs/notes.txt").write_text("mine")
    (root / "runs/empty").mkdir()
    (root / "runs/a b").mkdir()
    (root / "runs/good/scores/notes").mkdir()
    (root / "runs/good/scores/scoring=own/step=x").mkdir()
    assert Store(str(root)).runs() == ["bad", "good"]
    assert {row["run"] for row in ask(connect(str(root)), "FROM runs")} == {"bad", "good"}
    assert Store(str(root)).steps("good", "scores", (("scoring", "own"),)) == [1, 2]


def test_some_runs_alone(root):
    connection = connect(str(root), ["good"])
    assert {row["run"] for row in ask(connection, "FROM runs UNION ALL BY NAME FROM rollouts")} == {"good"}
    assert ask(connect(str(root), ["nobody"]), "FROM runs") == []
