"""Where our reward differs from math-verify's own reading and comparison, and from the grade that the data came with.

    python benchmarks/grading.py
    python benchmarks/grading.py table.jsonl --map expected=is_correct

Without a table: the real graded responses in ../shared/data. A table is what `polyepo grade-check` takes.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from polyepo.domains import Maths, Problem, Verdict
from polyepo.grading import Case, parse_mapping, read_cases

DATA = Path(__file__).parents[2] / "shared" / "data"


def real_cases() -> Iterator[tuple[str, list[Case]]]:
    """The graded responses that come with the project's data sets."""
    rollouts = DATA / "qwen_math_100x8" / "rollouts.parquet"
    if rollouts.is_file():
        columns = {"reference": "gold_answer", "expected": "reward"}
        yield "qwen_math_100x8", read_cases(str(rollouts), columns)
    solutions = DATA / "gsm8k_model_solutions" / "example_model_solutions.jsonl"
    if solutions.is_file():
        cases: list[Case] = []
        for line in solutions.read_text().split("\n"):
            row = json.loads(line) if line else {}
            for answer in (value for value in row.values() if isinstance(value, dict)):
                # Its answers stand on a last line "A: 18", which is nobody's format but this file's.
                response = "\n#### ".join(answer["solution"].rsplit("\nA: ", 1))
                reference = row["ground_truth"].rsplit("\nA: ", 1)[-1]
                cases.append(Case(len(cases) + 1, reference, response, float(answer["is_correct"])))
        yield "gsm8k_model_solutions", cases
    table = Path(__file__).parents[1] / "tests" / "polyepo" / "grading_cases.jsonl"
    yield "the project's own cases", read_cases(str(table), {})


def by_math_verify(case: Case) -> float:
    """The reward as math-verify's documentation gives it."""
    from math_verify import parse, verify

    return float(verify(parse(f"${case.reference}$"), parse(case.response)))


def kind(ours: Verdict, theirs: float) -> str:
    """In words, what the two do not agree about."""
    if ours.reward is None:
        return f"not graded by us ({ours.ungraded}), {theirs:g} by the other"
    if ours.parsed_answer is None:
        return f"no answer read by us, {theirs:g} by the other"
    return f"{ours.reward:g} by us, {theirs:g} by the other"


def show(title: str, cases: list[Case], verdicts: list[Verdict], others: list[float], limit: int) -> None:
    """The share that differs, and the differing pairs of each kind, the most frequent first."""
    differing = [
        (kind(v, other), case.reference, str(v.parsed_answer))
        for case, v, other in zip(cases, verdicts, others, strict=True)
        if v.reward != other
    ]
    print(f"  {title}: {len(differing)} of {len(cases)} differ ({len(differing) / len(cases):.2%})")
    pairs = Counter(differing)
    for name, count in Counter(name for name, _, _ in differing).most_common():
        print(f"    {count:5}  {name}")
        for (_, reference, answer), times in [p for p in pairs.most_common() if p[0][0] == name][:limit]:
            print(f"           {times:4} x {reference!r} | {answer!r}")


def main() -> None:
    """Grade everything in three ways, and print where they differ and what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="*", help="JSONL, CSV or Parquet with reference, response, expected")
    parser.add_argument("--map", action="append", default=[], help="FIELD=COLUMN")
    parser.add_argument("--show", type=int, default=10, help="pairs listed of each kind")
    arguments = parser.parse_args()
    logging.disable()
    columns = parse_mapping(arguments.map)
    domain = Maths(path="benchmark")
    domain.verify(Problem(problem_id="0", domain="maths", prompt="", answer="1/2"), r"\boxed{2/4}")  # starts a worker
    for name, cases in [(path, read_cases(path, columns)) for path in arguments.table] or real_cases():
        problems = [Problem(problem_id=str(c.row), domain="maths", prompt="", answer=c.reference) for c in cases]
        start = time.perf_counter()
        verdicts = domain.verify_batch(problems, [case.response for case in cases])
        ours_s = time.perf_counter() - start
        start = time.perf_counter()
        theirs = [by_math_verify(case) for case in cases]
        theirs_s = time.perf_counter() - start
        per = 1000 / len(cases)
        print(
            f"{name}: {len(cases)} responses; seconds per 1,000: {ours_s * per:.2f}, math-verify {theirs_s * per:.2f}"
        )
        show("from math-verify's own reading and comparison", cases, verdicts, theirs, arguments.show)
        show("from the data's own grade", cases, verdicts, [case.expected for case in cases], arguments.show)


if __name__ == "__main__":
    main()
