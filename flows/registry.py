"""The registry of releases: which stand in `<home>/releases/<id>`, and which one is in service.

A release is known by the hash of its bytes. What its bytes must not say (commit, branch, time, state) stands here.
Promotion and rollback are the same: one transaction that retires what was in service.
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Mapped, Session, mapped_column

from flows.database import Base
from pipeline import store
from pipeline.errors import ReleaseError

ID_LENGTH = 16
T = TypeVar("T")


class ReleaseState(StrEnum):
    """Of a release; at most one is in service."""

    CANDIDATE = "candidate"
    IN_SERVICE = "in_service"
    RETIRED = "retired"
    REFUSED = "refused"  # by the gate; a person may still promote it
    SHADOW = "shadow"  # scores to a log of its own until there are rows enough to judge it


class ReleaseRow(Base):
    """One release."""

    __tablename__ = "releases"
    __table_args__ = (
        sa.Index(
            "ux_releases_one_in_service",
            "state",
            unique=True,
            sqlite_where=sa.text("state = 'in_service'"),
            postgresql_where=sa.text("state = 'in_service'"),
        ),
    )

    id: Mapped[str] = mapped_column(sa.String(ID_LENGTH), primary_key=True)
    version: Mapped[int] = mapped_column(unique=True)
    state: Mapped[ReleaseState] = mapped_column(
        sa.Enum(
            ReleaseState,
            name="release_state",
            native_enum=False,
            create_constraint=True,
            values_callable=lambda states: [state.value for state in states],
        )
    )
    provisional: Mapped[bool]
    commit: Mapped[str] = mapped_column(sa.String(64))
    branch: Mapped[str] = mapped_column(sa.String(255))
    created_at: Mapped[dt.datetime]
    promoted_at: Mapped[dt.datetime | None]
    metrics: Mapped[dict[str, Any]]
    note: Mapped[str] = mapped_column(sa.Text)
    shadow_until: Mapped[dt.datetime | None]  # deadline of a shadow
    decision: Mapped[dict[str, Any] | None]  # record of the gate: GateDecision.to_dict()


def content_id(folder: Path | str) -> str:
    """The id of a release folder: the first 16 hex digits of the hash of its bytes."""
    return store.sha256_folder(folder)[:ID_LENGTH]


def register_release(
    engine: Engine,
    releases: Path,
    folder: Path | str,
    *,
    commit: str,
    branch: str = "",
    version: int | None = None,
    note: str = "",
) -> ReleaseRow:
    """Copy a built release to `releases/<id>` and enter it as a candidate; one that is known is left as it is.

    Args:
        engine: of the registry.
        releases: the folder of all releases.
        folder: the built release, with its manifest.json.
        commit: of the code and dvc.lock that made it.
        branch: that holds the commit.
        version: its number; None: the next one. If it is taken by now, the next one too.
        note: for people.

    Raises:
        ReleaseError: no release in the folder, or the copy in `releases` has been changed.
    """
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        raise ReleaseError(f"release: got no manifest.json, expected a built release, in {folder}.")
    manifest = store.read_json(folder / "manifest.json")
    identity = content_id(folder)
    _copy_release(folder, Path(releases) / identity, identity)

    def enter(session: Session) -> ReleaseRow:
        known = session.get(ReleaseRow, identity)
        if known is not None:
            return known
        highest = session.scalar(sa.select(sa.func.max(ReleaseRow.version))) or 0
        taken = version is not None and session.scalar(sa.select(ReleaseRow.id).where(ReleaseRow.version == version))
        row = ReleaseRow(
            id=identity,
            version=highest + 1 if version is None or taken else version,
            state=ReleaseState.CANDIDATE,
            provisional=bool(manifest.get("provisional", False)),
            commit=commit,
            branch=branch,
            created_at=dt.datetime.now(dt.UTC),
            promoted_at=None,
            metrics=dict(manifest.get("metrics") or {}),
            note=note,
            shadow_until=None,
            decision=None,
        )
        session.add(row)
        return row

    return _in_transaction(engine, enter)


def _copy_release(folder: Path, place: Path, identity: str) -> None:
    if not place.exists():
        with store.atomic_folder(place) as temporary:
            shutil.copytree(folder, temporary, dirs_exist_ok=True)
    found = content_id(place)
    if found != identity:
        raise ReleaseError(f"release {identity}: got files with the hash {found}, expected them unchanged, in {place}.")


def list_releases(engine: Engine) -> list[ReleaseRow]:
    """All releases, newest version last."""
    query = sa.select(ReleaseRow).order_by(ReleaseRow.version)
    return _in_transaction(engine, lambda session: list(session.scalars(query)))


def in_service(engine: Engine) -> ReleaseRow | None:
    """The release in service, if there is one."""
    query = sa.select(ReleaseRow).where(ReleaseRow.state == ReleaseState.IN_SERVICE)
    return _in_transaction(engine, lambda session: session.scalar(query))


def find_release(engine: Engine, name: str | int) -> ReleaseRow:
    """By id, the beginning of one (4 digits or more), or version (`3`, `v3`, `release/v3`).

    Raises:
        ReleaseError: no such release, or several begin so.
    """
    return _in_transaction(engine, lambda session: _find(session, name))


def _find(session: Session, name: str | int) -> ReleaseRow:
    text = str(name).removeprefix("release/")
    number = text.removeprefix("v")
    found: list[ReleaseRow] = []
    if number.isdigit() and len(number) < ID_LENGTH // 2:
        found = list(session.scalars(sa.select(ReleaseRow).where(ReleaseRow.version == int(number))))
    if not found and len(text) >= 4 and text.isalnum():
        found = list(session.scalars(sa.select(ReleaseRow).where(ReleaseRow.id.startswith(text))))
    if len(found) == 1:
        return found[0]
    if found:
        raise ReleaseError(f"release: got {name}, which begins {len(found)} ids, expected more digits of one.")
    newest = session.scalars(sa.select(ReleaseRow).order_by(ReleaseRow.version.desc()).limit(5))
    known = ", ".join(f"v{row.version} ({row.id})" for row in newest)
    raise ReleaseError(f"release: got {name}, expected an id or version in the registry ({known or 'it is empty'}).")


def promote(
    engine: Engine,
    name: str | int,
    *,
    note: str | None = None,
    instead_of: str | None = None,
    also: Callable[[Session], None] | None = None,
) -> ReleaseRow:
    """Put a release into service and retire the one that was; an older one again is a rollback.

    Args:
        engine: of the registry.
        name: id or version.
        note: for people; None: as it stands.
        instead_of: id of the release that must be in service now; None: whichever is.
        also: what belongs to the same transaction.

    Raises:
        ReleaseError: no such release, or another in service than `instead_of`; nothing has changed then.
    """

    def change(session: Session) -> ReleaseRow:
        # every row in one order: two promotions at once wait for each other instead of deadlocking
        rows = session.scalars(sa.select(ReleaseRow).order_by(ReleaseRow.id).with_for_update()).all()
        row = _find(session, name)
        champion = next((other.id for other in rows if other.state == ReleaseState.IN_SERVICE), None)
        if instead_of is not None and champion != instead_of:
            raise ReleaseError(f"release in service: got {champion}, expected {instead_of}; promote by hand.")
        if also is not None:
            also(session)
        if row.state != ReleaseState.IN_SERVICE:
            for other in rows:
                if other.state == ReleaseState.IN_SERVICE:
                    other.state = ReleaseState.RETIRED
            session.flush()  # before the next one: the index allows one in service
            row.state = ReleaseState.IN_SERVICE
            row.promoted_at = dt.datetime.now(dt.UTC)
        if note is not None:
            row.note = note
        return row

    return _in_transaction(engine, change)


def refuse(engine: Engine, name: str | int, note: str) -> ReleaseRow:
    """Mark a candidate as refused, with the reason; a release that is or was in service keeps its state.

    Raises:
        ReleaseError: no such release.
    """

    def change(session: Session) -> ReleaseRow:
        row = _find(session, name)
        if row.state in (ReleaseState.CANDIDATE, ReleaseState.SHADOW):
            row.state = ReleaseState.REFUSED
        row.note = note
        return row

    return _in_transaction(engine, change)


def shadow(engine: Engine, name: str | int, until: dt.datetime, note: str) -> ReleaseRow:
    """Let a candidate score beside the one in service until there are rows enough to judge it, or the deadline.

    Raises:
        ReleaseError: no such release.
    """

    def change(session: Session) -> ReleaseRow:
        row = _find(session, name)
        if row.state in (ReleaseState.CANDIDATE, ReleaseState.REFUSED):
            row.state, row.shadow_until = ReleaseState.SHADOW, until
        row.note = note
        return row

    return _in_transaction(engine, change)


def keep_decision(engine: Engine, name: str | int, decision: dict[str, Any]) -> None:
    """Write the record of the gate beside a release.

    Raises:
        ReleaseError: no such release.
    """

    def change(session: Session) -> None:
        _find(session, name).decision = decision

    _in_transaction(engine, change)


def _in_transaction(engine: Engine, work: Callable[[Session], T], attempts: int = 5) -> T:
    """Run work in one transaction; one that lost a race against another process starts again."""
    for attempt in range(attempts):
        try:
            with Session(engine, expire_on_commit=False) as session, session.begin():
                return work(session)
        except sa.exc.IntegrityError:
            if attempt == attempts - 1:
                raise
    raise AssertionError("unreachable")
