"""A handful of problems from sampling to advantages, by the functions that training calls, in a store of their own."""

from __future__ import annotations

from collections.abc import Callable

from polyepo.config import ConfigError, RunConfig
from storage import ModelKey, Provenance, Store, open_store
from tasks.runs.labels import commit_labels
from tasks.runs.models import commit_warm_start, warm_start_digest
from tasks.runs.preflight import check_here, check_model
from tasks.runs.probing import probe
from tasks.runs.rollouts import commit_rollouts
from tasks.runs.run import Run, code_version, create_or_resume, read_splits
from tasks.runs.scores import commit_scores

TRIED = "try"
"""The run's name."""


def trial_of(config: RunConfig, num_problems: int) -> RunConfig:
    """The first step of a run, of a few of its problems. What cannot be graded or labelled does not stop it."""
    sampling = config.sampling.model_copy(update={"prompts_per_step": num_problems, "shards": 1})
    return config.model_copy(
        update={
            "steps": 1,
            "sampling": sampling,
            "scoring": config.scoring.model_copy(update={"max_ungraded_rate": 1.0}),
            "update": config.update.model_copy(update={"prompts_per_minibatch": None}),
            "evaluation": None,
        }
    )


def commit_trial(root: str, config: RunConfig, models: Store, say: Callable[[str], None]) -> Run:
    """Sample, judge and score one step of a trial in a fresh store.

    Args:
        root: of the fresh store.
        config: of the trial.
        models: the store that base models are taken from, and made in if they are not there: it takes long, and a run
            under its root wants the same.
        say: told what is done next.

    Raises:
        PolyepoError: what a run could not be made with, or could not go on from.
    """
    store = open_store(root)
    problems = [problem for split in read_splits(config).values() for problem in split]
    check_here(config)
    check_model(config, problems)
    probe(config, problems)
    if config.policy.warm_start:
        digest = warm_start_digest(config)
        key = ModelKey("warm-start", digest)
        say("taking the base model" if models.exists(key) else "making the base model, which the next time is there")
        commit_warm_start(models, config, digest)
        store.commit_files(key, models.local_files(key), provenance=Provenance(digest, code_version(), 0))
    run = create_or_resume(root, TRIED, config)
    sampling = config.sampling
    say(f"sampling {sampling.num_responses} responses to each of {sampling.prompts_per_step} problems")
    commit_rollouts(run, 1, 0)
    store.wait()
    say(f"judging them by {config.judge.judge_id}")
    commit_labels(run, config.judge, 1, 0, max_missing_rate=1.0)
    say("grading and scoring them")
    commit_scores(run, config.scoring, config.judge, 1)
    return run


def only_arm(configs: dict[str, RunConfig], arm: str | None, name: str) -> RunConfig:
    """The configuration of an arm; of the last one, which is what the others are compared with, if none is named.

    Raises:
        ConfigError: there is no such arm.
    """
    if arm is None:
        return list(configs.values())[-1]
    if (run := f"{name}-{arm}") not in configs:
        arms = [run.removeprefix(f"{name}-") for run in configs if run != name]
        raise ConfigError(f"--arm {arm!r} is none of the configuration's: {', '.join(arms) or 'it has no arms'}")
    return configs[run]
