"""The console script `polyepo`. Whatever takes long to import is imported by the command that needs it."""

from flows.cli import training, running, model, stored, exchange, judges, grading, stack, nodes  # noqa: I001 - the order of the commands in the help
from flows.cli.base import app

__all__ = ["app", "exchange", "grading", "judges", "model", "nodes", "running", "stack", "stored", "training"]
