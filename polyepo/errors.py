"""The one root of all errors that are a message to the user, rather than a fault of the program."""

from __future__ import annotations


class PolyepoError(Exception):
    """Something that a user is told in one message, without a stack; commands end with its exit code."""

    exit_code = 1
    """2 for a wrong command or configuration, 1 for what failed while it worked."""
    resumable = True
    """Whether the same command, given again, goes on from what is committed once the cause is gone."""


class ConfigError(PolyepoError, ValueError):
    """A configuration or command that cannot be run; the message names field, value and what would be right."""

    exit_code = 2
    resumable = False
