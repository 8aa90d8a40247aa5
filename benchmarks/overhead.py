"""What a step costs besides sampling, judging, scoring and updating: Prefect, storage and the rest.

    python benchmarks/overhead.py --steps 1000

Trains the quickstart's Poly-EPO arm through the real flow against a Prefect server of its own, and reads the times from
the artifacts: from one update's commit to the next, less the seconds that the four stages say they worked.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np


def start_server(home: str) -> subprocess.Popen[bytes]:
    """A Prefect server on a free port, with a fresh SQLite database."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "PREFECT_HOME": home,
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    import httpx

    for _ in range(600):
        try:
            if httpx.get(f"{os.environ['PREFECT_API_URL']}/health", timeout=1).json() is True:
                return process
        except httpx.HTTPError:
            time.sleep(0.2)
    raise RuntimeError("the Prefect server did not come up")


def watch_memory(samples: list[tuple[float, float]], done: threading.Event) -> None:
    """Resident memory of this process in MiB, once a second (Linux)."""
    while not done.wait(1.0):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        samples.append((time.time(), pages * os.sysconf("SC_PAGE_SIZE") / 2**20))


def main() -> None:
    """Train, then print milliseconds per step and memory over the course of the run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as scratch:
        server = start_server(f"{scratch}/prefect")
        memory: list[tuple[float, float]] = []
        done = threading.Event()
        threading.Thread(target=watch_memory, args=(memory, done), daemon=True).start()
        try:
            from flows.train import train

            root = f"{scratch}/root"
            train("configs/quickstart.yaml", run="overhead", root=root, settings={"steps": steps, "arms": {}})
        finally:
            done.set()
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)
        report(root, steps, memory)


def report(root: str, steps: int, memory: list[tuple[float, float]]) -> None:
    """One line per tenth of the run; steps with a checkpoint are left out."""
    from tasks.runs.run import open_run

    run = open_run(root, "overhead")
    columns = ["seconds_sample", "seconds_judge", "seconds_score", "seconds_update", "checkpoint"]
    ended, worked, plain = [], [], []
    for step in range(1, steps + 1):
        key = run.key("updates", step)
        manifest = run.store.manifest(key)
        assert manifest is not None
        row = run.store.read_table(key, columns).to_pylist()[0]
        ended.append(datetime.fromisoformat(manifest.created_at).timestamp())
        worked.append(sum(row[c] for c in columns[:4]))
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


if __name__ == "__main__":
    main()
