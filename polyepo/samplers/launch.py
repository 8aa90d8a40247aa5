"""A vLLM server that belongs to this process: started, looked after and ended by it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from polyepo.samplers.settings import VLLMLaunch
from polyepo.supervised import Supervised

_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # weights are refreshed through its endpoints; the server listens on loopback only
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
# They describe this process's Python, and the server has its own.
_NOT_INHERITED = frozenset({"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"})


class LaunchedServer(Supervised):
    """A server process under a supervisor; both are gone when this process is, by SIGKILL too.

    Args:
        launch: interpreter, further arguments and environment.
        arguments: arguments of vLLM's API server that the run decides.
    """

    def __init__(self, launch: VLLMLaunch, arguments: list[str]) -> None:
        super().__init__("vllm", launch.logs, grace_s=10)
        self._python = launch.program()
        self._launch = launch
        self._arguments = arguments
        self.url = ""

    def prepare_model(self) -> Path:
        """End what may be left of the last server; returns an empty folder for the model, `scratch`/model."""
        self.prepare()
        model = self.scratch / "model"
        model.mkdir()
        return model

    def serve(self) -> None:
        """Start the server on the model in `scratch`/model; it is not ready yet."""
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [
            self._python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port),
            "--model", str(self.scratch / "model"), *self._arguments, *self._launch.args,
        ]  # fmt: skip
        inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        self.start(command, inherited | _ENVIRONMENT | self._launch.environment, label=str(port))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
