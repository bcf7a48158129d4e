"""People's answers as files of the data set's folder, where builds find them: no stage reads the database.

| file | what of the database |
|---|---|
| `feedback.parquet` | every vibration alert with its interval: confirmed, dismissed, or else open |
| `corrections.csv` | a line `keep` per dismissed alert, behind the lines that people wrote |
| `maintenance_added.parquet` | what answers added to the maintenance log: failures, repairs, sensors, firmware |

An alert that nobody has answered is exported as open, whether it still stands or has closed: nobody has said that its
rows are healthy, so they neither train nor validate; they calibrate and judge all the same, so that no rate is
flattered. One that a change of the plant explains is not exported unless a person answers it: its rows are the new
normal, and train. A withdrawn alert is not exported; a failure that a person entered for it stays in the log. A no-data
alert has no rows, so only its failure is exported, where one was entered.
"""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from flows.database import EXPORT_LOCK, exclusive
from flows.service.feedback import utc_text
from flows.service.tables import Alert, Answer, LogEntry, Standing
from pipeline.answers import (
    ACTIONS,
    ADDED_LOG,
    COLUMNS,
    CORRECTIONS,
    FEEDBACK,
    FORM,
    Correction,
    examine_corrections,
    exported_note,
    is_exported,
)
from pipeline.interval_file import UnreadableFile, with_lines, without_lines
from pipeline.landing.places import Place, place_of
from pipeline.maintenance import sorted_log
from pipeline.moments import microseconds
from pipeline.schema import FEEDBACK_SCHEMA, MAINTENANCE_SCHEMA, time_column
from pipeline.store import write_table

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Exported:
    """What an export did: names of the files that it wrote, and what a person should know."""

    written: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Told:
    """What builds are told of an alert."""

    id: int
    machine_id: str
    standing: Standing
    answer: Answer | None
    opened_at: dt.datetime
    closed_at: dt.datetime | None
    last_at: dt.datetime
    judged_until: dt.datetime | None

    @property
    def end(self) -> dt.datetime:
        """Its last row so far."""
        return self.closed_at or self.last_at

    @property
    def judged_end(self) -> dt.datetime:
        """The last row that the answer is about: an alert goes on while nobody looks."""
        return self.end if self.judged_until is None else min(self.end, self.judged_until)


def export_answers(engine: Engine, data_set: Path | str) -> Exported:
    """Bring the files of answers in a data set's folder, or its place in an object store, in line with the database.

    Only what changed is written: the same answers give the same bytes, and two exports at once wait for each other.

    Raises:
        ContractError: no such folder, one that cannot be written to, or a corrections.csv that is no CSV; the files
            before it are written by then.
    """
    place = place_of(data_set)
    with exclusive(engine, EXPORT_LOCK) as session:
        alerts = _exported(session)
        tables = ((FEEDBACK, _feedback_table(alerts)), (ADDED_LOG, _log_table(session)))
        written = [name for name, table in tables if _write_table(place, name, table)]
        dismissed = [alert for alert in alerts if alert.answer is Answer.DISMISSED]
        changed, notes = _write_corrections(place, dismissed)
    return Exported((*written, *([CORRECTIONS] if changed else [])), tuple(notes))


def added_log(engine: Engine) -> pa.Table:
    """What answers added to the maintenance log (MAINTENANCE_SCHEMA), sorted; for epochs until the next build."""
    with Session(engine) as session:
        return _log_table(session)


def _feedback_table(alerts: Sequence[_Told]) -> pa.Table:
    """Alerts as FEEDBACK_SCHEMA, in their order; one that still stands has no end."""
    states = {Answer.CONFIRMED: "confirmed", Answer.DISMISSED: "dismissed"}
    closed = [None if alert.standing is Standing.OPEN else alert.end for alert in alerts]
    columns = [
        pa.array([alert.machine_id for alert in alerts], pa.string()),
        time_column(np.array([microseconds(alert.opened_at) for alert in alerts], np.int64)),
        pa.array([None if end is None else microseconds(end) for end in closed], pa.int64()).cast(
            FEEDBACK_SCHEMA.field("closed").type
        ),
        pa.array(["open" if alert.answer is None else states.get(alert.answer, "open") for alert in alerts]),
    ]
    return pa.Table.from_arrays(columns, schema=FEEDBACK_SCHEMA)


