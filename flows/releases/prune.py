"""Which old releases are kept, and why; what nothing needs any more is deleted.

A release stays while it is in service or the one that a rollback leads to, was in service lately, is young or among the
newest, while a row of a score log, a shard, an alert, an open drift or a retraining refers to it, and while a release
that stays was made from it. Deleting takes two steps: the row leaves the registry, then the folder goes. A kill between
them leaves a folder that no row names, which the next call removes; there is never a row without its folder.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from flows import registry
from flows.database import reading, utc_now
from flows.registry import ReleaseRow, ReleaseState
from flows.releases.described import Described, spells
from flows.service.tables import AT_WORK, Alert, Drift, DriftState, Retraining, Shard
from flows.settings import Settings
from pipeline.params import KeepParams
from pipeline.score_log import log_days, releases_of

IDENTITY = re.compile(rf"[0-9a-f]{{{registry.ID_LENGTH}}}")
GONE = re.compile(rf"\.{IDENTITY.pattern}\..*")  # copies that never got their place, and folders on their way out
ORPHAN_HOURS = 24.0  # a folder without a row may be that of a build about to enter it
YOUNG = (ReleaseState.CANDIDATE, ReleaseState.SHADOW)


@dataclass(frozen=True)
class Pruning:
    """What is kept and why, what goes, and folders that no row names; `done`: it has gone."""

    kept: Mapping[str, tuple[ReleaseRow, list[str]]]
    gone: Sequence[ReleaseRow]
    orphans: Sequence[Path]
    done: bool = False
    notes: list[str] = field(default_factory=list)


def plan_pruning(settings: Settings, engine: Engine, keep: KeepParams, base_release: str | None = None) -> Pruning:
    """What would be deleted, and why each other release is kept; nothing changes.

    Raises:
        ContractError: a score log cannot be read, so that nobody knows which releases it refers to.
    """
    named = names_in_logs(settings)
    with Session(reading(engine)) as session:
        rows = list(session.scalars(sa.select(ReleaseRow).order_by(ReleaseRow.version)))
        reasons = _reasons(settings, session, rows, keep, base_release, named)
    kept = {row.id: (row, reasons[row.id]) for row in rows if reasons[row.id]}
    return Pruning(kept, [row for row in rows if not reasons[row.id]], orphans(settings, rows))


def prune(settings: Settings, engine: Engine, keep: KeepParams, base_release: str | None = None) -> Pruning:
    """Delete what nothing needs any more; see plan_pruning."""
    named = names_in_logs(settings)
    with Session(engine, expire_on_commit=False) as session, session.begin():
        registry.lock_folders(session)  # whoever adds a release or promotes one waits
        rows = list(session.scalars(sa.select(ReleaseRow).order_by(ReleaseRow.id).with_for_update()))
        rows.sort(key=lambda row: row.version)
        reasons = _reasons(settings, session, rows, keep, base_release, named)
        gone = [row for row in rows if not reasons[row.id]]
        for row in gone:
            session.delete(row)
    left = orphans(settings, rows)
    for folder in [*(settings.releases / row.id for row in gone), *left]:
        _remove(engine, folder)
    kept = {row.id: (row, reasons[row.id]) for row in rows if reasons[row.id]}
    return Pruning(kept, gone, left, done=True)


def names_in_logs(settings: Settings) -> dict[str, str]:
    """Releases that rows of score logs name, and which log: the service's, and any below the home by release."""
    found: dict[str, str] = {}
    for log in score_logs(settings):
        for identity in releases_of(log):
            found.setdefault(identity, str(log))
    return found


def score_logs(settings: Settings) -> list[Path]:
    """The log of the service, and every `<home>/<anything>/<release id>` that is one."""
    logs = [settings.score_log]
    with contextlib.suppress(FileNotFoundError):
        for place in sorted(settings.home.iterdir()):
            if place.is_dir() and place not in (settings.releases, settings.cache, settings.score_log):
                logs += [each for each in sorted(place.iterdir()) if IDENTITY.fullmatch(each.name) and log_days(each)]
    return logs


