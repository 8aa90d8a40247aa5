"""The learning rate of a training step: a function of the step and the settings alone, so that any can be redone."""

from __future__ import annotations

import math

from polyepo.config import UpdateConfig


def learning_rate(config: UpdateConfig, step: int) -> float:
    """The learning rate of a training step (from 1).

    Up to `warmup_steps` W it is lr * step / W. After that a `linear` or `cosine` schedule of S = `schedule_steps` takes
    it from lr down, by the share s = (step - 1 - W) / (S - W) of the steps between that are done: lr * (1 - s), or
    lr * (1 + cos(pi s)) / 2, as torch.optim.lr_scheduler's LinearLR and CosineAnnealingLR after a warm-up. Steps after
    S have the rate of step S, as at a rate of 0 nothing would be learnt.

    Raises:
        ValueError: the schedule needs `schedule_steps`, and has none; a run's record always has.
    """
    if step <= config.warmup_steps:
        return config.lr * (step / config.warmup_steps)
    if config.schedule == "constant":
        return config.lr
    if config.schedule_steps is None:
        raise ValueError(f"update.schedule {config.schedule} needs update.schedule_steps")
    done = min(step, config.schedule_steps) - 1 - config.warmup_steps
    share = done / (config.schedule_steps - config.warmup_steps)
    return config.lr * (1 - share if config.schedule == "linear" else (1 + math.cos(math.pi * share)) / 2)
