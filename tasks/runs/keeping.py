"""Which checkpoints of a run stay, and making room of the others."""

from __future__ import annotations

from pathlib import Path

from polyepo.errors import ConfigError
from polyepo.policy.source import identify
from storage.removal import remove_files
from tasks.runs.record import read_record
from tasks.runs.run import Run


def remove_old_checkpoints(run: Run) -> list[int]:
    """Remove the files of committed checkpoints that `keep_checkpoints` does not keep; returns their steps.

    Any step is replayed from the checkpoint before it, or from the model that the run began with. Where that model is
    no longer what it was, the first checkpoint stays in its place.
    """
    keep = run.config.keep_checkpoints
    if keep is None:
        return []
    steps = run.store.steps(run.name, "checkpoints")  # waits for one that is being uploaded
    kept = {*steps[-keep.last :], *(step for step in steps if keep.every and step % keep.every == 0)}
    if len(kept) < len(steps) and not _begins_again(run):
        kept |= {*steps[:1]}
    removed = [step for step in steps if step not in kept]
    for step in removed:
        remove_files(run.store, run.key("checkpoints", step), f"keep_checkpoints: {keep.model_dump_json()}")
    return removed


def _begins_again(run: Run) -> bool:
    """Whether the model that the run began with can still be loaded as it was."""
    if run.forked_from is not None or run.config.policy.warm_start:
        return True  # in the store
    record = read_record(run.store, run.name)
    recorded = record.model if record else None
    try:
        found = identify(run.config.policy)
    except ConfigError:
        return False
    return recorded is None or found == recorded or not Path(str(run.config.policy.model)).is_dir()
