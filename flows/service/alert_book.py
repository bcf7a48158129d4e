"""The alert book: the alert policy over scored shards, in their order, with memory, alerts and notices in the database.

What the policy remembers, the alerts that change, the notices that people are due, and the shard's end are one
transaction. The rows come from the score log, so a shard that was scored anywhere is applied here.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from flows.database import POLICY_LOCK, exclusively, reading, utc_now
from flows.service.drifts import attributed, explains, open_drifts
from flows.service.ledger import ASKED_AT_ONCE, UNFINISHED, newest_arrival, newest_time
from flows.service.tables import (
    Alert,
    AlertEvent,
    EventKind,
    Notice,
    NoticeKind,
    NoticeState,
    PolicyMemory,
    Shard,
    ShardState,
    Standing,
    Upload,
    UploadState,
)
from pipeline.alert_details import described
from pipeline.log_status import Intervals
from pipeline.moments import microseconds, moment_of
from pipeline.policy_state import CAUSES, NO_ROWS, Alerts, Cause, PolicyRows, PolicyState, advance
from pipeline.release import Release
from pipeline.run_alerts import TIER_NAMES, off_intervals
from pipeline.schema import ENSEMBLE, BoolN, IntN, codes_and_names, times_us
from pipeline.sensor_clocks import EARLIEST_US
from pipeline.store import read_table

POLICY = "policy"
STALE = dt.timedelta(days=1)  # a page that is older when it is found waits for the digest


@dataclass(frozen=True)
class Applied:
    """What the policy made of a shard, or of silence: alerts that opened, and that paged."""

    opened: int
    paged: int


def apply_next(
    engine: Engine, log: Path, release_of: Callable[[str], Release], maintenance: pa.Table
) -> Applied | None:
    """Let the policy see the first shard that is not done; None where that is not scored yet, or there is none.

    Args:
        engine: of the database.
        log: the score log.
        release_of: loads a release by its id.
        maintenance: MAINTENANCE_SCHEMA: when machines were logged off.
    """
    with Session(reading(engine)) as session:
        shard = _first(session)
        if shard is None or shard.state != ShardState.SCORED:
            return None
        number, name, days = shard.id, shard.name, list(shard.days)
        believed = {each.path: microseconds(each.last_at) for each in shard.uploads if each.last_at is not None}
        identity = shard.release_id or ""
    release = release_of(identity)
    rows = LogRows.of_shard(log, name, days, release)
    newest = newest_arrival(engine)

    def apply(session: Session) -> Applied | None:
        shard = _first(session)
        if shard is None or shard.id != number or shard.state != ShardState.SCORED:
            return None  # another scorer was faster
        believed_N = rows.believed(believed)
        off = off_intervals(maintenance, {machine: code for code, machine in enumerate(rows.machines)})
        book = _Book(session, release, rows, newest)
        late = book.advance(rows.machines, rows.policy.take(np.flatnonzero(believed_N)), None, off)
        shard.state, shard.finished_at = ShardState.DONE, utc_now()
        shard.early, shard.late = int((~believed_N).sum()), late
        for upload in session.scalars(sa.select(Upload).where(Upload.shard_id == number)):
            upload.state = UploadState.SCORED
        return Applied(book.opened, book.paged)

    return exclusively(engine, POLICY_LOCK, apply)


def hear_silence(engine: Engine, release: Release, maintenance: pa.Table) -> Applied | None:
    """Let quiet and silence change what they change, up to the newest row of the fleet; not the clock on the wall.

    Only while no shard waits: a machine whose rows are not scored yet is not silent.
    """
    newest, silent = newest_time(engine), release.policy.no_data_us
    arrived = newest_arrival(engine)

    def hear(session: Session) -> Applied | None:
        if newest is None or _first(session) is not None:
            return None
        since = newest - dt.timedelta(microseconds=silent) if silent is not None else moment_of(EARLIEST_US)
        changes = sa.or_(PolicyMemory.pending.is_(True), PolicyMemory.newest_at < since)
        query = sa.select(PolicyMemory.machine_id).where(changes).order_by(PolicyMemory.machine_id)
        machines = list(session.scalars(query))
        book = _Book(session, release, LogRows.empty(release), arrived)
        for begin in range(0, len(machines), ASKED_AT_ONCE):
            some = machines[begin : begin + ASKED_AT_ONCE]
            off = off_intervals(maintenance, {machine: code for code, machine in enumerate(some)})
            book.advance(some, NO_ROWS, microseconds(newest), off)
        return Applied(book.opened, book.paged)

    return exclusively(engine, POLICY_LOCK, hear)


def _first(session: Session) -> Shard | None:
    """The first shard that is not done."""
    return session.scalar(sa.select(Shard).where(Shard.state.in_(UNFINISHED)).order_by(Shard.id).limit(1))


@dataclass(frozen=True)
class LogRows:
    """A shard's rows of the score log as the policy sees them, and where each stands."""

    machines: list[str]
    policy: PolicyRows
    table: pa.Table  # file, row, top bins and the tails of the detectors

    @cached_property
    def low(self) -> IntN:
        """Places of the rows above the low tier."""
        return np.flatnonzero(self.policy.low)

    @classmethod
    def of_shard(cls, log: Path, name: str, days: Sequence[str], release: Release) -> LogRows:
        """Read from the shard's files.

        Raises:
            ContractError: a file is gone or damaged.
        """
        columns = ["file", "row", "machine_id", "timestamp", "tier", "top_bins", *_tails(release)]
        parts = [read_table(log / day / f"{name}.parquet", columns) for day in days]
        if not parts:
            return cls.empty(release)
        table = pa.concat_tables(parts).unify_dictionaries()
        machine_N, machines = codes_and_names(table["machine_id"])
        tier_N, names = codes_and_names(table["tier"])
        level_N = np.array([TIER_NAMES.index(tier) for tier in names], np.int8)[tier_N]
        tail_N = table[f"tail_{release.detector}"].to_numpy().astype(np.float64)
        low_N, page_N = (level_N >= TIER_NAMES.index(tier) for tier in ("low", "page"))
        rows = PolicyRows(machine_N, times_us(table["timestamp"]), low_N, page_N, ~np.isnan(tail_N), -np.log10(tail_N))
        return cls(machines, rows, table.drop_columns(["machine_id", "timestamp", "tier"]))

    def believed(self, until_us: Mapping[str, int]) -> BoolN:
        """Which rows the policy sees: those up to a time of their file, and not of a clock that has lost its time."""
        file_N, names = codes_and_names(self.table["file"])
        until_N = np.array([until_us.get(name, EARLIEST_US) for name in names], np.int64)[file_N]
        return np.asarray((self.policy.time_us <= until_N) & (self.policy.time_us > EARLIEST_US))

    @classmethod
    def empty(cls, release: Release) -> LogRows:
        """No rows."""
        names = ["file", "row", "top_bins", *_tails(release)]
        return cls([], NO_ROWS, pa.table({name: pa.array([], pa.string()) for name in names}))

    def find(self, machine: str, moment_us: int) -> dict[str, Any] | None:
        """What the log says of the oddest low row of a machine at a moment; None where the shard has none."""
        if machine not in self.machines:
            return None
        low, policy = self.low, self.policy
        code = self.machines.index(machine)
        here = low[(policy.time_us[low] == moment_us) & (policy.machine[low] == code)]
        if not len(here):
            return None
        line: dict[str, Any] = self.table.slice(int(here[np.argmax(policy.score[here])]), 1).to_pylist()[0]
        return line


