"""Exact marginal set advantages: closed form and listing every set, side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from polyepo.advantages import marginal_set_advantages
from polyepo.objectives import Floats, Ints, Polychromic


def listed(rewards: Floats, clusters: Ints) -> Floats:
    """The same objective as a plain callable, so that the library has to list the sets."""
    return Polychromic()(rewards, clusters)


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Best of several repeats."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Print one line per size."""
    rng = np.random.default_rng(0)
    print("    N    n      sets  closed form ms  listing ms    ratio   difference")
    for num_responses, set_size in ((8, 4), (16, 8), (20, 10)):
        rewards = rng.integers(0, 2, (1, num_responses)).astype(float)
        clusters = rng.integers(-1, 6, (1, num_responses))

        def closed(r: Floats = rewards, c: Ints = clusters, n: int = set_size) -> Floats:
            return marginal_set_advantages(r, c, n)

        def enumerated(r: Floats = rewards, c: Ints = clusters, n: int = set_size) -> Floats:
            return marginal_set_advantages(r, c, n, listed)

        fast, slow = seconds(closed, 20), seconds(enumerated, 3)
        difference = np.abs(closed() - enumerated()).max()
        sets = math.comb(num_responses, set_size)
        times = f"{1e3 * fast:15.3f} {1e3 * slow:11.3f} {slow / fast:7.1f}x"
        print(f"{num_responses:5} {set_size:4} {sets:9} {times} {difference:12.1e}")
    rewards = rng.integers(0, 2, (64, 1024)).astype(float)
    clusters = rng.integers(-1, 50, (64, 1024))
    took = seconds(lambda: marginal_set_advantages(rewards, clusters, 256), 5)
    print(f"64 prompts of N = 1024, n = 256: {took:.3f} s")


if __name__ == "__main__":
    main()
