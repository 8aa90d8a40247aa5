"""The complete description of a run, read from YAML. Unknown keys are errors."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from polyepo.advantages import MAX_ENUMERATED_SETS
from polyepo.domains import AnyDomain, Domain
from polyepo.judges import AnyJudge, Judge
from polyepo.objectives import MeanReward, PassAtN, Polychromic
from polyepo.section import Operational, Section

_MIN_BFLOAT16_LR = 1e-5

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names field, value and what would be right."""


class WarmStart(Section):
    """A small Llama-style model built from scratch and fine-tuned on the domain's noisy demonstrations.

    It stands in for a pretrained base model: well-formed, often wrong, diverse. It sees the prompts of both splits;
    what is held out is held out from reinforcement learning.
    """

    seed: int = 0
    steps: int = Field(600, ge=1)
    batch_size: int = Field(128, ge=1)
    lr: float = Field(5e-3, gt=0)
    warmup_steps: int = Field(50, ge=0)
    hidden_size: int = Field(64, ge=8)
    num_layers: int = Field(2, ge=1)
    num_heads: int = Field(4, ge=1)
    intermediate_size: int = Field(192, ge=8)

    @model_validator(mode="after")
    def _heads_divide(self) -> WarmStart:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}")
        return self


class PolicyConfig(Section):
    """Where the policy starts: exactly one of `model` and `warm_start`."""

    model: str | None = None
    """A Hugging Face causal language model: a local directory, or a hub id."""
    warm_start: WarmStart | None = None
    trust_remote_code: bool = False
    chat_template_kwargs: dict[str, bool | int | float | str] = Field({}, exclude_if=lambda kwargs: not kwargs)
    """Further variables of the tokenizer's chat template, such as {enable_thinking: false}, for prompts that are chat
    messages."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights that are updated. bfloat16 rounds most updates of a small learning rate away."""
    device: str = "auto"
    """A torch device, or "auto": CUDA if there is one, else the CPU."""
    num_threads: int | None = Field(None, ge=1)
    """CPU threads. One run must keep one number, or its floating-point sums change."""

    @model_validator(mode="after")
    def _one_source(self) -> PolicyConfig:
        if (self.model is None) == (self.warm_start is None):
            raise ValueError("set exactly one of policy.model (a directory or hub id) and policy.warm_start")
        return self

    @field_validator("chat_template_kwargs")
    @classmethod
    def _kwargs_are_the_templates(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        ours = {"messages", "add_generation_prompt", "continue_final_message", "tokenize", "return_dict"}
        if taken := ours & set(kwargs):
            raise ValueError(f"{min(taken)!r} cannot be set: the sampler does")
        return kwargs


class SamplingConfig(Section):
    """How responses are sampled. There is no top-p or top-k: they would bias the log-probabilities."""

    prompts_per_step: int = Field(128, ge=1)
    num_responses: int = Field(8, ge=1)
    """N: responses per prompt."""
    temperature: float = Field(1.0, gt=0)
    max_prompt_tokens: int = Field(1024, ge=1)
    max_response_tokens: int = Field(4096, ge=1)
    batch_size: int = Field(256, ge=1)
    """Responses decoded at a time."""
    shards: int = Field(1, ge=1, le=1000)
    """Artifacts a step's rollouts are committed in: one shard is judged while the next is sampled."""

    @model_validator(mode="after")
    def _shards_fit(self) -> SamplingConfig:
        if self.shards > self.prompts_per_step:
            raise ValueError(f"shards {self.shards} must not exceed prompts_per_step {self.prompts_per_step}")
        return self


class TransformersSampling(Section):
    """Responses are sampled with the trainer's own model, in its process."""

    name: Literal["transformers"] = "transformers"


class VLLMLaunch(Section):
    """A vLLM server of the run's own: on loopback, restarted when it dies, ended with the run."""

    python: str
    """The Python of an environment with vLLM; its pins clash with Prefect's."""
    args: list[str] = []
    """Further arguments of vLLM's API server. Model, name, dtype, context and address are given by the run."""
    environment: dict[str, str] = {}
    startup_s: float = Field(900, gt=0)
    """Seconds it may take until it is ready."""
    logs: str = ".polyepo/vllm"
    """Folder of the servers' logs."""


class VLLMSampling(Section):
    """Responses are sampled by vLLM servers, launched by the run or running already."""

    name: Literal["vllm"]
    launch: VLLMLaunch | None = None
    base_urls: list[str] = []
    """Servers that run already, such as http://gpu-2:8000; requests are spread by load. Name each server, not what
    balances loads between several: each is given the weights. They need VLLM_SERVER_DEV_MODE=1, whose endpoints only
    a private network may reach, and serve one run at a time."""
    weights_dir: str | None = None
    """With base_urls: a folder that this machine and the servers see under the same path. Weights go through it."""
    served_model: str = "policy"
    """The servers' --served-model-name."""
    concurrency: int = Field(64, ge=1)
    """Requests (each of all responses to one prompt) under way at a server."""
    request_s: float = Field(1800, gt=0)
    """Seconds a request may take."""
    wait_s: float = Field(600, gt=0)
    """Seconds to wait for a server when none answers."""
    max_mismatch: float | None = Field(None, gt=0)
    """Largest mean difference in nats between the probe's log-probabilities and the trainer's after a refresh;
    1e-4 for float32 weights and 0.05 for bfloat16 if not given."""
    sleep: bool = False
    """Put the servers to sleep after sampling and wake them before: they leave a shared GPU to the update."""

    @model_validator(mode="after")
    def _one_source(self) -> VLLMSampling:
        if (self.launch is None) == (not self.base_urls):
            raise ValueError("set exactly one of sampler.launch and sampler.base_urls")
        for url in self.base_urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"base_urls: {url!r} must begin with http:// or https://")
        if self.base_urls and not self.weights_dir:
            raise ValueError("base_urls need weights_dir, a folder that this machine and the servers see")
        return self


