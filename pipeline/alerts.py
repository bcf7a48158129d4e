"""From exceedances to alert rows and episodes: k of the last n rows of a machine, no older than a window.

`Timeline` and `Episodes` are the protocol's measure, by which detectors are compared; `policy_state` is what serves.

Shape legend: N rows, E exceedances, A alert rows. All times are microseconds since 1970.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.params import PolicyParams
from pipeline.schema import MICROSECONDS_PER_DAY, MICROSECONDS_PER_HOUR, MICROSECONDS_PER_MINUTE, BoolN, IntN

MINUTE = MICROSECONDS_PER_MINUTE
MachineN = npt.NDArray[np.int32]


@dataclass(frozen=True)
class AlertPolicy:
    """Open after `k` of the last `n` rows no older than `window_us`; close after `gap_us` of quiet, then cool down."""

    k: int
    n: int
    window_us: int
    gap_us: int
    cool_down_us: int = 0
    no_data_us: int | None = None  # None: silence opens no alert
    notes: tuple[str, ...] = ()

    @classmethod
    def fitted_to(cls, params: PolicyParams, interval_us: int) -> AlertPolicy:
        """The policy of params.yaml, its times widened where the real cadence would leave them empty.

        >>> policy = AlertPolicy.fitted_to(PolicyParams(k=3, n=5, window_minutes=60), 3_600_000_000)
        >>> policy.window_us // MINUTE
        303
        >>> policy.notes[0]
        'window widened from 60 to 303 minutes: rows are 60 minutes apart, and it holds 2 of them, fewer than n=5'
        """
        notes = []
        apart = f"rows are {interval_us / MINUTE:.4g} minutes apart"
        window, needed = int(params.window_minutes * MINUTE), int(interval_us * params.n * 1.01)
        if window < needed:
            holds = window // max(1, interval_us) + 1
            few = f", and it holds {holds} of them, fewer than n={params.n}" if holds < params.n else ""
            notes.append(f"window widened from {window / MINUTE:g} to {needed / MINUTE:g} minutes: {apart}{few}")
            window = needed
        gap, needed = int(params.gap_minutes * MINUTE), int(interval_us * 2.5)
        if gap < needed:
            notes.append(f"episode gap widened from {gap / MINUTE:g} to {needed / MINUTE:g} minutes: {apart}")
            gap = needed
        cool_down = int(params.cool_down_hours * MICROSECONDS_PER_HOUR)
        if 0 < cool_down <= gap:
            notes.append(f"cool-down of {cool_down / MINUTE:g} minutes never counts: the gap is {gap / MINUTE:g}")
        no_data = None if params.no_data_hours is None else int(params.no_data_hours * MICROSECONDS_PER_HOUR)
        if no_data is not None and no_data < needed:
            notes.append(f"no-data time widened from {no_data / MINUTE:g} to {needed / MINUTE:g} minutes: {apart}")
            no_data = needed
        return cls(params.k, params.n, window, gap, cool_down, no_data, tuple(notes))

    def to_json(self) -> dict[str, int | None]:
        """The numbers."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "notes"}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AlertPolicy:
        """The inverse of `to_json`; a policy written before cool-down and no-data alerts has neither."""
        numbers = (values["k"], values["n"], values["window_us"], values["gap_us"])
        return cls(*numbers, values.get("cool_down_us", 0), values.get("no_data_us"))


def enough_of_last(place_E: IntN, machine_E: MachineN, time_us_E: IntN, policy: AlertPolicy) -> BoolN:
    """Which exceedances (E,) have k, themselves included, among the last n rows of their machine within the window.

    Args:
        place_E: places of the exceedances among all rows, sorted by machine and time.
        machine_E: their machines.
        time_us_E: their times.
        policy: k, n and the window.
    """
    enough_E = np.zeros(len(place_E), bool)
    before = len(place_E) - policy.k + 1
    if before > 0:
        # the k-th last exceedance must be of the same machine, among its last n rows, and within the window
        now = slice(policy.k - 1, None)
        enough_E[now] = machine_E[now] == machine_E[:before]
        enough_E[now] &= place_E[now] - place_E[:before] < policy.n
        enough_E[now] &= time_us_E[now] - time_us_E[:before] <= policy.window_us
    return enough_E


@dataclass(frozen=True)
class Timeline:
    """Rows sorted by machine and time; `order` sorts the caller's rows.

    `place` says where each row stands among all rows, of which some may be left out that exceed nothing: a machine's
    last n rows are told by it. Places of different machines are never compared.
    """

    order: IntN
    machine: MachineN
    time_us: IntN
    place: IntN
    policy: AlertPolicy

    @classmethod
    def of(cls, machine_N: MachineN, time_us_N: IntN, policy: AlertPolicy) -> Timeline:
        """Sort rows; none is left out."""
        order = np.lexsort((time_us_N, machine_N))
        return cls(order, machine_N[order], time_us_N[order], np.arange(len(order)), policy)

    def only(self, kept_H: IntN) -> Timeline:
        """The timeline of some of its rows (sorted positions): all others exceed nothing."""
        machine, time_us, place = self.machine[kept_H], self.time_us[kept_H], self.place[kept_H]
        return Timeline(np.arange(len(kept_H)), machine, time_us, place, self.policy)

    def alert_rows(self, exceeds_N: BoolN) -> BoolN:
        """Rows (sorted) that exceed and have k exceedances in their window, themselves included.

        >>> policy = AlertPolicy(2, 3, 10, 5)
        >>> line = Timeline.of(np.zeros(5, np.int32), np.array([0, 1, 2, 50, 51]), policy)
        >>> line.alert_rows(np.array([1, 0, 1, 1, 0], bool)).tolist()
        [False, False, True, False, False]
        """
        index = np.flatnonzero(exceeds_N[self.order])
        alerts = np.zeros(len(self.order), bool)
        enough = enough_of_last(self.place[index], self.machine[index], self.time_us[index], self.policy)
        alerts[index[enough]] = True
        return alerts

    def episodes(self, alert_rows_N: BoolN) -> Episodes:
        """Alert rows (sorted) of one machine closer than the gap, as episodes."""
        index = np.flatnonzero(alert_rows_N)
        first, stop = chains(self.machine[index], self.time_us[index], self.policy.gap_us)
        return Episodes(index[first], index[stop - 1], self)


def chains(machine_A: MachineN, time_us_A: IntN, gap_us: int) -> tuple[IntN, IntN]:
    """First and past-the-last position of each run of one machine's rows no more than the gap apart."""
    new = np.ones(len(machine_A), bool)
    new[1:] = (machine_A[1:] != machine_A[:-1]) | (np.diff(time_us_A) > gap_us)
    first = np.flatnonzero(new)
    return first, np.r_[first, len(machine_A)][1:]


@dataclass(frozen=True)
class Episodes:
    """Alert episodes: first and last row (positions in the sorted timeline)."""

    first: IntN
    last: IntN
    line: Timeline

    def __len__(self) -> int:
        return len(self.first)

    @property
    def machine(self) -> MachineN:
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


def typical_interval_us(machine_N: MachineN, time_us_N: IntN) -> int:
    """Median time between neighbouring rows of one machine (60 s where there are none)."""
    order = np.lexsort((time_us_N, machine_N))
    same = machine_N[order][1:] == machine_N[order][:-1]
    steps = np.diff(time_us_N[order])[same]
    steps = steps[steps > 0]
    return int(np.median(steps)) if len(steps) else 60 * 1_000_000
