"""What our flow runs share: where they work, and how our own errors end them.

An error of ours becomes a failed state with its message; raised, Prefect would log a traceback for a person's mistake.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypeVar

from prefect import runtime
from prefect.client.schemas.objects import State
from prefect.states import Failed

from flows.settings import Settings
from pipeline.errors import HearkenError

T = TypeVar("T")


class NoEmptyTraceback(logging.Filter):
    """Drops what Prefect says of a returned failure: the whole state, with `NoneType: None` for a traceback.

    The line after it, "Finished in state Failed(...)", holds the message. Of an error of ours that was raised, so that
    its task is tried again, the message is enough too.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is kept."""
        if record.exc_info and isinstance(record.exc_info[1], HearkenError):
            record.exc_info = None
        return not str(record.msg).startswith("Task run failed with state")


def hide_empty_tracebacks() -> None:
    """Install NoEmptyTraceback, once."""
    logger = logging.getLogger("prefect.task_runs")
    if not any(isinstance(known, NoEmptyTraceback) for known in logger.filters):
        logger.addFilter(NoEmptyTraceback())


def failed(error: HearkenError) -> State[object]:
    """What a task or flow returns instead of raising; calling a flow raises the error then, as if it had."""
    return Failed(message=str(error), data=error)


def value_of(returned: State[object] | T) -> T:
    """What a task returned; a failed state raises its error here.

    Raises:
        HearkenError: what the task handed to `failed`.
    """
    if isinstance(returned, State):
        data = getattr(returned.data, "result", returned.data)  # Prefect wraps it in a result record
        raise data if isinstance(data, HearkenError) else HearkenError(str(returned.message))
    return returned


def settings_of_run(checkout: str | None = None) -> Settings:
    """The places of a flow run: of the given checkout, else of the current folder.

    Raises:
        WorkspaceError: a worker runs it, and its environment lacks HEARKEN_HOME or HEARKEN_REPOSITORY.
    """
    hide_empty_tracebacks()
    return Settings.of(checkout or Path.cwd(), worker=runtime.deployment.id is not None)
