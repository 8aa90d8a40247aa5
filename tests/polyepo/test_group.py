"""A policy spread over the processes of a torchrun group against the same policy in this process."""

import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from polyepo.config import ConfigError, PolicyConfig, SamplingConfig, TrainerResources, UpdateConfig
from polyepo.policy.code import CODE
from polyepo.policy.group import GroupError, GroupTrainer, TrainerGroup, check_codes
from polyepo.policy.packing import level
from polyepo.policy.source import check_trainer
from polyepo.policy.trainer import load_trainer
from polyepo.policy.update import NonFiniteError
from polyepo.policy.weights import open_tensors
from tests.polyepo.test_update import random_batch
from tests.support.byte_model import byte_tokenizer, save_byte_model
from tests.support.processes import PROJECT, until

SAMPLING = SamplingConfig(max_prompt_tokens=8, max_response_tokens=12)
UPDATE = UpdateConfig(lr=1e-3, micro_batch_tokens=40, max_grad_norm=0.3, weight_decay=0.01)
EVERYTHING = UPDATE.model_copy(
    update={
        "prompts_per_minibatch": 3, "epochs": 2, "importance_cap": 1.5, "overlong_filtering": True,
        "schedule": "cosine", "schedule_steps": 4, "decay_norms_and_biases": False, "weight_decay": 0.5,
    }
)  # fmt: skip
CLOSE = {"float32": 1e-5, "float64": 1e-12}

pytestmark = pytest.mark.slow


def settings(model, dtype="float32"):
    return PolicyConfig(model=str(model), device="cpu", num_threads=1, dtype=dtype)


def batches(number):
    """Batches of 8 problems; with 3 rows to a micro-batch or so, ranks have unequal shares."""
    return [random_batch(seed, num_problems=8) for seed in range(number)]


def processes_of(folder):
    """Ids of a group's processes, by its folder: the supervisor, torchrun and the ranks; and of the ranks alone."""
    found, ranks = [], []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command:
            found.append(int(entry.name))
            if "torch.distributed.run" not in command and "polyepo.policy.rank" in command:
                ranks.append(int(entry.name))
    return sorted(found), sorted(ranks)


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()


