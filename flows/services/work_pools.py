"""What a Prefect server must hold before the first run: work pools, and automations that look after dead runs.

A pool hands out no more flow runs than its limit, whatever asks for them: with one slot per GPU worker, two runs never
share a device. A run that died keeps its slot until it is known to be dead, which the automations see to: they mark it
Crashed, and start it again where the cause was the infrastructure. An error of the flow's own is Failed, and stays so.
"""

from __future__ import annotations

from typing import Any

import httpx

FLOW = "poly-epo"
ARM_FLOW = "poly-epo-arm"
"""The flow of one arm, below the one that was asked for: if both die, only that one is to be started again."""
GPU_POOL = "poly-epo-gpu"
CPU_POOL = "poly-epo-cpu"

HEARTBEAT_SECONDS = 30
"""PREFECT_FLOWS_HEARTBEAT_FREQUENCY of workers; Prefect has no smaller one."""
_SILENT_SECONDS = 3 * HEARTBEAT_SECONDS
_START_SECONDS = 600
_RETRY_SECONDS = 30
RETRIES = 2
RESTART_SECONDS = 3 * _RETRY_SECONDS
"""A flow run that crashed is started again within this time, or not at all."""
_ENDS = ["Completed", "Failed", "Cancelled", "Crashed"]


def prepare_pools(client: httpx.Client, gpu_slots: int | None = None) -> None:
    """Create both pools if they are missing; `gpu_slots`, if given, is how many flow runs may use GPUs at once."""
    for name, limit in ((GPU_POOL, gpu_slots), (CPU_POOL, None)):
        pool: dict[str, Any] = {"name": name, "type": "process"}
        created = client.post("/work_pools/", json=pool)
        if created.status_code != httpx.codes.CONFLICT:
            created.raise_for_status()
        if limit is not None:
            client.patch(f"/work_pools/{name}", json={"concurrency_limit": limit}).raise_for_status()


def prepare_automations(client: httpx.Client) -> None:
    """Create the automations, or renew those that have changed: one that is renewed forgets whom it was waiting for."""
    for automation in _AUTOMATIONS:
        body = {"automations": {"name": {"any_": [automation["name"]]}}}
        found = client.post("/automations/filter", json=body).raise_for_status().json()
        if found and not _contains(found[0], automation):
            client.put(f"/automations/{found[0]['id']}", json=automation).raise_for_status()
        if not found:
            client.post("/automations/", json=automation).raise_for_status()


def _contains(found: Any, wanted: Any) -> bool:
    """Whether what the server has is as wanted; it adds keys, and keeps no order of names."""
    if isinstance(wanted, dict):
        return all(key in found and _contains(found[key], value) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(wanted[0], str):
        return set(found) == set(wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_contains, found, wanted))
    return bool(found == wanted)


def _automation(
    name: str, after: str, expect: list[str], seconds: int, state: dict[str, str], match: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Set a flow run to a state if nothing that is expected follows an event of it in time; names are of events."""
    return {
        "name": f"poly-epo: {name}",
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "match": {"prefect.resource.id": "prefect.flow-run.*", **(match or {})},
            "match_related": {"prefect.resource.role": "flow", "prefect.resource.name": FLOW},
            "for_each": ["prefect.resource.id"],
            "after": [f"prefect.flow-run.{after}"],
            "expect": [f"prefect.flow-run.{event}" for event in expect],
            "threshold": 1,
            "within": seconds,
        },
        "actions": [{"type": "change-flow-run-state", **state}],
    }


def _crashed(message: str) -> dict[str, str]:
    return {"state": "CRASHED", "name": "Crashed", "message": message}


_AUTOMATIONS = [
    _automation(
        "runs that fell silent have crashed",
        after="heartbeat",
        expect=["heartbeat", *_ENDS],
        seconds=_SILENT_SECONDS,
        state=_crashed(f"no sign of life for {_SILENT_SECONDS} s: the process or its machine is gone"),
    ),
    _automation(
        "runs that never began have crashed",
        after="Pending",
        expect=["Running", *_ENDS],
        seconds=_START_SECONDS,
        state=_crashed(f"it did not begin within {_START_SECONDS} s: the worker that took it is gone"),
    ),
    _automation(
        "runs that crashed are started again",
        after="Crashed",
        expect=["AwaitingRetry", "Pending", "Running", "Cancelled"],  # whoever cancels it does not want it again
        # A worker still reports for some seconds about a process that crashed.
        seconds=_RETRY_SECONDS,
        state={"state": "SCHEDULED", "name": "AwaitingRetry", "message": "what is committed is not done again"},
        # How often it was started: what crashes every time is given up.
        match={"prefect.run-count": [str(count) for count in range(RETRIES + 1)]},
    ),
]
