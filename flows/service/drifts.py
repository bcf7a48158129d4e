"""Changes of the plant: entered with what was decided, the alerts that they explain, and what becomes of those.

A drift that is open explains vibration alerts of its machines from the change on: those close, say so, and page nobody;
alerts that a person has confirmed or dismissed stay as they are. A machine that leaves even its changed peers is taken
out of the drift, and its alerts count. Once a release that knows the change is in service, the drift is settled: each
of its machines has an entry in the maintenance log, so that every later build begins a baseline epoch there, and the
alert policy begins anew for them.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from flows.database import POLICY_LOCK, RETRAIN_LOCK, exclusively, reading, take_lock, utc_now
from flows.registry import ReleaseRow, refuse
from flows.service.tables import (
    AT_WORK,
    MONITOR,
    Alert,
    AlertEvent,
    Answer,
    Drift,
    DriftState,
    EventKind,
    LogEntry,
    Notice,
    NoticeKind,
    NoticeState,
    PolicyMemory,
    Retraining,
    RetrainingState,
    Standing,
)
from pipeline.errors import ReleaseError, UserError
from pipeline.policy_state import forgiven
from pipeline.schema import Tag

POLICY = "policy"
BEFORE_CHANGE = dt.timedelta(hours=6)  # an alert that opens so shortly before it may be its first sign
SAME_CHANGE = dt.timedelta(days=2)  # two findings whose changes are no further apart are one change


@dataclass(frozen=True)
class Found:
    """What a monitoring run decided, as far as the service keeps it."""

    release_id: str
    verdict: str  # fleet | group
    machines: tuple[str, ...]
    changed_at: dt.datetime
    share: float
    figures: dict[str, Any]
    report: str | None = None
    before_window: bool = False  # it changed before `changed_at`, where the rows that were looked at begin


@dataclass(frozen=True)
class Entered:
    """A drift in the database; `new` is false where an open one was meant. `explained` alerts were closed."""

    drift: Drift
    new: bool
    explained: int


def enter_drift(engine: Engine, found: Found) -> Entered:
    """Enter a drift, or add to the open one that it continues, and close the alerts that it explains."""

    def enter(session: Session) -> Entered:
        drift = _continued(session, found)
        new = drift is None
        if drift is None:
            drift = Drift(
                found_at=utc_now(), changed_at=found.changed_at, release_id=found.release_id, verdict=found.verdict,
                machines=sorted(found.machines), share=found.share, figures=found.figures, report=found.report,
                state=DriftState.OPEN, note="",
            )  # fmt: skip
            session.add(drift)
            session.flush()
        else:
            drift.state, drift.note = DriftState.OPEN, ""  # it may have been settled by a release taken back since
            drift.machines = sorted({*drift.machines, *found.machines})
            drift.share = max(drift.share, found.share)
            drift.verdict = "fleet" if "fleet" in (drift.verdict, found.verdict) else "group"
        return Entered(drift, new, _explain(session, drift, drift.machines))

    return exclusively(engine, POLICY_LOCK, enter)


def _continued(session: Session, found: Found) -> Drift | None:
    """The drift that is found again, by a release that does not know it yet (recalibrated meanwhile, say).

    Its change lies at about the same time, or both lie before the window and most of the machines are those. It is
    open, or a release settled it that a rollback took out of service, for one older than the drift.
    """

    def same(drift: Drift) -> bool:
        if abs(drift.changed_at - found.changed_at) <= SAME_CHANGE:
            return True
        known = len(set(found.machines) & set(drift.machines))
        return found.before_window and drift.changed_at <= found.changed_at and 2 * known >= len(found.machines)

    found_before = session.scalars(sa.select(Drift).where(Drift.state == DriftState.OPEN).order_by(Drift.id)).all()
    older = sa.select(ReleaseRow.created_at).where(ReleaseRow.id == found.release_id)
    entered = sa.select(LogEntry.id).where(LogEntry.tag == Tag.FIRMWARE, LogEntry.start_at == Drift.changed_at)
    settled = (Drift.state == DriftState.SETTLED, Drift.found_at > older.scalar_subquery(), entered.exists())
    taken_back = session.scalars(sa.select(Drift).where(*settled).order_by(Drift.id.desc())).all()
    return next(filter(same, [*found_before, *taken_back]), None)


def _explain(session: Session, drift: Drift, machines: Iterable[str]) -> int:
    """Close the alerts of some machines that the drift explains; how many are newly explained.

    Where another alert of the machine still stands (a person confirmed it, or it began before the change) the policy
    goes on with all of them; else it begins anew, and what it told of the machine is final.
    """
    explained, moment = 0, utc_now()
    for machine in machines:
        mine = session.scalars(_unfinished(machine)).all()
        for alert in session.scalars(_unexplained(machine)):
            if explains(drift, alert.opened_at):
                alert.drift_id = drift.id
                alert.events.append(attributed(drift, moment))
                explained += 1
        if any(alert.drift_id is None and alert.standing is Standing.OPEN for alert in mine):
            continue
        for alert in mine:
            if alert.standing is Standing.OPEN:
                alert.standing, alert.closed_at = Standing.CLOSED, alert.last_at
                of = alert.last_at
                alert.events.append(AlertEvent(kind=EventKind.CLOSED, at=moment, of=of, who=POLICY, note="explained"))
            alert.final = True
        memory = session.get(PolicyMemory, machine)
        if memory is not None and memory.newest_at >= drift.changed_at:
            memory.memory, memory.pending = forgiven(memory.memory), False
    return explained


def explains(drift: Drift, opened_at: dt.datetime) -> bool:
    """Whether an alert of one of its machines that opened then is the change and nothing else."""
    return opened_at >= drift.changed_at - BEFORE_CHANGE


def attributed(drift: Drift, moment: dt.datetime) -> AlertEvent:
    """The line of an alert's story that says so."""
    together = f"{len(drift.machines)} machines changed together at {drift.changed_at:%Y-%m-%d %H:%M} UTC"
    note = f"drift {drift.id}: {together}"
    return AlertEvent(kind=EventKind.ATTRIBUTED, at=moment, of=drift.changed_at, who=POLICY, note=note)


