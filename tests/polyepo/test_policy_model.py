"""Policies of other people's models: chat templates, special tokens, padded vocabularies, several ends."""

import copy

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, Qwen3Config

from polyepo.config import ConfigError, PolicyConfig, SamplingConfig, UpdateConfig, VLLMSampling
from polyepo.domains import Maths, Problem
from polyepo.policy.checkpoint import load_checkpoint, save_checkpoint
from polyepo.policy.language import encode_prompt
from polyepo.policy.logprobs import response_logprobs
from polyepo.policy.model import load_policy
from polyepo.policy.trainer import LocalTrainer
from polyepo.policy.update import Batch, update
from polyepo.samplers.transformers import TransformersSampler
from polyepo.samplers.vllm import VLLMSampler, stop_servers
from tests.byte_model import byte_tokenizer, save_byte_model
from tests.polyepo.fake_vllm import FakeVLLM

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 1?"}]


def asked(prompt):
    return Problem(problem_id="p", domain="maths", prompt=prompt)


def load(directory, **options):
    return load_policy(directory, PolicyConfig(model=directory, device="cpu", **options), UpdateConfig(lr=1e-2))


def sample(policy, prompts=((1, 2, 3), (4,)), count=64, length=24):
    seeds = [[1000 * p + i for i in range(count)] for p in range(len(prompts))]
    return TransformersSampler(policy, SamplingConfig(max_response_tokens=length)).sample(prompts, seeds)


def test_text_is_asked_as_it_is_and_messages_through_the_chat_template():
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(encode_prompt(tokenizer, asked("1 + 1 =\n"))) == "1 + 1 =\n"
    chat = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(encode_prompt(tokenizer, asked(CHAT))) == chat
    hasty = encode_prompt(tokenizer, asked(CHAT), {"enable_thinking": False})
    assert tokenizer.decode(hasty) == chat + "<think></think>"


def test_a_domain_asks_by_text_or_by_messages(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"problem": "1 + 1", "answer": "2"}\n{"problem": "1 + 2", "answer": "3"}\n')
    plain = Maths(path=str(path), template="Q: {problem}\nA:")
    chat = plain.model_copy(update={"chat": True, "template": "{problem}", "system_prompt": "Be brief."})
    assert {p.prompt for s in ("train", "heldout") for p in plain.problems(s)} == {"Q: 1 + 1\nA:", "Q: 1 + 2\nA:"}
    (problem,) = chat.problems("heldout")
    assert problem.prompt[0] == {"role": "system", "content": "Be brief."}
    assert problem.prompt[1]["role"] == "user"
    assert problem.prompt[1]["content"] in ("1 + 1", "1 + 2")
    assert problem.problem_id == plain.problems("heldout")[0].problem_id, "how it is asked is not what is asked"
    with pytest.raises(ValueError, match="system_prompt goes with chat: true"):
        Maths(path=str(path), system_prompt="Be brief.")


def test_special_tokens_are_there_once():
    tokenizer = byte_tokenizer(bos=True)
    assert encode_prompt(tokenizer, asked("2")) == [tokenizer.bos_token_id, *byte_tokenizer()("2")["input_ids"]]
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    ids = encode_prompt(tokenizer, asked(CHAT))
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    with pytest.raises(ConfigError, match=r"begins with '<s>', which the tokenizer adds itself"):
        encode_prompt(tokenizer, asked("<s>2"))


def test_a_tokenizer_that_ends_prompts_is_refused():
    tokenizer = byte_tokenizer(bos=True, eos_token="<s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <s>", special_tokens=[("<s>", tokenizer.convert_tokens_to_ids("<s>"))]
    )
    with pytest.raises(ConfigError, match=r"ends the prompt of problem 'p' with '<s>'.*add_eos_token"):
        encode_prompt(tokenizer, asked("2"))


