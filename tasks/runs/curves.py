"""Curves of a run where people look at them: in TensorBoard, from the rows of its updates table.

`NAMES` has the columns that mean what TRL or verl show under a name of their own; curves of the others are
`poly_epo/{column}`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polyepo.config import ConfigError, RunConfig, Sink
from storage import Store
from tasks.runs.groups import members
from tasks.runs.run import Run, open_run
from tasks.runs.statistics import read_updates

NAMES = {
    # TRL's GRPOTrainer, which reports all of them below train/.
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "lr": "train/learning_rate",
    "reward_mean": "train/reward",
    "entropy": "train/entropy",
    "clip_fraction": "train/clip_ratio/region_mean",
    "truncated_rate": "train/completions/clipped_ratio",
    "logprob_mismatch": "train/sampling/sampling_logp_difference/mean",
    "logprob_mismatch_max": "train/sampling/sampling_logp_difference/max",
    # verl's trainer.
    "seconds_sample": "timing_s/gen",
    "seconds_update": "timing_s/update_actor",
}
_MEAN_LENGTH = "train/completions/mean_length"  # TRL's as well
_NO_CURVES = {"run", "step", "policy_version", "checkpoint"}
_STEPS = 256
"""Whose rows are read together."""


def curves(row: dict[str, Any]) -> dict[str, float]:
    """A row of the updates table as points, by curve; what is not known is no point."""
    known = {name: value for name, value in row.items() if value is not None and name not in _NO_CURVES}
    points = {NAMES.get(name, f"poly_epo/{name}"): float(value) for name, value in known.items()}
    return {**points, _MEAN_LENGTH: row["num_tokens"] / row["num_responses"]}


class TensorBoardWriter:
    """An event file, by torch's own writer.

    It tells readers to forget what older files in its folder say, so that a run whose process was killed has each
    point once: whoever opens one writes all steps, from the first on.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        self._writer = SummaryWriter(str(folder), purge_step=0)

    def write(self, step: int, points: dict[str, float], time: float) -> None:
        """Points of a step, by curve, and when they were made, in seconds since 1970."""
        for name, value in points.items():
            self._writer.add_scalar(name, value, step, walltime=time)

    def flush(self) -> None:
        """What was written is seen by readers."""
        self._writer.flush()

    def close(self) -> None:
        """Nothing more is written."""
        self._writer.close()


_WRITERS: dict[Sink, type[TensorBoardWriter]] = {"tensorboard": TensorBoardWriter}


class LiveCurves:
    """The curves that a run's `metrics` asks for, while it trains; as it goes on, of all of its steps."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._writers = [_WRITERS[sink](_folder(run, sink)) for sink in dict.fromkeys(run.config.metrics)]
        self._written = 0
        if self._writers:
            self.write(run.last_step())

    def write(self, last: int) -> None:
        """Write the steps up to a committed one that are not written yet."""
        for writer in self._writers:
            for _ in _write(self._run, range(self._written + 1, last + 1), writer):
                pass
        self._written = max(self._written, last)

    def close(self) -> None:
        """Nothing more is written."""
        for writer in self._writers:
            writer.close()


def write_curves(
    root: str,
    name: str,
    sink: Sink,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Write the curves of a run, or of each arm of a configuration, below a folder, in one named as the run.

    Args:
        root: where the runs are.
        name: of a run or a configuration.
        sink: whose files to write.
        folder: where to; what is there of the same runs is replaced.
        progress: told how many steps are written, and of how many.

    Returns:
        The names of the runs.

    Raises:
        ConfigError: there is no such run, it has no steps, or the sink's package is not here.
    """
    check_packages([sink])
    runs = [open_run(root, each) for each in members(root, name)]
    steps = {run.name: range(1, run.last_step() + 1) for run in runs if run.last_step()}
    if not steps:
        raise ConfigError(f"run {name!r} has no training steps under {root!r} yet, so there are no curves")
    done, total = 0, sum(map(len, steps.values()))
    for run in runs:
        if run.name in steps:
            writer = _WRITERS[sink](folder / run.name)
            for _ in _write(run, steps[run.name], writer):
                done += 1
                progress(done, total)
            writer.close()
    return list(steps)


def check_metrics(store: Store, config: RunConfig) -> None:
    """Raise ConfigError if what a run's `metrics` asks for cannot be written here."""
    check_packages(config.metrics)
    if config.metrics and store.files.fs is not None:
        raise ConfigError(
            f"metrics: {config.metrics[0]} writes into a folder of this machine below the root, and {store.root!r} is "
            "none: leave it out, and write the curves whenever you want by polyepo metrics RUN FOLDER"
        )


def check_packages(sinks: Iterable[Sink]) -> None:
    """Raise ConfigError if the package that writes curves is not installed."""
    for sink in sinks:
        if find_spec(sink) is None:
            raise ConfigError(f"metrics: {sink} needs its package: pip install 'poly-epo[{sink}]', or leave it out")


def _folder(run: Run, sink: Sink) -> Path:
    return Path(run.store.files.url(sink)) / run.name


def _write(run: Run, steps: range, writer: TensorBoardWriter) -> Iterator[int]:
    """Write steps in order; yields each that is written."""
    for first in range(0, len(steps), _STEPS):
        some = steps[first : first + _STEPS]
        for step, row in zip(some, read_updates(run, some), strict=True):
            manifest = run.store.manifest(run.key("updates", step))
            assert manifest is not None
            writer.write(step, curves(row), datetime.fromisoformat(manifest.created_at).timestamp())
            yield step
        writer.flush()
