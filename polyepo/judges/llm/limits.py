"""What keeps a judge from overrunning its server or its budget. For use within one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from polyepo.errors import PolyepoError


class JudgeError(PolyepoError, RuntimeError):
    """The judge cannot go on; the message says why and what to do. Never holds the API key."""


class RateLimit:
    """Evenly paced admission: in any minute at most `per_minute` units, and one admission more."""

    def __init__(self, per_minute: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds_per_unit = 60 / per_minute if per_minute else 0.0
        self._clock = clock
        self._free_at = -float("inf")

    def reserve(self, units: float) -> float:
        """Take units and return the seconds to wait before using them."""
        now = self._clock()
        start = max(now, self._free_at)
        self._free_at = start + units * self._seconds_per_unit
        return start - now


class Breaker:
    """Opens after so many failed prompts in a row, so that a dead server or a hopeless model costs no more."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._failures = 0

    def success(self) -> None:
        """A prompt was labelled."""
        self._failures = 0

    def failure(self, reason: str) -> None:
        """A prompt was not labelled. Raises JudgeError when that happened too often in a row."""
        self._failures += 1
        if self._failures >= self._limit:
            raise JudgeError(
                f"the judge failed on {self._failures} prompts in a row, the last time because: {reason}. "
                "Check the judge's server and model; answered calls are kept, so resuming asks only for the rest."
            )


class Budget:
    """Money: a call starts only if, at its highest price, the total stays within the limit."""

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self._running: list[float] = []
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def reserve(self, highest: float, spent: Callable[[], float]) -> AsyncIterator[None]:
        """Hold a call's highest price while it runs; waits for running calls if only their actual price can tell."""
        async with self._changed:
            while self._limit is not None and spent() + sum(self._running) + highest > self._limit:
                if not self._running:
                    raise JudgeError(
                        f"judge.max_cost {self._limit:g} is reached: {spent():.4f} is spent (calls whose cost is not "
                        f"known count as the most they can have cost), and the next call may cost {highest:.4f}. "
                        "Answered calls are kept; raise judge.max_cost to go on."
                    )
                await self._changed.wait()
            self._running.append(highest)
        try:
            yield
        finally:
            async with self._changed:
                self._running.remove(highest)
                self._changed.notify_all()
