"""Which rows of a simulated fleet too large to keep are kept: whole hours, the same for all machines, and horizons."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ParamsError
from pipeline.params import SimulateParams
from pipeline.schema import MICROSECONDS_PER_DAY, MICROSECONDS_PER_HOUR, BoolN, IntN


@dataclass(frozen=True)
class KeptHours:
    """Hours since the fleet's start, and the horizon [begin, end] (microseconds) before each failure of a machine."""

    hours: IntN
    horizons: dict[int, list[tuple[int, int]]]
    share: float  # of all rows, about

    def select(self, machine: int, time_us_N: IntN) -> BoolN:
        """The instants (N,) of a machine that are kept."""
        kept_N = np.isin(time_us_N // MICROSECONDS_PER_HOUR, self.hours)
        for begin, end in self.horizons.get(machine, ()):
            kept_N |= (time_us_N >= begin) & (time_us_N <= end)
        return kept_N


def kept_hours(
    params: SimulateParams,
    failures: Sequence[tuple[int, float]],
    from_day: float,
    end_day: float,
    max_rows: int,
    horizon_hours: float,
) -> KeptHours | None:
    """What to keep of a stretch so that at most `max_rows` remain, horizons first; None where all rows fit.

    Hours are taken in the order of a hash, so a longer stretch keeps most of the hours that a shorter one kept.

    Args:
        params: the fleet.
        failures: machine and day of each failure of the log.
        from_day: the stretch's begin ...
        end_day: ... and end.
        max_rows: rows to keep.
        horizon_hours: before a failure, kept of its machine alone.

    Raises:
        ParamsError: not even one hour fits beside the horizons.

    >>> fleet = SimulateParams(machines=2, days=2, interval_seconds=3600, bins=8)
    >>> len(kept_hours(fleet, [(0, 1.5)], 0.0, 2.0, 40, 6.0).hours)
    16
    """
    per_hour = int(np.ceil(3600 / params.interval_seconds))
    first, last = int(from_day * 24), int(np.ceil(end_day * 24))
    total = (last - first) * per_hour * params.machines
    if total <= max_rows:
        return None
    horizons: dict[int, list[tuple[int, int]]] = {}
    for machine, day in failures:
        begin, end = max(from_day, day - horizon_hours / 24), min(end_day, day)
        if begin < end:
            interval = (round(begin * MICROSECONDS_PER_DAY), round(end * MICROSECONDS_PER_DAY))
            horizons.setdefault(machine, []).append(interval)
    lengths = [end - begin for intervals in horizons.values() for begin, end in intervals]
    in_horizons = sum(int(np.ceil(length / MICROSECONDS_PER_HOUR) + 1) * per_hour for length in lengths)
    count = (max_rows - in_horizons) // (per_hour * params.machines)
    if count < 1:
        needed = in_horizons + per_hour * params.machines
        raise ParamsError(
            f"simulate: got max_rows {max_rows:,}, expected at least {needed:,}: the horizons and an hour."
        )
    order = sorted(range(first, last), key=lambda hour: hashlib.sha256(f"hour {hour}".encode()).digest())
    return KeptHours(np.sort(np.array(order[:count], np.int64)), horizons, max_rows / total)
