"""Our update against TRL's GRPOTrainer: one model, one batch, the same numbers, in how much time and memory.

    pip install trl==1.16.0 accelerate datasets     # into an environment that has this project
    python benchmarks/update.py                     # float32 on one thread, a vocabulary of 151,936
    python benchmarks/update.py --device cuda --shape 0.6B      # bfloat16 over float32; TRL where it is installed

A model with random weights is updated once by a batch of ragged responses with Dr.GRPO's loss, each side in a process
of its own. TRL recomputes old log-probabilities when it samples with vLLM, and not when it samples itself: it is timed
both ways. We never need them for the first minibatch. A GPU's model FLOPs (6 per weight and token, and those of
attention; what checkpointing computes again is not counted) are set against --peak-flops.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from polyepo.config import SamplingConfig, UpdateConfig
from polyepo.policy.language import Language
from polyepo.policy.logprobs import choose_engine
from polyepo.policy.model import Policy, make_optimizer
from polyepo.policy.update import Batch, update

VOCABULARY = 151_936
SHAPES = {
    "small": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 64},
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
             "num_key_value_heads": 8, "head_dim": 128},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 128},
}  # fmt: skip
SIDES = {"ours": "ours", "trl": "TRL", "trl-old": "TRL, old policy recomputed"}


def make_policy(args: argparse.Namespace) -> Policy:
    """A model of Qwen3's kind with random weights, the same on both sides."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, max_position_embeddings=32768, tie_word_embeddings=True, eos_token_id=1,
        **SHAPES[args.shape],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(args.device).eval()
    dtype = torch.bfloat16 if args.device == "cuda" else None
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w0")
    optimizer = make_optimizer(model, UpdateConfig())
    return Policy(
        model, Language(tokenizer, config, frozenset({1})), optimizer, engine=choose_engine(model, dtype=dtype)
    )


