"""Windows of consecutive rows of one machine: where a run begins anew, and which rows each row's window holds.

Shape legend: N rows, W rows of a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.rows import RowKeys

IntN = npt.NDArray[np.integer[Any]]
IntNW = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RowOrder:
    """Machine, epoch and time (microseconds) of N rows in any order: what windows are made of."""

    keys: RowKeys
    time_us: IntN


@dataclass(frozen=True)
class Intervals:
    """The usual microseconds from one row of a machine to its next: by machine, and of a machine that is not known.

    >>> keys = RowKeys.of(["pump"], np.zeros(4, int), np.zeros(4, int))
    >>> Intervals.of(RowOrder(keys, np.array([0, 10, 20, 90])))
    Intervals(machines={'pump': 10}, usual=10)
    """

    machines: Mapping[str, int]
    usual: int

    @classmethod
    def of(cls, rows: RowOrder) -> Intervals:
        """Medians of the steps between rows of one time each; without any step the usual one is a microsecond."""
        order = np.lexsort((rows.time_us, rows.keys.machine_N))
        machine, step = rows.keys.machine_N[order], np.diff(rows.time_us[order])
        counted = (machine[1:] == machine[:-1]) & (step > 0)
        machine, step = machine[1:][counted], step[counted]
        ordered = np.lexsort((step, machine))
        first = np.flatnonzero(np.r_[True, np.diff(machine[ordered]) != 0]) if len(step) else np.empty(0, int)
        count = np.diff(np.r_[first, len(step)])
        median = step[ordered][first + (count - 1) // 2] if len(step) else np.empty(0, int)
        names = [rows.keys.machines[code] for code in machine[ordered][first]]
        machines = dict(zip(names, median.tolist(), strict=True))
        return cls(machines, int(np.median(median)) if len(median) else 1)

    def of_machines(self, machines: Sequence[str]) -> npt.NDArray[np.int64]:
        """Microseconds (M,) of some machines."""
        return np.array([self.machines.get(name, self.usual) for name in machines], np.int64)


def windows(rows: RowOrder, width: int, max_gap: float, intervals: Intervals) -> IntNW:
    """Places (N, W) of the rows of each row's window, oldest first: the row itself is the last.

    Another machine, another baseline epoch, or a step of more than `max_gap` usual intervals begins a run. Where a run
    has fewer rows than a window, its first stands for those that are missing. Rows of one time follow one another as
    they stand.

    Args:
        rows: in any order.
        width: W.
        max_gap: of the machine's usual interval.
        intervals: usual ones.

    >>> order = RowOrder(RowKeys.of(["pump"], np.zeros(4, int), np.zeros(4, int)), np.array([0, 10, 20, 90]))
    >>> windows(order, 3, 2.0, Intervals({}, 10)).tolist()
    [[0, 0, 0], [0, 0, 1], [0, 1, 2], [3, 3, 3]]
    """
    count, keys = len(rows.time_us), rows.keys
    if not count:
        return np.empty((0, width), np.int64)
    order = np.lexsort((rows.time_us, keys.epoch_N, keys.machine_N))
    machine, epoch, time_us = keys.machine_N[order], keys.epoch_N[order], rows.time_us[order]
    longest = max_gap * intervals.of_machines(keys.machines)[machine[1:]]
    breaks = (np.diff(machine) != 0) | (np.diff(epoch) != 0) | (np.diff(time_us) > longest)
    place = np.arange(count)
    start = np.maximum.accumulate(np.where(np.r_[True, breaks], place, 0))
    held = np.maximum(place[:, None] + np.arange(1 - width, 1), start[:, None])
    window_NW = np.empty((count, width), np.int64)
    window_NW[order] = order[held]
    return window_NW


def last_looks(window_NW: IntNW) -> npt.NDArray[np.int64]:
    """The last row (N,) whose window holds each row: until then its spectrum is needed.

    >>> last_looks(np.array([[0, 0], [0, 1], [1, 2]])).tolist()
    [1, 2, 2]
    """
    last_N = np.arange(len(window_NW))
    np.maximum.at(last_N, window_NW.ravel(), np.repeat(np.arange(len(window_NW)), window_NW.shape[1]))
    return last_N
