"""The Arrow schemas of every table: the one definition. Evolve by adding nullable columns.

`run`, `step`, `problem_id` and `sample` are the join key everywhere. A problem is named by `run`, `split` and
`problem_id`: its split is `train`, `heldout`, or the benchmark that it is of, which is the `benchmark` of its evals.
"""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

from polyepo.labels import LabelStatus

# 2: evals have strategies. 3: labels have rationale, truncated, agreement; judge_calls finish_reason, cost.
# 4: scores have overlong_penalty. 5: scores have verifier, uses_clusters; scores and evals answer_class, ungraded, and
# rewards may be null; evals have status; updates prompts_ungraded, ungraded_rate, reward_std, unparsed_rate,
# distinct_clusters, and statistics may be null; judge_calls cost_bound; evaluations. 6: updates have trainer_processes.
SCHEMA_VERSION = 6


class Column(NamedTuple):
    """A column of a table, and what it holds where the name does not say it."""

    name: str
    dtype: pa.DataType
    comment: str = ""
    nullable: bool = False


COMMENTS: dict[tuple[str, str], str] = {}
"""What columns hold, by table and name, and what a row of a table is, by table and ""."""


def _schema(
    table: str, rows: str, *columns: tuple[str, pa.DataType] | tuple[str, pa.DataType, str] | Column
) -> pa.Schema:
    described = [column if isinstance(column, Column) else Column(*column) for column in columns]
    COMMENTS[table, ""] = rows
    COMMENTS.update({(table, column.name): column.comment for column in described if column.comment})
    return pa.schema([pa.field(column.name, column.dtype, nullable=column.nullable) for column in described])


def _nullable(name: str, dtype: pa.DataType, comment: str = "") -> Column:
    return Column(name, dtype, comment, nullable=True)


STRING, INT32, INT64, F32, F64, BOOL = (
    pa.string(),
    pa.int32(),
    pa.int64(),
    pa.float32(),
    pa.float64(),
    pa.bool_(),
)

_STATUSES = ", ".join(LabelStatus)

PROBLEMS = _schema(
    "problems",
    "One row per problem of a run (both splits), and of each benchmark it was evaluated on.",
    ("run", STRING),
    ("problem_id", STRING),
    ("split", STRING, "train, heldout, or the name of a benchmark"),
    ("domain", STRING),
    ("prompt", STRING, "the text, or the chat messages as JSON"),
    ("prompt_is_chat", BOOL),
    _nullable("answer", STRING),
    ("metadata", STRING, "JSON"),
)

_RESPONSE_KEY = (
    ("run", STRING),
    ("step", INT32, "of training, from 1; of an evaluation, the step whose policy sampled, 0 for the base model"),
    ("problem_id", STRING, "stable: the same in every epoch, arm and run"),
    ("sample", INT32, "number of the response among those to this problem, from 0"),
)

_SAMPLED = (
    # Null only in rollouts that were imported: what their makers did not keep is not made up.
    _nullable("prompt_token_ids", pa.list_(INT32), "what the policy was given"),
    ("response", STRING, "decoded for people; token ids are what was sampled"),
    _nullable("response_token_ids", pa.list_(INT32), "what was sampled, with the end token if there is one"),
    _nullable("sampler_logprobs", pa.list_(F32), "log-probability of each token of the response, by the sampler"),
    _nullable("finish_reason", STRING, "'stop' (ended by EOS) or 'length' (truncated)"),
    _nullable("temperature", F64),
    _nullable("top_p", F64),
    _nullable("seed", INT64, "of this response, made of run seed, step, problem and sample"),
    _nullable("policy_version", INT32, "optimizer steps of training behind the policy that sampled"),
    ("sampler", STRING, "what sampled: transformers, vllm, or a class of the user's; imported if that is not known"),
)

ROLLOUTS = _schema("rollouts", "One row per response.", *_RESPONSE_KEY, *_SAMPLED)

LABELS = _schema(
    "labels",
    "One row per response and judge. `status` says what happened and is never folded into a cluster number.",
    *_RESPONSE_KEY,
    ("judge", STRING),
    _nullable("cluster", INT32, "null if degenerate or unlabelled; `status` and `degenerate` tell which"),
    ("degenerate", BOOL),
    _nullable("macro_strategy", STRING),
    _nullable("micro_strategy", STRING),
    ("status", STRING, f"one of {_STATUSES}"),
    _nullable("rationale", STRING),
    _nullable("truncated", BOOL, "the judge saw a shortened response"),
    _nullable("agreement", F64, "of the judge's own votes, about the pairs that this response is in"),
)

JUDGE_CALLS = _schema(
    "judge_calls",
    "One row per call of a judge that makes calls.",
    ("run", STRING),
    ("step", INT32),
    ("judge", STRING),
    ("problem_id", STRING),
    ("attempt", INT32),
    ("request_sha256", STRING),
    _nullable("raw_reply", STRING, "what the model said, whole"),
    _nullable("prompt_tokens", INT64),
    _nullable("completion_tokens", INT64),
    ("latency_s", F64),
    _nullable("error", STRING, "why the call gave no labels; null if it did"),
    _nullable("finish_reason", STRING),
    _nullable("cost", F64, "in the currency of the judge's prices; null without prices or token counts"),
    _nullable("cost_bound", F64, "the most it can have cost; null if the cost is known, is none, or has no prices"),
)

