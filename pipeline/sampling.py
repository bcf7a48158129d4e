"""Which rows of a source too large to keep are kept: every horizon, whole hours, and single minutes that train.

Alerts are made of neighbours in time, so what calibrates and judges is kept in whole hours, the same of all machines.
What describes a machine is how many times it was looked at: the rows of an hour say much the same (see
`detectors.looks`), and as many rows in single minutes of the whole training span say far more. So a share of the rows
(`ingest.looks_share`) is kept as minutes of that span, where a policy never looks for neighbours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.clock import Clock
from pipeline.errors import ContractError
from pipeline.landing import Source
from pipeline.maintenance import horizons, share_of
from pipeline.params import IngestParams, SplitParams
from pipeline.roles import boundaries_of
from pipeline.schema import MICROSECONDS_PER_HOUR, MICROSECONDS_PER_MINUTE, BoolN, IntN, codes_and_names, times_us


@dataclass(frozen=True)
class Sample:
    """Horizons, hours and minutes (since 1970) that are kept; of a machine's minutes those up to its `train_end`."""

    horizons: dict[str, IntN]
    hours: IntN
    minutes: IntN
    train_end: Mapping[str, int]  # microseconds since 1970
    warning: str

    def select(self, table: pa.Table) -> pa.Table:
        """The rows of a table that are kept."""
        facts = _Facts.of(table, self.horizons)
        ends = np.array([self.train_end.get(name, 0) for name in facts.machines], np.int64)
        trains_N = facts.time_us_N <= ends[facts.machine_N]
        kept_N = facts.horizon_N | np.isin(facts.hour_N, self.hours)
        return table.filter(pa.array(kept_N | (trains_N & np.isin(facts.minute_N, self.minutes))))


def sampled(
    source: Source, log: pa.Table, params: IngestParams, horizon_hours: float, split: SplitParams | None = None
) -> Sample | None:
    """What to keep so that at most `params.max_rows` remain, horizons first; None where all rows fit.

    Hours and minutes are taken in the order of a hash, so a longer history keeps most of what a shorter one kept. Files
    that cannot be read count nothing.

    Args:
        source: what is too large.
        log: its maintenance log.
        params: `max_rows` and `looks_share` are read.
        horizon_hours: before a failure, kept whole.
        split: says where training ends; None: nothing trains, and only hours are kept.
    """
    most = params.max_rows
    known = [source.forms[file.name].rows for file in source.files]
    if most is None or (None not in known and sum(rows or 0 for rows in known) <= most):
        return None
    intervals, seen = horizons(log, horizon_hours), _Seen()
    for facts in _passes(source, intervals):
        seen.add(facts)
    if seen.total <= most:
        return None
    room = most - seen.in_horizon
    hours = _taken(seen.hours, "hour", room if split is None else round(room * (1 - params.looks_share)))
    in_hours = sum(seen.hours[hour] for hour in hours.tolist())
    ends, minutes = dict[str, int](), np.empty(0, np.int64)
    if split is not None and seen.spans:
        ends = seen.train_ends(split)
        last, kept = max(ends.values()) // MICROSECONDS_PER_MINUTE, set(hours.tolist())
        single = {at: rows for at, rows in seen.minutes.items() if at <= last and at // 60 not in kept}
        minutes = _taken(single, "minute", room - in_hours)
    total = f"sampled to at most {most:,} of {seen.total:,} rows (ingest.max_rows)"
    parts = f"{len(hours)} of {len(seen.hours)} hours, {len(minutes):,} single minutes that train"
    return Sample(intervals, hours, minutes, ends, f"{total}: {parts}, and {seen.in_horizon:,} rows in horizons")


def _taken(rows: Mapping[int, int], what: str, room: int) -> IntN:
    """Sorted: as many as there is room for, in the order of their hash."""
    order = sorted(rows, key=lambda at: share_of(f"{what} {at}"))
    fits = np.cumsum(np.array([rows[at] for at in order], np.int64)) <= room
    return np.sort(np.array(order, np.int64)[fits])


@dataclass
class _Seen:
    """Rows outside horizons by hour and minute, and the first and last moment of each machine."""

    total: int = 0
    in_horizon: int = 0
    hours: Counter[int] = field(default_factory=Counter)
    minutes: Counter[int] = field(default_factory=Counter)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, facts: _Facts) -> None:
        self.total += len(facts.time_us_N)
        self.in_horizon += int(facts.horizon_N.sum())
        for counts, at_N in ((self.hours, facts.hour_N), (self.minutes, facts.minute_N)):
            at, rows = np.unique(at_N[~facts.horizon_N], return_counts=True)
            counts.update(dict(zip(at.tolist(), rows.tolist(), strict=True)))
        for code in np.unique(facts.machine_N).tolist():
            mine = facts.time_us_N[facts.machine_N == code]
            first, last = self.spans.get(facts.machines[code], (int(mine[0]), int(mine[0])))
            self.spans[facts.machines[code]] = (min(first, int(mine.min())), max(last, int(mine.max())))

    def train_ends(self, split: SplitParams) -> dict[str, int]:
        """Where each machine's training ends; rows that will be quarantined can move it by a little, into the gap."""
        machine_N = np.repeat(np.arange(len(self.spans)), 2)
        ends = np.array(list(self.spans.values()), np.int64).ravel()
        edges = boundaries_of(machine_N, ends, np.ones(len(ends), bool), len(self.spans), split)
        return dict(zip(self.spans, edges.train_end.tolist(), strict=True))


@dataclass(frozen=True)
class _Facts:
    """Machine, time and whether in a horizon of rows (N,)."""

    machine_N: npt.NDArray[np.integer]
    machines: list[str]
    time_us_N: IntN
    horizon_N: BoolN

    @property
    def hour_N(self) -> IntN:
        return self.time_us_N // MICROSECONDS_PER_HOUR

    @property
    def minute_N(self) -> IntN:
        return self.time_us_N // MICROSECONDS_PER_MINUTE

    @classmethod
    def of(cls, table: pa.Table, intervals: dict[str, IntN]) -> _Facts:
        time_N = times_us(table["timestamp"])
        codes, names = codes_and_names(table["machine_id"])
        horizon_N = np.zeros(len(time_N), np.bool_)
        for code, name in enumerate(names):
            for begin, end in intervals.get(name, ()):
                horizon_N |= (codes == code) & (time_N >= begin) & (time_N <= end)
        return cls(codes, list(names), time_N, horizon_N)


def _passes(source: Source, intervals: dict[str, IntN]) -> Iterator[_Facts]:
    """The facts of all rows, reading the keys only."""
    counting = Clock(source.clock.zone)  # the rows are read again with the spectra; what it had to assume counts once
    for file in source.files:
        try:
            for table in source.tables(file, (), counting):
                yield _Facts.of(table, intervals)
        except ContractError:  # said when its spectra are read
            continue
