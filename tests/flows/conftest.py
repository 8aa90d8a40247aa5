"""A real Prefect server, flows as processes of their own, and one finished run that tests look at."""

import os
import shutil
import signal
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
from tests.support.config import small_config
from tests.support.processes import STEPS, finish, free_port, start_flow


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
