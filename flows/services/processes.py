"""Processes that outlive the command which started them: one file per process says which one it is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from polyepo.errors import PolyepoError

STATE = Path(".polyepo")
MARK = "POLYEPO_STATE"
"""Set to the absolute STATE in the environment of a process, it is how `terminate_orphans` knows what that started."""
# The child waits for the line that says that its file is written: no process of ours is ever without one.
_WAIT_FOR_FILE = 'read -r _ && exec "$@" </dev/null'


class StackError(PolyepoError, RuntimeError):
    """A process that is needed cannot be used; the message says what to do."""


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Hold the lock on STATE: two commands at once must not start two servers on one database."""
    with open(STATE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def stage(say: Callable[[str], None], doing: str) -> Iterator[None]:
    """Say how long something took."""
    started = time.monotonic()
    yield
    say(f"{doing}: {time.monotonic() - started:.1f} s")


def spawn(name: str, command: list[str], env: dict[str, str], note: str = "", user: str | None = None) -> None:
    """Start a process in a session of its own, with its log in STATE; `note` is kept for `note_of`."""
    with open(STATE / f"{name}.log", "ab") as log:
        process = subprocess.Popen(
            ["/bin/sh", "-c", _WAIT_FOR_FILE, "sh", *command],
            env=env,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=[] if user else None,
        )
    (STATE / f"{name}.pid").write_text("\n".join([str(process.pid), note, " ".join(command)]))
    assert process.stdin is not None
    # One that has ended already is found dead by `wait_for`.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(b"\n")
        process.stdin.close()


def wait_for(name: str, ready: Callable[[], bool], seconds: float) -> None:
    """Wait until a spawned process is ready; if it ends or takes too long, end it and show what it said."""
    deadline = time.monotonic() + seconds
    try:
        while not ready():
            if not is_alive(name):
                raise StackError(f"the {name} process ended at once:\n{_last_lines(name)}")
            if time.monotonic() > deadline:
                raise StackError(f"the {name} process is not ready after {seconds:.0f} s:\n{_last_lines(name)}")
            time.sleep(0.2)
    except BaseException:
        terminate(name)
        raise


def is_alive(name: str) -> bool:
    """Whether the process that was started by this name still runs; another that got its id does not count."""
    pid, command = pid_of(name), _file(name)[2:]
    return pid is not None and bool(command) and command[0] in command_line(pid)


def pid_of(name: str) -> int | None:
    """The process's id, whether or not it still runs."""
    first = _file(name)[:1]
    return int(first[0]) if first and first[0].isdecimal() else None


def note_of(name: str) -> str:
    """What `spawn` was told to keep."""
    return "".join(_file(name)[1:2])


def terminate(name: str, stop_signal: signal.Signals = signal.SIGTERM) -> bool:
    """End a process and all its children; returns whether it ran."""
    pid, running = pid_of(name), is_alive(name)
    if pid is not None and running:
        os.killpg(pid, stop_signal)
        # A worker first stops the flow runs that it has started.
        deadline = time.monotonic() + 45
        while is_alive(name) and time.monotonic() < deadline:
            time.sleep(0.1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    (STATE / f"{name}.pid").unlink(missing_ok=True)
    return running


def terminate_orphans() -> int:
    """End what marked processes have started and left behind, such as a flow whose worker was killed; how many.

    They run in sessions of their own, so only what they inherited tells whose they are (on Linux).
    """
    found = _marked()
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 15
    while _marked() and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in _marked():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(found)


def command_line(pid: int) -> str:
    """The command line of a process; empty if there is none, or only its unreaped remains."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # our own child would else stay a zombie
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    shown = subprocess.run(
        ["ps", "-o", "stat=,args=", "-p", str(pid)],  # noqa: S607 - a fixed command
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    return "" if shown.startswith("Z") else shown


def _marked() -> list[int]:
    mark = f"{MARK}={STATE.absolute()}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # What is left of an ended process has an empty environment.
            if mark in (folder / "environ").read_bytes().split(b"\0") and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def _last_lines(name: str, count: int = 12) -> str:
    log = STATE / f"{name}.log"
    return "\n".join([*log.read_text(errors="replace").splitlines()[-count:], f"(all of it: {log})"])


def _file(name: str) -> list[str]:
    try:
        return (STATE / f"{name}.pid").read_text().split("\n")
    except FileNotFoundError:
        return []
