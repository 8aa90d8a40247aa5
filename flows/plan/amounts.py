"""How much a run samples, asks, keeps and holds at most: every response as long as its limit."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.plan.facts import ModelFacts, Shape
from polyepo.config import RunConfig
from polyepo.domains import Problem
from polyepo.judges import Estimate, Group, Judge
from polyepo.samplers.settings import VLLMSampling
from tasks.runs.evaluations import SAMPLES_PER_SHARD

# Measured on committed artifacts, manifests included: the quickstart's, and 800 responses of a 7B model to MATH-500.
_FILE_BYTES = {"rollouts": 5000, "labels": 5000, "scores": 5500, "updates": 11500, "judge_calls": 5000, "evals": 5000}
_RESPONSE_BYTES = 24
_TOKEN_BYTES = 5
"""Text, token id and log-probability: 4.4 in mathematics by a language model, up to 10 in random text."""
_LABEL_BYTES = 15
"""Label and score of one response."""
_REPLY_TOKEN_BYTES = 2
_CHECKPOINT_FILE_BYTES = 4000

# The sampler's logits, their log-softmax in float32, and its exponentials and their sum in float64.
_DRAW_BYTES = 4 + 8 + 8

PROCESS_BYTES = 600_000_000
"""Python with torch, transformers and Prefect; or a CUDA context."""

# So many problems stand for all when a judge's calls are estimated.
_ESTIMATED_PROMPTS = 32
_JUDGE_BYTES_PER_TOKEN = 3


@dataclass(frozen=True)
class Problems:
    """A run's problems; lengths of the prompts in tokens, by problem id, if the tokenizer is at hand."""

    train: Sequence[Problem]
    heldout: Sequence[Problem]
    lengths: dict[str, int] | None

    def longest(self, limit: int) -> int:
        """Tokens of the longest prompt; the limit if they are not known or break it."""
        return min(limit, max(self.lengths.values())) if self.lengths else limit

    def shortest(self) -> int:
        """Tokens of the shortest prompt; 1 if they are not known."""
        return max(1, min(self.lengths.values())) if self.lengths else 1


@dataclass(frozen=True)
class Stage:
    """What is done each step, or in each evaluation."""

    times: int
    prompts: int
    responses: int
    response_tokens: int
    judge: Estimate
    records: int
    """Bytes of the tables that are committed."""


@dataclass(frozen=True)
class Memory:
    """Bytes on the policy's device."""

    weights: int
    engine: str
    """How log-probabilities are computed, and why not faster."""
    micro_batch: int
    shape: Shape
    logits: int
    """Of the micro-batch's response tokens, once, in float32; it is part of `micro_batch`, several times. 0 if they are
    computed in tiles."""
    sampled_rows: int
    """Responses that are sampled at a time; none if another process samples."""
    cache_row: int
    """KV cache of one response."""
    draw_row: int
    """Logits and probabilities of one token of one response."""

    @property
    def optimizer(self) -> int:
        """AdamW's two moments, in the weights' type."""
        return 2 * self.weights

    @property
    def update(self) -> int:
        """The update's peak: the step of the optimizer takes as much as the weights in place of the micro-batch."""
        return 2 * self.weights + self.optimizer + max(self.micro_batch, self.weights)

    @property
    def sampling(self) -> int:
        """The sampler's peak, the optimizer's state lying by."""
        return self.weights + self.optimizer + self.sampled_rows * (self.cache_row + self.draw_row)

    @property
    def peak(self) -> int:
        """Of the stages that run in the policy's process."""
        return max(self.update, self.sampling if self.sampled_rows else 0) + PROCESS_BYTES


