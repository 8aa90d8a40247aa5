"""The local Prefect stack in a project of its own: a temporary folder, a free port, a trivially small flow."""

import os
import signal
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
import yaml
from rich.console import Console

from flows import follow
from flows.services import local_stack, processes
from tests.support.processes import PROJECT, free_port, until

pytestmark = pytest.mark.slow

FLOW = """
import os, time
from prefect import flow
from prefect.artifacts import create_progress_artifact, update_progress_artifact

@flow(name="poly-epo", flow_run_name="train {run}")
def train(config: str, run: str | None = None, root: str | None = None, settings: dict | None = None) -> None:
    artifact = create_progress_artifact(0.0, key="progress", description="step 0")
    with open(f"{run}.where", "w") as where:
        where.write(os.getcwd() + chr(10) + str(settings))
    if config == "fail":
        raise ValueError("a value was wrong")
    arm(artifact, 600 if config == "long" else 1)

@flow(name="poly-epo-arm")
def arm(artifact, seconds: int) -> None:
    for second in range(seconds):
        update_progress_artifact(artifact, 50.0, description="step 1")
        time.sleep(1)
"""

PARAMETERS = {"root": "here", "settings": {"seed": 1, "domain.path": "24.csv"}}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "prefect.yaml").write_bytes((PROJECT / "prefect.yaml").read_bytes())
    (folder / "flows").mkdir()
    for deployment in yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]:
        path, function = deployment["entrypoint"].split(":")
        (folder / path).write_text(FLOW.replace("def train(", f"def {function}("))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("PREFECT_HOME", raising=False)
        patch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
        yield folder
        local_stack.stop()


@pytest.fixture
def stack(project):
    said = []
    local_stack.start(said.append)
    return said


@pytest.fixture
def console():
    return Console(file=open(os.devnull, "w"), width=200)


def pids():
    return [processes.pid_of(name) for name in ("server", *local_stack.WORKERS)]


def run(config, name):
    return follow.run_deployment(local_stack.DEPLOYMENT, PARAMETERS | {"config": config, "run": name})


def flow_run(flow_run_id):
    return httpx.get(f"{local_stack.api_url()}/flow_runs/{flow_run_id}").json()


def arms(flow_run_id):
    """The states of what runs below a flow run."""
    body = {"flow_runs": {"parent_flow_run_id": {"any_": [flow_run_id]}}}
    found = httpx.post(f"{local_stack.api_url()}/flow_runs/filter", json=body).raise_for_status().json()
    return [arm["state"]["type"] for arm in found]


def flow_process(flow_run_id):
    """The id of the flow's process, once the flow's body runs."""
    until(lambda: flow_run(flow_run_id)["state"]["type"] == "RUNNING")
    return until(lambda: int(flow_run(flow_run_id)["infrastructure_pid"] or 0))


def test_starts_everything_and_then_reuses_it(stack, project):
    before = pids()
    assert len(stack) == 3, "server, deployments and workers, a line each"
    assert all(line.endswith(" s") for line in stack)
    pools = {
        name: httpx.get(f"{local_stack.api_url()}/deployments/name/poly-epo/{name}").json()["work_pool_name"]
        for name in ("train", "evaluate", "replay", "rescore")
    }
    assert pools.pop("rescore") == "poly-epo-cpu"
    assert set(pools.values()) == {"poly-epo-gpu"}
    # An experiment trains several seeds at a time on this machine.
    assert httpx.get(f"{local_stack.api_url()}/work_pools/poly-epo-gpu").json()["concurrency_limit"] is None
    said = []
    local_stack.start(said.append)
    assert said == []
    assert pids() == before
    assert (project / ".polyepo" / "prefect" / "prefect.db").is_file()


def test_a_flow_is_followed_to_its_end(stack, project, console):
    flow_run_id = run("short", "2024")
    assert follow.follow(flow_run_id, console)["type"] == "COMPLETED"
    # A run whose name reads like a number, and settings that are no text, arrive as what they are.
    assert flow_run(flow_run_id)["parameters"] == PARAMETERS | {"config": "short", "run": "2024"}
    folder, settings = (project / "2024.where").read_text().splitlines()
    assert Path(folder).samefile(project)
    assert settings == str(PARAMETERS["settings"])
    assert follow.find_unfinished("2024", "here") is None


def test_a_failure_is_reported_with_its_log(stack, console):
    flow_run_id = run("fail", "failing")
    state = follow.follow(flow_run_id, console)
    assert state["type"] == "FAILED"
    assert "a value was wrong" in state["message"]
    until(lambda: any("a value was wrong" in line for line in follow.last_logs(flow_run_id)))  # it comes in batches


def test_a_cancelled_flow_ends_and_its_process_with_it(stack, console):
    flow_run_id = run("long", "cancelled")
    pid = flow_process(flow_run_id)
    assert follow.find_unfinished("cancelled", "here") == flow_run_id
    assert follow.find_unfinished("cancelled", "elsewhere") is None
    local_stack._prefect("flow-run", "cancel", flow_run_id)
    assert follow.follow(flow_run_id, console)["type"] == "CANCELLED"
    until(lambda: not processes.command_line(pid))


