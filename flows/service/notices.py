"""Telling people: what stands pending in `notices` is claimed, sent through Apprise, and marked, one message at a time.

A page is told at once; where more than MOST_PAGES wait, they are one message. Alerts at tier low and those without
data are told once a day, in a digest. What was withdrawn or dismissed before it was sent is not sent, unless it pages
only since it was dismissed; what a page told is not in the digest, and a page that was given up is, where its alert
opened at tier low.

A claim is a transaction: owner, lease, one try more. Sending happens outside of any, and each address that took the
message is noted at once, so that a later try goes only to those that did not. Two senders never hold the same notice. A
sender that dies between the receiver's answer and the note (milliseconds), or an answer that does not come in time,
leaves the question open whether people know: the message is **sent again** (after a death when the lease has run out),
with the same key and a line that says so, because a page that never came is worse than one that came twice. In no other
case is an alert told twice to an address.

Without addresses notices wait for a process that knows some, as failed ones wait for their next try; after
`keep_trying_hours` either is given up for good, and the alert's story says so.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, selectinload

from flows.database import utc_now
from flows.service.delivery import (
    ANSWER_SECONDS,
    LOW_VARIABLE,
    PAGE_VARIABLE,
    START_SECONDS,
    Addresses,
    Message,
    deliver,
    scheme_of,
)
from flows.service.notice_text import digest_text, page_text, pages_text
from flows.service.tables import Alert, AlertEvent, Answer, EventKind, Notice, NoticeKind, NoticeState, Standing
from pipeline.params import NotifyParams

MOST_PAGES = 20  # that are a message each
MOST_CLAIMED = 5000
RUN_SECONDS = 120.0  # after which a run of the sender begins no further message
NOTE_AGAIN_SECONDS = (1.0, 5.0)  # a message that is not noted would be sent again
WHO = "notices"


@dataclass
class Sending:
    """What a run of the sender did: messages that an address took, notices that ended, what went wrong."""

    messages: int = 0
    sent: int = 0
    given_up: int = 0
    problems: list[str] = field(default_factory=list)  # hold no address


@dataclass(frozen=True)
class _Receiver:
    """An address; its mark is what the database knows it by, its label what people read."""

    address: SecretStr
    mark: str
    label: str


def send_pending(
    engine: Engine,
    addresses: Addresses,
    settings: NotifyParams,
    *,
    clock: Callable[[], dt.datetime] = utc_now,
    answer_seconds: float = ANSWER_SECONDS,
) -> Sending:
    """Send what is due; to be called after every scoring run, by as many processes as there are.

    What cannot be sent stands in the notices, not in an exception.

    Args:
        engine: of the project's database.
        addresses: whom to tell.
        settings: section `notify` of params.yaml.
        clock: what time it is (UTC).
        answer_seconds: after which an address is given up for this time.

    Raises:
        sqlalchemy.exc.OperationalError: the database does not answer.
    """
    owner = f"{socket.gethostname()[:40]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    sending, end = Sending(), time.monotonic() + RUN_SECONDS
    for kind, given in ((NoticeKind.PAGE, addresses.page), (NoticeKind.DIGEST, addresses.low)):
        if not given:
            _wait_for_addresses(engine, kind, settings, clock(), sending)
            continue
        receivers: list[_Receiver] = []
        lease = dt.timedelta(seconds=60 + len(given) * (answer_seconds + START_SECONDS))
        while time.monotonic() < end:
            now = clock()
            claimed = _claim(engine, kind, settings, owner, now, now + lease, sending)
            if not claimed:
                break
            receivers = receivers or _receivers(given)
            _tell(engine, owner, claimed, receivers, settings, clock, answer_seconds, sending)
    return sending


def last_digest(now: dt.datetime, hour: int) -> dt.datetime:
    """When the newest digest was due.

    >>> str(last_digest(dt.datetime(2025, 2, 1, 5, 59, tzinfo=dt.UTC), 6))
    '2025-01-31 06:00:00+00:00'
    """
    today = now.astimezone(dt.UTC).replace(hour=hour, minute=0, second=0, microsecond=0)
    return today if now >= today else today - dt.timedelta(days=1)


def _due(session: Session, kind: NoticeKind, settings: NotifyParams, now: dt.datetime) -> Sequence[Notice]:
    """Notices that may be claimed, locked for this transaction: those with the fewest tries first."""
    written_before = now if kind is NoticeKind.PAGE else last_digest(now, settings.digest_hour)
    free = sa.or_(Notice.lease_until.is_(None), Notice.lease_until <= now)
    query = (
        sa.select(Notice)
        .where(Notice.state == NoticeState.PENDING, Notice.kind == kind, Notice.due_at <= written_before, free)
        .order_by(Notice.attempts, Notice.id)
        .limit(MOST_CLAIMED)
        .options(selectinload(Notice.alert).selectinload(Alert.notices))
        .with_for_update(skip_locked=True)
    )
    return session.scalars(query).all()


def _claim(
    engine: Engine,
    kind: NoticeKind,
    settings: NotifyParams,
    owner: str,
    now: dt.datetime,
    until: dt.datetime,
    sending: Sending,
) -> list[Notice]:
    """The notices of the next message, ours until the lease runs out; empty: none is due."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        due = _due(session, kind, settings, now)
        wanted = [notice for notice in due if not _ended_without_sending(session, notice, settings, now, sending)]
        if kind is NoticeKind.DIGEST:
            wanted = [notice for notice in wanted if _page_state(notice.alert) is not NoticeState.PENDING]
        # what failed together is tried again together, so that its key stays the same
        wanted = [notice for notice in wanted if notice.attempts == wanted[0].attempts]
        if kind is NoticeKind.PAGE and len(wanted) <= MOST_PAGES:
            wanted = wanted[:1]
        for notice in wanted:
            notice.owner, notice.lease_until, notice.attempts = owner, until, notice.attempts + 1
    return wanted


