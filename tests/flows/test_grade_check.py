"""polyepo grade-check: a table is graded, and what differs is shown without trusting it."""

import csv
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli import app

RIGHT = {"reference": "1/2", "response": r"So \boxed{0.5}", "expected": 1}
WRONG = {"reference": "3", "response": "\x1b[2J[red]I think \\boxed{5}", "expected": 1}


def check(*arguments):
    result = CliRunner().invoke(app, ["grade-check", *map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, result.output


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.parquet"])
def test_differing_rows_are_shown_and_hostile_text_is_not_obeyed(tmp_path, name):
    path = write(tmp_path / name, [RIGHT, WRONG, {**WRONG, "expected": 0}])
    code, output = check(path)
    assert code == 1
    assert "row 2: 0, expected 1\n  reference  3\n  answer     5\n" in output
    assert "row 1" not in output
    assert "row 3" not in output
    assert output.endswith("2 of 3 as expected, 1 differ\n")
    assert "\x1b" not in output
    assert "[red]" in output


def test_all_as_expected(tmp_path):
    rows = [{"gold": {"answer": "3"}, "text": r"\boxed{5} \boxed{3}", "is_correct": "false"}]
    mapped = ["--map", "reference=gold.answer", "--map", "response=text", "--map", "expected=is_correct"]
    code, output = check(write(tmp_path / "t.jsonl", rows), *mapped)
    assert (code, output) == (0, "1 of 1 as expected, 0 differ\n")


def test_boxes_can_be_asked_to_agree(tmp_path):
    path = write(tmp_path / "t.jsonl", [{"reference": "3", "response": r"\boxed{5}. No: \boxed{3}", "expected": 1}])
    assert check(path)[0] == 0
    assert check(path, "--boxes", "agree")[0] == 1


def test_what_cannot_be_graded_is_said_and_is_no_wrong_answer(tmp_path):
    row = {"reference": "3", "response": r"\boxed{9^{9^{9^{9}}}}", "expected": 0}
    code, output = check(write(tmp_path / "t.jsonl", [row]))
    assert code == 1
    assert "row 1: no reward (" in output


@pytest.mark.parametrize(
    ("row", "arguments", "message"),
    [
        ({"reference": "3", "response": "x"}, [], "row 1: no column 'expected'.*--map expected=COLUMN"),
        ({**RIGHT, "expected": "2"}, [], "row 1: expected must be 1 or 0"),
        ({**RIGHT, "expected": None}, [], "row 1: column 'expected' is empty"),
        (RIGHT, ["--map", "gold=x"], "--map 'gold=x' must be FIELD=COLUMN"),
    ],
)
def test_tables_that_cannot_be_used_are_named(tmp_path, row, arguments, message):
    code, output = check(write(tmp_path / "t.jsonl", [row]), *arguments)
    assert code == 2
    assert re.search(message, output)
    assert "Traceback" not in output


def test_a_missing_file_is_named(tmp_path):
    code, output = check(tmp_path / "none.jsonl")
    assert code == 2
    assert "no such file" in output
    assert check(tmp_path / "none.csv")[0] == 2
