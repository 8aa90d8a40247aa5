"""Sample: the policy's responses to one shard of a step's prompts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from polyepo.config import RunConfig, VLLMSampling
from polyepo.domains import Problem
from polyepo.policy.model import Policy
from polyepo.samplers.base import Sampler
from polyepo.samplers.transformers import TransformersSampler
from polyepo.schemas import ROLLOUTS
from polyepo.seeds import derive_seed
from tasks.policy import policy_at
from tasks.run import Run, open_run


@task(name="sample", task_run_name="sample {name} {step}.{shard}", cache_policy=NO_CACHE, persist_result=False)
def sample(root: str, name: str, step: int, shard: int) -> str:
    """Commit N responses to each prompt of a shard, from the policy before this step's update."""
    run = open_run(root, name)
    key = run.key("rollouts", step, shard)
    if not run.store.exists(key):
        started = time.perf_counter()
        policy = policy_at(run, step - 1)
        num_responses = run.config.sampling.num_responses
        rows = sample_rows(run, policy, run.shard_of_step(step, shard), step, range(num_responses), "rollout")
        table = pa.Table.from_pylist(rows, schema=ROLLOUTS)
        provenance = run.provenance(step - 1, time.perf_counter() - started)
        commit = partial(run.store.commit_table, key, table, table_name="rollouts", provenance=provenance)
        run.store.in_background(key, commit)  # while the next shard is sampled; its judge waits for it
    return key.path


def sample_rows(
    run: Run, policy: Policy, problems: Sequence[Problem], step: int, numbers: range, purpose: str
) -> list[dict[str, Any]]:
    """Rows of the rollouts table, these samples per problem, seeded by (run, purpose, step, problem, sample)."""
    num_responses = len(numbers)
    seeds = [
        [derive_seed(run.config.seed, purpose, step, problem.problem_id, i) for i in numbers] for problem in problems
    ]
    prompts = [policy.encode(problem) for problem in problems]
    groups = _sampler(run.config, policy).sample(prompts, seeds)
    samples = [sample for group in groups for sample in group]
    texts = policy.tokenizer.batch_decode([s.token_ids for s in samples], skip_special_tokens=True)
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
            "policy_version": policy.version,
            "sampler": run.config.sampler.name,
        }
        for i, sampled in enumerate(samples)
    ]


def _sampler(config: RunConfig, policy: Policy) -> Sampler:
    if isinstance(config.sampler, VLLMSampling):
        from polyepo.samplers.vllm import VLLMSampler

        return VLLMSampler(policy, config.sampler, config.sampling)
    return TransformersSampler(policy, config.sampling)
