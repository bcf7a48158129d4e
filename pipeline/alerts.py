"""From exceedances to alerts: k of the last n rows of a machine, none older than a window, grouped into episodes.

All functions want rows sorted by machine, then time. Times are microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.params import PolicyParams
from pipeline.schema import MICROSECONDS_PER_DAY, BoolN, IntN

MINUTE = 60_000_000


@dataclass(frozen=True)
class AlertPolicy:
    """Open after `k` of the last `n` rows no older than `window_us`; rows closer than `gap_us` are one episode."""

    k: int
    n: int
    window_us: int
    gap_us: int
    notes: tuple[str, ...] = ()

    @classmethod
    def fitted_to(cls, params: PolicyParams, interval_us: int) -> AlertPolicy:
        """The policy of params.yaml, its window and gap widened where the real cadence would leave them empty.

        >>> AlertPolicy.fitted_to(PolicyParams(k=3, n=5, window_minutes=60), 3_600_000_000).window_us // MINUTE
        303
        """
        window, gap, notes = int(params.window_minutes * MINUTE), int(params.gap_minutes * MINUTE), []
        needed = int(interval_us * params.n * 1.01)
        if window < needed:
            notes.append(
                f"window widened from {window / MINUTE:g} to {needed / MINUTE:g} minutes: rows are that far apart"
            )
            window = needed
        needed = int(interval_us * 2.5)
        if gap < needed:
            notes.append(
                f"episode gap widened from {gap / MINUTE:g} to {needed / MINUTE:g} minutes: rows are that far apart"
            )
            gap = needed
        return cls(params.k, params.n, window, gap, tuple(notes))

    def to_json(self) -> dict[str, int]:
        """The numbers."""
        return {"k": self.k, "n": self.n, "window_us": self.window_us, "gap_us": self.gap_us}

    @classmethod
    def from_json(cls, values: Mapping[str, int]) -> AlertPolicy:
        """The inverse of `to_json`."""
        return cls(values["k"], values["n"], values["window_us"], values["gap_us"])


@dataclass(frozen=True)
class Timeline:
    """Rows sorted by machine and time, with the window that the policy looks back on, computed once.

    `order` sorts the caller's rows; `first` is the first row of each row's window.
    """

    order: IntN
    machine: npt.NDArray[np.int32]
    time_us: IntN
    first: IntN
    policy: AlertPolicy

    @classmethod
    def of(cls, machine_N: npt.NDArray[np.int32], time_us_N: IntN, policy: AlertPolicy) -> Timeline:
        """Sort rows and find their windows, without a loop over rows."""
        order = np.lexsort((time_us_N, machine_N))
        machine, time_us = machine_N[order], time_us_N[order]
        index = np.arange(len(order))
        starts = np.r_[True, machine[1:] != machine[:-1]] if len(order) else np.empty(0, bool)
        machine_first = np.maximum.accumulate(np.where(starts, index, 0)) if len(order) else index
        # one axis on which machines never meet: the window's start is found for all rows by one search
        span = int(time_us.max() - time_us.min()) + policy.window_us + 1 if len(order) else 1
        dense = np.cumsum(starts) - 1
        axis = dense.astype(np.int64) * span + (time_us - (time_us.min() if len(order) else 0))
        by_window = np.searchsorted(axis, axis - policy.window_us, side="left")
        first = np.maximum(np.maximum(by_window, index - policy.n + 1), machine_first)
        return cls(order, machine, time_us, first, policy)

    def alert_rows(self, exceeds_N: BoolN) -> BoolN:
        """Rows (sorted) that exceed and have k exceedances in their window, themselves included.

        >>> policy = AlertPolicy(2, 3, 10, 5)
        >>> line = Timeline.of(np.zeros(5, np.int32), np.array([0, 1, 2, 50, 51]), policy)
        >>> line.alert_rows(np.array([1, 0, 1, 1, 0], bool)).tolist()
        [False, False, True, False, False]
        """
        exceeds = exceeds_N[self.order]
        total = np.r_[0, np.cumsum(exceeds)]
        return np.asarray(exceeds & (total[1:] - total[self.first] >= self.policy.k))

    def episodes(self, alert_rows_N: BoolN) -> Episodes:
        """Alert rows (sorted) of one machine closer than the gap, as episodes."""
        index = np.flatnonzero(alert_rows_N)
        if not len(index):
            return Episodes(index, index, self)
        machine, time_us = self.machine[index], self.time_us[index]
        new = np.r_[True, (machine[1:] != machine[:-1]) | (np.diff(time_us) > self.policy.gap_us)]
        first = index[new]
        last = index[np.r_[np.flatnonzero(new)[1:] - 1, len(index) - 1]]
        return Episodes(first, last, self)


@dataclass(frozen=True)
class Episodes:
    """Alert episodes: first and last row (positions in the sorted timeline)."""

    first: IntN
    last: IntN
    line: Timeline

    def __len__(self) -> int:
        return len(self.first)

    @property
    def machine(self) -> npt.NDArray[np.int32]:
        """Machine code of each."""
        return self.line.machine[self.first]

    @property
    def opened_us(self) -> IntN:
        """Time of the first alert row."""
        return self.line.time_us[self.first]

    @property
    def closed_us(self) -> IntN:
        """Time of the last alert row."""
        return self.line.time_us[self.last]

    def weight(self) -> IntN:
        """How often each counts when it is false: once, and once more per further 24 hours that it stays open."""
        return 1 + (self.closed_us - self.opened_us) // MICROSECONDS_PER_DAY


def typical_interval_us(machine_N: npt.NDArray[np.int32], time_us_N: IntN) -> int:
    """Median time between neighbouring rows of one machine (60 s where there are none)."""
    order = np.lexsort((time_us_N, machine_N))
    same = machine_N[order][1:] == machine_N[order][:-1]
    steps = np.diff(time_us_N[order])[same]
    steps = steps[steps > 0]
    return int(np.median(steps)) if len(steps) else 60 * 1_000_000
