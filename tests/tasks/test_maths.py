"""Mathematics end to end with a random model that covers any text: asked, sampled, graded, stored, updated, queried.

Rewards are about 0; that everything is there and fits together is what is tested.
"""

import json
from pathlib import Path

import pytest

from polyepo.config import ConfigError, load_config, parse_config
from polyepo.domains.answers import final_answer
from polyepo.schemas import EVALS
from storage import connect
from tasks.evaluate import evaluate
from tasks.runs import policies as policies
from tasks.runs.benchmarks import leakage
from tasks.runs.evaluating import add_benchmark, evaluate_missing
from tasks.runs.evaluations import Benchmark, read_evaluation
from tasks.runs.policies import check_prompts, policy_at
from tasks.runs.run import create_or_resume
from tests.support.byte_model import byte_tokenizer, save_byte_model
from tests.support.config import small_config
from tests.support.maths import config_of, own_files
from tests.support.runs import train


@pytest.fixture(params=["own", "real"])
def files(request, tmp_path):
    """Training problems, held-out problems, another benchmark."""
    if request.param == "own":
        return own_files(tmp_path)
    data = request.getfixturevalue("real_data")
    (tmp_path / "math500.jsonl").write_bytes((data / "math500" / "test.jsonl").read_bytes())
    return data / "gsm8k" / "train.jsonl", data / "gsm8k" / "test.jsonl", tmp_path / "math500.jsonl"


def test_sampled_graded_stored_updated_and_queried(files, tmp_path):
    config = config_of(save_byte_model(tmp_path / "model"), files)
    run = create_or_resume(str(tmp_path / "root"), "m", config)
    check_prompts(run)
    train(run)
    for step in (0, 2):
        evaluate.fn(run.store.root, run.name, step)
    updates = run.store.read_table(run.key("updates", 2)).to_pylist()[0]
    assert updates["grad_norm"] > 0
    assert updates["logprob_mismatch_max"] < 1e-4
    reasons = run.store.read_table(run.key("rollouts", 2, 0))["finish_reason"].to_pylist()
    assert updates["truncated_rate"] == reasons.count("length") / 16
    assert 0 < updates["truncated_rate"] < 1, "both ends of a response occur"

    benchmark = add_benchmark(run, str(files[2]), 2)
    evaluate_missing(run, benchmark, 2, 1, config.judge)

    database = connect(run.store.root)
    num_train, num_heldout = (sum(1 for line in file.open() if line.strip()) for file in files[:2])
    counts = dict(database.execute("SELECT split, count(*) FROM problems GROUP BY ALL").fetchall())
    assert counts == {"train": num_train, "heldout": num_heldout, "math500": len(benchmark.problems)}
    assert database.execute("SELECT count(*) FROM rollouts").fetchone() == (32,)
    assert database.execute("SELECT count(*) FROM evals WHERE benchmark = 'math500'").fetchone() == (counts["math500"],)
    assert database.execute("FROM pass_at_k(1) WHERE benchmark = 'math500'").fetchall()
    graded = database.execute("SELECT response, parsed_answer, reward FROM evals").fetchall()
    assert all(final_answer(response) == parsed for response, parsed, _ in graded)
    assert {reward for *_, reward in graded} <= {0.0, 1.0}
    assert_asked_the_same(run, benchmark)

    policies._live.clear()
    before = [p.detach().clone() for p in policy_at(run, 1).policy.model.parameters()]
    after = policy_at(run, 2).policy.model.parameters()
    assert any((a != b).any() for a, b in zip(before, after, strict=True))


