"""What is written down of a simulated fleet: the maintenance log, mistakes and all, and the truth."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from pipeline.schema import MAINTENANCE_SCHEMA, MICROSECONDS_PER_DAY, TRUTH_SCHEMA, Tag
from pipeline.simulation.history import FleetHistory

FIRMWARE_HOURS = 0.5

Entry = tuple[str, float, float, str, str | None, str | None]


def maintenance_table(history: FleetHistory, start: dt.date, until: float) -> pa.Table:
    """The log as it stands on day `until`; an entry is there once its beginning has passed."""
    entries = [entry for entry in _entries(history) if entry[1] < until]
    return _table(sorted(entries, key=lambda entry: (entry[1], entry[0], entry[3])), MAINTENANCE_SCHEMA, start)


def truth_table(history: FleetHistory, start: dt.date, until: float) -> pa.Table:
    """What really happened up to day `until`; a fault without end lasts until then."""
    entries = [
        (
            history.names[fault.machine],
            fault.onset,
            until if np.isinf(fault.end) else fault.end,
            fault.mode,
            fault.logged,
        )
        for fault in history.faults
        if fault.onset < until
    ]
    return _table(sorted(entries, key=lambda entry: (entry[1], entry[0])), TRUTH_SCHEMA, start)


def logged_failures(history: FleetHistory, until: float) -> list[tuple[int, float]]:
    """Machine and day of each failure that the log of day `until` has, right or wrong."""
    works = (work for work in (*history.works, *history.never_done) if work.told_of is not None)
    told = [
        (work.told_of, work.broke + work.late) for work in works if work.broke is not None and work.told_of is not None
    ]
    return [(machine, day) for machine, day in told if day < until]


def _entries(history: FleetHistory) -> Iterator[Entry]:
    for work in (*history.works, *history.never_done):
        if work.told_of is None:
            continue
        name, begin, end = history.names[work.told_of], work.begin + work.late, work.end + work.late
        if work.broke is not None:
            yield name, work.broke + work.late, begin, Tag.FAILURE.value, work.mode, work.note
        yield name, begin, end, work.tag.value, work.mode, work.note
    for machine, logged in history.firmware.items():
        if logged and history.firmware_day is not None:
            end = history.firmware_day
            yield history.names[machine], end - FIRMWARE_HOURS / 24, end, Tag.FIRMWARE.value, None, None


def _table(entries: Sequence[tuple[object, ...]], schema: pa.Schema, start: dt.date) -> pa.Table:
    """Entries as a table; numbers in its time columns are days since `start`."""
    zero = (start - dt.date(1970, 1, 1)).days
    columns = []
    for index, field in enumerate(schema):
        values = [entry[index] for entry in entries]
        if pa.types.is_timestamp(field.type):
            days = np.array(values, np.float64) + zero
            columns.append(pa.array(np.round(days * MICROSECONDS_PER_DAY).astype(np.int64)).cast(field.type))
        else:
            columns.append(pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=schema)
