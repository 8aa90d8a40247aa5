"""A run on object storage: trained, killed and resumed there, asked by every command, its credentials kept secret."""

import os
import random
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from storage.s3 import S3Files
from tasks.runs.run import open_run
from tests.support.processes import STEPS, finish, start, start_flow
from tests.support.runs import final_weights, tables
from tests.support.s3_proxy import Proxy

pytestmark = pytest.mark.slow
CANARY = "canary-7d41c2"


def num_manifests(root):
    return sum(file.path.endswith("manifest.json") for file in S3Files(root).find("runs"))


@pytest.fixture(scope="module")
def environment(server, s3):
    """The environment of flows: credentials that can be searched for (moto takes any)."""
    aws = {name: os.environ[name] for name in ("AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION")}
    return {**server, **aws, "AWS_ACCESS_KEY_ID": "A" + CANARY, "AWS_SECRET_ACCESS_KEY": "S" + CANARY}


@pytest.fixture(scope="module")
def trained(environment, config, s3, tmp_path_factory):
    """A run of the same configuration as `undisturbed`, killed three times; and all that was printed."""
    root = f"{s3}/trained-{random.getrandbits(32)}"
    generator = random.Random(0)
    for _ in range(3):
        process = start_flow(environment, config, root)
        wanted, deadline = num_manifests(root) + generator.choice([1, 4, 9]), time.monotonic() + 120
        while num_manifests(root) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.wait()
    output = finish(start_flow(environment, config, root))
    output += finish(
        start(environment, f"from flows.evaluate import evaluate; evaluate('run', num_samples=8, root={root!r})")
    )
    rescore = f"rescore('run', judge='configs/judges/answer.yaml', root={root!r})"
    output += finish(start(environment, f"from flows.rescore import rescore; {rescore}"))
    output += finish(start(environment, f"from flows.replay import replay; replay('run', 5, root={root!r})"))
    return root, output


def test_killed_and_resumed_on_object_storage_it_is_the_run_of_the_local_disk(trained, undisturbed):
    run = open_run(trained[0], "run")
    assert final_weights(run) == final_weights(undisturbed)
    mine, theirs = tables(run, STEPS), tables(undisturbed, STEPS)
    assert mine.keys() == theirs.keys()
    for path, table in mine.items():
        assert table.equals(theirs[path]), path


def test_training_goes_on_while_a_checkpoint_is_on_its_way_and_a_kill_then_loses_nothing(
    environment, config, undisturbed, s3
):
    root = f"{s3}/stuck-{random.getrandbits(32)}"
    first, later = undisturbed.key("checkpoints", 7), undisturbed.key("updates", 12)
    with Proxy(environment["AWS_ENDPOINT_URL_S3"]) as proxy:
        stuck = f"{first.path}/".replace("=", "%3D")
        proxy.fault = lambda request: "hang" if request.method == "PUT" and stuck in request.path else None
        process = start_flow({**environment, "AWS_ENDPOINT_URL_S3": proxy.url}, config, root)
        files, deadline = S3Files(root), time.monotonic() + 120
        while not files.exists(f"{later.path}/manifest.json") and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[0][-3000:]
            time.sleep(0.05)
        process.kill()
        process.wait()
        assert "hang" in proxy.faults
    assert files.exists(f"{later.path}/manifest.json")
    assert not files.exists(f"{first.path}/manifest.json")
    committed = {f.path: files.read(f.path) for f in files.find("runs") if f.path.endswith("manifest.json")}
    finish(start_flow(environment, config, root))
    assert {path: files.read(path) for path in committed} == committed
    assert final_weights(open_run(root, "run")) == final_weights(undisturbed)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["runs"], "finished"),
        (["show", "run", "5"], "cluster"),
        (["summary", "run"], "pass@1"),
        (["sql", "-c", "SELECT count(*) FROM rollouts"], str(STEPS * 16)),
        (["sql", "-c", "FROM pass_at_k(4)"], "heldout"),
        (["gc", "--older-than", "0s", "--yes"], ""),
        (["verify", "run"], "are as their manifests say"),
        (["export", "run", "-o", "{tmp}/export"], "responses in"),
        (["report", "run", "-o", "{tmp}/report.html"], "MB"),
        (["watch", "run"], f"{STEPS}/{STEPS}"),
        (["compare", "run", "program", "answer"], "judges program (a) and answer (b)"),
        (["judge-sheet", "run", "-o", "{tmp}/sheet.csv"], "responses in"),
        (
            [
                "import",
                "{tmp}/dump.jsonl",
                "--run",
                "imported",
                "--map",
                "problem=q",
                "--map",
                "response=a",
                "--domain",
                "ungraded",
            ],
            "imported",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_every_command_takes_a_root_on_object_storage(trained, tmp_path, command, said):
    (tmp_path / "dump.jsonl").write_text('{"q": "1+1", "a": "2"}\n{"q": "1+1", "a": "3"}\n')
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in command]
    shown = CliRunner().invoke(app, [*arguments, "--root", trained[0]])
    assert shown.exit_code == 0, shown.output
    assert said in shown.output


def test_credentials_are_nowhere(trained, environment, tmp_path):
    root, output = trained
    files = S3Files(root)
    found = [file.path for file in files.find("") if CANARY.encode() in files.read(file.path)]
    assert found == []
    assert CANARY not in output
    home = Path(environment["PREFECT_HOME"])
    assert [path for path in home.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("command", [["runs"], ["sql", "-c", "FROM runs"], ["verify", "run"], ["gc"], ["train"],
                                     ["summary", "run"], ["show", "run"], ["watch", "run"], ["report", "run"],
                                     ["experiment", "configs/experiments/polynomial.yaml"], ["export", "run"]],
                         ids=lambda command: command[0])  # fmt: skip
def test_a_command_says_in_one_line_what_is_wrong(s3, tmp_path, monkeypatch, command):
    secret = f"S{CANARY}"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with Proxy(os.environ["AWS_ENDPOINT_URL_S3"], lambda request: "ExpiredToken") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        shown = CliRunner().invoke(app, [*command, "--root", f"{s3}/{tmp_path.name}"])
    assert shown.exit_code == 1
    assert isinstance(shown.exception, SystemExit), shown.exception
    assert "the credentials have expired: get new ones" in shown.output
    assert len(shown.output.splitlines()) == 1
    assert CANARY not in shown.output
