"""What `polyepo plan` says beforehand, against what real steps then took."""

import json
import math
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, DynamicCache, GPT2Config, LlamaConfig, Qwen3Config
from typer.testing import CliRunner

from flows.cli import app
from flows.plan import Device, _plan_run, findings, make_plan
from flows.plan.amounts import PROCESS_BYTES, Problems, amounts, largest_micro_batch
from flows.plan.facts import ModelFacts, Shape
from flows.plan.model import cache_bytes, load_model, micro_batch_bytes
from flows.services import local_stack
from polyepo.config import SamplingConfig, UpdateConfig, parse_config
from polyepo.findings import Severity
from polyepo.judges import Group
from polyepo.policy.language import Language
from polyepo.policy.logprobs import choose_engine, micro_batches
from polyepo.policy.model import Policy
from polyepo.policy.update import Batch, update
from polyepo.policy.warm_start import word_tokenizer
from storage import open_store
from tasks.evaluate import evaluate
from tasks.runs.evaluations import evaluated_steps, parts, read_evaluation
from tests.support.config import small_config
from tests.support.runs import start, train

LLM = {
    "name": "llm",
    "model": "judge",
    "base_url": "http://127.0.0.1:1/v1",
    "price_per_million_input": 1.0,
    "price_per_million_output": 2.0,
    "max_cost": 1000,
}


def one(**changes):
    return parse_config(small_config(**changes)).runs("run")["run"]


def plan_of(**changes):
    return _plan_run("run", one(**changes))


