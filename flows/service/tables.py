"""Tables of the service: uploads and shards (the ledger), what the alert policy remembers, alerts and their story.

The registry's table stands in `flows.registry`; all belong to one database and one history of migrations.
"""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column, relationship

from flows.database import Base

RELEASE_ID = 16  # characters
MACHINE_NAME = 255


def _one_of(states: type[StrEnum], name: str) -> sa.Enum:
    """A text column that the database itself keeps to the names of an enumeration."""
    return sa.Enum(
        states,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=16,
        values_callable=lambda members: [member.value for member in members],
    )


class UploadState(StrEnum):
    """Of a file of the landing zone."""

    PLANNED = "planned"  # belongs to a shard
    SCORED = "scored"  # its rows stand in the score log, and the alert policy has seen them
    BROKEN = "broken"  # set aside with its error; tried again when it changes
    DUPLICATE = "duplicate"  # the same bytes as another upload


class ShardState(StrEnum):
    """Of a group of uploads that is scored as one."""

    PLANNED = "planned"
    SCORED = "scored"  # its files stand in the score log; the alert policy has not seen them yet
    DONE = "done"
    FAILED = "failed"  # every upload of it was set aside


class Standing(StrEnum):
    """Of an alert, as the policy sees it."""

    OPEN = "open"
    CLOSED = "closed"
    WITHDRAWN = "withdrawn"  # rows that came late show that there was none


class Answer(StrEnum):
    """What a person said of an alert."""

    ACKNOWLEDGED = "acknowledged"
    CONFIRMED = "confirmed"
    DISMISSED = "dismissed"


class EventKind(StrEnum):
    """What happened to an alert."""

    OPENED = "opened"
    ESCALATED = "escalated"
    CLOSED = "closed"
    REOPENED = "reopened"  # rows that came late join it to a later one, or a person takes an answer back
    WITHDRAWN = "withdrawn"
    ACKNOWLEDGED = "acknowledged"
    CONFIRMED = "confirmed"
    DISMISSED = "dismissed"
    NOTIFIED = "notified"
    NOT_NOTIFIED = "not_notified"  # given up, or no need to
    ATTRIBUTED = "attributed"  # to a drift: the plant changed, the machine is not ill


class NoticeKind(StrEnum):
    """Why people are told."""

    PAGE = "page"  # at once
    DIGEST = "digest"  # with others of its day


class NoticeState(StrEnum):
    """Of something to be told."""

    PENDING = "pending"
    SENT = "sent"
    UNSENT = "unsent"  # given up, or nobody is to be told


class DriftState(StrEnum):
    """Of a change of the fleet."""

    OPEN = "open"  # nothing has been retrained for it yet
    SETTLED = "settled"  # a release that knows it is in service, or it is over
    DISMISSED = "dismissed"  # a person says that the plant has not changed


class RetrainingState(StrEnum):
    """Of one wish for a new release."""

    WAITING = "waiting"  # for another to end, for the pause between two, or for the next day
    RUNNING = "running"
    SHADOW = "shadow"  # the challenger scores beside the champion until there are rows enough to judge it
    PROMOTED = "promoted"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"
    MERGED = "merged"  # into another that had not begun


AT_WORK = (RetrainingState.WAITING, RetrainingState.RUNNING, RetrainingState.SHADOW)
MONITOR = "monitor"  # who asks for a new release where no person does


