"""PostgreSQL and an S3 server on this machine, from packages: what a full stack has beyond Prefect's own processes."""

from __future__ import annotations

import functools
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

from flows.services import processes
from flows.services.processes import STATE, StackError
from flows.services.work_pools import HEARTBEAT_SECONDS

BUCKET = "poly-epo"
_SECONDS = 60
_DATABASE_USER = "prefect"
_S3_SERVER = Path(__file__).with_name("s3_server.py")


def start(say: Callable[[str], None]) -> None:
    """Start what does not run yet. Raises StackError if a program is missing or does not come up."""
    # Both are looked for before either is started.
    programs = postgres_programs()
    if importlib.util.find_spec("moto") is None:
        raise StackError("the S3 server is missing: pip install 'moto[server]'")
    if not processes.is_alive("postgres"):
        with processes.stage(say, "PostgreSQL"):
            _start_postgres(programs)
    if not processes.is_alive("s3"):
        with processes.stage(say, "S3 server"):
            _start_s3()


def stop() -> list[str]:
    """Stop both; returns the names of what was running."""
    # PostgreSQL takes SIGTERM for "when the last client has gone", and SIGINT for "now".
    stops = {"s3": signal.SIGTERM, "postgres": signal.SIGINT}
    return [name for name, stop_signal in stops.items() if processes.terminate(name, stop_signal)]


def environment() -> dict[str, str]:
    """What the workers of a full stack, and whoever uses it, must know; empty if its services do not run."""
    if not (processes.is_alive("postgres") and processes.is_alive("s3")):
        return {}
    return {
        "POLYEPO_ROOT": f"s3://{BUCKET}/artifacts",
        "AWS_ENDPOINT_URL_S3": processes.note_of("s3"),
        "AWS_ACCESS_KEY_ID": "poly-epo",
        "AWS_SECRET_ACCESS_KEY": "any",  # the server for trying out asks for none
        "AWS_DEFAULT_REGION": "us-east-1",
        "POLYEPO_GPU_SLOTS": "1",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    }


def server_environment() -> dict[str, str]:
    """What the Prefect server of a full stack must know; nobody else is told the database's password."""
    if not processes.is_alive("postgres"):
        return {}
    login = f"{_DATABASE_USER}:{_password_file().read_text()}"
    url = f"postgresql+asyncpg://{login}@127.0.0.1:{processes.note_of('postgres')}/postgres"
    return {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": url,
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "true",  # PostgreSQL has the time for it
    }


def make_bucket(root: str) -> None:
    """Make the bucket of an S3 root, unless it is there or the root is none of S3's."""
    if root.startswith("s3://"):
        import s3fs  # takes a second to import

        bucket, files = root.removeprefix("s3://").split("/")[0], s3fs.S3FileSystem()
        if not files.exists(bucket):
            files.mkdir(bucket)


def postgres_programs() -> Path:
    """The folder of PostgreSQL's server programs: Debian keeps them off the PATH, in a folder per version."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    on_path = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    for folder in (*versions, *on_path):
        if all(os.access(folder / program, os.X_OK) for program in ("initdb", "postgres", "pg_isready")):
            return folder
    raise StackError("PostgreSQL is not installed: apt-get install postgresql (Debian, Ubuntu)")


def _start_postgres(programs: Path) -> None:
    user = _postgres_user()
    data = _initialized(programs, user)
    port = _free_port()
    settings = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": ""}
    command = [str(programs / "postgres"), "-D", str(data)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    processes.spawn("postgres", command, dict(os.environ), note=str(port), user=user)
    ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    processes.wait_for("postgres", lambda: subprocess.run(ready, check=False).returncode == 0, _SECONDS)


def _postgres_user() -> str | None:
    """Whom PostgreSQL runs as, if not as us: it refuses to be root."""
    if os.geteuid():
        return None
    user = os.environ.get("POLYEPO_POSTGRES_USER", "postgres")
    home = STATE.absolute()
    try:
        enters = subprocess.run(["/bin/sh", "-c", 'cd "$1"', "sh", str(home)], user=user, capture_output=True)
    except (KeyError, ValueError) as error:
        raise StackError(f"there is no user {user!r} to run PostgreSQL as: set POLYEPO_POSTGRES_USER") from error
    if enters.returncode:
        raise StackError(
            f"PostgreSQL does not run as root, and user {user!r} cannot enter {home}: "
            "use a project folder that others may enter, or do not be root"
        )
    return user


def _initialized(programs: Path, user: str | None) -> Path:
    """The data folder of our own cluster, made if there is none."""
    folder = _password_file().parent
    data, unfinished = folder / "data", folder / "data.unfinished"
    if data.exists():
        return data
    folder.mkdir(exist_ok=True, mode=0o700)
    _password_file().unlink(missing_ok=True)
    with open(os.open(_password_file(), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as password:
        password.write(secrets.token_urlsafe(24))
    for path in (folder, _password_file()):
        if user:
            shutil.chown(path, user)
    shutil.rmtree(unfinished, ignore_errors=True)
    done = subprocess.run(
        [
            str(programs / "initdb"), "-D", str(unfinished), f"--username={_DATABASE_USER}",
            f"--pwfile={_password_file()}", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C",
        ],
        user=user, group=user, extra_groups=[] if user else None, cwd=folder,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise StackError(f"initdb failed:\n{done.stdout}{done.stderr}")
    unfinished.rename(data)
    return data


def _password_file() -> Path:
    return STATE.absolute() / "postgres" / "password"


def _start_s3() -> None:
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    processes.spawn("s3", [sys.executable, "-I", str(_S3_SERVER), str(port)], dict(os.environ), note=url)
    processes.wait_for("s3", functools.partial(_has_bucket, url), _SECONDS)


def _has_bucket(url: str) -> bool:
    try:
        return httpx.put(f"{url}/{BUCKET}", timeout=10, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
