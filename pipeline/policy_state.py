"""The alert policy as a pure state machine: k of the last n rows open an alert, quiet closes it, silence is its own.

`advance` is one call over all rows in evaluation, one call per batch in service, and the same alerts.

The policy, for each machine, over its rows that have a score, in the order of their times:

- A row is an alert row of a tier if it exceeds the tier and k rows of the last n, none older than the window, do.
- An alert opens at a low alert row. It escalates at its first page alert row, goes on with every further low alert row
  no more than the quiet gap after the one before, and closes at its last one once the gap has passed without another.
- Until the cool-down has passed since an alert closed, low alert rows open none, unless that alert was never a page and
  this row is a page alert row: a crew must hear of that. What goes on beyond the cool-down opens at its first low alert
  row there. Rows that open nothing belong to no alert and do not lengthen the cool-down.
- A machine without a usable row for longer than `no_data_us`, time logged off not counted, has a no-data alert. It
  opens when that time is over and closes at the next usable row.

Shape legend: N rows, M machines, R carried rows, A alert rows, C chains or alerts, K intervals.
All times are microseconds since 1970; -1 stands for none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.alerts import AlertPolicy, Episodes, MachineN, Timeline, chains, enough_of_last
from pipeline.errors import ContractError
from pipeline.log_status import Intervals
from pipeline.schema import MICROSECONDS_PER_DAY, BoolN, FloatN, IntN

NONE = -1
# what is remembered of a machine up to its last settled row: the open alert, how the last one closed, when it was heard
MEMORY = np.dtype(
    [
        ("opened", np.int64),
        ("paged", np.int64),
        ("last", np.int64),
        ("peak", np.int64),
        ("peak_score", np.float64),
        ("closed", np.int64),
        ("closed_paged", np.bool_),
        ("first_row", np.int64),  # usable or not
        ("newest_row", np.int64),  # usable or not
    ]
)
BLANK = (NONE, NONE, NONE, NONE, float("-inf"), NONE, False, NONE, NONE)


class Cause(IntEnum):
    """Why an alert is open; a machine has at most one open alert of each."""

    VIBRATION = 0
    NO_DATA = 1


CAUSES = tuple(cause.name.lower() for cause in Cause)


@dataclass(frozen=True)
class PolicyRows:
    """Rows (N,) as the policy sees them, in any order; what exceeds the page tier exceeds the low tier.

    `score` is the score, higher is more anomalous; only the peak looks at it. A row that is not `usable` (its score is
    null) exceeds nothing and takes no place among the last n; it only says how late it is. Rows whose time is not to be
    believed should not be here.
    """

    machine: MachineN
    time_us: IntN
    low: BoolN
    page: BoolN
    usable: BoolN
    score: FloatN

    @classmethod
    def above(cls, machine_N: MachineN, time_us_N: IntN, score_N: FloatN, low: float, page: float) -> PolicyRows:
        """Rows by their scores (NaN: null) and the thresholds of both tiers.

        >>> rows = PolicyRows.above(np.zeros(3, np.int32), np.arange(3), np.array([1.0, 5.0, np.nan]), 2.0, 9.0)
        >>> rows.low.tolist(), rows.usable.tolist()
        ([False, True, False], [True, True, False])
        """
        page_N = score_N > page
        return cls(machine_N, time_us_N, (score_N > low) | page_N, page_N, ~np.isnan(score_N), score_N)

    def __len__(self) -> int:
        return len(self.machine)

    def take(self, index: IntN) -> PolicyRows:
        """Those rows."""
        return PolicyRows(*(getattr(self, field.name)[index] for field in fields(self)))

    @classmethod
    def joined(cls, *parts: PolicyRows) -> PolicyRows:
        """One after the other."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


NO_ROWS = PolicyRows.above(np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0), 0.0, 0.0)