def difference(one, other):
    """The largest difference of any weight of two model directories."""
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tied head over a padded vocabulary, and 21 weights to share out; no count of rows divides by 2 and 3."""
    folder = tmp_path_factory.mktemp("model")
    return save_byte_model(folder, byte_tokenizer(), padding=7, num_hidden_layers=2, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """Two ranks, for all tests here: their start takes seconds."""
    made = TrainerGroup(TrainerResources(processes=2, logs=str(tmp_path_factory.mktemp("logs"))), "cpu")
    yield made
    made.stop()


def trained(trainer, update, some, folder):
    measured = [trainer.update(batch, update, SAMPLING, seed=3) for batch in some]
    trainer.save(folder)
    return measured


@pytest.mark.parametrize("update", [UPDATE, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_two_ranks_update_as_one_process_does(group, model, tmp_path, dtype, update):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    own = trained(load_trainer(model, settings(model, dtype), update), update, batches(3), here)
    spread = trained(GroupTrainer(group, model, settings(model, dtype), update), update, batches(3), there)
    assert difference(here, there) < CLOSE[dtype]
    assert difference(here, model) > 1e-4, "there was something to learn"
    for one, other in zip(own, spread, strict=True):
        for name, value in vars(one).items():
            assert vars(other)[name] == pytest.approx(value, rel=100 * CLOSE[dtype], abs=100 * CLOSE[dtype]), name


def test_two_ranks_compute_in_bfloat16_over_float32_weights_as_one_process_does(group, model):
    narrow = settings(model).model_copy(update={"compute_dtype": "bfloat16"})
    own, spread = (
        trainer.update(batches(1)[0], EVERYTHING, SAMPLING, seed=3)
        for trainer in (load_trainer(model, narrow, UPDATE), GroupTrainer(group, model, narrow, UPDATE))
    )
    assert spread.loss == pytest.approx(own.loss, abs=1e-3)
    assert spread.grad_norm == pytest.approx(own.grad_norm, rel=1e-2)
    exact = load_trainer(model, settings(model), UPDATE).update(batches(1)[0], EVERYTHING, SAMPLING, seed=3)
    assert spread.grad_norm != pytest.approx(exact.grad_norm, rel=1e-5), "that would be float32"


def test_logprobs_and_samples_are_those_of_one_process(group, model):
    here, there = load_trainer(model, settings(model), UPDATE), GroupTrainer(group, model, settings(model), UPDATE)
    batch = batches(1)[0]
    for own, spread in zip(*(t.logprobs(batch.prompts, batch.responses, 0.7, 40) for t in (here, there)), strict=True):
        np.testing.assert_allclose(own, spread, atol=1e-6)
    own, spread = (trainer.sample([[1, 2], [3]], [[4, 5], [6, 7]], SAMPLING) for trainer in (here, there))
    assert [[s.token_ids for s in row] for row in own] == [[s.token_ids for s in row] for row in spread]


def test_a_checkpoint_goes_on_with_any_number_of_processes(group, model, tmp_path):
    """One, then two, then one, then two again; against one all along."""
    folders = [tmp_path / str(number) for number in range(4)]
    whole = tmp_path / "whole"
    for folder in (*folders, whole):
        folder.mkdir()
    config, some = settings(model, "float64"), batches(8)
    trained(load_trainer(model, config, EVERYTHING), EVERYTHING, some, whole)
    before = model
    for number, folder in enumerate(folders):
        resume = number > 0
        if number % 2:
            trainer = GroupTrainer(group, before, config, EVERYTHING, resume=resume)
        else:
            trainer = load_trainer(before, config, EVERYTHING, resume=resume)
        assert trainer.version == 2 * number
        trained(trainer, EVERYTHING, some[2 * number : 2 * number + 2], folder)
        before = folder
    assert difference(folders[-1], whole) < CLOSE["float64"]
    # Saved and loaded again by as many, nothing changes at all.
    again = tmp_path / "again"
    again.mkdir()
    GroupTrainer(group, folders[-1], config, EVERYTHING, resume=True).save(again)
    assert {f.name: f.read_bytes() for f in again.iterdir()} == {f.name: f.read_bytes() for f in folders[-1].iterdir()}


def test_a_checkpoint_of_two_is_a_hugging_face_directory(group, model, tmp_path):
    trainer = GroupTrainer(group, model, settings(model), UPDATE)
    trainer.update(batches(1)[0], UPDATE, SAMPLING, seed=0)
    trainer.save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json"} <= names
    assert not [name for name in names if not name.endswith((".safetensors", ".json", ".jinja"))], "nothing is pickled"
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert AutoTokenizer.from_pretrained(tmp_path)("one")["input_ids"]
    batch = batches(1)[0]
    (own,) = trainer.logprobs(batch.prompts[:1], batch.responses[:1], 1.0)
    with torch.no_grad():
        logits = loaded(torch.tensor([[*batch.prompts[0], *batch.responses[0]]])).logits[0, :, : len(byte_tokenizer())]
    rows = torch.log_softmax(logits[len(batch.prompts[0]) - 1 : -1], -1)
    expected = rows.gather(-1, torch.tensor(batch.responses[0])[:, None])[:, 0]
    np.testing.assert_allclose(own, expected, atol=1e-6)


def test_an_export_has_the_type_and_the_head_that_are_asked_for(group, model, tmp_path):
    GroupTrainer(group, model, settings(model), UPDATE).export(tmp_path / "out", dtype="bfloat16", head_apart=True)
    loaded = weights(tmp_path / "out")
    assert {tensor.dtype for tensor in loaded.values()} == {torch.bfloat16}
    exact = {name: tensor.bfloat16() for name, tensor in weights(model).items()}
    assert all(torch.equal(loaded[name], exact[name]) for name in exact)
    index = (tmp_path / "out" / "model.safetensors.index.json").read_text()
    assert '"lm_head.weight"' in index


def test_the_names_in_files_are_those_that_the_model_came_with(group, tmp_path):
    """GPT-NeoX calls its head embed_out in files, and lm_head in memory."""
    tokenizer = byte_tokenizer()
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    GroupTrainer(group, tmp_path / "model", settings(tmp_path / "model"), UPDATE).export(tmp_path / "out")
    before, after = dict(open_tensors(tmp_path / "model")), dict(open_tensors(tmp_path / "out"))
    assert "embed_out.weight" in after
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_all_ranks_find_wrong_is_answered_and_survived(group, model, tmp_path):
    trainer = GroupTrainer(group, model, settings(model), UPDATE)
    alive = processes_of(group.scratch)
    batch = batches(1)[0]
    damaged = batch.select(np.arange(len(batch.responses)))
    damaged.advantages[4] = math.nan
    with pytest.raises(NonFiniteError, match="step 1: loss is nan"):
        trainer.update(damaged, UPDATE, SAMPLING, seed=0)
    empty = shutil.copytree(model, tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ConfigError, match="has no weights"):
        GroupTrainer(group, empty, settings(model), UPDATE)
    assert GroupTrainer(group, model, settings(model), UPDATE).update(batch, UPDATE, SAMPLING, seed=0).loss
    assert processes_of(group.scratch) == alive


def test_a_rank_that_is_killed_is_named_and_nothing_is_left(group, model, tmp_path):
    trainer = GroupTrainer(group, model, settings(model), UPDATE)
    everyone, ranks = processes_of(group.scratch)
    assert len(ranks) == 2
    assert trainer.alive
    os.kill(ranks[1], signal.SIGKILL)
    with pytest.raises(GroupError, match=r"while it was asked to update: rank [01] was killed by SIGKILL") as caught:
        trainer.update(batches(1)[0], UPDATE, SAMPLING, seed=0)
    assert caught.value.killed
    assert "update.micro_batch_tokens" in str(caught.value), "the kernel kills for want of memory"
    assert not trainer.alive
    with pytest.raises(GroupError):
        trainer.save(tmp_path)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in everyone))


RUN = """
import sys
from pathlib import Path
from polyepo.policy.group import GroupTrainer, TrainerGroup
from tests.polyepo.test_group import TrainerResources, EVERYTHING, batches, settings, trained
model, folder, logs = sys.argv[1:]
group = TrainerGroup(TrainerResources(processes=3, logs=logs), "cpu")
trained(GroupTrainer(group, model, settings(model), EVERYTHING), EVERYTHING, batches(3), Path(folder))
print(group.scratch, flush=True)
sys.stdin.read()
"""


def test_three_ranks_do_the_same_and_are_gone_when_their_run_is_killed(model, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, model, str(there), str(tmp_path / "logs")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    trained(load_trainer(model, settings(model), EVERYTHING), EVERYTHING, batches(3), here)
    scratch = Path(run.stdout.readline().decode().strip())
    assert len(processes_of(scratch)[1]) == 3
    run.kill()
    run.communicate()
    until(lambda: not processes_of(scratch)[0] and not scratch.exists())
    assert difference(here, there) < CLOSE["float32"]


def test_other_code_on_a_rank_is_refused():
    check_codes([CODE, CODE])
    with pytest.raises(ConfigError, match="rank 1 of the trainer group has other code"):
        check_codes([CODE, "0" * 64])


def test_more_processes_than_gpus_and_what_only_gpus_do_are_refused(monkeypatch):
    def check(device, **resources):
        check_trainer(TrainerResources(**resources), device)

    check("cpu", processes=8)
    check("cuda", processes=1)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check("cuda", processes=2, offload=True)
    with pytest.raises(ConfigError, match=r"resources\.trainer\.processes 4 must not exceed the 2 GPUs"):
        check("cuda", processes=4)
    with pytest.raises(ConfigError, match=r"policy\.device 'cuda:1' names one: set it to cuda"):
        check("cuda:1", processes=2)
    with pytest.raises(ConfigError, match=r"need policy\.device cuda or cpu, and it is mps"):
        check("mps", processes=2)
    with pytest.raises(ConfigError, match=r"resources\.trainer\.offload is for GPUs, and policy\.device is cpu"):
        check("cpu", offload=True)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 120), st.integers(2, 5))
def test_packs_for_ranks_are_level_and_hold_every_row_once(lengths, budget, ranks):
    packs = level(lengths, budget, ranks)
    assert sorted(np.concatenate(packs).tolist()) == list(range(len(lengths)))
    sizes = [sum(lengths[row] for row in pack) for pack in packs]
    assert all(size <= budget or len(pack) == 1 for size, pack in zip(sizes, packs, strict=True))
    if len(packs) > 1:  # what the longest has more than any other is one row, or there is none to move
        assert max(sizes) - min(sizes) <= max(lengths)
    if sum(lengths) <= budget and len(lengths) >= ranks:
        assert len(packs) == ranks, "one pass each"
