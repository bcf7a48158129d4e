"""Which rows of a source too large to keep are kept: whole hours, the same for all machines, and every horizon."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.clock import Clock
from pipeline.errors import ContractError
from pipeline.landing import Source
from pipeline.maintenance import horizons, share_of
from pipeline.schema import MICROSECONDS_PER_HOUR, BoolN, IntN, codes_and_names, times_us


@dataclass(frozen=True)
class Sample:
    """Hours (since 1970) and horizons that are kept."""

    hours: IntN
    horizons: dict[str, IntN]
    warning: str

    def select(self, table: pa.Table) -> pa.Table:
        """The rows of a table that are kept."""
        hour_N, horizon_N = _facts(table, self.horizons)
        return table.filter(pa.array(horizon_N | np.isin(hour_N, self.hours)))


def sampled_hours(source: Source, log: pa.Table, max_rows: int | None, horizon_hours: float) -> Sample | None:
    """What to keep so that at most `max_rows` remain, horizons first; None where all rows fit.

    Hours are taken in the order of a hash, so a longer history keeps most of the hours that a shorter one kept. Files
    that cannot be read count nothing.
    """
    known = [source.forms[file.name].rows for file in source.files]
    if max_rows is None or (None not in known and sum(rows or 0 for rows in known) <= max_rows):
        return None
    intervals, counts, in_horizon, total = horizons(log, horizon_hours), dict[int, int](), 0, 0
    for hour_N, horizon_N in _passes(source, intervals):
        total += len(hour_N)
        in_horizon += int(horizon_N.sum())
        hours, rows = np.unique(hour_N[~horizon_N], return_counts=True)
        for hour, count in zip(hours.tolist(), rows.tolist(), strict=True):
            counts[hour] = counts.get(hour, 0) + count
    if total <= max_rows:
        return None
    order = sorted(counts, key=lambda hour: share_of(f"hour {hour}"))
    room = np.cumsum([counts[hour] for hour in order]) <= max_rows - in_horizon
    hours = np.sort(np.array(order, np.int64)[room])
    kept = in_horizon + sum(counts[hour] for hour in hours.tolist())
    share = f"{len(hours)} of {len(order)} hours"
    warning = f"sampled to {kept:,} of {total:,} rows (ingest.max_rows): {share} and {in_horizon:,} rows in horizons"
    return Sample(hours, intervals, warning)


def _passes(source: Source, intervals: dict[str, IntN]) -> Iterator[tuple[IntN, BoolN]]:
    """Hour and horizon of each row, reading the keys only."""
    counting = Clock(source.clock.zone)  # the rows are read again with the spectra; what it had to assume counts once
    for file in source.files:
        try:
            for table in source.tables(file, (), counting):
                yield _facts(table, intervals)
        except ContractError:  # said when its spectra are read
            continue


def _facts(table: pa.Table, intervals: dict[str, IntN]) -> tuple[IntN, BoolN]:
    time_N = times_us(table["timestamp"])
    codes, names = codes_and_names(table["machine_id"])
    horizon_N = np.zeros(len(time_N), np.bool_)
    for code, name in enumerate(names):
        for begin, end in intervals.get(name, ()):
            horizon_N |= (codes == code) & (time_N >= begin) & (time_N <= end)
    return time_N // MICROSECONDS_PER_HOUR, horizon_N