@dataclass(frozen=True)
class Amounts:
    """What one run takes."""

    training: Stage
    evaluation: Stage
    trained_tokens: int
    """Prompt and response tokens of a step, times the forward passes of its update."""
    repeats: float
    """How often each training problem is seen."""
    checkpoints: int
    """That are there at a time."""
    checkpoint: int | None
    """Bytes of one; None if the model is not known."""

    @property
    def judge_calls(self) -> int:
        """Requests to the judge's server in all."""
        return sum(stage.times * stage.judge.calls for stage in (self.training, self.evaluation))

    @property
    def records(self) -> int:
        """Bytes of all tables of the run."""
        return sum(stage.times * stage.records for stage in (self.training, self.evaluation))

    @property
    def storage(self) -> int:
        """Bytes of the run in the store, without what is not known."""
        return self.records + self.checkpoints * (self.checkpoint or 0)

    @property
    def judge_cost(self) -> float:
        """What the run's judge calls cost, at the judge's prices."""
        return sum(stage.times * stage.judge.cost for stage in (self.training, self.evaluation))


def amounts(config: RunConfig, problems: Problems, model: ModelFacts | None, tokenizer: Any) -> Amounts:
    """What a run takes at most."""
    sampling, update = config.sampling, config.update
    training = _training(config, problems)
    prompt = problems.longest(sampling.max_prompt_tokens)
    # Each epoch passes all prompts; before it, the old policy those that are not in the first minibatch.
    first = update.prompts_per_minibatch or sampling.prompts_per_step
    passed = (update.epochs + 1) * sampling.prompts_per_step - first
    return Amounts(
        training=training,
        evaluation=_evaluation(config, problems),
        trained_tokens=passed * sampling.num_responses * (prompt + sampling.max_response_tokens),
        repeats=config.steps * sampling.prompts_per_step / len(problems.train),
        checkpoints=_checkpoints(config),
        checkpoint=None if model is None else 3 * model.weights + _CHECKPOINT_FILE_BYTES + _tokenizer_bytes(tokenizer),
    )


