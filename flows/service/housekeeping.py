"""Housekeeping of the score log: days of the past become one file each, and days beyond retention go."""

from __future__ import annotations

import datetime as dt
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from flows.database import exclusive, reading
from flows.service.ledger import UNFINISHED, newest_time
from flows.service.tables import Shard, ShardState
from pipeline.errors import ContractError
from pipeline.params import ScoreParams
from pipeline.score_log import compact_day, log_days, remove_days

LOCK = ".housekeeping"


@dataclass(frozen=True)
class Kept:
    """Days that were compacted, with the number of files that became one, and days that were removed."""

    compacted: dict[str, int] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)


def keep_house(engine: Engine, log: Path, params: ScoreParams) -> Kept:
    """Compact and remove days of the score log by their age; one process at a time, others find nothing to do.

    Age counts back from the newest row that has arrived, not from the clock on the wall. The file of a shard that is
    not done stays as it is, as that shard may still be scored again.

    Raises:
        ContractError: a damaged file of the log; its day stays as it is, the others are done.
    """
    newest = newest_time(engine)
    if newest is None or not log.is_dir():
        return Kept()
    with _alone(log) as alone:
        if not alone:
            return Kept()
        removed = [] if params.keep_days is None else _remove(engine, log, _day(newest, params.keep_days))
        compacted, damaged = dict[str, int](), list[ContractError]()
        if params.compact_after_days is not None:
            past = _day(newest, params.compact_after_days)
            for day in [day for day in log_days(log) if day < past]:
                try:
                    done = compact_day(log, day, lambda name: _may_change(engine, name))
                except ContractError as error:
                    damaged.append(error)
                    continue
                if done is not None:
                    compacted[day] = done.merged
        if damaged:
            raise damaged[0]
        return Kept(compacted, removed)


def _day(newest: dt.datetime, days: float) -> str:
    return (newest - dt.timedelta(days=days)).date().isoformat()


def _remove(engine: Engine, log: Path, before: str) -> list[str]:
    """Remove days before one, up to the first day of a shard that is not done: the alert policy has still to read it.

    No shard is published meanwhile.
    """
    with exclusive(engine) as session:
        first = session.scalar(sa.select(sa.func.min(Shard.first_at)).where(Shard.state.in_(UNFINISHED)))
        return remove_days(log, before if first is None else min(before, _day(first, 0)))


def _may_change(engine: Engine, name: str) -> bool:
    """Whether a file of this shard may still be written anew, or the alert policy has still to read it."""
    with Session(reading(engine)) as session:
        state = session.scalar(sa.select(Shard.state).where(Shard.name == name))
    return state in (ShardState.PLANNED, ShardState.SCORED)


@contextmanager
def _alone(log: Path) -> Iterator[bool]:
    """Whether no other process keeps house here; the lock dies with its process."""
    with (log / LOCK).open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