@dataclass(frozen=True)
class Alerts:
    """Alerts (C,), by machine, cause and time.

    `opened_us` is the first alert row, `paged_us` the first page alert row from there on, `last_us` the last low alert
    row, `closed_us` the same once it is closed. `peak_us` and `peak_score` are of the alert row with the highest score,
    the first of equal ones; `peak_row` is its place among the rows of this call, -1 if an earlier call brought it.
    A no-data alert has no peak and never pages; `last_us` is the last usable row before it (the first row of all where
    there was none) and `closed_us` the next one.

    A `final` alert is told once and never changes. The others are told by every call until they are final: rows that
    come late, and the rows still to come, can change or withdraw them.
    `late_rows` counts rows that came too late to matter: usable, and older than what is carried of their machine.
    """

    machine: MachineN
    cause: npt.NDArray[np.int8]  # as `Cause`
    opened_us: IntN
    paged_us: IntN
    last_us: IntN
    closed_us: IntN
    peak_us: IntN
    peak_score: FloatN
    peak_row: IntN
    final: BoolN
    late_rows: int = 0

    def __len__(self) -> int:
        return len(self.machine)

    def take(self, index: IntN | BoolN) -> Alerts:
        """Those alerts."""
        return replace(self, **{name: getattr(self, name)[index] for name in ALERT_COLUMNS})

    @classmethod
    def joined(cls, *parts: Alerts) -> Alerts:
        """All of them, by machine, cause and time."""
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ALERT_COLUMNS}
        every = cls(**columns, late_rows=sum(part.late_rows for part in parts))
        return every.take(np.lexsort((every.opened_us, every.cause, every.machine)))

    def page_weight(self) -> IntN:
        """How often each counts as a false page: 0 if it was none, else once, and once more per further 24 hours."""
        days = (self.last_us - self.paged_us) // MICROSECONDS_PER_DAY
        return np.asarray(np.where(self.paged_us < 0, 0, 1 + days))


ALERT_COLUMNS = tuple(field.name for field in fields(Alerts) if field.name != "late_rows")


@dataclass(frozen=True)
class PolicyState:
    """What the policy remembers between calls: little, and the same however the rows came in batches.

    Of each machine (M,) its memory up to the last settled row, and its last rows (R,), by machine and time. The newest
    n usable rows of a machine are not settled: a late row can still take its place among them, and every call decides
    them anew. The rows before them are carried too, `settled`, as far as the window of the next row reaches.
    """

    machine: MachineN
    memory: npt.NDArray[np.void]  # MEMORY
    rows: PolicyRows
    settled: BoolN

    @classmethod
    def empty(cls) -> PolicyState:
        """Before the first row."""
        return cls(np.empty(0, np.int32), np.empty(0, MEMORY), NO_ROWS, np.empty(0, bool))

    def to_json(self, machines: Sequence[str]) -> dict[str, Any]:
        """As JSON by machine, `machines` being the names of the codes; infinite scores are text."""
        told: dict[str, Any] = {}
        stops: list[int] = np.searchsorted(self.rows.machine, self.machine, side="right").tolist()
        bounds = [0, *stops]
        rows = self.rows
        columns = (rows.time_us.tolist(), rows.low.tolist(), rows.page.tolist(), rows.score.tolist())
        listed = [
            [time, low, page, _json_number(score), settled]
            for time, low, page, score, settled in zip(*columns, self.settled.tolist(), strict=True)
        ]
        for at, (code, values) in enumerate(zip(self.machine.tolist(), self.memory.tolist(), strict=True)):
            memory = dict(zip(MEMORY.names or (), values, strict=True))
            memory["peak_score"] = _json_number(memory["peak_score"])
            told[machines[code]] = memory | {"rows": listed[bounds[at] : bounds[at + 1]]}
        return told

    @classmethod
    def from_json(cls, values: Mapping[str, Any], machines: Sequence[str]) -> PolicyState:
        """The inverse of `to_json`, with the codes of `machines`, which may hold more names.

        Raises:
            ContractError: a machine that `machines` does not hold, or values of another form.
        """
        codes = {name: code for code, name in enumerate(machines)}
        unknown = sorted(set(values) - set(codes))
        if unknown:
            expected = f"one of the {len(codes)} machines"
            raise ContractError.of("machine", got=repr(unknown[0]), expected=expected, where="the state of the policy")
        listed = sorted((codes[name], told) for name, told in values.items())
        keys = MEMORY.names or ()
        try:
            memory = [
                tuple(float(told[key]) if key == "peak_score" else told[key] for key in keys) for _, told in listed
            ]
            flat = [(code, *row) for code, told in listed for row in told["rows"]]
            machine, time_us, low, page, score, settled = (
                (list(column) for column in zip(*flat, strict=True)) if flat else [[]] * 6
            )
            rows = PolicyRows(
                np.array(machine, np.int32), np.array(time_us, np.int64), np.array(low, bool), np.array(page, bool),
                np.ones(len(flat), bool), np.array(score, np.float64),
            )  # fmt: skip
            return cls(
                np.array([code for code, _ in listed], np.int32),
                np.array(memory, MEMORY),
                rows,
                np.array(settled, bool),
            )
        except (KeyError, TypeError, ValueError) as error:
            got, expected = f"values of another form ({error!r})", "what to_json wrote"
            raise ContractError.of("state of the policy", got=got, expected=expected, where="the state") from None


