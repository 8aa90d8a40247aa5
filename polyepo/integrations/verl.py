"""Poly-EPO's judge and advantages inside verl (written for 0.9.1, V1 trainer): `pip install 'poly-epo[verl]'`.

Sampling, reward functions, loss and update stay verl's. `examples/verl` has the command; what it takes:

    VERL_USE_EXTERNAL_MODULES=polyepo.integrations.verl    verl imports this module, in every process
    trainer.v1.trainer_mode=poly_epo                       the synchronous trainer, and a judge before the advantages
    algorithm.adv_estimator=poly_epo                       the estimator, which takes the clusters from there
    +poly_epo.method=/where/method.yaml                    judge, scoring, domain, seed

verl hands an estimator rewards and prompts' ids, and a reward function one response at a time: neither can judge a
group. Hence the trainer, which has them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyepo.extras import require

require("verl", "verl", "transfer_queue", "torch")

import torch
import transfer_queue as tq
from verl.trainer.ppo.core_algos import register_adv_est
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from polyepo.errors import ConfigError
from polyepo.integrations.method import Method, statistics, write_rollouts
from polyepo.judges import Group, Label

NAME = "poly_epo"


@dataclass
class _Judged:
    """A batch's groups, while its advantages are computed."""

    method: Method
    step: int
    uids: list[str]
    rows: list[list[int]]
    """Each group's rows in the batch."""
    groups: list[Group]
    labels: list[list[Label]]
    advantages: list[list[float]]


_judged: ContextVar[_Judged] = ContextVar("judged")


@register_adv_est(NAME)
def poly_epo_advantages(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: Sequence[str], **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages (batch, tokens) by the method's scoring, twice: verl's returns are the same; 0 for padding rows.

    Args:
        token_level_rewards: (batch, tokens); their sum is a response's reward.
        response_mask: (batch, tokens), 1 for the policy's own tokens.
        index: (batch,) the prompt's id of each row.

    Raises:
        ConfigError: another trainer asks, which has judged nothing.
    """
    judged = _judged.get(None)
    if judged is None or list(index) != judged.uids:
        raise ConfigError(f"algorithm.adv_estimator={NAME} needs its judge: set trainer.v1.trainer_mode={NAME}")
    rewards = token_level_rewards.sum(-1).tolist()
    grouped = [[rewards[row] for row in rows] for rows in judged.rows]
    judged.advantages = judged.method.advantages(judged.step, grouped, judged.labels)
    values = torch.zeros(len(rewards), dtype=torch.float32, device=response_mask.device)
    for rows, advantages in zip(judged.rows, judged.advantages, strict=True):
        values[rows] = values.new_tensor(advantages)
    spread = values[:, None] * response_mask
    return spread, spread


@register_trainer(NAME)
class PolyEPOTrainer(PPOTrainerSync):
    """verl's synchronous trainer, which judges each batch's groups before its advantages are computed.

    A row's `reward_model.ground_truth` is the problem's answer, its `extra_info` the problem's metadata. Responses are
    written to `rollouts/` in trainer.default_local_dir, which `polyepo import` reads.
    """

    def __init__(self, config: Any) -> None:
        if not (config.get(NAME) or {}).get("method"):
            raise ConfigError(f"give judge and scoring by a file: +{NAME}.method=/where/method.yaml")
        self._method = Method.load(config[NAME].method)
        self._method.check(config.actor_rollout_ref.rollout.n)
        config.trainer.v1.trainer_mode = "sync"  # verl asks for it by name elsewhere
        super().__init__(config)

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """verl's own, with the batch judged while it lasts."""
        judged, rewards = self._judge(batch)
        token = _judged.set(judged)
        try:
            batch = super()._compute_advantage(batch, metrics)
        finally:
            _judged.reset(token)
        metrics.update({f"strategies/{name}": v for name, v in statistics(rewards, judged.labels).items()})
        path = Path(self.config.trainer.default_local_dir, "rollouts", f"step-{judged.step:06d}.jsonl")
        write_rollouts(path, judged.step, judged.groups, rewards, judged.labels, judged.advantages)
        return batch

    def _judge(self, batch: Any) -> tuple[_Judged, list[list[float]]]:
        """The batch by groups, labelled; and the rewards before any penalty that verl takes off."""
        fields = ["uid", "raw_prompt", "responses", "rm_scores", "reward_model", "extra_info"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        column = {name: _values(data[name]) for name in fields}
        uids = [str(uid) for uid in column["uid"]]
        by_prompt: dict[str, list[int]] = {}
        for row, (uid, tag) in enumerate(zip(uids, batch.tags, strict=True)):
            if not tag.get("is_padding", False):
                by_prompt.setdefault(uid, []).append(row)
        sessions = {key.rpartition("_")[0] for key in batch.keys}
        if len(sessions) < len(batch.keys):
            raise ConfigError("agent loops that give several outputs for one response cannot be judged")
        # verl orders a batch by length; in the order of sampling, the same responses are the same request to a judge.
        rows = [sorted(members, key=batch.keys.__getitem__) for members in by_prompt.values()]
        groups = []
        for members in rows:
            asked, known = column["raw_prompt"][members[0]], dict(column["extra_info"][members[0]] or {})
            answer = (column["reward_model"][members[0]] or {}).get("ground_truth")
            texts = [self.tokenizer.decode(column["responses"][row], skip_special_tokens=True) for row in members]
            groups.append(self._method.group(list(asked), answer, known, texts))
        rewards = [[float(column["rm_scores"][row].sum()) for row in members] for members in rows]
        return _Judged(self._method, self.global_steps, uids, rows, groups, self._method.label(groups), []), rewards


def _values(column: Any) -> list[Any]:
    """A column's values by row: tensors are nested, other values come in one of several kinds of list."""
    return list(column.unbind() if isinstance(column, torch.Tensor) else column)
