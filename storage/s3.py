"""Object storage through s3fs: tried again where a failure passes, within time limits, with errors that say what to do.

Endpoint, region and credentials are AWS's and fsspec's own settings: the environment, ~/.aws, fsspec's files.
"""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import botocore.exceptions
import botocore.parsers
import fsspec
import stamina
from aiohttp import ClientError as ConnectionLost
from fsspec.asyn import sync

from storage.errors import NoSuchRootError, StoreError
from storage.files import PARALLEL_REQUESTS, FoundFile

_PATIENCE_S = 180.0
_FIRST_PATIENCE_S = 10.0
"""Until a store has answered, an address where nothing answers is wrong rather than down for a while."""
_REQUEST_S = 60.0
_BYTES_PER_S = 256 << 10
"""A transfer may take this long for its size, and a minute more; one that is slower hangs."""
_READ_S = 600.0
"""The same for reads, whose size is not known."""
_CHUNK_BYTES = 64 << 20

_REFUSED_STATUS = {400, 401, 403, 411, 501}
"""How stores that know no default checksums answer requests that have them."""

_T = TypeVar("_T")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_PASSING_STATUS = {429, 500, 502, 503, 504}
_PASSING_CODES = {
    "ConditionalRequestConflict", "IncompleteBody", "InternalError", "OperationAborted", "RequestTimeout",
    "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "XAmzContentSHA256Mismatch",
    # A multipart upload that was completed or ended although the reply was lost.
    "InvalidPart", "NoSuchUpload",
}  # fmt: skip
_CONNECTION_ERRORS = (
    ConnectionLost,
    TimeoutError,
    botocore.exceptions.ConnectionError,
    botocore.exceptions.HTTPClientError,
    botocore.parsers.ResponseParserError,
)
_ERRORS = (OSError, ValueError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, *_CONNECTION_ERRORS)

_CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_REGION = "the region is wrong: set AWS_DEFAULT_REGION to the bucket's"
_DENIED = "access is denied: the key needs s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject here"
_ADVICE = {
    "NoSuchBucket": "the bucket does not exist: create it, or correct the root or AWS_ENDPOINT_URL",
    "InvalidAccessKeyId": f"the access key is unknown: correct {_CREDENTIALS}",
    "SignatureDoesNotMatch": f"the secret key is wrong: correct {_CREDENTIALS}",
    "ExpiredToken": "the credentials have expired: get new ones and start again, which resumes",
    "TokenRefreshRequired": "the credentials have expired: get new ones and start again, which resumes",
    "InvalidToken": "AWS_SESSION_TOKEN is wrong: get new credentials",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "403": _DENIED,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "PermanentRedirect": _REGION,
    "301": _REGION,
}


