"""The LLM judge against a real vLLM server on the CPU: `make test-vllm`."""

import os
import time
import urllib.request

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from polyepo.domains import Polynomial, Problem
from polyepo.judges import Group
from polyepo.judges.llm.judge import LLMJudge
from polyepo.samplers.launch import LaunchedServer
from polyepo.samplers.settings import VLLMLaunch
from tests.support.attacks import ATTACKS
from tests.support.judging import Log

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        not os.environ.get("POLYEPO_TEST_VLLM_PYTHON"),
        reason="needs vLLM: run `make test-vllm`, or set POLYEPO_TEST_VLLM_PYTHON",
    ),
]


CONTEXT = 8192
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


def write_model(folder):
    """A small model with random weights, whose tokenizer has a token for each byte."""
    torch.manual_seed(0)
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate([*symbols, "<eos>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", chat_template=TEMPLATE)
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, eos_token_id=fast.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Address and name of the served model."""
    launch = VLLMLaunch(
        python=os.environ["POLYEPO_TEST_VLLM_PYTHON"],
        args=["--enforce-eager"],
        environment={"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
        logs=str(tmp_path_factory.mktemp("logs")),
    )
    server = LaunchedServer(launch, ["--served-model-name", "judge", "--max-model-len", str(CONTEXT)])
    write_model(server.prepare())
    server.start()
    try:
        deadline = time.monotonic() + 600
        while True:
            assert server.alive, server.last_words()
            assert time.monotonic() < deadline, server.last_words()
            try:
                urllib.request.urlopen(f"{server.url}/health", timeout=5)
                break
            except OSError:
                time.sleep(1)
        yield f"{server.url}/v1", "judge"
    finally:
        server.stop()


@pytest.mark.parametrize("texts", [["x = 1 by guessing", "factor it"], [a for a in ATTACKS if len(a) < 60][:4]])
def test_replies_follow_the_schema(model, texts):
    """Whatever the weights, random ones included: each response gets one label, or the reason why not."""
    url, name = model
    judge = LLMJudge(model=name, base_url=url, context_tokens=CONTEXT, max_tokens=1024, timeout_s=300)
    log = Log()
    group = Group(Problem(problem_id="p", domain="polynomial", prompt="1 x 2 >"), texts)
    (labels,) = judge.label(Polynomial(), [group], log)
    assert len(labels) == len(texts)
    assert log.calls
    for label in labels:
        assert label.status in ("ok", "repaired", "parse_failed", "overflow")
        if label.status in ("ok", "repaired"):
            assert label.degenerate == (label.cluster is None)
    answered = [call for call in log.calls if call.error is None]
    assert answered, [call.error for call in log.calls]
    assert all(call.prompt_tokens and call.completion_tokens for call in answered)
    # Random weights may ramble to the limit, but never leave the schema before.
    assert all(call.raw_reply.lstrip().startswith("{") for call in answered), [call.raw_reply for call in answered]
