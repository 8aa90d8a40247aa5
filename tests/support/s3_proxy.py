"""A proxy on loopback between an S3 client and a server, which does to requests and replies what networks do."""

import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit

_CODES = {
    "InternalError": 500, "SlowDown": 503, "ConditionalRequestConflict": 409, "AuthorizationHeaderMalformed": 400,
    "InvalidArgument": 400, "Unauthorized": 401, "MissingContentLength": 411, "NotImplemented": 501,
}  # fmt: skip


class Request(NamedTuple):
    """What a client asks for."""

    method: str
    path: str
    headers: dict[str, str]


class Proxy:
    """A server before another one. `fault` names what befalls a request, None for nothing:

    unsent     the connection is cut before the server has the request
    lost       the server carries it out, and the reply never comes
    cut        the reply ends in the middle
    drip       the reply comes a byte at a time
    hang       nothing comes, until the proxy is closed
    any other  the error code of an S3 reply, such as SlowDown, and the server never hears of the request
    """

    def __init__(self, url: str, fault: Callable[[Request], str | None] = lambda request: None) -> None:
        self.fault = fault
        self.latency_s = 0.0
        self.requests: list[Request] = []
        self.faults: list[str] = []
        self.strips: set[str] = set()
        """Headers that the server does not get to see, in lower case."""
        self.closed = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, urlsplit(url)))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()


def _handler(proxy, address):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def handle_one_request(self):
            try:
                super().handle_one_request()
            except (OSError, HTTPException):  # a client that gave up
                self.close_connection = True

        def forward(self):
            request = Request(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
            proxy.requests.append(request)
            time.sleep(proxy.latency_s)
            fault = proxy.fault(request)
            if fault:
                proxy.faults.append(fault)
                self.close_connection = True
            body = self.rfile.read(int(request.headers.get("content-length", 0)))
            if fault == "unsent":
                return
            if fault == "hang":
                proxy.closed.wait()
                return
            if fault in (None, "lost", "cut", "drip"):
                status, headers, content = self.ask(request, body)
            else:
                status = _CODES.get(fault, 403)
                headers = {"Content-Type": "application/xml"}
                content = f"<Error><Code>{fault}</Code><Message>said the proxy</Message></Error>".encode()
            if fault == "lost":
                return
            self.reply(status, headers, content, fault)

        def ask(self, request, body):
            connection = HTTPConnection(address.hostname, address.port, timeout=60)
            kept = {name: value for name, value in request.headers.items() if name not in proxy.strips | {"expect"}}
            connection.request(request.method, request.path, body, kept)
            reply = connection.getresponse()
            content = reply.read()
            connection.close()
            dropped = ("connection", "transfer-encoding", "content-length", "date", "server")
            headers = {name: value for name, value in reply.getheaders() if name.lower() not in dropped}
            length = reply.getheader("content-length") if request.method == "HEAD" else None
            return reply.status, headers | ({"content-length": length} if length else {}), content

        def reply(self, status, headers, content, fault):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "content-length" not in headers:
                self.send_header("Content-Length", str(len(content)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault == "drip":
                for byte in content:
                    if proxy.closed.wait(0.5):
                        return
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
            self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward

    return Handler
