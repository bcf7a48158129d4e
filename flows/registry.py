"""The registry of releases: which stand in `<home>/releases/<id>`, and which one is in service.

A release is known by the hash of its bytes. What its bytes must not say (commit, branch, time, state) stands here.
Promotion and rollback are one transaction each: it retires what was in service and adds a line to the history.
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable, Collection, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Mapped, Session, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from flows.database import Base
from pipeline import store
from pipeline.errors import ReleaseError

ID_LENGTH = 16
FOLDERS_LOCK = 4_822_071  # of PostgreSQL: a folder of `releases` and its row come and go together
UNNAMED = "hearken"  # who promotes where nobody is named: a flow
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


class Promotion(Base):
    """A line of the history: a release enters service, and the one before leaves it. Never changed, and kept."""

    __tablename__ = "promotions"

    id: Mapped[int] = mapped_column(primary_key=True)
    release_id: Mapped[str] = mapped_column(sa.String(ID_LENGTH), index=True)  # it may be deleted since
    version: Mapped[int]
    at: Mapped[dt.datetime]
    who: Mapped[str] = mapped_column(sa.String(120))
    note: Mapped[str] = mapped_column(sa.Text)
    rollback: Mapped[bool]  # taken back to, not promoted


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
        lock_folders(session)
        known = session.get(ReleaseRow, identity)
        if known is not None:
            return known
        if not (Path(releases) / identity).exists():  # pruned since
            _copy_release(folder, Path(releases) / identity, identity)
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


def serving(engine: Engine) -> ReleaseRow:
    """The release in service, for whoever can do nothing without one.

    Raises:
        ReleaseError: there is none.
    """
    row = in_service(engine)
    if row is None:
        raise ReleaseError("release: got none in service, expected one: hearken releases promote.")
    return row


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
    who: str = UNNAMED,
    but_not: Collection[ReleaseState] = (),
    instead_of: str | None = None,
    decision: dict[str, Any] | None = None,
    also: Callable[[Session], None] | None = None,
) -> ReleaseRow:
    """Put a release into service and retire the one that was; it takes effect at the next scoring run.

    Its files are not looked at here: see `flows.releases.entry.put_into_service`.

    Args:
        engine: of the registry.
        name: see find_release.
        note: for people; None: the release keeps its own.
        who: a person, or a flow.
        but_not: states whose releases may not enter service.
        instead_of: the id that must be in service until now; None: any or none.
        decision: record of the gate; None: the release keeps its own.
        also: what belongs to the same transaction.

    Raises:
        ReleaseError: no such release; it is in one of these states; another than `instead_of` is in service.
    """

    def change(session: Session) -> ReleaseRow:
        serving = _serving(session)
        row = _find(session, name)
        if instead_of is not None and (serving is None or serving.id != instead_of) and serving is not row:
            raise ReleaseError(
                f"release in service: got {_name(serving)}, expected {instead_of}; another has entered service since."
            )
        if row.state in but_not:
            expected = "another, or --force with a --note that says why"
            raise ReleaseError(f"release {_name(row)}: got one that is {row.state}, expected {expected}.")
        if also is not None:
            also(session)
        _enter_service(session, row, serving, who, note or "", rollback=False)
        if note is not None:
            row.note = note
        if decision is not None:
            row.decision = decision
        return row

    return _in_transaction(engine, change)


def rollback(
    engine: Engine, name: str | int | None = None, *, note: str = "", who: str = UNNAMED, instead_of: str | None = None
) -> ReleaseRow:
    """Put back what was in service before; it takes effect at the next scoring run.

    Rollbacks undo promotions: after v1, v2, v3 and a rollback to v2 the next one leads to v1.

    Args:
        engine: of the registry.
        name: the release to go back to; None: the one before.
        note: why; stands in the history.
        who: a person, or a flow.
        instead_of: the id that must be in service until now, so that two at once do not go back twice; None: any.

    Raises:
        ReleaseError: no such release; it was never in service; there is none before; another is in service by now.
    """

    def change(session: Session) -> ReleaseRow:
        serving = _serving(session)
        history = _history(session)
        if instead_of is not None and (serving is None or serving.id != instead_of):
            raise ReleaseError(
                f"release in service: got {_name(serving)}, expected {instead_of}; another has entered service since."
            )
        if name is None:
            known = set(session.scalars(sa.select(ReleaseRow.id)))
            target = before(history, known)
            if target is None:
                got = f"none before {_name(serving)}" if serving is not None else "none"
                raise ReleaseError(f"rollback: got {got}, expected a release that was in service.")
            row = session.get_one(ReleaseRow, target)
        else:
            row = _find(session, name)
            if row.id not in {line.release_id for line in history}:
                raise ReleaseError(
                    f"rollback: got {_name(row)}, which was never in service, expected one that was; "
                    "a new one is promoted."
                )
        _enter_service(session, row, serving, who, note, rollback=True)
        return row

    return _in_transaction(engine, change)


def before(history: Iterable[Promotion], known: Collection[str]) -> str | None:
    """The release that a rollback leads to: the last one before that still exists, promotions undone left out.

    >>> line = lambda id, rollback=False: Promotion(release_id=id, rollback=rollback)
    >>> before([line("a"), line("b"), line("c")], "abc")
    'b'
    >>> before([line("a"), line("b"), line("c"), line("b", rollback=True)], "abc")
    'a'
    >>> before([line("a"), line("b"), line("c")], "ac")
    'a'
    """
    stack: list[str] = []
    for line in history:
        if line.rollback and line.release_id in stack:
            while stack[-1] != line.release_id:
                stack.pop()
        elif not stack or stack[-1] != line.release_id:
            stack.append(line.release_id)
    return next((each for each in reversed(stack[:-1]) if each in known and each != stack[-1]), None)


def promotions(engine: Engine) -> list[Promotion]:
    """The history of what was in service, oldest line first."""
    return _in_transaction(engine, _history)


def taken_back(engine: Engine) -> Promotion | None:
    """The rollback by which a person put in service what serves now; None: it was promoted.

    While it stands nothing enters service unasked: what a person took back would come again by itself.
    """
    last = sa.select(Promotion).order_by(Promotion.id.desc()).limit(1)
    line = _in_transaction(engine, lambda session: session.scalar(last))
    return line if line is not None and line.rollback else None


def refuse(engine: Engine, name: str | int, note: str, decision: dict[str, Any] | None = None) -> ReleaseRow:
    """Mark a candidate or a shadow as refused, with the reason; one that is or was in service keeps its state.

    Raises:
        ReleaseError: no such release.
    """

    def change(session: Session) -> ReleaseRow:
        row = _find(session, name)
        if row.state in (ReleaseState.CANDIDATE, ReleaseState.SHADOW):
            row.state, row.shadow_until = ReleaseState.REFUSED, None
        row.note = note
        row.decision = row.decision if decision is None else decision
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


def put_in_shadow(
    engine: Engine, name: str | int, until: dt.datetime, note: str, decision: dict[str, Any] | None = None
) -> ReleaseRow:
    """Let a candidate score beside the release in service until a deadline; any other keeps its state.

    Raises:
        ReleaseError: no such release.
    """

    def change(session: Session) -> ReleaseRow:
        row = _find(session, name)
        if row.state in (ReleaseState.CANDIDATE, ReleaseState.SHADOW):
            row.state, row.shadow_until, row.note = ReleaseState.SHADOW, until, note
            row.decision = row.decision if decision is None else decision
        return row

    return _in_transaction(engine, change)


def lock_folders(session: Session) -> None:
    """Let no other process add or remove a release until the transaction ends."""
    if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer anyway
        session.execute(sa.select(sa.func.pg_advisory_xact_lock(FOLDERS_LOCK)))


def _serving(session: Session) -> ReleaseRow | None:
    """The release in service, with every row locked, in one order: two at once wait for each other, no deadlock."""
    rows = session.scalars(sa.select(ReleaseRow).order_by(ReleaseRow.id).with_for_update()).all()
    return next((row for row in rows if row.state == ReleaseState.IN_SERVICE), None)


def _enter_service(
    session: Session, row: ReleaseRow, serving: ReleaseRow | None, who: str, note: str, *, rollback: bool
) -> None:
    if row is serving:
        return
    moment = dt.datetime.now(dt.UTC)
    if serving is not None:
        serving.state = ReleaseState.RETIRED
        session.flush()  # before the next one: the index allows one in service
    row.state, row.promoted_at, row.shadow_until = ReleaseState.IN_SERVICE, moment, None
    session.add(
        Promotion(release_id=row.id, version=row.version, at=moment, who=who[:120], note=note, rollback=rollback)
    )


def _history(session: Session) -> list[Promotion]:
    return list(session.scalars(sa.select(Promotion).order_by(Promotion.id)))


def _name(row: ReleaseRow | None) -> str:
    return "none" if row is None else f"v{row.version} ({row.id})"


def _in_transaction(engine: Engine, work: Callable[[Session], T], attempts: int = 5) -> T:
    """Run work in one transaction; one that lost a race against another process starts again."""
    for attempt in range(attempts):
        try:
            with Session(engine, expire_on_commit=False) as session, session.begin():
                return work(session)
        except (sa.exc.IntegrityError, StaleDataError):
            if attempt == attempts - 1:
                raise
    raise AssertionError("unreachable")
