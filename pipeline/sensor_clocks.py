"""What is believed of sensors' clocks: some jump ahead, some lose their time.

Shape legend: N rows.
"""

from __future__ import annotations

import numpy as np

from pipeline.schema import MICROSECONDS_PER_HOUR, IntN

EARLIEST_US = 978_307_200_000_000  # 2001: clocks that have lost their time tell 1970 or 2000
ALONE_SHARE, ALONE_US = 0.01, 6 * MICROSECONDS_PER_HOUR


def newest_believed(time_us_N: IntN, until_us: int) -> int:
    """The time of the last row that is believed; EARLIEST_US where none is.

    Args:
        time_us_N: times of an upload's rows, or of a run's.
        until_us: no row can be later.

    Not believed are rows after `until_us`, and few rows at the end that stand alone: fewer than ALONE_SHARE of all, and
    more than ALONE_US after the row before them. Clocks jump; a fleet's time must not follow one of them.

    >>> hour = 3_600_000_000
    >>> times = EARLIEST_US + np.r_[np.arange(200), 900] * hour
    >>> (newest_believed(times, EARLIEST_US + 1000 * hour) - EARLIEST_US) // hour
    199
    """
    ordered = np.sort(time_us_N[(time_us_N <= until_us) & (time_us_N > EARLIEST_US)])
    few = int(ALONE_SHARE * len(time_us_N))
    jumps = np.flatnonzero(np.diff(ordered[-few - 1 :]) > ALONE_US) if few else np.empty(0, np.int64)
    end = len(ordered) - (min(few + 1, len(ordered)) - int(jumps[0]) - 1 if len(jumps) else 0)
    return int(ordered[end - 1]) if end > 0 else EARLIEST_US