def _of_machine(machine: str) -> sa.Select[tuple[Alert]]:
    return sa.select(Alert).where(
        Alert.machine_id == machine, Alert.cause == "vibration", Alert.standing != Standing.WITHDRAWN
    )


def _unfinished(machine: str) -> sa.Select[tuple[Alert]]:
    return _of_machine(machine).where(Alert.final.is_(False))


def _unexplained(machine: str) -> sa.Select[tuple[Alert]]:
    unanswered = sa.or_(Alert.answer.is_(None), Alert.answer == Answer.ACKNOWLEDGED)
    return _of_machine(machine).where(Alert.drift_id.is_(None), unanswered)


def open_drifts(session: Session) -> dict[str, Drift]:
    """The open drift of each machine that one explains."""
    found = dict[str, Drift]()
    for drift in session.scalars(sa.select(Drift).where(Drift.state == DriftState.OPEN).order_by(Drift.id)):
        found |= dict.fromkeys(drift.machines, drift)
    return found


def take_out(engine: Engine, machines: Sequence[str], why: str) -> list[str]:
    """Take machines out of the open drifts: what stands there explains their alerts no more; those that were in one."""

    def leave(session: Session) -> list[str]:
        gone = list[str]()
        for drift in session.scalars(sa.select(Drift).where(Drift.state == DriftState.OPEN)):
            leaving = sorted(set(machines) & set(drift.machines))
            if leaving:
                drift.machines = [name for name in drift.machines if name not in leaving]
                _unexplain(session, drift, leaving, why)
                gone += leaving
        return gone

    return exclusively(engine, POLICY_LOCK, leave)


def dismiss_drift(engine: Engine, drift_id: int, who: str, note: str) -> Drift:
    """A person says that the plant has not changed: its alerts count again, and those that page are told.

    Raises:
        UserError: no such drift, or one that is not open.
    """
    if not who.strip():
        raise UserError("who: got nothing, expected a person's name.")

    def dismiss(session: Session) -> Drift:
        drift = found_drift(session, drift_id)
        if drift.state is not DriftState.OPEN:
            raise UserError(f"drift {drift_id}: got one that is {drift.state}, expected one that is open.")
        drift.state, drift.note = DriftState.DISMISSED, f"{who}: {note}".rstrip(": ")
        built.extend(_withdraw(session, drift, why))
        _unexplain(session, drift, drift.machines, why)
        return drift

    built, why = list[str](), f"drift {drift_id} was dismissed by {who}"
    drift = exclusively(engine, POLICY_LOCK, dismiss)
    for challenger in built:  # not in the same transaction: promotions lock releases first, then the policy
        with suppress(ReleaseError):  # pruned
            refuse(engine, challenger, why)
    return drift


