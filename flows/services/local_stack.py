"""A local Prefect server and its workers: started if they do not run, reused if they do, stopped on request."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from flows.services import processes, servers
from flows.services.processes import STATE, StackError
from flows.services.work_pools import CPU_POOL, GPU_POOL, prepare_automations, prepare_pools

DEPLOYMENT = "poly-epo/train"
WORKERS = {"gpu-worker": GPU_POOL, "cpu-worker": CPU_POOL}
SERVER_SECONDS = 180
WORKER_SECONDS = 90
_RARELY = (
    "SCHEDULER_RECENT_DEPLOYMENTS",
    "LATE_RUNS",
    "PAUSE_EXPIRATIONS",
    "CLEANUP_RECONCILER",
    "REPOSSESSOR",
    "FOREMAN",
)
_PREFECT = [sys.executable, "-m", "prefect"]


def api_url() -> str:
    """The Prefect API in force: $PREFECT_API_URL, else prefect.toml's."""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        from prefect.settings import PREFECT_API_URL  # takes seconds to import

        url = PREFECT_API_URL.value() or "http://127.0.0.1:4200/api"
    return str(url).rstrip("/")


def api_client(timeout: float = 15) -> httpx.Client:
    """A client of that API, with the user's credentials if there are any. A proxy never stands before this machine."""
    url = api_url()
    headers, auth = {}, None
    if key := os.environ.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    elif login := os.environ.get("PREFECT_API_AUTH_STRING"):
        user, _, password = login.partition(":")
        auth = httpx.BasicAuth(user, password)
    return httpx.Client(base_url=url, timeout=timeout, headers=headers, auth=auth, trust_env=not is_local())


def environment() -> dict[str, str]:
    """The environment of our Prefect processes: own database, no telemetry unless the user asks for it."""
    defaults = {
        "PREFECT_HOME": str((STATE / "prefect").absolute()),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # A run should begin soon after it is asked for; two workers that ask all the time keep the server busy.
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_CLI_PROMPT": "false",
        # A feed of some events for each of thousands of task runs takes half a core, and locks the database.
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
        # One transaction for each state of each task run was most of what the server did.
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "2",
        # Its other services look every few seconds for what hardly ever happens here.
        **{f"PREFECT_SERVER_SERVICES_{name}_LOOP_SECONDS": "60" for name in _RARELY},
        # What the library says, such as that it waits for a vLLM server, belongs into the run's log.
        "PREFECT_LOGGING_EXTRA_LOGGERS": "polyepo",
    }
    ours = {
        "PREFECT_API_URL": api_url(),
        # prefect.yaml takes the project's folder from PWD, which a shell sets and `cd` in a program does not.
        "PWD": str(Path.cwd()),
        processes.MARK: str(STATE.absolute()),
    }
    return {**defaults, **os.environ, **servers.environment(), **ours}


def start(say: Callable[[str], None]) -> None:
    """Make sure that a server answers, the deployments are registered and workers wait for runs.

    Raises:
        StackError: the working directory is not the project's, something else listens on the server's port, or a
            process does not come up.
    """
    if not Path("prefect.yaml").is_file():
        raise StackError(f"there is no prefect.yaml in {Path.cwd()}: go to the project's folder first")
    STATE.mkdir(exist_ok=True)
    with processes.locked():
        _refuse_other_url()
        if not is_healthy():
            _start_server(say)
        register(say)
        _start_workers(say)


def stop() -> list[str]:
    """Stop what `start` started, flows that lost their worker included; returns the names of what was running."""
    stopped = [name for name in (*WORKERS, "server") if processes.terminate(name)]
    if processes.terminate_orphans():
        stopped.append("what they left behind")
    return stopped


def is_local() -> bool:
    """Whether the server is one on this machine."""
    return urlsplit(api_url()).hostname in ("127.0.0.1", "localhost", "::1")


def is_healthy() -> bool:
    """Whether a Prefect server answers."""
    try:
        with api_client(timeout=10) as client:
            answer = client.get("/health")
            return answer.status_code == 200 and answer.json() is True
    except (httpx.HTTPError, ValueError):
        return False


