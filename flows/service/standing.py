"""How the service stands, from its database: what was scored, what waits, what failed, what is open, and is it late?

**Lag** in the data: from the newest row that was scored to the newest row that is known, rows from the future cut off
at the moment up to which they are believed. A late file has no such lag, so there is also the age of the oldest upload
that waits, counted from when it was seen.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from flows.database import Base, reading
from flows.registry import ReleaseRow, ReleaseState
from flows.service.tables import (
    Alert,
    Answer,
    Drift,
    DriftState,
    Notice,
    NoticeKind,
    NoticeState,
    Retraining,
    RetrainingState,
    Shard,
    ShardState,
    Standing,
    Upload,
    UploadState,
)
from pipeline.landing.places import SourceFile
from pipeline.landing.source import CSV_SUFFIXES, PARQUET_SUFFIXES
from pipeline.landing.waveforms import WAVEFORM_SUFFIXES

MOST_LISTED = 20
OPEN_KINDS = (("page", "vibration"), ("low", "vibration"), ("none", "no_data"))  # tier and cause


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of finished shards.

    `scored` stand in the score log; of these are `unusable` without a score, `early` from the future, and `late` too
    late for the alert policy. `repeated` stood in the log already.
    """

    scored: int = 0
    unusable: int = 0
    early: int = 0
    late: int = 0
    repeated: int = 0


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What is counted, for metrics and for people; `uploads` counts the newest content of each path."""

    at: dt.datetime
    release: dict[str, Any] | None  # id, version, promoted_at
    rows: Rows
    rows_last_day: Rows  # of the shards that were finished in the last 24 hours
    newest_known_at: dt.datetime | None
    newest_scored_at: dt.datetime | None
    lag_seconds: float
    waiting: int  # uploads that are known and not scored
    oldest_waiting_seconds: float
    last_finished_at: dt.datetime | None
    uploads: dict[str, int]  # by state
    shards: dict[str, int]  # by state
    shard_attempts: int
    shards_failing: int  # unfinished, with an error
    leases_expired: int
    open_alerts: dict[tuple[str, str], int]  # by tier and cause; dismissed and explained ones do not count
    notices: dict[tuple[str, str], int]  # by kind and state
    drifts: dict[str, int]  # by state
    retrainings: dict[str, int]  # by state
    shadows: int  # challengers that wait for rows


@dataclass(frozen=True, kw_only=True)
class ServiceStatus:
    """Figures, the failures by name (at most MOST_LISTED of each kind, newest first), and why scoring is late."""

    figures: Figures
    last_shard: dict[str, Any] | None
    broken_uploads: list[dict[str, Any]]
    failing_shards: list[dict[str, Any]]
    notice_errors: list[str]
    late: list[str]  # reasons; empty: on time

    def to_json(self) -> dict[str, Any]:
        """As JSON: times in ISO 8601, pairs joined by a slash."""
        told: dict[str, Any] = _plain(asdict(self))
        return told


def figures_of(engine: Engine, now: dt.datetime) -> Figures:
    """Count everything, in one transaction.

    Raises:
        sqlalchemy.exc.OperationalError: the database does not answer.
    """
    with Session(reading(engine)) as session:
        return _figures(session, now)


def service_status(
    engine: Engine, now: dt.datetime, late_after: dt.timedelta, landed: Sequence[SourceFile] = ()
) -> ServiceStatus:
    """How the service stands.

    Scoring is late where an upload has waited for longer than `late_after`, where a scorer's lease ran out and nobody
    took its shard over, and where nothing is scored at all: files lie in the landing zone for so long that the ledger
    does not know, and it has been as long without news itself.

    Args:
        engine: of the project's database.
        now: moment that ages are counted up to.
        late_after: how long an upload may wait.
        landed: files of the landing zone, as `pipeline.landing.places.list_files` lists them.
    """
    with Session(reading(engine)) as session:
        figures = _figures(session, now)
        last = session.scalar(
            sa.select(Shard).where(Shard.finished_at.is_not(None)).order_by(Shard.finished_at.desc()).limit(1)
        )
        broken = session.scalars(
            sa.select(Upload)
            .where(Upload.id.in_(_current_uploads()), Upload.state == UploadState.BROKEN)
            .order_by(Upload.seen_at.desc(), Upload.id.desc())
            .limit(MOST_LISTED)
        )
        failing = session.scalars(
            sa.select(Shard)
            .where(_unfinished(), sa.or_(Shard.error.is_not(None), Shard.attempts > 1, _expired(now)))
            .order_by(Shard.id.desc())
            .limit(MOST_LISTED)
        ).all()
        errors = session.scalars(
            sa.select(Notice.error)
            .where(Notice.state == NoticeState.PENDING, Notice.error.is_not(None))
            .distinct()
            .order_by(Notice.error)
            .limit(MOST_LISTED)
        )
        return ServiceStatus(
            figures=figures,
            last_shard=None if last is None else _told(last, ("name", "state", "finished_at", "rows", "seconds")),
            broken_uploads=[_told(upload, ("path", "error", "seen_at")) for upload in broken],
            failing_shards=[
                _told(shard, ("name", "state", "attempts", "owner", "lease_until", "error")) for shard in failing
            ],
            notice_errors=[str(error) for error in errors],
            late=_reasons(figures, failing, now, late_after) + _unseen(session, landed, now, late_after),
        )


def _reasons(figures: Figures, failing: Sequence[Shard], now: dt.datetime, late_after: dt.timedelta) -> list[str]:
    reasons = []
    if figures.oldest_waiting_seconds > late_after.total_seconds():
        reasons.append(
            f"uploads waiting: {figures.waiting:,}, the oldest for {in_words(figures.oldest_waiting_seconds)}, "
            f"expected at most {in_words(late_after.total_seconds())}."
        )
    for shard in failing:
        if shard.owner is not None and shard.lease_until is not None and shard.lease_until <= now:
            silent = in_words((now - shard.lease_until).total_seconds())
            reasons.append(f"shard {shard.name}: the lease of its scorer ran out {silent} ago.")
    return reasons


def _unseen(session: Session, landed: Sequence[SourceFile], now: dt.datetime, late_after: dt.timedelta) -> list[str]:
    """Is there anybody at all who looks into the landing zone?"""
    newest = [session.scalar(sa.select(sa.func.max(c))) for c in (Upload.seen_at, Shard.planned_at, Shard.finished_at)]
    heard = [moment for moment in newest if moment is not None]
    if not landed or any(now - moment <= late_after for moment in heard):
        return []
    query = sa.select(Upload.path, Upload.size).where(Upload.id.in_(_current_uploads()))
    known = {(path, size) for path, size in session.execute(query)}
    suffixes = (*PARQUET_SUFFIXES, *CSV_SUFFIXES, *WAVEFORM_SUFFIXES)
    before_ns = int((now - late_after).timestamp() * 1e9)
    unseen = [
        file
        for file in landed
        if file.modified_ns < before_ns and file.name.lower().endswith(suffixes) and (file.name, file.size) not in known
    ]
    if not unseen:
        return []
    news = f"its last news is of {max(heard):%Y-%m-%d %H:%M} UTC" if heard else "it has no news at all"
    return [f"files in the landing zone that the ledger does not know: {len(unseen):,}, and {news}."]


def _figures(session: Session, now: dt.datetime) -> Figures:
    believed = sa.case((Upload.last_at < Shard.believed_until, Upload.last_at), else_=Shard.believed_until)
    spans = {
        state: (newest, oldest, count, seen)
        for state, newest, oldest, count, seen in session.execute(
            sa.select(
                Upload.state,
                sa.func.max(believed),
                sa.func.min(Upload.first_at),
                sa.func.count(),
                sa.func.min(Upload.seen_at),
            )
            .join(Shard, Upload.shard_id == Shard.id)
            .where(Upload.state.in_((UploadState.PLANNED, UploadState.SCORED)))
            .group_by(Upload.state)
        )
    }
    waiting_newest, waiting_oldest, waiting, seen = spans.get(UploadState.PLANNED, (None, None, 0, None))
    scored_newest = spans.get(UploadState.SCORED, (None,))[0]
    behind = 0.0
    if waiting_newest is not None:
        since = scored_newest or waiting_oldest or waiting_newest  # nothing is scored: all that waits
        behind = max(0.0, (waiting_newest - since).total_seconds())
    release = session.scalar(sa.select(ReleaseRow).where(ReleaseRow.state == ReleaseState.IN_SERVICE))
    return Figures(
        at=now,
        release=None if release is None else _told(release, ("id", "version", "promoted_at")),
        rows=_rows(session),
        rows_last_day=_rows(session, Shard.finished_at > now - dt.timedelta(days=1)),
        newest_known_at=max((moment for moment in (waiting_newest, scored_newest) if moment), default=None),
        newest_scored_at=scored_newest,
        lag_seconds=behind,
        waiting=waiting,
        oldest_waiting_seconds=0.0 if seen is None else max(0.0, (now - seen).total_seconds()),
        last_finished_at=session.scalar(sa.select(sa.func.max(Shard.finished_at))),
        uploads=_uploads(session),
        shards=_by(session, ShardState, Shard.state),
        drifts=_by(session, DriftState, Drift.state),
        retrainings=_by(session, RetrainingState, Retraining.state),
        shadows=_count(session, ReleaseRow, ReleaseRow.state == ReleaseState.SHADOW),
        shard_attempts=int(session.scalar(sa.select(sa.func.sum(Shard.attempts))) or 0),
        shards_failing=_count(session, Shard, _unfinished(), Shard.error.is_not(None)),
        leases_expired=_count(session, Shard, _unfinished(), _expired(now)),
        open_alerts=_open_alerts(session),
        notices=_notices(session),
    )


def _current_uploads() -> sa.Select[tuple[int]]:
    """Numbers of the uploads that lie in the landing zone now: the newest of each path."""
    return sa.select(sa.func.max(Upload.id)).group_by(Upload.path)


def _unfinished() -> sa.ColumnElement[bool]:
    return Shard.state.in_((ShardState.PLANNED, ShardState.SCORED))


def _expired(now: dt.datetime) -> sa.ColumnElement[bool]:
    return sa.and_(Shard.owner.is_not(None), Shard.lease_until <= now)


def _rows(session: Session, *where: sa.ColumnElement[bool]) -> Rows:
    columns = (Shard.rows, Shard.unusable, Shard.early, Shard.late, Shard.repeated)
    done = Shard.state == ShardState.DONE
    sums = session.execute(sa.select(*(sa.func.sum(column) for column in columns)).where(done, *where)).one()
    return Rows(**{field: int(value or 0) for field, value in zip(Rows.__dataclass_fields__, sums, strict=True)})


def _count(session: Session, table: type[Base], *where: sa.ColumnElement[bool]) -> int:
    return int(session.scalar(sa.select(sa.func.count()).select_from(table).where(*where)) or 0)


def _by(session: Session, states: type[StrEnum], column: Any) -> dict[str, int]:
    found = dict(session.execute(sa.select(column, sa.func.count()).group_by(column)).tuples().all())
    return {state.value: found.get(state, 0) for state in states}


def _uploads(session: Session) -> dict[str, int]:
    query = sa.select(Upload.state, sa.func.count()).where(Upload.id.in_(_current_uploads())).group_by(Upload.state)
    found = dict(session.execute(query).tuples().all())
    return {state.value: found.get(state, 0) for state in UploadState}


def _open_alerts(session: Session) -> dict[tuple[str, str], int]:
    tier = sa.case((Alert.paged_at.is_not(None), "page"), (Alert.cause == "vibration", "low"), else_="none")
    stands = sa.and_(sa.or_(Alert.answer.is_(None), Alert.answer != Answer.DISMISSED), Alert.drift_id.is_(None))
    query = (
        sa.select(tier, Alert.cause, sa.func.count())
        .where(Alert.standing == Standing.OPEN, stands)
        .group_by(tier, Alert.cause)
    )
    found = {(tier, cause): count for tier, cause, count in session.execute(query)}
    return dict.fromkeys(OPEN_KINDS, 0) | found


def _notices(session: Session) -> dict[tuple[str, str], int]:
    query = sa.select(Notice.kind, Notice.state, sa.func.count()).group_by(Notice.kind, Notice.state)
    found = {(kind, state): count for kind, state, count in session.execute(query)}
    return {(kind.value, state.value): found.get((kind, state), 0) for kind in NoticeKind for state in NoticeState}


def _told(row: object, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {"/".join(key) if isinstance(key, tuple) else key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value.isoformat() if isinstance(value, dt.datetime) else value


def in_words(seconds: float) -> str:
    """A span for people.

    >>> in_words(90), in_words(7200), in_words(400_000)
    ('2 min', '2.0 h', '4.6 days')
    """
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
