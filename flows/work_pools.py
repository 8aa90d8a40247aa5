"""What a Prefect server must hold before the first run: work pools, and automations that look after dead runs.

A pool hands out no more flow runs than its limit, whatever asks for them: with one slot per GPU worker, two runs never
share a device. A run that died keeps its slot until it is known to be dead, which the automations see to: they mark it
Crashed, and start it again where the cause was the infrastructure. An error of the flow's own is Failed, and stays so.
"""

from __future__ import annotations

from typing import Any

import httpx

GPU_POOL = "poly-epo-gpu"
CPU_POOL = "poly-epo-cpu"

HEARTBEAT_SECONDS = 30
"""PREFECT_FLOWS_HEARTBEAT_FREQUENCY of workers; Prefect has no smaller one."""
_SILENT_SECONDS = 3 * HEARTBEAT_SECONDS
_START_SECONDS = 600
_RETRIES = 2

_FLOW_RUN = {"prefect.resource.id": "prefect.flow-run.*"}
_OURS = {"prefect.resource.role": "flow", "prefect.resource.name": "poly-epo"}
_ENDS = [f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "Crashed")]


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
    """Create or renew the automations."""
    for automation in _AUTOMATIONS:
        body = {"automations": {"name": {"any_": [automation["name"]]}}}
        found = client.post("/automations/filter", json=body).raise_for_status().json()
        if found:
            client.put(f"/automations/{found[0]['id']}", json=automation).raise_for_status()
        else:
            client.post("/automations/", json=automation).raise_for_status()


def _crash_if_silent(name: str, after: str, expect: list[str], seconds: int, message: str) -> dict[str, Any]:
    return {
        "name": name,
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "match": _FLOW_RUN,
            "match_related": _OURS,
            "for_each": ["prefect.resource.id"],
            "after": [after],
            "expect": expect,
            "threshold": 1,
            "within": seconds,
        },
        "actions": [{"type": "change-flow-run-state", "state": "CRASHED", "name": "Crashed", "message": message}],
    }


_AUTOMATIONS: list[dict[str, Any]] = [
    _crash_if_silent(
        "poly-epo: runs that fell silent have crashed",
        after="prefect.flow-run.heartbeat",
        expect=["prefect.flow-run.heartbeat", *_ENDS],
        seconds=_SILENT_SECONDS,
        message=f"no sign of life for {_SILENT_SECONDS} s: the process or its machine is gone",
    ),
    _crash_if_silent(
        "poly-epo: runs that never began have crashed",
        after="prefect.flow-run.Pending",
        expect=["prefect.flow-run.Running", *_ENDS],
        seconds=_START_SECONDS,
        message=f"it did not begin within {_START_SECONDS} s: the worker that took it is gone",
    ),
    {
        "name": "poly-epo: runs that crashed are started again",
        "trigger": {
            "type": "event",
            "posture": "Reactive",
            # The count of starts is what ends a run that crashes every time.
            "match": {**_FLOW_RUN, "prefect.run-count": [str(count) for count in range(_RETRIES + 1)]},
            "match_related": _OURS,
            "for_each": ["prefect.resource.id"],
            "expect": ["prefect.flow-run.Crashed"],
            "threshold": 1,
            "within": 0,
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "SCHEDULED",
                "name": "AwaitingRetry",
                "message": "it crashed; what is committed is not done again",
            }
        ],
    },
]