def register(say: Callable[[str], None]) -> None:
    """Give the server its work pools and the deployments of prefect.yaml, unless it has this very file already.

    With $POLYEPO_GPU_SLOTS, how many GPU workers there are, it is one for production: so many runs at a time in the GPU
    pool, and automations that look after runs that died.
    """
    env = environment()
    where = [env["PWD"], api_url(), *servers.server_environment().values()]
    content = b"\0".join([Path("prefect.yaml").read_bytes(), *(text.encode() for text in where)])
    stamp, digest = STATE / "deployed", hashlib.sha256(content).hexdigest()
    try:
        with api_client() as client:
            prepare_pools(client, gpu_slots(env))
            if gpu_slots(env) is not None:
                prepare_automations(client)
            has_deployment = client.get(f"/deployments/name/{DEPLOYMENT}").status_code == 200
    except httpx.HTTPError as error:
        raise StackError(f"the Prefect server at {api_url()} fails: {error!r}") from error
    if has_deployment and stamp.is_file() and stamp.read_text() == digest:
        return
    with processes.stage(say, "deployments of prefect.yaml"):
        _prefect("--no-prompt", "deploy", "--all")
        stamp.write_text(digest)


def gpu_slots(env: Mapping[str, str]) -> int | None:
    """$POLYEPO_GPU_SLOTS, if it is set. Raises StackError if it is no positive number."""
    text = env.get("POLYEPO_GPU_SLOTS", "")
    if text and not (text.isdecimal() and int(text)):
        raise StackError(f"POLYEPO_GPU_SLOTS is {text!r}: it must be the number of GPU workers, 1 or more")
    return int(text) if text else None


def _refuse_other_url() -> None:
    for name in ("server", *WORKERS):
        serves = processes.note_of(name)
        if processes.is_alive(name) and serves != api_url():
            raise StackError(
                f"this project's {name} runs for {serves}, and {api_url()} is asked for: "
                "stop it first (make stop), or set PREFECT_API_URL back"
            )


def _start_server(say: Callable[[str], None]) -> None:
    url = urlsplit(api_url())
    if not is_local():
        raise StackError(
            f"no Prefect server answers at {api_url()}: start it, or unset PREFECT_API_URL for a local one"
        )
    port = url.port or 80
    if processes.is_alive("server"):
        raise StackError(
            f"the Prefect server runs but does not answer: see {STATE / 'server.log'}, or stop it (make stop)"
        )
    if _something_listens():
        raise StackError(
            f"something that is no Prefect server listens on port {port}.\n"
            f"Choose another port: export PREFECT_API_URL=http://127.0.0.1:{port + 1}/api"
        )
    with processes.stage(say, f"Prefect server on port {port}"):
        arguments = ["server", "start", "--host", str(url.hostname), "--port", str(port)]
        _spawn("server", arguments, servers.server_environment())
        processes.wait_for("server", is_healthy, SERVER_SECONDS)


def _start_workers(say: Callable[[str], None]) -> None:
    missing = {name: f"{name}-{os.getpid()}-{int(time.time())}" for name in WORKERS if not processes.is_alive(name)}
    if not missing:
        return
    with processes.stage(say, " and ".join(missing)):
        for name, full_name in missing.items():
            pool = WORKERS[name]
            # The pool's limit holds for all workers together; a worker's own keeps its device to one run.
            limit = ["--limit", "1"] if pool == GPU_POOL and gpu_slots(environment()) is not None else []
            _spawn(name, ["worker", "start", "--pool", pool, "--type", "process", "--name", full_name, *limit])
        for name, full_name in missing.items():
            processes.wait_for(name, functools.partial(_is_online, WORKERS[name], full_name), WORKER_SECONDS)


def _is_online(pool: str, worker: str) -> bool:
    with contextlib.suppress(httpx.HTTPError), api_client() as client:
        workers = client.post(f"/work_pools/{pool}/workers/filter", json={}).raise_for_status().json()
        return any(found["name"] == worker for found in workers)
    return False


def _prefect(*arguments: str) -> None:
    done = subprocess.run(
        [*_PREFECT, *arguments],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StackError(f"prefect {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")


def _spawn(name: str, arguments: list[str], env: Mapping[str, str] | None = None) -> None:
    processes.spawn(name, [*_PREFECT, *arguments], {**environment(), **(env or {})}, note=api_url())


def _something_listens() -> bool:
    try:
        with api_client(timeout=2) as client:
            client.get("/")
    except httpx.ConnectError:
        return False
    except httpx.HTTPError:
        return True
    return True
