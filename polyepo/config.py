"""The complete description of a run, read from YAML. Unknown keys are errors."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from polyepo.changes import override, replaces, set_value
from polyepo.domains import AnyDomain, Demonstrated
from polyepo.domains.missing import MissingDomain
from polyepo.errors import ConfigError
from polyepo.explain import explain, is_setting, keys
from polyepo.judges import AnyJudge
from polyepo.names import is_name
from polyepo.plugins import given_by_user
from polyepo.samplers.settings import AnySampling, SamplingConfig, TransformersSampling
from polyepo.scoring import AnyScoring, SetScoring, check_scoring, scoring_id
from polyepo.section import Operational, Section, added, digest, results_only

_MIN_BFLOAT16_LR = 1e-5
# SQL knows seeds as signed 64-bit integers, as torch does.
_MAX_SEED = 2**63 - 1
_MAX_STEPS = 999_999  # a step has six digits in the store

Sink = Literal["tensorboard"]
"""Programs that show curves."""

_DEVICE = re.compile(r"auto|(cpu|cuda|mps|xpu)(:[0-9]{1,3})?")


class WarmStart(Section):
    """A small Llama-style model built from scratch and fine-tuned on the domain's noisy demonstrations.

    It stands in for a pretrained base model: well-formed, often wrong, diverse. It sees the prompts of both splits;
    what is held out is held out from reinforcement learning.
    """

    seed: int = Field(0, ge=-_MAX_SEED, le=_MAX_SEED)
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
        if self.hidden_size // self.num_heads % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} / num_heads {self.num_heads} = {self.hidden_size // self.num_heads} "
                "must be even: rotary positions turn a head's coordinates in pairs"
            )
        return self


class PolicyConfig(Section):
    """Where the policy starts: exactly one of `model` and `warm_start`."""

    model: str | None = Field(None, min_length=1)
    """A Hugging Face causal language model: a local directory, or a hub id."""
    revision: str | None = added(None, min_length=1)
    """Of a hub id: branch, tag or commit, its default branch if not given. A run keeps the commit it began with."""
    warm_start: WarmStart | None = None
    trust_remote_code: bool = False
    chat_template_kwargs: dict[str, bool | int | float | str] = added({})
    """Further variables of the tokenizer's chat template, such as {enable_thinking: false}, for prompts that are chat
    messages."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Type of the weights that are updated. bfloat16 rounds most updates of a small learning rate away."""
    compute_dtype: Literal["float32", "bfloat16"] | None = added(None)
    """Type that layers are computed in, over weights of `dtype`; bfloat16 on a GPU and float32 on the CPU if not given.
    A vLLM server that the run launches computes in it, too."""
    device: Annotated[str, Operational()] = "auto"
    """A torch device, or "auto": CUDA if there is one, else the CPU. A run may move to another of the same kind."""
    num_threads: int | None = Field(None, ge=1, le=4096)
    """CPU threads. One run must keep one number, or its floating-point sums change."""
    deterministic: bool = added(False)
    """Compute by kernels that add in one order, at some cost in speed: then a GPU, too, gives the same bits again, and
    replays are exact on the same kind of card. On the CPU they are in any case."""

    @model_validator(mode="after")
    def _one_source(self) -> PolicyConfig:
        if (self.model is None) == (self.warm_start is None):
            raise ValueError("set exactly one of policy.model (a directory or hub id) and policy.warm_start")
        if self.revision is not None and self.model is None:
            raise ValueError("policy.revision goes with policy.model, a hub id")
        return self

    @model_validator(mode="after")
    def _computes_in_what_there_is(self) -> PolicyConfig:
        if self.dtype == "bfloat16" and self.compute_dtype == "float32":
            raise ValueError(
                "policy.compute_dtype float32 cannot be with weights in policy.dtype bfloat16: leave it out, or set "
                "policy.dtype: float32"
            )
        return self

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, device: str) -> str:
        if not _DEVICE.fullmatch(device):
            raise ValueError(f"{device!r} must be auto, cpu, cuda, cuda:N, mps or xpu")
        return device

    @field_validator("chat_template_kwargs")
    @classmethod
    def _kwargs_are_the_templates(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        ours = {"messages", "add_generation_prompt", "continue_final_message", "tokenize", "return_dict"}
        if taken := ours & set(kwargs):
            raise ValueError(f"{min(taken)!r} cannot be set: the sampler does")
        return kwargs


class UpdateConfig(Section):
    """The clipped policy-gradient update (arXiv 2604.17654, Table 1)."""

    lr: float = Field(1e-6, ge=0)
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises linearly; `schedule` says what it does afterwards."""
    schedule: Literal["constant", "linear", "cosine"] = added("constant")
    """How the learning rate falls after the warm-up: not at all, or towards 0 at the end of `schedule_steps`."""
    schedule_steps: int | None = added(None, ge=1, le=_MAX_STEPS)
    """Steps of a linear or cosine schedule, warm-up included; `steps` as the run begins if not given. The run's record
    keeps it: if `steps` changes later, no learning rate does. Steps beyond it have the rate of its last one."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    decay_norms_and_biases: bool = added(True)
    """Whether `weight_decay` is also of parameters of one dimension, norms and biases, or of matrices alone."""
    max_grad_norm: float = Field(1.0, gt=0)
    clip_low: float = Field(0.20, ge=0, lt=1)
    clip_high: float = Field(0.28, ge=0)
    loss_norm: Literal["constant", "response", "token"] = "constant"
    """Token losses are divided by: max_response_tokens (Dr.GRPO), the response's length (GRPO) or all tokens (DAPO)."""
    overlong_filtering: bool = added(False)
    """Leave truncated responses out of the loss and of all that it is divided by (DAPO). They count in the advantages
    of their prompt; `scoring.overlong_penalty` changes rewards instead."""
    prompts_per_minibatch: int | None = Field(None, ge=1)
    """Prompts per optimizer step; all of the batch if not given."""
    epochs: int = Field(1, ge=1)
    """Passes over each batch."""
    micro_batch_tokens: int = Field(16384, ge=1)
    """Tokens per forward pass, with padding if the model's sequences cannot be packed. The update is the same for any
    value."""
    gradient_checkpointing: Annotated[bool, Operational()] = added(False)
    """Keep each layer's input alone and compute the rest again in the backward pass: the same update, less memory."""
    importance_cap: float | None = Field(None, gt=0)
    """Truncated importance sampling: cap of trainer/sampler probability ratios; off if not given."""

    @model_validator(mode="after")
    def _schedule_has_steps(self) -> UpdateConfig:
        if self.schedule_steps is None:
            return self
        if self.schedule == "constant":
            raise ValueError(
                f"schedule_steps {self.schedule_steps} goes with schedule linear or cosine: set schedule, or leave "
                "schedule_steps out (null)"
            )
        if self.warmup_steps >= self.schedule_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} must be fewer than schedule_steps {self.schedule_steps}, which they "
                "are the first of"
            )
        return self


