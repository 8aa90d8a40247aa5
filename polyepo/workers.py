"""Worker processes that answer requests and can be killed, whatever hostile text or a user's code does to them."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import weakref
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Any, NamedTuple

_MAX_ATTEMPTS = 2
"""A worker that ends early may have been filled by earlier requests, or been killed from outside."""


class Reply(NamedTuple):
    """What came of a request: a value, or why there is none (timeout, memory, crashed)."""

    value: Any = None
    failure: str | None = None


def _stop(idle: list[_Worker]) -> None:
    while idle:
        idle.pop().kill()


class WorkerPool:
    """Processes of one command, which reads a request a line (JSON) and writes a reply a line: {"value": ...} or
    {"failure": ...}. They end with this process, and whatever they started ends with them.

    Args:
        command: what a worker runs.
        num_workers: requests under way at a time.
        wall_s: seconds after which a worker that has not answered is given up.
    """

    def __init__(self, command: Sequence[str], num_workers: int, wall_s: float) -> None:
        self._command = list(command)
        self._num_workers = num_workers
        self._wall_s = wall_s
        self._idle: list[_Worker] = []
        weakref.finalize(self, _stop, self._idle)  # when nobody has the pool any more, and at exit

    def ask(self, requests: Sequence[Any]) -> list[Reply]:
        """A reply to each request, in their order; one whose worker ended without a word is asked once more."""
        replies: list[Reply] = [Reply()] * len(requests)
        waiting = deque((index, 1) for index in range(len(requests)))
        busy: dict[_Worker, tuple[int, int, float]] = {}
        try:
            with selectors.DefaultSelector() as selector:
                while waiting or busy:
                    while waiting and len(busy) < self._num_workers:
                        index, attempt = waiting.popleft()
                        worker = self._take()
                        busy[worker] = (index, attempt, monotonic() + self._wall_s)
                        selector.register(worker.replies, selectors.EVENT_READ, worker)
                        worker.ask(requests[index])
                    nearest = min(deadline for _, _, deadline in busy.values())
                    ready = {key.data for key, _ in selector.select(max(0.0, nearest - monotonic()))}
                    for worker, (index, attempt, deadline) in list(busy.items()):
                        if worker not in ready and monotonic() < deadline:
                            continue
                        selector.unregister(worker.replies)
                        del busy[worker]
                        reply = worker.answer() if worker in ready else Reply(failure="timeout")
                        if reply.failure in ("timeout", "memory", "crashed"):
                            worker.kill()
                        else:
                            self._idle.append(worker)
                        if reply.failure in ("memory", "crashed") and attempt < _MAX_ATTEMPTS:
                            waiting.append((index, attempt + 1))
                        else:
                            replies[index] = reply
        finally:
            for worker in busy:  # an interrupted caller leaves nobody at work
                worker.kill()
        return replies

    def close(self) -> None:
        """Stop the workers."""
        _stop(self._idle)

    def _take(self) -> _Worker:
        with contextlib.suppress(IndexError):  # another thread may take the last one
            return self._idle.pop()
        return _Worker(self._command)


class _Worker:
    """One process, in a session of its own. It talks JSON lines, so that nothing is unpickled."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._questions, self.replies = self._process.stdin, self._process.stdout

    def ask(self, request: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the missing answer says so
            self._questions.write(json.dumps(request).encode() + b"\n")
            self._questions.flush()

    def answer(self) -> Reply:
        line = self.replies.readline()
        with contextlib.suppress(ValueError):
            reply = json.loads(line)
            if isinstance(reply, dict) and reply.keys() <= {"value", "failure"}:
                return Reply(**reply)
        # The kernel's SIGPROF is the end of a worker's processor time, if it set itself a limit.
        ended = self._process.poll() if line else self._process.wait()
        return Reply(failure="timeout" if ended == -signal.SIGPROF else "crashed")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.replies.close()
        with contextlib.suppress(BrokenPipeError):
            self._questions.close()
