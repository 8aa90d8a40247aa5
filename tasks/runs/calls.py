"""Judge calls in the store: committed while a shard is judged, so that no answer is paid for twice.

Attempts that gave no labels are kept beside the answers, each with its error; which is which the judge sees.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from polyepo.judges import Call, CallLog, Judge
from polyepo.schemas import JUDGE_CALLS
from storage import ArtifactKey
from tasks.runs.run import Run

FIRST_EVALUATION_SHARD = 1000
"""Shards of a step's evaluations follow those of its training, which have the numbers from 0."""
_CHUNKS_PER_SHARD = 10_000
_FIRST_COMMIT_S = 2.0
# Artifacts grow with a shard's age, so a day's judging makes hundreds of them, and a kill loses 2 % of it at most.
_COMMIT_SHARE = 0.02
_OPEN_CHUNKS = 8


class RunCalls:
    """A run's calls of judges, by request: found in the store once, kept up to date from then on."""

    def __init__(self, run: Run, judge: Judge) -> None:
        self._store = run.store
        self._judge_id = judge.judge_id
        self._run = run.name
        self._lock = threading.Lock()
        self._where: dict[str, list[ArtifactKey]] = {}
        self._open: OrderedDict[ArtifactKey, dict[str, list[Call]]] = OrderedDict()
        self.spent = 0.0
        """What this judge's calls in this run have cost; at most, where that is not known."""
        names = run.store.run_names() if judge.reuses_all_runs else []
        every = dict.fromkeys([run.name, *names])
        of_runs = run.store.each(lambda name: run.store.artifacts(name, "judge_calls"), every)
        keys = [key for found in of_runs for key in found]
        for key, calls in zip(keys, run.store.each(self._read_without_replies, keys), strict=True):
            self._learn(key, calls)

    def find(self, request_sha256: str) -> list[Call]:
        """The calls of a request, oldest first."""
        with self._lock:
            return [call for key in self._where.get(request_sha256, ()) for call in self._chunk(key)[request_sha256]]

    def add_cost(self, cost: float) -> None:
        """Count what a call cost, or the most that it can have cost."""
        with self._lock:
            self.spent += cost

    def add(self, key: ArtifactKey, calls: list[Call]) -> None:
        """Note the calls of an artifact."""
        with self._lock:
            self._note(key, calls)

    def _note(self, key: ArtifactKey, calls: list[Call]) -> None:
        for request in dict.fromkeys(call.request_sha256 for call in calls):
            self._where.setdefault(request, []).append(key)

    def _chunk(self, key: ArtifactKey) -> dict[str, list[Call]]:
        if key not in self._open:
            found: dict[str, list[Call]] = {}
            for call in _calls_in(self._store.read_table(key)):
                found.setdefault(call.request_sha256, []).append(call)
            self._open[key] = found
            if len(self._open) > _OPEN_CHUNKS:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return self._open[key]

    def _read_without_replies(self, key: ArtifactKey) -> list[Call]:
        return _calls_in(self._store.read_table(key).drop_columns("raw_reply"))

    def _learn(self, key: ArtifactKey, calls: list[Call]) -> None:
        self._note(key, calls)
        if key.run == self._run and dict(key.partition).get("judge") == self._judge_id:
            self.spent += sum(call.booked for call in calls)


