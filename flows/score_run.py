"""One scoring run and what follows it: shared by `hearken score`, which needs no Prefect, and by the flow `score`."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from flows.database import open_database, utc_now
from flows.service.answers_export import export_answers
from flows.service.delivery import Addresses
from flows.service.housekeeping import keep_house
from flows.service.notices import send_pending
from flows.service.scorer import InThisProcess, RunSummary, Submit, score_arrivals
from flows.service.standing import figures_of
from flows.settings import Settings
from pipeline.errors import HearkenError
from pipeline.params import Params

Say = Callable[[str], None]
Step = Callable[[], object]
GONE = (sa.exc.OperationalError, sa.exc.InterfaceError)  # the database does not answer, or its disk is full


@dataclass(frozen=True)
class FinishedRun:
    """What a run came to, and how far scoring now is behind what has arrived."""

    summary: RunSummary
    newest_at: dt.datetime | None  # newest row that has arrived
    lag: dt.timedelta | None  # from the newest row that is scored to that one; None: nothing has arrived or is scored

    @property
    def error(self) -> HearkenError | None:
        """What is told where shards are left that could not be scored."""
        failures = self.summary.failures
        if not failures:
            return None
        count = "1 shard is" if len(failures) == 1 else f"{len(failures)} shards are"
        return HearkenError(f"{count} still to be scored: {'; '.join(failures)}")


def run_scoring(
    settings: Settings,
    params: Params,
    say: Say,
    *,
    submit: Submit = InThisProcess,
    at_once: int = 1,
    addresses: Addresses | None = None,
) -> FinishedRun:
    """Score what has arrived, then do what follows scoring; see `score_arrivals` and `after_scoring`.

    Args:
        settings: places of the installation.
        params: of params.yaml.
        say: takes each line for people.
        submit: hands a job to whoever scores it.
        at_once: jobs that are worked on at the same time.
        addresses: whom to tell of alerts; None: as the environment says.

    Raises:
        UserError: no release in service, no landing zone, no database.
        HearkenError: the database went away, or the disk is full; the next run goes on from there.
    """
    engine = open_database(settings.database_url)
    told = Addresses.from_environment(os.environ) if addresses is None else addresses
    try:
        try:
            summary = score_arrivals(engine, settings, params, submit=submit, at_once=at_once)
        except (HearkenError, OSError, *GONE) as error:
            after_scoring(engine, settings, params, say, told)
            raise _explained(error) from None
        after_scoring(engine, settings, params, say, told)
        say(summary.line)
        return _finished(engine, summary)
    finally:
        engine.dispose()


def after_scoring(engine: Engine, settings: Settings, params: Params, say: Say, addresses: Addresses) -> None:
    """What follows every run, also one that failed: notices, answers for builds, housekeeping of the score log.

    A step that fails is told and fails neither scoring nor the steps after it.
    """

    def tell_people() -> None:
        for problem in send_pending(engine, addresses, params.notify).problems:
            say(problem)

    def export() -> None:
        for note in export_answers(engine, settings.landing_place(params.source.path)).notes:
            say(note)

    steps: Mapping[str, Step] = {
        "sending notices": tell_people,
        "exporting answers": export,
        "housekeeping": lambda: keep_house(engine, settings.score_log, params.score),
    }
    run_steps(steps, say)


def run_steps(steps: Mapping[str, Step], say: Say) -> None:
    """Run every step, whatever becomes of the others.

    Only our own errors are told in full: another's message may hold an address with its password.

    >>> def fails() -> None:
    ...     raise KeyError("mailto://user:password@mill")
    >>> run_steps({"sending notices": fails}, print)
    sending notices failed: KeyError
    """
    for name, step in steps.items():
        try:
            step()
        except Exception as error:  # noqa: BLE001 (whatever it is, what is scored stays scored)
            say(f"{name} failed: {error if isinstance(error, HearkenError) else type(error).__name__}")


def _explained(error: Exception) -> HearkenError:
    """An error as one of ours."""
    if isinstance(error, HearkenError):
        return error
    if isinstance(error, sa.exc.DBAPIError):
        said = (str(error.orig).strip().splitlines() or [type(error).__name__])[0]
        return HearkenError(f"database: got '{said}', expected one that answers; the next run goes on from here.")
    return HearkenError(f"scoring: {error}")


def _finished(engine: Engine, summary: RunSummary) -> FinishedRun:
    figures = figures_of(engine, utc_now())
    known = figures.newest_scored_at is not None
    return FinishedRun(summary, figures.newest_known_at, dt.timedelta(seconds=figures.lag_seconds) if known else None)
