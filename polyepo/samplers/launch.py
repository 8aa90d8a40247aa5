"""A vLLM server that belongs to this process: started, looked after and ended by it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from polyepo.samplers.settings import VLLMLaunch

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # weights are refreshed through its endpoints; the server listens on loopback only
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
# They describe this process's Python, and the server has its own.
_NOT_INHERITED = frozenset({"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"})


class LaunchedServer:
    """A server process under a supervisor; both are gone when this process is, by SIGKILL too.

    Args:
        launch: interpreter, further arguments and environment.
        arguments: arguments of vLLM's API server that the run decides.
    """

    def __init__(self, launch: VLLMLaunch, arguments: list[str]) -> None:
        self._python = launch.program()
        self._launch = launch
        self._arguments = arguments
        self._supervisor: subprocess.Popen[bytes] | None = None
        self.scratch = Path()
        self.log = Path()
        self.url = ""

    @property
    def alive(self) -> bool:
        """Whether the supervisor runs; it ends with the server."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def prepare(self) -> Path:
        """End what may be left of the last server; returns an empty folder for the model, `scratch`/model."""
        self.stop()
        self.scratch = Path(tempfile.mkdtemp(prefix="polyepo-vllm-"))
        model = self.scratch / "model"
        model.mkdir()
        return model

    def start(self) -> None:
        """Start the server on the model in `scratch`/model; it is not ready yet."""
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        logs = Path(self._launch.logs)
        logs.mkdir(parents=True, exist_ok=True)
        self.log = (logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{port}.log").absolute()
        command = [
            self._python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port),
            "--model", str(self.scratch / "model"), *self._arguments, *self._launch.args,
        ]  # fmt: skip
        inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        with self.log.open("ab") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", str(_SUPERVISOR), str(self.scratch), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=inherited | _ENVIRONMENT | self._launch.environment,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End the server and everything it started."""
        if self._supervisor is None:
            return
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._supervisor.wait(20)
        # If it was the supervisor that was killed, its session is still there.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._supervisor.pid, signal.SIGKILL)
        self._supervisor.wait()
        self._supervisor = None
        shutil.rmtree(self.scratch, ignore_errors=True)

    def last_words(self) -> str:
        """The last different errors in the server's log, and where the rest is."""
        text = self.log.read_text(errors="replace")
        errors = dict.fromkeys(re.findall(r"\b\w*(?:Error|Exception): .*", text))
        return "\n".join([*(list(errors) or text.splitlines())[-6:], f"(all of it: {self.log})"])


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