def advance(
    state: PolicyState | None,
    rows: PolicyRows,
    policy: AlertPolicy,
    now_us: int | None = None,
    off: Intervals | None = None,
    place_N: IntN | None = None,
) -> tuple[PolicyState, Alerts]:
    """The policy over some more rows: the state after them, and the alerts that are final or not yet so.

    The final alerts of all calls and the others of the last call are the alerts of one call over all rows, whatever the
    batches, as long as no row comes so late that it is counted in `late_rows`. A clock that steps back makes late rows.

    Args:
        state: after the rows before; None: there are none.
        rows: in any order; those of one machine that have the same time count in the order in which they come.
        policy: the alert policy. With another policy than before, carried rows keep their flags.
        now_us: the time by which quiet and silence are told; None: each machine's newest row.
        off: when machines were logged off, by machine code; it must reach back as far as a silence does.
        place_N: where each row stands among all usable rows of its machine, if rows that exceed nothing are left out;
            only without a state, without no-data alerts, and where all rows that matter are here.

    Raises:
        ContractError: times before 1970.
        ValueError: rows of the page tier that are not of the low tier.

    >>> from pipeline.alerts import MINUTE
    >>> rows = PolicyRows.above(np.zeros(4, np.int32), np.arange(4) * MINUTE, np.array([1.0, 6.0, 9.5, 5.5]), 5.0, 9.0)
    >>> state, alerts = advance(None, rows, AlertPolicy(1, 1, MINUTE, 30 * MINUTE))
    >>> (alerts.opened_us // MINUTE, alerts.paged_us // MINUTE, alerts.last_us // MINUTE, alerts.closed_us)
    (array([1]), array([2]), array([3]), array([-1]))
    >>> state, alerts = advance(state, NO_ROWS, AlertPolicy(1, 1, MINUTE, 30 * MINUTE), now_us=60 * MINUTE)
    >>> alerts.closed_us // MINUTE
    array([3])
    """
    if rows.time_us.min(initial=0) < 0:
        raise ContractError.of("times", got="some before 1970", expected="none", where="the rows of the alert policy")
    if (rows.page & ~rows.low).any():
        raise ValueError("got rows above the page tier and not above the low tier, expected none")
    heard = _Heard.of(PolicyState.empty() if state is None else state, rows, policy.n, place_N)
    clock_M = heard.memory["newest_row"] if now_us is None else np.maximum(now_us, heard.last_us(heard.stop_M))
    alert_rows, settled_A = heard.alert_rows(policy)
    settled, memory = _walk(heard.memory, alert_rows.take(settled_A), heard.last_us(heard.settle_M), policy)
    # those that are open after the settled rows are in the memory, and the second walk tells them
    settled = settled.take(settled.closed_us >= 0)
    settled = replace(settled, final=np.ones(len(settled), bool))
    others, _ = _walk(memory, alert_rows.take(~settled_A), clock_M, policy)
    alerts = Alerts.joined(settled, others, heard.silences(clock_M, policy, off))
    alerts = replace(alerts, machine=heard.codes[alerts.machine], late_rows=heard.late)
    return heard.state(memory, policy.n), alerts


