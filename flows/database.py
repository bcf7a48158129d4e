"""The project's database: one, for registry, ledger and alerts; SQLite for one machine, PostgreSQL for a plant."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.orm.exc import StaleDataError

from pipeline.errors import WorkspaceError

MIGRATIONS = Path(__file__).parent / "migrations"
# PostgreSQL advisory locks; SQLite has one writer at a time anyway
MIGRATION_LOCK, LEDGER_LOCK, POLICY_LOCK, EXPORT_LOCK = 4_822_051, 4_822_052, 4_822_053, 4_822_054
RESET_LOCK, RETRAIN_LOCK = 4_822_055, 4_822_056
BUSY_SECONDS = 30
ATTEMPTS = 5  # at a transaction whose rows people change meanwhile
T = TypeVar("T")
ONLY_READS = "hearken_only_reads"


class UtcDateTime(sa.TypeDecorator[dt.datetime]):
    """A moment: aware in Python, whatever the database stores (SQLite gives back naive times otherwise)."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        """Refuse a naive time, store UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"got the naive time {value.isoformat()}, expected one with a time zone")
        value = value.astimezone(dt.UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:  # noqa: ARG002
        """Always UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


class Base(DeclarativeBase):
    """Every table; constraints have names, so that a migration can change them on both databases."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dt.datetime: UtcDateTime(), dict[str, Any]: sa.JSON()}  # noqa: RUF012 (SQLAlchemy's own form)


def make_engine(url: str) -> Engine:
    """An engine; on SQLite every transaction takes the write lock at its start, so that read-then-write is safe.

    Transactions of `reading(engine)` only read, and take no lock.

    Raises:
        WorkspaceError: not a database URL, or one of a SQLite file whose folder cannot be made.
    """
    try:
        address = sa.make_url(url)
        engine = sa.create_engine(address, pool_pre_ping=True)
    except (sa.exc.ArgumentError, ModuleNotFoundError) as error:
        raise WorkspaceError(
            f"HEARKEN_DATABASE_URL: got {error}, expected sqlite:/// or postgresql+psycopg://."
        ) from None
    if engine.dialect.name == "sqlite":
        if address.database:
            _make_folder(Path(address.database).parent)
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_immediate)
    return engine


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        got = f"{folder} ({error.strerror})"
        raise WorkspaceError(f"HEARKEN_DATABASE_URL: got {got}, expected a folder that can be written to.") from None


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver would begin only at the first write: two readers could both write
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_immediate(connection: Connection) -> None:
    only_reads = connection.get_execution_options().get(ONLY_READS, False)
    connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")


def reading(engine: Engine) -> Engine:
    """The same database for transactions that only read: they do not wait for writers, nor writers for them."""
    return engine.execution_options(**{ONLY_READS: True})


@contextmanager
def exclusive(engine: Engine, lock: int = LEDGER_LOCK) -> Iterator[Session]:
    """A transaction that no other of the same lock runs beside."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        take_lock(session, lock)
        yield session


def take_lock(session: Session, lock: int) -> None:
    """Let no other transaction of the same lock run beside this one until it ends; SQLite has one writer anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))


def exclusively(engine: Engine, lock: int, work: Callable[[Session], T]) -> T:
    """Do work in such a transaction; where somebody changed one of its rows meanwhile, once more.

    Raises:
        StaleDataError: somebody did so again and again.
    """
    for attempt in range(ATTEMPTS):
        try:
            with exclusive(engine, lock) as session:
                return work(session)
        except StaleDataError:
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def utc_now() -> dt.datetime:
    """The present, as the database keeps it."""
    return dt.datetime.now(dt.UTC)


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's settings; there is no alembic.ini."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def migrate(engine: Engine, revision: str = "head") -> None:
    """Bring the schema to a revision, up or (by an older name, `base`) down."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        config = alembic_config(connection)
        if revision == "base":
            command.downgrade(config, revision)
        else:
            command.upgrade(config, revision)


def open_database(url: str) -> Engine:
    """An engine on a database whose schema is up to date.

    Raises:
        WorkspaceError: not a database URL, no database answers there, or a newer version has migrated it.
    """
    engine = make_engine(url)
    try:
        migrate(engine)
    except sa.exc.OperationalError as error:
        shown = engine.url.render_as_string(hide_password=True)
        said = str(error.orig).strip().splitlines()[0]
        raise WorkspaceError(f"database: got '{said}', expected one that answers, at {shown}.") from None
    except CommandError as error:
        shown = engine.url.render_as_string(hide_password=True)
        expected = "a schema that this version knows: a newer version has migrated it"
        raise WorkspaceError(f"database: got '{error}', expected {expected}, at {shown}.") from None
    return engine
