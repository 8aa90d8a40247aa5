"""GRPOTrainer with Poly-EPO's advantages: name things, with any instruct model. `--help` lists what may be set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig

from polyepo.integrations.method import Method
from polyepo.integrations.trl import PolyEPOTrainer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
parser.add_argument("--steps", type=int, default=30)
parser.add_argument("--output", default="artifacts/trl")
args = parser.parse_args()

method = Method.load(Path(__file__).with_name("method.yaml"))
problems = {problem.problem_id: problem for problem in method.domain.problems("train")}


def named(completions: list[Any], problem_id: list[str], **_: Any) -> list[float | None]:
    """The domain's verifier as one of TRL's reward functions; any other does as well."""
    texts = [completion[0]["content"] for completion in completions]
    return [method.domain.verify(problems[i], text).reward for i, text in zip(problem_id, texts, strict=True)]


rows = [{"prompt": p.prompt, "problem_id": p.problem_id, **p.metadata} for p in problems.values()]
trainer = PolyEPOTrainer(
    method=method,
    model=args.model,
    reward_funcs=named,
    train_dataset=Dataset.from_list(rows),
    args=GRPOConfig(
        output_dir=args.output,
        max_steps=args.steps,
        num_generations=8,  # N
        per_device_train_batch_size=16,
        gradient_accumulation_steps=4,  # 64 responses a step, to 8 prompts
        max_completion_length=6,
        loss_type="dr_grpo",  # the paper's: a constant denominator, and no division by a standard deviation
        beta=0.0,
        learning_rate=1e-5,
        logging_steps=1,
        save_strategy="no",
        bf16=torch.cuda.is_available(),
        report_to=[],
    ),
)
trainer.train()
