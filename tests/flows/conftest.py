"""A real Prefect server, flows as processes of their own, and one finished run that tests look at."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import pytest
import yaml

from flows.services.processes import StackError
from flows.services.servers import postgres_programs
from tasks.runs.run import open_run
from tests.conftest import small_config

STEPS = 30
PROJECT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def until(holds, seconds=60):
    """What `holds` returns, once that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := holds():
            return value
        time.sleep(0.2)
    raise AssertionError("it did not happen")


def left_behind(folder):
    """Processes that run in a folder, or whose command names it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if command and (Path(os.readlink(process / "cwd")).is_relative_to(folder) or str(folder) in command):
                found.append(command)
    return found


@pytest.fixture(scope="module")
def postgres_folder():
    """A folder for PostgreSQL: it does not run as root, and pytest's own folders are closed to others."""
    try:
        postgres_programs()
    except StackError as error:
        pytest.skip(str(error))
    folder = Path(tempfile.mkdtemp(prefix="polyepo-stack-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A Prefect server of our own, on a free port, with a database of its own."""
    port = free_port()
    environment = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    for _ in range(600):
        try:
            if httpx.get(f"{environment['PREFECT_API_URL']}/health", timeout=10).json() is True:
                break
        except httpx.HTTPError:
            time.sleep(0.2)
    else:
        pytest.fail("the Prefect server did not come up in two minutes")
    yield environment
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(30)


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(small_config(steps=STEPS, checkpoint_every=7, sampling={"shards": 2})))
    return path


def start(environment, code):
    """A Python process with a flow in it."""
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def kill_at(process, progress, point, later):
    """Kill a process `later` seconds after its progress has reached a point; it must not have ended by then."""
    while progress() < point and process.poll() is None:
        time.sleep(0.002)
    time.sleep(later)
    assert process.poll() is None, process.communicate()[0][-3000:]
    process.kill()
    process.wait()


def start_flow(environment, config, root):
    return start(environment, f"from flows.train import train; train({str(config)!r}, run='run', root={str(root)!r})")


def finish(process):
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output[-3000:]
    return output


@pytest.fixture(scope="session")
def undisturbed(server, config, tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    finish(start_flow(server, config, root))
    return open_run(str(root), "run")


@pytest.fixture
def run(undisturbed, tmp_path):
    """A copy of the finished run, to add to."""
    root = tmp_path / "root"
    shutil.copytree(undisturbed.store.root, root)
    return open_run(str(root), "run")
