"""Comparing mathematical answers with math-verify, in processes that can be killed.

math-verify's own timeout is an alarm signal: off the main thread it silently fails everything, and no handler runs
while C code computes. Here each comparison runs in a worker process with a deadline.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import math
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from time import monotonic

_MAX_BYTES = 4 * 2**30
"""Address space of a worker: an answer that asks for more, such as a huge power, is not equal to anything."""

_START_SECONDS = 60
"""A new worker imports math-verify first; its first comparison may take this much longer."""


class EquivalencePool:
    """Worker processes that say whether two answers are equal. They end with this process."""

    def __init__(self, num_workers: int, timeout_s: float) -> None:
        self._num_workers = num_workers
        self._timeout_s = timeout_s
        self._idle: list[_Worker] = []
        atexit.register(self.close)

    def equal(self, pairs: Sequence[tuple[str, str] | None]) -> list[bool]:
        """Whether each (reference, answer) is equal; False for None, for failures and after the deadline."""
        results = [pair is not None and "".join(pair[0].split()) == "".join(pair[1].split()) for pair in pairs]
        waiting = deque(i for i, pair in enumerate(pairs) if pair is not None and not results[i])
        busy: dict[_Worker, tuple[int, float]] = {}
        with selectors.DefaultSelector() as selector:
            while waiting or busy:
                while waiting and len(busy) < self._num_workers:
                    index = waiting.popleft()
                    worker = self._take()
                    busy[worker] = (index, monotonic() + self._timeout_s + (0 if worker.warm else _START_SECONDS))
                    selector.register(worker.replies, selectors.EVENT_READ, worker)
                    worker.ask(pairs[index])
                nearest = min(deadline for _, deadline in busy.values())
                ready = {key.data for key, _ in selector.select(max(0.0, nearest - monotonic()))}
                for worker, (index, deadline) in list(busy.items()):
                    if worker not in ready and monotonic() < deadline:
                        continue
                    selector.unregister(worker.replies)
                    del busy[worker]
                    answer = worker.answer() if worker in ready else None
                    if answer is None:  # too slow, or the worker died, of memory for instance
                        worker.kill()
                    else:
                        results[index] = answer
                        self._idle.append(worker)
        return results

    def _take(self) -> _Worker:
        with contextlib.suppress(IndexError):  # another thread may take the last one
            return self._idle.pop()
        return _Worker(self._timeout_s)

    def close(self) -> None:
        """Stop the workers."""
        while self._idle:
            self._idle.pop().kill()


class _Worker:
    """One process. It talks JSON lines, so that nothing is unpickled and no main module is imported again."""

    def __init__(self, timeout_s: float) -> None:
        self.warm = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "polyepo.domains.equivalence", str(math.ceil(timeout_s))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._questions, self.replies = self._process.stdin, self._process.stdout

    def ask(self, pair: tuple[str, str] | None) -> None:
        with contextlib.suppress(BrokenPipeError):  # the missing answer says so
            self._questions.write(json.dumps(pair).encode() + b"\n")
            self._questions.flush()

    def answer(self) -> bool | None:
        line = self.replies.readline()
        self.warm = True
        return {b"true\n": True, b"false\n": False}.get(line)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.replies.close()
        with contextlib.suppress(BrokenPipeError):
            self._questions.close()


def _serve(limit_s: int) -> None:
    """Answer questions until the parent goes; the kernel ends a comparison that runs on although nobody waits."""
    import resource  # not everywhere, and needed here alone

    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable()
    with contextlib.suppress(ValueError, OSError):  # not every system can limit it
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever a parser prints is no reply
    for line in sys.stdin.buffer:
        signal.alarm(limit_s)
        try:
            reference, answer = json.loads(line)
            gold = parse(f"${reference}$", parsing_timeout=None)
            # All of an answer must be read as one expression; by default the last number in any prose would do.
            latex = [LatexExtractionConfig()]
            given = parse(f"${answer}$", latex, extraction_mode="first_match", parsing_timeout=None)
            equal = bool(gold and given) and bool(verify(gold, given, timeout_seconds=None))
        except Exception:  # anything that hostile text does to a parser means: not equal
            equal = False
        signal.alarm(0)
        replies.write(json.dumps(equal) + "\n")
        replies.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