class TrainerResources(Section):
    """The processes that compute the update."""

    processes: int = Field(1, ge=1, le=4096)
    """The policy is spread over so many (FSDP2), one per GPU; with more than one they are a group that torchrun starts,
    which lives as long as the run's process."""
    nodes: int = Field(1, ge=1, le=4096)
    """Machines with so many processes each: this one, and those on which `polyepo join` was started."""
    master: str | None = None
    """With nodes: HOST:PORT by which the others reach this machine; on a private network, as anybody may join there."""
    offload: bool = False
    """Keep weights and optimizer state in CPU memory, and take them to the GPU layer by layer: slower, for models whose
    16 bytes a parameter do not fit the GPUs."""
    logs: str = ".polyepo/trainer"
    """Folder of the group's logs."""

    @property
    def in_process(self) -> bool:
        """Whether the policy is updated in the run's own process."""
        return self.processes == 1 and self.nodes == 1 and not self.offload

    @property
    def num_ranks(self) -> int:
        """Processes on all nodes."""
        return self.processes * self.nodes

    @model_validator(mode="after")
    def _nodes_have_a_master(self) -> TrainerResources:
        host, _, port = (self.master or "").rpartition(":")
        if self.nodes > 1 and not (host and port.isdecimal() and 0 < int(port) < 2**16):
            raise ValueError(
                f"master {self.master!r} must be HOST:PORT of this machine, as 10.0.0.1:29400, if nodes {self.nodes} "
                "are to meet there"
            )
        if self.nodes == 1 and self.master is not None:
            raise ValueError(f"master {self.master!r} goes with more nodes than 1")
        return self


class Resources(Section):
    """Where a run computes. It changes no result but by rounding, and may be another whenever a run goes on."""

    trainer: TrainerResources = TrainerResources()


class EvaluationConfig(Section):
    """Held-out evaluation before the first step, every `every` steps, and after the last."""

    every: int | None = Field(None, ge=1)
    num_samples: Annotated[int, Operational()] = Field(64, ge=1)
    """Per problem; it may grow while a run is going on: what is there is added to."""
    k: Annotated[list[int], Operational()] = [1, 8, 64]
    max_problems: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _k_fits(self) -> EvaluationConfig:
        for k in self.k:
            if not 1 <= k <= self.num_samples:
                raise ValueError(f"k {k} must lie between 1 and num_samples {self.num_samples}")
        return self


