"""When the machines that moved together did so, to the hour, and which of them had moved long before.

Shape legend: N rows, M machines, K conditions, D columns, H hours.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import numpy as np

from pipeline.drift.consensus import SAME_TIME, Array, Compared
from pipeline.moments import moment_of
from pipeline.schema import MICROSECONDS_PER_HOUR, BoolN, FloatN, IntN

EARLIER_HOURS = 6  # of rows before the common change, which show whether a machine had moved already


@dataclass(frozen=True)
class Progress:
    """How much of a common shift the rows of some machines have made, and with what weight they say so."""

    machine_N: IntN  # places among the machines compared
    hour_N: IntN
    made_N: FloatN  # times the weight
    weight_N: FloatN

    @classmethod
    def of(cls, compared: Compared, common_KD: Array, member_M: BoolN) -> Progress:
        """Of the rows of the members."""
        now, usual = compared.now, compared.usual
        place = np.full(len(now.machines), -1)
        place[compared.machine_M[member_M]] = np.flatnonzero(member_M)
        rows = np.flatnonzero((place[now.machine_N] >= 0) & (now.condition_N < len(common_KD)))
        cell = (compared.usual_of[now.machine_N[rows]], now.condition_N[rows])
        # rows of a cell that nobody knows, and of one without a common shift, say nothing
        mean_ND = usual.sums.mean[cell]
        beyond_ND = (compared.standard_ND[rows] - mean_ND) / usual.lasting_spread()[cell]
        common_ND = np.where(np.isfinite(beyond_ND), common_KD[cell[1]], 0.0)
        made_N = (np.nan_to_num(beyond_ND) * common_ND).sum(axis=1)
        hour_N = now.time_us_N[rows] // MICROSECONDS_PER_HOUR
        return cls(place[now.machine_N[rows]], hour_N, made_N, (common_ND**2).sum(axis=1))

    def level(self, chosen_N: BoolN) -> float:
        """Share of the common shift that rows have made together; NaN without rows that tell."""
        weight = float(self.weight_N[chosen_N].sum())
        return float(self.made_N[chosen_N].sum()) / weight if weight > 0 else float("nan")


def changed_hour(progress: Progress) -> int | None:
    """The first hour (since 1970) of the new level: the best split in two by least squares (Page 1957).

    None where the rows before the split had made half of the shift already: the change lies before the window.

    >>> hours = np.arange(24)
    >>> changed_hour(Progress(hours * 0, hours, np.where(hours >= 9, 2.0, 0.1), np.ones(24)))
    9
    >>> changed_hour(Progress(hours * 0, hours, np.full(24, 2.0), np.ones(24))) is None
    True
    """
    hours, index_N = np.unique(progress.hour_N, return_inverse=True)
    weight_H, made_H = (np.bincount(index_N, values) for values in (progress.weight_N, progress.made_N))
    before, done = np.cumsum(weight_H)[:-1], np.cumsum(made_H)[:-1]
    after, left = weight_H.sum() - before, made_H.sum() - done
    fine = (before > 0) & (after > 0)
    if not fine.any():
        return None
    low, high = (
        np.divide(part, of, out=np.zeros(len(of)), where=of > 0) for part, of in ((done, before), (left, after))
    )
    gain = np.where(fine & (high > low), before * after * (high - low) ** 2, -1.0)
    best = int(gain.argmax())
    if gain[best] <= 0 or low[best] >= SAME_TIME * high[best]:
        return None
    return int(hours[best + 1])


def changed_at(compared: Compared, common_KD: Array, member_M: BoolN, start_us: int) -> tuple[dt.datetime, BoolN]:
    """When (UTC) the members moved, and which of them (M,) had moved long before the others: those moved alone.

    Args:
        compared: the window beside the reference.
        common_KD: the members' common shift.
        member_M: who moved the same way.
        start_us: of the window: where the change lies before it, this is the answer.
    """
    progress = Progress.of(compared, common_KD, member_M)
    hour = changed_hour(progress)
    earlier_M = np.zeros(len(member_M), bool)
    start = start_us // MICROSECONDS_PER_HOUR
    if hour is None:
        return moment_of(start * MICROSECONDS_PER_HOUR), earlier_M
    before_N = progress.hour_N < hour
    for place in np.flatnonzero(member_M).tolist():
        mine_N = progress.machine_N == place
        if len(np.unique(progress.hour_N[mine_N & before_N])) >= EARLIER_HOURS:
            low, high = progress.level(mine_N & before_N), progress.level(mine_N & ~before_N)
            earlier_M[place] = bool(low >= SAME_TIME * max(high, 1.0))
    return moment_of(max(hour, start) * MICROSECONDS_PER_HOUR), earlier_M