def assert_asked_the_same(run, benchmark):
    """Training and evaluation put to the model what the problems table says, by one template."""
    tokenizer = policy_at(run, 2).language.tokenizer
    rows = run.store.read_table(run.key("rollouts", 1, 0)).to_pylist()
    rows += read_evaluation(run, "heldout", 0, EVALS.names) + read_evaluation(run, benchmark.name, 2, EVALS.names)
    asked = [*run.split("train"), *run.split("heldout"), *benchmark.problems]
    problems = {p.problem_id: p for p in asked}
    assert {row.get("benchmark") for row in rows} == {None, "heldout", "math500"}
    for row in rows:
        system, user = problems[row["problem_id"]].prompt
        assert tokenizer.decode(row["prompt_token_ids"]) == (
            f"<|im_start|>system\n{system['content']}<|im_end|>\n<|im_start|>user\n{user['content']}<|im_end|>\n"
            "<|im_start|>assistant\n<think></think>"
        )


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ({"max_position_embeddings": 1024}, {}, "exceed the 1024 positions of the model"),
        ({"tokenizer": "plain"}, {}, "no chat template"),
        ({}, {"policy": {"chat_template_kwargs": {"thinking": True}}}, "does not use 'thinking'"),
        (
            {},
            {"sampling": {"prompts_per_step": 4, "max_prompt_tokens": 9, "max_response_tokens": 64}},
            "tokens; it must",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_at_the_start(tmp_path, model, changes, message):
    if model.get("tokenizer"):
        model["tokenizer"] = byte_tokenizer()
        model["tokenizer"].chat_template = None
    directory = save_byte_model(tmp_path / "model", **model)
    if "policy" in changes:
        changes = {"policy": {"model": directory, "device": "cpu", **changes["policy"]}}
    run = create_or_resume(str(tmp_path / "root"), "m", config_of(directory, own_files(tmp_path), **changes))
    with pytest.raises(ConfigError, match=message):
        check_prompts(run)


@pytest.mark.parametrize("name", ["gsm8k", "paper-math", "paper-polynomial", "paper-multiplication"])
def test_a_step_of_each_shipped_config(tmp_path, name):
    """With a model, a judge, a sampler and sizes that fit here; everything else is as it is shipped."""
    here = {
        "steps": 1,
        "policy.model": save_byte_model(tmp_path / "model"),
        "policy.device": "cpu",
        "sampler": {"name": "transformers"},
        "judge": {"name": "program"},
        "sampling.prompts_per_step": 4,
        "sampling.max_prompt_tokens": 500,
        "sampling.max_response_tokens": 128,
        "sampling.shards": 2,
        "evaluation": None,
    }
    if name in ("gsm8k", "paper-math"):
        train_file, test_file, math500 = own_files(tmp_path)
        here |= {"domain.path": str(train_file if name == "gsm8k" else math500), "domain.heldout_path": str(test_file)}
        here |= {"domain.heldout_split": None}
    if name != "gsm8k":
        here |= {"update.prompts_per_minibatch": 2}
    configs = load_config(Path(__file__).parents[2] / "configs" / f"{name}.yaml", here)
    run = create_or_resume(str(tmp_path / "root"), name, list(configs.runs(name).values())[-1])
    check_prompts(run)
    train(run)
    row = run.store.read_table(run.key("updates", 1)).to_pylist()[0]
    assert (row["num_responses"], row["prompts"]) == (32, 4)
    assert row["logprob_mismatch_max"] < 1e-4


def test_leakage_is_refused_or_dropped(tmp_path):
    train = [{"problem": f"P{i}", "answer": str(i), "id": f"t{i}"} for i in range(6)]
    heldout = [{"problem": " p3", "answer": "3", "id": "h3"}, {"problem": "other", "answer": "1", "id": "h4"}]
    for name, rows in (("train", train), ("heldout", heldout)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    domain = {
        "name": "maths",
        "path": str(tmp_path / "train.jsonl"),
        "heldout_path": str(tmp_path / "heldout.jsonl"),
    }

    unread = tmp_path / "model"
    unread.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (unread / name).touch()

    def make(**changes):
        raw = small_config(domain={**domain, **changes})
        raw["policy"] = {"model": str(unread)}
        return create_or_resume(str(tmp_path / "root"), "r", parse_config(raw).runs("r")["r"])

    with pytest.raises(ValueError, match=r"1 of 2 held-out problems .* such as 'h3', which is 't3'.*unusable: drop"):
        make()
    run = make(unusable="drop")
    assert [p.problem_id for p in run.split("train")] == ["t0", "t1", "t2", "t4", "t5"]
    assert [p.problem_id for p in run.split("heldout")] == ["h3", "h4"]
    benchmark = Benchmark("b", run.config.domain, tuple(run.split("train")[:2]))
    assert leakage(run, benchmark).startswith("2 of 2 problems of b are training problems of r, such as 't0', which")
    assert leakage(run, Benchmark("b", run.config.domain, tuple(run.split("heldout")))) is None