def _checkpoints(config: RunConfig) -> int:
    """How many checkpoints there are at a time, at most: one more than stays while it is made."""
    made = -(-config.steps // config.checkpoint_every)
    if (keep := config.keep_checkpoints) is None:
        return made
    return min(made, keep.last + 1 + (config.steps // keep.every if keep.every else 0))


def memory(config: RunConfig, problems: Problems, model: ModelFacts) -> Memory:
    """What a run holds at its peaks. Raises UnknownError if the model does what fake tensors cannot."""
    from flows.plan.model import cache_bytes, engine_of, micro_batch_bytes  # torch takes seconds to import

    sampling = config.sampling
    longest = problems.longest(sampling.max_prompt_tokens)
    shape = largest_micro_batch(config, problems)
    engine = engine_of(model, config.policy)
    bytes_per_logit = model.weights // model.num_parameters
    rows = 0
    if not isinstance(config.sampler, VLLMSampling):
        rows = max(1, sampling.batch_size // sampling.num_responses) * sampling.num_responses
        rows = min(rows, -(-sampling.prompts_per_step // sampling.shards) * sampling.num_responses)
    return Memory(
        weights=model.weights,
        engine=str(engine),
        micro_batch=micro_batch_bytes(model, shape, engine, config.update.gradient_checkpointing),
        shape=shape,
        logits=0 if engine.tiled else 4 * shape.rows * shape.response * model.vocabulary,
        sampled_rows=rows,
        cache_row=cache_bytes(model, longest + sampling.max_response_tokens) if rows else 0,
        draw_row=model.vocabulary * (bytes_per_logit + _DRAW_BYTES),
    )


def _training(config: RunConfig, problems: Problems) -> Stage:
    sampling = config.sampling
    responses = sampling.prompts_per_step * sampling.num_responses
    asked = _estimate(config, problems.train, sampling.prompts_per_step, sampling.num_responses)
    files = ["rollouts", "labels"] * sampling.shards + ["scores", "updates"]
    files += ["judge_calls"] * (sampling.shards if config.judge.makes_calls else 0)
    return Stage(
        times=config.steps,
        prompts=sampling.prompts_per_step,
        responses=responses,
        response_tokens=responses * sampling.max_response_tokens,
        judge=asked,
        records=sum(_FILE_BYTES[file] for file in files) + _record_bytes(config, responses, asked),
    )


def _evaluation(config: RunConfig, problems: Problems) -> Stage:
    evaluation = config.evaluation
    if evaluation is None:
        return Stage(0, 0, 0, 0, Estimate(0, 0, 0, 0.0), 0)
    due = {0, config.steps} | set(range(0, config.steps + 1, evaluation.every or config.steps + 1))
    prompts = len(problems.heldout[: evaluation.max_problems])
    responses = prompts * evaluation.num_samples
    shards = [
        min(SAMPLES_PER_SHARD, evaluation.num_samples - first)
        for first in range(0, evaluation.num_samples, SAMPLES_PER_SHARD)
    ]
    asked = [_estimate(config, problems.heldout, prompts, size) for size in shards]
    total = Estimate(*(sum(column) for column in zip(*asked, strict=True)))
    file_bytes = _FILE_BYTES["evals"] + (_FILE_BYTES["judge_calls"] if config.judge.makes_calls else 0)
    return Stage(
        times=len(due),
        prompts=prompts,
        responses=responses,
        response_tokens=responses * config.sampling.max_response_tokens,
        judge=total,
        records=len(shards) * file_bytes + _record_bytes(config, responses, total),
    )


def _record_bytes(config: RunConfig, responses: int, asked: Estimate) -> int:
    per_response = _RESPONSE_BYTES + _LABEL_BYTES + _TOKEN_BYTES * config.sampling.max_response_tokens
    # What a judge model says is kept twice: as it came, and in the labels.
    return responses * per_response + 2 * _REPLY_TOKEN_BYTES * asked.completion_tokens


def _estimate(config: RunConfig, problems: Sequence[Problem], num_prompts: int, num_responses: int) -> Estimate:
    """What labels of responses of full length, all different, would take."""
    judge: Judge = config.judge
    if not judge.makes_calls:
        return Estimate(0, 0, 0, 0.0)
    some = problems[:: max(1, len(problems) // _ESTIMATED_PROMPTS)][: min(num_prompts, _ESTIMATED_PROMPTS)]
    text = "x" * (_JUDGE_BYTES_PER_TOKEN * config.sampling.max_response_tokens)
    groups = [Group(problem, [f"{i} {text}" for i in range(num_responses)]) for problem in some]
    found = judge.estimate(config.domain, groups)
    calls, tokens_in, tokens_out = (round(value * num_prompts / len(some)) for value in found[:3])
    return Estimate(calls, tokens_in, tokens_out, found.cost * num_prompts / len(some))


def largest_micro_batch(config: RunConfig, problems: Problems) -> Shape:
    """The micro-batch with the most response tokens, and so logits, that the batch may be split into."""
    sampling, budget = config.sampling, config.update.micro_batch_tokens
    longest, shortest = problems.longest(sampling.max_prompt_tokens), problems.shortest()
    response = sampling.max_response_tokens
    fitting = budget // (shortest + response)
    if fitting < 1:
        return Shape(1, longest, response)
    most = sampling.num_responses * (config.update.prompts_per_minibatch or sampling.prompts_per_step)
    # So many rows of full length, or one more that are a little shorter.
    shapes = [
        Shape(rows, max(1, min(longest, budget // rows - tokens)), tokens)
        for rows in {min(fitting, most), min(fitting + 1, most)}
        if (tokens := min(response, budget // rows - shortest)) > 0
    ]
    return max(shapes, key=lambda shape: shape.rows * shape.response)


def _tokenizer_bytes(tokenizer: Any) -> int:
    if tokenizer is None:
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        return sum(file.stat().st_size for file in Path(scratch).iterdir())
