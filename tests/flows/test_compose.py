"""docker-compose.yml: what its schema cannot say, and its services' commands, run by hand from packages."""

import os
import re
import signal
import subprocess
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml

from flows.services import processes, servers, work_pools
from tests.support.config import small_config
from tests.support.processes import BIN, PROJECT, free_port, left_behind, until

COMPOSE = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
SECRETS = ("POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY")
EXAMPLE = dict(line.split("=", 1) for line in (PROJECT / ".env.example").read_text().splitlines() if "=" in line)


def variables(text):
    """Name and what follows it, of each ${...}."""
    return re.findall(r"\$\{(\w+)([^}]*)\}", text)


def active(profile):
    return {name for name, service in SERVICES.items() if profile in service.get("profiles", [profile])}


def test_it_is_valid_compose():
    check = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", PROJECT / "docker-compose.yml"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_profiles_hold_what_they_need():
    common = {"postgres", "s3", "prefect", "register", "worker-cpu"}
    assert active("cpu") == common | {"worker-policy"}
    assert active("gpu") == common | {"worker-gpu", "vllm-policy", "vllm-judge"}
    for profile in ("cpu", "gpu"):
        for name in active(profile):
            assert set(SERVICES[name].get("depends_on", {})) <= active(profile)


def test_secrets_come_from_the_environment_alone():
    found = variables((PROJECT / "docker-compose.yml").read_text())
    for name, rest in found:
        required = rest.startswith(":?") and ".env" in rest
        assert required if name in SECRETS else rest.startswith(":-")
    assert {name for name, _ in found} == set(EXAMPLE), ".env.example lists every variable"
    assert not any(EXAMPLE[name] for name in (*SECRETS, "HF_TOKEN", "OPENAI_API_KEY"))
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|_KEY|TOKEN", name):
                assert variables(value), f"{name} is written down"


def test_ports_are_open_to_this_machine_only():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)
    # Its endpoints take weights from whoever reaches them.
    assert "ports" not in SERVICES["vllm-policy"]


def test_images_are_pinned_and_healthy_before_they_are_used():
    for name, service in SERVICES.items():
        if "build" not in service:
            assert re.search(r":\w*[vV.]?\d+[.-]\d+", service["image"]), f"{name}: {service['image']}"
        assert "healthcheck" in service
        for needed, how in service.get("depends_on", {}).items():
            one_shot = SERVICES[needed]["healthcheck"].get("disable", False)
            wanted = "service_completed_successfully" if one_shot else "service_healthy"
            assert how["condition"] == wanted


def test_volumes_are_named_and_shared_where_weights_travel():
    mounted = [volume.split(":") for service in SERVICES.values() for volume in service.get("volumes", [])]
    assert {source for source, *_ in mounted if not source.startswith(".")} == set(COMPOSE["volumes"])
    for name in ("worker-gpu", "vllm-policy"):
        assert "/weights" in [volume.split(":")[1] for volume in SERVICES[name]["volumes"]]
    assert SERVICES["vllm-policy"]["environment"]["VLLM_SERVER_DEV_MODE"] == "1"


def test_the_limit_of_the_pool_is_the_number_of_gpu_workers():
    gpu_workers = [name for name in active("gpu") if "poly-epo-gpu" in SERVICES[name].get("command", [])]
    assert len(gpu_workers) == int(SERVICES["register"]["environment"]["POLYEPO_GPU_SLOTS"])
    # Workers wait for the pool: one that finds none makes it, without a limit.
    workers = [service for name, service in SERVICES.items() if "worker" in name]
    assert all("register" in worker["depends_on"] for worker in workers)
    # Twice silent is late, three times is dead: the automations count on it.
    assert {worker["environment"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] for worker in workers} == {
        str(work_pools.HEARTBEAT_SECONDS)
    }