class Upload(Base):
    """One content of one file of the landing zone; the newest row of a path is what lies there."""

    __tablename__ = "uploads"
    __table_args__ = (sa.UniqueConstraint("path", "sha256"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(sa.Text, index=True)  # below the landing zone, with forward slashes
    size: Mapped[int] = mapped_column(sa.BigInteger)
    modified_ns: Mapped[int] = mapped_column(sa.BigInteger)  # a hint that nothing changed, never what is new
    sha256: Mapped[str] = mapped_column(sa.String(64), index=True)
    state: Mapped[UploadState] = mapped_column(_one_of(UploadState, "upload_state"), index=True)
    error: Mapped[str | None] = mapped_column(sa.Text)
    read_as: Mapped[str | None] = mapped_column(sa.String(16))  # under which settings and release it was broken
    rows: Mapped[int | None] = mapped_column(sa.BigInteger)
    first_at: Mapped[dt.datetime | None]
    last_at: Mapped[dt.datetime | None]  # once it is scored: the last row that is believed
    seen_at: Mapped[dt.datetime]
    shard_id: Mapped[int | None] = mapped_column(sa.ForeignKey("shards.id"), index=True)
    shard: Mapped[Shard | None] = relationship(back_populates="uploads")


class Shard(Base):
    """Uploads that are scored as one: the unit of leases, of the score log's files, and of transactions."""

    __tablename__ = "shards"

    id: Mapped[int] = mapped_column(primary_key=True)  # shards reach the alert policy in this order
    name: Mapped[str] = mapped_column(sa.String(40), unique=True)  # of its files in the score log
    state: Mapped[ShardState] = mapped_column(_one_of(ShardState, "shard_state"), index=True)
    planned_at: Mapped[dt.datetime]
    believed_until: Mapped[dt.datetime]  # rows later than this are scored, but raise no alert
    first_at: Mapped[dt.datetime]
    last_at: Mapped[dt.datetime]
    owner: Mapped[str | None] = mapped_column(sa.String(80))
    lease_until: Mapped[dt.datetime | None]
    attempts: Mapped[int] = mapped_column(default=0)
    release_id: Mapped[str | None] = mapped_column(sa.String(RELEASE_ID))
    rows: Mapped[int] = mapped_column(sa.BigInteger, default=0)  # written to the score log
    unusable: Mapped[int] = mapped_column(sa.BigInteger, default=0)  # of these, without a score
    repeated: Mapped[int] = mapped_column(sa.BigInteger, default=0)  # machine and time stand in the log already
    early: Mapped[int] = mapped_column(sa.BigInteger, default=0)  # of the rows, later than believed_until
    late: Mapped[int] = mapped_column(sa.BigInteger, default=0)  # of the rows, too late for the alert policy
    days: Mapped[list[str]] = mapped_column(sa.JSON, default=list)  # folders of the score log that hold a file of it
    seconds: Mapped[float | None]
    finished_at: Mapped[dt.datetime | None]
    error: Mapped[str | None] = mapped_column(sa.Text)
    uploads: Mapped[list[Upload]] = relationship(back_populates="shard", order_by=Upload.id)


class PolicyMemory(Base):
    """What the alert policy remembers of a machine."""

    __tablename__ = "policy_memories"

    machine_id: Mapped[str] = mapped_column(sa.String(MACHINE_NAME), primary_key=True)
    newest_at: Mapped[dt.datetime] = mapped_column(index=True)
    pending: Mapped[bool] = mapped_column(index=True)  # quiet or silence alone would still change an alert
    memory: Mapped[dict[str, Any]]  # one machine of PolicyState.to_json


class Alert(Base):
    """One alert: what the policy says (standing and times), what people said (answer), and what they are told."""

    __tablename__ = "alerts"
    __table_args__ = (sa.Index("ix_alerts_machine_id_cause_opened_at", "machine_id", "cause", "opened_at"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    machine_id: Mapped[str] = mapped_column(sa.String(MACHINE_NAME))
    cause: Mapped[str] = mapped_column(sa.String(16))  # policy_state.CAUSES
    standing: Mapped[Standing] = mapped_column(_one_of(Standing, "standing"), index=True)
    final: Mapped[bool] = mapped_column(index=True)  # no row can change it any more
    answer: Mapped[Answer | None] = mapped_column(_one_of(Answer, "answer"), index=True)
    opened_at: Mapped[dt.datetime]
    paged_at: Mapped[dt.datetime | None]
    last_at: Mapped[dt.datetime]
    closed_at: Mapped[dt.datetime | None]
    peak_at: Mapped[dt.datetime | None]
    peak_rarity: Mapped[float | None]  # minus the decimal logarithm of the tail probability
    judged_until: Mapped[dt.datetime | None]  # its last row when the answer was given
    release_id: Mapped[str] = mapped_column(sa.String(RELEASE_ID))
    details: Mapped[dict[str, Any]]  # first row, peak, detectors that agreed, top bins: alert_details
    version: Mapped[int] = mapped_column(default=1)
    drift_id: Mapped[int | None]  # the change of the fleet (drifts.id) that explains it
    events: Mapped[list[AlertEvent]] = relationship(
        back_populates="alert", order_by="AlertEvent.id", cascade="all, delete-orphan"
    )
    notices: Mapped[list[Notice]] = relationship(back_populates="alert", cascade="all, delete-orphan")

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 (SQLAlchemy's own form)

    @property
    def tier(self) -> str | None:
        """`page` or `low`; None for a no-data alert."""
        return "page" if self.paged_at is not None else ("low" if self.cause == "vibration" else None)


class AlertEvent(Base):
    """One line of an alert's story; never changed."""

    __tablename__ = "alert_events"

    id: Mapped[int] = mapped_column(primary_key=True)
    alert_id: Mapped[int] = mapped_column(sa.ForeignKey("alerts.id", ondelete="CASCADE"), index=True)
    kind: Mapped[EventKind] = mapped_column(_one_of(EventKind, "event_kind"))
    at: Mapped[dt.datetime]  # when it was written
    of: Mapped[dt.datetime | None]  # the moment in the machine's data that it tells of
    who: Mapped[str] = mapped_column(sa.String(120))  # a person, or `policy`
    note: Mapped[str] = mapped_column(sa.Text)
    alert: Mapped[Alert] = relationship(back_populates="events")


class Notice(Base):
    """Something to be told to people, once: written with the alert's change, sent afterwards."""

    __tablename__ = "notices"
    __table_args__ = (sa.UniqueConstraint("alert_id", "kind"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    alert_id: Mapped[int] = mapped_column(sa.ForeignKey("alerts.id", ondelete="CASCADE"))
    kind: Mapped[NoticeKind] = mapped_column(_one_of(NoticeKind, "notice_kind"))
    state: Mapped[NoticeState] = mapped_column(_one_of(NoticeState, "notice_state"), index=True)
    due_at: Mapped[dt.datetime]
    attempts: Mapped[int] = mapped_column(default=0)
    owner: Mapped[str | None] = mapped_column(sa.String(80))
    lease_until: Mapped[dt.datetime | None]
    told: Mapped[list[str]] = mapped_column(sa.JSON, default=list)  # marks of the addresses that took it
    sent_at: Mapped[dt.datetime | None]
    error: Mapped[str | None] = mapped_column(sa.Text)
    alert: Mapped[Alert] = relationship(back_populates="notices")


class LogEntry(Base):
    """What people add to the maintenance log: a confirmed failure, a repair, a moved sensor, new firmware."""

    __tablename__ = "log_entries"

    id: Mapped[int] = mapped_column(primary_key=True)
    machine_id: Mapped[str] = mapped_column(sa.String(MACHINE_NAME), index=True)
    start_at: Mapped[dt.datetime]
    end_at: Mapped[dt.datetime]
    tag: Mapped[str] = mapped_column(sa.String(16))  # schema.Tag
    failure_mode: Mapped[str] = mapped_column(sa.String(120))
    note: Mapped[str] = mapped_column(sa.Text)
    who: Mapped[str] = mapped_column(sa.String(120))
    written_at: Mapped[dt.datetime]
    alert_id: Mapped[int | None] = mapped_column(sa.ForeignKey("alerts.id"), index=True)


class Drift(Base):
    """A change of the fleet, or of a group of it: what was decided, on which figures, and what came of it."""

    __tablename__ = "drifts"

    id: Mapped[int] = mapped_column(primary_key=True)
    found_at: Mapped[dt.datetime]
    changed_at: Mapped[dt.datetime]
    release_id: Mapped[str] = mapped_column(sa.String(RELEASE_ID))  # whose reference the fleet has left
    verdict: Mapped[str] = mapped_column(sa.String(16))  # fleet | group
    machines: Mapped[list[str]] = mapped_column(sa.JSON)  # that moved together
    share: Mapped[float]  # of the machines compared
    figures: Mapped[dict[str, Any]]  # DriftDecision.to_dict()
    report: Mapped[str | None] = mapped_column(sa.Text)  # the page, below the home
    state: Mapped[DriftState] = mapped_column(_one_of(DriftState, "drift_state"), index=True)
    note: Mapped[str] = mapped_column(sa.Text, default="")


class Retraining(Base):
    """One wish for a new release, by a drift or a person, and what came of it; never lost, never done twice."""

    __tablename__ = "retrainings"

    id: Mapped[int] = mapped_column(primary_key=True)
    asked_at: Mapped[dt.datetime]
    who: Mapped[str] = mapped_column(sa.String(120))
    why: Mapped[str] = mapped_column(sa.Text)
    drift_id: Mapped[int | None] = mapped_column(sa.ForeignKey("drifts.id"), index=True)
    changed_at: Mapped[dt.datetime | None]
    machines: Mapped[list[str] | None] = mapped_column(sa.JSON)  # that changed; None: all, or nothing changed
    state: Mapped[RetrainingState] = mapped_column(_one_of(RetrainingState, "retraining_state"), index=True)
    owner: Mapped[str | None] = mapped_column(sa.String(80))
    lease_until: Mapped[dt.datetime | None]
    attempts: Mapped[int] = mapped_column(default=0)
    begun_at: Mapped[dt.datetime | None]
    finished_at: Mapped[dt.datetime | None]
    flow_run: Mapped[str | None] = mapped_column(sa.String(64))
    champion_id: Mapped[str | None] = mapped_column(sa.String(RELEASE_ID))
    challenger_id: Mapped[str | None] = mapped_column(sa.String(RELEASE_ID))
    merged_into: Mapped[int | None] = mapped_column(sa.ForeignKey("retrainings.id"))
    error: Mapped[str | None] = mapped_column(sa.Text)
