"""Import: rollouts that others made become a run like any other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from polyepo.config import ConfigError, PolicyConfig, RunConfig, SamplingConfig
from polyepo.domains import Domain, Problem
from polyepo.domains.base import content_id
from polyepo.imports import BadRow, Columns, Format, ImportedResponse, read_responses
from polyepo.judges import ProgramJudge
from polyepo.names import name_of
from polyepo.schemas import ROLLOUTS, SCORES
from polyepo.scoring import SetScoring
from storage import ArtifactKey, Provenance, open_store
from tasks.runs.record import ImportRecord, as_record, new_record, read_record
from tasks.runs.run import code_version, commit_problems
from tasks.runs.scores import IMPORTED


@dataclass
class Imported:
    """What an import found and made."""

    run: str = ""
    num_responses: int = 0
    num_graded: int = 0
    num_problems: int = 0
    steps: list[int] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    """Rows that were left out."""
    existed: bool = False


def import_rollouts(
    root: str, files: Sequence[Path], form: Format, columns: Columns, domain: Domain, name: str | None, strict: bool
) -> Imported:
    """Make a run of files of rollouts; the same files again give the same run.

    The run's record is written last, so an import that was stopped shows no run, and the same import finishes it.

    Raises:
        ConfigError: a file cannot be read, no row can be used, a row is malformed and `strict` is set, or another
            import has the run's name.
        StoreError: the root cannot be written.
    """
    digest = _digest(files, form, columns, domain)
    run = name or _run_name(files[0], digest)
    store = open_store(root)
    store.check()
    report = Imported(run)
    problems, by_step = _read(files, form, columns, domain, report)
    if strict and report.bad:
        first = report.bad[0]
        raise ConfigError(f"{len(report.bad)} malformed rows, the first {first.file}, row {first.row}: {first.reason}")
    if not report.num_responses:
        reason = f"; the first: row {report.bad[0].row}: {report.bad[0].reason}" if report.bad else ""
        raise ConfigError(f"none of the {len(report.bad)} rows can be used{reason}")
    _claim(root, run, digest)
    config = _config(domain, by_step)
    report.existed = store.run_record(run) is not None
    provenance = Provenance(config.digest, code_version())
    commit_problems(store, run, [("train", problem) for problem in problems.values()], provenance)
    for step, responses in by_step.items():
        _commit_step(root, run, step, responses, provenance)
    source = ImportRecord(digest=digest, files=[file.name for file in files], malformed_rows=len(report.bad))
    whose = {"judge": IMPORTED, "scoring": IMPORTED, "imported": source}
    record = new_record(run, config).model_copy(update=whose)
    stored = as_record(run, store.create_run(run, record.written()))
    if stored.imported is None or stored.imported.digest != digest:
        raise ConfigError(f"run {run!r} was made by something else meanwhile; choose another --run")
    return report


def _run_name(file: Path, digest: str) -> str:
    return f"{name_of(file.stem, longest=80, otherwise='import')}-{digest[:8]}"


def _digest(files: Sequence[Path], form: Format, columns: Columns, domain: Domain) -> str:
    """SHA-256 of all that decides what an import makes."""
    hashes = []
    for file in files:
        try:
            with file.open("rb") as opened:
                hashes.append(hashlib.file_digest(opened, "sha256").hexdigest())
        except OSError as error:
            raise ConfigError(f"{str(file)!r} cannot be read: {error.strerror}") from None
    content = [hashes, form, columns.names, domain.model_dump(mode="json", exclude={"path"})]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _claim(root: str, run: str, digest: str) -> None:
    """Take a run's name for this import; raises ConfigError if something else has it."""
    store = open_store(root)
    record = read_record(store, run)
    theirs = record is not None and record.imported is None
    if theirs or not store.claim_run(run, {"digest": digest}):
        raise ConfigError(f"run {run!r} exists under {root!r} with other content; choose another --run")


def _read(
    files: Sequence[Path], form: Format, columns: Columns, domain: Domain, report: Imported
) -> tuple[dict[str, Problem], dict[int, dict[str, list[ImportedResponse]]]]:
    """Problems by id, and responses by step and problem."""
    problems: dict[str, Problem] = {}
    by_step: dict[int, dict[str, list[ImportedResponse]]] = {}
    for file in files:
        try:
            for row in read_responses(file, form, columns):
                if isinstance(row, BadRow):
                    report.bad.append(row)
                    continue
                try:
                    problem = _problem(domain, row)
                    if problems.setdefault(problem.problem_id, problem) != problem:
                        raise ValueError(
                            f"problem_id {problem.problem_id!r} has another problem in an earlier row; "
                            "--map id=COLUMN names another column, --map id= takes a hash of the problem"
                        )
                except ValueError as error:
                    report.bad.append(BadRow(row.file, row.row, str(error)))
                    continue
                by_step.setdefault(row.step, {}).setdefault(problem.problem_id, []).append(row)
                report.num_responses += 1
                report.num_graded += row.reward is not None
        except ValueError as error:
            raise ConfigError(str(error)) from None
    report.num_problems, report.steps = len(problems), sorted(by_step)
    return problems, {step: by_step[step] for step in report.steps}


def _problem(domain: Domain, row: ImportedResponse) -> Problem:
    return domain.imported(row.problem_id or content_id(row.prompt, row.answer), row.prompt, row.answer)


def _config(domain: Domain, by_step: dict[int, dict[str, list[ImportedResponse]]]) -> RunConfig:
    """A configuration in kind: what re-scoring needs, and a policy that says where it came from."""
    num_responses = max(len(group) for groups in by_step.values() for group in groups.values())
    return RunConfig(
        steps=len(by_step),
        domain=domain,
        policy=PolicyConfig(model=IMPORTED),
        sampling=SamplingConfig(
            prompts_per_step=max(len(groups) for groups in by_step.values()), num_responses=num_responses
        ),
        judge=ProgramJudge(),
        scoring=SetScoring(set_size=min(4, num_responses)),
    )


def _commit_step(
    root: str, run: str, step: int, groups: dict[str, list[ImportedResponse]], provenance: Provenance
) -> None:
    store = open_store(root)
    rows = [
        ({"run": run, "step": step, "problem_id": problem_id, "sample": sample}, response)
        for problem_id, group in groups.items()
        for sample, response in enumerate(group)
    ]
    rollouts: list[dict[str, Any]] = [
        {**key, "response": response.response, "sampler": IMPORTED} for key, response in rows
    ]
    parent = store.commit_table(
        ArtifactKey(run, "rollouts", step, (), 0),
        pa.Table.from_pylist(rollouts, schema=ROLLOUTS),
        table_name="rollouts",
        provenance=provenance,
    )
    constant = {"scoring": IMPORTED, "objective": IMPORTED, "judge": IMPORTED, "degenerate": False}
    graded = [
        {**key, **constant, "reward": response.reward, "advantage": response.advantage}
        for key, response in rows
        if response.reward is not None
    ]
    if graded:
        store.commit_table(
            ArtifactKey(run, "scores", step, (("scoring", IMPORTED),)),
            pa.Table.from_pylist(graded, schema=SCORES),
            table_name="scores",
            parents=[parent] if len(graded) == len(rows) else [],
            provenance=provenance,
        )
