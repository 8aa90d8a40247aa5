"""Artifacts made of plain rows, and rows read back."""

import pyarrow as pa

from polyepo.schemas import LABELS, ROLLOUTS, SCORES
from storage import ArtifactKey, Provenance, Store

PROVENANCE = Provenance("hash", "test")
PROMPTLESS = {
    "prompt_token_ids": [1], "temperature": 1.0, "top_p": 1.0, "seed": 0, "policy_version": 0, "sampler": "test",
}  # fmt: skip


def commit(store, run, stage, step, rows, schema, shard=None, **partition):
    key = ArtifactKey(run, stage, step, tuple(partition.items()), shard)
    table = pa.Table.from_pylist(rows, schema=schema)
    return store.commit_table(key, table, table_name=stage, provenance=PROVENANCE)


def label_of(value):
    return {
        "cluster": value if isinstance(value, int) else None,
        "degenerate": value == "degenerate",
        "macro_strategy": f"macro {value}" if isinstance(value, int) else None,
        "micro_strategy": None,
        "status": "parse_failed" if value == "missing" else "ok",
        "rationale": None,
        "truncated": None,
        "agreement": None,
    }


def answer_class(answer):
    """The class of an answer: 2/2 is 1."""
    return None if answer is None else {"2/2": 0, "1": 0, "2": 1}.get(answer, 2)


def rows_of(run, step, prompts):
    """Flat rows, and the columns that every table keys on."""
    return [
        {
            "run": run, "step": step, "problem_id": f"p{p}", "sample": i, **response,
            "answer_class": answer_class(response["parsed_answer"]),
            "ungraded": "timeout" if response["reward"] is None else None,
        }
        for p, group in enumerate(prompts)
        for i, response in enumerate(group)
    ]  # fmt: skip


def pick(row, schema):
    return {name: row.get(name) for name in schema.names}  # without one that must be there it is not committed


def commit_step(store, run, step, prompts):
    rows = rows_of(run, step, prompts)
    sampled = [{**row, **PROMPTLESS, "response": f"r{row['sample']}", "sampler_logprobs": [0.0]} for row in rows]
    commit(store, run, "rollouts", step, [pick(row, ROLLOUTS) for row in sampled], ROLLOUTS, shard=0)
    for judge, label in (("first", "label"), ("second", "other")):
        labelled = [pick({**row, **label_of(row[label]), "judge": judge}, LABELS) for row in rows]
        commit(store, run, "labels", step, labelled, LABELS, shard=0, judge=judge)
    constant = {"scoring": "own", "objective": "o", "judge": "first"}
    scored = [pick({**row, **label_of(row["label"]), **constant}, SCORES) for row in rows]
    commit(store, run, "scores", step, scored, SCORES, scoring="own")
    if "other_reward" in rows[0]:
        pairs = [(row["other_advantage"], row["other_reward"]) for row in rows]
        regraded = [
            {**new, "scoring": "other", "advantage": a, "reward": r} for new, (a, r) in zip(scored, pairs, strict=True)
        ]
        commit(store, run, "scores", step, regraded, SCORES, scoring="other")


def make_root(folder, steps, run="run"):
    store = Store(str(folder))
    store.create_run(
        run, {"config": {"steps": len(steps), "seed": 0, "domain": {"name": "d"}}, "config_hash": "h", "scoring": "own"}
    )
    for step, prompts in enumerate(steps, 1):
        commit_step(store, run, step, prompts)
    return store


def ask(connection, sql, *parameters):
    result = connection.execute(sql, parameters)
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def simple(label=0, reward=1.0, **more):
    return {
        "reward": reward, "label": label, "other": label, "advantage": 0.0, "parsed_answer": "1",
        "response_token_ids": [1], "finish_reason": "stop", **more,
    }  # fmt: skip
