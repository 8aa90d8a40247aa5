"""Export a run as one flat table, in a folder that Hugging Face `datasets` loads."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from polyepo.config import ConfigError
from storage import Catalog, rows
from tasks.runs.run import open_run

_BATCH = 4096
_QUERY_BYTES = 16 << 20
"""Of artifacts that one query reads: a few hundred steps of short texts, or one of long ones."""
_FLAT = """
SELECT r.run, r.step, r.problem_id, r.sample, p.domain, p.prompt, p.answer, r.response, s.reward, s.parsed_answer,
       s.judge, s.cluster, s.degenerate, l.macro_strategy, l.micro_strategy, s.scoring, s.advantage, s.ungraded,
       s.answer_class, r.finish_reason, r.response_token_ids, r.sampler_logprobs, r.temperature, r.seed,
       r.policy_version, r.sampler
FROM rollouts r
LEFT JOIN (FROM problems WHERE run = $run AND split = 'train') p USING (problem_id)
LEFT JOIN (FROM scores WHERE run = $run AND step BETWEEN $first AND $last AND scoring = $scoring) s
    USING (step, problem_id, sample)
LEFT JOIN (FROM labels WHERE run = $run AND step BETWEEN $first AND $last) l
       ON l.step = r.step AND l.judge = s.judge AND l.problem_id = r.problem_id AND l.sample = r.sample
WHERE r.run = $run AND r.step BETWEEN $first AND $last AND list_contains($steps, r.step)
ORDER BY r.step, r.problem_id, r.sample
"""
_CARD = """---
configs:
- config_name: default
  data_files: data/rollouts.{suffix}
tags:
- rollouts
- poly-epo
---

# {run}

{num_rows:,} responses of the run `{run}` with rewards, clusters and advantages (scoring `{scoring}`), exported by
poly-epo. One row per response; `run`, `step`, `problem_id` and `sample` name it.
"""


def export_run(
    root: str,
    run: str,
    folder: Path,
    form: Literal["parquet", "jsonl"],
    scoring: str | None,
    steps: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write `data/rollouts.parquet` (or .jsonl) and a dataset card below a new folder; returns the number of rows.

    Some steps are in memory at a time. The folder appears when it is whole.

    Args:
        root: where the run is.
        run: its name.
        folder: to make.
        form: of the table.
        scoring: id of the scoring; the run's own if none is given.
        steps: to write; all if none are given.
        progress: told the number of steps that are written, and of all.

    Raises:
        ConfigError: the run has no rollouts, not this scoring or not one of the steps, or the folder exists.
    """
    catalog = Catalog(root, [run])
    connection, sizes = catalog.connection, catalog.step_bytes(run, "rollouts")
    if not sizes:
        open_run(root, run)  # says so if there is none of this name
        raise ConfigError(f"run {run!r} has no rollouts under {root!r}")
    scorings = rows(connection, "SELECT DISTINCT scoring FROM scores WHERE run = $run ORDER BY scoring", run=run)
    there = [row["scoring"] for row in scorings]
    chosen = scoring or rows(connection, "SELECT scoring FROM runs WHERE run = $run", run=run)[0]["scoring"]
    if scoring is not None and scoring not in there:
        raise ConfigError(f"run {run!r} has no scoring {scoring!r}; it has {there}")
    if missing := sorted(set(steps or ()) - sizes.keys()):
        raise ConfigError(f"steps {missing[:5]} of run {run!r} have no rollouts; it has {min(sizes)} to {max(sizes)}")
    if folder.exists():
        raise ConfigError(f"{str(folder)!r} exists already; nothing is overwritten")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        whole = Path(scratch) / "export"
        (whole / "data").mkdir(parents=True)
        some = {step: sizes[step] for step in sorted(steps or sizes)}
        num_rows = _write_table(connection, whole / "data" / f"rollouts.{form}", run, chosen, some, progress)
        card = _CARD.format(run=run, num_rows=num_rows, scoring=chosen, suffix=form)
        (whole / "README.md").write_text(card, encoding="utf-8")
        whole.rename(folder)
    return num_rows


def _write_table(
    connection: duckdb.DuckDBPyConnection,
    target: Path,
    run: str,
    scoring: str,
    sizes: dict[int, int],
    progress: Callable[[int, int], None],
) -> int:
    """Write the flat table of some steps, a few at a time, as Parquet or JSON lines; returns the number of rows."""
    num_rows, done = 0, 0
    writer: pq.ParquetWriter | None = None
    with target.open("wb") as file, ExitStack() as stack:
        for steps in _batches(sizes):
            parameters = {"run": run, "scoring": scoring, "first": steps[0], "last": steps[-1], "steps": steps}
            table = connection.sql(_FLAT, params=parameters).to_arrow_table()
            num_rows += table.num_rows
            if target.suffix == ".jsonl":
                _write_lines(table, file)
            else:
                writer = writer or stack.enter_context(pq.ParquetWriter(file, table.schema, compression="zstd"))
                writer.write_table(table)
            done += len(steps)
            progress(done, len(sizes))
    return num_rows


def _batches(sizes: dict[int, int]) -> Iterator[list[int]]:
    """Steps in order, as many together as a query may read."""
    batch: list[int] = []
    held = 0
    for step, size in sizes.items():
        if batch and held + size > _QUERY_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(step)
        held += size
    yield batch


def _write_lines(table: pa.Table, file: BinaryIO) -> None:
    for batch in table.to_batches(_BATCH):
        lines = (json.dumps(row, ensure_ascii=False) for row in batch.to_pylist())
        file.write("".join(f"{line}\n" for line in lines).encode())
