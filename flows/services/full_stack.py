"""The whole stack on one machine, as in production: PostgreSQL, an S3 server, Prefect's server, a worker per pool."""

from __future__ import annotations

from collections.abc import Callable

from flows.services import local_stack, processes, servers
from flows.services.processes import STATE, StackError

_PROCESSES = ("postgres", "s3", "server", *local_stack.WORKERS)
_FOR_USERS = (
    "POLYEPO_ROOT",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_DEFAULT_REGION",
)


def start(say: Callable[[str], None]) -> dict[str, str]:
    """Start what does not run yet; returns the environment in which to use it.

    Raises:
        StackError: a program is missing, there is another Prefect server, or a process does not come up.
    """
    STATE.mkdir(exist_ok=True)
    running = [name for name in _PROCESSES if processes.is_alive(name)]
    if "server" in running and "postgres" not in running:
        raise StackError("this project's Prefect server runs on SQLite: stop it first (make stop)")
    if "server" not in running and (not local_stack.is_local() or local_stack.is_healthy()):
        raise StackError(
            f"another Prefect server is at {local_stack.api_url()}, and the stack has its own: "
            "export PREFECT_API_URL=http://127.0.0.1:4201/api, or any other free port"
        )
    try:
        with processes.locked():
            servers.start(say)
        local_stack.start(say)
    except BaseException:
        if not running:
            stop()
        raise
    environment = servers.environment()
    return {"PREFECT_API_URL": local_stack.api_url(), **{name: environment[name] for name in _FOR_USERS}}


def stop() -> list[str]:
    """Stop all of it, and whatever a command that was killed has left; returns the names of what was running."""
    return [*local_stack.stop(), *servers.stop()]


def status() -> dict[str, str]:
    """Of each process: its id and log if it runs, or that it does not."""
    return {
        name: f"runs as {processes.pid_of(name)}, log in {STATE / name}.log" if processes.is_alive(name) else "stopped"
        for name in _PROCESSES
    }
