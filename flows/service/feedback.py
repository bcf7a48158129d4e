"""What people say of alerts: lists for them, their answers with the story, and baselines that begin anew.

Each answer is one transaction: the alert's `answer`, a line of its story, and what it adds to the maintenance log. The
alert's `version` keeps two people from answering over each other unseen.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, selectinload
from sqlalchemy.orm.attributes import flag_modified
from sqlalchemy.orm.exc import StaleDataError

from flows.database import RESET_LOCK, exclusive
from flows.service.tables import Alert, AlertEvent, Answer, EventKind, LogEntry, PolicyMemory, Standing
from pipeline.errors import UserError
from pipeline.findings import nearest
from pipeline.moments import iso_exact, microseconds
from pipeline.schema import Tag

TIERS = ("page", "low")
UNANSWERED = "none"
RESET_TAGS = (Tag.REPAIR, Tag.SENSOR, Tag.FIRMWARE)
NAME_LENGTH = 120  # of people and failure modes
POLICY = "policy"  # writes the lines of a story that no person writes
ATTEMPTS = 5
MOST_LISTED = 2**31 - 1  # a number that both databases hold
KIND_OF = {
    Answer.ACKNOWLEDGED: EventKind.ACKNOWLEDGED,
    Answer.CONFIRMED: EventKind.CONFIRMED,
    Answer.DISMISSED: EventKind.DISMISSED,
    None: EventKind.REOPENED,
}


@dataclass(frozen=True)
class Wanted:
    """Which alerts a person wants to see; None: any."""

    standing: Standing | None = None  # None: open and closed; withdrawn ones only where they are asked for
    answer: Answer | str | None = None  # UNANSWERED: those without one
    tier: str | None = None  # of TIERS
    machine: str | None = None
    since: dt.datetime | None = None  # alerts that stood at this moment or later


@dataclass(frozen=True)
class Story:
    """An alert, what happened to it (oldest first), and the failure that it added to the maintenance log."""

    alert: Alert
    events: Sequence[AlertEvent]
    failure: LogEntry | None


@dataclass(frozen=True)
class Answered:
    """An alert after an answer; `changed` is false where the same was said before."""

    story: Story
    changed: bool


@dataclass(frozen=True)
class Failure:
    """What a person knows of the failure behind a confirmed alert; None: nothing."""

    at: dt.datetime | None = None  # it failed, or was stopped
    until: dt.datetime | None = None  # it ran again; None: a moment
    mode: str | None = None


NOTHING_KNOWN = Failure()


def list_alerts(engine: Engine, wanted: Wanted = Wanted(), limit: int = 50) -> tuple[list[Alert], int]:
    """The newest alerts that are wanted, newest first, and how many there are in all.

    Raises:
        UserError: an unknown tier or answer, or less than nothing asked for.
    """
    if limit < 0:
        raise UserError(f"limit: got {limit}, expected 0 or more.")
    conditions = _conditions(wanted)
    newest = (
        sa.select(Alert)
        .where(*conditions)
        .order_by(Alert.opened_at.desc(), Alert.id.desc())
        .limit(min(limit, MOST_LISTED))
    )
    with Session(engine) as session:
        total = session.scalar(sa.select(sa.func.count()).select_from(Alert).where(*conditions)) or 0
        return list(session.scalars(newest)), total


def _conditions(wanted: Wanted) -> list[sa.ColumnElement[bool]]:
    standing = Alert.standing != Standing.WITHDRAWN if wanted.standing is None else Alert.standing == wanted.standing
    found: list[sa.ColumnElement[bool]] = [standing]
    if wanted.answer == UNANSWERED:
        found.append(Alert.answer.is_(None))
    elif wanted.answer is not None and wanted.answer not in set(Answer):
        raise UserError(f"answer: got {wanted.answer!r}, expected one of {', '.join([*Answer, UNANSWERED])}.")
    elif wanted.answer is not None:
        found.append(Alert.answer == wanted.answer)
    if wanted.tier == "page":
        found.append(Alert.paged_at.is_not(None))
    elif wanted.tier == "low":
        found += [Alert.paged_at.is_(None), Alert.cause == "vibration"]
    elif wanted.tier is not None:
        raise UserError(f"tier: got {wanted.tier!r}, expected one of {', '.join(TIERS)}.")
    if wanted.machine is not None:
        found.append(Alert.machine_id == _storable("machine", wanted.machine))
    if wanted.since is not None:
        found.append(sa.or_(Alert.standing == Standing.OPEN, Alert.last_at >= wanted.since))
    return found


def alert_story(engine: Engine, alert_id: int) -> Story:
    """One alert with all that happened to it.

    Raises:
        UserError: no such alert.
    """
    with Session(engine) as session:
        return _story(session, _found(session, alert_id))


def acknowledge(
    engine: Engine,
    alert_id: int,
    *,
    who: str,
    note: str = "",
    version: int | None = None,
    now: dt.datetime | None = None,
) -> Answered:
    """Somebody has seen the alert and looks after it.

    Raises:
        UserError: see `confirm`; or the alert is confirmed or dismissed, which says more.
    """

    def refuse_less(alert: Alert) -> None:
        if alert.answer in (Answer.CONFIRMED, Answer.DISMISSED):
            expected = f"one without an answer; `hearken alerts reopen {alert.id}` takes it back"
            raise UserError(f"alert {alert.id}: got one that is {alert.answer} already, expected {expected}.")

    return _answer(engine, alert_id, Answer.ACKNOWLEDGED, who, note, version, now, check=refuse_less)


def confirm(
    engine: Engine,
    alert_id: int,
    *,
    who: str,
    note: str = "",
    failure: Failure = NOTHING_KNOWN,
    version: int | None = None,
    now: dt.datetime | None = None,
) -> Answered:
    """The alert was right: a fault was found. It becomes a failure in the maintenance log.

    Where no moment of a failure is known, the failure is entered at the alert's last row so far: the last moment at
    which the fault was heard. So the page lies before it, the horizon reaches back from it, and no row is called faulty
    that nobody heard. A moment that is given later takes its place. A no-data alert tells of a sensor, a cable or a
    switch: without a moment it adds no failure.

    Args:
        engine: of the database.
        alert_id: which.
        who: answers.
        note: for people.
        failure: what is known of it.
        version: of the alert as the person saw it; None: whatever it is now.
        now: the moment of the answer; None: the present.

    Raises:
        UserError: no such alert; somebody changed it meanwhile; a failure that is still to come or ends before it
            begins; a name that is empty or too long.
    """
    moment = _now(now)
    if failure.at is None and failure.until is not None:
        raise UserError("failure: got an end without a beginning, expected both, or the beginning alone.")
    for name, time in (("failure", failure.at), ("failure's end", failure.until)):
        _has_been(name, time, moment)
    if failure.at is not None and failure.until is not None and failure.until < failure.at:
        raise UserError("failure's end: got a time before its beginning, expected a later one.")
    if failure.mode is not None:
        _checked_text("failure mode", failure.mode, may_be_empty=True)
    return _answer(engine, alert_id, Answer.CONFIRMED, who, note, version, moment, failure=failure)


def dismiss(
    engine: Engine,
    alert_id: int,
    *,
    who: str,
    note: str = "",
    version: int | None = None,
    now: dt.datetime | None = None,
) -> Answered:
    """The alert was wrong: its rows are healthy and may train. A failure that it had added to the log is taken out.

    Raises:
        UserError: see `confirm`.
    """
    return _answer(engine, alert_id, Answer.DISMISSED, who, note, version, now)


def reopen(
    engine: Engine,
    alert_id: int,
    *,
    who: str,
    note: str = "",
    version: int | None = None,
    now: dt.datetime | None = None,
) -> Answered:
    """Take an answer back, and the failure that it added to the log; the story keeps both.

    Raises:
        UserError: see `confirm`.
    """
    return _answer(engine, alert_id, None, who, note, version, now)


def reset_baseline(
    engine: Engine,
    machine: str,
    *,
    at: dt.datetime,
    reason: Tag,
    who: str,
    note: str = "",
    since: dt.datetime | None = None,
    now: dt.datetime | None = None,
) -> tuple[LogEntry, bool]:
    """Enter a repair, a moved sensor or new firmware: a new baseline epoch of the machine begins at `at`, its end.

    Args:
        engine: of the database.
        machine: its name, letter by letter.
        at: the work was done.
        reason: repair, sensor or firmware.
        who: says so.
        note: for people.
        since: the work began; rows from here to `at` are not healthy. None: it took a moment.
        now: the moment of the answer; None: the present.

    Returns:
        The entry, and whether it is new.

    Raises:
        UserError: a machine that was never heard, another reason, or a time that is wrong.
    """
    moment = _now(now)
    who, note = _checked_text("who", who), _storable("note", note).strip()
    _check_reason(reason)
    start = at if since is None else since
    for name, time in (("at", at), ("since", since)):
        _has_been(name, time, moment)
    if start > at:
        raise UserError("since: got a time after the end of the work, expected an earlier one.")

    def enter(session: Session) -> tuple[LogEntry, bool]:
        _check_machine(session, machine)
        known = session.scalars(_resets(machine, reason).where(LogEntry.start_at == start, LogEntry.end_at == at))
        for entry in known:
            return entry, False
        entry = LogEntry(machine_id=machine, start_at=start, end_at=at, tag=str(reason), failure_mode="", note=note)
        entry.who, entry.written_at = who, moment
        session.add(entry)
        return entry, True

    with exclusive(engine, RESET_LOCK) as session:  # or two people at once would enter the same twice
        return enter(session)


def take_back_reset(engine: Engine, machine: str, *, at: dt.datetime, reason: Tag) -> LogEntry:
    """Take out an entry of `reset_baseline` that was a mistake, and return it.

    Raises:
        UserError: there is no such entry; with those that the machine has.
    """
    _check_reason(reason)
    with Session(engine, expire_on_commit=False) as session, session.begin():
        mine = session.scalars(_resets(machine, reason).order_by(LogEntry.end_at)).all()
        for entry in mine:
            if entry.end_at == at:
                session.delete(entry)
                return entry
        known = ", ".join(utc_text(entry.end_at) for entry in mine) or "it has none"
        raise UserError(f"{reason}: got {utc_text(at)}, expected an entry of {machine!r} ({known}).")


def utc_text(moment: dt.datetime) -> str:
    """A moment for people and files, UTC.

    >>> utc_text(dt.datetime(2025, 3, 1, 14, 30, tzinfo=dt.UTC))
    '2025-03-01T14:30:00Z'
    """
    return iso_exact(microseconds(moment))


# --- one answer ---


@dataclass(frozen=True)
class _Saying:
    """An answer that is about to be written; `answer` None takes back what stands."""

    answer: Answer | None
    who: str
    note: str
    at: dt.datetime
    failure: Failure = NOTHING_KNOWN


def _answer(
    engine: Engine,
    alert_id: int,
    answer: Answer | None,
    who: str,
    note: str,
    version: int | None,
    now: dt.datetime | None,
    *,
    failure: Failure = NOTHING_KNOWN,
    check: Callable[[Alert], None] | None = None,
) -> Answered:
    saying = _Saying(answer, _checked_text("who", who), _storable("note", note).strip(), _now(now), failure)
    first_seen: int | None = None
    for attempt in range(ATTEMPTS):
        try:
            with Session(engine, expire_on_commit=False) as session, session.begin():
                alert = _found(session, alert_id)
                said, entry = _last_said(alert), _failure_of(session, alert)
                if check is not None:
                    check(alert)
                if _is_known(saying, alert, said, entry):
                    return Answered(_story(session, alert), changed=False)
                # the policy may change an alert while a person answers; another person may not
                elsewhere = attempt > 0 and first_seen != (None if said is None else said.id)
                if elsewhere or (version is not None and alert.version != version):
                    raise _changed_meanwhile(alert, said, version)
                first_seen = None if said is None else said.id
                _write(session, saying, alert, entry)
                session.flush()
                return Answered(_story(session, alert), changed=True)
        except StaleDataError:
            if attempt == ATTEMPTS - 1:
                raise UserError(f"alert {alert_id}: got a change at every attempt, expected a quiet moment.") from None
    raise AssertionError("unreachable")


def _is_known(saying: _Saying, alert: Alert, said: AlertEvent | None, entry: LogEntry | None) -> bool:
    """Whether this was said before, by whomever: an answer that is sent twice is one answer."""
    standing = None if entry is None else (entry.start_at, entry.end_at, entry.failure_mode)
    new_note = saying.answer is not None and saying.note and (said is None or said.note != saying.note)
    return alert.answer == saying.answer and _failure_wanted(saying, alert, entry) == standing and not new_note


def _write(session: Session, saying: _Saying, alert: Alert, entry: LogEntry | None) -> None:
    wanted = _failure_wanted(saying, alert, entry)
    if wanted is None and entry is not None:
        session.delete(entry)
    elif wanted is not None:
        if entry is None:
            entry = LogEntry(machine_id=alert.machine_id, tag=str(Tag.FAILURE), alert_id=alert.id, note="")
            session.add(entry)
        entry.start_at, entry.end_at, entry.failure_mode = wanted
        entry.note, entry.who, entry.written_at = saying.note or entry.note, saying.who, saying.at
    alert.answer = saying.answer
    alert.judged_until = None if saying.answer is None else alert.last_at
    flag_modified(alert, "answer")  # a new version, also where only the note or the failure differs
    of = None if wanted is None else wanted[0]
    event = AlertEvent(kind=KIND_OF[saying.answer], at=saying.at, of=of, who=saying.who, note=saying.note)
    alert.events.append(event)


def _failure_wanted(
    saying: _Saying, alert: Alert, entry: LogEntry | None
) -> tuple[dt.datetime, dt.datetime, str] | None:
    """Start, end and mode of the failure that the log shall hold of an alert after an answer; None: none."""
    if saying.answer is not Answer.CONFIRMED:
        return None
    failure = saying.failure
    mode = failure.mode if failure.mode is not None else (entry.failure_mode if entry is not None else "")
    if failure.at is not None:
        return failure.at, failure.until or failure.at, mode
    if entry is not None:
        return entry.start_at, entry.end_at, mode
    return None if alert.cause == "no_data" else (alert.last_at, alert.last_at, mode)


def _changed_meanwhile(alert: Alert, said: AlertEvent | None, version: int | None) -> UserError:
    got = f"version {alert.version}" if version is not None else "another answer meanwhile"
    expected = f"version {version}, as it was seen" if version is not None else "none"
    by = f"; {said.who} {said.kind} it at {utc_text(said.at)}" if said is not None else ""
    return UserError(
        f"alert {alert.id}: got {got}{by}, expected {expected}; look again: hearken alerts show {alert.id}"
    )


# --- what stands in the database ---


def _found(session: Session, alert_id: int) -> Alert:
    # SQLite holds 64 bits, PostgreSQL's serial 32: what does not fit is no alert's number
    found = session.get(Alert, alert_id, options=[selectinload(Alert.events)]) if 0 < alert_id < 2**31 else None
    if found is None:
        newest = session.scalar(sa.select(sa.func.max(Alert.id)))
        known = "there are none" if newest is None else f"the newest is {newest}"
        raise UserError(f"alert: got {alert_id}, expected the number of one ({known}): hearken alerts list.")
    return found


def _story(session: Session, alert: Alert) -> Story:
    return Story(alert, list(alert.events), _failure_of(session, alert))


def _failure_of(session: Session, alert: Alert) -> LogEntry | None:
    return session.scalar(sa.select(LogEntry).where(LogEntry.alert_id == alert.id, LogEntry.tag == str(Tag.FAILURE)))


def _last_said(alert: Alert) -> AlertEvent | None:
    """The newest line of the story that a person wrote by answering."""
    by_people = (EventKind.ACKNOWLEDGED, EventKind.CONFIRMED, EventKind.DISMISSED, EventKind.REOPENED)
    said = [event for event in alert.events if event.kind in by_people and event.who != POLICY]
    return said[-1] if said else None


def _resets(machine: str, reason: Tag) -> sa.Select[tuple[LogEntry]]:
    mine = sa.select(LogEntry).where(LogEntry.machine_id == machine, LogEntry.alert_id.is_(None))
    return mine.where(LogEntry.tag == str(reason))


# --- what a person may say ---


def _now(given: dt.datetime | None) -> dt.datetime:
    return dt.datetime.now(dt.UTC) if given is None else given


def _has_been(name: str, moment: dt.datetime | None, now: dt.datetime) -> None:
    if moment is not None and moment > now:
        raise UserError(f"{name}: got {utc_text(moment)}, which is yet to come, expected a time that has been.")


def _checked_text(what: str, text: str, *, may_be_empty: bool = False) -> str:
    text = _storable(what, text).strip()
    if (not text and not may_be_empty) or len(text) > NAME_LENGTH or text == POLICY:
        shown, most = repr(text[:NAME_LENGTH]), f"at most {NAME_LENGTH} characters"
        raise UserError(f"{what}: got {shown}, expected a person's text of {most}, other than {POLICY!r}.")
    return text


def _storable(what: str, text: str) -> str:
    """A text that both databases can hold: no NUL, and no bytes of a terminal that are no UTF-8."""
    if "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{what}: got {text[:NAME_LENGTH]!r}, expected text in UTF-8 without NUL.")
    return text


def _check_reason(reason: Tag) -> None:
    if reason not in RESET_TAGS:
        raise UserError(f"reason: got {str(reason)!r}, expected one of {', '.join(RESET_TAGS)}.")


def _check_machine(session: Session, machine: str) -> None:
    """A machine that was never heard is a slip of the pen: its entry would do nothing."""
    _storable("machine", machine)
    for column in (PolicyMemory.machine_id, Alert.machine_id):
        if session.scalar(sa.select(column).where(column == machine).limit(1)) is not None:
            return
    known = set(session.scalars(sa.select(PolicyMemory.machine_id))) | set(session.scalars(sa.select(Alert.machine_id)))
    likely = nearest(machine, sorted(known))
    expected = f"{likely!r}?" if likely else f"one of the {len(known)} that were scored"
    raise UserError(f"machine: got {machine!r}, which was never scored, expected {expected}")