def cli(path, *arguments):
    return CliRunner().invoke(app, ["plan", str(path), *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def file(tmp_path):
    def write(**changes):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(small_config(**changes)))
        return path

    return write


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of five steps in two shards, with its evaluations."""
    config = one(steps=5, checkpoint_every=2, sampling={"shards": 2}, evaluation={"num_samples": 20, "every": 2})
    run = start(str(tmp_path_factory.mktemp("plan")), config)
    train(run)
    for step in (0, 2, 4, 5):
        evaluate.fn(run.store.root, run.name, step)
    return run


def bytes_below(root, *folders):
    return sum(f.stat().st_size for folder in folders for f in Path(root, folder).rglob("*") if f.is_file())


def test_a_plan_is_what_the_run_then_takes(finished):
    run, plan = finished, _plan_run("run", finished.config)
    rollouts = [
        row
        for step in range(1, 6)
        for s in range(2)
        for row in run.store.read_table(run.key("rollouts", step, s)).to_pylist()
    ]
    training, evaluation = plan.amounts.training, plan.amounts.evaluation
    assert training.times * training.responses == len(rollouts)
    sampled = sum(len(row["response_token_ids"]) for row in rollouts)
    assert 0.5 * training.times * training.response_tokens < sampled <= training.times * training.response_tokens
    assert plan.amounts.repeats == 5 * 4 / len(run.split("train"))
    assert evaluation.times == len(evaluated_steps(run, "heldout"))
    assert evaluation.responses == len(read_evaluation(run, "heldout", 5, []))
    assert len(parts(run, "heldout", 5)) == 2
    steps = run.store.steps(run.name, "checkpoints")
    assert plan.amounts.checkpoints == len(steps) == 3
    base = f"{run.store.root}/runs/run"
    assert plan.amounts.checkpoint * 3 == pytest.approx(bytes_below(base, "checkpoints"), rel=0.02)
    tables = bytes_below(base, "rollouts", "labels", "scores", "updates", "evals")
    assert tables == pytest.approx(plan.amounts.records, rel=0.3)


def test_nothing_is_written(file, tmp_path):
    root = tmp_path / "root"
    result = cli(file(), "--root", root)
    assert result.exit_code == 0, result.output
    assert not root.exists()
    for said in ("1 of 6 steps", "2 checkpoints", "micro-batch: 16 x (4 + 8) tokens", "it fits"):
        assert said in result.output


def small_models():
    sizes = {"vocab_size": 3000, "num_hidden_layers": 3}
    llama = {**sizes, "hidden_size": 64, "intermediate_size": 200, "num_attention_heads": 4}
    return [
        LlamaConfig(**llama, num_key_value_heads=2, tie_word_embeddings=True),
        Qwen3Config(**llama, num_key_value_heads=1, head_dim=32, tie_word_embeddings=False),
        GPT2Config(vocab_size=3000, n_layer=2, n_embd=64, n_head=4),
    ]


def facts(config, dtype=torch.float32):
    def build():
        return AutoModelForCausalLM.from_config(config, dtype=dtype)

    model = build()
    count = sum(p.numel() for p in model.parameters())
    return ModelFacts(build, count, count * dtype.itemsize, config.max_position_embeddings, config.vocab_size)


def allocated_at_peak(work):
    """Bytes that torch's own allocator held at most while `work` ran, beyond those before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(np.cumsum(changes))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("dtype", "compute"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.float32, torch.bfloat16)],
    ids=["float32", "bfloat16", "bfloat16 over float32"],
)
@pytest.mark.parametrize("config", small_models(), ids=lambda config: config.model_type)
def test_the_updates_memory_is_what_the_allocator_then_held(config, dtype, compute, checkpointing):
    model = facts(config, dtype)
    real = model.build().eval()
    optimizer = torch.optim.AdamW(real.parameters(), lr=1e-4)
    language = Language(word_tokenizer([str(i) for i in range(2997)]), real.config, frozenset([0]))
    policy = Policy(real, language, optimizer, engine=choose_engine(real, dtype=compute))
    rng = np.random.default_rng(0)
    shape, rows = Shape(8, 20, 60), range(16)
    batch = Batch(
        [f"p{i // 4}" for i in rows],
        [rng.integers(3000, size=shape.prompt).tolist() for _ in rows],
        [rng.integers(3000, size=shape.response).tolist() for _ in rows],
        [np.full(shape.response, -8, np.float32) for _ in rows],
        rng.normal(size=16),
        np.zeros(16, dtype=bool),
    )
    settings = UpdateConfig(
        micro_batch_tokens=shape.rows * (shape.prompt + shape.response), gradient_checkpointing=checkpointing
    )
    sampling = SamplingConfig(prompts_per_step=4, num_responses=4, max_response_tokens=shape.response)
    update(policy, batch, settings, sampling, 0)  # now AdamW has its moments
    held = allocated_at_peak(lambda: update(policy, batch, settings, sampling, 0))
    assert held == pytest.approx(
        model.weights + micro_batch_bytes(model, shape, policy.engine, checkpointing), rel=0.05
    )


@pytest.mark.parametrize("config", small_models(), ids=lambda config: config.model_type)
def test_the_cache_is_what_a_real_one_holds(config):
    model = facts(config)
    cache = DynamicCache(config=config)
    with torch.no_grad():
        model.build()(input_ids=torch.zeros(1, 50, dtype=torch.long), past_key_values=cache, use_cache=True)
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(model, 50) == real


def test_a_model_is_known_by_its_config_alone(tmp_path):
    config = small_models()[1]
    config.save_pretrained(tmp_path)
    policy = one(policy={"warm_start": None, "model": str(tmp_path), "dtype": "bfloat16"}).policy
    real = AutoModelForCausalLM.from_config(config)
    found = load_model(policy, None)
    assert found.num_parameters == real.num_parameters()
    assert found.weights == 2 * found.num_parameters
    assert found.positions == config.max_position_embeddings