class KeepCheckpoints(Section):
    """Which checkpoints stay: the latest ones, and every so many steps. What replay needs besides stays as well."""

    last: int = Field(2, ge=1)
    every: int | None = Field(None, ge=1)
    """Steps; a multiple of checkpoint_every."""


class RunConfig(Section):
    """One run: one policy, one scoring."""

    seed: int = Field(0, ge=0, le=_MAX_SEED)
    steps: Annotated[int, Operational()] = Field(ge=0, le=_MAX_STEPS)
    """It may grow while a run is going on, and shrink to what is committed."""
    domain: AnyDomain
    policy: PolicyConfig
    sampling: SamplingConfig = SamplingConfig()
    sampler: AnySampling = added(TransformersSampling())
    judge: AnyJudge
    scoring: AnyScoring = SetScoring()
    update: UpdateConfig = UpdateConfig()
    evaluation: EvaluationConfig | None = None
    checkpoint_every: Annotated[int, Operational()] = Field(50, ge=1)
    keep_checkpoints: Annotated[KeepCheckpoints | None, Operational()] = added(None)
    """All of them if not given. The files of the others are removed; a record says when."""
    resources: Annotated[Resources, Operational()] = added(Resources())
    metrics: Annotated[list[Sink], Operational()] = added([])
    """Where curves are shown while the run trains: [tensorboard] writes event files into `tensorboard/RUN` of the root.
    `polyepo metrics` writes them afterwards."""

    @model_validator(mode="before")
    @classmethod
    def _kinds_have_defaults(cls, values: Any) -> Any:
        """`scoring: {set_size: 2}` is of the default method."""
        scoring = values.get("scoring") if isinstance(values, dict) else None
        if isinstance(scoring, dict) and "method" not in scoring:
            return {**values, "scoring": {"method": SetScoring().method, **scoring}}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        sampling, update = self.sampling, self.update
        if update.prompts_per_minibatch and update.prompts_per_minibatch > sampling.prompts_per_step:
            raise ValueError(
                f"update.prompts_per_minibatch {update.prompts_per_minibatch} must not exceed "
                f"sampling.prompts_per_step {sampling.prompts_per_step}"
            )
        if update.schedule != "constant" and update.schedule_steps is None and update.warmup_steps >= self.steps:
            raise ValueError(
                f"update.schedule {update.schedule} needs more steps than update.warmup_steps {update.warmup_steps}, "
                f"and steps is {self.steps}: lower the warm-up, raise steps, or set update.schedule: constant"
            )
        if self.keep_checkpoints and (every := self.keep_checkpoints.every) and every % self.checkpoint_every:
            raise ValueError(
                f"keep_checkpoints.every {every} must be a multiple of checkpoint_every {self.checkpoint_every}: "
                "there is no checkpoint at other steps"
            )
        if self.policy.trust_remote_code and self.resources.trainer.nodes > 1:
            raise ValueError(
                "policy.trust_remote_code: the code is on the run's machine; set resources.trainer.nodes to 1"
            )
        check_scoring(self.scoring, sampling.num_responses, sampling.max_response_tokens)
        if self.policy.warm_start and not isinstance(self.domain, Demonstrated | MissingDomain):
            raise ValueError(
                f"policy.warm_start needs a domain with demonstrations, and {self.domain.name!r} has none: "
                "set policy.model to a directory or hub id"
            )
        return self

    def begun(self) -> RunConfig:
        """As a run that begins with it records it: with the steps of its learning-rate schedule."""
        if self.update.schedule == "constant" or self.update.schedule_steps is not None:
            return self
        return self._with_schedule_steps(self.steps)

    def gone_on_from(self, before: RunConfig) -> RunConfig:
        """As a run that exists records it: the steps of the schedule are those that it began with, if none are set."""
        if self.update.schedule_steps is None and self.update.schedule == before.update.schedule:
            return self._with_schedule_steps(before.update.schedule_steps)
        return self.begun()

    def _with_schedule_steps(self, steps: int | None) -> RunConfig:
        return self.model_copy(update={"update": self.update.model_copy(update={"schedule_steps": steps})})

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of the settings that results depend on."""
        return digest(results_only(self))

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
            if not is_name(name):
                raise ValueError(f"arms: name {name!r} must be letters, digits, '.', '_' and '-', and hold no '..'")
        if not self.arms:
            _check_new(RunConfig.model_validate(self.model_dump(exclude={"arms"})))
        wrong: list[str] = []
        for name in self.arms:
            try:
                _check_new(self._arm(name))
            except ValidationError as error:
                wrong += [f"arms.{name}.{explain(RunConfig, found)}" for found in error.errors()]
            except ValueError as error:
                wrong.append(f"arms.{name}: {error}")
        if wrong:
            raise ValueError("\n  ".join(wrong))
        return self

    def runs(self, run: str) -> dict[str, RunConfig]:
        """The runs to train, by name: `{run}-{arm}` for each arm, or just `run`."""
        if not self.arms:
            return {run: RunConfig.model_validate(self.model_dump(mode="json", exclude={"arms"}))}
        return {f"{run}-{arm}": self._arm(arm) for arm in self.arms}

    def _arm(self, name: str) -> RunConfig:
        base = self.model_dump(mode="json", exclude={"arms"})
        return RunConfig.model_validate(override(base, self.arms[name]))


def load_config(path: str | Path, settings: dict[str, Any] | None = None) -> Config:
    """Read a run's description from a YAML file.

    Args:
        path: the file.
        settings: values that replace the file's, by dotted name, such as {"seed": 1, "domain.path": "24.csv"}.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or a field is unknown or has a value that cannot be.
    """
    raw = with_settings(read_yaml(path), settings or {})
    with given_by_user(Path(path).parent):
        return parse_config(raw, source=str(path))


def with_settings(raw: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """A run's description with values replaced, by dotted name.

    Raises:
        ConfigError: something above a name is no section, or every arm replaces what the name sets.
    """
    changed = copy.deepcopy(raw)
    for name, value in settings.items():
        set_value(changed, name, value)
    for name in settings:
        _check_an_arm_takes(changed.get("arms"), name)
    return changed


def parse_config(raw: dict[str, Any], source: str = "config") -> Config:
    """Validate a run's description that was read already; raises ConfigError as `load_config` does."""
    return validated(Config, raw, source)


