"""Log-probabilities, entropies and gradients by packs and tiles against those of the model's own logits, in float64."""

import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from polyepo.config import PolicyConfig, UpdateConfig
from polyepo.policy import head
from polyepo.policy.head import chosen_logprobs
from polyepo.policy.logprobs import (
    Engine,
    backward_pass,
    choose_engine,
    engine_by_config,
    response_logprobs,
    token_logprobs,
)
from polyepo.policy.model import load_policy
from polyepo.policy.packing import first_fit
from polyepo.policy.trainer import LocalTrainer
from tests.support.byte_model import byte_tokenizer, save_byte_model

SIZES = {
    "vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
KINDS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
ROWS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6)


def build(config, dtype=torch.float64):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def tiny(kind, tied=True, **changes):
    extra = {"head_dim": 4} if kind == "qwen3" else {}
    return build(KINDS[kind](**{**SIZES, **extra, "tie_word_embeddings": tied, **changes}))


def texts(lengths, seed=0, vocabulary=61):
    rng = np.random.default_rng(seed)
    return tuple([rng.integers(vocabulary, size=pair[i]).tolist() for pair in lengths] for i in range(2))


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.fixture
def small_tiles(monkeypatch):
    """So that a few tokens of a small vocabulary are many tiles, the last ones incomplete."""
    monkeypatch.setattr(head, "TOKENS", 5)
    monkeypatch.setattr(head, "VOCABULARY", 16)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_the_models_own(kind, tied, packed, monkeypatch):
    monkeypatch.setattr(head, "TOKENS", 5)
    monkeypatch.setattr(head, "VOCABULARY", 16)
    model = tiny(kind, tied)
    assert choose_engine(model).packed

    @settings(max_examples=8)
    @given(ROWS, st.sampled_from([1.0, 0.7]), st.booleans(), st.integers(0, 99))
    def equal(lengths, temperature, checkpointing, seed):
        prompts, responses = texts(lengths, seed)
        theirs, their_entropy, their_mask = response_logprobs(model, prompts, responses, temperature)
        weights = torch.as_tensor(np.random.default_rng(seed).normal(size=theirs.shape)) * their_mask
        expected = gradients(model, (theirs * weights).sum())
        engine = Engine(tiled=True, packed=packed)
        with backward_pass(model, engine, checkpointing):
            ours, entropy, mask = token_logprobs(model, engine, prompts, responses, temperature, with_entropy=True)
            found = gradients(model, (ours * weights).sum())
        assert torch.equal(mask, their_mask)
        torch.testing.assert_close(ours[mask], theirs[mask], rtol=0, atol=1e-12)
        torch.testing.assert_close(entropy[mask], their_entropy[mask], rtol=0, atol=1e-12)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)

    equal()