AnySampling = Annotated[TransformersSampling | VLLMSampling, Field(discriminator="name")]


class OverlongPenalty(Section):
    """The soft overlong punishment of DAPO (arXiv 2503.14476): long responses lose reward before sets are scored.

    Up to max_response_tokens - buffer_tokens nothing; from there on linearly, `factor` at max_response_tokens.
    """

    buffer_tokens: int = Field(ge=1)
    factor: float = Field(1.0, gt=0)


class AnyMethod(Section):
    """What every scoring has."""

    overlong_penalty: OverlongPenalty | None = Field(None, exclude_if=lambda penalty: penalty is None)
    max_ungraded_rate: Annotated[float, Operational()] = Field(0.05, ge=0, le=1, exclude_if=lambda rate: rate == 0.05)
    """Share of a step's responses that could not be graded above which the run stops. Their prompts take no part."""

    @property
    def uses_clusters(self) -> bool:
        """Whether advantages depend on clusters: if they do, a prompt without labels takes no part."""
        return True


class SetScoring(AnyMethod):
    """Marginal set advantages of a set objective (Poly-EPO)."""

    method: Literal["poly_epo"] = "poly_epo"
    objective: Literal["polychromic", "pass_at_n", "mean_reward"] = "polychromic"
    require_two_clusters: bool = True
    """Polychromic only: a set that sits in a single cluster scores 0."""
    set_size: int = Field(4, ge=1)
    """n: responses per set."""
    num_sets: int | None = Field(None, ge=1)
    """K sets drawn without replacement; all C(N, n) of them, in closed form, if not given."""
    aggregate: Literal["mean", "sum"] = "mean"

    def set_objective(self) -> Polychromic | PassAtN | MeanReward:
        """The set objective this section names."""
        if self.objective == "polychromic":
            return Polychromic(self.require_two_clusters)
        return PassAtN() if self.objective == "pass_at_n" else MeanReward()

    @property
    def uses_clusters(self) -> bool:
        """Whether the set objective looks at clusters; one that does not say so does."""
        return bool(getattr(self.set_objective(), "uses_clusters", True))


class GRPOScoring(AnyMethod):
    """A_i = r_i - mean r."""

    method: Literal["grpo"]

    @property
    def uses_clusters(self) -> bool:
        """No: rewards are all it takes."""
        return False


class GRPODivScoring(AnyMethod):
    """A_i = z_i - mean z, with z_i = r_i + weight * d_i: an additive diversity bonus per response."""

    method: Literal["grpo_div"]
    weight: float = Field(0.5, ge=0)


Scoring = SetScoring | GRPOScoring | GRPODivScoring
AnyScoring = Annotated[Scoring, Field(discriminator="method")]


def scoring_id(scoring: Scoring, judge: Judge, verifier: Domain | None = None) -> str:
    """The name of a scoring in the store: what it is, then what exactly, of which judge's labels.

    A verifier other than the run's own domain belongs to it.
    """
    decides = scoring.model_dump(mode="json", exclude={"max_ungraded_rate"})
    content: dict[str, Any] = {"scoring": decides, "judge": judge.judge_id}
    if verifier is not None:
        content["verifier"] = verifier.model_dump(mode="json")
    return f"{scoring.method}-{digest(content)[:8]}"


