"""Real problems and real responses, where they are."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from polyepo.domains import Countdown, Maths, Problem


@pytest.mark.parametrize(("folder", "count"), [("gsm8k", 1319), ("math500", 500)])
def test_files_load_without_edits_and_their_answers_are_right(real_data, folder, count):
    domain = Maths(path=str(real_data / folder / "test.jsonl"))
    problems = [*domain.problems("train"), *domain.problems("heldout")]
    assert len(problems) == len({p.problem_id for p in problems}) == count
    chosen = problems[:: count // 60]
    right = domain.verify_batch(chosen, [f"So it is \\boxed{{{p.answer}}}." for p in chosen])
    assert np.mean([v.reward for v in right]) == 1.0
    wrong = domain.verify_batch(chosen, [f"So it is \\boxed{{{p.answer} + 1}}." for p in chosen])
    assert np.mean([v.reward for v in wrong]) < 0.05


@pytest.mark.parametrize(
    ("file", "unreadable"),
    [
        ("aime24/test.jsonl", 0),
        ("aime25/test.jsonl", 0),
        ("amc23/test.jsonl", 0),
        ("hmmt_feb_2025/test.jsonl", 0),
        ("deepscaler_sub1209/dsr_sub.parquet", 2),  # two answers in one; a brace that is missing
    ],
)
def test_every_reference_answer_is_equal_to_itself_and_not_to_one_more(real_data, file, unreadable):
    domain = Maths(path=str(real_data / file), unusable="drop")
    problems = [*domain.problems("train"), *domain.problems("heldout")][:400]
    for form in ("So it is \\boxed{%s}.", "It follows.\n**Final Answer:** %s"):
        verdicts = domain.verify_batch(problems, [form % p.answer for p in problems])
        assert sum(v.reward == 0 for v in verdicts) <= unreadable
    more = domain.verify_batch(problems, [f"So it is \\boxed{{{p.answer} + 1}}." for p in problems])
    assert sum(v.reward for v in more) == 0


def test_game_of_24_agrees_with_the_published_grades_and_strategies(real_data):
    folder = real_data / "game24_gpt4_100x100"
    domain = Countdown(path=str(folder / "24.csv"), target=24, operators="+-*/")
    assert len(domain.problems("train")) + len(domain.problems("heldout")) == 1362
    rows = [
        row for row in pq.read_table(folder / "rollouts.parquet").to_pylist() if row["reward"] or row["strategy_key"]
    ]
    keys: dict[tuple[str, str], set[str]] = {}
    compared = 0
    for row in rows:
        numbers = [int(n) for n in row["numbers"].split()]
        problem = Problem(
            problem_id=row["problem_id"], domain="countdown", prompt="", metadata={"numbers": numbers, "target": 24}
        )
        response = row["response"][row["response"].rfind("Answer:") :]
        # The published grade looks at the expression alone; ours also at a result that is stated with it.
        stated_right = "=" not in response or response.split("=")[-1].strip() == "24"
        assert domain.verify(problem, response).reward == float(row["reward"] and stated_right), row
        strategy = domain.strategy(problem, response)
        if strategy and row["strategy_key"]:
            compared += 1
            keys.setdefault((row["problem_id"], row["strategy_key"]), set()).add(strategy.micro)
    assert compared > 500
    assert all(len(ours) == 1 for ours in keys.values()), "one published strategy must be one of ours"
    assert len({(p, next(iter(v))) for (p, _), v in keys.items()}) == len(keys), "and the other way round"
