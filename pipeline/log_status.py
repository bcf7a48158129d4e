"""What the maintenance log says of each row: healthy, or why not.

A row is healthy unless the log says otherwise; where the log tags healthy intervals, only those count, and a tagged row
is healthy however young it is. Any other row younger than the horizon is unconfirmed: no failure has had time to show.

Shape legend: N rows, K entries of a log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.epochs import EPOCH_TAGS
from pipeline.moments import microseconds
from pipeline.params import SplitParams
from pipeline.schema import MICROSECONDS_PER_HOUR, TIME, BoolN, IntN, Tag, times_us

IntegerN = npt.NDArray[np.integer]


class LogStatus(IntEnum):
    """Of one row; where several hold, the one further down counts."""

    HEALTHY = 0
    UNCONFIRMED = 1
    UNTAGGED = 2
    ALERT = 3  # confirmed by a person, and the horizon before it
    RUN_IN = 4
    HORIZON = 5
    REPAIR = 6
    OFF = 7
    DOWN = 8
    QUARANTINED = 9


LOG_STATUSES = tuple(status.name.lower() for status in LogStatus)


@dataclass(frozen=True)
class Intervals:
    """K intervals of machines: codes (unknown machine: -1) and microseconds since 1970."""

    machine_K: npt.NDArray[np.int32]
    start_K: IntN
    end_K: IntN

    def begun_before(self, microseconds: int) -> Intervals:
        """The same intervals, each begun so much earlier."""
        return Intervals(self.machine_K, self.start_K - microseconds, self.end_K)

    def where(self, mask_K: BoolN) -> Intervals:
        """The intervals that the mask keeps."""
        return Intervals(self.machine_K[mask_K], self.start_K[mask_K], self.end_K[mask_K])

    def joined(self, gap_us: int) -> Intervals:
        """Intervals of a machine that lie at most so far apart, as one from the first's start to the last's end.

        >>> code, start = np.array([1, 0, 0, 0], np.int32), np.array([5, 20, 0, 4])
        >>> found = Intervals(code, start, start + 2).joined(3)
        >>> found.machine_K.tolist(), found.start_K.tolist(), found.end_K.tolist()
        ([0, 0, 1], [0, 20, 5], [6, 22, 7])
        """
        if not len(self.machine_K):
            return self
        order = np.lexsort((self.start_K, self.machine_K))
        machine_K, start_K, end_K = self.machine_K[order], self.start_K[order], self.end_K[order]
        latest_K = end_K.copy()
        for code in np.unique(machine_K):  # the latest end of a machine so far
            mine = machine_K == code
            latest_K[mine] = np.maximum.accumulate(end_K[mine])
        apart = (np.diff(machine_K) != 0) | (start_K[1:] - latest_K[:-1] > gap_us)
        first = np.flatnonzero(np.r_[True, apart])
        return Intervals(machine_K[first], start_K[first], np.maximum.reduceat(end_K, first))


def intervals_of(table: pa.Table, start: str, end: str, machines: Sequence[str]) -> Intervals:
    """The intervals of a log or of a table of failures."""
    codes = {name: code for code, name in enumerate(machines)}
    machine_K = np.array([codes.get(name, -1) for name in table["machine_id"].to_pylist()], np.int32)
    return Intervals(machine_K, times_us(table[start]), times_us(table[end]))


class Timeline:
    """Rows in the order of machine and time, so that an interval is a slice."""

    def __init__(self, machine_N: IntegerN, time_us_N: IntN, machines: int) -> None:
        self.order_N = np.lexsort((time_us_N, machine_N))
        self.time_N = time_us_N[self.order_N]
        self.bounds = np.searchsorted(machine_N[self.order_N], np.arange(machines + 1))

    def slices(self, intervals: Intervals, *, closed: bool = False) -> tuple[IntN, IntN]:
        """First and past-the-last position (K,) of the rows in [start, end), or [start, end] where `closed`."""
        first_K, last_K = np.zeros((2, len(intervals.machine_K)), np.int64)
        for code in np.unique(intervals.machine_K[intervals.machine_K >= 0]):
            mine = intervals.machine_K == code
            low, high = self.bounds[code], self.bounds[code + 1]
            times = self.time_N[low:high]
            first_K[mine] = low + np.searchsorted(times, intervals.start_K[mine], side="left")
            last_K[mine] = low + np.searchsorted(times, intervals.end_K[mine], side="right" if closed else "left")
        return first_K, np.maximum(first_K, last_K)

    def covered(self, intervals: Intervals, *, closed: bool = False) -> BoolN:
        """Which rows (N,), in their own order, lie in any of the intervals [start, end), or [start, end]."""
        first_K, last_K = self.slices(intervals, closed=closed)
        change = np.zeros(len(self.order_N) + 1, np.int32)
        np.add.at(change, first_K, 1)
        np.add.at(change, last_K, -1)
        covered_N = np.empty(len(self.order_N), bool)
        covered_N[self.order_N] = np.cumsum(change[:-1]) > 0
        return covered_N

    def owner(self, intervals: Intervals) -> npt.NDArray[np.int32]:
        """Index of the interval [start, end] of each row (N,), the one that ends first; -1 outside of all."""
        first_K, last_K = self.slices(intervals, closed=True)
        sorted_N = np.full(len(self.order_N), -1, np.int32)
        for index in np.argsort(-intervals.end_K, kind="stable"):
            sorted_N[first_K[index] : last_K[index]] = index
        owner_N = np.empty_like(sorted_N)
        owner_N[self.order_N] = sorted_N
        return owner_N


def alerts_of(feedback: pa.Table, state: str, newest_us: int, machines: Sequence[str]) -> Intervals:
    """The alerts of FEEDBACK_SCHEMA in a state; one that is not closed lasts until the newest row."""
    chosen = feedback.filter(pc.equal(feedback["state"], state))
    closed = pc.fill_null(chosen["closed"].cast(TIME), pa.scalar(newest_us, pa.int64()).cast(TIME))
    return intervals_of(chosen.set_column(2, "closed", closed), "opened", "closed", machines)


def log_status(
    timeline: Timeline,
    time_us_N: IntN,
    ok_N: BoolN,
    newest_us_N: IntN | int,
    machines: Sequence[str],
    maintenance: pa.Table,
    failures: pa.Table,
    params: SplitParams,
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32]]:
    """LogStatus of each row (N,) int8, and the failure whose horizon it lies in (N,) int32, -1 for none.

    Down is from a failure's start to its end. Rows during work (repair, sensor, firmware) count as repair; the run-in
    follows a repair and a failure. A row in the horizons of two failures belongs to the next of them.

    Args:
        timeline: the rows' order.
        time_us_N: their times.
        ok_N: not quarantined; a row of a suspect sensor has a log status as any other.
        newest_us_N: the newest row, per row or for all: what the age of a row is measured from.
        machines: names behind the machine codes.
        maintenance: the log; entries of unknown machines are ignored.
        failures: as ingest wrote them.
        params: split section.
    """
    hour = MICROSECONDS_PER_HOUR
    entries = intervals_of(maintenance, "start", "end", machines)
    tags = np.array(maintenance["tag"].to_pylist(), dtype=object)
    failed = intervals_of(failures, "time", "end", machines)
    horizon = round(params.horizon_hours * hour)
    owner_N = timeline.owner(Intervals(failed.machine_K, failed.start_K - horizon, failed.start_K))
    down_N = timeline.covered(failed) | timeline.covered(entries.where(tags == Tag.FAILURE))
    repairs = entries.where(np.isin(tags, [Tag.REPAIR, Tag.FAILURE]))
    started = Intervals(
        np.r_[repairs.machine_K, failed.machine_K].astype(np.int32),
        np.r_[repairs.end_K, failed.end_K],
        np.r_[repairs.end_K, failed.end_K] + round(params.run_in_hours * hour),
    )
    status_N = np.zeros(len(time_us_N), np.int8)
    status_N[time_us_N > newest_us_N - horizon] = LogStatus.UNCONFIRMED
    healthy = entries.where(tags == Tag.HEALTHY)
    if len(healthy.machine_K):
        # closed: an interval made from labels ends at its last healthy row
        tagged_N = timeline.covered(healthy, closed=True)
        # a log whose tags all end before the fleet changed says nothing of what came after
        speaks_N = ~after_change(time_us_N, params) | after_change(healthy.end_K - 1, params).any()
        status_N = np.where(tagged_N, LogStatus.HEALTHY, np.where(speaks_N, LogStatus.UNTAGGED, status_N)).astype(
            np.int8
        )
    status_N[timeline.covered(started)] = LogStatus.RUN_IN
    status_N[owner_N >= 0] = LogStatus.HORIZON
    status_N[timeline.covered(entries.where(np.isin(tags, EPOCH_TAGS)))] = LogStatus.REPAIR
    status_N[timeline.covered(entries.where(tags == Tag.OFF))] = LogStatus.OFF
    status_N[down_N] = LogStatus.DOWN
    status_N[~ok_N] = LogStatus.QUARANTINED
    owner_N[status_N != LogStatus.HORIZON] = -1
    return status_N, owner_N


def after_change(time_us: IntN, params: SplitParams) -> BoolN:
    """Which times lie at or after the change of the fleet; none where there was none."""
    if params.changed_at is None:
        return np.zeros(len(time_us), bool)
    return np.asarray(time_us >= microseconds(params.changed_at))