def test_a_run_is_cancelled_by_its_name(stack, console):
    flow_run_id = run("long", "named")
    pid = flow_process(flow_run_id)
    assert follow.cancel("another", "here") == []
    assert follow.cancel("named", "elsewhere") == []
    assert follow.cancel("named", "here") == [flow_run_id]
    # Whoever types the next command finds it ended, not ending.
    assert flow_run(flow_run_id)["state"]["type"] == "CANCELLED"
    assert follow.find_unfinished("named", "here") is None
    until(lambda: not processes.command_line(pid))
    assert follow.cancel("named", "here") == []


def test_a_killed_flow_has_crashed_and_its_arms_with_it(stack, console):
    flow_run_id = run("long", "struck")
    pid = flow_process(flow_run_id)
    until(lambda: arms(flow_run_id) == ["RUNNING"])
    os.kill(pid, signal.SIGKILL)
    assert follow.follow(flow_run_id, console)["type"] == "CRASHED"
    assert arms(flow_run_id) == ["CRASHED"]
    assert follow.find_unfinished("struck", "here") is None, "nothing here starts it again but the same command"


def test_a_run_killed_with_its_worker_is_not_taken_for_a_running_one(stack):
    flow_run_id = run("long", "killed")
    pid = flow_process(flow_run_id)
    os.killpg(processes.pid_of("gpu-worker"), signal.SIGKILL)
    os.killpg(os.getpgid(pid), signal.SIGKILL)
    until(lambda: not processes.is_alive("gpu-worker"))
    assert follow.find_unfinished("killed", "here") is None
    assert flow_run(flow_run_id)["state"]["type"] == "CRASHED"
    assert "RUNNING" not in arms(flow_run_id)


@pytest.mark.parametrize(
    ("state", "seconds", "run_count", "slots", "again"),
    [
        ("CRASHED", 10, 1, "1", True),
        ("CRASHED", 10, 2, "2", True),
        ("CRASHED", 10, 3, "1", False),  # given up
        ("CRASHED", 600, 1, "1", False),  # the server did not do it
        ("CRASHED", 10, 1, "", False),  # a server without automations
        ("FAILED", 10, 1, "1", False),
        ("RUNNING", 10, 1, "1", False),
    ],
)
def test_who_is_started_again(state, seconds, run_count, slots, again, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    monkeypatch.setenv("POLYEPO_GPU_SLOTS", slots)
    since = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()
    assert follow._starts_again({"state": {"type": state, "timestamp": since}, "run_count": run_count}) is again


def test_stop_ends_a_flow_whose_worker_was_killed(stack):
    pid = flow_process(run("long", "orphan"))
    os.killpg(processes.pid_of("gpu-worker"), signal.SIGKILL)
    until(lambda: not processes.is_alive("gpu-worker"))
    assert processes.command_line(pid), "it has a session of its own"
    stopped = local_stack.stop()
    assert stopped[:2] == ["cpu-worker", "server"]
    assert stopped[2:] in (["what they left behind"], []), "a flow may end by itself, once its server is gone"
    assert not processes.command_line(pid)


def test_a_dead_worker_is_replaced_while_a_run_waits(stack, console):
    os.killpg(processes.pid_of("gpu-worker"), signal.SIGKILL)
    until(lambda: not processes.is_alive("gpu-worker"))
    assert follow.follow(run("short", "waiting"), console)["type"] == "COMPLETED"


def test_another_url_is_refused_while_ours_runs(stack, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    with pytest.raises(local_stack.StackError, match="make stop"):
        local_stack.start(print)


def test_a_foreign_server_on_the_port_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prefect.yaml").touch()
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as foreign:
        threading.Thread(target=foreign.serve_forever, daemon=True).start()
        port = foreign.server_address[1]
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        with pytest.raises(local_stack.StackError, match=f"PREFECT_API_URL=http://127.0.0.1:{port + 1}/api"):
            local_stack.start(print)
        foreign.shutdown()


def test_a_folder_without_a_project_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(local_stack.StackError, match="project's folder"):
        local_stack.start(print)


def test_a_stale_pid_file_is_nobody(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    local_stack.STATE.mkdir()
    command = "-m prefect server start"
    for content in (f"{os.getpid()}\nhttp://127.0.0.1:1/api\n{command}", f"999999999\n\n{command}", "1", "", "x"):
        (local_stack.STATE / "server.pid").write_text(content)
        assert not processes.is_alive("server")
        assert local_stack.stop() == []
        assert not (local_stack.STATE / "server.pid").exists()


def test_stop_ends_both_and_can_be_repeated(stack):
    before = pids()
    assert local_stack.stop() == ["gpu-worker", "cpu-worker", "server"]
    assert not any(processes.command_line(pid) for pid in before)
    assert local_stack.stop() == []


def test_help_imports_nothing_heavy():
    code = "import sys, flows.cli; sys.exit(bool({'torch', 'prefect', 'transformers', 'pyarrow'} & set(sys.modules)))"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