def forgiven(memory: Mapping[str, Any]) -> dict[str, Any]:
    """What is remembered of one machine (see `PolicyState.to_json`) once its alerts are explained: they never were.

    The rows that were heard stay, so that silence is counted on; none of them is an alert row any more.

    >>> remembered = {"opened": 5, "closed": 3, "newest_row": 9, "rows": [[9, True, True, 4.0, False]]}
    >>> told = forgiven(remembered)
    >>> told["opened"], told["closed"], told["newest_row"], told["rows"]
    (-1, -1, 9, [[9, False, False, 4.0, False]])
    """
    blank = dict(zip(MEMORY.names or (), BLANK, strict=True))
    kept = {"first_row", "newest_row"}
    rows = [[time, False, False, score, settled] for time, _, _, score, settled in memory.get("rows", [])]
    cleared = {name: _json_number(value) if name == "peak_score" else value for name, value in blank.items()}
    return {**{name: value for name, value in cleared.items() if name not in kept},
            **{name: memory[name] for name in kept if name in memory}, "rows": rows}  # fmt: skip


def page_episodes(line: Timeline, low_N: BoolN, page_N: BoolN) -> Episodes:
    """The policy's pages over a timeline: from the row that pages to the last low alert row of the alert.

    Args:
        line: rows and policy; silence opens nothing here.
        low_N: rows, in the caller's order, that exceed the low tier.
        page_N: that exceed the page tier; they exceed the low one too, whatever `low_N` says.
    """
    page = page_N[line.order]
    rows = PolicyRows(
        line.machine, line.time_us, low_N[line.order] | page, page, np.ones(len(page), bool), page.astype(np.float64)
    )
    _, alerts = advance(None, rows, replace(line.policy, no_data_us=None), place_N=line.place)
    pages = alerts.take(alerts.paged_us >= 0)
    bounds = np.searchsorted(line.machine, np.arange(int(line.machine.max(initial=-1)) + 2))
    found = [
        [bounds[m] + np.searchsorted(line.time_us[bounds[m] : bounds[m + 1]], moment) for moment in (opened, last)]
        for m, opened, last in zip(pages.machine.tolist(), pages.paged_us.tolist(), pages.last_us.tolist(), strict=True)
    ]
    first_last = np.array(found, np.int64).reshape(-1, 2)
    return Episodes(first_last[:, 0], first_last[:, 1], line)


