"""Rows of rollouts: responses of a policy to problems, seeded so that they are the same whenever they are drawn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from polyepo import plugins
from polyepo.config import RunConfig
from polyepo.domains import Problem
from polyepo.policy.trainer import Trainer
from polyepo.samplers.base import Sample, check_samples
from polyepo.samplers.settings import VLLMSampling
from polyepo.schemas import ROLLOUTS
from polyepo.seeds import derive_seed
from storage import ArtifactKey
from tasks.runs.policies import again_if_killed, policy_at
from tasks.runs.run import Run


def commit_rollouts(run: Run, step: int, shard: int) -> ArtifactKey:
    """Commit N responses to each prompt of a shard, from the policy before this step's update; returns their key."""
    key = run.key("rollouts", step, shard)
    if not run.store.exists(key):
        started = time.perf_counter()
        problems, numbers = run.shard_of_step(step, shard), range(run.config.sampling.num_responses)
        rows = again_if_killed(lambda: sample_rows(run, policy_at(run, step - 1), problems, step, numbers, "rollout"))
        table = pa.Table.from_pylist(rows, schema=ROLLOUTS)
        provenance = run.provenance(step - 1, time.perf_counter() - started)
        commit = partial(run.store.commit_table, key, table, table_name="rollouts", provenance=provenance)
        run.store.in_background(key, commit)  # while the next shard is sampled; its judge waits for it
    return key


def sample_rows(
    run: Run, trainer: Trainer, problems: Sequence[Problem], step: int, numbers: range, purpose: str
) -> list[dict[str, Any]]:
    """Rows of the rollouts table, these samples per problem, seeded by (run, purpose, step, problem, sample)."""
    num_responses = len(numbers)
    seeds = [
        [derive_seed(run.config.seed, purpose, step, problem.problem_id, i) for i in numbers] for problem in problems
    ]
    prompts = [trainer.language.encode(problem) for problem in problems]
    groups = _sample(run.config, trainer, prompts, seeds)
    samples = [sample for group in groups for sample in group]
    texts = trainer.language.decode([s.token_ids for s in samples])
    return [
        {
            "run": run.name,
            "step": step,
            "problem_id": problems[i // num_responses].problem_id,
            "sample": numbers[i % num_responses],
            "prompt_token_ids": prompts[i // num_responses],
            "response": texts[i],
            "response_token_ids": sampled.token_ids,
            "sampler_logprobs": sampled.logprobs,
            "finish_reason": sampled.finish_reason,
            "temperature": run.config.sampling.temperature,
            "top_p": 1.0,
            "seed": seeds[i // num_responses][i % num_responses],
            "policy_version": trainer.version,
            "sampler": run.config.sampler.name,
        }
        for i, sampled in enumerate(samples)
    ]


def _sample(
    config: RunConfig, trainer: Trainer, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]
) -> list[list[Sample]]:
    if isinstance(config.sampler, VLLMSampling):
        from polyepo.samplers.vllm import VLLMSampler

        return VLLMSampler(trainer, config.sampler, config.sampling).sample(prompts, seeds)
    samples = config.sampler.sample(trainer, prompts, seeds, config.sampling)
    if config.sampler.code is not None:
        who = f"sampler {config.sampler.name!r} ({plugins.where(type(config.sampler))})"
        check_samples(samples, seeds, config.sampling.max_response_tokens, who)
    return samples
