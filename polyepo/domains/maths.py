"""Mathematics from a file: problems with answers in JSONL or Parquet, compared by math-verify."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, Literal

from pydantic import Field

from polyepo.conversations import is_conversation, messages
from polyepo.domains.answers import all_answers, final_answer, num_values
from polyepo.domains.base import Problem, Prompt, Split, Strategy, Verdict
from polyepo.domains.dataset import ColumnFilter, read_rows, value_at
from polyepo.domains.equivalence import Comparison, EquivalencePool
from polyepo.domains.leakage import leaks
from polyepo.domains.prompted import Prompted
from polyepo.domains.references import reference_answer
from polyepo.domains.text import split_problems
from polyepo.section import added

_log = logging.getLogger(__name__)

_PROBLEM_COLUMNS = ("problem", "question", "prompt")
_ANSWER_COLUMNS = ("answer", "final_answer", "expected_answer", "solution", "reward_model")
_ID_COLUMNS = ("unique_id", "problem_id", "id", "extra_info")


class Maths(Prompted):
    r"""Problems from a JSONL or Parquet file; GSM8K, MATH-500 and verl's layout load without edits.

    The answer is read from the last \boxed{...}, else from the last "Answer: ..." or "#### ..." line. There is no
    exact strategy for free-form mathematics: the program judge clusters by what the final answer means, so use a
    language-model judge to explore.
    """

    name: Literal["maths"] = "maths"
    has_one_answer: ClassVar[bool] = True
    strategy_is_answer: ClassVar[bool] = True
    path: str
    """JSONL or Parquet file; or, with the `datasets` library, what it loads: a hub id, a folder."""
    subset: str | None = added(None)
    """Of a data set that has several, such as "main" of openai/gsm8k."""
    split: str | None = added(None)
    """Of a data set; "train" if not given."""
    heldout_path: str | None = None
    """Held-out problems, as `path`; a share of `path` if neither this nor `heldout_split` is given. Where both use the
    same ids for different problems, the held-out ones get `heldout-` before theirs."""
    heldout_subset: str | None = added(None)
    heldout_split: str | None = added(None)
    """Of `heldout_path`, or of `path` if there is none."""
    filters: dict[str, ColumnFilter] = added({})
    """Problems of `path` that stay, by column: {level: {min: 3}} or {subject: {values: [Algebra]}}."""
    unusable: Literal["refuse", "drop"] = added("refuse")
    """Rows without an answer to compare with, rows that repeat another, and training problems whose text is that of a
    held-out one: refuse to start, or leave them out."""
    problem_column: str | None = None
    answer_column: str | None = None
    id_column: str | None = None
    template: str = "{problem}\nReason step by step and put the final answer in \\boxed{}.\n"
    """Text around each problem: {problem} is replaced, other braces stay. Problems that are chat messages are
    asked as they are."""
    heldout_fraction: float = Field(0.1, gt=0, lt=1)
    split_seed: int = 0
    num_workers: int = Field(2, ge=1)
    """Processes that compare answers."""
    timeout_s: float = Field(5.0, gt=0)
    """Processor seconds after which a comparison is stopped: its response is not graded, which is no 0."""
    boxes: Literal["last", "agree"] = added("last")
    """Of several answers in one response: the last one counts, or it is wrong unless all of them mean the same."""

    def problems(self, split: Split) -> list[Problem]:
        """The problems of a split. Raises ValueError naming file and row if one cannot be used."""
        train, heldout = self._splits()
        if split == "heldout":
            return heldout
        leaked = {trained for trained, _ in leaks(train, heldout)} if self.unusable == "drop" else set()
        return [problem for problem in train if problem.problem_id not in leaked]

    def of_file(self, path: str) -> Maths:
        """The same way with all problems of another file."""
        ours = {"heldout_path", "subset", "split", "heldout_subset", "heldout_split", "filters", "unusable"}
        return self.model_copy(update={name: type(self).model_fields[name].default for name in ours} | {"path": path})

    def _splits(self) -> tuple[list[Problem], list[Problem]]:
        """Training and held-out problems; where two files use the same ids, such as 0, 1, 2, held-out ones say so."""
        problems = self._read(self.path, self.subset, self.split, self.filters)
        if self.heldout_path is None and self.heldout_split is None:
            train, heldout = (
                split_problems(problems, split, self.heldout_fraction, self.split_seed)
                for split in ("train", "heldout")
            )
            return train, heldout
        path = self.heldout_path or self.path
        subset = self.heldout_subset if self.heldout_path else self.heldout_subset or self.subset
        heldout = self._read(path, subset, self.heldout_split, {})
        asked = {problem.problem_id: problem.prompt for problem in problems}
        if any(asked.get(problem.problem_id, problem.prompt) != problem.prompt for problem in heldout):
            heldout = [p.model_copy(update={"problem_id": f"heldout-{p.problem_id}"}) for p in heldout]
        if self.unusable == "refuse" and (common := asked.keys() & {p.problem_id for p in heldout}):
            raise ValueError(
                f"domain.heldout_path {path!r} shares {len(common)} problem_ids with domain.path "
                f"{self.path!r}, such as {min(common)!r}; the two must hold different problems: remove them from one, "
                "or leave them out of training by domain.unusable: drop"
            )
        return problems, heldout

    def imported(self, problem_id: str, prompt: Prompt, answer: str | None) -> Problem:
        """The prompt as it was; the answer as the data sets of `path` write it."""
        try:
            reference = reference_answer(answer)
        except ValueError as error:
            raise ValueError(f"{error}; --domain ungraded takes responses without a reference answer") from None
        return Problem(problem_id=problem_id, domain=self.name, prompt=prompt, answer=reference)

    def verify(self, problem: Problem, response: str) -> Verdict:
        """1 if the response's final answer equals the problem's."""
        return self.verify_batch([problem], [response])[0]

    def verify_batch(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """Grade responses in parallel; one that cannot be compared has no reward, but a reason."""
        answers = self._final_answers(problems, responses)
        given = [i for i, answer in enumerate(answers) if answer is not None]
        compared = self._compare([(str(problems[i].answer), str(answers[i])) for i in given])
        verdicts = [Verdict(0.0, None)] * len(answers)
        for i, (equal, failure) in zip(given, compared, strict=True):
            verdicts[i] = Verdict(None if equal is None else float(equal), answers[i], failure)
        return verdicts

    def strategy(self, problem: Problem, response: str) -> Strategy | None:
        """The final answer, without spaces; None if there is none."""
        return self.strategies([(problem, [response])])[0][0]

    def strategies(self, groups: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[Strategy | None]]:
        """The final answers, each as the first response with an equal one wrote it, without spaces."""
        answered = [(p, self._final_answers([p] * len(responses), responses)) for p, responses in groups]
        found = []
        for (_, answers), classes in zip(answered, self.answer_classes(answered), strict=True):
            first: dict[int, Strategy] = {}
            for answer, number in zip(answers, classes, strict=True):
                if number is not None:
                    first.setdefault(number, Strategy("final answer", "".join(str(answer).split())))
            found.append([None if number is None else first[number] for number in classes])
        return found

    def answer_classes(self, groups: Sequence[tuple[Problem, Sequence[str | None]]]) -> list[list[int | None]]:
        """By verified equivalence: each answer is compared with the first one of each class before it.

        All problems at once: in every round the first unnumbered answer of each opens a class, and the others of the
        problem are compared with it. A pair that cannot be compared counts as different.
        """
        classes: list[dict[str, int]] = [{} for _ in groups]
        waiting = [list(dict.fromkeys(answer for answer in answers if answer is not None)) for _, answers in groups]
        number = 0
        while any(waiting):
            asked = [(i, answers[0], answer) for i, answers in enumerate(waiting) if answers for answer in answers]
            compared = self._compare([(first, answer) for _, first, answer in asked])
            waiting = [[] for _ in groups]
            for (i, _, answer), (equal, _) in zip(asked, compared, strict=True):
                if equal:
                    classes[i][answer] = number
                else:
                    waiting[i].append(answer)
            number += 1
        return [
            [None if answer is None else numbers[answer] for answer in answers]
            for (_, answers), numbers in zip(groups, classes, strict=True)
        ]

    def _final_answers(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[str | None]:
        last = [
            final_answer(response, num_values(str(problem.answer)))
            for problem, response in zip(problems, responses, strict=True)
        ]
        if self.boxes == "last":
            return last
        asked = [(i, other) for i, response in enumerate(responses) if last[i] for other in all_answers(response)]
        compared = self._compare([(str(last[i]), other) for i, other in asked])
        contradicted = {i for (i, _), (equal, _) in zip(asked, compared, strict=True) if not equal}
        return [None if i in contradicted else answer for i, answer in enumerate(last)]

    def _compare(self, pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
        return _pool(self.num_workers, self.timeout_s).compare(pairs)

    def _read(
        self, path: str, subset: str | None, split: str | None, filters: dict[str, ColumnFilter]
    ) -> list[Problem]:
        rows = read_rows(path, subset, split)
        if not rows:
            raise ValueError(f"domain.path {path!r} holds no problems")
        id_column = self.id_column or _unique_column(rows)
        numbered = [(n, row) for n, row in enumerate(rows, start=1) if _stays(row, filters, f"{path!r}, row {n}")]
        if not numbered:
            raise ValueError(f"domain.filters leave none of the {len(rows)} problems of domain.path {path!r}")
        problems: dict[str, Problem] = {}
        first: dict[str, int] = {}
        unusable: list[ValueError] = []
        for number, row in numbered:
            try:
                problem = self._problem(path, number, row, id_column)
                if first.setdefault(problem.problem_id, number) != number:
                    raise ValueError(
                        f"domain.path {path!r}, row {number}: problem_id {problem.problem_id!r} is that of row "
                        f"{first[problem.problem_id]} already; remove one, leave it out by domain.unusable: drop, or "
                        "set domain.id_column to a unique column"
                    )
                problems[problem.problem_id] = problem
            except ValueError as error:
                unusable.append(error)
                if self.unusable == "refuse" or len(unusable) == len(numbered):
                    raise
        if unusable:
            _log.warning("%d of %d rows are left out, the first: %s", len(unusable), len(numbered), unusable[0])
        return list(problems.values())

    def _problem(self, path: str, number: int, row: dict[str, Any], id_column: str | None) -> Problem:
        where = f"domain.path {path!r}, row {number}"
        text = _column(row, self.problem_column, _PROBLEM_COLUMNS, "problem_column", where)
        answer = _column(row, self.answer_column, _ANSWER_COLUMNS, "answer_column", where)
        try:
            answer = reference_answer(answer)
        except ValueError as error:
            raise ValueError(
                f"{where}: {error}; remove the row, give it an answer or name its column by domain.answer_column, or "
                "leave such rows out by domain.unusable: drop"
            ) from None
        content = json.dumps([text, answer], sort_keys=True)
        stable_id = _identifier(row, id_column) if id_column else hashlib.sha256(content.encode()).hexdigest()[:16]
        if not stable_id:
            raise ValueError(f"{where}: the id is empty, column {id_column!r} must hold text or a number")
        prompt: Prompt
        if isinstance(text, str) and text.strip():
            prompt = self.put(text)
        elif is_conversation(text):
            try:
                prompt = messages(text)
            except ValueError as error:
                raise ValueError(f"{where}: the problem's {error}") from None
        else:
            raise ValueError(f"{where}: the problem must be text or chat messages with role and content, not {text!r}")
        return Problem(problem_id=stable_id, domain=self.name, prompt=prompt, answer=answer)


def _unique_column(rows: Sequence[dict[str, Any]]) -> str | None:
    """The data set's own id column, if it has one whose values are all there and all different."""
    for column in _ID_COLUMNS:
        ids = {_identifier(row, column) for row in rows}
        if len(ids) == len(rows) and "" not in ids:
            return column
    return None


def _identifier(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if isinstance(value, dict) and isinstance(value.get("index"), int):  # verl's extra_info
        return f"{value.get('split') or 'index'}-{value['index']}"
    return str(value).strip() if isinstance(value, str | int) else ""


def _stays(row: dict[str, Any], filters: dict[str, ColumnFilter], where: str) -> bool:
    for column, wanted in filters.items():
        value = _column(row, column, (), "filters", f"domain.path {where}")
        try:
            if not wanted.keeps(value):
                return False
        except ValueError as error:
            raise ValueError(f"domain.path {where}, column {column!r}: {error}") from None
    return True


def _column(row: dict[str, Any], given: str | None, known: Sequence[str], field: str, where: str) -> Any:
    """The value of a column that is named in the configuration, or else of the first with a known name."""
    for column in [given] if given else known:
        try:
            return value_at(row, column)
        except KeyError:
            continue
    wanted = repr(given) if given else " or ".join(known)
    raise ValueError(f"{where}: no column {wanted} among {sorted(row)}; set domain.{field}")


@lru_cache(maxsize=2)
def _pool(num_workers: int, timeout_s: float) -> EquivalencePool:
    return EquivalencePool(num_workers, timeout_s)