@dataclass(frozen=True)
class _Heard:
    """Carried and new usable rows (P,) by machine and time, and where those of each machine (M,) begin and end.

    Rows from `fresh_M` on are decided in this call, those from `settle_M` on will be decided again in the next one.
    """

    codes: MachineN
    memory: npt.NDArray[np.void]
    rows: PolicyRows
    row_P: IntN  # place among the rows of this call; -1: carried
    place_P: IntN  # among all rows
    start_M: IntN
    fresh_M: IntN
    settle_M: IntN
    stop_M: IntN
    late: int

    @classmethod
    def of(cls, state: PolicyState, rows: PolicyRows, n: int, place_N: IntN | None) -> _Heard:
        """Merge new rows with the carried ones."""
        row_N, rows = _sorted(rows)
        first, stop = _groups(rows.machine)
        codes = np.union1d(state.machine, rows.machine[first]).astype(np.int32)
        memory = np.full(len(codes), np.array(BLANK, MEMORY))
        memory[np.searchsorted(codes, state.machine)] = state.memory
        at = np.searchsorted(codes, rows.machine[first])
        known = memory["first_row"][at]
        begun = np.where(known == NONE, rows.time_us[first], np.minimum(known, rows.time_us[first]))
        memory["first_row"][at] = begun
        memory["newest_row"][at] = np.maximum(memory["newest_row"][at], rows.time_us[stop - 1])
        if not rows.usable.all():
            usable = np.flatnonzero(rows.usable)
            row_N, rows = row_N[usable], rows.take(usable)
        late, settled = 0, np.zeros(len(rows), bool)
        if len(state.rows):
            settled_us = np.full(len(codes), NONE, np.int64)
            carried = np.searchsorted(codes, state.rows.machine[state.settled])
            np.maximum.at(settled_us, carried, state.rows.time_us[state.settled])
            in_time = rows.time_us >= settled_us[np.searchsorted(codes, rows.machine)]
            late = int((~in_time).sum())
            kept = np.flatnonzero(in_time)
            order, rows = _sorted(PolicyRows.joined(state.rows, rows.take(kept)))
            row_N = np.r_[np.full(len(state.settled), NONE), row_N[kept]][order]
            settled = np.r_[state.settled, np.zeros(len(kept), bool)][order]
        start_M, stop_M = (np.searchsorted(rows.machine, codes, side) for side in ("left", "right"))
        done = np.searchsorted(codes, rows.machine[np.flatnonzero(settled)])
        fresh_M = start_M + np.bincount(done, minlength=len(codes))
        place_P = np.arange(len(rows)) if place_N is None else place_N[row_N]
        return cls(codes, memory, rows, row_N, place_P, start_M, fresh_M, np.maximum(fresh_M, stop_M - n), stop_M, late)

    def last_us(self, stop_M: IntN) -> IntN:
        """Time of each machine's last row before those positions; -1 where there is none."""
        return np.where(stop_M > self.start_M, np.r_[self.rows.time_us, NONE][stop_M - 1], NONE)

    def alert_rows(self, policy: AlertPolicy) -> tuple[_AlertRows, BoolN]:
        """Fresh low alert rows (A,), and which of them are settled now."""
        rows, found = self.rows, []
        for exceeds in (rows.low, rows.page):
            index = np.flatnonzero(exceeds)
            found.append(index[enough_of_last(self.place_P[index], rows.machine[index], rows.time_us[index], policy)])
        index = found[0]
        index = index[index >= self.fresh_M[np.searchsorted(self.codes, rows.machine[index])]]
        machine = np.searchsorted(self.codes, rows.machine[index])
        page = np.isin(index, found[1], assume_unique=True)
        alerts = _AlertRows(machine, rows.time_us[index], page, rows.score[index], self.row_P[index])
        return alerts, index < self.settle_M[machine]

    def silences(self, clock_M: IntN, policy: AlertPolicy, off: Intervals | None) -> Alerts:
        """No-data alerts; `machine` is a position among the codes."""
        if policy.no_data_us is None:
            return _no_data(*np.empty((5, 0), np.int64))
        time_us = self.rows.time_us
        index = np.flatnonzero(np.diff(time_us, prepend=time_us[:1]) > policy.no_data_us)
        machine = np.searchsorted(self.codes, self.rows.machine[index])
        inside = (index >= self.fresh_M[machine]) & (index > self.start_M[machine])
        index, machine = index[inside], machine[inside]
        begun = np.flatnonzero((self.fresh_M == self.start_M) & (self.stop_M > self.start_M))
        open_M = np.arange(len(self.codes))
        newest_M = self.last_us(self.stop_M)
        # between two usable rows; before the first usable row; after the last one, until now
        machine_C = np.r_[machine, begun, open_M]
        since_C = np.r_[
            time_us[index - 1],
            self.memory["first_row"][begun],
            np.where(newest_M < 0, self.memory["first_row"], newest_M),
        ]
        until_C = np.r_[time_us[index], time_us[self.start_M[begun]], clock_M]
        closed_C = np.where(np.arange(len(machine_C)) < len(index) + len(begun), until_C, NONE)
        final_C = np.r_[index < self.settle_M[machine], self.start_M[begun] < self.settle_M[begun], open_M < 0]
        opened_C = since_C + policy.no_data_us
        if off is not None:
            for at in np.flatnonzero((opened_C < until_C) & np.isin(self.codes[machine_C], off.machine_K)):
                mine = off.machine_K == self.codes[machine_C[at]]
                opened_C[at] += _off_before(int(since_C[at]), policy.no_data_us, off.start_K[mine], off.end_K[mine])
        silent = opened_C < until_C
        return _no_data(*(values[silent] for values in (machine_C, opened_C, since_C, closed_C, final_C)))

    def state(self, memory: npt.NDArray[np.void], n: int) -> PolicyState:
        """What the next call needs."""
        first_M = np.maximum(self.start_M, self.settle_M - max(1, n - 1))
        index = _ranges(first_M, self.stop_M)
        settled = index < np.repeat(self.settle_M, self.stop_M - first_M)
        return PolicyState(self.codes, memory, self.rows.take(index), settled)


