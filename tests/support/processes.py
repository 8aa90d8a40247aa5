"""Processes of their own: flows, servers, and what is left of them."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

STEPS = 30
PROJECT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def until(holds, seconds=60):
    """What `holds` returns, once that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := holds():
            return value
        time.sleep(0.2)
    raise AssertionError("it did not happen")


def left_behind(folder):
    """Processes that run in a folder, or whose command names it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if command and (Path(os.readlink(process / "cwd")).is_relative_to(folder) or str(folder) in command):
                found.append(command)
    return found


def start(environment, code):
    """A Python process with a flow in it."""
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def kill_at(process, progress, point, later):
    """Kill a process `later` seconds after its progress has reached a point; it must not have ended by then."""
    while progress() < point and process.poll() is None:
        time.sleep(0.002)
    time.sleep(later)
    assert process.poll() is None, process.communicate()[0][-3000:]
    process.kill()
    process.wait()


def start_flow(environment, config, root):
    return start(environment, f"from flows.train import train; train({str(config)!r}, run='run', root={str(root)!r})")


def finish(process):
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output[-3000:]
    return output


def wait_until_gone(pids):
    for _ in range(3000):
        if not any(is_running(pid) for pid in pids):
            return
        time.sleep(0.01)
    raise AssertionError(f"still there: {pids}")


def is_running(pid):
    """Whether a process runs; one that only waits for its parent's notice does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
