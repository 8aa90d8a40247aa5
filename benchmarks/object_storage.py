"""What object storage costs: seconds and requests of a training step, and of reading a run, at a latency per request.

    python benchmarks/object_storage.py --latency 0.2
    python benchmarks/object_storage.py --latency 0.2 --steps 850 --checkpoint-every 50 --reading

A tiny model trains for some steps on moto's S3 server behind a proxy that delays each request; Prefect is left out.
With --reading it trains on the local disk, and what was made is copied there, but for the last step: then the run is
resumed, summarized, listed and opened in SQL, each as a process of its own would.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.support.s3_proxy import Proxy

ROOT = "s3://bucket/x"
SERVER = "from moto.server import ThreadedMotoServer as S; import time; S('127.0.0.1', 5555).start(); time.sleep(1e6)"


def main() -> None:
    """Train on the local disk, then on S3, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds before each request is passed on")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--checkpoint-every", type=int, default=4)
    parser.add_argument("--reading", action="store_true")
    arguments = parser.parse_args()

    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with Proxy("http://127.0.0.1:5555") as proxy, tempfile.TemporaryDirectory() as folder:
            os.environ.update(
                AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_ENDPOINT_URL_S3=proxy.url,
                AWS_DEFAULT_REGION="us-east-1",
            )  # fmt: skip
            if arguments.reading:
                read_back(folder, arguments, proxy)
                return
            local, _ = measure(folder, arguments, proxy)
            make_bucket()
            remote, requests = measure(ROOT, arguments, proxy)
    finally:
        server.kill()
    print(f"local disk  {local:.2f} s a step")
    print(f"S3          {remote:.2f} s a step at {arguments.latency:g} s a request")
    print("requests    " + ", ".join(f"{count / arguments.steps:.1f} {method}" for method, count in requests.items()))


def read_back(folder: str, arguments: argparse.Namespace, proxy: Proxy) -> None:
    """Train on the local disk, copy all but the last step to the bucket, and print a line for each way to read it."""
    from flows.views.runs import runs_table
    from flows.views.summary import summarize
    from storage import connect, open_store
    from tasks.evaluate import evaluate
    from tasks.runs import policies
    from tasks.runs.run import create_or_resume, open_run

    measure(folder, arguments, proxy)
    for step in (0, arguments.steps - 1):
        evaluate.fn(folder, "run", step)
    make_bucket()
    copy(Path(folder), f"step={arguments.steps:06d}")

    def resume() -> None:
        config = open_run(folder, "run").config
        run = create_or_resume(ROOT, "run", config)
        policies.check_prompts(run)
        run.store.steps("run", "updates")
        run.store.steps("run", "checkpoints")

    ways: dict[str, Callable[[], object]] = {
        "resume": resume,
        "summary": lambda: summarize(ROOT, "run"),
        "runs": lambda: runs_table(ROOT, 80),
        "open SQL": lambda: connect(ROOT),
        "query all updates": lambda: connect(ROOT).execute("SELECT avg(loss) FROM updates").fetchall(),
        "query one step": lambda: connect(ROOT).execute("SELECT count(*) FROM rollouts WHERE step = 7").fetchall(),
    }
    print(f"a run of {arguments.steps} steps at {arguments.latency:g} s a request")
    print(f"{'':18} {'requests':>9} {'s':>7}")
    for name, read in ways.items():
        open_store.cache_clear()
        open_run.cache_clear()
        policies._live.clear()
        proxy.latency_s = arguments.latency
        first, started = len(proxy.requests), time.perf_counter()
        read()
        print(f"{name:18} {len(proxy.requests) - first:9,} {time.perf_counter() - started:7.1f}", flush=True)
        proxy.latency_s = 0.0


def copy(folder: Path, last_step: str) -> None:
    """Put a local root's files into the bucket, without what was made last: the update and the checkpoint."""
    import s3fs

    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    gone = (f"updates/{last_step}", f"checkpoints/{last_step}")
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(part in name for part in gone):
            fs.pipe_file(f"{ROOT.removeprefix('s3://')}/{name}", path.read_bytes())


def make_bucket() -> None:
    """Make the bucket, as soon as the server is up."""
    import s3fs
    from botocore.exceptions import BotoCoreError

    for _ in range(100):
        try:
            s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
            return
        except (OSError, BotoCoreError):
            time.sleep(0.1)
    raise SystemExit("the S3 server did not come up")


def measure(root: str, arguments: argparse.Namespace, proxy: Proxy) -> tuple[float, Counter[str]]:
    """Seconds per step, and requests by method, of all steps after the start of a run."""
    from polyepo.config import parse_config
    from tasks.checkpoint import checkpoint, warm_start
    from tasks.judge import judge
    from tasks.runs.models import warm_start_digest
    from tasks.runs.policies import check_prompts
    from tasks.runs.run import checkpoint_due, create_or_resume
    from tasks.sample import sample
    from tasks.score import score
    from tasks.update import update
    from tests.support.config import small_config

    settings = {"steps": arguments.steps, "checkpoint_every": arguments.checkpoint_every}
    config = parse_config(small_config(**settings, sampling={"shards": arguments.shards})).runs("run")["run"]
    run = create_or_resume(root, "run", config)
    warm_start.fn(root, config, warm_start_digest(config))
    check_prompts(run)
    proxy.latency_s = arguments.latency
    first, started = len(proxy.requests), time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        for step in range(1, arguments.steps + 1):
            judged = []
            for shard in range(arguments.shards):
                sample.fn(root, "run", step, shard)
                judged.append(pool.submit(judge.fn, root, "run", step, shard))
            for future in judged:
                future.result()
            score.fn(root, "run", step)
            update.fn(root, "run", step)
            if checkpoint_due(run, step):
                checkpoint.fn(root, "run", step)
    run.store.wait()
    seconds = (time.perf_counter() - started) / arguments.steps
    proxy.latency_s = 0.0
    return seconds, Counter(request.method for request in proxy.requests[first:])


if __name__ == "__main__":
    main()
