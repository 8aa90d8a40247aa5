"""Poly-EPO inside TRL's GRPOTrainer: a few steps of a tiny model, with TRL itself."""

import json
from itertools import combinations

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("trl", reason="needs TRL: pip install 'poly-epo[trl]'")

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig

from polyepo.domains import Domain, Strategy, Ungraded
from polyepo.errors import ConfigError
from polyepo.imports import Columns
from polyepo.integrations.method import Method
from polyepo.integrations.trl import PolyEPOTrainer
from polyepo.judges import ProgramJudge
from polyepo.objectives import Polychromic
from polyepo.policy.warm_start import word_tokenizer
from polyepo.scoring import SetScoring
from storage import connect, rows
from tasks.runs.imports import import_rollouts

N, SET_SIZE = 4, 2
WORDS = [str(number) for number in range(6)]


class FirstWord(Domain):
    """A response's strategy is its first word; a problem knows its row's columns."""

    name: str = "first-word"

    def strategy(self, problem, response):
        assert problem.metadata == {"level": 3}
        return Strategy(response.split()[0], "") if response.split() else None


def large(completions, answer, **_):
    """Right is a first word that is no smaller than the answer: an untrained model has both."""
    return [float(text.split()[:1] >= [a]) for text, a in zip(completions, answer, strict=True)]


def short(completions, **_):
    """A function that says nothing of most responses."""
    return [1.0 if len(text.split()) < 3 else None for text in completions]


class Watched(PolyEPOTrainer):
    """Keeps what the update is given."""

    def _generate_and_score_completions(self, inputs):
        made = super()._generate_and_score_completions(inputs)
        self.given = [*getattr(self, "given", []), made]
        return made


def trainer(folder, method, kind=PolyEPOTrainer, **settings):
    torch.manual_seed(0)
    tokenizer = word_tokenizer(WORDS)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=64, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        )
    )  # fmt: skip
    data = [{"prompt": f"{a} {b}", "answer": str(b), "level": 3} for a in range(4) for b in range(6)]
    args = GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=4, gradient_accumulation_steps=2, num_generations=N,
        max_completion_length=4, max_steps=2, learning_rate=1e-2, report_to=[], use_cpu=True, save_strategy="no",
        logging_steps=1, log_completions=True, num_completions_to_print=0, disable_tqdm=True,
        reward_weights=[1.0, 0.25], **settings,
    )  # fmt: skip
    return kind(
        method=method, model=model, args=args, reward_funcs=[large, short], processing_class=tokenizer,
        train_dataset=Dataset.from_list(data),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trl")
    made = trainer(folder, Method(ProgramJudge(), SetScoring(set_size=SET_SIZE), FirstWord()), Watched)
    before = [weight.detach().clone() for weight in made.model.parameters()]
    made.train()
    return folder, made, before


def written(folder):
    return [json.loads(line) for file in sorted(folder.glob("rollouts/*.jsonl")) for line in file.open()]


def test_the_update_is_given_the_advantages_of_all_sets(trained):
    folder, made, before = trained
    found = written(folder)
    assert len(found) == 2 * 2 * N
    given = torch.cat([step["advantages"] for step in made.given]).tolist()
    objective = Polychromic()
    distinct = []
    for start in range(0, len(found), N):
        group = found[start : start + N]
        assert len({(row["step"], row["prompt"]) for row in group}) == 1
        names = sorted({row["response"].split()[0] if row["response"].split() else "" for row in group})
        clusters = [names.index(row["response"].split()[0]) if row["response"].split() else -1 for row in group]
        rewards = [
            (row["response"].split()[:1] >= [row["answer"]]) + 0.25 * (len(row["response"].split()) < 3)
            for row in group
        ]
        assert [row["reward"] for row in group] == pytest.approx(rewards)
        sets = list(combinations(range(N), SET_SIZE))
        scores = {s: float(objective(np.array(rewards)[[*s]], np.array(clusters)[[*s]])) for s in sets}
        mean = np.mean(list(scores.values()))
        expected = [np.mean([scores[s] for s in sets if i in s]) - mean for i in range(N)]
        assert given[start : start + N] == pytest.approx(expected, abs=1e-6)
        assert [row["advantage"] for row in group] == pytest.approx(expected, abs=1e-9)
        distinct.append(len({*clusters} - {-1}))
    assert any(given), "a test without any signal shows nothing"
    assert any((old != new).any() for old, new in zip(before, made.model.parameters(), strict=True))
    logged = [entry["strategies/distinct"] for entry in made.state.log_history if "strategies/distinct" in entry]
    assert np.mean(logged) == pytest.approx(np.mean(distinct))


def test_rewards_are_still_logged_by_function(trained):
    folder, made, _ = trained
    assert {"rewards/large/mean", "rewards/short/mean"} <= made.state.log_history[0].keys()
    table = pq.read_table(folder / "completions").to_pylist()
    ours = {(row["step"], row["prompt"], row["response"], round(row["advantage"], 5)) for row in written(folder)}
    assert {(r["step"], r["prompt"], r["completion"], round(r["advantage"], 5)) for r in table} == ours
    assert all(row["strategy"] == (row["completion"].split() or [None])[0] for row in table)


@pytest.mark.parametrize("form", ["rollouts/*.jsonl", "completions/*.parquet"])
def test_what_it_writes_is_imported_without_a_mapping(trained, tmp_path, form):
    folder, _, _ = trained
    files = sorted(folder.glob(form))
    found = import_rollouts(str(tmp_path), files, "auto", Columns(), Ungraded(), "run", strict=True)
    assert (found.num_responses, found.steps, found.bad) == (4 * N, [1, 2], [])
    query = "SELECT r.step, prompt, response FROM rollouts r JOIN problems USING (run, problem_id)"
    stored = rows(connect(str(tmp_path)), query)
    assert sorted(map(tuple, (r.values() for r in stored))) == sorted(
        (row["step"], row["prompt"], row["response"]) for row in written(folder)
    )


def test_what_cannot_be_is_said_before_anything_is_sampled(tmp_path):
    with pytest.raises(ConfigError, match=r"set_size.* 5 must not exceed"):
        trainer(tmp_path, Method(ProgramJudge(), SetScoring(set_size=5)))
