"""Commands that only read: they load nothing that trains or serves, and say what is wrong with a root."""

import json
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app

ARCHIVE = sorted((Path(__file__).parents[1] / "data").glob("store-v*.tar.xz"))[-1]
HEAVY = ["torch", "transformers", "prefect", "openai", "sklearn", "sympy", "datasets"]
# What takes long, of what is ours or always there.
ALSO = {
    "--help": ["polyepo.config", "pyarrow", "duckdb", "numpy", "pydantic"],
    "runs": ["polyepo.config"],
    "sql": ["polyepo.config"],
}
RUN = "old-poly"
COMMANDS = {
    "--help": [],
    "--version": [],
    "runs": [],
    "summary": [RUN],
    "show": [RUN],
    "sql": ["-c", "SELECT * FROM pass_at_k(1)"],
    "compare": ["old-grpo", "program", "answer"],
    "watch": [RUN],
    "export": [RUN, "-o", "export"],
    "verify": [RUN],
    "du": [],
    "gc": [],
    "report": [RUN, "-o", "report.html"],
    "judge-sheet": [RUN],
    "model": [RUN, "-o", "taken"],  # from a checkpoint
}
READING = {name: words for name, words in COMMANDS.items() if not name.startswith("-")}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "store"


def words_of(command, root):
    return [command, *COMMANDS[command], *(["--root", str(root)] if command in READING else [])]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_only_reads_loads_nothing_that_trains(root, tmp_path, command):
    heavy = [*HEAVY, *ALSO.get(command, [])]
    code = (
        "import json, sys\nfrom flows.cli import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as ended:\n    status = ended.code\n"
        f"print(json.dumps([status, sorted(sys.modules.keys() & set({heavy!r}))]), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words_of(command, root)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    status, loaded = json.loads(done.stderr.splitlines()[-1])
    assert status in (0, None), done.stdout + done.stderr
    assert loaded == []


def polyepo(*words):
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.mark.parametrize("command", READING)
@pytest.mark.parametrize("kind", ["missing", "missing/too", "a file", "file://"])
def test_a_root_that_is_none(tmp_path, monkeypatch, command, kind):
    monkeypatch.chdir(tmp_path)
    Path("a file").write_text("")
    root = f"file://{tmp_path}/missing" if kind == "file://" else kind
    done = polyepo(*words_of(command, root))
    assert done.exit_code == 2
    what = "is a file" if kind == "a file" else "does not exist"
    assert f"root {root!r} {what}" in done.output
    assert "Traceback" not in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a file"], "and nothing is made"


def test_a_root_that_is_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYEPO_ROOT", str(tmp_path / "missing"))
    done = polyepo("runs")
    assert done.exit_code == 2
    assert str(tmp_path / "missing") in done.output.replace("\n", "")


def test_the_remedies_for_a_missing_root(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    assert polyepo("runs", "--root", "stoer").exit_code == 2
    assert RUN in polyepo("runs", "--root", "store").output
    monkeypatch.setenv("POLYEPO_ROOT", "store")
    assert RUN in polyepo("runs").output


def test_an_empty_root_has_no_runs(tmp_path):
    folder = tmp_path / "my root"
    folder.mkdir()
    done = polyepo("runs", "--root", folder)
    assert done.exit_code == 0
    assert f"no runs under {folder} yet" in done.output
    command = shlex.split(done.output.split("`")[1])
    assert command[:2] == ["polyepo", "train"]
    assert command[-1] == str(folder)


def test_in_an_empty_root_no_run_is_found(tmp_path):
    for command in ("summary", "show", "export", "verify", "watch", "report"):
        done = polyepo(*words_of(command, tmp_path))
        assert done.exit_code == 2, done.output
        assert RUN in done.output


@pytest.mark.slow
def test_a_bucket_that_is_missing(s3):
    for command in ("runs", "summary", "show", "verify", "export"):
        done = polyepo(*words_of(command, "s3://no-such-bucket/x"))
        assert done.exit_code == 2, done.output
        assert "the bucket does not exist" in done.output


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_one_broken_run_is_named_and_the_others_are_shown(root, tmp_path, content):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    (copy / "runs/old-poly-2").mkdir()
    (copy / "runs/old-poly-2/run.json").write_text(content)
    program = Path(sys.executable).with_name("polyepo")
    for command in ("runs", "summary", "show", "sql", "export", "verify", "report", "watch"):
        done = subprocess.run(
            [program, *words_of(command, copy)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        if command in ("runs", "sql"):
            assert "runs/old-poly-2/run.json" in done.stderr
    done = polyepo("verify", "old-poly-2", "--root", copy)
    assert done.exit_code == 1
    assert "run.json" in done.output


def test_an_export_has_every_response_once_in_order(root, tmp_path):
    import pyarrow.parquet as pq

    from flows.views import export

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        assert export.export_run(str(root), RUN, whole, "parquet", None) > 0
        patch.setattr(export, "_QUERY_BYTES", 1)  # a query for each step
        export.export_run(str(root), RUN, parts, "parquet", None, progress=lambda *done: seen.append(done))
    table = pq.read_table(whole / "data")
    assert pq.read_table(parts / "data").equals(table)
    keys = list(zip(*(table[name].to_pylist() for name in ("step", "problem_id", "sample")), strict=True))
    assert keys == sorted(set(keys))
    assert seen[-1][0] == seen[-1][1] == len(set(table["step"].to_pylist())) == len(seen)
