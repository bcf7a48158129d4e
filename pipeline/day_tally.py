"""Machine-days gathered while rows stream by: a handful of numbers and one mean log spectrum (F floats) each.

Memory grows with machine-days and not with rows; only the days that are open keep the energy of every row.

Shape legend: D machine-days, F frequency bins, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.fact_stream import FactBatch, Names
from pipeline.schema import MICROSECONDS_PER_DAY, FloatN, IntN

QUANTILES = (0.1, 0.5, 0.9)

FloatDF = npt.NDArray[np.float32]


@dataclass
class _Day:
    """One machine-day while its rows stream by."""

    rows: int
    first_us: int
    last_us: int
    energies: list[npt.NDArray[np.float32]]
    energy_Q: npt.NDArray[np.float64]
    log_sum_F: npt.NDArray[np.float64]
    log_rows: int


@dataclass(frozen=True)
class MachineDays:
    """D machine-days, sorted by machine and day; `machine_D` are codes into `machines`, days count from 1970."""

    machines: Sequence[str]
    machine_D: npt.NDArray[np.int32]
    day_D: IntN
    rows_D: IntN
    first_us_D: IntN
    last_us_D: IntN
    energy_DQ: FloatN  # quantiles .1, .5, .9 of the rows' energy; NaN where there is none
    log_DF: FloatDF  # mean log spectrum; NaN where there is none


class DayTally:
    """Gathers machine-days from batches of rows."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._days: dict[tuple[int, int], _Day] = {}
        self._open: set[tuple[int, int]] = set()

    def add(self, batch: FactBatch, newest_us: int) -> None:
        """Take the runs of a batch; rows later than `newest_us` (a wrong clock) are no days of their machine."""
        machine_N = self._names.codes(batch.machine_N, batch.machines)
        starts = batch.starts_R.tolist()
        ends = [*starts[1:], len(batch)]
        energy_N = np.asarray(batch.facts["energy"], np.float32)
        seen: set[tuple[int, int]] = set()
        for run, (start, end) in enumerate(zip(starts, ends, strict=True)):
            first, last = int(batch.time_us_N[start]), int(batch.time_us_N[end - 1])
            if last > newest_us:
                continue
            key = (int(machine_N[start]), first // MICROSECONDS_PER_DAY)
            seen.add(key)
            day = self._days.get(key)
            if day is None:
                nothing = np.full(len(QUANTILES), np.nan)
                logs_F = np.zeros(batch.log_sum_RF.shape[1])
                day = self._days[key] = _Day(0, first, last, [], nothing, logs_F, 0)
            day.rows += end - start
            day.first_us, day.last_us = min(day.first_us, first), max(day.last_us, last)
            day.energies.append(energy_N[start:end])
            if len(batch.log_sum_RF):
                day.log_sum_F += batch.log_sum_RF[run]
                day.log_rows += int(batch.log_rows_R[run])
        # a machine's day stands in one piece: what this batch does not touch is whole
        for key in self._open - seen:
            self._close(key)
        self._open = seen

    def _close(self, key: tuple[int, int]) -> None:
        """Turn a day's energies into quantiles; where a day comes in pieces, the last piece speaks for it."""
        day = self._days[key]
        energies = np.concatenate(day.energies)
        energies = energies[np.isfinite(energies)]
        day.energies = []
        if len(energies):
            places = [round(share * (len(energies) - 1)) for share in QUANTILES]
            day.energy_Q = np.partition(energies, places)[places].astype(np.float64)

    def finish(self) -> MachineDays:
        """All machine-days."""
        for key in self._open:
            self._close(key)
        self._open = set()
        keys = sorted(self._days, key=lambda key: (self._names.names[key[0]], key[1])) if self._days else []
        days = [self._days[key] for key in keys]
        logs = [
            (day.log_sum_F / day.log_rows if day.log_rows else np.full_like(day.log_sum_F, np.nan)).astype(np.float32)
            for day in days
        ]
        return MachineDays(
            self._names.names,
            np.array([machine for machine, _ in keys], np.int32),
            np.array([day for _, day in keys], np.int64),
            np.array([day.rows for day in days], np.int64),
            np.array([day.first_us for day in days], np.int64),
            np.array([day.last_us for day in days], np.int64),
            np.array([day.energy_Q for day in days]).reshape(-1, len(QUANTILES)),
            np.array(logs, np.float32).reshape(len(days), -1),
        )