def _withdraw(session: Session, drift: Drift, why: str) -> list[str]:
    """Cancel the wishes of a drift, at work or not; the challengers built for them.

    Those of a person, and those that another wish was merged into, stay: somebody else wants that release too.
    """
    take_lock(session, RETRAIN_LOCK)
    mine = (Retraining.drift_id == drift.id, Retraining.who == MONITOR, Retraining.state.in_(AT_WORK))
    built = list[str]()
    for wish in session.scalars(sa.select(Retraining).where(*mine).with_for_update()).all():
        merged = session.scalars(sa.select(Retraining.drift_id).where(Retraining.merged_into == wish.id)).all()
        if all(each == drift.id for each in merged):
            wish.state, wish.error, wish.finished_at = RetrainingState.CANCELLED, why, utc_now()
            wish.owner = wish.lease_until = None
            built += [wish.challenger_id] if wish.challenger_id is not None else []
    return built


def let_pass(engine: Engine, drift_id: int, note: str) -> None:
    """A drift is over without a release that knows it: what it explained stays so, later alerts count again."""

    def settle(session: Session) -> None:
        drift = session.get(Drift, drift_id)
        if drift is not None and drift.state is DriftState.OPEN:
            drift.state, drift.note = DriftState.SETTLED, note

    exclusively(engine, POLICY_LOCK, settle)


def _unexplain(session: Session, drift: Drift, machines: Sequence[str], why: str) -> None:
    moment = utc_now()
    found = sa.select(Alert).where(Alert.drift_id == drift.id, Alert.machine_id.in_(machines))
    for alert in session.scalars(found):
        alert.drift_id = None
        alert.events.append(AlertEvent(kind=EventKind.REOPENED, at=moment, of=None, who=POLICY, note=why))
        told = [notice for notice in alert.notices if notice.kind is NoticeKind.PAGE]
        if alert.paged_at is not None and all(notice.state is NoticeState.UNSENT for notice in told):
            for notice in told:
                session.delete(notice)
            session.flush()
            alert.notices.append(Notice(kind=NoticeKind.PAGE, state=NoticeState.PENDING, due_at=moment))


def settle_drift(session: Session, drift: Drift, note: str) -> None:
    """A release that knows the change is in service: enter the change in the maintenance log, begin anew.

    A machine whose log has it already, as a rollback came between, gets no second entry.
    """
    moment = utc_now()
    _explain(session, drift, drift.machines)
    drift.state, drift.note = DriftState.SETTLED, note
    entered = (LogEntry.tag == Tag.FIRMWARE, LogEntry.start_at == drift.changed_at)
    known = set(session.scalars(sa.select(LogEntry.machine_id).where(*entered)))
    for machine in (name for name in drift.machines if name not in known):
        entry = LogEntry(
            machine_id=machine, start_at=drift.changed_at, end_at=drift.changed_at, tag=str(Tag.FIRMWARE),
            failure_mode="", note=f"drift {drift.id}: the {drift.verdict} changed", who=POLICY, written_at=moment,
            alert_id=None,
        )  # fmt: skip
        session.add(entry)


def known_machines(engine: Engine) -> list[str]:
    """Every machine that the alert policy has heard."""
    with Session(reading(engine)) as session:
        return list(session.scalars(sa.select(PolicyMemory.machine_id).order_by(PolicyMemory.machine_id)))


def list_drifts(engine: Engine) -> list[Drift]:
    """All drifts, newest first."""
    with Session(reading(engine), expire_on_commit=False) as session:
        return list(session.scalars(sa.select(Drift).order_by(Drift.id.desc())))


def found_drift(session: Session, drift_id: int) -> Drift:
    """A drift by its number.

    Raises:
        UserError: there is none.
    """
    drift = session.get(Drift, drift_id) if 0 < drift_id < 2**31 else None
    if drift is None:
        newest = session.scalar(sa.select(sa.func.max(Drift.id)))
        known = "there are none" if newest is None else f"the newest is {newest}"
        raise UserError(f"drift: got {drift_id}, expected the number of one ({known}): hearken drifts list.")
    return drift
