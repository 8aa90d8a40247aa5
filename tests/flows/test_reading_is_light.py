"""Commands that only read load none of what makes a command slow to start."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ARCHIVE = Path(__file__).parents[1] / "data" / "store-v4.tar.xz"
CODE = """
import sys
from typer.testing import CliRunner
from flows.cli import app

done = CliRunner().invoke(app, sys.argv[1:])
loaded = {"torch", "transformers", "prefect"} & set(sys.modules)
sys.exit(f"exit code {done.exit_code}, loads {loaded}: {done.output}" if done.exit_code or loaded else 0)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("light")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["runs", "--like", "old"],
        ["show", "old-poly"],
        ["verify", "old"],
        ["summary", "old"],
        ["sql", "-c", "FROM runs"],
        ["gc"],
        ["export", "old-poly", "-o", "exported"],
        ["judge-sheet", "old-poly", "-o", "sheet.csv"],
        ["model", "old-poly", "-o", "taken"],  # from a checkpoint
    ],
    ids=lambda arguments: arguments[0],
)
def test_reading_loads_no_torch_and_no_prefect(folder, arguments):
    root = [] if arguments == ["--version"] else ["--root", "store"]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments, *root], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