class S3Files:
    """A prefix of a bucket. Creation is conditional: s3fs sends If-None-Match: *."""

    parallel = PARALLEL_REQUESTS

    def __init__(self, root: str, **options: Any) -> None:
        address = root.removeprefix("s3://")
        if "@" in address.split("/")[0]:  # said without showing it
            raise StoreError(f"a root must not hold credentials: set {_CREDENTIALS} instead")
        self._bucket, _, prefix = address.strip("/").partition("/")
        if not _BUCKET.fullmatch(self._bucket):
            raise StoreError(f"root {root!r} must be like s3://bucket/prefix, and {self._bucket!r} is no bucket's name")
        self._root = root
        self._prefix = f"{prefix}/" if prefix else ""
        self._copies = tempfile.TemporaryDirectory(prefix="polyepo-")
        self._answered = False
        given = {**fsspec.config.conf.get("s3", {}), **options}.get("config_kwargs", {})
        # Instances are kept by their options, and these do not show that the environment has changed.
        config = {**_CONFIG, **_checksums(), **given}
        options |= {"skip_instance_cache": True, "use_listings_cache": False, "config_kwargs": config}
        self.fs = fsspec.filesystem("s3", **options)
        self.fs.retries = 3  # of a body that breaks off

    def write(self, path: str, content: bytes | Path) -> None:
        """Write a new object."""
        if isinstance(content, bytes):
            self._put(path, content)
        else:
            limit_s = _REQUEST_S + content.stat().st_size / _BYTES_PER_S
            self._call(self.fs._put_file, str(content), self._full(path), limit_s=limit_s)

    def create(self, path: str, data: bytes) -> bool:
        """Write an object unless it exists, atomically."""
        try:
            self._put(path, data, mode="create")
        except FileExistsError:
            # A first try may have been carried out although its reply was lost: what is there is ours then.
            return self.read(path) == data
        return True

    def read(self, path: str) -> bytes:
        """An object's content."""
        # With more than one connection s3fs asks for the size first.
        return self._call(self.fs._cat_file, self._full(path), max_concurrency=1, limit_s=_READ_S)

    def chunks(self, path: str, size: int) -> Iterator[bytes]:
        """An object's content, a part at a time."""
        if size <= _CHUNK_BYTES:
            yield self.read(path)
            return
        for start in range(0, size, _CHUNK_BYTES):
            end = start + _CHUNK_BYTES if start + _CHUNK_BYTES < size else None
            yield self._call(self.fs._cat_file, self._full(path), start=start, end=end, limit_s=_READ_S)

    def exists(self, path: str) -> bool:
        """Whether an object is there."""
        try:
            self._call(self.fs._call_s3, "head_object", Bucket=self._bucket, Key=self._prefix + path)
        except FileNotFoundError:
            return False
        return True

    def names(self, path: str) -> list[str]:
        """Names of what a prefix holds."""
        return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in self._list(path, "/"))

    def find(self, path: str) -> list[FoundFile]:
        """Every object below a prefix."""
        start = len(self._full(""))
        return sorted(
            FoundFile(entry["name"][start:], entry["size"], entry["LastModified"].timestamp())
            for entry in self._list(path, "")
        )

    def remove(self, path: str) -> None:
        """Delete an object, or all below a prefix."""
        for file in self.find(path) or [FoundFile(path, 0, 0.0)]:
            self._call(self.fs._rm_file, self._full(file.path))

    def local_copy(self, path: str, names: list[str]) -> Path:
        """A download, kept for as long as this object lives."""
        folder = Path(self._copies.name) / path
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: self._download(f"{path}/{name}", folder / name), names))
        return folder

    def url(self, path: str) -> str:
        """With the protocol in front."""
        return f"s3://{self._full(path)}"

    def _download(self, path: str, target: Path) -> None:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
            self._call(self.fs._get_file, self._full(path), str(partial), limit_s=_READ_S)
            partial.rename(target)

    def _full(self, path: str) -> str:
        return f"{self._bucket}/{self._prefix}{path}"

    def _put(self, path: str, data: bytes, **options: Any) -> None:
        limit_s = _REQUEST_S + len(data) / _BYTES_PER_S
        self._call(self.fs._pipe_file, self._full(path), data, limit_s=limit_s, **options)

    def _list(self, path: str, delimiter: str) -> list[dict[str, Any]]:
        # s3fs's own ls and find ask twice more where there is nothing.
        return self._call(self.fs._lsdir, self._full(path), delimiter=delimiter, limit_s=_READ_S)

    def _call(
        self, request: Callable[..., Awaitable[_T]], *arguments: Any, limit_s: float | None = None, **options: Any
    ) -> _T:
        """Wait for a coroutine of s3fs; start it again for as long as what fails may pass.

        Raises:
            FileNotFoundError: there is no such object, or it is shorter.
            FileExistsError: the object to create exists.
            StoreError: anything else.
        """
        limit_s = limit_s or _REQUEST_S
        patience = _PATIENCE_S if self._answered else _FIRST_PATIENCE_S
        try:
            for attempt in stamina.retry_context(
                _passes, attempts=None, timeout=patience, wait_initial=0.2, wait_max=15
            ):
                with attempt:
                    result: _T = sync(self.fs.loop, request, *arguments, timeout=limit_s, **options)
        except _ERRORS as error:
            code, status = _answer(error)
            if status in (404, 412, 416) and code != "NoSuchBucket":
                self._answered = True
                raise (FileExistsError if status == 412 else FileNotFoundError)(*error.args) from error
            kind = NoSuchRootError if code == "NoSuchBucket" else StoreError
            raise kind(f"root {self._root!r} cannot be used: {self._explain(error)}") from error
        self._answered = True
        return result

    def _explain(self, error: BaseException) -> str:
        code, status = _answer(error)
        endpoint = self._endpoint()
        if code in _ADVICE:
            return f"{_ADVICE[code]} (bucket {self._bucket!r} at {endpoint}: {error})"
        if isinstance(error, (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError)):
            return f"there are no credentials: set {_CREDENTIALS} ({error})"
        if isinstance(error, botocore.exceptions.ConnectionError):
            return f"nothing answers at {endpoint}: correct AWS_ENDPOINT_URL, or start the server there"
        if status in _REFUSED_STATUS and self._sends_checksums():
            return (
                "the store may not know the checksums that AWS's library adds to requests: set "
                f"AWS_REQUEST_CHECKSUM_CALCULATION=when_required (bucket {self._bucket!r} at {endpoint}: {error})"
            )
        no_code = code.isdecimal() and status >= 500  # S3 puts one into its replies
        if (no_code and not self._answered) or isinstance(error, botocore.parsers.ResponseParserError):
            return f"what answers at {endpoint} is no S3 server: correct AWS_ENDPOINT_URL"
        if isinstance(error, TimeoutError):
            return f"bucket {self._bucket!r} at {endpoint} is too slow or hangs"
        return f"bucket {self._bucket!r} at {endpoint}: {error or type(error).__name__}"

    def _sends_checksums(self) -> bool:
        client = self.fs._s3
        return client is not None and client.meta.config.request_checksum_calculation == "when_supported"

    def _endpoint(self) -> str:
        client = self.fs._s3
        if client is None:
            return "the configured endpoint"
        url = urlsplit(client.meta.endpoint_url)
        return f"{url.scheme}://{url.netloc.rsplit('@', 1)[-1]}"


# Each request is made three times, as AWS's own programs do; `S3Files._call` begins what then still fails again.
_CONFIG = {
    "retries": {"mode": "standard", "max_attempts": 3},
    "connect_timeout": 5,
    "read_timeout": 20,
    "max_pool_connections": PARALLEL_REQUESTS,
}


def _checksums() -> dict[str, str]:
    """Checksums only where S3 demands them, unless the user wants more: many stores refuse requests that have them.

    Manifests have a SHA-256 of every file, which says more.
    """
    settings = ("request_checksum_calculation", "response_checksum_validation")
    return {name: "when_required" for name in settings if f"AWS_{name.upper()}" not in os.environ}


def _answer(error: BaseException | None) -> tuple[str, int]:
    """The error code and HTTP status that the server answered with; empty and 0 if it did not."""
    while error is not None:
        if isinstance(error, botocore.exceptions.ClientError):
            response: dict[str, Any] = error.response
            return response.get("Error", {}).get("Code", ""), response.get("ResponseMetadata", {}).get(
                "HTTPStatusCode", 0
            )
        error = error.__cause__
    return "", 0


def _passes(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    code, status = _answer(error)
    return status in _PASSING_STATUS or code in _PASSING_CODES or (not status and isinstance(error, _CONNECTION_ERRORS))