class UpdateConfig(Section):
    """The clipped policy-gradient update (arXiv 2604.17654, Table 1)."""

    lr: float = Field(1e-6, ge=0)
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises linearly; constant afterwards."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    clip_low: float = Field(0.20, ge=0, lt=1)
    clip_high: float = Field(0.28, ge=0)
    loss_norm: Literal["constant", "response", "token"] = "constant"
    """Token losses are divided by: max_response_tokens (Dr.GRPO), the response's length (GRPO) or all tokens (DAPO)."""
    overlong_filtering: bool = Field(False, exclude_if=lambda filtering: not filtering)
    """Leave truncated responses out of the loss and of all that it is divided by (DAPO). They count in the advantages
    of their prompt; `scoring.overlong_penalty` changes rewards instead."""
    prompts_per_minibatch: int | None = Field(None, ge=1)
    """Prompts per optimizer step; all of the batch if not given."""
    epochs: int = Field(1, ge=1)
    """Passes over each batch."""
    micro_batch_tokens: int = Field(16384, ge=1)
    """Padded tokens per forward pass; the update is the same for any value."""
    gradient_checkpointing: bool = Field(False, exclude_if=lambda checkpointing: not checkpointing)
    """Keep each layer's input alone and compute the rest again in the backward pass: the same update, less memory."""
    importance_cap: float | None = Field(None, gt=0)
    """Truncated importance sampling: cap of trainer/sampler probability ratios; off if not given."""


class EvaluationConfig(Section):
    """Held-out evaluation before the first step, every `every` steps, and after the last."""

    every: int | None = Field(None, ge=1)
    num_samples: int = Field(64, ge=1)
    k: list[int] = [1, 8, 64]
    max_problems: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _k_fits(self) -> EvaluationConfig:
        for k in self.k:
            if not 1 <= k <= self.num_samples:
                raise ValueError(f"k {k} must lie between 1 and num_samples {self.num_samples}")
        return self


class RunConfig(Section):
    """One run: one policy, one scoring."""

    seed: int = Field(0, ge=0)
    steps: int = Field(ge=0)
    domain: AnyDomain
    policy: PolicyConfig
    sampling: SamplingConfig = SamplingConfig()
    sampler: AnySampling = Field(TransformersSampling(), exclude_if=lambda sampler: sampler.name == "transformers")
    """Left out of the digest when it is the default, so that older runs keep theirs."""
    judge: AnyJudge
    scoring: AnyScoring = SetScoring()
    update: UpdateConfig = UpdateConfig()
    evaluation: EvaluationConfig | None = None
    checkpoint_every: int = Field(50, ge=1)

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        sampling, update = self.sampling, self.update
        if update.prompts_per_minibatch and update.prompts_per_minibatch > sampling.prompts_per_step:
            raise ValueError(
                f"update.prompts_per_minibatch {update.prompts_per_minibatch} must not exceed "
                f"sampling.prompts_per_step {sampling.prompts_per_step}"
            )
        check_scoring(self.scoring, sampling)
        if self.policy.warm_start and not hasattr(self.domain, "demonstration"):
            raise ValueError(
                f"policy.warm_start needs a domain with demonstrations, and {self.domain.name!r} has none: "
                "set policy.model to a directory or hub id"
            )
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of this configuration."""
        return digest(self.model_dump(mode="json"))

    @property
    def scoring_id(self) -> str:
        """The name of this run's own scoring in the store."""
        return scoring_id(self.scoring, self.judge)


class Config(RunConfig):
    """A run, or several that differ in what `arms` overrides and share the warm start and the evaluation."""

    arms: dict[str, dict[str, Any]] = {}

    @model_validator(mode="after")
    def _arms_are_valid(self) -> Config:
        for name in self.arms:
            if not RUN_NAME.fullmatch(name):
                raise ValueError(f"arms: name {name!r} must be letters, digits, '.', '_' and '-'")
        for run in self.runs("check").values():
            _check_updates_survive(run)
        return self

    def runs(self, run: str) -> dict[str, RunConfig]:
        """The runs to train, by name: `{run}-{arm}` for each arm, or just `run`."""
        base = self.model_dump(mode="json", exclude={"arms"})
        if not self.arms:
            return {run: RunConfig.model_validate(base)}
        return {f"{run}-{arm}": RunConfig.model_validate(_override(base, arms)) for arm, arms in self.arms.items()}