def _wait_for_addresses(
    engine: Engine, kind: NoticeKind, settings: NotifyParams, now: dt.datetime, sending: Sending
) -> None:
    """Note that nobody is named; another process may know somebody, so only the old ones are given up."""
    variable = PAGE_VARIABLE if kind is NoticeKind.PAGE else LOW_VARIABLE
    error = f"no address: {variable} is not set where this ran"
    with Session(engine) as session, session.begin():
        for notice in _due(session, kind, settings, now):
            notice.error = notice.error if notice.attempts else error
            if not _ended_without_sending(session, notice, settings, now, sending, nobody=True):
                sending.problems = [*sending.problems, error] if error not in sending.problems else sending.problems


def _ended_without_sending(
    session: Session,
    notice: Notice,
    settings: NotifyParams,
    now: dt.datetime,
    sending: Sending,
    *,
    nobody: bool = False,
) -> bool:
    """End a notice that need not be sent, or that was tried for long enough."""
    alert, reason = notice.alert, ""
    if alert.standing is Standing.WITHDRAWN:
        reason = "the alert was withdrawn before"
    elif alert.answer is Answer.DISMISSED and not _pages_since(session, notice):
        reason = "the alert was dismissed before"
    elif notice.kind is NoticeKind.PAGE and alert.drift_id is not None:
        reason = f"drift {alert.drift_id} explains the alert"
    elif notice.kind is NoticeKind.DIGEST and _page_state(alert) is NoticeState.SENT:
        reason = "a page told it"
    elif (notice.attempts or nobody) and now >= _last_try(notice, settings):
        reason = f"given up after {settings.keep_trying_hours:g} h ({notice.error or 'no try ended'})"
    if not reason:
        return False
    if notice.owner is not None:
        reason += "; a try that was cut off may have arrived"
    notice.state = NoticeState.SENT if notice.told else NoticeState.UNSENT
    notice.owner, notice.lease_until, notice.error = None, None, reason
    session.add(_event(notice, EventKind.NOT_NOTIFIED, now, reason))
    sending.given_up += 1
    return True


def _pages_since(session: Session, notice: Notice) -> bool:
    """Whether an alert was dismissed while it did not page, and pages since: nobody has said that of this."""
    said = (AlertEvent.alert_id == notice.alert_id, AlertEvent.kind == EventKind.DISMISSED)
    dismissed_at = session.scalar(sa.select(sa.func.max(AlertEvent.at)).where(*said))
    return notice.kind is NoticeKind.PAGE and dismissed_at is not None and dismissed_at < notice.due_at


def _page_state(alert: Alert) -> NoticeState | None:
    return next((notice.state for notice in alert.notices if notice.kind is NoticeKind.PAGE), None)


def _last_try(notice: Notice, settings: NotifyParams) -> dt.datetime:
    """When a notice that was tried is given up: so long after it was due, in a digest after the first one."""
    due = notice.due_at
    if notice.kind is NoticeKind.DIGEST:
        newest = last_digest(due, settings.digest_hour)
        due = newest if newest == due else newest + dt.timedelta(days=1)
    return due + dt.timedelta(hours=settings.keep_trying_hours)


