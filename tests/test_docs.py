"""What the pages show, run: each block of code, each command and query, or the reason why not stands above it."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from flows.cli import app
from polyepo import plugins
from polyepo.config import load_judge, parse_config
from polyepo.judges import AnswerJudge
from polyepo.plugins import given_by_user
from polyepo.schemas import COMMENTS, TABLES
from storage import Catalog
from storage.catalog import queries
from tasks.evaluate import evaluate
from tasks.runs.evaluations import evaluation_due
from tasks.runs.groups import Arm
from tasks.runs.labels import commit_labels
from tests.support.blocks import Block, blocks, commands
from tests.support.config import small_config
from tests.support.runs import start, train

PROJECT = Path(__file__).resolve().parents[1]
PAGES = sorted((PROJECT / "docs").rglob("*.md"))
BLOCKS = [block for page in [*PAGES, PROJECT / "README.md"] for block in blocks(page, PROJECT)]
STEPS = 2
ARMS = {"grpo": {"scoring": {"method": "grpo"}}, "grpo-div": {"scoring": {"method": "grpo_div", "weight": 0.5}},
        "poly-epo": {}}  # fmt: skip

# Commands that start servers or train for minutes: those who run them are named. Their options are checked here.
STARTING = {
    "train",
    "experiment",
    "evaluate",
    "rescore",
    "replay",
    "cancel",
    "watch",
    "stop",
    "register",
    "stack",
    "fork",
}
_REDIRECTED = re.compile(r" > (\S+)$")
# Blocks of the README that are not run, by how they begin, until it says so itself.
README = {
    "configs/  ": "a listing",
    "domain: {name: dataset, path: rows.jsonl, verify": "files of the reader's; docs/how-to has them with their text",
}


def is_listed(text: str) -> bool:
    return any(text.startswith(beginning) for beginning in README)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as a reader has it: the project's files, and the quickstart as a tiny run in artifacts/."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("configs", "examples"):
        shutil.copytree(PROJECT / name, folder / name)
    root = str(folder / "artifacts")
    changes = {"steps": STEPS, "evaluation": {"num_samples": 8, "k": [1, 8]}, "checkpoint_every": 1}
    config = parse_config(small_config(**changes) | {"arms": ARMS})
    for label, (name, run_config) in zip(config.arms, config.runs("quickstart").items(), strict=True):
        run = start(root, run_config, name, Arm("quickstart", label, list(config.arms)))
        for step in range(STEPS + 1):
            if step:
                train(run, step)
                commit_labels(run, AnswerJudge(), step, 0)
            if evaluation_due(run, step):
                evaluate.fn(root, name, step)
    return folder


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    """In a folder of one's own with all of that, where nothing is provided yet."""
    for name in ("artifacts", "configs", "examples"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.setattr(plugins, "_provided", {})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def of(*languages, page=None):
    return [b for b in BLOCKS if b.language in languages and (page is None or b.page == page)]


def words(command: str) -> list[str] | None:
    """The words of a command of ours; None if it is another program's."""
    if inner := re.fullmatch(r'eval "\$\((.+)\)"', command):
        command = inner[1]
    found = shlex.split(_REDIRECTED.sub("", command), comments=True)
    while found and re.match(r"[A-Z_0-9]+=", found[0]):
        found = found[1:]
    return found[1:] if found and found[0].removeprefix(".venv/bin/") == "polyepo" else None


def check_options(command: str) -> None:
    """Fail if a command of ours has no such name, argument or option."""
    found = words(command)
    if found is None:
        return
    group = typer.main.get_command(app)
    while hasattr(group, "commands") and found:
        assert found[0] in group.commands, f"there is no command {found[0]!r}"
        group, found = group.commands[found[0]], found[1:]
    options = {option for parameter in group.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in found:
        if re.match(r"--?[a-z]", word):
            assert word.partition("=")[0] in options | {"--help"}, f"{command}: no option {word}"


@pytest.mark.parametrize("block", of("bash", ""), ids=lambda b: b.where)
def test_commands_are_ours_with_options_that_exist(block):
    """Also of blocks that are not run."""
    for command in commands(block.text):
        check_options(command)
        if command.startswith("make "):
            targets = set(re.findall(r"^([a-z0-9-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
            for part in re.split(r";|&&", command):
                target = part.split()[1]
                assert target in targets, f"make {target}"
        for path in re.findall(r"\b(?:configs|examples|benchmarks)/[\w./-]+\.\w+", command):
            assert (PROJECT / path).exists(), path


RUN_PAGES = sorted({b.page for b in BLOCKS if b.language in ("python", "bash") and not b.not_run})


@pytest.mark.parametrize("page", RUN_PAGES)
def test_a_page_runs_from_top_to_bottom(page, here):
    """Its Python in one namespace, its commands in one folder."""
    names: dict[str, object] = {"__name__": "page"}
    for block in of("python", "bash", page=page):
        if block.not_run:
            continue
        if block.language == "python":
            if found := re.match(r"# (\w+\.py)\n", block.text):  # a file of the reader's
                Path(found[1]).write_text(block.text)
            code = compile(ast.parse(block.text), block.where, "exec")
            exec(code, names)
            continue
        for command in commands(block.text):
            run(command, block)


def run(command: str, block: Block) -> None:
    found = words(command)
    assert found is not None, f"{block.where}: {command}: only commands of ours are run; say why this is not"
    assert found[0] not in STARTING, f"{block.where}: {command} starts servers: say so above it"
    done = CliRunner().invoke(app, found, env={"COLUMNS": "200"})
    assert done.exit_code == 0, f"{block.where}: {command}\n{done.output}"
    if target := _REDIRECTED.search(command):
        Path(target[1]).write_text(done.stdout)


@pytest.fixture(scope="module")
def catalog(folder):
    return Catalog(str(folder / "artifacts"))


@pytest.mark.parametrize("block", of("sql"), ids=lambda b: b.where)
def test_queries_run_and_give_the_columns_that_are_shown(block, catalog):
    names, _ = catalog.fetch(block.text)
    assert block.columns is None or names == block.columns


@pytest.mark.parametrize("block", [b for b in of("yaml") if not is_listed(b.text)], ids=lambda b: b.where)
def test_settings_are_a_configurations(block, here):
    check_settings(block, here)


def check_settings(block: Block, here: Path) -> None:
    """Sections stand in a configuration that has the others; files that they name are the page's own."""
    for written in of("python", page=block.page):
        if found := re.match(r"# (\w+\.py)\n", written.text):
            Path(found[1]).write_text(written.text)
    Path("my-instructions.md").write_text(
        (PROJECT / "polyepo" / "judges" / "llm" / "template.md").read_text(encoding="utf-8")
    )
    given = yaml.safe_load(block.text)
    base = yaml.safe_load((PROJECT / "configs" / "quickstart.yaml").read_text())
    del base["arms"]
    with given_by_user(here):
        parse_config({**base, "policy": {"model": "a/model"}, **given}, source=block.where)


def test_every_block_says_what_it_is():
    for block in BLOCKS:
        assert block.language in {"bash", "python", "sql", "yaml", "mermaid", ""}, block.where
        looks_run = re.match(r"(\S*polyepo|make|pip|docker|prefect) |>>>|import ", block.text)
        assert block.language or is_listed(block.text) or not looks_run, f"{block.where}: say ```bash or ```python"


def test_messages_that_are_explained_are_said():
    """Troubleshooting goes by message: each stands in the code."""
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for top in ("polyepo", "storage", "tasks", "flows")
        for path in (PROJECT / top).rglob("*.py")
    )
    explained = re.findall(r"^(`.+`)\n:   ", (PROJECT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    messages = [message for line in explained for message in re.findall(r"`([^`]+)`", line)]
    assert len(messages) > 20
    assert [message for message in messages if message not in code] == []


def test_the_reference_has_everything():
    """It is made from the code; what it is made of is complete."""
    from docs.generate import commands as of_commands
    from docs.generate import configuration, tables
    from docs.generate import queries as of_queries

    said, answers, listed = configuration.page(), of_queries.page(), of_commands.page()
    for key in ("max_missing_rate", "keep_checkpoints", "trainer", "overlong_penalty", "accepted_fraction", "seeds"):
        assert f"| `{key}` |" in said
    assert re.search(r"\| `processes` \|.*\| operational \|", said)
    assert re.search(r"\| `lr` \|.*\| changes results \|", said)
    assert "Passes over each batch." in said  # a docstring below a field
    for name in queries().keys() - {"views"}:
        assert f"## {name}\n" in answers
    columns = tables.page()
    for name, schema in TABLES.items():
        assert all(f"| `{column}` |" in columns for column in schema.names), name
        assert COMMENTS[name, ""] in columns
    for name in typer.main.get_command(app).commands:
        assert f"## polyepo {name}" in listed


def test_the_threat_models_tests_exist():
    """Each line of the threat model names the tests that hold it."""
    text = (PROJECT / "docs" / "threat-model.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)`(?:: ((?:`\w+`(?:, )?)+))?", text)
    assert len(named) > 15
    by_file: dict[str, str] = defaultdict(str)
    for path, tests in named:
        by_file[path] = by_file[path] or (PROJECT / path).read_text(encoding="utf-8")
        for test in re.findall(r"\w+", tests):
            assert f"def {test}(" in by_file[path], f"{path} has no {test}"


def test_judges_and_links():
    for path in (PROJECT / "configs" / "judges").glob("*.yaml"):
        load_judge(path)
    for page in [*PAGES, PROJECT / "CONTRIBUTING.md", PROJECT / "SECURITY.md"]:
        for link in re.findall(r"\]\(((?!https?:)[^)#]+)", page.read_text(encoding="utf-8")):
            target = os.path.normpath(page.parent / link)
            generated = "reference/" in link or page.parent.name == "reference"
            assert generated or Path(target).exists(), f"{page}: {link}"