# Whoever counts answers counts classes: `1/2` and `0.5` are texts of one answer.
_GRADED = (
    _nullable("reward", F64, "null if the response could not be graded: never a 0"),
    _nullable("ungraded", STRING, "why there is no reward"),
    _nullable("parsed_answer", STRING, "the final answer that the verifier read; null if it read none"),
    _nullable(
        "answer_class",
        INT32,
        "answers of one problem that mean the same have one number; null without an answer, or before schema version 5",
    ),
)

SCORES = _schema(
    "scores",
    "One row per response and scoring.",
    *_RESPONSE_KEY,
    ("scoring", STRING),
    ("objective", STRING),
    ("judge", STRING),
    _nullable("verifier", STRING, "the domain that graded; imported: the response came with its reward"),
    _nullable("uses_clusters", BOOL, "whether advantages depend on them; null before schema version 5: they may"),
    *_GRADED,
    _nullable("cluster", INT32),
    ("degenerate", BOOL),
    _nullable("advantage", F64, "null only in imported scores"),
    _nullable("overlong_penalty", F64, "taken from the reward for the advantages; null if the scoring has none"),
)

UPDATES = _schema(
    "updates",
    "One row per step.",
    ("run", STRING),
    ("step", INT32),
    ("policy_version", INT32, "after this update"),
    ("loss", F64),
    ("grad_norm", F64, "before clipping; mean over the step's optimizer steps"),
    ("clip_fraction", F64, "response tokens whose ratio was clipped"),
    ("entropy", F64, "nats per response token, of the policy that sampled"),
    ("logprob_mismatch", F64, "mean |trainer - sampler| log-prob per response token"),
    ("logprob_mismatch_max", F64),
    ("importance_weight_max", F64, "largest trainer/sampler probability ratio before any truncation"),
    ("lr", F64, "learning rate"),
    ("num_responses", INT64),
    ("num_tokens", INT64, "response tokens"),
    ("num_optimizer_steps", INT32),
    # Of the responses that were graded, or labelled; null if none was. Before schema version 5 the next three are null.
    _nullable("reward_mean", F64, "of the responses that were graded"),
    _nullable("reward_std", F64, "over the step's graded responses: 0 if each earned the same"),
    _nullable("unparsed_rate", F64, "responses that held no answer that the verifier could read"),
    _nullable("distinct_clusters", F64, "non-degenerate clusters per prompt, right or wrong"),
    _nullable("coverage", F64, "share of prompts with a correct response"),
    _nullable("distinct_successful", F64, "clusters per prompt that hold a correct response"),
    _nullable("distinct_unsuccessful", F64, "clusters per prompt that hold an incorrect response"),
    _nullable("degenerate_rate", F64, "of the responses that were labelled"),
    _nullable("missing_label_rate", F64, "responses that the judge could not label; null before schema version 3"),
    _nullable("ungraded_rate", F64, "responses that could not be graded; null before schema version 5"),
    ("truncated_rate", F64, "responses cut off at the limit"),
    ("prompts", INT32),
    ("prompts_with_signal", INT32, "with a gradient; the next ones have none, by the first reason that holds"),
    ("prompts_all_wrong", INT32),
    ("prompts_one_cluster", INT32),
    ("prompts_unlabelled", INT32),
    _nullable("prompts_ungraded", INT32, "without a gradient, as a response could not be graded"),
    ("prompts_other_zero", INT32, "every advantage is exactly 0 for another reason"),
    ("prompts_sign_flipped", INT32, "a correct response was pushed down while an incorrect one was pushed up"),
    ("seconds_sample", F64),
    ("seconds_judge", F64),
    ("seconds_score", F64),
    ("seconds_update", F64),
    _nullable("trainer_processes", INT32, "that computed the update together; null before schema version 6: one"),
    _nullable("checkpoint", STRING, "folder of the checkpoint after this step; null if it has none"),
)

EVALS = _schema(
    "evals",
    "One row per held-out response.",
    *_RESPONSE_KEY,
    *_SAMPLED,
    ("benchmark", STRING),
    *_GRADED,
    ("judge", STRING),
    _nullable("cluster", INT32),
    ("degenerate", BOOL),
    _nullable("macro_strategy", STRING),
    _nullable("micro_strategy", STRING),
    _nullable("status", STRING, f"one of {_STATUSES}; null before schema version 5"),
)

EVALUATIONS = _schema(
    "evaluations",
    "One row per evaluation that was asked for: what is committed of it in evals may be less.",
    ("run", STRING),
    ("step", INT32),
    ("benchmark", STRING),
    ("problems", INT32),
    ("samples", INT32, "per problem"),
)

TABLES: dict[str, pa.Schema] = {
    "problems": PROBLEMS,
    "rollouts": ROLLOUTS,
    "labels": LABELS,
    "judge_calls": JUDGE_CALLS,
    "scores": SCORES,
    "updates": UPDATES,
    "evals": EVALS,
    "evaluations": EVALUATIONS,
}

# Columns with a fixed list of values.
VALUES: dict[tuple[str, str], frozenset[str]] = {
    ("labels", "status"): frozenset(LabelStatus),
    ("evals", "status"): frozenset(LabelStatus),
}

# Columns that say how long something took: the only ones in which two identical runs differ.
TIMING_COLUMNS = frozenset({"seconds_sample", "seconds_judge", "seconds_score", "seconds_update", "latency_s"})