def _tails(release: Release) -> list[str]:
    """Columns of the detectors that an alert names, the release's own first."""
    members = [name for name in release.manifest["members"] if name != release.detector]
    return [f"tail_{name}" for name in (release.detector, *members) if name == ENSEMBLE or name in release.detectors]


class _Book:
    """Alerts and memories in one transaction."""

    def __init__(self, session: Session, release: Release, rows: LogRows, newest: dt.datetime | None) -> None:
        self.session, self.release, self.rows, self.newest = session, release, rows, newest
        self.moment = utc_now()
        self.drifts = open_drifts(session)
        self.opened = self.paged = 0

    def advance(self, machines: Sequence[str], rows: PolicyRows, now_us: int | None, off: Intervals | None) -> int:
        """The policy over more rows of these machines (codes into `machines`); the number of rows too late for it."""
        memories = self._memories(machines)
        state = PolicyState.from_json({name: memory.memory for name, memory in memories.items()}, machines)
        state, alerts = advance(state, rows, self.release.policy, now_us, off)
        self._enter(alerts, machines)
        waiting = set(alerts.machine[~alerts.final].tolist())
        newest = dict(zip(state.machine.tolist(), state.memory["newest_row"].tolist(), strict=True))
        codes = {name: code for code, name in enumerate(machines)}
        for name, memory in state.to_json(machines).items():
            code = codes[name]
            row = memories.get(name)
            if row is None:
                row = PolicyMemory(machine_id=name)
                self.session.add(row)
            row.newest_at, row.pending, row.memory = moment_of(newest[code]), code in waiting, memory
        return alerts.late_rows

    def _memories(self, machines: Sequence[str]) -> dict[str, PolicyMemory]:
        query = sa.select(PolicyMemory)
        return {row.machine_id: row for row in self._of_machines(query, PolicyMemory.machine_id, machines)}

    def _of_machines(self, query: Any, column: Any, machines: Sequence[str]) -> Iterator[Any]:
        for begin in range(0, len(machines), ASKED_AT_ONCE):
            yield from self.session.scalars(query.where(column.in_(machines[begin : begin + ASKED_AT_ONCE])))

    def _enter(self, alerts: Alerts, machines: Sequence[str]) -> None:
        """Match what the policy tells now with what stands in the book, machine by machine and cause by cause."""
        query = sa.select(Alert).where(Alert.final.is_(False)).order_by(Alert.opened_at)
        known = defaultdict[tuple[str, str], list[Alert]](list)
        for alert in self._of_machines(query, Alert.machine_id, machines):
            known[alert.machine_id, alert.cause].append(alert)
        told = defaultdict[tuple[str, str], list[int]](list)
        for at, (code, cause) in enumerate(zip(alerts.machine.tolist(), alerts.cause.tolist(), strict=True)):
            told[machines[code], CAUSES[cause]].append(at)
        for key in sorted(known.keys() | told.keys()):
            self._enter_one(key, known[key], told[key], alerts, machines)

    def _enter_one(
        self, key: tuple[str, str], known: list[Alert], told: list[int], alerts: Alerts, machines: Sequence[str]
    ) -> None:
        left = list(known)
        for at in told:
            opened, last = int(alerts.opened_us[at]), int(alerts.last_us[at])
            same = [each for each in left if microseconds(each.opened_at) == opened]
            meets = [
                each for each in left if microseconds(each.opened_at) <= last and opened <= microseconds(each.last_at)
            ]
            alert = next(iter(same or meets), None)
            if alert is None:
                alert = Alert(machine_id=key[0], cause=key[1], standing=Standing.OPEN, final=False, details={})
                alert.opened_at = moment_of(opened)
                self.session.add(alert)
                self._event(alert, EventKind.OPENED, opened)
                self.opened += 1
                drift = self.drifts.get(alert.machine_id)
                if drift is not None and alert.cause == "vibration" and explains(drift, alert.opened_at):
                    alert.drift_id = drift.id
                    alert.events.append(attributed(drift, self.moment))
            else:
                left.remove(alert)
            self._update(alert, alerts.take(np.array([at])), machines)
        for alert in left:
            alert.standing, alert.final = Standing.WITHDRAWN, True
            self._event(alert, EventKind.WITHDRAWN, None, "rows that came late show that there was none")

    def _update(self, alert: Alert, told: Alerts, machines: Sequence[str]) -> None:
        """Bring an alert to what the policy tells of it."""
        opened, paged, last, closed, peak = (
            None if value < 0 else int(value)
            for value in (told.opened_us[0], told.paged_us[0], told.last_us[0], told.closed_us[0], told.peak_us[0])
        )
        score = float(told.peak_score[0])
        rarity = None if peak is None or not np.isfinite(score) else score
        before = (alert.paged_at, alert.closed_at, alert.peak_at)
        alert.opened_at, alert.last_at = _moment(opened) or alert.opened_at, _moment(last) or alert.opened_at
        alert.paged_at, alert.closed_at, alert.peak_at = _moment(paged), _moment(closed), _moment(peak)
        alert.peak_rarity, alert.final, alert.release_id = rarity, bool(told.final[0]), self.release.id
        alert.standing = Standing.OPEN if closed is None else Standing.CLOSED
        self._describe(alert, told, machines, peak_is_new=alert.peak_at != before[2])
        if paged is not None and before[0] is None:
            self._event(alert, EventKind.ESCALATED, paged)
            self.paged += alert.drift_id is None
        if closed is not None and before[1] is None:
            self._event(alert, EventKind.CLOSED, closed)
        elif closed is None and before[1] is not None:
            self._event(alert, EventKind.REOPENED, last)
        self._notify(alert)

    def _describe(self, alert: Alert, told: Alerts, machines: Sequence[str], *, peak_is_new: bool) -> None:
        """The details: those that the shard's log tells, else those that stood there."""
        before: Mapping[str, Any] = alert.details or {}
        machine, vibration = alert.machine_id, int(told.cause[0]) == Cause.VIBRATION
        first = self.rows.find(machine, int(told.opened_us[0])) if vibration else None
        peak = self.rows.find(machine, int(told.peak_us[0])) if vibration and peak_is_new else None
        first_row = None if first is None else {"file": first["file"], "row": first["row"]}
        found = None
        if peak is not None:
            tails = {name.removeprefix("tail_"): peak[name] for name in _tails(self.release)}
            found = {"file": peak["file"], "row": peak["row"], "tail": tails, "top_bins": peak["top_bins"] or []}
        details = described(told, machines, self.release.fleet, [first_row], [found], self.release.page_rate)[0]
        if first_row is None:
            details["first_row"] = before.get("first_row")
        if found is None and before:
            details |= {name: before[name] for name in ("peak", "agreed", "top_bins")}
        if details != before:
            alert.details = details

    def _notify(self, alert: Alert) -> None:
        """Due to people: a page at once, all else with the digest; never twice the same."""
        stale = self.newest is not None and self.newest - alert.last_at > STALE
        pages = alert.paged_at is not None and alert.drift_id is None
        kind = NoticeKind.PAGE if pages and not stale else NoticeKind.DIGEST
        if all(notice.kind not in (kind, NoticeKind.PAGE) for notice in alert.notices):
            alert.notices.append(Notice(kind=kind, state=NoticeState.PENDING, due_at=self.moment))

    def _event(self, alert: Alert, kind: EventKind, of_us: int | None, note: str = "") -> None:
        alert.events.append(AlertEvent(kind=kind, at=self.moment, of=_moment(of_us), who=POLICY, note=note))


def _moment(moment_us: int | None) -> dt.datetime | None:
    return None if moment_us is None else moment_of(moment_us)
