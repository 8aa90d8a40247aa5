"""Runs a process so that it never outlives the run, however that ends: `supervisor.py SCRATCH GRACE COMMAND...`

It starts as the leader of a session of its own, with the process and all that this starts in it. The run holds the
other end of our standard input: when the run ends, by SIGKILL too, the pipe closes. Standard library alone: it loads in
milliseconds and stays small.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys


def die_with_parent(called: str = "") -> None:
    """Ask Linux for SIGKILL as soon as the thread that started this process ends, however that happens.

    Args:
        called: part of the parent's command line; if it is another's, the parent has died before, and so do we.
    """
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if called:
        with open(f"/proc/{os.getppid()}/cmdline") as command_line:
            if called not in command_line.read():
                os.kill(os.getpid(), signal.SIGKILL)


def main(scratch: str, grace: str, *command: str) -> None:
    """Run the command inside `scratch` until it ends or the parent does; then end the session and delete `scratch`.

    The command has GRACE seconds from SIGTERM to SIGKILL.
    """
    parent = os.getppid()
    # A handler, not SIG_IGN, which the server would inherit.
    signal.signal(signal.SIGTERM, lambda *_: None)
    # There is one thread here, so that code of ours may run in the forked child.
    process = subprocess.Popen(command, cwd=scratch, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
    # A worker that the run forked may hold the pipe open beyond the run's death: the parent's id tells as well.
    while process.poll() is None and os.getppid() == parent:
        if select.select([sys.stdin], [], [], 0.5)[0]:
            break
    if float(grace):
        os.killpg(0, signal.SIGTERM)
        try:
            process.wait(float(grace))
        except subprocess.TimeoutExpired:
            print(f"it did not end within {grace} s of SIGTERM: SIGKILL", file=sys.stderr)
    shutil.rmtree(scratch, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)  # this process included


if __name__ == "__main__":
    main(*sys.argv[1:])
