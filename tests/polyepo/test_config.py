"""Every mistake in a configuration is named, with its value, before anything starts."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from polyepo.config import ConfigError, RunConfig, differences, digest, load_config, parse_config
from polyepo.domains import Maths
from tests.conftest import small_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_are_valid(path):
    runs = load_config(path).runs("x")
    assert len({config.digest for config in runs.values()}) == len(runs)


def test_the_papers_settings():
    """Table 1 of the paper (METHOD: loss), as far as it is not a default that nobody would notice to change."""
    (run,) = load_config(CONFIGS[0].parent / "paper-math.yaml").runs("p").values()
    sampling, update, scoring = run.sampling, run.update, run.scoring
    assert (run.policy.model, run.policy.dtype, run.steps) == ("Qwen/Qwen3-4B-Base", "float32", 850)
    assert (sampling.prompts_per_step, sampling.num_responses, sampling.temperature) == (128, 8, 1.0)
    assert (sampling.max_prompt_tokens, sampling.max_response_tokens) == (1024, 4096)
    assert (update.lr, update.prompts_per_minibatch, update.clip_low, update.clip_high) == (1e-6, 64, 0.2, 0.28)
    assert (update.loss_norm, update.epochs, update.weight_decay) == ("constant", 1, 0.0)
    assert (scoring.objective, scoring.set_size, scoring.num_sets) == ("polychromic", 4, None)
    assert scoring.require_two_clusters
    assert (run.sampler.name, run.judge.name) == ("vllm", "llm")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": 3}, "stepz: unknown key"),
        ({"update": {"learning_rate": 1}}, "update.learning_rate: unknown key"),
        ({"steps": "many"}, r"steps: .*'many'"),
        ({"steps": -1}, "steps: .*-1"),
        ({"scoring": {"method": "poly_epo", "set_size": 5}}, r"set_size \(n\) 5 must not exceed .*\(N\) 4"),
        ({"scoring": {"method": "poly_epo", "set_size": 2, "num_sets": 7}}, r"\(K\) 7 must not exceed C\(4, 2\) = 6"),
        ({"scoring": {"method": "poly-epo"}}, "scoring"),
        ({"policy": {"model": "x"}}, "exactly one of policy.model"),
        ({"sampling": {"shards": 5}}, "shards 5 must not exceed prompts_per_step 4"),
        ({"sampling": {"temperature": 0}}, "temperature"),
        ({"sampling": {"top_p": 0.9}}, "sampling.top_p: unknown key"),
        ({"update": {"prompts_per_minibatch": 9}}, "prompts_per_minibatch 9 must not exceed"),
        ({"update": {"lr": float("nan")}}, "lr"),
        ({"evaluation": {"num_samples": 4, "k": [5]}}, "k 5 must lie between 1 and num_samples 4"),
        ({"domain": {"name": "polynomial", "heldout_fraction": 1.5}}, "heldout_fraction"),
        ({"domain": {"name": "maths", "path": "x.jsonl"}}, "needs a domain with demonstrations"),
        (
            {"scoring": {"method": "grpo", "overlong_penalty": {"buffer_tokens": 9}}},
            r"overlong_penalty\.buffer_tokens 9 must not exceed sampling\.max_response_tokens 8",
        ),
        (
            {"policy": {"dtype": "bfloat16"}, "arms": {"a": {"update": {"lr": 1e-6}}}},
            r"dtype bfloat16 with update\.lr 1e-06: .* above 5e-04; set policy\.dtype: float32",
        ),
        ({"judge": {"name": "oracle"}}, "judge"),
        ({"sampler": {"name": "vllm"}}, "exactly one of sampler.launch and sampler.base_urls"),
        ({"sampler": {"name": "vllm", "base_urls": ["gpu:8000"]}}, "'gpu:8000' must begin with http://"),
        ({"sampler": {"name": "vllm", "base_urls": ["http://gpu:8000"]}}, "base_urls need weights_dir"),
        ({"sampler": {"name": "vllm", "launch": {}}}, r"sampler\.launch\.python: Field required"),
        ({"arms": {"a/b": {}}}, "arms: name 'a/b'"),
        ({"arms": {"a": {"scoring": {"method": "poly_epo", "set_size": 9}}}}, "set_size"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(small_config(**changes))


def test_files_that_are_no_config(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "missing.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="must be a mapping"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="no valid YAML"):
        load_config(tmp_path / "broken.yaml")
    (tmp_path / "code.yaml").write_text("steps: !!python/object/apply:os.getpid []")
    with pytest.raises(ConfigError, match="no valid YAML"):
        load_config(tmp_path / "code.yaml")


def test_round_trip_through_yaml(tmp_path):
    config = parse_config(small_config())
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(path) == config


def test_settings_replace_the_files(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(small_config()))
    config = load_config(path, {"seed": 7, "update.lr": 0.25})
    assert (config.seed, config.update.lr) == (7, 0.25)
    with pytest.raises(ConfigError, match=r"update\.ler: unknown key"):
        load_config(path, {"update.ler": 1})
    with pytest.raises(ConfigError, match="'steps' is no section"):
        load_config(path, {"steps.x": 1})


def test_the_default_sampler_is_not_part_of_a_digest():
    run = parse_config(small_config()).runs("r")["r"]
    assert "sampler" not in run.model_dump(mode="json")
    assert parse_config(small_config(sampler={"name": "transformers"})).runs("r")["r"].digest == run.digest
    launched = {"name": "vllm", "launch": {"python": "python"}}
    other = parse_config(small_config(sampler=launched)).runs("r")["r"]
    assert other.digest != run.digest
    assert parse_config(other.model_dump(mode="json")).runs("r")["r"] == other


def test_older_runs_keep_their_digests():
    """What was added since has defaults that are no part of a configuration's record."""
    (run,) = load_config(CONFIGS[0].parent / "game24.yaml").runs("r").values()
    assert run.digest == "8134a456ac1d115a9126bafeaddb254698c4859a2fa0e8f620bb080354177198"
    assert run.scoring_id == "poly_epo-ddb090a5"
    arms = load_config(CONFIGS[0].parent / "quickstart.yaml").runs("q")
    assert arms["q-grpo"].digest == "4bec429958a98cf48bc7043a5555ead13f5c8de83539c6f4efa5b956b66b3bb0"
    assert arms["q-grpo-div"].digest == "dede096ee090fe9ee3b8e5f40edb533b868d98edaa7893937130940023f9e029"
    assert arms["q-poly-epo"].digest == "d616f7a6776514e3291c087f3401b2988860f2febd84b9a3d922361905836090"
    maths = digest(Maths(path="x.jsonl").model_dump(mode="json"))
    assert maths == "38b19101829b171716f8e32de850fc9a0dccb97dc2726dde83d8d7826a3fb35e"


