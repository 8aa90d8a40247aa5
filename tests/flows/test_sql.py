"""`polyepo sql` and what it lets through to a terminal."""

import csv
import io
import json

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from flows.cli import app
from flows.views.sql import prompt
from flows.views.terminal import safe_text
from storage import Catalog, Store

run_cli = CliRunner()


@pytest.fixture
def root(tmp_path):
    Store(str(tmp_path)).create_run("a-run", {"config": {"steps": 3}})
    return str(tmp_path)


def sql(root, *arguments, **options):
    return run_cli.invoke(app, ["sql", "--root", root, *arguments], **options)


def test_formats(root, tmp_path):
    query = ["-c", "SELECT run, steps, 0.5 AS half, NULL AS nothing FROM runs"]
    assert list(csv.reader(io.StringIO(sql(root, *query, "--format", "csv").stdout))) == [
        ["run", "steps", "half", "nothing"], ["a-run", "3", "0.5", ""],
    ]  # fmt: skip
    found = json.loads(sql(root, "-c", "SELECT run, steps FROM runs", "--format", "json").stdout)
    assert found == [{"run": "a-run", "steps": 3}]
    assert "| a-run | 3 | 0.5 |  |" in sql(root, *query, "--format", "markdown").stdout
    assert "a-run" in sql(root, *query).stdout
    target = tmp_path / "out.parquet"
    assert sql(root, *query, "--format", "parquet", "-o", str(target)).exit_code == 0
    assert pq.read_table(target)["steps"].to_pylist() == [3]


def test_a_file_and_standard_input(root, tmp_path):
    script = tmp_path / "q.sql"
    script.write_text("CREATE TABLE t AS SELECT 41 AS x; SELECT x + 1 AS y FROM t;")
    assert json.loads(sql(root, "-f", str(script), "--format", "json").stdout) == [{"y": 42}]
    assert "a-run" in sql(root, input="SELECT run FROM runs").stdout


def test_bad_input_is_said_in_one_message(root, tmp_path):
    for arguments, said in [
        (["-c", "SELECT nothing FROM runs"], "nothing"),
        (["-c", "x", "-f", "y"], "--command and --file"),
        (["-f", str(tmp_path / "missing.sql")], "missing.sql"),
        (["-c", "SELECT 1", "--format", "parquet"], "--output"),
        (["-c", "SELECT 1", "--format", "xml"], "xml"),
    ]:
        result = sql(root, *arguments)
        assert result.exit_code != 0
        assert said in result.output
        assert "Traceback" not in result.output


def test_print_init_names_every_view(root):
    printed = sql(root, "--print-init").stdout
    for view in ("runs", "rollouts", "judge_calls", "graded"):
        assert f"VIEW {view} AS" in printed
    assert "MACRO pass_at_k(k)" in printed


def test_escape_codes_do_not_reach_the_screen(root):
    for form in ("table", "markdown", "json"):
        shown = sql(root, "-c", "SELECT chr(27) || '[31m' || chr(8238) || '[bold]' AS x", "--format", form).stdout
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert "[bold]" in shown
    # DuckDB's messages quote the data they are about.
    result = sql(root, "-c", "SELECT (chr(27) || '[31m')::INT")
    assert "\x1b[31m'" not in result.output


@given(st.text())
def test_safe_text_is_one_visible_line(text):
    shown = safe_text(text)
    assert shown.isprintable() or all(c.isprintable() or c.isspace() for c in shown)
    assert len(shown.splitlines()) <= 1
    assert not any(c in shown for c in "\x1b\r\x08\u202e\u200b")


def test_safe_text_cuts_what_is_long():
    shown = safe_text("x" * 1_000_000)
    assert len(shown) < 2100
    assert "1,000,000 characters" in shown


def test_dot_commands_from_a_pipe(root):
    """What can be typed at the prompt can be piped."""
    result = sql(
        root,
        input="SELECT 1 AS one;\n.help\nSELECT run\nFROM runs;\n.quit\nSELECT nonsense",
    )
    assert result.exit_code == 0, result.output
    parts = [result.output.index(word) for word in ("one", "pass_at_k", "a-run")]
    assert parts == sorted(parts)
    assert sql(root, input=".help").output.startswith("Views: ")


def test_the_version_is_said():
    result = run_cli.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("polyepo 0.")


def test_views_for_another_duckdb_say_that_they_are_a_snapshot(root):
    first = sql(root, "--print-init").output.splitlines()[0]
    assert first.startswith("-- A snapshot")
    assert "absolute path" in first
    assert all(word in sql(root, "--help").output for word in ("snapshot", "absolute"))


def test_a_dot_begins_a_command_only_where_a_statement_may_begin(root):
    for text in ("SELECT 'x\n.help\ny' AS a", "SELECT 1 AS a\n, \n.5 AS b", "SELECT 'x'\n.upper() AS a"):
        result = sql(root, "--format", "json", input=text)
        assert result.exit_code == 0, result.output
        assert len(json.loads(result.output)) == 1
    for text in (".HELP", ".help;", "-- what is there?\n.help", ";\n.help\r\n"):
        assert sql(root, input=text).output.startswith("Views: "), text
    result = sql(root, input="SELECT 1 AS one;\n\n.tables")
    assert result.exit_code == 1
    unknown = sql(root, input=".tables")
    assert (unknown.exit_code, unknown.output) == (1, "there is no command .tables; there are .help, .quit, .exit\n")


def test_the_prompt_takes_what_a_pipe_takes(root, monkeypatch):
    lines = iter([".help", "SELECT run", "FROM runs;", ".tables", "SELECT nonsense;", "SELECT 'x", ".quit", "' AS a;"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, ".quit"))
    console = Console(file=io.StringIO(), width=100)
    prompt(Catalog(root), "table", console)
    shown = console.file.getvalue()
    parts = [shown.index(word) for word in ("pass_at_k", "a-run", "no command .tables", "nonsense", "x⏎.quit⏎")]
    assert parts == sorted(parts)


def test_a_long_table_says_how_to_have_it_whole(root):
    query = "SELECT i FROM range(101) r(i)"
    said = sql(root, "-c", query).output.splitlines()[-1]
    assert "`polyepo sql` with --format csv" in said
    assert len(sql(root, "-c", query, "--format", "csv").output.splitlines()) == 102
