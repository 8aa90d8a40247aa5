"""What a step costs besides sampling, judging, scoring and updating: Prefect, storage and the rest.

    python benchmarks/overhead.py --steps 1000

Trains the quickstart's Poly-EPO arm as `polyepo train` does, with a server, workers and a database of its own. Times
are read from the artifacts: from one update's commit to the next, less the seconds that the four stages say they
worked. Of every process it says how much processor time it took (Linux).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from flows import follow
from flows.services import local_stack, processes
from tasks.runs.run import Run, open_run

PROJECT = Path(__file__).resolve().parents[1]
STAGES = ["seconds_sample", "seconds_judge", "seconds_score", "seconds_update"]


@contextlib.contextmanager
def stack() -> Iterator[None]:
    """The local stack in a folder of its own, on a free port, with a fresh SQLite database."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_LOGGING_LEVEL": "INFO"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name in ("prefect.yaml", "flows", "configs"):
            Path(name).symlink_to(PROJECT / name)
        try:
            local_stack.start(print)
            yield
        finally:
            local_stack.stop()


def processor_seconds(pid: int, children: bool = False) -> float:
    """User and system time of a process, or of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    used = fields[13:15] if children else fields[11:13]
    return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")


class Used:
    """Processor seconds of everything that takes part, from the moment it is made."""

    def __init__(self) -> None:
        self._before = self._now()

    def seconds(self) -> dict[str, float]:
        """By process, without what the stack's start took."""
        return {name: seconds - self._before[name] for name, seconds in self._now().items()}

    @staticmethod
    def _now() -> dict[str, float]:
        pids = {name: processes.pid_of(name) or 0 for name in ("server", *local_stack.WORKERS)}
        times = os.times()
        return {
            **{name: processor_seconds(pid) for name, pid in pids.items()},
            "command": sum(times[:4]),
            "flow": processor_seconds(pids["gpu-worker"], children=True),  # its worker waited for it
        }


def watch_memory(flow_run_id: str, samples: list[tuple[float, float]], done: threading.Event) -> None:
    """Resident memory of the flow's process in MiB, once a second (Linux)."""
    pid = None
    with local_stack.api_client() as client:
        while not done.wait(1.0):
            pid = pid or client.get(f"/flow_runs/{flow_run_id}").json()["infrastructure_pid"]
            with contextlib.suppress(OSError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                samples.append((time.time(), pages * os.sysconf("SC_PAGE_SIZE") / 2**20))


def count(what: str, body: dict[str, Any]) -> int:
    """How many of something the server holds."""
    with local_stack.api_client() as client:
        if what == "logs":  # they have no count of their own
            total = 0
            while page := client.post("/logs/filter", json={**body, "offset": total}).json():
                total += len(page)
            return total
        return int(client.post(f"/{what}/count", json=body).raise_for_status().json())


def main() -> None:
    """Train, then print what it took: per step, of processor time, and of the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--idle", type=int, default=0, help="seconds to watch what the stack takes without a run")
    parser.add_argument("--arms", action="store_true", help="train all arms of the quickstart, not one")
    options = parser.parse_args()
    with stack():
        if options.idle:
            used = Used()
            time.sleep(options.idle)
            report_processors(f"{options.idle} s without a run", used)
        memory: list[tuple[float, float]] = []
        done = threading.Event()
        used, started = Used(), time.monotonic()
        settings: dict[str, Any] = {"steps": options.steps} | ({} if options.arms else {"arms": {}})
        parameters = {"config": "configs/quickstart.yaml", "run": "overhead", "root": "root", "settings": settings}
        flow_run_id = follow.run_deployment(local_stack.DEPLOYMENT, parameters)
        threading.Thread(target=watch_memory, args=(flow_run_id, memory, done), daemon=True).start()
        try:
            state = follow.follow(flow_run_id, Console())
        finally:
            done.set()
        if state["type"] != "COMPLETED":
            raise SystemExit(f"{state['type']}: {state.get('message')}\n" + "\n".join(follow.last_logs(flow_run_id)))
        time.sleep(10)  # for what the server has yet to write
        took = time.monotonic() - started
        run = open_run("root", "overhead-poly-epo" if options.arms else "overhead")
        report_steps(run, memory)
        report_processors(f"{options.steps} steps{' of each arm' if options.arms else ''}, {took:.0f} s", used)
        every = 100 / options.steps
        for name, what, body in (
            ("task runs", "task_runs", {}),
            ("flow runs", "flow_runs", {}),
            ("lines of log", "logs", {}),
            ("lines of log at INFO and above", "logs", {"logs": {"level": {"ge_": 20}}}),
        ):
            number = count(what, body)
            print(f"{name:<32} {number:8,}   {number * every:8.1f} per 100 steps")


def report_processors(title: str, used: Used) -> None:
    """Processor seconds of each process."""
    seconds = used.seconds()
    print(f"\nprocessor seconds, {title}")
    for name, value in [*seconds.items(), ("all", sum(seconds.values()))]:
        print(f"{name:<12} {value:8.1f}")
    print()


def report_steps(run: Run, memory: list[tuple[float, float]]) -> None:
    """One line per tenth of the run; steps with a checkpoint are left out."""
    ended, worked, plain = [], [], []
    for step in range(1, run.config.steps + 1):
        key = run.key("updates", step)
        manifest = run.store.manifest(key)
        assert manifest is not None
        row = run.store.read_table(key, [*STAGES, "checkpoint"]).to_pylist()[0]
        ended.append(datetime.fromisoformat(manifest.created_at).timestamp())
        worked.append(sum(row[stage] for stage in STAGES))
        plain.append(row["checkpoint"] is None)
    total = np.array([b - a for a, b in pairwise(ended)])
    overhead = total - np.array(worked[1:])
    # The step after a checkpoint pays for it.
    ordinary = np.array(plain[:-1])
    print(f"{'steps':>12} {'whole ms':>9} {'stages ms':>10} {'overhead ms':>12} {'memory MiB':>11}")
    for part in np.array_split(np.arange(len(total)), 10):
        chosen = part[ordinary[part]]
        resident = [m for t, m in memory if ended[part[0]] <= t <= ended[part[-1] + 1]]
        print(
            f"{part[0] + 2:5} - {part[-1] + 2:4} {1e3 * np.median(total[chosen]):9.1f} "
            f"{1e3 * np.median(np.array(worked[1:])[chosen]):10.1f} {1e3 * np.median(overhead[chosen]):12.1f} "
            f"{np.mean(resident) if resident else float('nan'):11.0f}"
        )
    print(f"stages: {sum(worked):.1f} s in all")


if __name__ == "__main__":
    main()
