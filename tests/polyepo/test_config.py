"""Every mistake in a configuration is named, with its value, before anything starts."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from polyepo.changes import as_settings, differences
from polyepo.config import (
    ConfigError,
    RunConfig,
    load_config,
    load_judge,
    parse_config,
    with_settings,
)
from polyepo.domains import Maths
from polyepo.section import digest
from tests.support.config import small_config

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
        ({"arms": {"a..b": {}}}, r"arms: name 'a\.\.b'"),
        ({"arms": {"good": {}, "bad": {"updaet": {"lr": 1}}}}, r"arms\.bad\.updaet: unknown key; did you mean"),
        ({"arms": {"a": {"steps": -1}, "b": {"seed": -1}}}, r"(?s)arms\.a\.steps: .*arms\.b\.seed: "),
        ({"arms": {"a": 3}}, r"arms\.a: must be a section"),
        ({"update": {"betas": [0.9, 1.0]}}, r"update\.betas\.1: .*less than 1 \(is 1\.0\)"),
        ({"update": {"betas": [-0.1, 0.9]}}, r"update\.betas\.0: .*greater than or equal to 0"),
        ({"update": {"betas": [0.9]}}, r"update\.betas"),
        ({"policy": {"device": "gpu"}}, r"policy\.device: 'gpu' must be auto, cpu, cuda"),
        ({"policy": {"device": "cuda:x"}}, r"policy\.device: 'cuda:x'"),
        (
            {"policy": {"warm_start": {"hidden_size": 36}}},
            r"policy\.warm_start: hidden_size 36 / num_heads 4 = 9 must be even",
        ),
        ({"policy": {"warm_start": {"seed": 2**64}}}, r"policy\.warm_start\.seed: "),
        ({"policy": {"revision": "main"}}, r"policy\.revision goes with policy\.model"),
        ({"policy": {"num_threads": 10**6}}, r"policy\.num_threads: "),
        ({"seed": 2**63}, r"^config cannot be used:\n  seed: .*9223372036854775807"),
        ({"steps": 10**6}, "steps: .*999999"),
        ({"sampler": {"name": "vllm", "base_urls": ["http://"], "weights_dir": "w"}}, "name a host"),
        ({"sampler": {"name": "vllm", "base_urls": ["http://h:port"], "weights_dir": "w"}}, "name a host"),
        ({"arms": {"a": {"scoring": {"method": "poly_epo", "set_size": 9}}}}, "set_size"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(small_config(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # The variant of a section is no key of the file, and the file as a whole has no name.
        ({"judge": {"name": "llm", "model": "m", "base_url": "x"}}, "judge.base_url: must be an http"),
        ({"judge": {"name": "llm", "modle": "m"}}, "judge.modle: unknown key; did you mean judge.model?"),
        ({"scoring": {"method": "grpo_div", "weight": -1}}, "scoring.weight: Input should be greater"),
        ({"domain": {"name": "polynomial", "max_abs_b": "x"}}, "domain.max_abs_b: Input should be a valid integer"),
        ({"update": {"lr": 1, "epocs": 2}}, "update.epocs: unknown key; did you mean update.epochs?"),
        (
            {"scoring": {"method": "grpo", "set_size": 3}},
            "scoring.set_size: unknown key here; it is a setting of poly_epo",
        ),
        ({"num_responses": 8}, "num_responses: unknown key; did you mean sampling.num_responses?"),
        ({"judge": {"name": "progam"}}, "judge.name: 'progam' is unknown; it must be one of program, answer"),
        ({"judge": {"name": "progam"}}, "did you mean program?"),
        ({"domain": {}}, "domain.name: is missing; it must be one of polynomial, "),
        ({"domain": 3}, "domain: must be a section of settings (is 3)"),
        ({"policy": "gpt"}, "policy: must be a section of settings (is 'gpt')"),
        ({"policy": {"model": "m"}}, "policy: set exactly one of policy.model"),
    ],
)
def test_messages_have_the_files_names(changes, message):
    with pytest.raises(ConfigError) as caught:
        parse_config({**small_config(), **changes} if "domain" in changes else small_config(**changes))
    assert f"  {message}" in str(caught.value) or (message.startswith("did you mean") and message in str(caught.value))
    for tag in ("llm.", "poly_epo.", "grpo_div.", "polynomial.", "function-", "config: "):
        assert tag not in str(caught.value)


def test_a_judges_own_file_has_no_sections(tmp_path):
    (tmp_path / "judge.yaml").write_text("name: llm\nmodel: m\n")
    with pytest.raises(ConfigError, match=r"judge\.yaml cannot be used:\n  base_url: Field required$"):
        load_judge(tmp_path / "judge.yaml")


def test_a_setting_that_every_arm_replaces_names_the_arms_own():
    raw = {**small_config(), "arms": {"a": {"scoring": {"method": "grpo"}}, "b.c": {"scoring": {"set_size": 3}}}}
    del raw["scoring"]
    raw["arms"]["b.c"]["scoring"]["method"] = "poly_epo"
    with pytest.raises(ConfigError) as caught:
        with_settings(raw, {"scoring.set_size": 4})
    assert str(caught.value).endswith("set arms.b.c.scoring.set_size instead")
    followed = parse_config(with_settings(raw, {"arms.b.c.scoring.set_size": 4})).runs("r")
    assert followed["r-b.c"].scoring.set_size == 4
    with pytest.raises(ConfigError, match=r"arms\.b\.c\.scoring\.set_size \(n\) 9 must not exceed"):
        parse_config(with_settings(raw, {"arms.b.c.scoring.set_size": 9}))
    with pytest.raises(ConfigError, match=r"scoring\.set_sice: unknown key; did you mean scoring\.set_size"):
        parse_config(with_settings(raw, {"scoring.set_sice": 4}))
    raw["arms"]["d"] = {"update": {"lr": 0.5}}
    assert parse_config(with_settings(raw, {"scoring.set_size": 4})).runs("r")["r-d"].scoring.set_size == 4
    assert parse_config(with_settings(raw, {"update.lr": 0.25})).runs("r")["r-a"].update.lr == 0.25


def test_a_scoring_without_a_method_is_of_the_default(tmp_path):
    raw = small_config()
    del raw["scoring"]
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(raw))
    assert load_config(path, {"scoring.set_size": 2}).scoring.set_size == 2


def test_settings_make_one_configuration_the_other():
    before = parse_config(small_config()).runs("r")["r"]
    for changes in (
        {"update": {"lr": 0.5, "overlong_filtering": True}},
        {"scoring": {"method": "grpo"}},
        {"judge": {"name": "answer"}, "seed": 3},
        {"sampling": {"temperature": 0.7}, "policy": {"num_threads": None}},
    ):
        after = parse_config(small_config(**changes)).runs("r")["r"]
        old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
        assert parse_config(with_settings(old, as_settings(old, new))).runs("r")["r"] == after


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


def test_a_digest_is_of_what_results_depend_on():
    """Operational settings are no part of it, and neither are defaults that older versions did not have."""
    run = parse_config(small_config()).runs("r")["r"]
    operational = {
        "steps": 60,
        "checkpoint_every": 2,
        "policy": {"device": "auto"},
        "evaluation": {"num_samples": 8, "k": [8]},
    }
    for key, value in operational.items():
        assert parse_config(small_config(**{key: value})).runs("r")["r"].digest == run.digest, key
    for key, value in {"seed": 1, "update": {"lr": 1.0}, "sampling": {"temperature": 0.5}}.items():
        assert parse_config(small_config(**{key: value})).runs("r")["r"].digest != run.digest, key
    (game,) = load_config(CONFIGS[0].parent / "game24.yaml").runs("r").values()
    assert game.scoring_id == "poly_epo-ddb090a5", "scores of older runs are found under it"
    maths = digest(Maths(path="x.jsonl").model_dump(mode="json"))
    assert maths == "38b19101829b171716f8e32de850fc9a0dccb97dc2726dde83d8d7826a3fb35e"


def test_where_a_server_is_does_not_matter_to_a_digest():
    def served(**sampler):
        return parse_config(small_config(sampler={"name": "vllm", **sampler})).runs("r")["r"].digest

    here = {"base_urls": ["http://a:1"], "weights_dir": "w"}
    moved = {"base_urls": ["http://b:2", "http://c"], "weights_dir": "v", "concurrency": 2, "request_s": 9, "wait_s": 1}
    assert served(**here) == served(**moved)
    launch = {"python": "a", "logs": "x", "startup_s": 3}
    assert served(launch=launch) == served(launch={"python": "b"})
    assert served(launch=launch) != served(launch={"python": "b", "args": ["--quantization", "fp8"]})


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
    changes["update"] = {"overlong_filtering": True}
    run = RunConfig.model_validate({**small_config(), **changes})
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