def make_batch(args: argparse.Namespace) -> Batch:
    """Groups of eight responses of log-normal lengths, up to the limit."""
    rng = np.random.default_rng(0)
    num_rows = args.prompts * 8
    lengths = np.exp(rng.normal(np.log(args.response / 3), 0.6, num_rows)).round().clip(8, args.response).astype(int)
    prompts = [rng.integers(2, VOCABULARY, rng.integers(args.prompt // 2, args.prompt)).tolist()
               for _ in range(args.prompts)]  # fmt: skip
    rewards = rng.integers(0, 2, (args.prompts, 8)).astype(float)
    rewards[:, 0], rewards[:, 1] = 0, 1  # every prompt has a signal, which TRL would compute without one as well
    return Batch(
        [f"p{i // 8}" for i in range(num_rows)],
        [prompts[i // 8] for i in range(num_rows)],
        [rng.integers(2, VOCABULARY, length).tolist() for length in lengths],
        [np.full(length, -12.0, np.float32) for length in lengths],
        (rewards - rewards.mean(1, keepdims=True)).ravel(),
        lengths == args.response,
    )


def ours(policy: Policy, batch: Batch, args: argparse.Namespace) -> tuple[float, float]:
    """Loss and gradient norm of an update of ours."""
    config = UpdateConfig(
        lr=1e-6, micro_batch_tokens=args.micro_batch_tokens, gradient_checkpointing=args.device == "cuda"
    )
    metrics = update(policy, batch, config, SamplingConfig(max_response_tokens=args.response), seed=0)
    return metrics.loss, metrics.grad_norm


def trl(policy: Policy, batch: Batch, args: argparse.Namespace, old_pass: bool) -> tuple[float, float]:
    """Loss and gradient norm of an update by GRPOTrainer's own loss, in micro-batches of as many rows as fit."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    from trl_loss import trl_inputs

    rows = args.trl_rows
    with tempfile.TemporaryDirectory() as scratch:
        trainer = GRPOTrainer(
            model=policy.model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=GRPOConfig(
                output_dir=scratch, loss_type="dr_grpo", beta=0.0, epsilon=0.2, epsilon_high=0.28, temperature=1.0,
                max_completion_length=args.response, per_device_train_batch_size=8, num_generations=8,
                gradient_checkpointing=args.device == "cuda", use_cpu=args.device == "cpu", bf16=args.device == "cuda",
                report_to=[],
            ),
            train_dataset=Dataset.from_dict({"prompt": ["w2"]}),
            processing_class=policy.language.tokenizer,
        )  # fmt: skip
    inputs = trl_inputs(batch, batch.advantages.astype(np.float32))
    inputs = {name: value.to(args.device) for name, value in inputs.items()}
    parts = [slice(i, i + rows) for i in range(0, len(batch.responses), rows)]
    policy.model.train(args.device == "cuda")  # its checkpointing works in training mode alone; there is no dropout
    trainer.current_gradient_accumulation_steps = 1

    def part_of(part: slice) -> dict[str, Any]:
        return {name: value[part] for name, value in inputs.items() if name != "num_items_in_batch"}

    reset_peak(args)
    args.started = clock(args)
    with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
        if old_pass:
            with torch.no_grad():
                inputs["old_per_token_logps"] = torch.cat(
                    [
                        trainer._get_per_token_logps_and_entropies(
                            policy.model,
                            torch.cat([some["prompt_ids"], some["completion_ids"]], 1),
                            torch.cat([some["prompt_mask"], some["completion_mask"]], 1),
                            some["completion_ids"].size(1),
                        )[0]
                        for some in map(part_of, parts)
                    ]
                )
        total = 0.0
        for part in parts:
            loss = trainer._compute_loss(policy.model, part_of(part)) / len(parts)
            loss.backward()
            total += float(loss.detach())
    norm = float(torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0))
    policy.optimizer.step()
    return total, norm


def clock(args: argparse.Namespace) -> float:
    """Seconds: of this process's CPU, or of a GPU."""
    if args.device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def reset_peak(args: argparse.Namespace) -> None:
    """Forget the peak of memory so far."""
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
        args.before = status("VmRSS")


def peak(args: argparse.Namespace) -> float:
    """GB at most: on a GPU in all, on the CPU beyond what was there before the update."""
    if args.device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return (status("VmHWM") - args.before) / 1e9


def status(name: str) -> int:
    """Bytes of this process's memory, by the kernel's count."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def flops(policy: Policy, batch: Batch) -> float:
    """Of forward and backward pass over the real tokens, without what is computed again."""
    config = policy.language.model_config
    weights = sum(p.numel() for p in policy.model.parameters())
    lengths = [len(p) + len(r) for p, r in zip(batch.prompts, batch.responses, strict=True)]
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return sum(6 * weights * length + attention * length**2 for length in lengths)


def measure(args: argparse.Namespace) -> dict[str, float]:
    """One side, in this process."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    policy, batch = make_policy(args), make_batch(args)
    if args.device == "cuda":  # kernels are loaded, and the optimizer has its state
        small = argparse.Namespace(**{**vars(args), "prompts": 1})
        ours(policy, make_batch(small), args)
    reset_peak(args)
    args.started = clock(args)
    loss, norm = ours(policy, batch, args) if args.side == "ours" else trl(policy, batch, args, args.side == "trl-old")
    seconds = clock(args) - args.started
    tokens = sum(len(p) + len(r) for p, r in zip(batch.prompts, batch.responses, strict=True))
    return {
        "loss": loss,
        "norm": norm,
        "tokens": tokens,
        "rate": tokens / seconds,
        "peak": peak(args),
        "mfu": flops(policy, batch) / seconds / args.peak_flops,
    }


def main() -> None:
    """Print one line per side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--side", choices=SIDES, help="measure this one here, and print JSON")
    parser.add_argument("--prompts", type=int, default=2, help="each has eight responses")
    parser.add_argument("--prompt", type=int, help="tokens of a prompt, at most")
    parser.add_argument("--response", type=int, help="tokens of a response, at most")
    parser.add_argument("--micro-batch-tokens", type=int, help="of ours")
    parser.add_argument("--trl-rows", type=int, default=4, help="rows of TRL's micro-batches")
    parser.add_argument("--peak-flops", type=float, default=989e12, help="of the GPU in bfloat16")
    args = parser.parse_args()
    large = args.device == "cuda"
    args.prompt = args.prompt or (1024 if large else 80)
    args.response = args.response or (4096 if large else 256)
    args.micro_batch_tokens = args.micro_batch_tokens or (16384 if large else args.trl_rows * 320)
    if args.side:
        print(json.dumps(measure(args)))
        return
    sides = list(SIDES) if importlib.util.find_spec("trl") else ["ours"]
    unit = "token/s" if large else "token/CPU-s"
    print(f"{'':>28} {'loss':>13} {'norm':>11} {'tokens':>8} {unit:>12} {'peak GB':>8}" + (f" {'MFU':>6}" * large))
    for side in sides:
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])
        print(
            f"{SIDES[side]:>28} {found['loss']:13.9f} {found['norm']:11.7f} {found['tokens']:8d} "
            f"{found['rate']:12.1f} {found['peak']:8.2f}" + (f" {found['mfu']:6.1%}" * large),
            flush=True,
        )


if __name__ == "__main__":
    main()
