"""Comparing mathematical answers in processes that can be killed, each with so much processor time and memory.

math-verify's own time-out is an alarm signal: off the main thread it silently fails everything, and no handler runs
while C code computes. A limit on wall time would let the reward depend on who else uses the machine. So the kernel
counts a comparison's processor time, and ends a worker that uses up its share.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import NamedTuple

from polyepo.domains.notation import squeezed
from polyepo.extras import require

_MAX_BYTES = 4 * 2**30
"""Address space of a worker: an answer that asks for more, such as a huge power, is not compared."""

_STUCK_SECONDS = 900.0
"""A worker that uses no processor time and says nothing for so long is given up: nothing else ends it."""

_MAX_ATTEMPTS = 2
"""A worker that ends early may have been filled by earlier comparisons, or been killed from outside."""


class Comparison(NamedTuple):
    """Whether two answers are equal; None if that could not be found out, and why: timeout, memory or crashed."""

    equal: bool | None
    failure: str | None = None


class EquivalencePool:
    """Worker processes that say whether two answers are equal. They end with this process."""

    def __init__(self, num_workers: int, processor_s: float) -> None:
        self._num_workers = num_workers
        self._processor_s = processor_s
        self._idle: list[_Worker] = []
        atexit.register(self.close)

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
        """Compare each (reference, answer). Equal text needs no worker, and equal pairs are compared once."""
        found = {pair: Comparison(True) for pair in pairs if squeezed(pair[0]) == squeezed(pair[1])}
        waiting = deque((pair, 1) for pair in dict.fromkeys(pairs) if pair not in found)
        busy: dict[_Worker, tuple[tuple[str, str], int, float]] = {}
        with selectors.DefaultSelector() as selector:
            while waiting or busy:
                while waiting and len(busy) < self._num_workers:
                    pair, attempt = waiting.popleft()
                    worker = self._take()
                    busy[worker] = (pair, attempt, monotonic() + _STUCK_SECONDS)
                    selector.register(worker.replies, selectors.EVENT_READ, worker)
                    worker.ask(pair)
                nearest = min(deadline for _, _, deadline in busy.values())
                ready = {key.data for key, _ in selector.select(max(0.0, nearest - monotonic()))}
                for worker, (pair, attempt, deadline) in list(busy.items()):
                    if worker not in ready and monotonic() < deadline:
                        continue
                    selector.unregister(worker.replies)
                    del busy[worker]
                    result = worker.answer() if worker in ready else Comparison(None, "timeout")
                    if result.failure:
                        worker.kill()
                    else:
                        self._idle.append(worker)
                    if result.failure in ("memory", "crashed") and attempt < _MAX_ATTEMPTS:
                        waiting.append((pair, attempt + 1))
                    else:
                        found[pair] = result
        return [found[pair] for pair in pairs]

    def _take(self) -> _Worker:
        with contextlib.suppress(IndexError):  # another thread may take the last one
            return self._idle.pop()
        return _Worker(self._processor_s)

    def close(self) -> None:
        """Stop the workers."""
        while self._idle:
            self._idle.pop().kill()


class _Worker:
    """One process. It talks JSON lines, so that nothing is unpickled and no main module is imported again."""

    def __init__(self, processor_s: float) -> None:
        require("judge", "sympy", "latex2sympy2_extended", "math_verify")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "polyepo.domains.equivalence", str(processor_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._questions, self.replies = self._process.stdin, self._process.stdout

    def ask(self, pair: tuple[str, str]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the missing answer says so
            self._questions.write(json.dumps(pair).encode() + b"\n")
            self._questions.flush()

    def answer(self) -> Comparison:
        line = self.replies.readline()
        if line in _REPLIES:
            return _REPLIES[line]
        ended = self._process.wait()
        return Comparison(None, "timeout" if ended == -signal.SIGPROF else "crashed")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.replies.close()
        with contextlib.suppress(BrokenPipeError):
            self._questions.close()


_REPLIES = {b"true\n": Comparison(True), b"false\n": Comparison(False), b'"memory"\n': Comparison(None, "memory")}


def _serve(processor_s: float) -> None:
    """Answer questions until the parent goes. The kernel's SIGPROF, which nobody handles, ends a long comparison."""
    import resource  # not everywhere, and needed here alone

    from polyepo.domains.comparison import equal

    logging.disable()
    with contextlib.suppress(ValueError, OSError):  # not every system can limit it
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever a parser prints is no reply
    equal("1/2", "0.5")  # what is built at first use is no part of anyone's comparison
    for line in sys.stdin.buffer:
        reply: bool | str
        signal.setitimer(signal.ITIMER_PROF, processor_s)
        try:
            reply = equal(*json.loads(line))
        except MemoryError:
            reply = "memory"
        except Exception:  # anything else that hostile text does to a parser means: not equal
            reply = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    _serve(float(sys.argv[1]))
