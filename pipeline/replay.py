"""Rows kept for a replay of alerts: those that exceed the loosest limit asked for, with their places among all rows.

Whether k of a machine's last n rows exceed is a matter of those places and of times alone: months of a score log fit in
memory, and give row for row what all rows would (`Timeline`).

Shape legend: N rows, E rows that exceed, M machines, K failures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline.alerts import MINUTE, AlertPolicy, Episodes, Timeline
from pipeline.errors import ContractError
from pipeline.judging.judged import FAULTY, Event, JudgedRows
from pipeline.judging.outcomes import forgiven_rows
from pipeline.moments import iso
from pipeline.schema import MICROSECONDS_PER_DAY, BoolN, FloatN, IntN

NEVER = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Recording:
    """Rows of machines as a replay needs them; of those that exceed (E) machine, place, time and level.

    Attributes:
        machine_E: codes into `machines`; rows are sorted by machine, then place.
        position_E: place among all rows of the machine, in the order of time, from 0.
        time_us_E: microseconds since 1970 UTC.
        level_E: a score, or a tail probability with its sign turned: higher is more anomalous.
        machines: names.
        rows_M: all rows of each machine.
        events: failures.
        places_K3: rows of its machine before each failure's grace, start, and first moment after its end.
        interval_us: typical time between rows of a machine.
        machine_dates: pairs of a machine and a day (UTC) with rows.
        healthy_rows: where an alert can be false; None where no log says.
        calendar: False where dates are synthetic.
    """

    machine_E: npt.NDArray[np.int32]
    position_E: IntN
    time_us_E: IntN
    level_E: FloatN
    machines: Sequence[str]
    rows_M: IntN
    events: Sequence[Event]
    places_K3: IntN
    interval_us: int
    machine_dates: int
    healthy_rows: int | None
    calendar: bool = True

    @classmethod
    def of_rows(
        cls,
        rows: JudgedRows,
        detector: str,
        lowest: float,
        events: Sequence[Event],
        machines: Sequence[str],
        calendar: bool = True,
    ) -> Recording:
        """Judged rows of one detector that are all there, of which those above `lowest` are kept."""
        recorder = Recorder(lowest, events)
        recorder.add(rows.machine, rows.time_us, rows.scores[detector], rows.label)
        return recorder.finish(machines, calendar)

    @property
    def rows(self) -> int:
        """All rows."""
        return int(self.rows_M.sum())

    @property
    def machine_count(self) -> int:
        """Machines with rows."""
        return int((self.rows_M > 0).sum())

    @property
    def machine_days(self) -> float:
        """Observed time: rows times the interval between them, in days."""
        return self.rows * self.interval_us / MICROSECONDS_PER_DAY

    @property
    def healthy_days(self) -> float:
        """Observed time in which an alert can be false; 0 where no log says."""
        return (self.healthy_rows or 0) * self.interval_us / MICROSECONDS_PER_DAY

    def line(self, policy: AlertPolicy) -> Timeline:
        """The rows under a policy."""
        return Timeline(np.arange(len(self.machine_E)), self.machine_E, self.time_us_E, self.position_E, policy)

    def judging(self, chosen_K: BoolN) -> Recording:
        """The same with some of the failures only."""
        events = [event for event, chosen in zip(self.events, chosen_K.tolist(), strict=True) if chosen]
        return replace(self, events=events, places_K3=self.places_K3[chosen_K])

    def caught_by_chance(self, episodes: Episodes, shifts: int, seed: int) -> float | None:
        """Mean number of failures caught when each machine's alerts are shifted in a circle; as `judge` counts it."""
        if not self.events:
            return None
        rng, total = np.random.default_rng(seed), 0.0
        for event, (before, first, last) in zip(self.events, self.places_K3.tolist(), strict=True):
            length = int(self.rows_M[event.machine])
            mine = episodes.machine == event.machine
            opened = self.position_E[episodes.first[mine]]
            lasts = self.position_E[episodes.last[mine]] - opened
            if not length or not len(opened):
                continue
            moved = (opened[None, :] + rng.integers(0, length, size=(shifts, 1))) % length
            standing = (moved >= before) & (moved < first) & (moved + lasts[None, :] >= first)
            total += float((((moved >= first) & (moved < last)) | standing).any(1).mean())
        return round(total, 3)


