"""Start a deployment with Prefect's own command and follow its run to the end."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from flows import stack

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
_POLL_SECONDS = 0.5
_PLAIN_LINE_SECONDS = 10.0


def run_deployment(deployment: str, parameters: dict[str, str]) -> str:
    """Issue `prefect deployment run`; returns the flow run's id. Raises StackError with its output if it fails."""
    command = [sys.executable, "-m", "prefect", "deployment", "run", deployment]
    for name, value in parameters.items():
        command += ["--param", f"{name}={value}"]
    done = subprocess.run(command, env=stack.environment(), capture_output=True, text=True, check=False)
    found = _UUID.search(done.stdout)
    if done.returncode or not found:
        raise stack.StackError(f"prefect deployment run {deployment} failed:\n{done.stdout}{done.stderr}")
    return found.group()


def follow(flow_run_id: str, console: Console) -> dict[str, Any]:
    """Show a flow run's progress until it ends; returns its last state ({"type", "message", ...})."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    plain = 0.0
    with httpx.Client(base_url=stack.api_url(), timeout=30) as client, bar:
        shown = bar.add_task("waiting for the worker", total=100)
        while True:
            state = client.get(f"/flow_runs/{flow_run_id}").raise_for_status().json()["state"] or {}
            percent, description = _progress(client, flow_run_id)
            bar.update(shown, completed=percent, description=description)
            if not console.is_terminal and time.monotonic() - plain > _PLAIN_LINE_SECONDS:
                console.print(f"{percent:3.0f} % · {description}", highlight=False)
                plain = time.monotonic()
            if state.get("type") in _FINAL:
                return state
            if state.get("type") in ("SCHEDULED", "PENDING") and not stack.worker_is_alive():
                console.print(f"no local worker is running; see {stack.STATE / 'worker.log'}")
                stack.start(console.print)
            time.sleep(_POLL_SECONDS)


def last_logs(flow_run_id: str, count: int = 15) -> list[str]:
    """The run's last log messages, oldest first."""
    body = {
        "logs": {"flow_run_id": {"any_": [flow_run_id]}},
        "sort": "TIMESTAMP_DESC",
        "limit": count,
    }
    answer = httpx.post(f"{stack.api_url()}/logs/filter", json=body, timeout=10)
    return [entry["message"] for entry in reversed(answer.json())] if answer.status_code == 200 else []


def _progress(client: httpx.Client, flow_run_id: str) -> tuple[float, str]:
    body = {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}, "type": {"any_": ["progress"]}}, "limit": 1}
    found = client.post("/artifacts/filter", json=body).json()
    if not found:
        return 0.0, "waiting for the worker"
    return float(found[0]["data"] or 0), str(found[0]["description"] or "")