def _exported(session: Session) -> list[_Told]:
    """Alerts that builds are told of, by machine and time, sorted alike whatever the database."""
    # columns and not alerts: their details would take three quarters of the time, under the lock
    columns = [getattr(Alert, field.name) for field in fields(_Told)]
    told_of = sa.or_(Alert.drift_id.is_(None), Alert.answer.in_([Answer.CONFIRMED, Answer.DISMISSED]))
    query = sa.select(*columns).where(Alert.standing != Standing.WITHDRAWN, Alert.cause == "vibration", told_of)
    told = [_Told(*row) for row in session.execute(query)]
    return sorted(told, key=lambda alert: (alert.machine_id, alert.opened_at, alert.id))


def _log_table(session: Session) -> pa.Table:
    entries = session.scalars(sa.select(LogEntry).order_by(LogEntry.id)).all()
    columns = [
        pa.array([entry.machine_id for entry in entries], pa.string()),
        time_column(np.array([microseconds(entry.start_at) for entry in entries], np.int64)),
        time_column(np.array([microseconds(entry.end_at) for entry in entries], np.int64)),
        pa.array([entry.tag for entry in entries], pa.string()),
        pa.array([entry.failure_mode or None for entry in entries], pa.string()),
        pa.array([_note_of(entry) for entry in entries], pa.string()),
    ]
    return sorted_log(pa.Table.from_arrays(columns, schema=MAINTENANCE_SCHEMA))


def _note_of(entry: LogEntry) -> str:
    """Where an entry comes from, and what its person wrote."""
    source = f"by {entry.who}" if entry.alert_id is None else f"alert {entry.alert_id}, confirmed by {entry.who}"
    return f"{source}: {entry.note}" if entry.note else source


def _write_table(place: Place, name: str, table: pa.Table) -> bool:
    """Put a table into the folder; an empty one only where it takes the place of another."""
    if not table.num_rows and place.beside(name) is None:
        return False
    with tempfile.TemporaryDirectory(prefix="hearken-") as folder:
        write_table(Path(folder) / name, table)
        return place.write(name, (Path(folder) / name).read_bytes())


def _write_corrections(place: Place, dismissed: Sequence[_Told]) -> tuple[bool, list[str]]:
    """Replace the lines of earlier exports in corrections.csv; whether the file changed, and what was left out."""
    found = place.beside(CORRECTIONS)
    if found is None and not dismissed:
        return False, []
    path, data = Path(place.where(CORRECTIONS)), b"" if found is None else found[1]
    mark = BYTE_ORDER_MARK if data.startswith(BYTE_ORDER_MARK) else b""
    try:
        theirs = without_lines(path, data, FORM, lambda values: any(map(is_exported, values))).encode()
        removals = [each for each in (examine_corrections(path, theirs)[0] if theirs else []) if not each.keep]
        rows, notes = [], []
        for alert in dismissed:
            line = _kept(alert)
            against = next((each for each in removals if each.contradicts(line)), None)
            if against is None:
                times = {"start": utc_text(alert.opened_at), "end": utc_text(alert.judged_end)}
                values = {"machine_id": alert.machine_id, **times, "action": ACTIONS[0], "note": line.note}
                rows.append({name: values[name] for name in COLUMNS})
            else:
                why = f"{CORRECTIONS}, {against.place}, removes rows of the same time: the line written by hand counts"
                notes.append(f"alert {alert.id} is dismissed, but {why}")
        text = with_lines(path, theirs, FORM, rows, beyond=("note",))
    except UnreadableFile as error:
        raise error.finding.error() from None
    return place.write(CORRECTIONS, mark + text.encode()), notes


def _kept(alert: _Told) -> Correction:
    opened, end = microseconds(alert.opened_at), microseconds(alert.judged_end)
    return Correction("", alert.machine_id, opened, end, keep=True, note=exported_note(alert.id))