class Recorder:
    """Gathers a recording from rows that come day by day.

    Args:
        lowest: rows above this level are kept.
        events: failures to be judged; their machines are codes as in the rows.
        log: whether labels say where an alert can be false.
    """

    def __init__(self, lowest: float, events: Sequence[Event], log: bool = True) -> None:
        self._lowest, self._events, self._log = lowest, events, log
        self._rows_M, self._last_M = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._places_K3 = np.zeros((len(events), 3), np.int64)
        self._kept: list[tuple[npt.NDArray[np.int32], IntN, IntN, FloatN]] = []
        self._steps: list[tuple[float, int]] = []
        self._healthy = self._dates = 0

    def add(
        self, machine_N: npt.NDArray[np.int32], time_us_N: IntN, level_N: FloatN, label_N: npt.NDArray[np.int8]
    ) -> None:
        """Rows in any order, none of them earlier than a row of its machine that came before.

        Rows without a score (NaN) count for nothing, as in the policy.

        Raises:
            ContractError: a machine's rows begin before its rows that came before: its clock stepped back.
        """
        told = np.flatnonzero(~np.isnan(level_N))
        if not len(told):
            return
        machine_N, time_us_N = machine_N[told], time_us_N[told]
        level_N, label_N = level_N[told], label_N[told]
        order = np.lexsort((time_us_N, machine_N))
        machine, time_us, level = machine_N[order], time_us_N[order], level_N[order]
        self._grow(int(machine[-1]) + 1)
        starts = np.flatnonzero(np.r_[True, machine[1:] != machine[:-1]])
        count = np.diff(np.r_[starts, len(machine)])
        own, previous = machine[starts], self._last_M[machine[starts]]
        if (time_us[starts] < previous).any():
            at = int(np.argmax(time_us[starts] < previous))
            got = f"a row of {iso(int(time_us[starts][at]))} after one of {iso(int(previous[at]))}"
            raise ContractError.of("rows", got=got, expected="days in their order", where="the replay")
        position = np.arange(len(machine)) - np.repeat(starts, count) + self._rows_M[machine]
        seen = previous > NEVER
        steps = np.r_[np.diff(time_us)[machine[1:] == machine[:-1]], (time_us[starts] - previous)[seen]]
        steps = steps[steps > 0]
        if len(steps):
            self._steps.append((float(np.median(steps)), len(steps)))
        date = time_us // MICROSECONDS_PER_DAY
        new = np.r_[True, (machine[1:] != machine[:-1]) | (date[1:] != date[:-1])]
        self._dates += int(new.sum()) - int((date[starts][seen] == previous[seen] // MICROSECONDS_PER_DAY).sum())
        self._judge(JudgedRows(machine, time_us, label_N[order], {}))
        above = np.flatnonzero(level > self._lowest)
        self._kept.append((machine[above], position[above], time_us[above], level[above]))
        self._rows_M[own] += count
        self._last_M[own] = time_us[starts + count - 1]

    def _grow(self, machines: int) -> None:
        more = machines - len(self._rows_M)
        if more > 0:
            self._rows_M = np.r_[self._rows_M, np.zeros(more, np.int64)]
            self._last_M = np.r_[self._last_M, np.full(more, NEVER)]

    def _judge(self, rows: JudgedRows) -> None:
        """Count where an alert can be false, and the rows before the moments of each failure."""
        if self._log:
            self._healthy += int(((rows.label != FAULTY) & ~forgiven_rows(rows, self._events)).sum())
        for index, event in enumerate(self._events):
            low, high = np.searchsorted(rows.machine, [event.machine, event.machine + 1])
            moments = [event.grace_us, event.start_us, event.end_us + 1]
            self._places_K3[index] += np.searchsorted(rows.time_us[low:high], moments)

    def finish(self, machines: Sequence[str], calendar: bool = True) -> Recording:
        """The recording of all rows that came.

        Args:
            machines: names of the codes.
            calendar: False where dates are synthetic.

        Raises:
            ContractError: no row came.
        """
        if not self._rows_M.sum():
            raise ContractError.of("rows", got="none", expected="scored rows", where="the replay")
        self._grow(len(machines))
        machine, position, time_us, level = (np.concatenate(parts) for parts in zip(*self._kept, strict=True))
        order = np.lexsort((position, machine))
        return Recording(
            machine[order],
            position[order],
            time_us[order],
            level[order],
            machines,
            self._rows_M,
            self._events,
            self._places_K3,
            self._interval_us(),
            self._dates,
            self._healthy if self._log else None,
            calendar,
        )

    def _interval_us(self) -> int:
        """The median of the parts' median steps, each as often as it has steps; 60 s where there is none."""
        if not self._steps:
            return MINUTE
        medians = np.array(sorted(self._steps))
        reached = np.cumsum(medians[:, 1]) >= medians[:, 1].sum() / 2
        return int(medians[np.argmax(reached), 0])