class ShardCalls(CallLog):
    """The calls of one shard, committed in chunks from a thread of its own."""

    def __init__(self, run: Run, judge: Judge, step: int, shard: int) -> None:
        super().__init__()
        self._run = run
        self._judge_id = judge.judge_id
        self._step = step
        self._shard = shard
        self._known = run_calls(run, judge)
        self._lock = threading.Lock()
        self._pending: list[Call] = []
        self._fresh: dict[str, list[Call]] = {}
        self._failure: Exception | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._commit_now_and_then, name="judge-calls", daemon=True)
        self._num_chunks = 0
        committed = {key.shard for key in run.store.artifacts(run.name, "judge_calls", self._key(0).partition, step)}
        while self._key(self._num_chunks).shard in committed:
            self._num_chunks += 1
        self._thread.start()

    @property
    def keys(self) -> list[ArtifactKey]:
        """The artifacts with this shard's calls."""
        return [self._key(chunk) for chunk in range(self._num_chunks)]

    def earlier(self, request_sha256: str) -> list[Call]:
        """Calls of an identical request, oldest first: of this shard, and wherever else the judge looks for them."""
        with self._lock:
            fresh = list(self._fresh.get(request_sha256, ()))
        return [*self._known.find(request_sha256), *fresh]

    def record(self, call: Call) -> None:
        """Keep a call. Raises what kept earlier calls from being committed: then no more are to be made."""
        with self._lock:
            self._pending.append(call)
            self._fresh.setdefault(call.request_sha256, []).append(call)
        self._known.add_cost(call.booked)
        if self._failure is not None:
            raise self._failure

    def spent(self) -> float:
        """What the judge's calls in this run have cost; at most, where that is not known."""
        return self._known.spent

    def close(self) -> None:
        """Commit what is left."""
        self._closed.set()
        self._thread.join()
        self._commit()

    def _commit_now_and_then(self) -> None:
        started = time.monotonic()
        while not self._closed.wait(max(_FIRST_COMMIT_S, _COMMIT_SHARE * (time.monotonic() - started))):
            try:
                self._commit()
            except Exception as error:
                self._failure = error
                return

    def _commit(self) -> None:
        with self._lock:
            calls, self._pending = self._pending, []
        if not calls:
            return
        constant = {"run": self._run.name, "step": self._step, "judge": self._judge_id}
        table = pa.Table.from_pylist([constant | call._asdict() for call in calls], schema=JUDGE_CALLS)
        try:
            key = self._commit_table(table)
        except BaseException:
            with self._lock:
                self._pending = calls + self._pending
            raise
        self._known.add(key, calls)
        with self._lock:
            for call in calls:
                self._fresh[call.request_sha256].remove(call)

    def _commit_table(self, table: pa.Table) -> ArtifactKey:
        provenance = self._run.provenance(self._step - 1)
        store = self._run.store
        while True:
            key = self._key(self._num_chunks)
            self._num_chunks += 1
            store.commit_table(key, table, table_name="judge_calls", provenance=provenance)
            # Another process may be judging the same shard: what it committed under this number is not ours.
            if store.read_table(key, table.column_names).equals(table):
                return key

    def _key(self, chunk: int) -> ArtifactKey:
        number = self._shard * _CHUNKS_PER_SHARD + chunk
        return self._run.key("judge_calls", self._step, number, judge=self._judge_id)


@contextmanager
def kept_calls(run: Run, judge: Judge, step: int, shard: int) -> Iterator[ShardCalls | None]:
    """A log that keeps a shard's calls in the store; None for a judge that makes none."""
    if not judge.makes_calls:
        yield None
        return
    calls = ShardCalls(run, judge, step, shard)
    try:
        yield calls
    finally:
        calls.close()


_LOCK = threading.Lock()
_RUN_CALLS: dict[Any, RunCalls] = {}


def run_calls(run: Run, judge: Judge) -> RunCalls:
    """One object per run and judge in a process, so that shards that overlap see each other's answers and costs."""
    with _LOCK:
        key = run.store.root, run.name, judge.judge_id, judge.reuses_all_runs
        if key not in _RUN_CALLS:
            _RUN_CALLS[key] = RunCalls(run, judge)
        return _RUN_CALLS[key]


def _calls_in(table: pa.Table) -> list[Call]:
    """The rows of a table as calls. Those of earlier versions have no cost_bound: what they may have cost is lost."""
    rows: list[dict[str, Any]] = table.to_pylist()
    return [Call._make(row.get(name) for name in Call._fields) for row in rows]
