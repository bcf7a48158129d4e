"""Rows of the service's tables by hand."""

from __future__ import annotations

import datetime as dt
import secrets
from typing import Any

from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from flows.service.tables import (
    Alert,
    Notice,
    NoticeKind,
    NoticeState,
    Shard,
    ShardState,
    Standing,
    Upload,
    UploadState,
)

NOON = dt.datetime(2025, 3, 1, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


def alert_of(machine: str, tier: str | None = "page", rarity: float = 4.0, **values: Any) -> Alert:
    """An alert as the alert book writes it."""
    vibration = tier is not None
    tail = 10.0**-rarity
    peak = {"time": "2025-03-01T11:00:00Z", "file": "spectra/a.parquet", "row": 7, "tail_probability": tail}
    details = {
        "machine_id": machine,
        "cause": "vibration" if vibration else "no_data",
        "tier": tier,
        "first_row": {"file": "spectra/a.parquet", "row": 5} if vibration else None,
        "peak": peak if vibration else None,
        "agreed": ["autoencoder", "pca"] if vibration else [],
        "top_bins": [{"bin": 3, "band": "600-800 Hz", "near": ["BPFO (640 Hz)"]}] if vibration else [],
    }
    given = {
        "machine_id": machine,
        "cause": "vibration" if vibration else "no_data",
        "standing": Standing.OPEN,
        "final": False,
        "answer": None,
        "opened_at": NOON - 2 * HOUR,
        "paged_at": NOON - HOUR if tier == "page" else None,
        "last_at": NOON,
        "closed_at": None,
        "peak_at": NOON - HOUR if vibration else None,
        "peak_rarity": rarity if vibration else None,
        "release_id": "0123456789abcdef",
        "details": details,
    }
    return Alert(**(given | values))


def announced(engine: Engine, alert: Alert, due_at: dt.datetime = NOON, *kinds: NoticeKind) -> int:
    """Store an alert with its pending notices; its number."""
    with Session(engine) as session, session.begin():
        session.add(alert)
        for kind in kinds or (NoticeKind.PAGE if alert.paged_at else NoticeKind.DIGEST,):
            alert.notices.append(Notice(kind=kind, state=NoticeState.PENDING, due_at=due_at))
        session.flush()
        return alert.id


def shard_of(name: str, state: ShardState, finished_at: dt.datetime | None = None, **values: Any) -> Shard:
    """A shard of one hour of data before noon."""
    given = {
        "planned_at": NOON,
        "believed_until": NOON + 24 * HOUR,
        "first_at": NOON - HOUR,
        "last_at": NOON,
        "days": [],
    }
    return Shard(name=name, state=state, finished_at=finished_at, **(given | values))


def upload_of(path: str, state: UploadState, shard: Shard | None = None, **values: Any) -> Upload:
    """An upload of one hour of data before noon, seen at noon."""
    given = {
        "size": 10,
        "modified_ns": 1,
        "sha256": secrets.token_hex(32),
        "first_at": NOON - HOUR,
        "last_at": NOON,
        "seen_at": NOON,
    }
    return Upload(path=path, state=state, shard=shard, **(given | values))