class Containers:
    """The services' commands on this machine: their host names and ports stand for those that are free here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.values = {name: EXAMPLE[name] for name in EXAMPLE} | {
            "POSTGRES_PASSWORD": servers._password_file().read_text(),
            "S3_ACCESS_KEY": "key",
            "S3_SECRET_KEY": "secret",
        }
        self.port = str(free_port())
        self.running: list[subprocess.Popen] = []
        self.health_ports: dict[str, str] = {}

    def resolved(self, text: str, name: str) -> str:
        health_port = self.health_ports.setdefault(name, str(free_port()))
        for variable, rest in variables(text):
            text = text.replace(f"${{{variable}{rest}}}", self.values[variable] or rest.removeprefix(":-"))
        here = {
            "postgres:5432/prefect": f"127.0.0.1:{processes.note_of('postgres')}/postgres",
            "http://s3:9000": processes.note_of("s3"),
            "prefect:4200": f"127.0.0.1:{self.port}",
            "4200": self.port,
            "8080": health_port,
            "0.0.0.0": "127.0.0.1",
        }
        for there, value in here.items():
            text = text.replace(there, value)
        return text

    def environment(self, name: str) -> dict[str, str]:
        given = {key: self.resolved(value, name) for key, value in SERVICES[name]["environment"].items()}
        ours = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "PWD": str(self.folder),
            "PREFECT_WORKER_WEBSERVER_PORT": self.health_ports.get(name, "8080"),
        }
        return given | ours

    def popen(self, name: str, command: list[str]) -> subprocess.Popen:
        with open(self.folder / f"{name}.log", "a") as log:
            # A worker ends on SIGINT; whoever runs the tests in the background ignores it, and so would the worker.
            heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
            return subprocess.Popen(
                [self.resolved(word, name) for word in command], cwd=self.folder, env=self.environment(name),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, preexec_fn=heed,
            )  # fmt: skip

    def run(self, name: str, command: list[str]) -> int:
        return self.popen(name, command).wait(120)

    def up(self, name: str) -> None:
        """Start a service and wait until its own health check passes."""
        self.running.append(self.popen(name, SERVICES[name]["command"]))
        kind, *check = SERVICES[name]["healthcheck"]["test"]
        assert kind == "CMD"
        until(lambda: self.run(name, check) == 0, 120)

    def down(self) -> None:
        for process in reversed(self.running):
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@pytest.fixture
def containers(postgres_folder):
    for name in ("flows", "prefect.yaml", "prefect.toml"):
        (postgres_folder / name).symlink_to(PROJECT / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(postgres_folder)
        processes.STATE.mkdir()
        try:
            servers.start(print)
            containers = Containers(postgres_folder)
            yield containers
            containers.down()
        finally:
            servers.stop()
    assert left_behind(postgres_folder) == []


@pytest.mark.slow
def test_the_commands_of_its_services_train_a_run(containers):
    config = containers.folder / "small.yaml"
    config.write_text(yaml.safe_dump(small_config(steps=2, evaluation=None)))
    containers.up("prefect")
    assert containers.run("register", SERVICES["register"]["command"]) == 0
    assert containers.run("register", SERVICES["register"]["command"]) == 0, "it can be repeated"
    for worker in ("worker-cpu", "worker-policy"):
        containers.up(worker)
    train = ["prefect", "deployment", "run", "poly-epo/train", "--param", f"config={config}", "--param", "run=small"]
    assert containers.run("worker-cpu", train) == 0
    api = f"http://127.0.0.1:{containers.port}/api"

    def completed():
        # The arm's own flow run, below the one that was asked for, is not meant.
        asked = {"flow_runs": {"parent_task_run_id": {"is_null_": True}}}
        (found,) = httpx.post(f"{api}/flow_runs/filter", json=asked).json()
        assert found["state"]["type"] not in ("FAILED", "CRASHED")
        return found["state"]["type"] == "COMPLETED"

    until(completed, 180)
    query = ["polyepo", "sql", "-c", "SELECT max(step) AS last FROM updates", "--format", "csv"]
    assert containers.run("worker-cpu", query) == 0
    assert (containers.folder / "worker-cpu.log").read_text().split()[-2:] == ["last", "2"]
    assert httpx.get(f"{api}/work_pools/poly-epo-gpu").json()["concurrency_limit"] == 1


def test_the_gpu_worker_runs_the_command_that_was_tried():
    assert SERVICES["worker-gpu"]["command"] == SERVICES["worker-policy"]["command"]