def _tell(
    engine: Engine,
    owner: str,
    claimed: Sequence[Notice],
    receivers: Sequence[_Receiver],
    settings: NotifyParams,
    clock: Callable[[], dt.datetime],
    answer_seconds: float,
    sending: Sending,
) -> None:
    """Send one message to every address that has not had it, and note each that took it before the next is asked."""
    problems = []
    for receiver in receivers:
        waiting = [notice for notice in claimed if receiver.mark not in notice.told]
        if not waiting:
            continue
        problem = deliver(receiver.address, _message(waiting), answer_seconds)
        if problem is None:
            _note_told(engine, owner, waiting, receiver, clock())
            sending.messages += 1
        else:
            problems.append(f"{receiver.label}: {problem}")
    sending.problems += problems
    sending.sent += _let_go(engine, owner, claimed, receivers, settings, clock(), "; ".join(problems))


def _message(notices: Sequence[Notice]) -> Message:
    alerts, attempt = [notice.alert for notice in notices], notices[0].attempts
    if notices[0].kind is NoticeKind.DIGEST:
        return digest_text(alerts, attempt)
    return pages_text(alerts, attempt) if len(alerts) > 1 else page_text(alerts[0], attempt)


def _owned(session: Session, owner: str, notices: Sequence[Notice]) -> Sequence[Notice]:
    """Those that are still ours: a lease that ran out while we were held up may have a new owner."""
    numbers = [notice.id for notice in notices]
    mine = (Notice.id.in_(numbers), Notice.owner == owner, Notice.state == NoticeState.PENDING)
    return session.scalars(sa.select(Notice).where(*mine).order_by(Notice.id).with_for_update()).all()


def _note_told(engine: Engine, owner: str, notices: Sequence[Notice], receiver: _Receiver, now: dt.datetime) -> None:
    """Write down that an address took a message; a database that has just gone away is asked again."""
    for pause in (*NOTE_AGAIN_SECONDS, None):
        try:
            with Session(engine) as session, session.begin():
                for notice in _owned(session, owner, notices):
                    notice.told = [*notice.told, receiver.mark]
                    notice.sent_at = notice.sent_at or now
                    session.add(_event(notice, EventKind.NOTIFIED, now, f"to {receiver.label}"))
            return
        except sa.exc.OperationalError:
            if pause is None:
                raise
            time.sleep(pause)


def _let_go(
    engine: Engine,
    owner: str,
    notices: Sequence[Notice],
    receivers: Sequence[_Receiver],
    settings: NotifyParams,
    now: dt.datetime,
    error: str,
) -> int:
    """Close what everybody has had, and let the rest wait for its next try; how many were closed."""
    marks, closed = {receiver.mark for receiver in receivers}, 0
    with Session(engine) as session, session.begin():
        for notice in _owned(session, owner, notices):
            notice.owner = None
            if marks <= set(notice.told):
                notice.state, notice.lease_until, notice.error = NoticeState.SENT, None, None
                closed += 1
            else:
                pauses = settings.retry_minutes
                pause = pauses[min(notice.attempts, len(pauses)) - 1]
                # without an owner a lease is a pause
                notice.lease_until, notice.error = now + dt.timedelta(minutes=pause), error
    return closed


def _event(notice: Notice, kind: EventKind, now: dt.datetime, note: str) -> AlertEvent:
    return AlertEvent(alert_id=notice.alert_id, kind=kind, at=now, of=None, who=WHO, note=f"{notice.kind}: {note}")


def _receivers(addresses: Sequence[SecretStr]) -> list[_Receiver]:
    return [
        _Receiver(address, mark_of(address), f"{scheme_of(address)}, address {number} of {len(addresses)}")
        for number, address in enumerate(addresses, 1)
    ]


def mark_of(address: SecretStr) -> str:
    """What the database knows an address by: 8 hex digits that tell nothing of it.

    A slow hash (scrypt), since a password in an address may be short enough to be guessed.

    >>> len(mark_of(SecretStr("json://10.0.0.5/"))), mark_of(SecretStr("a")) == mark_of(SecretStr("b"))
    (8, False)
    """
    secret = address.get_secret_value().encode()
    return hashlib.scrypt(secret, salt=b"hearken notices", n=2**14, r=8, p=1, dklen=4).hex()