def test_what_was_added_is_read_back_from_a_runs_record():
    changes = {
        "domain": {"name": "polynomial_words", "chat": True, "system_prompt": "Be brief."},
        "policy": {"model": "m", "chat_template_kwargs": {"enable_thinking": False}},
        "scoring": {"method": "grpo", "overlong_penalty": {"buffer_tokens": 4}},
        "update": {"overlong_filtering": True, "gradient_checkpointing": True},
    }
    run = RunConfig.model_validate({**small_config(), **changes})
    assert RunConfig.model_validate(json.loads(json.dumps(run.model_dump(mode="json")))) == run
    plain = {
        "domain": {"name": "polynomial_words"},
        "policy": {"model": "m"},
        "scoring": {"method": "grpo"},
        "update": {},
    }
    digests = {RunConfig.model_validate({**small_config(), **changes, key: plain[key]}).digest for key in changes}
    assert len({run.digest, *digests}) == 5, "each is part of the digest when it is set"


@pytest.mark.parametrize(("size", "share"), [(0.02, 0.0), (1e-4, 1.0)])
def test_bfloat16_rounds_small_updates_away(size, share):
    """What `policy.dtype: bfloat16` is refused for: of weights of this size so many move in a step of Adam."""
    torch.manual_seed(0)
    weights = torch.nn.Parameter((size * (1 + torch.rand(1000))).bfloat16())
    before = weights.detach().clone()
    weights.grad = torch.randn(1000).bfloat16()
    torch.optim.AdamW([weights], lr=1e-6, weight_decay=0.0).step()
    assert float((weights != before).float().mean()) == share


def test_differences_show_what_changed():
    before = parse_config(small_config()).runs("r")["r"].model_dump(mode="json")
    after = parse_config(small_config(update={"lr": 2e-3})).runs("r")["r"].model_dump(mode="json")
    assert differences(before, after) == ["update.lr: 0.001 -> 0.002"]
    assert differences(before, before) == []
