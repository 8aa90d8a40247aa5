"""The whole stack on this machine: runs on S3 through PostgreSQL and workers that die, and nothing left behind."""

import os
import shlex
import signal
import subprocess
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
import yaml

import storage
from flows.services.processes import StackError
from flows.services.servers import postgres_programs
from tasks.runs.run import open_run
from tests.support.config import small_config
from tests.support.processes import BIN, PROJECT, free_port, left_behind, until
from tests.support.runs import final_weights

pytestmark = pytest.mark.slow


class Stack:
    """A project folder of its own with the stack's command, and what its server says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("flows", "prefect.yaml"):
            (folder / name).symlink_to(PROJECT / name)
        self.api = f"http://127.0.0.1:{free_port()}/api"
        ours = ("AWS_", "PREFECT_", "POLYEPO_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.environment["PREFECT_API_URL"] = self.api

    def popen(self, *command: str) -> subprocess.Popen:
        return subprocess.Popen(
            [BIN / command[0], *command[1:]], cwd=self.folder, env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def call(self, *command: str) -> str:
        process = self.popen(*command)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, output + errors
        return output

    def start(self) -> str:
        output = self.call("polyepo", "stack", "start")
        self.environment |= dict(shlex.split(line)[1].split("=", 1) for line in output.splitlines())
        return output

    def pid(self, name: str) -> int:
        return int((self.folder / ".polyepo" / f"{name}.pid").read_text().split("\n")[0])

    def submit(self, config: Path, run: str, **parameters: str) -> str:
        given = {"config": config, "run": run, **parameters}
        arguments = [word for name, value in given.items() for word in ("--param", f"{name}={value}")]
        known = {found["id"] for found in self.flow_runs()}
        self.call("prefect", "deployment", "run", "poly-epo/train", *arguments)
        (new,) = {found["id"] for found in self.flow_runs()} - known
        return new

    def flow_runs(self) -> list[dict]:
        """Those that were asked for, not the arms below them."""
        asked = {"flow_runs": {"parent_task_run_id": {"is_null_": True}}}
        return httpx.post(f"{self.api}/flow_runs/filter", json=asked).raise_for_status().json()

    def flow_run(self, flow_run_id: str) -> dict:
        return httpx.get(f"{self.api}/flow_runs/{flow_run_id}").raise_for_status().json()

    def states(self, flow_run_id: str) -> list[dict]:
        found = httpx.get(f"{self.api}/flow_run_states/", params={"flow_run_id": flow_run_id}).raise_for_status()
        return sorted(found.json(), key=lambda state: state["timestamp"])

    def names(self, flow_run_id: str) -> list[str]:
        return [state["name"] for state in self.states(flow_run_id)]

    def finished(self, flow_run_id: str) -> list[str]:
        until(lambda: self.flow_run(flow_run_id)["state"]["type"] == "COMPLETED", 300)
        return self.names(flow_run_id)

    def kill_flow(self, flow_run_id: str, *, and_its_worker: bool = False) -> None:
        """Once some steps are committed, and long before the last."""
        until(lambda: self.flow_run(flow_run_id)["state"]["type"] == "RUNNING", 120)
        run = self.flow_run(flow_run_id)["parameters"]["run"]
        store = storage.open_store(self.environment["POLYEPO_ROOT"])
        until(lambda: len(store.steps(run, "updates")) >= 3, 120)
        if and_its_worker:
            os.kill(self.pid("gpu-worker"), signal.SIGKILL)
        os.kill(int(self.flow_run(flow_run_id)["infrastructure_pid"]), signal.SIGKILL)


@pytest.fixture(scope="module")
def stack(postgres_folder):
    stack = Stack(postgres_folder)
    try:
        stack.start()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in stack.environment.items():
                if name.startswith(("AWS_", "POLYEPO_")):
                    patch.setenv(name, value)
            yield stack
    finally:
        stack.call("polyepo", "stack", "stop")
        assert left_behind(postgres_folder) == []


@pytest.fixture(scope="module")
def config(postgres_folder):
    path = postgres_folder / "small.yaml"
    path.write_text(yaml.safe_dump(small_config(steps=30, checkpoint_every=7, sampling={"shards": 2})))
    return path


@pytest.fixture(scope="module")
def weights(stack, config, postgres_folder):
    """What the same configuration comes to on the local disk, undisturbed."""
    root = postgres_folder / "artifacts"
    names = stack.finished(stack.submit(config, "local", root=str(root)))
    assert "Crashed" not in names
    return final_weights(open_run(str(root), "local"))


def on_s3(stack, run):
    return open_run(stack.environment["POLYEPO_ROOT"], run)


@pytest.fixture(scope="module")
def refused(stack, postgres_folder):
    """A run whose configuration is wrong."""
    path = postgres_folder / "wrong.yaml"
    path.write_text(yaml.safe_dump(small_config(steps=-1)))
    flow_run_id = stack.submit(path, "wrong")
    until(lambda: stack.flow_run(flow_run_id)["state"]["type"] == "FAILED", 120)
    return flow_run_id


def test_starting_again_starts_nothing(stack):
    pids = [stack.pid(name) for name in ("postgres", "s3", "server", "gpu-worker", "cpu-worker")]
    assert stack.start() == stack.start()
    assert pids == [stack.pid(name) for name in ("postgres", "s3", "server", "gpu-worker", "cpu-worker")]
    assert stack.call("polyepo", "stack", "status").count("runs as") == 5


def test_a_killed_flow_is_started_again_and_is_the_same_run(stack, config, refused, weights):
    killed, other = (stack.submit(config, run) for run in ("killed", "other"))
    following = stack.popen("polyepo", "train", str(config), "--run", "killed")
    stack.kill_flow(killed)
    stack.finished(other)
    names = stack.finished(killed)
    assert names.index("Crashed") < names.index("AwaitingRetry")
    output, errors = following.communicate(timeout=300)
    assert following.returncode == 0, output + errors
    assert "going on already" in output, "it followed this flow run"
    assert "started again" in output, "through its crash"
    assert "pass@1" in output, "to its end"
    for run in ("killed", "other"):
        assert final_weights(on_s3(stack, run)) == weights


def test_runs_never_shared_the_gpu_pool(stack):
    """All that were submitted so far, two of them at once."""
    taken = []
    for found in stack.flow_runs():
        for before, after in pairwise(stack.states(found["id"])):
            if before["type"] in ("PENDING", "RUNNING"):
                taken.append((before["timestamp"], after["timestamp"]))
    assert len(taken) > 6
    assert all(before[1] <= after[0] for before, after in pairwise(sorted(taken)))


def test_a_run_whose_worker_died_too_is_found_and_is_the_same_run(stack, config, refused, weights):
    flow_run_id = stack.submit(config, "orphan")
    worker = stack.pid("gpu-worker")
    stack.kill_flow(flow_run_id, and_its_worker=True)
    until(lambda: "gpu-worker  stopped" in stack.call("polyepo", "stack", "status"), 60)
    stack.start()
    assert stack.pid("gpu-worker") != worker
    until(lambda: "Crashed" in stack.names(flow_run_id), 240)
    crashed = next(state for state in stack.states(flow_run_id) if state["name"] == "Crashed")
    assert "no sign of life" in crashed["message"]
    assert "AwaitingRetry" in stack.finished(flow_run_id)
    assert final_weights(on_s3(stack, "orphan")) == weights


def test_a_wrong_configuration_is_not_tried_again(stack, refused):
    assert stack.names(refused)[-1] == "Refused", "a state of type Failed, which says that nobody need try again"
    assert stack.flow_run(refused)["run_count"] == 1
    assert "steps" in stack.flow_run(refused)["state"]["message"]


def test_the_same_command_goes_on_from_the_store(stack, config, weights):
    """By hand, as one does without automations; what is finished is done in no time."""
    before = on_s3(stack, "killed").store.steps("killed", "updates")
    stack.finished(stack.submit(config, "killed"))
    assert on_s3(stack, "killed").store.steps("killed", "updates") == before
    assert final_weights(on_s3(stack, "killed")) == weights


def test_sql_sees_the_runs_on_s3(stack):
    query = "SELECT run, count(*) AS steps FROM updates WHERE run IN ('killed', 'orphan') GROUP BY run ORDER BY run"
    output = stack.call("polyepo", "sql", "-c", query, "--format", "csv")
    assert output.split() == ["run,steps", "killed,30", "orphan,30"]
    catalog = storage.connect(stack.environment["POLYEPO_ROOT"])
    assert catalog.sql(query).fetchall() == [("killed", 30), ("orphan", 30)]


@pytest.mark.parametrize("written", ["postgres.pid", "server.pid", "gpu-worker.pid"])
def test_what_a_killed_start_leaves_is_stopped(postgres_folder, written):
    project = postgres_folder / written
    project.mkdir()
    stack = Stack(project)
    starting = stack.popen("polyepo", "stack", "start")
    until(lambda: (project / ".polyepo" / written).exists() or starting.poll() is not None, 120)
    starting.kill()
    starting.communicate()
    stack.call("polyepo", "stack", "stop")
    assert left_behind(project) == []


def test_another_server_is_not_taken_for_its_own(stack, postgres_folder):
    project = postgres_folder / "other"
    project.mkdir()
    other = Stack(project)
    other.environment["PREFECT_API_URL"] = stack.api
    refused = other.popen("polyepo", "stack", "start")
    assert f"another Prefect server is at {stack.api}" in "".join(refused.communicate(timeout=60))
    assert refused.returncode == 1
    assert left_behind(project) == []


def test_without_postgresql_the_debian_package_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    with pytest.raises(StackError, match="apt-get install postgresql"):
        postgres_programs()
