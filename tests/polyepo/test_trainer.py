"""What a policy speaks is known without its weights; what a Trainer writes is what it holds."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from polyepo.config import ConfigError, PolicyConfig, SamplingConfig, UpdateConfig
from polyepo.domains import Problem
from polyepo.policy.language import load_language
from polyepo.policy.model import load_policy
from polyepo.policy.trainer import LocalTrainer, load_trainer
from polyepo.policy.weights import compare_changes, weights_digest
from tests.polyepo.test_update import random_batch
from tests.support.byte_model import byte_tokenizer, save_byte_model

CONFIG = PolicyConfig(model="m", device="cpu", num_threads=1)


@pytest.fixture
def directory(tmp_path):
    return save_byte_model(tmp_path / "model", padding=12)


def test_a_language_needs_no_weights(directory, tmp_path):
    spoken = load_policy(directory, CONFIG, UpdateConfig()).language
    for path in (tmp_path / "model").glob("*.safetensors"):
        path.unlink()
    language = load_language(directory, CONFIG)
    problem = Problem(problem_id="p", domain="maths", prompt="1 + 1 = é")
    assert language.encode(problem) == spoken.encode(problem) == byte_tokenizer()("1 + 1 = é")["input_ids"]
    assert language.decode([language.encode(problem)]) == ["1 + 1 = é"]
    assert (language.eos_token_ids, language.known) == (spoken.eos_token_ids, spoken.known)
    assert language.padding_ids == range(language.vocabulary - 12, language.vocabulary)
    language.check_prompts([problem], SamplingConfig(max_prompt_tokens=10), "domain")
    with pytest.raises(ConfigError, match="has no weights"):
        load_policy(directory, CONFIG, UpdateConfig())


def test_ends_are_those_of_the_generation_config(directory, tmp_path):
    path = tmp_path / "model" / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [5, 7]}))
    own = byte_tokenizer().eos_token_id
    assert load_language(directory, CONFIG).eos_token_ids == {5, 7, own}
    assert set(AutoModelForCausalLM.from_pretrained(directory).generation_config.eos_token_id) == {5, 7}
    path.unlink()
    assert load_language(directory, CONFIG).eos_token_ids == {own}


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_exported_is_what_was_asked(tmp_path, tied):
    trainer = load_trainer(save_byte_model(tmp_path / "m", tie_word_embeddings=tied), CONFIG, UpdateConfig())
    for name, dtype, apart in (("own", None, False), ("served", "bfloat16", False), ("apart", None, True)):
        trainer.export(tmp_path / name, dtype, head_apart=apart)
        weights = load_file(tmp_path / name / "model.safetensors")
        assert ("lm_head.weight" in weights) == (apart or not tied)
        wanted = getattr(torch, dtype or "float32")
        assert {tensor.dtype for tensor in weights.values()} == {wanted}
        found = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert found.dtype == wanted
        for one, other in zip(found.parameters(), trainer.policy.model.parameters(), strict=True):
            assert torch.equal(one, other.to(wanted))
        assert load_language(tmp_path / name, CONFIG).eos_token_ids == trainer.language.eos_token_ids


def test_a_checkpoint_goes_on_bit_for_bit(directory, tmp_path):
    batch, sampling = random_batch(0), SamplingConfig(max_response_tokens=8)
    update = UpdateConfig(lr=1e-2, betas=(0.5, 0.9), weight_decay=0.1)
    trainer = load_trainer(directory, CONFIG, UpdateConfig())
    trainer.update(batch, update, sampling, 0)
    (tmp_path / "checkpoint").mkdir()
    trainer.save(tmp_path / "checkpoint")
    again = load_trainer(tmp_path / "checkpoint", CONFIG, UpdateConfig(), resume=True)
    assert again.version == trainer.version == 1
    assert again.update(batch, update, sampling, 0) == trainer.update(batch, update, sampling, 0)
    mine, theirs = again.policy.model.state_dict(), trainer.policy.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert load_trainer(tmp_path / "checkpoint", CONFIG, UpdateConfig()).version == 0, "as any model directory"


def test_logprobs_do_not_depend_on_what_is_computed_together(directory):
    trainer = LocalTrainer(load_policy(directory, CONFIG, UpdateConfig()))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(200, size=n).tolist() for n in (5, 1, 9, 3)]
    responses = [rng.integers(200, size=n).tolist() for n in (2, 8, 1, 4)]
    together = trainer.logprobs(prompts, responses, 0.7)
    for budget in (1, 12):
        for one, other in zip(trainer.logprobs(prompts, responses, 0.7, budget), together, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
    assert [len(row) for row in together] == [2, 8, 1, 4]


def test_changes_are_compared_as_one_vector_over_several_files(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"b": (3, 4), "a": (7,), "c": (2, 2, 2)}
    folders, vectors = [], []
    for number in range(3):
        weights = {name: torch.tensor(rng.normal(size=shape), dtype=torch.float32) for name, shape in shapes.items()}
        folder = tmp_path / str(number)
        folder.mkdir()
        if number == 1:  # as another number of processes writes it
            save_file({"a": weights["a"]}, folder / "model-00001-of-00002.safetensors")
            save_file({name: weights[name] for name in "bc"}, folder / "model-00002-of-00002.safetensors")
            save_file(weights, tmp_path / "whole.safetensors")
        else:
            save_file(weights, folder / "model.safetensors")
        save_file(weights, folder / "optimizer.safetensors")  # is no model's
        folders.append(folder)
        vectors.append(np.concatenate([weights[name].double().numpy().ravel() for name in sorted(shapes)]))
    own, other = vectors[1] - vectors[0], vectors[2] - vectors[0]
    expected = own @ other / np.linalg.norm(own) / np.linalg.norm(other), np.linalg.norm(own), np.linalg.norm(other)
    assert compare_changes(*folders) == pytest.approx(expected, rel=1e-12)
    assert np.isnan(compare_changes(folders[0], folders[0], folders[1])[0])
    (tmp_path / "one").mkdir()
    (tmp_path / "whole.safetensors").rename(tmp_path / "one" / "model.safetensors")
    assert weights_digest(tmp_path / "one") == weights_digest(folders[1]) != weights_digest(folders[0])
