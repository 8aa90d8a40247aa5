"""Start a deployment with Prefect's own command and follow its run to the end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import stamina
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from flows.services import local_stack, processes
from flows.services.work_pools import ARM_FLOW, FLOW, RESTART_SECONDS, RETRIES

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
_WAITING = {"SCHEDULED": "waiting for the worker", "PENDING": "starting", "CANCELLING": "cancelling"}
POLL_SECONDS = 0.5
_PLAIN_LINE_SECONDS = 10.0
# How long a busy server may fail to answer, and a flow run may be without a process, before we believe it.
_SILENCE_SECONDS = 90.0
_GONE_SECONDS = 15.0
# A worker gives a flow half a minute to end before it kills it.
_CANCEL_SECONDS = 120.0
_WORKER_RESTARTS = 2
_GONE = "the flow's process is gone"


class _BusyError(local_stack.StackError):
    """The server has no time: its database is locked for longer than it waits."""


@stamina.retry(on=_BusyError, attempts=None, timeout=_SILENCE_SECONDS, wait_initial=2.0, wait_max=15.0)
def run_deployment(deployment: str, parameters: dict[str, Any]) -> str:
    """Issue `prefect deployment run`; returns the flow run's id. Raises StackError with its output if it fails."""
    command = [sys.executable, "-m", "prefect", "deployment", "run", deployment]
    for name, value in parameters.items():
        # Prefect reads parameters as JSON: a run called 2024 or true must stay a text.
        command += ["--param", f"{name}={json.dumps(value)}"]
    done = subprocess.run(
        command,
        env=local_stack.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    found = _UUID.search(done.stdout)
    if done.returncode or not found:
        error = _BusyError if "503 Service Unavailable" in done.stdout + done.stderr else local_stack.StackError
        raise error(f"prefect deployment run {deployment} failed:\n{done.stdout}{done.stderr}")
    return found.group()


def find_unfinished(run: str, root: str) -> str | None:
    """The flow run that trains this run at the moment, if any.

    One whose process is gone (killed together with its worker) is set to Crashed, or it would seem to run for ever.
    """
    try:
        with local_stack.api_client() as client:
            for found in _unfinished(client, "train"):
                given = found["parameters"]
                if _run_of(given) != run or (given.get("root") or root) != root:
                    continue
                if _is_gone(found):
                    found = _set_crashed(client, found["id"])
                if found["state"]["type"] != "CRASHED" or _starts_again(found):
                    return str(found["id"])
    except httpx.HTTPError as error:
        raise local_stack.StackError(f"the Prefect server at {local_stack.api_url()} fails: {error!r}") from error
    return None


class Followed:
    """A flow run that is asked now and then how it goes."""

    def __init__(self, flow_run_id: str, worker: str = "gpu-worker") -> None:
        self.flow_run_id = flow_run_id
        self._worker = worker
        self.percent = 0.0
        self.text = "waiting for the worker"
        self.state: dict[str, Any] | None = None
        """The last state ({"type", "message", ...}), once the run has ended."""
        self._answered = self._alive = time.monotonic()
        self._restarts = 0

    def poll(self, client: httpx.Client, say: Callable[[str], None]) -> None:
        """Ask the server once; start another worker if there is none.

        Raises:
            StackError: the server no longer answers, or the worker ends again and again.
        """
        try:
            flow_run = _flow_run(client, self.flow_run_id)
            self.percent, text = _progress(client, self.flow_run_id)
        except (httpx.HTTPError, ValueError) as error:
            if time.monotonic() - self._answered > _SILENCE_SECONDS:
                raise local_stack.StackError(
                    f"the Prefect server at {local_stack.api_url()} no longer answers ({error!r}); "
                    f"see {local_stack.STATE / 'server.log'}"
                ) from error
            return
        now = self._answered = time.monotonic()
        state = flow_run["state"] or {"type": "SCHEDULED"}
        self.text = _WAITING.get(state["type"]) or text or "starting"
        if _starts_again(flow_run):
            self.text = "crashed; it is started again within a minute"
            return
        if state["type"] in _FINAL:
            self.state = dict(state)
            if state["type"] == "CRASHED":
                _end_arms(client, self.flow_run_id)
            return
        worker = processes.is_alive(self._worker)
        if worker or not _is_gone(flow_run):
            self._alive = now
        elif now - self._alive > _GONE_SECONDS:
            _set_crashed(client, self.flow_run_id)
        if state["type"] == "SCHEDULED" and not worker:
            log = local_stack.STATE / f"{self._worker}.log"
            if self._restarts == _WORKER_RESTARTS:
                raise local_stack.StackError(f"the Prefect worker ends again and again; see {log}")
            self._restarts += 1
            say(f"the worker is dead ({log}); starting another")
            local_stack.start(say)


class Bars:
    """A progress bar for each name; lines now and then where the output is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._printed: dict[str, tuple[float, str]] = {}

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, name: str, percent: float, text: str) -> None:
        """Say how far something is."""
        text = f"{name} · {text}" if name else text
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(text, total=100)
        self._bars.update(self._tasks[name], completed=percent, description=text)
        printed, shown = self._printed.get(name, (-_PLAIN_LINE_SECONDS, ""))
        if not self._console.is_terminal and text != shown and time.monotonic() - printed >= _PLAIN_LINE_SECONDS:
            self._console.print(f"{percent:3.0f} % · {text}", highlight=False, markup=False, soft_wrap=True)
            self._printed[name] = (time.monotonic(), text)


def follow(flow_run_id: str, console: Console, worker: str = "gpu-worker") -> dict[str, Any]:
    """Show a flow run's progress until it ends; returns its last state ({"type", "message", ...}).

    Args:
        flow_run_id: the flow run.
        console: where to.
        worker: the local worker that is to run it; another is started if it is dead.

    Raises:
        StackError: the server no longer answers, or the worker ends again and again.
    """
    run = Followed(flow_run_id, worker)
    with local_stack.api_client() as client, Bars(console) as bars:
        while run.state is None:
            run.poll(client, lambda line: console.print(f"· {line}", highlight=False, markup=False))
            bars.show("", run.percent, run.text)
            if run.state is None:
                time.sleep(POLL_SECONDS)
    return run.state


def result(flow_run_id: str) -> str:
    """The markdown of a flow run's results; nothing if it made none. Where its report lies is no result."""
    body = {
        "artifacts": {"flow_run_id": {"any_": [flow_run_id]}, "type": {"any_": ["markdown"]}},
        "sort": "UPDATED_DESC",
        "limit": 10,
    }
    try:
        with local_stack.api_client() as client:
            found = client.post("/artifacts/filter", json=body).raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return ""
    return next((str(artifact["data"]) for artifact in found if not artifact["key"].endswith("-report")), "")


def cancel(run: str, root: str) -> list[str]:
    """Cancel the flow runs that work on a run, and wait until they and their processes have ended; returns their ids.

    Raises:
        StackError: the server fails, or a flow does not end.
    """
    cancelled = []
    try:
        with local_stack.api_client() as client:
            for found in _unfinished(client):
                given = found["parameters"]
                if _run_of(given) != run or (given.get("root") or root) != root:
                    continue
                if _is_gone(found):
                    found = _set_crashed(client, found["id"])
                if found["state"]["type"] != "CRASHED":
                    _set_state(client, found["id"], "CANCELLING")
                elif _starts_again(found):
                    _set_state(client, found["id"], "CANCELLED", "cancelled before it was started again", force=True)
                else:
                    continue
                cancelled.append(str(found["id"]))
            for flow_run_id in cancelled:
                _wait_for_end(client, flow_run_id)
    except httpx.HTTPError as error:
        raise local_stack.StackError(f"the Prefect server at {local_stack.api_url()} fails: {error!r}") from error
    return cancelled


def _wait_for_end(client: httpx.Client, flow_run_id: str) -> None:
    deadline = time.monotonic() + _CANCEL_SECONDS
    while _flow_run(client, flow_run_id)["state"]["type"] not in _FINAL:
        if time.monotonic() > deadline:
            raise local_stack.StackError(
                f"flow run {flow_run_id} does not end; `make stop` ends everything that this project runs"
            )
        time.sleep(POLL_SECONDS)


def _flow_run(client: httpx.Client, flow_run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/flow_runs/{flow_run_id}").raise_for_status().json()
    return found


def _unfinished(client: httpx.Client, deployment: str | None = None) -> list[dict[str, Any]]:
    """Flow runs of our deployments, or of one, that have not ended or may be started again; the latest first."""
    states = ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING", "CRASHED"]
    body: dict[str, Any] = {
        "flows": {"name": {"any_": [FLOW]}},
        "flow_runs": {"state": {"type": {"any_": states}}},
        "sort": "START_TIME_DESC",
    }
    if deployment:
        body["deployments"] = {"name": {"any_": [deployment]}}
    found: list[dict[str, Any]] = client.post("/flow_runs/filter", json=body).raise_for_status().json()
    return [flow_run for flow_run in found if flow_run["state"]["type"] != "CRASHED" or _starts_again(flow_run)]


def _run_of(parameters: dict[str, Any]) -> str:
    """The name of the run that a flow run's parameters mean."""
    return str(parameters.get("run") or Path(str(parameters.get("config"))).stem)


def last_logs(flow_run_id: str, count: int = 15) -> list[str]:
    """The run's last log lines, oldest first."""
    body = {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "sort": "TIMESTAMP_DESC", "limit": min(count, 200)}
    try:
        with local_stack.api_client() as client:
            entries = client.post("/logs/filter", json=body).raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return []
    return [line for entry in reversed(entries) for line in entry["message"].splitlines()][-count:]


def _progress(client: httpx.Client, flow_run_id: str) -> tuple[float, str]:
    """Per cent and description of the flow run's progress artifact."""
    body = {
        "artifacts": {"flow_run_id": {"any_": [flow_run_id]}, "type": {"any_": ["progress"]}},
        "sort": "UPDATED_DESC",
        "limit": 1,
    }
    found = client.post("/artifacts/filter", json=body).raise_for_status().json()
    if not found:
        return 0.0, ""
    return float(found[0]["data"] or 0), str(found[0]["description"] or "")


def _is_gone(flow_run: dict[str, Any]) -> bool:
    """Whether a flow run that should have a process on this machine has none."""
    state = flow_run["state"] or {}
    if state.get("type") not in ("PENDING", "RUNNING", "CANCELLING"):
        return False
    # The process worker records a bare process id, which means something only if the stack is on this machine.
    pid = flow_run["infrastructure_pid"] or ""
    if not local_stack.is_local():
        return False
    if not pid:
        # A worker that was killed between taking a run and starting it.
        return state["type"] == "PENDING" and _seconds_in(state) > 60
    return pid.isdecimal() and "prefect" not in processes.command_line(int(pid))


def _starts_again(flow_run: dict[str, Any]) -> bool:
    """Whether a flow run has crashed and the server's automations are about to start it again, where it has them."""
    state = flow_run["state"] or {}
    return (
        state.get("type") == "CRASHED"
        and local_stack.gpu_slots(local_stack.environment()) is not None
        and flow_run["run_count"] <= RETRIES
        and _seconds_in(state) < RESTART_SECONDS
    )


def _seconds_in(state: dict[str, Any]) -> float:
    since = datetime.fromisoformat(state["timestamp"].replace("Z", "+00:00"))
    return (datetime.now(UTC) - since).total_seconds()


def _set_crashed(client: httpx.Client, flow_run_id: str) -> dict[str, Any]:
    """Say that a flow run whose process is gone has crashed; returns the flow run."""
    _set_state(client, flow_run_id, "CRASHED", _GONE, force=True)
    found = _flow_run(client, flow_run_id)
    if not _starts_again(found):
        _end_arms(client, flow_run_id)
    return found


def _end_arms(client: httpx.Client, flow_run_id: str) -> None:
    """What died with the process had no time to say so: arms of a crashed flow run would seem to run for ever."""
    going_on = ["PENDING", "RUNNING"]
    body = {
        "flows": {"name": {"any_": [ARM_FLOW]}},
        "flow_runs": {"parent_flow_run_id": {"any_": [flow_run_id]}, "state": {"type": {"any_": going_on}}},
    }
    for arm in client.post("/flow_runs/filter", json=body).raise_for_status().json():
        _set_state(client, arm["id"], "CRASHED", _GONE, force=True)


def _set_state(client: httpx.Client, flow_run_id: str, kind: str, message: str = "", force: bool = False) -> None:
    state = {"type": kind, "name": kind.capitalize(), "message": message}
    body = {"state": state, "force": force}
    client.post(f"/flow_runs/{flow_run_id}/set_state", json=body).raise_for_status()
