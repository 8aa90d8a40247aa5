"""A local Prefect server and worker: started if they do not run, reused if they do, stopped on request."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx

POOL = "poly-epo"
DEPLOYMENT = "poly-epo/train"
STATE = Path(".polyepo")
SERVER_SECONDS = 180
WORKER_SECONDS = 90
_PREFECT = [sys.executable, "-m", "prefect"]


class StackError(RuntimeError):
    """The local Prefect server or worker cannot be used; the message says what to do."""


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
        # A run should begin within a second of being asked for.
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_CLI_PROMPT": "false",
        # A feed of some events for each of thousands of task runs takes half a core, and locks the database.
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
        # What the library says, such as that it waits for a vLLM server, belongs into the run's log.
        "PREFECT_LOGGING_EXTRA_LOGGERS": "polyepo",
    }
    # prefect.yaml takes the project's folder from PWD, which a shell sets and `cd` in a program does not.
    return {**defaults, **os.environ, "PREFECT_API_URL": api_url(), "PWD": str(Path.cwd())}


def start(say: Callable[[str], None]) -> None:
    """Make sure that a server answers, the deployments are registered and a worker waits for runs.

    Raises:
        StackError: the working directory is not the project's, something else listens on the server's port, or a
            process does not come up.
    """
    if not Path("prefect.yaml").is_file():
        raise StackError(f"there is no prefect.yaml in {Path.cwd()}: go to the project's folder first")
    STATE.mkdir(exist_ok=True)
    with _locked():
        _refuse_other_url()
        if not _healthy():
            _start_server(say)
        _register(say)
        if not is_alive("worker"):
            _start_worker(say)


def stop() -> list[str]:
    """Stop what `start` started; returns the names of what was running."""
    return [name for name in ("worker", "server") if _terminate(name)]


def is_alive(name: str) -> bool:
    """Whether the "server" or "worker" that `start` started still runs."""
    pid = _pid(name)
    return pid is not None and f"-m prefect {name} start" in command_line(pid)


def is_local() -> bool:
    """Whether the server is one on this machine."""
    return urlsplit(api_url()).hostname in ("127.0.0.1", "localhost", "::1")


def command_line(pid: int) -> str:
    """The command line of a process; empty if there is none, or only its unreaped remains."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # our own child would else stay a zombie
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    shown = subprocess.run(
        ["ps", "-o", "stat=,args=", "-p", str(pid)],  # noqa: S607 - a fixed command
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    return "" if shown.startswith("Z") else shown


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    # Two `make train` at once must not start two servers on one database.
    with open(STATE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _stage(say: Callable[[str], None], doing: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    say(f"{doing}: {time.monotonic() - started:.1f} s")


def _refuse_other_url() -> None:
    for name in ("server", "worker"):
        serves = _pid_file(name)[1:]
        if is_alive(name) and serves and serves[0] != api_url():
            raise StackError(
                f"this project's {name} runs for {serves[0]}, and {api_url()} is asked for: "
                "stop it first (make stop), or set PREFECT_API_URL back"
            )


def _start_server(say: Callable[[str], None]) -> None:
    url = urlsplit(api_url())
    if not is_local():
        raise StackError(
            f"no Prefect server answers at {api_url()}: start it, or unset PREFECT_API_URL for a local one"
        )
    port = url.port or 80
    if is_alive("server"):
        raise StackError(
            f"the Prefect server runs but does not answer: see {STATE / 'server.log'}, or stop it (make stop)"
        )
    if _something_listens():
        raise StackError(
            f"something that is no Prefect server listens on port {port}.\n"
            f"Choose another port: export PREFECT_API_URL=http://127.0.0.1:{port + 1}/api"
        )
    with _stage(say, f"Prefect server on port {port}"):
        _spawn("server", ["server", "start", "--host", str(url.hostname), "--port", str(port)])
        _wait("server", _healthy, SERVER_SECONDS)


def _start_worker(say: Callable[[str], None]) -> None:
    name = f"local-{os.getpid()}-{int(time.time())}"

    def online() -> bool:
        with contextlib.suppress(httpx.HTTPError), api_client() as client:
            workers = client.post(f"/work_pools/{POOL}/workers/filter", json={}).raise_for_status().json()
            return any(worker["name"] == name for worker in workers)
        return False

    with _stage(say, "Prefect worker"):
        _spawn("worker", ["worker", "start", "--pool", POOL, "--type", "process", "--name", name])
        _wait("worker", online, WORKER_SECONDS)


def _register(say: Callable[[str], None]) -> None:
    """Create the work pool and deploy prefect.yaml, unless this server has this very file already."""
    content = b"\0".join([Path("prefect.yaml").read_bytes(), str(Path.cwd()).encode(), api_url().encode()])
    stamp, digest = STATE / "deployed", hashlib.sha256(content).hexdigest()
    try:
        with api_client() as client:
            has_pool = client.get(f"/work_pools/{POOL}").status_code == 200
            has_deployment = client.get(f"/deployments/name/{DEPLOYMENT}").status_code == 200
    except httpx.HTTPError as error:
        raise StackError(f"the Prefect server at {api_url()} fails: {error!r}") from error
    if has_pool and has_deployment and stamp.is_file() and stamp.read_text() == digest:
        return
    with _stage(say, "deployments of prefect.yaml"):
        if not has_pool:
            _prefect("work-pool", "create", POOL, "--type", "process")
        _prefect("--no-prompt", "deploy", "--all")
        stamp.write_text(digest)


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
    (STATE / f"{name}.pid").write_text(f"{process.pid}\n{api_url()}\n")


def _wait(name: str, ready: Callable[[], bool], seconds: float) -> None:
    """Wait until a spawned process is ready; if it ends or takes too long, end it and show what it said."""
    deadline = time.monotonic() + seconds
    try:
        while not ready():
            if not is_alive(name):
                raise StackError(f"the Prefect {name} ended at once:\n{_last_lines(name)}")
            if time.monotonic() > deadline:
                raise StackError(f"the Prefect {name} is not ready after {seconds:.0f} s:\n{_last_lines(name)}")
            time.sleep(0.2)
    except BaseException:
        _terminate(name)
        raise


def _last_lines(name: str, count: int = 12) -> str:
    log = STATE / f"{name}.log"
    return "\n".join([*log.read_text(errors="replace").splitlines()[-count:], f"(all of it: {log})"])


def _pid_file(name: str) -> list[str]:
    """The process's id and the API that it serves."""
    try:
        return (STATE / f"{name}.pid").read_text().split()
    except FileNotFoundError:
        return []


def _pid(name: str) -> int | None:
    first = _pid_file(name)[:1]
    return int(first[0]) if first and first[0].isdecimal() else None


def _terminate(name: str) -> bool:
    pid, running = _pid(name), is_alive(name)
    if pid is not None and running:
        os.killpg(pid, signal.SIGTERM)
        # A worker first stops the flow runs that it has started.
        deadline = time.monotonic() + 45
        while is_alive(name) and time.monotonic() < deadline:
            time.sleep(0.1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    (STATE / f"{name}.pid").unlink(missing_ok=True)
    return running


def _healthy() -> bool:
    try:
        with api_client(timeout=10) as client:
            answer = client.get("/health")
            return answer.status_code == 200 and answer.json() is True
    except (httpx.HTTPError, ValueError):
        return False


def _something_listens() -> bool:
    try:
        with api_client(timeout=2) as client:
            client.get("/")
    except httpx.ConnectError:
        return False
    except httpx.HTTPError:
        return True
    return True
