"""A run's policy as a directory that transformers loads."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from polyepo.config import ConfigError
from tasks.runs.run import Run

# A checkpoint holds these besides the model.
_NOT_THE_MODELS = ("optimizer.safetensors", "trainer_state.json")


def check_output(folder: Path) -> None:
    """Raise ConfigError if a folder cannot be made."""
    if folder.exists():
        raise ConfigError(f"output {str(folder)!r} exists already; nothing is overwritten")
    if not folder.absolute().parent.is_dir():
        raise ConfigError(f"output {str(folder)!r}: there is no folder {str(folder.absolute().parent)!r}")


def export_policy(
    run: Run, step: int, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Write the policy after a step, from its checkpoint or else by applying the committed updates again.

    The folder appears when it is whole. `progress` is told how many of the updates are applied.

    Raises:
        ConfigError: the folder exists.
        ReplayError: an update does not reproduce what the run recorded.
    """
    check_output(folder)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.absolute().parent) as scratch:
        whole = Path(scratch) / "model"
        whole.mkdir()
        owner = run.owner(step)
        key = owner.key("checkpoints", step)
        if (checkpoint := owner.store.manifest(key)) and step in owner.store.steps(owner.name, "checkpoints"):
            there = owner.store.local_files(key, verify=True)
            for file in checkpoint.files:  # what else lies there is nobody's
                if file.path not in _NOT_THE_MODELS:
                    shutil.copyfile(there / file.path, whole / file.path)
        else:
            from tasks.runs.policies import rebuild  # loads torch

            rebuild(run, step, newest_checkpoint=step, progress=progress).export(whole)
        os.rename(whole, folder)
