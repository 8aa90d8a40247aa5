"""Poly-EPO's judge and advantages inside TRL's GRPOTrainer (written for trl 1.16): `pip install 'poly-epo[trl]'`.

Sampling, reward functions, loss and update stay TRL's. Use `loss_type="dr_grpo"` for the paper's loss; `scale_rewards`
has no effect. `num_generations` is N.

    PolyEPOTrainer(method=Method.load("method.yaml"), model=..., reward_funcs=..., args=..., train_dataset=...)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyepo.extras import require

require("trl", "trl", "torch")

import torch
from accelerate.utils import broadcast_object_list, gather_object
from trl import GRPOTrainer

from polyepo.integrations.method import Method, statistics, write_rollouts

# What TRL's rows have besides the data set's own columns.
_TRLS = ("prompt", "completion", "completion_ids")
_ANSWERS = ("answer", "solution")


class PolyEPOTrainer(GRPOTrainer):
    """GRPOTrainer with the advantages of any of Poly-EPO's scorings, of clusters by any judge.

    A row's `answer` (or `solution`) and `problem_id`, if it has them, are the problem's; other columns its metadata.
    Each step's responses are written to `rollouts/` in the output directory, which `polyepo import` reads.

    Args:
        method: judge, scoring, and the domain of a judge by program.
        args, kwargs: as for GRPOTrainer.

    Raises:
        ConfigError: the judge cannot work here, or N responses to a prompt cannot be scored so.
    """

    def __init__(self, *args: Any, method: Method, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        method.check(self.num_generations)
        self._method = method
        self._set_advantages: list[float] = []

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids: list[Any]
    ) -> torch.Tensor:
        """TRL's rewards by function, (B * N, functions) of all processes; advantages are computed on the way."""
        by_function = super()._calculate_rewards(inputs, prompts, completions, completion_ids)
        if self.model.training:
            rewards = (by_function * self.reward_weights.to(by_function.device)).nansum(1)
            rewards[by_function.isnan().all(1)] = torch.nan  # no function graded it, which is no 0
            # A prompt's responses may be on several processes, and are judged together.
            columns = [{name: value for name, value in row.items() if name not in _TRLS} for row in inputs]
            rows = gather_object(list(zip(prompts, completions, columns, strict=True)))
            scored: list[Any] = [None, None]
            if self.accelerator.is_main_process:
                scored = list(self._scored(rows, rewards.tolist()))
            self._set_advantages, strategies = broadcast_object_list(scored)
            first = self.accelerator.process_index * len(prompts)
            self._log_completion_extra("strategy", strategies[first : first + len(prompts)])
        return by_function

    def _scored(
        self, rows: Sequence[tuple[Any, Any, dict[str, Any]]], rewards: list[float]
    ) -> tuple[list[float], list[str | None]]:
        """Advantage and strategy of each of a step's responses, groups one after the other; writes them down."""
        size, step, method = self.num_generations, self.state.global_step + 1, self._method
        groups, grouped = [], []
        for start in range(0, len(rows), size):
            prompts, completions, columns = zip(*rows[start : start + size], strict=True)
            answer = next((columns[0][name] for name in _ANSWERS if name in columns[0]), None)
            others = {name: value for name, value in columns[0].items() if name not in _ANSWERS}
            groups.append(method.group(prompts[0], answer, others, completions))
            grouped.append(rewards[start : start + size])
        labels = method.label(groups)
        advantages = method.advantages(step, grouped, labels)
        for name, value in statistics(grouped, labels).items():
            self._metrics["train"][f"strategies/{name}"].append(value)
        part = self._step % self.args.gradient_accumulation_steps  # TRL may sample more than once in a step
        path = Path(self.args.output_dir, "rollouts", f"step-{step:06d}-{part}.jsonl")
        write_rollouts(path, step, groups, grouped, labels, advantages)
        strategies = [
            None if label.cluster is None else str(label.macro_strategy or label.cluster)
            for group in labels
            for label in group
        ]
        return [advantage for group in advantages for advantage in group], strategies

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """What TRL makes of a step, with Poly-EPO's advantages in place of GRPO's."""
        made: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.model.training:
            theirs = made["advantages"]
            ours = torch.tensor(self._set_advantages, dtype=theirs.dtype, device=theirs.device)
            first = self.accelerator.process_index * len(theirs)
            made["advantages"] = ours[first : first + len(theirs)]
            logged = self._logs["advantages"]
            for _ in range(len(ours)):
                logged.pop()
            logged.extend(ours.tolist())
        return made
