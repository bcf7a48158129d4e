"""Wishes for new releases, in the order in which they came: none is lost, none is worked on twice, one at a time.

A wish waits for rows after its change, while another runs, for the pause after one that ended, and for the next day
where the day has had its share; one that comes while another waits is merged into it. Whoever works on one holds a
lease: a run that gives no sign of life loses it, and the next run goes on from what stands in its workspace.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from flows.database import RETRAIN_LOCK, exclusive, reading, utc_now
from flows.service.ledger import newest_row
from flows.service.tables import AT_WORK, MONITOR, Retraining, RetrainingState
from pipeline.params import RetrainParams

MOST_ERROR = 2000  # characters
MOST_WHY = 2000  # characters of a wish; those that were merged into it keep their own reasons
AND_MORE = "; and more"
ENDED = (
    RetrainingState.PROMOTED,
    RetrainingState.REFUSED,
    RetrainingState.SHADOW,
    RetrainingState.FAILED,
    RetrainingState.CANCELLED,
)


@dataclass(frozen=True)
class Wish:
    """Why a new release is wanted, and since when which machines are another (None: all, or nothing changed)."""

    who: str
    why: str
    drift_id: int | None = None
    changed_at: dt.datetime | None = None
    machines: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Waits:
    """Nothing may begin now: why, and from when on, where that is known."""

    why: str
    until: dt.datetime | None = None


def ask(engine: Engine, wish: Wish) -> Retraining:
    """Enter a wish; where another waits, it is merged into that one, which is returned."""
    with exclusive(engine, RETRAIN_LOCK) as session:
        waiting = _first_waiting(session)
        mine = Retraining(
            asked_at=utc_now(), who=wish.who, why=wish.why[:MOST_WHY], drift_id=wish.drift_id,
            changed_at=wish.changed_at, machines=None if wish.machines is None else sorted(wish.machines),
            state=RetrainingState.WAITING if waiting is None else RetrainingState.MERGED, attempts=0,
        )  # fmt: skip
        session.add(mine)
        if waiting is None:
            session.flush()
            return mine
        mine.merged_into = waiting.id
        _merge(waiting, mine)
        return waiting


def _first_waiting(session: Session) -> Retraining | None:
    """The wish that has waited longest."""
    waiting = sa.select(Retraining).where(Retraining.state == RetrainingState.WAITING)
    return session.scalar(waiting.order_by(Retraining.id).limit(1))


def _merge(waiting: Retraining, more: Retraining) -> None:
    """The later change counts: rows before it are not the plant that is to be learnt."""
    if more.why not in waiting.why:
        waiting.why = joined(waiting.why, more.why)
    waiting.drift_id = more.drift_id if waiting.drift_id is None else waiting.drift_id
    if more.changed_at is None:
        return
    if waiting.changed_at is None:
        waiting.changed_at, waiting.machines = more.changed_at, more.machines
        return
    waiting.changed_at = max(waiting.changed_at, more.changed_at)
    every = waiting.machines is None or more.machines is None
    waiting.machines = None if every else sorted({*(waiting.machines or ()), *(more.machines or ())})


def joined(why: str, more: str) -> str:
    """Two reasons in one line, which says so where it would get too long.

    >>> joined("new spindles", "drift 2")
    'new spindles; drift 2'
    >>> joined(joined("new spindles", "x" * 3000), "drift 2")
    'new spindles; and more'
    """
    if why.endswith(AND_MORE):
        return why
    both = f"{why}; {more}"
    return both if len(both) <= MOST_WHY else why[: MOST_WHY - len(AND_MORE)] + AND_MORE


def of_drift(session: Session, drift_id: int, states: Sequence[RetrainingState]) -> list[Retraining]:
    """Wishes in some states that a drift asked for, by itself or merged into another."""
    asked = session.scalars(sa.select(Retraining).where(Retraining.drift_id == drift_id)).all()
    ids = {each.id for each in asked} | {each.merged_into for each in asked if each.merged_into is not None}
    return list(session.scalars(sa.select(Retraining).where(Retraining.id.in_(ids), Retraining.state.in_(states))))


def is_at_work(engine: Engine, drift_id: int) -> bool:
    """Whether a wish of a drift waits, runs, or has a challenger in shadow."""
    with Session(reading(engine)) as session:
        return bool(of_drift(session, drift_id, AT_WORK))


def widen(engine: Engine, drift_id: int, machines: Sequence[str] | None) -> None:
    """A drift has other machines by now: a wish of it that has not begun goes with it (None: all machines)."""
    with exclusive(engine, RETRAIN_LOCK) as session:
        for wish in of_drift(session, drift_id, [RetrainingState.WAITING]):
            merged = session.scalar(sa.select(Retraining.id).where(Retraining.merged_into == wish.id).limit(1))
            if machines is None:
                wish.machines = None
            elif merged is None:
                wish.machines = sorted(machines)
            elif wish.machines is not None:
                wish.machines = sorted({*wish.machines, *machines})


def claim(engine: Engine, params: RetrainParams, owner: str, flow_run: str = "") -> Retraining | Waits:
    """Take the wish that is next, or say why none may begin.

    One that was cut off comes first, while it has attempts left.
    """
    moment = utc_now()
    with exclusive(engine, RETRAIN_LOCK) as session:
        for running in session.scalars(sa.select(Retraining).where(Retraining.state == RetrainingState.RUNNING)):
            if running.lease_until is not None and running.lease_until > moment:
                return Waits(f"retraining {running.id} is at work", running.lease_until)
            if running.attempts < params.attempts:
                return _take(running, params, owner, flow_run, moment)
            running.state, running.finished_at, running.owner, running.lease_until = (
                RetrainingState.FAILED, moment, None, None,
            )  # fmt: skip
            running.error = (
                f"{running.attempts} runs were cut off while they worked on it; {running.error or ''}".strip("; ")
            )
        waiting = _first_waiting(session)
        if waiting is None:
            return Waits("nothing is asked for")
        pause = _pause(session, waiting, params, moment)
        return pause if pause is not None else _take(waiting, params, owner, flow_run, moment)


def _take(retraining: Retraining, params: RetrainParams, owner: str, flow_run: str, moment: dt.datetime) -> Retraining:
    retraining.state, retraining.owner, retraining.flow_run = RetrainingState.RUNNING, owner, flow_run
    retraining.lease_until = moment + dt.timedelta(minutes=params.lease_minutes)
    retraining.attempts += 1
    retraining.begun_at = retraining.begun_at or moment
    return retraining


def _pause(session: Session, waiting: Retraining, params: RetrainParams, moment: dt.datetime) -> Waits | None:
    """Rows since the change, the pause after the last one, a day's share; a second try does not wait.

    Nor does a person for pause and share, also where the wish was merged with one of the monitor.
    """
    if waiting.begun_at is not None:
        return None
    young = None if waiting.drift_id is None else _too_young(session, waiting, params)
    if young is not None:
        return young
    asked = sa.or_(Retraining.id == waiting.id, Retraining.merged_into == waiting.id)
    if session.scalar(sa.select(Retraining.id).where(asked, Retraining.who != MONITOR).limit(1)) is not None:
        return None
    cool_down = dt.timedelta(hours=params.cool_down_hours)
    begun_ones = (Retraining.state.in_(ENDED), Retraining.begun_at.is_not(None))
    last = session.scalar(sa.select(sa.func.max(Retraining.finished_at)).where(*begun_ones))
    if last is not None and last + cool_down > moment:
        return Waits(f"the last one ended {last:%Y-%m-%d %H:%M}", last + cool_down)
    day = dt.timedelta(days=1)
    begun = session.scalars(
        sa.select(Retraining.begun_at).where(Retraining.begun_at > moment - day).order_by(Retraining.begun_at)
    ).all()
    if len(begun) >= params.most_per_day and begun[-params.most_per_day] is not None:
        oldest = begun[-params.most_per_day]
        return Waits(f"{len(begun)} were begun within a day", None if oldest is None else oldest + day)
    return None


def _too_young(session: Session, waiting: Retraining, params: RetrainParams) -> Waits | None:
    """A change of which there are too few rows to describe, train, calibrate and judge; in the time of the data."""
    if waiting.changed_at is None:
        return None
    newest = newest_row(session)
    needed = waiting.changed_at + dt.timedelta(hours=params.hours_after_change)
    if newest is not None and newest < needed:
        since = max(0.0, (newest - waiting.changed_at).total_seconds() / 3600)
        return Waits(f"there are rows of {since:.1f} h since the change, {params.hours_after_change:g} are wanted")
    return None


def renew(engine: Engine, retraining_id: int, params: RetrainParams, owner: str) -> bool:
    """A sign of life; whether the owner still holds it."""
    until = utc_now() + dt.timedelta(minutes=params.lease_minutes)
    mine = (Retraining.id == retraining_id, Retraining.owner == owner, Retraining.state == RetrainingState.RUNNING)
    with Session(engine) as session, session.begin():
        kept = session.scalar(sa.select(Retraining.id).where(*mine)) is not None
        session.execute(sa.update(Retraining).where(*mine).values(lease_until=until))
        return kept


def end(
    engine: Engine,
    retraining_id: int,
    owner: str,
    state: RetrainingState,
    *,
    champion: str | None = None,
    challenger: str | None = None,
    error: str | None = None,
) -> bool:
    """Write what became of one that is held; false where another holds it by now, or a person has ended it."""
    with Session(engine) as session, session.begin():
        found = session.get(Retraining, retraining_id, with_for_update=True)
        if found is None or found.owner != owner or found.state is not RetrainingState.RUNNING:
            return False
        found.state, found.owner, found.lease_until, found.finished_at = state, None, None, utc_now()
        found.champion_id, found.challenger_id = champion or found.champion_id, challenger or found.challenger_id
        found.error = None if error is None else error[:MOST_ERROR]
        return True


def try_again(engine: Engine, retraining_id: int, owner: str, params: RetrainParams, error: str) -> RetrainingState:
    """One that could not reach something waits to be tried again, or has failed where it was tried often enough."""
    with exclusive(engine, RETRAIN_LOCK) as session:
        found = session.get(Retraining, retraining_id)
        if found is None or found.owner != owner or found.state is not RetrainingState.RUNNING:
            return RetrainingState.FAILED if found is None else found.state
        found.owner = found.lease_until = None
        found.error = error[:MOST_ERROR]
        over = found.attempts >= params.attempts
        found.state = RetrainingState.FAILED if over else RetrainingState.WAITING
        found.finished_at = utc_now() if over else None
        return found.state


def due(engine: Engine, params: RetrainParams) -> bool:
    """Whether a run that began now would find something to do."""
    moment = utc_now()
    with Session(reading(engine)) as session:
        running = session.scalars(
            sa.select(Retraining.lease_until).where(Retraining.state == RetrainingState.RUNNING)
        ).all()
        if running:
            return all(until is None or until <= moment for until in running)
        waiting = _first_waiting(session)
        return waiting is not None and _pause(session, waiting, params, moment) is None


def list_retrainings(engine: Engine, states: Sequence[RetrainingState] = ()) -> list[Retraining]:
    """All, or those in some states, newest first."""
    query = sa.select(Retraining).order_by(Retraining.id.desc())
    if states:
        query = query.where(Retraining.state.in_(states))
    with Session(reading(engine), expire_on_commit=False) as session:
        return list(session.scalars(query))
