"""Failures that a log invents: nobody can catch what never happened."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.evaluate import events_of
from pipeline.rows import Rows
from pipeline.schema import FAILURE_SCHEMA, MICROSECONDS_PER_HOUR, TRUTH_SCHEMA, time_column

HOURS = 300


def times(*hours: int) -> pa.Array:
    return time_column(np.array(hours, np.int64) * MICROSECONDS_PER_HOUR)


def rows() -> Rows:
    """Two machines, an hour apart a row, the last hundred hours before a logged failure each."""
    hour, machine = np.tile(np.arange(HOURS), 2), np.repeat([0, 1], HOURS).astype(np.int32)
    failure = [f"F{m}" if h >= HOURS - 100 else None for m, h in zip(machine, hour, strict=True)]
    zeros = np.zeros(len(hour), np.int32)
    status = pa.table({"failure_id": pa.array(failure, pa.string())})
    names = ["real", "invented"]
    return Rows(np.ones((len(hour), 4), np.float32), machine, names, zeros, zeros, [""],
                hour * MICROSECONDS_PER_HOUR, status)  # fmt: skip


def test_a_logged_failure_without_a_true_fault_is_no_event_of_a_simulation() -> None:
    failures = pa.Table.from_arrays(
        [["F0", "F1"], ["real", "invented"], times(HOURS, HOURS), times(HOURS, HOURS), ["wear", "wear"], ["test"] * 2],
        schema=FAILURE_SCHEMA,
    )
    truth = pa.Table.from_arrays(
        [["real"], times(HOURS - 40), times(HOURS), ["wear"], pa.array([True])], schema=TRUTH_SCHEMA
    )
    events, invented = events_of(failures, rows(), 100, truth)
    assert [event.failure_id for event in events] == ["F0"]
    assert events[0].start_us == (HOURS - 40) * MICROSECONDS_PER_HOUR
    assert [event.failure_id for event in invented] == ["F1"]
    # a plant's log is all that is known
    events, invented = events_of(failures, rows(), 100, None)
    assert [event.failure_id for event in events] == ["F0", "F1"]
    assert not invented
