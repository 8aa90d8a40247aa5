"""A local Prefect server and worker: started if they do not run, reused if they do, stopped on request."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx

POOL = "poly-epo"
STATE = Path(".polyepo")
_PREFECT = [sys.executable, "-m", "prefect"]


class StackError(RuntimeError):
    """The local Prefect server or worker could not be started; the message says what to do."""


def api_url() -> str:
    """The Prefect API in force: $PREFECT_API_URL, else prefect.toml's."""
    from prefect.settings import PREFECT_API_URL

    return str(PREFECT_API_URL.value() or "http://127.0.0.1:4200/api")


def start(say: Callable[[str], None]) -> None:
    """Make sure that a server answers, the deployments are registered and a worker waits for runs.

    Raises:
        StackError: something else listens on the server's port, or a process does not come up.
    """
    STATE.mkdir(exist_ok=True)
    if not _healthy():
        _start_server(say)
    _register(say)
    if not _alive("worker"):
        say("starting a worker")
        _spawn("worker", ["worker", "start", "--pool", POOL, "--name", f"local-{os.getpid()}"])
    if not _alive("worker"):
        raise StackError(f"the worker ended at once; see {STATE / 'worker.log'}")


def stop() -> list[str]:
    """Stop what `start` started; returns the names of what was running."""
    return [name for name in ("worker", "server") if _terminate(name)]


def environment() -> dict[str, str]:
    """The environment of our Prefect processes: own database, no telemetry unless the user asks for it."""
    defaults = {
        "PREFECT_API_URL": api_url(),
        "PREFECT_HOME": str((STATE / "prefect").absolute()),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # A run should begin within a second of being asked for.
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_CLI_PROMPT": "false",
    }
    return {
        **defaults,
        **os.environ,
        "PWD": str(Path.cwd()),
    }  # prefect.yaml takes the project's folder from it


def worker_is_alive() -> bool:
    """Whether the worker that `start` started still runs."""
    return _alive("worker")


def _start_server(say: Callable[[str], None]) -> None:
    url = urlsplit(api_url())
    host, port = url.hostname or "", url.port or 4200
    if host not in ("127.0.0.1", "localhost", "::1"):
        raise StackError(
            f"no Prefect server answers at {api_url()}: start it, or unset PREFECT_API_URL for a local one"
        )
    if _listening(api_url()):
        raise StackError(
            f"something that is no Prefect server listens on port {port}: "
            f"set PREFECT_API_URL=http://127.0.0.1:{port + 1}/api (or any free port)"
        )
    say(f"starting a Prefect server on port {port} (the first time takes about 15 s)")
    _spawn("server", ["server", "start", "--host", host, "--port", str(port)])
    deadline = time.monotonic() + 120
    while not _healthy():
        if not _alive("server") or time.monotonic() > deadline:
            raise StackError(f"the Prefect server did not come up; see {STATE / 'server.log'}")
        time.sleep(0.25)


def _register(say: Callable[[str], None]) -> None:
    """Create the work pool and deploy prefect.yaml, unless this server has this very file already."""
    content = Path("prefect.yaml").read_bytes() + str(Path.cwd()).encode() + api_url().encode()
    stamp, digest = STATE / "deployed", hashlib.sha256(content).hexdigest()
    known = httpx.get(f"{api_url()}/deployments/name/poly-epo/train", timeout=10).status_code == 200
    if known and stamp.is_file() and stamp.read_text() == digest:
        return
    say("registering the deployments of prefect.yaml")
    if httpx.get(f"{api_url()}/work_pools/{POOL}", timeout=10).status_code != 200:
        _prefect("work-pool", "create", POOL, "--type", "process")
    _prefect("--no-prompt", "deploy", "--all")
    stamp.write_text(digest)


def _prefect(*arguments: str) -> str:
    done = subprocess.run([*_PREFECT, *arguments], env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackError(f"prefect {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _spawn(name: str, arguments: list[str]) -> None:
    # A session of its own: it outlives this terminal, and `stop` ends it with all its children.
    with open(STATE / f"{name}.log", "ab") as log:
        process = subprocess.Popen(
            [*_PREFECT, *arguments],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (STATE / f"{name}.pid").write_text(str(process.pid))
    time.sleep(0.2)
    process.poll()


def _pid(name: str) -> int | None:
    try:
        return int((STATE / f"{name}.pid").read_text())
    except (FileNotFoundError, ValueError):
        return None


def _alive(name: str) -> bool:
    """Whether the process of the pid file runs and is ours: ids are reused."""
    pid = _pid(name)
    if pid is None:
        return False
    shown = subprocess.run(
        ["ps", "-o", "stat=,args=", "-p", str(pid)],  # noqa: S607 - a fixed command
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    return "prefect" in shown and f"{name} start" in shown and not shown.startswith("Z")


def _terminate(name: str) -> bool:
    pid = _pid(name)
    running = _alive(name)
    if pid is not None and running:
        os.killpg(pid, signal.SIGTERM)
        deadline = time.monotonic() + 15
        while _alive(name) and time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            time.sleep(0.1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    (STATE / f"{name}.pid").unlink(missing_ok=True)
    return running


def _healthy() -> bool:
    try:
        answer = httpx.get(f"{api_url()}/health", timeout=5)
        return answer.status_code == 200 and answer.json() is True
    except (httpx.HTTPError, ValueError):
        return False


def _listening(url: str) -> bool:
    try:
        httpx.get(url, timeout=2)
    except httpx.ConnectError:
        return False
    except httpx.HTTPError:
        return True
    return True