def load_config(path: str | Path, settings: dict[str, Any] | None = None) -> Config:
    """Read a run's description from a YAML file.

    Args:
        path: the file.
        settings: values that replace the file's, by dotted name, such as {"seed": 1, "domain.path": "24.csv"}.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or a field is unknown or has a value that cannot be.
    """
    raw = read_yaml(path)
    for name, value in (settings or {}).items():
        _set(raw, name, value)
    return parse_config(raw, source=str(path))


def parse_config(raw: dict[str, Any], source: str = "config") -> Config:
    """Validate a run's description that was read already; raises ConfigError as `load_config` does."""
    return validated(Config, raw, source)


def load_judge(path: str | Path) -> AnyJudge:
    """Read a judge's description from a YAML file. Raises ConfigError as `load_config` does."""
    return validated(AnyJudge, read_yaml(path), str(path))


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """One line per setting that differs between two configurations, as `section.key: old -> new`."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {json.dumps(before)} -> {json.dumps(after)}")
    return lines


def digest(content: Any) -> str:
    """SHA-256 of content's canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping. Raises ConfigError if the file is missing or holds none."""
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config {str(path)!r} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {str(path)!r} is no valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"config {str(path)!r} must be a mapping of sections, but is {type(raw).__name__}")
    return raw


def validated(kind: Any, raw: dict[str, Any], source: str) -> Any:
    """`raw` as a section or a union of sections; raises ConfigError naming `source` and every field that is wrong."""
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        raise ConfigError("\n".join([f"{source} cannot be used:", *map(_explain, error.errors())])) from None


def _explain(error: Any) -> str:
    # Tagged unions put the tag into the location; it is no key of the file, but it says which variant was meant.
    where = ".".join(str(part) for part in error["loc"]) or "config"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"  {where}: unknown key"
    shown = "" if error["type"] in ("missing", "value_error") else f" (is {error['input']!r})"
    return f"  {where}: {message}{shown}"


def _check_updates_survive(run: RunConfig) -> None:
    """Raise ValueError if the updates would be rounded away. Runs that exist already are opened all the same."""
    if run.steps and run.policy.dtype == "bfloat16" and 0 < run.update.lr < _MIN_BFLOAT16_LR:
        raise ValueError(
            f"policy.dtype bfloat16 with update.lr {run.update.lr:g}: an optimizer step changes a weight by about lr, "
            f"and bfloat16 rounds that away for every weight above {run.update.lr * 2**9:.0e}; set policy.dtype: "
            f"float32, or a learning rate of at least {_MIN_BFLOAT16_LR:g}"
        )


def check_scoring(scoring: Scoring, sampling: SamplingConfig) -> None:
    """Raise ValueError if responses that are sampled so cannot be scored so."""
    penalty, limit = scoring.overlong_penalty, sampling.max_response_tokens
    if penalty and penalty.buffer_tokens > limit:
        raise ValueError(
            f"scoring.overlong_penalty.buffer_tokens {penalty.buffer_tokens} must not exceed "
            f"sampling.max_response_tokens {limit}"
        )
    if isinstance(scoring, SetScoring):
        _check_sets(scoring, sampling.num_responses)


def _check_sets(scoring: SetScoring, num_responses: int) -> None:
    """Raise ValueError if sets of n, or K of them, cannot be drawn from N responses."""
    if scoring.set_size > num_responses:
        raise ValueError(
            f"scoring.set_size (n) {scoring.set_size} must not exceed sampling.num_responses (N) {num_responses}"
        )
    num_all = math.comb(num_responses, scoring.set_size)
    if scoring.num_sets and scoring.num_sets > num_all:
        raise ValueError(
            f"scoring.num_sets (K) {scoring.num_sets} must not exceed "
            f"C({num_responses}, {scoring.set_size}) = {num_all}"
        )
    if scoring.num_sets and scoring.num_sets > MAX_ENUMERATED_SETS:
        raise ValueError(
            f"scoring.num_sets (K) {scoring.num_sets} must not exceed {MAX_ENUMERATED_SETS}; "
            "leave it out for all sets in closed form"
        )


def _set(raw: dict[str, Any], name: str, value: Any) -> None:
    *sections, key = name.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"setting {name!r} cannot be: {section!r} is no section")
    raw[key] = value


def _override(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` merged in; a mapping that names another kind (name, method) replaces its section."""
    merged = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        same_kind = isinstance(old, dict) and isinstance(value, dict) and not {"name", "method"} & value.keys()
        merged[key] = _override(old, value) if same_kind else value  # type: ignore[arg-type]
    return merged
