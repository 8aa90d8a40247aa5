"""A process of ours, with all that it starts: watched, its output in a log, and gone when this process is."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_SUPERVISOR = Path(__file__).with_name("supervisor.py")


class Supervised:
    """A process under a supervisor; both are gone when this process is, by SIGKILL too.

    Args:
        name: begins the name of its folder.
        logs: folder of the logs.
        grace_s: seconds that it has to end by itself when it is to.
    """

    def __init__(self, name: str, logs: str | Path, grace_s: float) -> None:
        self._name = name
        self._logs = Path(logs)
        self._grace_s = grace_s
        self._supervisor: subprocess.Popen[bytes] | None = None
        self.scratch = Path()
        """A folder of the process's own, deleted with it; it starts there."""
        self.log = Path()

    @property
    def alive(self) -> bool:
        """Whether the supervisor runs; it ends with the process."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def prepare(self) -> None:
        """End what may be left of the last process, and make an empty `scratch`."""
        self.stop()
        self.scratch = Path(tempfile.mkdtemp(prefix=f"polyepo-{self._name}-"))

    def start(self, command: Sequence[str], environment: Mapping[str, str], label: str = "") -> None:
        """Start the process, with exactly this environment; `label` ends the name of its log."""
        self._logs.mkdir(parents=True, exist_ok=True)
        name = "-".join(filter(None, [time.strftime("%Y%m%d-%H%M%S"), str(os.getpid()), label]))
        self.log = (self._logs / f"{name}.log").absolute()
        with self.log.open("ab") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", str(_SUPERVISOR), str(self.scratch), str(self._grace_s), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End the process and everything it started."""
        if self._supervisor is None:
            return
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._supervisor.wait(self._grace_s + 10)
        # If it was the supervisor that was killed, its session is still there.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._supervisor.pid, signal.SIGKILL)
        self._supervisor.wait()
        self._supervisor = None
        shutil.rmtree(self.scratch, ignore_errors=True)

    def last_words(self) -> str:
        """The last different errors in the log, and where the rest is."""
        text = self.log.read_text(errors="replace")
        errors = dict.fromkeys(re.findall(r"\b\w*(?:Error|Exception): .*", text))
        return "\n".join([*(list(errors) or text.splitlines())[-6:], f"(all of it: {self.log})"])
