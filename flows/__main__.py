"""The console script `polyepo`, which says what to install where the library is there alone."""

from __future__ import annotations

import sys

from polyepo.extras import MissingPackageError, require


def main() -> None:
    """Run a command, or say which extra has the commands."""
    try:
        require("pipeline", "typer", "rich", "duckdb", "pyarrow", "prefect")
    except MissingPackageError as error:
        sys.stderr.write(f"polyepo: the commands need more than the library: {error}\n")
        sys.exit(error.exit_code)
    from flows.cli import app

    app()


if __name__ == "__main__":
    main()