@dataclass(frozen=True)
class _AlertRows:
    """Low alert rows (A,); `machine` is a position among the codes, `row` the place among the rows of this call."""

    machine: IntN
    time_us: IntN
    page: BoolN
    score: FloatN
    row: IntN

    def take(self, index: IntN | BoolN) -> _AlertRows:
        """Those rows."""
        return _AlertRows(*(getattr(self, field.name)[index] for field in fields(self)))


def _walk(
    memory_M: npt.NDArray[np.void], rows: _AlertRows, clock_M: IntN, policy: AlertPolicy
) -> tuple[Alerts, npt.NDArray[np.void]]:
    """Alerts of some alert rows after what is remembered, open ones included, and what is remembered after them."""
    open_M = np.flatnonzero(memory_M["opened"] >= 0)
    was = memory_M[open_M]
    # an open alert goes on from a row that stands for all of it
    stands = _AlertRows(open_M, was["last"], was["paged"] >= 0, was["peak_score"], np.full(len(open_M), NONE))
    order = np.argsort(np.r_[stands.machine, rows.machine], kind="stable")
    every = _AlertRows(*(np.r_[getattr(stands, f.name), getattr(rows, f.name)][order] for f in fields(rows)))
    goes_on = order < len(open_M)
    first, stop = chains(every.machine.astype(np.int32), every.time_us, policy.gap_us)
    page_from = _next_true(every.page)
    if policy.cool_down_us > policy.gap_us:
        first = _openings(memory_M, every, goes_on, first, stop, page_from, policy.cool_down_us)
        first, stop = first[first < stop], stop[first < stop]
    machine, last = every.machine[first], every.time_us[stop - 1]
    paged_row = np.minimum(page_from[first], stop)
    paged = np.where(paged_row < stop, np.r_[every.time_us, NONE][paged_row], NONE)
    paged = np.where(goes_on[first] & (paged_row == first), memory_M["paged"][machine], paged)
    peak = _highest(every.score, first, stop)
    alerts = Alerts(
        machine=machine.astype(np.int32),
        cause=np.full(len(first), Cause.VIBRATION, np.int8),
        opened_us=np.where(goes_on[first], memory_M["opened"][machine], every.time_us[first]),
        paged_us=paged,
        last_us=last,
        closed_us=np.where(clock_M[machine] - last > policy.gap_us, last, NONE),
        peak_us=np.where(goes_on[peak], memory_M["peak"][machine], every.time_us[peak]),
        peak_score=every.score[peak],
        peak_row=every.row[peak],
        final=np.zeros(len(first), bool),
    )
    memory_M = memory_M.copy()
    for name in ("opened", "paged", "last", "peak", "peak_score"):
        memory_M[name][open_M] = BLANK[(MEMORY.names or ()).index(name)]
    # sorted by time: where a machine has several, the last one is what remains
    closed = alerts.take(alerts.closed_us >= 0)
    memory_M["closed"][closed.machine] = closed.closed_us
    memory_M["closed_paged"][closed.machine] = closed.paged_us >= 0
    still = alerts.take(alerts.closed_us < 0)
    told = (still.opened_us, still.paged_us, still.last_us, still.peak_us, still.peak_score)
    for name, values in zip(("opened", "paged", "last", "peak", "peak_score"), told, strict=True):
        memory_M[name][still.machine] = values
    return alerts, memory_M


