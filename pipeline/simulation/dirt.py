"""Dirt in a simulated fleet's files: what sensors, gateways and clocks do to rows, in bursts.

Shape legend: N rows of a machine's day, F frequency bins.
"""

from __future__ import annotations

import numpy as np

from pipeline.params import DirtParams
from pipeline.schema import MICROSECONDS_PER_DAY, MICROSECONDS_PER_HOUR, FloatNF, IntN

BURST_ROWS = {  # mean length; at least 2 where one row alone would not show
    "nan": 1.5,
    "infinite": 1.0,
    "negative": 1.5,
    "flat": 12.0,
    "stuck": 12.0,
    "duplicate": 1.5,
    "future": 3.0,
    "unordered": 6.0,
}
FUTURE_DAYS = (2.0, 400.0)


def soil(spectra_NF: FloatNF, time_us_N: IntN, dirt: DirtParams, rng: np.random.Generator) -> IntN:
    """Soil the rows of a machine's day in place; return their numbers in the order of the file.

    A number may be there twice (a duplicate) or not at all (an hour is missing). Shares are means over many days.

    >>> rows = np.ones((4, 2), np.float32)
    >>> soil(rows, np.arange(4), DirtParams(), np.random.default_rng(0)).tolist()
    [0, 1, 2, 3]
    """
    rows = len(spectra_NF)
    hour_N = time_us_N // MICROSECONDS_PER_HOUR
    order_N = np.arange(rows)
    copies_N = np.ones(rows, np.int64)
    for kind, length in BURST_ROWS.items():
        share = getattr(dirt, kind)
        for _ in range(rng.poisson(share * rows / length) if share else 0):
            first = int(rng.integers(rows))
            burst = slice(first, first + int(rng.geometric(1 / length)) + (kind in ("stuck", "unordered")))
            if kind == "duplicate":
                copies_N[burst] = 2
            elif kind == "future":
                time_us_N[burst] += round(rng.uniform(*FUTURE_DAYS) * MICROSECONDS_PER_DAY)
            elif kind == "unordered":
                order_N[burst] = order_N[burst][::-1]
            else:
                _spoil(kind, spectra_NF[burst], rng)
    hours = np.unique(hour_N)
    lost = hours[rng.random(len(hours)) < dirt.missing]
    copies_N[np.isin(hour_N, lost)] = 0
    return np.repeat(order_N, copies_N[order_N])


def _spoil(kind: str, burst_NF: FloatNF, rng: np.random.Generator) -> None:
    """Spoil the spectra of a burst in place."""
    bins = burst_NF.shape[1]
    if kind == "flat":
        burst_NF[:] = burst_NF[0].mean()
    elif kind == "stuck":
        burst_NF[:] = burst_NF[0]
    else:
        some = rng.choice(bins, int(rng.integers(1, bins + 1)), replace=False)
        factor = {"nan": np.nan, "infinite": np.inf, "negative": -1.0}[kind]
        burst_NF[:, some] *= np.float32(factor)
