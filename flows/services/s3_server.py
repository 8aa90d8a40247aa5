"""An S3 server for trying out and for tests: what it holds is gone when it ends. `python -I s3_server.py PORT`

moto looks whether an object is there, then writes it: a single thread makes that as atomic as it is on S3.
"""

from __future__ import annotations

import sys


def main(port: int) -> None:
    """Serve until the process is ended."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    run_simple("127.0.0.1", port, DomainDispatcherApplication(create_backend_app), threaded=False)


if __name__ == "__main__":
    main(int(sys.argv[1]))
