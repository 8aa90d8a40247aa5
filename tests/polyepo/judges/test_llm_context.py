"""Groups that are longer than the judge model takes, whoever finds out: we, its tokenizer, or the server."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from polyepo.judges.llm.limits import JudgeError
from polyepo.testing.judge_server import clusters_of, completion, error, responses_in
from tests.support.judging import Log, assert_missing, assert_right, good, group, run

TOO_LONG = {
    "OpenAI": (400, "This model's maximum context length is 8192 tokens. However, you requested 9000."),
    "OpenAI, newer": (400, "Your input exceeds the context window of this model. Please adjust your input."),
    "vLLM": (
        400,
        "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum context length is 8192 "
        "tokens and your request has 5000 input tokens (4096 > 8192 - 5000).",
    ),
    "vLLM, decoder": (
        400,
        "The decoder prompt (length 9000) is longer than the maximum model length of 8192. Make sure that "
        "`max_model_len` is no smaller than the number of text tokens.",
    ),
    "vLLM, passed": (400, "You passed 8193 input tokens and requested 1 output tokens. However, the model's context "
                          "length is only 8192 tokens"),
    "SGLang": (400, "The input (9000 tokens) is longer than the model's context length (8192 tokens)."),
    "SGLang, total": (400, "Requested token count exceeds the model's maximum context length of 8192 tokens."),
    "SGLang, input": (400, "Input length (9000 tokens) exceeds the maximum allowed length (8185 tokens)."),
    "llama.cpp": (400, "the request exceeds the available context size. try increasing the context size"),
    "llama.cpp, newer": (400, "request (9000 tokens) exceeds the available context size (8192 tokens)"),
    "llama.cpp, late": (500, "Context size has been exceeded."),
    "TGI": (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8192. Given: 9000"),
    "TGI, inputs": (422, "Input validation error: `inputs` must have less than 4095 tokens. Given: 9000"),
    "TensorRT-LLM": (400, "The sum of prompt length (9000), query length (0) should not exceed max_num_tokens (8192)"),
    "Anthropic": (400, "prompt is too long: 210000 tokens > 200000 maximum"),
    "Gemini": (400, "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."),
    "Mistral": (400, "Prompt contains 40000 tokens, too large for model with 32768 maximum context length"),
    "Groq": (413, "Request Entity Too Large"),
    "Cohere": (400, "too many tokens: total number of tokens in the prompt cannot exceed 4081"),
    "Bedrock": (400, "Input is too long for requested model."),
    "code alone": (400, "context_length_exceeded"),
}  # fmt: skip


@pytest.mark.parametrize("server", TOO_LONG)
def test_what_a_server_refuses_as_too_long_is_split(server):
    """It takes two responses at a time, whatever we count."""
    status, message = TOO_LONG[server]

    def behave(number, body):
        return error(status, message) if len(responses_in(body)) > 2 else good(number, body)

    texts = [f"{kind} {n}" for n in range(3) for kind in ("add", "double")]
    log = Log()
    labels, _, first = run(behave, [group(texts)], log)
    assert [label.cluster for label in labels[0]] == [0, 1] * 3
    assert len(first.bodies) < 40
    again, _, other = run(behave, [group(texts)], log)
    assert (again, other.bodies) == (labels, []), "the calls that are kept give the same labels"
    refused, _, server = run(behave, [group(texts)], overflow="refuse")
    assert {label.status for label in refused[0]} == {"overflow"}
    assert len(server.bodies) == 1, "trying again is no use"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "max_tokens is too large: 100000. This model supports at most 16384 completion tokens."),
        (400, "Invalid value for 'temperature'."),
        (400, "Rate limit: too many tokens per minute."),
        (400, "response_format: schema is too deep"),
    ],
)
def test_what_is_refused_for_another_reason_is_not_split(status, message):
    labels, _, _ = run(lambda n, b: error(status, message))
    assert_missing(labels[0], "http_failed")


def test_what_cannot_be_split_is_an_overflow_and_is_asked_again():
    log = Log()
    labels, _, server = run(lambda n, b: error(400, "context_length_exceeded"), log=log)
    assert_missing(labels[0], "overflow")
    assert len(server.bodies) < 20
    assert len(responses_in(server.bodies[-1])) == 1
    labels, _, server = run(
        lambda n, b: good(n, b) if len(responses_in(b)) <= 3 else error(400, "context size"), log=log
    )
    assert_right(labels[0])


def characters_as_tokens(context):
    """A server whose tokenizer has a token for each byte, and its count of what it was asked."""

    def behave(number, body):
        used = sum(len(message["content"].encode()) + 8 for message in body["messages"])
        if used + body["max_tokens"] > context:
            return error(400, f"This model's maximum context length is {context} tokens")
        return completion(clusters_of(body), usage=(used, 50))

    return behave


def refusals(server, behave):
    return sum(behave(0, body).status != 200 for body in server.bodies)


def test_the_ratio_is_learnt_from_what_replies_report():
    texts = [f"{kind} {'7' * 900} {n}" for n in range(20) for kind in ("add", "double", "square")]
    behave, log = characters_as_tokens(16384), Log()
    settings = {"context_tokens": 16384, "max_tokens": 1024}
    labels, _, server = run(behave, [group(texts)], log, **settings)
    assert [label.cluster for label in labels[0]] == [0, 1, 2] * 20
    assert refusals(server, behave) <= 6, "after a reply its count of tokens is known"
    again, _, other = run(behave, [group(texts)], log, **settings)
    assert (again, other.bodies) == (labels, [])
    alone, _, _ = run(behave, [group(["add 1", "double 2"], 1), group(texts)], **settings, concurrency=1)
    assert alone[1] == labels[0], "what other prompts met with plays no part"


def test_with_the_tokenizer_nothing_is_refused(tmp_path):
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.enable_truncation(100)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = [f"{kind} {'7' * 900} {n}" for n in range(20) for kind in ("add", "double", "square")]
    behave = characters_as_tokens(16384)
    settings = {"context_tokens": 16384, "max_tokens": 1024, "tokenizer": str(tmp_path)}
    labels, _, server = run(behave, [group(texts)], **settings)
    assert [label.cluster for label in labels[0]] == [0, 1, 2] * 20
    assert refusals(server, behave) == 0


def test_a_tokenizer_that_is_not_there_is_named(tmp_path):
    with pytest.raises(JudgeError, match=r"judge.tokenizer .* cannot be loaded .*tokenizer.json, or a hub id"):
        run(good, tokenizer=str(tmp_path))
