"""How a flow ends that cannot go on: with the message alone, where Prefect would print a stack of its own modules."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

from prefect import get_run_logger
from prefect.states import Failed

from polyepo.errors import PolyepoError

REFUSED, STOPPED = "Refused", "Stopped"
"""Names of the state of a flow run that the same command would not get further with: what was asked for cannot be, or
its work cannot go on. What may go on when it is started again is called Failed."""

P = ParamSpec("P")


def ends_plainly(body: Callable[P, None]) -> Callable[P, Any]:
    """A flow's body whose errors of ours become its final state, `Refused` or `Failed`, with their message."""
    # Tasks and flows below this one log what they raise: the message is enough there as well.
    for name in ("prefect.task_runs", "prefect.flow_runs"):
        logging.getLogger(name).addFilter(_message_alone)

    @wraps(body)
    def run(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            return body(*args, **kwargs)
        except PolyepoError as error:
            get_run_logger().error("%s", error)
            name = REFUSED if error.exit_code == 2 else "Failed" if error.resumable else STOPPED
            return Failed(message=str(error), name=name)

    return run


def _message_alone(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, PolyepoError):
        record.msg, record.args, record.exc_info = "%s", (str(error),), None
    return True
