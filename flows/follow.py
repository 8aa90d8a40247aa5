"""Start a deployment with Prefect's own command and follow its run to the end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from flows import local_stack

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
_WAITING = {"SCHEDULED": "waiting for the worker", "PENDING": "starting", "CANCELLING": "cancelling"}
_POLL_SECONDS = 0.5
_PLAIN_LINE_SECONDS = 10.0
# How long a busy server may fail to answer, and a flow run may be without a process, before we believe it.
_SILENCE_SECONDS = 90.0
_GONE_SECONDS = 15.0
_WORKER_RESTARTS = 2


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
        raise local_stack.StackError(f"prefect deployment run {deployment} failed:\n{done.stdout}{done.stderr}")
    return found.group()


def find_unfinished(run: str, root: str) -> str | None:
    """The flow run that trains this run at the moment, if any.

    One whose process is gone (killed together with its worker) is set to Crashed, or it would seem to run for ever.
    """
    body = {
        "deployments": {"name": {"any_": [local_stack.DEPLOYMENT.split("/")[1]]}},
        "flows": {"name": {"any_": [local_stack.DEPLOYMENT.split("/")[0]]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING"]}}},
        "sort": "START_TIME_DESC",
    }
    try:
        with local_stack.api_client() as client:
            for found in client.post("/flow_runs/filter", json=body).raise_for_status().json():
                given = found["parameters"]
                same_run = (given.get("run") or Path(str(given.get("config"))).stem) == run
                if not same_run or (given.get("root") or root) != root:
                    continue
                if not _is_gone(found):
                    return str(found["id"])
                _set_crashed(client, found["id"])
    except httpx.HTTPError as error:
        raise local_stack.StackError(f"the Prefect server at {local_stack.api_url()} fails: {error!r}") from error
    return None


def follow(flow_run_id: str, console: Console) -> dict[str, Any]:
    """Show a flow run's progress until it ends; returns its last state ({"type", "message", ...}).

    Raises:
        StackError: the server no longer answers, or the worker ends again and again.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    printed, shown_text = -_PLAIN_LINE_SECONDS, ""
    answered = alive = time.monotonic()
    restarts = 0
    with local_stack.api_client() as client, bar:
        shown = bar.add_task("waiting for the worker", total=100)
        while True:
            try:
                flow_run = client.get(f"/flow_runs/{flow_run_id}").raise_for_status().json()
                percent, text = _progress(client, flow_run_id)
            except (httpx.HTTPError, ValueError) as error:
                if time.monotonic() - answered > _SILENCE_SECONDS:
                    raise local_stack.StackError(
                        f"the Prefect server at {local_stack.api_url()} no longer answers ({error!r}); "
                        f"see {local_stack.STATE / 'server.log'}"
                    ) from error
                time.sleep(_POLL_SECONDS)
                continue
            now = answered = time.monotonic()
            state = flow_run["state"] or {"type": "SCHEDULED"}
            text = _WAITING.get(state["type"]) or text or "starting"
            bar.update(shown, completed=percent, description=text)
            if not console.is_terminal and text != shown_text and now - printed >= _PLAIN_LINE_SECONDS:
                console.print(f"{percent:3.0f} % · {text}", highlight=False, markup=False, soft_wrap=True)
                printed, shown_text = now, text
            if state["type"] in _FINAL:
                return dict(state)
            worker = local_stack.is_alive("worker")
            if worker or not _is_gone(flow_run):
                alive = now
            elif now - alive > _GONE_SECONDS:
                _set_crashed(client, flow_run_id)
            if state["type"] == "SCHEDULED" and not worker:
                log = local_stack.STATE / "worker.log"
                if restarts == _WORKER_RESTARTS:
                    raise local_stack.StackError(f"the Prefect worker ends again and again; see {log}")
                restarts += 1
                console.print(f"· the worker is dead ({log}); starting another", highlight=False)
                local_stack.start(lambda line: console.print(f"· {line}", highlight=False))
            time.sleep(_POLL_SECONDS)


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
        since = datetime.fromisoformat(state["timestamp"].replace("Z", "+00:00"))
        return state["type"] == "PENDING" and (datetime.now(UTC) - since).total_seconds() > 60
    return pid.isdecimal() and "prefect" not in local_stack.command_line(int(pid))


def _set_crashed(client: httpx.Client, flow_run_id: str) -> None:
    state = {"type": "CRASHED", "name": "Crashed", "message": "the flow's process is gone"}
    client.post(f"/flow_runs/{flow_run_id}/set_state", json={"state": state, "force": True}).raise_for_status()