def parse_run(raw: dict[str, Any], source: str) -> RunConfig:
    """Validate the description of a single run; raises ConfigError as `load_config` does."""
    run: RunConfig = validated(RunConfig, raw, source)
    try:
        _check_updates_survive(run)
    except ValueError as error:
        raise ConfigError(f"{source} cannot be used:\n  {error}") from None
    return run


def load_judge(path: str | Path) -> AnyJudge:
    """Read a judge's description from a YAML file. Raises ConfigError as `load_config` does."""
    with given_by_user(Path(path).parent):
        return validated(AnyJudge, read_yaml(path), str(path))


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


def validated(kind: Any, raw: Any, source: str) -> Any:
    """`raw` as a section or a union of sections; raises ConfigError naming `source` and every field that is wrong."""
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        lines = (f"  {explain(kind, found)}" for found in error.errors())
        raise ConfigError("\n".join([f"{source} cannot be used:", *lines])) from None


def _check_new(run: RunConfig) -> None:
    """Raise ValueError at what no run should begin with. One that exists may be ended before its schedule is."""
    _check_updates_survive(run)
    if run.steps and (run.update.schedule_steps or 0) > run.steps:
        raise ValueError(
            f"update.schedule_steps {run.update.schedule_steps} is longer than the run: it must not exceed steps "
            f"{run.steps}"
        )


def _check_updates_survive(run: RunConfig) -> None:
    """Raise ValueError if the updates would be rounded away. Runs that exist already are opened all the same."""
    if run.steps and run.policy.dtype == "bfloat16" and 0 < run.update.lr < _MIN_BFLOAT16_LR:
        raise ValueError(
            f"policy.dtype bfloat16 with update.lr {run.update.lr:g}: an optimizer step changes a weight by about lr, "
            f"and bfloat16 rounds that away for every weight above {run.update.lr * 2**9:.0e}; set policy.dtype: "
            f"float32, or a learning rate of at least {_MIN_BFLOAT16_LR:g}"
        )


def _check_an_arm_takes(arms: Any, name: str) -> None:
    """Raise ConfigError if every arm has a value of its own for a setting, so that setting it would change nothing."""
    if not isinstance(arms, dict) or not arms or name.startswith("arms"):
        return
    if name not in keys(RunConfig) or not all(replaces(changes, name.split(".")) for changes in arms.values()):
        return
    having = [f"arms.{arm}.{name}" for arm, changes in arms.items() if is_setting(RunConfig, changes, name)]
    instead = f"set {' or '.join(having)} instead" if having else "and none of them knows this setting"
    raise ConfigError(f"setting {name!r} would change nothing: every arm has its own; {instead}")
