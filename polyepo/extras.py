"""Packages that only a part of poly-epo needs: `pip install poly-epo` brings numpy, pydantic and PyYAML alone."""

from __future__ import annotations

from importlib.util import find_spec

from polyepo.errors import PolyepoError


class MissingPackageError(PolyepoError, ImportError):
    """A package is not installed that this part needs; the message names the extra that brings it."""

    exit_code = 2
    resumable = False


def require(extra: str, *modules: str) -> None:
    """Make sure that an extra's modules are installed, without importing them.

    Args:
        extra: its name: train, judge or pipeline.
        modules: top-level modules that it brings.

    Raises:
        MissingPackageError: one of them is not there.
    """
    if missing := [module for module in modules if find_spec(module) is None]:
        raise MissingPackageError(f"{' and '.join(missing)} not installed: pip install 'poly-epo[{extra}]'")