@pytest.mark.parametrize(
    ("template", "options", "message"),
    [
        (None, {}, "no chat template.*domain.chat: false"),
        ("{{ messages }}", {"enable_thinkng": False}, "chat template does not use 'enable_thinkng'"),
        ("{{ raise_exception('no system role') }}", {}, "refuses problem 'p': no system role"),
        ("{{ messages", {}, "refuses problem 'p'"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_named(template, options, message):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=message):
        encode_prompt(tokenizer, asked(CHAT), options)


def test_what_the_sampler_sets_itself_cannot_be_set():
    with pytest.raises(ValueError, match="'add_generation_prompt' cannot be set"):
        PolicyConfig(model="m", chat_template_kwargs={"add_generation_prompt": False})
    assert "chat_template_kwargs" not in PolicyConfig(model="m").model_dump()


def test_every_end_of_a_response_ends_it_and_stays(tmp_path):
    tokenizer = byte_tokenizer()
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    policy = load(save_byte_model(tmp_path / "m", tokenizer, eos_token_id=ends))
    assert policy.language.eos_token_ids == set(ends)
    flat = [one for group in sample(policy, count=400) for one in group]
    assert {one.token_ids[-1] for one in flat if one.finish_reason == "stop"} == set(ends)
    for one in flat:
        assert not set(ends) & set(one.token_ids[:-1])
        assert (one.finish_reason == "stop") == (one.token_ids[-1] in ends)
    (tmp_path / "checkpoint").mkdir()
    save_checkpoint(policy, tmp_path / "checkpoint")
    again = load_checkpoint(tmp_path / "checkpoint", PolicyConfig(model="m", device="cpu"), UpdateConfig())
    assert again.language.eos_token_ids == policy.language.eos_token_ids


def test_a_tokenizer_without_end_is_refused_and_one_without_padding_is_not(tmp_path):
    tokenizer = byte_tokenizer(eos_token=None, pad_token=None)
    with pytest.raises(ConfigError, match="names no end-of-sequence token"):
        load(save_byte_model(tmp_path / "none", tokenizer, eos_token_id=None))
    policy = load(save_byte_model(tmp_path / "unpadded", byte_tokenizer(pad_token=None)))
    assert policy.language.tokenizer.pad_token_id is None
    together, alone = sample(policy), sample(policy, prompts=((1, 2, 3),))
    assert [s.token_ids for s in together[0]] == [s.token_ids for s in alone[0]]


def test_padding_of_the_vocabulary_is_in_no_softmax(tmp_path):
    tokenizer = byte_tokenizer()
    directory = save_byte_model(tmp_path / "m", tokenizer, padding=140, tie_word_embeddings=False)
    policy = load(directory)
    assert policy.language.padding_ids == range(len(tokenizer), len(tokenizer) + 140)
    groups = sample(policy, count=200)
    flat = [(p, one) for p, group in zip(((1, 2, 3), (4,)), groups, strict=True) for one in group]
    assert max(token for _, one in flat for token in one.token_ids) < len(tokenizer)
    # The distribution is the model's own, given that the token is none of the padding.
    raw = load(directory).model
    raw._forward_hooks.clear()
    with torch.no_grad():
        logits = raw(torch.tensor([[4]])).logits[0, -1]
        assert len(logits) == len(tokenizer) + 140
        expected = torch.log_softmax(logits[: len(tokenizer)], -1)
        ours, entropy, _ = response_logprobs(
            policy.model, [[4]] * len(tokenizer), [[i] for i in range(len(tokenizer))], 1
        )
    torch.testing.assert_close(ours[:, 0], expected)
    torch.testing.assert_close(entropy[0, 0], -(expected.exp() * expected).sum())
    # What the trainer makes of the samples.
    prompts, samples = [list(p) for p, _ in flat], [one for _, one in flat]
    batch = Batch(
        [str(len(p)) for p in prompts],
        prompts,
        [s.token_ids for s in samples],
        [s.logprobs for s in samples],
        np.random.default_rng(0).standard_normal(len(samples)),
        np.array([s.finish_reason == "length" for s in samples]),
    )
    before = policy.model.get_output_embeddings().weight.detach().clone()
    metrics = update(policy, batch, UpdateConfig(lr=1e-2), SamplingConfig(max_response_tokens=24), seed=0)
    assert metrics.logprob_mismatch_max < 1e-5
    changed = (policy.model.get_output_embeddings().weight != before).any(dim=1)
    assert changed[: len(tokenizer)].any()
    assert not changed[len(tokenizer) :].any()


def test_vllm_is_told_of_the_padding(tmp_path):
    policy = load(save_byte_model(tmp_path / "m", padding=140))
    server_model = copy.deepcopy(policy.model)
    server_model._forward_hooks.clear()
    (tmp_path / "weights").mkdir()
    with FakeVLLM(server_model, max_model_len=4096) as server:
        config = VLLMSampling(name="vllm", base_urls=[server.url], weights_dir=str(tmp_path / "weights"))
        sampler = VLLMSampler(LocalTrainer(policy), config, SamplingConfig(max_prompt_tokens=8, max_response_tokens=12))
        (group,) = sampler.sample([[1, 2]], [list(range(40))])
    stop_servers()
    with torch.no_grad():
        ours, _, mask = response_logprobs(policy.model, [[1, 2]] * 40, [s.token_ids for s in group], 1.0)
    np.testing.assert_allclose(np.concatenate([s.logprobs for s in group]), ours[mask].numpy(), atol=1e-5)


def test_a_model_without_a_tokenizer_is_refused(tmp_path):
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
    config = Qwen3Config(vocab_size=100, hidden_size=32, head_dim=16, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no tokenizer with it"):
        load(str(tmp_path))


def test_a_tokenizer_of_another_model_is_named(tmp_path):
    policy = load(save_byte_model(tmp_path / "m", padding=-4))
    sampling = SamplingConfig(max_prompt_tokens=100)
    policy.language.check_prompts([asked("What is 1?")], sampling, "domain")
    with pytest.raises(ConfigError, match=r"domain: .* token id 258, and the model's vocabulary ends at 255"):
        policy.language.check_prompts([asked(CHAT)], sampling, "domain")


def test_a_context_longer_than_the_models_is_refused(tmp_path):
    policy = load(save_byte_model(tmp_path / "m", max_position_embeddings=64))
    policy.language.check_context(SamplingConfig(max_prompt_tokens=32, max_response_tokens=32))
    with pytest.raises(ConfigError, match=r"max_prompt_tokens 32 \+ max_response_tokens 33 exceed the 64 positions"):
        policy.language.check_context(SamplingConfig(max_prompt_tokens=32, max_response_tokens=33))
