"""Export a run as one flat table, in a folder that Hugging Face `datasets` loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from polyepo.config import ConfigError
from storage import connect, rows

_BATCH = 4096
_FLAT = """
SELECT r.run, r.step, r.problem_id, r.sample, p.domain, p.prompt, p.answer, r.response, s.reward, s.parsed_answer,
       s.judge, s.cluster, s.degenerate, l.macro_strategy, l.micro_strategy, s.scoring, s.advantage,
       r.finish_reason, r.response_token_ids, r.sampler_logprobs, r.temperature, r.seed, r.policy_version, r.sampler
FROM rollouts r
LEFT JOIN (FROM problems WHERE run = $run) p USING (problem_id)
LEFT JOIN (FROM scores WHERE run = $run AND step = $step AND scoring = $scoring) s USING (problem_id, sample)
LEFT JOIN (FROM labels WHERE run = $run AND step = $step) l
       ON l.judge = s.judge AND l.problem_id = r.problem_id AND l.sample = r.sample
WHERE r.run = $run AND r.step = $step
ORDER BY r.problem_id, r.sample
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


def export_run(root: str, run: str, folder: Path, form: Literal["parquet", "jsonl"], scoring: str | None) -> int:
    """Write `data/rollouts.parquet` (or .jsonl) and a dataset card below a new folder; returns the number of rows.

    One step is in memory at a time.

    Raises:
        ConfigError: the run has no rollouts or not this scoring, or the folder exists.
    """
    connection = connect(root)
    found = rows(connection, "SELECT DISTINCT step FROM rollouts WHERE run = $run ORDER BY step", run=run)
    if not found:
        raise ConfigError(f"run {run!r} has no rollouts under {root!r}")
    scorings = rows(connection, "SELECT DISTINCT scoring FROM scores WHERE run = $run ORDER BY scoring", run=run)
    there = [row["scoring"] for row in scorings]
    chosen = scoring or rows(connection, "SELECT scoring FROM runs WHERE run = $run", run=run)[0]["scoring"]
    if scoring is not None and scoring not in there:
        raise ConfigError(f"run {run!r} has no scoring {scoring!r}; it has {there}")
    data = folder / "data"
    try:
        data.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(f"{str(folder)!r} exists already; nothing is overwritten") from None
    target = data / f"rollouts.{form}"
    num_rows = 0
    writer: pq.ParquetWriter | None = None
    with target.open("wb") as file:
        for step in [row["step"] for row in found]:
            table = connection.sql(_FLAT, params={"run": run, "scoring": chosen, "step": step}).to_arrow_table()
            num_rows += table.num_rows
            if form == "jsonl":
                _write_lines(table, file)
            else:
                writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
                writer.write_table(table)
        if writer is not None:
            writer.close()
    card = _CARD.format(run=run, num_rows=num_rows, scoring=chosen, suffix=form)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return num_rows


def _write_lines(table: pa.Table, file: BinaryIO) -> None:
    for batch in table.to_batches(_BATCH):
        lines = (json.dumps(row, ensure_ascii=False) for row in batch.to_pylist())
        file.write("".join(f"{line}\n" for line in lines).encode())
