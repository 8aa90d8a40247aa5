"""What can go wrong with a store."""

from polyepo.errors import PolyepoError


class StoreError(PolyepoError, RuntimeError):
    """The store cannot be used as asked; the message names the root or artifact and the reason."""


class NoSuchRootError(StoreError):
    """The root is in a bucket that does not exist."""

    exit_code = 2


class CorruptArtifactError(StoreError):
    """A committed artifact's files are not what its manifest says."""
