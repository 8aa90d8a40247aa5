"""Fixtures: a model small enough to train in a test, and the real data where it is."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("project", deadline=None)  # how long an example takes is no property
hypothesis.settings.load_profile("project")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


_OF_SESSION: dict[str, str] = {}
"""Variables that session fixtures set, whichever test asked for them first."""


@pytest.fixture(autouse=True)
def environment():
    """What a test does to the environment (commands set defaults for their own process) ends with it."""
    saved = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(_OF_SESSION | saved)  # what a module has set over them stays as well


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real problems and responses, which only developers have."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real data is not here (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def s3():
    """A bucket of a real S3 server; from its start on the environment names the server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-I", str(Path(__file__).parents[1] / "flows" / "services" / "s3_server.py"), str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    _OF_SESSION.update(
        AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_ENDPOINT_URL_S3=url, AWS_DEFAULT_REGION="us-east-1"
    )
    os.environ.update(_OF_SESSION)
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=1)
            break
        except OSError:
            time.sleep(0.1)
    import s3fs

    s3fs.S3FileSystem(endpoint_url=url).mkdir("bucket")
    yield "s3://bucket"
    server.terminate()
    server.wait()
    for name in _OF_SESSION:
        os.environ.pop(name, None)
    _OF_SESSION.clear()
