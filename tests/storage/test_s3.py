"""Object storage behind a network that fails: what is committed is whole, has one winner, and stays."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage import ArtifactKey, Store, StoreError
from storage import s3 as storage_s3
from storage.gc import find_garbage
from storage.verify import manifests, verify_artifact
from tests.storage.proxy import Proxy
from tests.storage.test_store import KEY, PROVENANCE, commit, labels

pytestmark = pytest.mark.slow
FAULTS = ["InternalError", "SlowDown", "ConditionalRequestConflict", "unsent", "lost", "cut"]


@pytest.fixture
def proxy(s3, monkeypatch):
    """A proxy before the S3 server, named by the environment; what may hang gives up sooner than in earnest."""
    import os

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
    import functools

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
    assert [finding for path in manifests(fresh, "run") for finding in verify_artifact(fresh, path)] == []
    kept = {manifest.attempt for manifest in returned[0].values()}
    assert all(item.path.rsplit("/", 1)[-1] not in kept for item in find_garbage(fresh, -60))


def test_nothing_hangs_for_ever(proxy, root, monkeypatch):
    monkeypatch.setattr(storage_s3, "_REQUEST_S", 1.0)
    monkeypatch.setattr(storage_s3, "_FIRST_PATIENCE_S", 1.0)
    proxy.fault = lambda request: "hang"
    with pytest.raises(StoreError, match="too slow or hangs"):
        Store(root).check()
