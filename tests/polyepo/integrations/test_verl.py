"""Poly-EPO inside verl: its registries, its trainer's step, and what it is told; with verl itself where it is there."""

import json
from itertools import combinations

import numpy as np
import pytest
import torch

from polyepo.errors import ConfigError
from polyepo.imports import Columns
from polyepo.objectives import Polychromic
from storage import connect, rows
from tasks.runs.imports import import_rollouts
from tests.support import verl as support

METHOD = """
judge: {name: function, function: "judge.py:first_word"}
scoring: {set_size: 2}
"""
JUDGE = """
def first_word(problem, responses):
    assert problem.metadata["level"] == len(problem.prompt[0]["content"])
    return [text.split()[0] if text.split() else None for text in responses]
"""
TEXTS = {"a": ["one x", "one y", "two", ""], "bb": ["one", "two", "three x y", "one z"]}
REWARDS = {"a": [1.0, 0.0, 1.0, 1.0], "bb": [0.0, 0.0, 1.0, 0.0]}
WORDS = sorted({word for texts in TEXTS.values() for text in texts for word in text.split()})
N, END = 4, len(WORDS)


class Tokenizer:
    """Words by number, and an end."""

    def encode(self, text):
        return [*map(WORDS.index, text.split()), END]

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return " ".join(WORDS[i] for i in ids if i != END)


@pytest.fixture(scope="module")
def installed():
    with pytest.MonkeyPatch.context() as patch:
        yield support.install(patch)


@pytest.fixture
def queue(installed):
    installed.rows.clear()
    return installed


@pytest.fixture
def method(tmp_path):
    (tmp_path / "judge.py").write_text(JUDGE)
    (tmp_path / "method.yaml").write_text(METHOD)
    return tmp_path / "method.yaml"


@pytest.fixture
def trainer(queue, method, tmp_path):
    from verl.trainer.ppo.v1 import get_trainer_cls

    from polyepo.integrations import verl

    assert get_trainer_cls("poly_epo") is verl.PolyEPOTrainer
    made = verl.PolyEPOTrainer(support.config(N, tmp_path / "out", method=method))
    made.tokenizer, made.global_steps = Tokenizer(), 7
    return made


def filled(queue):
    """A batch of two prompts, in no order, with a row that verl adds to fill it up."""
    prompts = {uid: list(zip(TEXTS[uid], REWARDS[uid], strict=True)) for uid in TEXTS}
    for uid, responses in prompts.items():
        for session, (text, reward) in enumerate(responses):
            ids = Tokenizer().encode(text)
            queue.rows[f"{uid}_{session}_0"] = {
                "uid": uid,
                "raw_prompt": [{"role": "user", "content": uid}],
                "responses": torch.tensor(ids),
                "response_mask": torch.ones(len(ids), dtype=torch.int64),
                "rm_scores": torch.tensor([*[0.0] * (len(ids) - 1), reward]),
                "reward_model": {"ground_truth": "42", "style": "rule"},
                "extra_info": {"level": len(uid)},
            }
    queue.rows["pad_0_0"] = {
        **queue.rows["a_0_0"],
        "uid": "pad",
        "responses": torch.tensor([END]),
        "response_mask": torch.zeros(1, dtype=torch.int64),
        "rm_scores": torch.zeros(1),
    }
    keys = [list(queue.rows)[i] for i in (5, 0, 8, 3, 6, 1, 2, 7, 4)]
    return support.batch(keys, [{"is_padding": True} if key.startswith("pad") else {} for key in keys])


def expected(uid):
    """Marginal set advantages by listing all sets."""
    names = [text.split()[0] if text.split() else None for text in TEXTS[uid]]
    clusters = np.array([-1 if name is None else names.index(name) for name in names])
    sets = list(combinations(range(N), 2))
    scores = {s: float(Polychromic()(np.array(REWARDS[uid])[[*s]], clusters[[*s]])) for s in sets}
    mean = np.mean(list(scores.values()))
    return [np.mean([scores[s] for s in sets if i in s]) - mean for i in range(N)]


def test_a_step_gets_the_advantages_of_all_sets(queue, trainer):
    metrics = {}
    batch = filled(queue)
    assert trainer._compute_advantage(batch, metrics).keys == batch.keys
    for uid in TEXTS:
        for session, advantage in enumerate(expected(uid)):
            row = queue.rows[f"{uid}_{session}_0"]
            assert row["advantages"].tolist() == pytest.approx([advantage] * len(row["responses"]), abs=1e-6)
    assert any(expected("a"))
    assert queue.rows["pad_0_0"]["advantages"].tolist() == [0.0]
    assert metrics["strategies/distinct"] == 2.5
    assert metrics["strategies/distinct_successful"] == 1.5


def test_what_it_writes_is_imported_without_a_mapping(queue, trainer, tmp_path):
    trainer._compute_advantage(filled(queue), {})
    (file,) = (tmp_path / "out" / "rollouts").glob("*")
    written = [json.loads(line) for line in file.open()]
    assert {row["cluster"] for row in written if row["response"] == ""} == {None}
    from polyepo.domains import Maths

    found = import_rollouts(str(tmp_path / "s"), [file], "auto", Columns(), Maths(path="x"), "run", strict=True)
    assert (found.num_responses, found.num_graded, found.num_problems, found.steps) == (2 * N, 2 * N, 2, [7])
    query = (
        "SELECT prompt, answer, response, reward, advantage FROM rollouts JOIN scores USING (run, step, problem_id, "
        "sample) JOIN problems USING (run, problem_id) WHERE reward IS NOT NULL"
    )
    stored = rows(connect(str(tmp_path / "s")), query)
    assert {row["answer"] for row in stored} == {"42"}
    found = sorted((row["response"], row["reward"]) for row in stored)
    assert found == sorted((t, r) for uid in TEXTS for t, r in zip(TEXTS[uid], REWARDS[uid], strict=True))


def test_the_estimator_without_its_trainer_says_what_to_set(queue, trainer):
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    rewards, mask = torch.ones(4, 1), torch.ones(4, 1)
    with pytest.raises(ConfigError, match=r"set trainer.v1.trainer_mode=poly_epo"):
        get_adv_estimator_fn("poly_epo")(
            token_level_rewards=rewards, response_mask=mask, config=None, index=np.array(["a"] * 4, dtype=object)
        )


def test_several_outputs_of_a_response_are_refused(queue, trainer):
    batch = filled(queue)
    queue.rows["a_0_1"] = queue.rows["a_0_0"]
    with pytest.raises(ConfigError, match="several outputs"):
        trainer._compute_advantage(support.batch([*batch.keys, "a_0_1"], [*batch.tags, {}]), {})


def test_what_cannot_be_is_said_before_anything_is_sampled(queue, trainer, method, tmp_path):
    make = type(trainer)
    with pytest.raises(ConfigError, match=r"\+poly_epo.method="):
        make(support.config(N, tmp_path))
    with pytest.raises(ConfigError, match="cannot be read"):
        make(support.config(N, tmp_path, method=tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match=r"set_size.* 2 must not exceed"):
        make(support.config(1, tmp_path, method=method))
