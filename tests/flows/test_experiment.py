"""An experiment through the real stack, killed in the middle."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from flows.experiment import compare_arms
from flows.views.summary import summarize
from polyepo.experiment import load_experiment
from tests.support.config import ARMS, small_config

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path):
    """A folder like the project's, with a stack of its own."""
    for name in ("flows", "tasks", "polyepo", "storage", "prefect.yaml"):
        (tmp_path / name).symlink_to(PROJECT / name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "COLUMNS": "120"}
    environment.pop("PREFECT_HOME", None)
    yield tmp_path, environment
    subprocess.run([sys.executable, "-c", "from flows.cli import app; app(['stop'])"], cwd=tmp_path, env=environment)


def polyepo(project, *arguments):
    folder, environment = project
    code = f"from flows.cli import app; app({list(arguments)!r})"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_an_experiment_that_was_killed_goes_on(project):
    folder, _ = project
    (folder / "small.yaml").write_text(yaml.safe_dump(small_config(steps=3)))
    (folder / "trial.yaml").write_text(yaml.safe_dump({"config": "small.yaml", "seeds": [0, 1], "arms": ARMS}))
    command = ("experiment", "trial.yaml", "--jobs", "1", "--root", "root")
    first = polyepo(project, *command)
    runs = folder / "root/runs"
    deadline = time.monotonic() + 300
    while not list(runs.glob("trial-seed0-poly/updates/step=*/manifest.json")) and time.monotonic() < deadline:
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    first.kill()
    flow_runs = subprocess.run(["pgrep", "-f", "prefect.*engine|prefect.flow_engine"], capture_output=True, text=True)
    for pid in map(int, flow_runs.stdout.split()):
        if os.readlink(f"/proc/{pid}/cwd") == str(folder):
            os.kill(pid, signal.SIGKILL)
    assert not (runs / "trial-seed1-grpo").exists()
    committed = {path: path.read_bytes() for path in runs.rglob("manifest.json")}
    output = polyepo(project, *command).communicate(timeout=400)[0]
    assert "Difference from grpo, paired by seed" in output, output
    assert all(path.read_bytes() == content for path, content in committed.items())
    experiment = load_experiment(folder / "trial.yaml")
    found = compare_arms(experiment, str(folder / "root"))
    assert found.policies == ["base model", "grpo", "poly"]
    summaries = [summarize(str(folder / "root"), f"trial-seed{seed}") for seed in (0, 1)]
    assert found.means["pass@1"] == pytest.approx(
        np.mean([[row.pass_at[1] for row in summary.rows] for summary in summaries], axis=0)
    )
    again = polyepo(project, *command, "--compare-only", "--format", "markdown").communicate(timeout=100)[0]
    assert again.count("| poly |") == 2