def test_prompts_are_as_long_as_the_chat_template_makes_them(tmp_path):
    tokenizer = word_tokenizer(["1", "think", "user"])
    tokenizer.chat_template = (
        "{% for message in messages %}user {{ message.content }}{% endfor %}{% if deep %} think think{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    rows = [{"problem": [{"role": "user", "content": f"number{i} 1"}], "answer": str(i)} for i in range(8)]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    policy = {"warm_start": None, "model": str(tmp_path)}
    domain = {"name": "maths", "path": str(tmp_path / "problems.jsonl"), "heldout_fraction": 0.3}
    sampling = {"max_prompt_tokens": 4}
    real = AutoModelForCausalLM.from_config(small_models()[0])
    real.save_pretrained(tmp_path)
    same = {"domain": domain, "sampling": sampling, "scoring": {"method": "grpo"}}
    assert plan_of(policy=policy, **same).findings == []
    deep = plan_of(policy={**policy, "chat_template_kwargs": {"deep": True}}, **same)
    assert deep.findings[0].what == "domain: 8 prompts are longer than sampling.max_prompt_tokens 4"
    assert deep.findings[0].remedy.startswith("raise it to 5 ")
    same["sampling"] = {"max_prompt_tokens": 5}
    longer = plan_of(policy={**policy, "chat_template_kwargs": {"deep": True}}, **same)
    assert longer.findings == []


def test_a_model_that_is_not_at_hand_is_not_known(file):
    result = cli(file(policy={"warm_start": None, "model": "nobody/nothing"}))
    assert result.exit_code == 0, result.output
    assert "? not known: memory: policy.model 'nobody/nothing' is not at hand" in result.output
    assert "response tokens" in result.output


@given(st.data())
def test_no_real_micro_batch_is_larger(data):
    limits = data.draw(st.tuples(st.integers(1, 30), st.integers(1, 40)))
    lengths = data.draw(st.lists(st.tuples(*(st.integers(1, limit) for limit in limits)), min_size=1, max_size=24))
    budget = data.draw(st.integers(1, 300))
    prompts, responses = 6, 4
    config = one(
        sampling={
            "prompts_per_step": prompts,
            "num_responses": responses,
            "max_prompt_tokens": limits[0],
            "max_response_tokens": limits[1],
        },
        update={"micro_batch_tokens": budget},
    )
    shape = largest_micro_batch(config, Problems([], [], {str(i): p for i, (p, _) in enumerate(lengths)}))
    for group in micro_batches(lengths, budget):
        assert len(group) * max(lengths[row][1] for row in group) <= shape.rows * shape.response


def test_the_judges_calls_are_counted_and_priced():
    config = one(steps=10, judge=LLM, evaluation={"num_samples": 20})
    plan = _plan_run("run", config)
    training, evaluation = plan.amounts.training, plan.amounts.evaluation
    heldout = config.domain.problems("heldout")
    assert (training.judge.calls, evaluation.judge.calls) == (4, 2 * len(heldout))
    texts = [f"{i}" + "word " * 8 for i in range(4)]  # eight tokens, as long as a response may be
    real = config.judge.estimate(config.domain, [Group(p, texts) for p in config.domain.problems("train")[:4]])
    assert training.judge.prompt_tokens == pytest.approx(real.prompt_tokens, rel=0.1)
    asked = 10 * training.judge.prompt_tokens + 2 * evaluation.judge.prompt_tokens
    answered = 10 * training.judge.completion_tokens + 2 * evaluation.judge.completion_tokens
    assert plan.amounts.judge_cost == pytest.approx((asked + 2 * answered) / 1e6)


FATAL = [
    ({"scoring": {"set_size": 4}}, "scoring.set_size 4 is sampling.num_responses"),
    ({"scoring": {"set_size": 1}}, "scoring.set_size 1 with require_two_clusters"),
    ({"scoring": {"num_sets": 1}}, "scoring.num_sets 1"),
    ({"sampling": {"num_responses": 1}, "scoring": {"method": "grpo"}}, "sampling.num_responses 1"),
    (
        {"sampling": {"max_response_tokens": 505}},
        "max_response_tokens 505 = 513 is more than the model's 512 positions",
    ),
    ({"sampling": {"max_prompt_tokens": 3}}, "20 prompts are longer than sampling.max_prompt_tokens 3"),
    ({"update": {"lr": 0.0}}, "update.lr 0"),
]
UNWISE = [
    ({"update": {"micro_batch_tokens": 11}}, "update.micro_batch_tokens 11 is less than one response"),
    ({"steps": 6, "update": {"lr": 0.25, "schedule": "linear", "schedule_steps": 5}},
     "steps 6 go on after update.schedule_steps 5 with the learning rate of its last step, 0.05"),
    ({"scoring": {"num_sets": 3}}, "scoring.num_sets 3 of 6 sets"),
    ({"scoring": {"set_size": 3}}, "scoring.set_size 3 of sampling.num_responses 4: any two sets share 2 responses"),
    ({"domain": {"name": "multiplication"}, "sampling": {"max_response_tokens": 16}, "judge": {"name": "answer"}},
     "sets of 2 score best at 50% right answers"),
    ({"judge": {**LLM, "price_per_million_input": None, "price_per_million_output": None, "max_cost": None}},
     "judge.price_per_million_input and price_per_million_output are not set"),
    ({"judge": {**LLM, "max_cost": None}}, "judge.max_cost is not set"),
    ({"sampler": {"name": "vllm", "base_urls": ["http://127.0.0.1:1"], "weights_dir": "/"}},
     "sampler.base_urls: 'http://127.0.0.1:1' does not answer"),
    ({"sampler": {"name": "vllm", "base_urls": ["http://127.0.0.1:1"], "weights_dir": "no-such-folder"}},
     "sampler.weights_dir 'no-such-folder' is no folder"),
    ({"judge": LLM}, "judge.base_url 'http://127.0.0.1:1/v1' does not answer"),
    ({"judge": {**LLM, "max_cost": 1e-3}}, "judge.max_cost 0.001 stops the run"),
    ({"judge": {**LLM, "api_key_env": "NO_SUCH_KEY"}}, "NO_SUCH_KEY is not set"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), FATAL, ids=[said for _, said in FATAL])
def test_what_will_not_work_is_named(file, changes, said):
    result = cli(file(**changes))
    assert result.exit_code == 1, result.output
    line = next(line for line in result.output.splitlines() if said in line)
    assert line.startswith("✗")
    assert "it fits" not in result.output


def test_training_says_what_its_objective_wants_before_it_starts(tmp_path, monkeypatch):
    """Of the arm whose objective it is; here nothing can start."""

    def refuse(say):
        raise local_stack.StackError("no stack")

    monkeypatch.setattr(local_stack, "start", refuse)
    arguments = ["train", "configs/multiplication.yaml", "--root", str(tmp_path), "--set", 'judge={"name":"answer"}']
    output = CliRunner().invoke(app, arguments, env={"COLUMNS": "400"}).output
    [line] = [line for line in output.splitlines() if "scoring.objective polychromic pays for wrong answers" in line]
    assert line.startswith("! multiplication-poly-epo: ")
    assert "sets of 4 score best at 56% right answers" in line
    assert "set scoring.objective to mean_plus_distinct" in line
    assert output.index(line) < output.index("no stack")


@pytest.mark.parametrize(("changes", "said"), UNWISE, ids=[said for _, said in UNWISE])
def test_what_is_unwise_is_named(file, changes, said):
    result = cli(file(**changes))
    assert result.exit_code == 0, result.output
    assert said in result.output
    assert "✗" not in result.output


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"device": "cuda:99"}, "policy.device 'cuda:99': torch finds "),
        ({"model": "./no-such-model"}, "policy.model './no-such-model': no such directory"),
        ({"model": "/no/such/model"}, "policy.model '/no/such/model': no such directory"),
        ({"model": "models/of/mine"}, "policy.model 'models/of/mine': no such directory"),
        ({"model": "{here}/file"}, "file': no such directory"),
        ({"model": "{here}/empty"}, "has no config.json"),
        ({"model": "{here}/config-only"}, "has no weights (*.safetensors)"),
        ({"model": "{here}/no-tokenizer"}, "has no tokenizer with it"),
        ({"model": "{here}/unknown-kind"}, "is not at hand"),
    ],
    ids=str,
)
def test_what_is_not_there_does_not_fit(file, tmp_path, policy, said):
    (tmp_path / "file").touch()
    for folder in ("empty", "unknown-kind"):
        (tmp_path / folder).mkdir()
    small_models()[0].save_pretrained(tmp_path / "config-only")
    AutoModelForCausalLM.from_config(small_models()[0]).save_pretrained(tmp_path / "no-tokenizer")
    (tmp_path / "unknown-kind" / "config.json").write_text('{"model_type": "no-such-architecture"}')
    (tmp_path / "unknown-kind" / "model.safetensors").touch()
    word_tokenizer(["1"]).save_pretrained(tmp_path / "unknown-kind")
    if "model" in policy:
        policy = {"warm_start": None, "model": policy["model"].replace("{here}", str(tmp_path))}
    result = cli(file(policy=policy))
    assert result.exit_code == 1, result.output
    line = next((line for line in result.output.splitlines() if said in line), result.output)
    assert line.startswith("✗")
    assert "it fits" not in result.output
    assert "not known" not in result.output or "device" in policy


