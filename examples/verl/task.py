"""A task of verl's: its problems as Parquet, when run, and its reward function."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from polyepo.integrations.method import Method

DOMAIN = Method.load(Path(__file__).with_name("method.yaml")).domain
PROBLEMS = {p.problem_id: p for split in ("train", "heldout") for p in DOMAIN.problems(split)}


def compute_score(data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any]) -> float:
    """The domain's verifier as verl's reward function; any other does as well."""
    return float(DOMAIN.verify(PROBLEMS[extra_info["problem_id"]], solution_str).reward)


def write(folder: Path) -> None:
    """Write train.parquet and heldout.parquet with verl's columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "heldout"):
        rows = [
            {
                "prompt": problem.prompt,
                "data_source": DOMAIN.name,
                "reward_model": {"style": "rule", "ground_truth": problem.answer or ""},
                "extra_info": {"problem_id": problem.problem_id, **problem.metadata},
            }
            for problem in DOMAIN.problems(split)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