def orphans(settings: Settings, rows: Iterable[ReleaseRow], hours: float = ORPHAN_HOURS) -> list[Path]:
    """Folders among the releases that no row names and nobody has touched for some time."""
    known = {row.id for row in rows}
    before = utc_now().timestamp() - hours * 3600
    with contextlib.suppress(FileNotFoundError):
        return [
            each
            for each in sorted(settings.releases.iterdir())
            if (GONE.fullmatch(each.name) or (IDENTITY.fullmatch(each.name) and each.name not in known))
            and each.lstat().st_ctime < before
        ]
    return []


def _reasons(
    settings: Settings,
    session: Session,
    rows: Sequence[ReleaseRow],
    keep: KeepParams,
    base_release: str | None,
    named: Mapping[str, str],
) -> dict[str, list[str]]:
    """Why each release stays; empty: it does not."""
    now, reasons = utc_now(), {row.id: list[str]() for row in rows}

    def say(identity: str | None, why: str) -> None:
        if identity in reasons and why not in reasons[str(identity)]:
            reasons[str(identity)].append(why)

    history = list(session.scalars(sa.select(registry.Promotion).order_by(registry.Promotion.id)))
    for row in rows:
        if row.state == ReleaseState.IN_SERVICE:
            say(row.id, "it is in service")
    say(registry.before(history, set(reasons)), "a rollback leads to it")
    for line, end in spells(history, now):
        if end != now and end > now - dt.timedelta(days=keep.service_days):
            say(line.release_id, f"it was in service until {end:%Y-%m-%d}")
    for row in sorted(rows, key=lambda row: -row.version)[: keep.newest]:
        say(row.id, f"it is one of the newest {keep.newest}")
    for row in rows:
        young = row.created_at > now - dt.timedelta(days=keep.candidate_days)
        waits = row.shadow_until is not None and row.shadow_until > now
        if row.state in YOUNG and (young or waits):
            say(row.id, f"it is a {row.state} of {row.created_at:%Y-%m-%d}")
        if base_release and row.id.startswith(base_release):
            say(row.id, "base_release of params.yaml names it")
    for identity, log in named.items():
        say(identity, f"rows of the score log name it ({log})")
    _say_of_database(settings, session, say)
    by_id = {row.id: row for row in rows}
    waiting = [row.id for row in rows if reasons[row.id]]
    while waiting:
        row = by_id[waiting.pop()]
        for parent in Described.of(settings, row).parents:
            if parent in reasons and not reasons[parent]:
                waiting.append(parent)
            say(parent, f"v{row.version} was made from it")
    return reasons


def _say_of_database(settings: Settings, session: Session, say: Callable[[str | None, str], None]) -> None:
    """Rows of the database that refer to releases."""
    days = set(log_days(settings.score_log))
    shards = sa.select(Shard.release_id, Shard.state, Shard.days).where(Shard.release_id.is_not(None))
    for identity, state, of_days in session.execute(shards):
        if state in ("planned", "scored"):
            say(identity, "a shard that is not done names it")
        elif days.intersection(of_days or ()):
            say(identity, "a shard whose days stand in the score log names it")
    for identity in session.scalars(sa.select(Alert.release_id).distinct()):
        say(identity, "an alert names it")
    for identity in session.scalars(sa.select(Drift.release_id).where(Drift.state == DriftState.OPEN)):
        say(identity, "an open drift names it")
    retrainings = sa.select(Retraining.champion_id, Retraining.challenger_id).where(Retraining.state.in_(AT_WORK))
    for pair in session.execute(retrainings):
        for identity in pair:
            say(identity, "a retraining at work names it")


def _remove(engine: Engine, folder: Path) -> None:
    """Take a folder away, unless a row names it by now: whoever registers these bytes waits, and copies them again."""
    doomed = folder
    if IDENTITY.fullmatch(folder.name):
        with Session(engine) as session, session.begin():
            registry.lock_folders(session)
            if session.get(ReleaseRow, folder.name) is not None or not folder.exists():
                return
            doomed = folder.with_name(f".{folder.name}.gone")
            shutil.rmtree(doomed, ignore_errors=True)  # what a killed call left
            folder.replace(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
