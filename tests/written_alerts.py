"""Alerts as the scorer writes them, for the tests of what people do with them."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from flows.service.tables import Alert, AlertEvent, EventKind, PolicyMemory, Standing

START = dt.datetime(2025, 3, 1, tzinfo=dt.UTC)


def hour(number: float) -> dt.datetime:
    """A moment of the tests' plant."""
    return START + dt.timedelta(hours=number)


def write_alert(
    engine: sa.Engine,
    machine: str,
    opened: dt.datetime = START,
    last: dt.datetime | None = None,
    *,
    standing: Standing = Standing.CLOSED,
    cause: str = "vibration",
    paged: bool = True,
    **values: Any,
) -> int:
    """An alert with the first line of its story; its number."""
    last = last or opened + dt.timedelta(hours=2)
    details = {
        "agreed": ["pca", "autoencoder"],
        "top_bins": [{"bin": 3, "band": "300-400 Hz", "near": ["BPFO (310 Hz)"]}, {"bin": 4, "band": "b", "near": []}],
        "first_row": {"file": "2025-03-01.parquet", "row": 7},
        "peak": {"file": "2025-03-01.parquet", "row": 9},
        "note": "it is correlation and not a diagnosis.",
    }
    with Session(engine) as session, session.begin():
        alert = Alert(
            machine_id=machine,
            cause=cause,
            standing=standing,
            final=standing is not Standing.OPEN,
            opened_at=opened,
            paged_at=opened if paged and cause == "vibration" else None,
            last_at=last,
            closed_at=None if standing is Standing.OPEN else last,
            peak_at=opened if cause == "vibration" else None,
            peak_rarity=4.079 if cause == "vibration" else None,
            release_id="0123456789abcdef",
            details=details if cause == "vibration" else {"note": "No usable spectrum: sensor, cable, or off."},
        )
        for name, value in values.items():
            setattr(alert, name, value)
        alert.events.append(AlertEvent(kind=EventKind.OPENED, at=opened, of=opened, who="policy", note=""))
        session.add(alert)
        session.flush()
        return alert.id


def heard(engine: sa.Engine, *machines: str) -> None:
    """Machines that were scored."""
    with Session(engine) as session, session.begin():
        for machine in machines:
            session.add(PolicyMemory(machine_id=machine, newest_at=hour(99), pending=False, memory={}))