@settings(max_examples=30)
@given(
    st.integers(1, 12), st.integers(2, 40), st.floats(0.1, 3), st.floats(0.1, 60), st.integers(0, 5), st.integers(0, 99)
)
def test_tiles_are_the_log_softmax(num_tokens, vocabulary, temperature, scale, padding, seed):
    """Also for logits so large that their exponentials are beyond float64's, and with rows that only pad."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, 6, generator=generator, dtype=torch.float64).mul(scale).requires_grad_()
    weight = torch.randn(vocabulary + padding, 6, generator=generator, dtype=torch.float64).mul(scale).requires_grad_()
    chosen = torch.randint(vocabulary, (num_tokens,), generator=generator)
    tiles, words = head.TOKENS, head.VOCABULARY
    head.TOKENS, head.VOCABULARY = 3, 7
    try:
        found, entropy = chosen_logprobs(hidden, weight, chosen, temperature, with_entropy=True, known=vocabulary)
        own = torch.autograd.grad((found * torch.arange(1, num_tokens + 1)).sum(), (hidden, weight))
    finally:
        head.TOKENS, head.VOCABULARY = tiles, words
    everything = torch.log_softmax(hidden @ weight[:vocabulary].T / temperature, -1)
    expected = everything.gather(1, chosen[:, None])[:, 0]
    theirs = torch.autograd.grad((expected * torch.arange(1, num_tokens + 1)).sum(), (hidden, weight))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(entropy, torch.special.entr(everything.exp()).sum(-1), rtol=1e-9, atol=1e-9)
    assert not entropy.requires_grad
    for one, other in zip(own, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_no_tensor_of_logits_is_ever_made():
    """The largest tensor of forward and backward pass has the size of the head, or of one tile."""
    num_tokens, vocabulary = 400, 3000
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor))
            return result

    hidden = torch.randn(num_tokens, 8, requires_grad=True)
    weight = torch.randn(vocabulary, 8, requires_grad=True)
    tiles = (head.TOKENS, head.VOCABULARY)
    head.TOKENS, head.VOCABULARY = 50, 100
    try:
        with Sizes():
            logprobs, _ = chosen_logprobs(hidden, weight, torch.zeros(num_tokens, dtype=torch.long), 1.0)
            logprobs.sum().backward()
    finally:
        head.TOKENS, head.VOCABULARY = tiles
    assert max(sizes) == vocabulary * 8 < num_tokens * vocabulary / 10


def test_a_padded_vocabulary_is_cut_as_the_models_own_logits_are(tmp_path, small_tiles):
    policy = load_policy(
        save_byte_model(tmp_path / "m", byte_tokenizer(), padding=140, tie_word_embeddings=False),
        PolicyConfig(model="m", device="cpu"), UpdateConfig(),
    )  # fmt: skip
    assert policy.engine.packed
    assert policy.engine.known == policy.language.known == policy.language.vocabulary - 140
    policy.model.double()
    prompts, responses = texts([(3, 4), (1, 6)], vocabulary=policy.language.known)
    ours, entropy, mask = policy.logprobs(prompts, responses, 1.0, with_entropy=True)
    theirs, their_entropy, _ = response_logprobs(policy.model, prompts, responses, 1.0)
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=0, atol=1e-12)
    torch.testing.assert_close(entropy[mask], their_entropy[mask], rtol=0, atol=1e-12)
    changed = gradients(policy.model, ours.sum())[-1]
    assert changed.shape[0] == policy.language.vocabulary
    assert not changed[policy.language.known :].any()


@pytest.mark.parametrize(
    ("config", "engine", "why"),
    [
        (Gemma2Config(**SIZES, head_dim=4), (False, False), "final_logit_softcapping 30.0"),
        (CohereConfig(**SIZES, logit_scale=0.0625), (False, False), "logit_scale 0.0625"),
        (MistralConfig(**SIZES, sliding_window=8), (True, False), "sliding_attention, which cannot be packed"),
        (BloomConfig(vocab_size=61, hidden_size=16, n_layer=2, n_head=4), (True, False), "as they do alone"),
        (GPT2Config(vocab_size=61, n_embd=16, n_layer=2, n_head=4, n_positions=64), (True, True), ""),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_what_cannot_be_done_for_a_model_is_said_and_not_done(config, engine, why, caplog):
    # In float64 some of them make NaN of padding: they mask by its lowest number, and take a softmax in float32.
    model = build(config, torch.float32)
    with caplog.at_level(logging.INFO, "polyepo"):
        chosen = choose_engine(model)
    assert (chosen.tiled, chosen.packed) == engine
    assert why in caplog.text
    assert f"{type(model).__name__}: {chosen}" in caplog.text
    prompts, responses = texts([(9, 9), (2, 5), (4, 1)])
    theirs, _, mask = response_logprobs(model, prompts, responses, 0.7)
    expected = gradients(model, theirs[mask].sum())
    with backward_pass(model, chosen, checkpointing=True):
        ours, _, _ = token_logprobs(model, chosen, prompts, responses, 0.7)
        found = gradients(model, ours[mask].sum())
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=0, atol=1e-5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [lambda logits: 30 * torch.tanh(logits / 30), lambda logits: logits * 0.98, lambda logits: logits + 0.5],
    ids=["soft-capping", "scale", "bias"],
)
def test_a_head_that_does_more_without_a_word_in_its_config_is_noticed(change):
    """Although the logits of untrained weights are so small that soft-capping changes them by nothing."""
    model = tiny("llama")

    def more(module, args, output):
        output.logits = change(output.logits)

    model.register_forward_hook(more)
    assert engine_by_config(model).tiled
    assert not choose_engine(model).tiled
    assert "not the product of its last hidden states and its head" in str(choose_engine(model))


def test_the_sampler_does_not_see_packed_attention():
    model = tiny("qwen3")
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError, match="in between"), backward_pass(model, Engine(tiled=True, packed=True), True):
        raise RuntimeError("in between")
    assert model.config._attn_implementation == before
    assert not any("forward" in vars(module) for module in model.modules())


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 100))
def test_packs_keep_to_the_budget_and_are_filled(lengths, budget):
    packs = first_fit(lengths, budget)
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    totals = [sum(lengths[row] for row in pack) for pack in packs]
    assert all(total <= budget or len(pack) == 1 for total, pack in zip(totals, packs, strict=True))
    # Of two packs that could be one, first fit makes one.
    assert all(a + b > budget for i, a in enumerate(totals) for b in totals[i + 1 :])


def test_layers_compute_in_bfloat16_over_weights_in_float32(tmp_path):
    directory = save_byte_model(tmp_path / "m", hidden_size=64, num_attention_heads=4)
    trainers = {
        dtype: LocalTrainer(load_policy(directory, PolicyConfig(model=directory, device="cpu", compute_dtype=dtype),
                                        UpdateConfig(lr=1e-3)))
        for dtype in (None, "float32", "bfloat16")
    }  # fmt: skip
    assert [trainer.dtype for trainer in trainers.values()] == ["float32", "float32", "bfloat16"]
    policy = trainers["bfloat16"].policy
    seen = set()
    policy.model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    prompts, responses = texts([(30, 20), (5, 9)], vocabulary=200)
    found = {dtype: np.concatenate(t.logprobs(prompts, responses, 1.0)) for dtype, t in trainers.items()}
    assert seen == {torch.bfloat16}
    assert all(values.dtype == np.float32 for values in found.values())
    np.testing.assert_array_equal(found[None], found["float32"])
    difference = np.abs(found["bfloat16"] - found["float32"])
    assert 0 < difference.mean() < 5e-3
    logprobs, _, mask = policy.logprobs(prompts, responses, 1.0)
    assert all(gradient.dtype == torch.float32 for gradient in gradients(policy.model, logprobs[mask].sum()))
    assert {parameter.dtype for parameter in policy.model.parameters()} == {torch.float32}
    trainers["bfloat16"].export(tmp_path / "served", "bfloat16")
    served = AutoModelForCausalLM.from_pretrained(tmp_path / "served")
    assert served.dtype == torch.bfloat16
    assert math.isclose(float(served.lm_head.weight.float().sum()), float(policy.model.lm_head.weight.sum()),
                        abs_tol=0.1)  # fmt: skip


def test_computing_in_more_than_the_weights_hold_is_refused():
    with pytest.raises(ValueError, match=r"policy.compute_dtype float32 .*policy.dtype bfloat16.*leave it out"):
        PolicyConfig(model="m", dtype="bfloat16", compute_dtype="float32")
    assert "compute_dtype" not in PolicyConfig(model="m").model_dump()