def _openings(
    memory_M: npt.NDArray[np.void],
    rows: _AlertRows,
    goes_on_A: BoolN,
    first_C: IntN,
    stop_C: IntN,
    page_from_A: IntN,
    cool_down_us: int,
) -> IntN:
    """Where in each chain an alert opens, by what closed before it on the same machine; the chain's stop: nowhere."""
    opens_C = first_C.copy()
    machine, closed, was_page = NONE, NONE, False
    for at, (first, stop) in enumerate(zip(first_C.tolist(), stop_C.tolist(), strict=True)):
        if rows.machine[first] != machine:
            machine = int(rows.machine[first])
            closed, was_page = int(memory_M["closed"][machine]), bool(memory_M["closed_paged"][machine])
        opens = first
        if not goes_on_A[first] and closed >= 0 and rows.time_us[first] < closed + cool_down_us:
            opens = first + int(np.searchsorted(rows.time_us[first:stop], closed + cool_down_us))
            opens = opens if was_page else min(opens, int(page_from_A[first]), stop)
            opens_C[at] = opens
        if opens < stop:
            closed, was_page = int(rows.time_us[stop - 1]), int(page_from_A[opens]) < stop
    return opens_C


def _off_before(since_us: int, on_us: int, start_K: IntN, end_K: IntN) -> int:
    """How long a machine is off in the time from `since_us` until it has been on for more than `on_us`."""
    total, reached = 0, since_us
    for start, end in sorted(zip(start_K.tolist(), end_K.tolist(), strict=True)):
        if start - since_us - total > on_us:
            break
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _no_data(machine_C: IntN, opened_C: IntN, since_C: IntN, closed_C: IntN, final_C: npt.NDArray[Any]) -> Alerts:
    none = np.full(len(machine_C), NONE, np.int64)
    cause, peak = np.full(len(none), Cause.NO_DATA, np.int8), np.full(len(none), np.nan)
    machine, final = machine_C.astype(np.int32), final_C.astype(bool)
    return Alerts(machine, cause, opened_C, none, since_C, closed_C, none, peak, none, final)


def _sorted(rows: PolicyRows) -> tuple[IntN, PolicyRows]:
    """Rows by machine and time, rows of the same time as they came, and their former places."""
    step, later = np.diff(rows.machine), np.diff(rows.time_us)
    if bool(((step > 0) | ((step == 0) & (later >= 0))).all()):
        return np.arange(len(rows)), rows
    order = np.lexsort((rows.time_us, rows.machine))
    return order, rows.take(order)


def _groups(machine_N: MachineN) -> tuple[IntN, IntN]:
    """First and past-the-last row of each machine, of rows by machine."""
    first = np.flatnonzero(np.diff(machine_N, prepend=machine_N[:1] - 1))
    return first, np.r_[first, len(machine_N)][1:]


def _ranges(first_C: IntN, stop_C: IntN) -> IntN:
    """All positions from each first to its stop, one after the other."""
    length_C = stop_C - first_C
    before_C = np.cumsum(length_C) - length_C
    return np.asarray(np.repeat(first_C - before_C, length_C) + np.arange(length_C.sum()))


def _next_true(flag_A: BoolN) -> IntN:
    """Position (A,) of the first true flag from each position on; A where there is none."""
    at = np.where(flag_A, np.arange(len(flag_A)), len(flag_A))
    return np.asarray(np.minimum.accumulate(at[::-1])[::-1])


def _highest(score_A: FloatN, first_C: IntN, stop_C: IntN) -> IntN:
    """Position (C,) of the highest score from each first to its stop, the first of equal ones."""
    position = _ranges(first_C, stop_C)
    owner = np.repeat(np.arange(len(first_C)), stop_C - first_C)
    best = position[np.lexsort((-score_A[position], owner))]
    return np.asarray(best[np.cumsum(stop_C - first_C) - (stop_C - first_C)])


def _json_number(value: float) -> float | str:
    return value if np.isfinite(value) else str(value)