def test_memory_that_nobody_can_tell_is_not_known(file, monkeypatch):
    monkeypatch.setattr("flows.plan.surroundings._available_memory", lambda: None)
    result = cli(file())
    assert result.exit_code == 0, result.output
    assert "? not known: how much memory of RAM is free" in result.output
    assert "it fits" not in result.output


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "is no program"),
        ("exit 1", "has no vLLM"),
        ("exit 0", None),
    ],
)
def test_the_python_of_vllm_is_looked_at(file, tmp_path, script, said):
    python = tmp_path / "python"
    if script:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
    result = cli(file(sampler={"name": "vllm", "launch": {"python": str(python)}}))
    assert result.exit_code == (1 if said else 0), result.output
    assert ("✗ sampler.launch.python" in result.output) == bool(said)
    assert (said or "it fits") in result.output


def test_a_launched_server_that_keeps_its_memory_is_unwise(tmp_path):
    found = plan_of(sampler={"name": "vllm", "launch": {"python": "python"}}, policy={"device": "auto"}).findings
    assert any("sampler.sleep false" in finding.what for finding in found)


@contextmanager
def models_server(status, body):
    """A judge's server that lists its models."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            keys.append(self.headers["Authorization"])
            self.send_response(status if self.path == "/v1/models" else 404)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    keys = []
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", keys
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, '{"data": [{"id": "judge"}, {"id": "other"}]}', None),
        (200, '{"data": [{"id": "other"}]}', "does not serve judge.model 'judge': it serves 'other'"),
        (401, "{}", "refuses the API key (HTTP 401): name the variable"),
        (404, "not here", None),
        (200, "<html>", None),
        (200, '{"data": null}', None),
    ],
)
def test_a_judges_server_is_asked_for_its_models(monkeypatch, status, body, said):
    monkeypatch.setenv("A_KEY", "secret")
    with models_server(status, body) as (url, keys):
        found = plan_of(judge={**LLM, "base_url": url, "api_key_env": "A_KEY"}).findings
    assert keys == ["Bearer secret"]
    assert [said in str(finding) for finding in found] == ([True] if said else [])
    assert "secret" not in str(found)


def test_a_root_that_cannot_be_written(file, tmp_path):
    (tmp_path / "file").touch()
    result = cli(file(), "--root", tmp_path / "file" / "root")
    assert result.exit_code == 1
    assert "is a file: choose another root" in " ".join(result.output.split())
    result = cli(file(), "--root", "gs://bucket")
    assert result.exit_code == 1
    assert "✗ root 'gs://bucket' must be a local path or s3://bucket/prefix" in result.output


def test_a_bucket_is_asked_whether_it_can_be_written(file, s3):
    result = cli(file(), "--root", f"{s3}/plan")
    assert result.exit_code == 0, result.output
    assert "✓ it fits" in result.output
    assert open_store(f"{s3}/plan").files.find("") == []
    result = cli(file(), "--root", "s3://no-such-bucket/plan")
    assert result.exit_code == 1
    assert "✗ root 's3://no-such-bucket/plan'" in result.output
    assert "the bucket does not exist: create it" in result.output


def test_torch_is_not_loaded_to_say_that_there_is_no_model(file):
    path = file(policy={"warm_start": None, "model": "/no/such/model", "device": "cpu"})
    code = (
        "import sys; from flows.plan import make_plan; from polyepo.config import load_config; "
        f"plan = make_plan(load_config({str(path)!r}), 'run', 'artifacts'); "
        "print(plan.fits, 'torch' in sys.modules, 'transformers' in sys.modules, 'prefect' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 4


@pytest.mark.parametrize("scoring", [{"set_size": 4}, {"set_size": 1}, {"num_sets": 1}])
def test_scorings_called_pointless_give_no_advantage(scoring):
    config = one(scoring=scoring)
    rewards = np.array([[1.0, 0, 1, 0.5]])
    clusters = np.array([[0, 1, 2, 0]])
    assert not config.scoring.advantages(rewards, clusters, seed=0).any()
    assert one().scoring.advantages(rewards, clusters, seed=0).any()


def test_memory_that_is_too_small_says_what_would_fit():
    config = one()
    plan = _plan_run("run", config)
    problems = Problems(config.domain.problems("train"), [], None)

    def found(free):
        return findings(config, problems, plan.model, plan.amounts, plan.memory, free)

    assert found(10 * plan.memory.peak) == []
    assert [finding.severity for finding in found(plan.memory.peak)] == [Severity.WARNING]
    tight = found(plan.memory.peak - plan.memory.micro_batch // 2)
    assert tight[0].severity == Severity.FATAL
    assert tight[0].remedy == "update.micro_batch_tokens 16384 should be at most 96"
    held = plan.memory.weights + plan.memory.optimizer + PROCESS_BYTES
    crowded = found(held + int(8.5 * (plan.memory.cache_row + plan.memory.draw_row)))
    assert all(finding.severity == Severity.FATAL for finding in crowded)
    assert crowded[-1].remedy == "sampling.batch_size 256 should be at most 8"


def test_a_disk_that_is_too_small(file, monkeypatch):
    monkeypatch.setattr("flows.plan._free_disk", lambda root: 1000)
    result = cli(file(), "--root", "somewhere")
    assert result.exit_code == 1
    assert "✗ root 'somewhere' has 1 kB free, and the runs need up to" in result.output


def test_arms_that_take_the_same_share_a_table(file):
    arms = {"grpo": {"scoring": {"method": "grpo"}}, "poly": {}, "long": {"steps": 12}}
    config = parse_config(small_config(arms=arms))
    plan = make_plan(config, "run", "artifacts")
    assert [run.runs for run in plan.runs] == [["run-grpo", "run-poly"], ["run-long"]]
    assert plan.fits
    assert isinstance(plan.runs[0].device, Device)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "steps=-1"], "steps"),
        (["--set", "sampling.prompts_per_step=99"], "16 training problems"),
        (["--set", "domain={name: countdown, path: no.csv, target: 24}"], "domain.path 'no.csv' cannot be read"),
    ],
)
def test_a_bad_configuration_is_refused(file, arguments, said):
    result = cli(file(), *arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_every_step_of_a_zero_step_run():
    plan = plan_of(steps=0)
    assert plan.amounts.checkpoints == 0
    assert plan.amounts.evaluation.times == 1
    assert math.isclose(plan.amounts.repeats, 0)
    assert amounts(one(steps=0), Problems(one().domain.problems("train"), [], None), None, None).checkpoint is None
