"""The ledger: which uploads there are, which shards they make, who scores which, and what came of it.

New is what the ledger does not know by its bytes. A shard is planned once and keeps its uploads, so that a scorer that
dies leaves a shard that the next one scores again, under the same name. Shards are leased: a scorer that gives no sign
of life loses its shard. A shard waits for those before it whose times overlap its own: of rows that come twice the
first one counts, and that must not depend on who is faster.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from flows.database import exclusive, reading, utc_now
from flows.service.tables import Shard, ShardState, Upload, UploadState
from pipeline.errors import ContractError
from pipeline.landing import SourceFile
from pipeline.moments import moment_of
from pipeline.params import ScoreParams
from pipeline.score_shard import ShardResult
from pipeline.sensor_clocks import EARLIEST_US
from pipeline.uploads import LandingZone, UploadFacts

MOST_PATH = 1000  # bytes: an index holds no longer ones
MOST_SPAN = dt.timedelta(days=31)  # of a shard of several uploads
MOST_ERROR = 2000  # characters
ASKED_AT_ONCE = 500  # names in one query
UNFINISHED = (ShardState.PLANNED, ShardState.SCORED)
KNOWN = (UploadState.PLANNED, UploadState.SCORED)


@dataclass(frozen=True)
class Intake:
    """What a look at the landing zone found: numbers of files, and what was refused or could not be reached."""

    planned: int = 0
    broken: int = 0
    shards: int = 0
    refused: Mapping[str, str] = field(default_factory=dict)  # name: reason


@dataclass(frozen=True)
class _Found:
    file: SourceFile
    sha256: str
    facts: UploadFacts | None
    error: str | None


def take_in(engine: Engine, zone: LandingZone, params: ScoreParams, read_as: str = "") -> Intake:
    """Enter the files that are new or changed, and plan shards of them, oldest rows first.

    A broken file is entered with its error and tried again when its bytes change, or what it is read as: settings and
    release (`read_as`). A file that cannot be read at all just now is left for the next time.

    Raises:
        ContractError: the landing zone cannot be listed.
    """
    files, refused = zone.files()
    for file in files:
        size = len(file.name.encode())
        if size > MOST_PATH:
            refused[file.name] = f"name: got {size} bytes, expected at most {MOST_PATH}."
    files = [file for file in files if file.name not in refused]
    unknown, found = _unknown(engine, files, read_as), list[_Found]()
    for file in unknown:
        try:
            found.append(_look(engine, zone, file, read_as))
        except ContractError as error:
            refused[file.name] = str(error)
    return _enter(engine, found, params, refused, zone.bytes_tell_all, read_as) if found else Intake(refused=refused)


def _unknown(engine: Engine, files: Sequence[SourceFile], read_as: str) -> list[SourceFile]:
    """Files whose size and time of writing the ledger has not seen under their names, or that may be whole by now."""
    unknown = list[SourceFile]()
    with Session(reading(engine)) as session:
        for begin in range(0, len(files), ASKED_AT_ONCE):
            some = files[begin : begin + ASKED_AT_ONCE]
            columns = sa.select(Upload.path, Upload.size, Upload.modified_ns)
            seen = {
                tuple(row)
                for row in session.execute(columns.where(_stands(read_as), Upload.path.in_(file.name for file in some)))
            }
            unknown += [file for file in some if (file.name, file.size, file.modified_ns) not in seen]
    return unknown


def _stands(read_as: str) -> sa.ColumnElement[bool]:
    """Uploads of which nothing new can be said: all but those that were broken under other settings."""
    return sa.or_(Upload.state != UploadState.BROKEN, sa.func.coalesce(Upload.read_as, "") == read_as)


def _look(engine: Engine, zone: LandingZone, file: SourceFile, read_as: str) -> _Found:
    """A file's hash, and its facts where its bytes are new.

    Raises:
        ContractError: it cannot be read, or it changes while it is read.
    """
    digest, facts, error = zone.sha256(file.name), None, None
    known = None
    if zone.bytes_tell_all:
        with Session(reading(engine)) as session:
            known = session.scalar(sa.select(Upload.id).where(_stands(read_as), Upload.sha256 == digest).limit(1))
    if known is None:
        try:
            facts = zone.facts(file)
        except ContractError as wrong:
            error = str(wrong)
            digest = zone.sha256(file.name)  # what cannot be read at all just now is not broken
    if not zone.is_unchanged(file):
        raise ContractError.of("upload", got="other bytes than a moment ago", expected="a whole file", where=file.name)
    return _Found(file, digest, facts, error)


def _enter(
    engine: Engine,
    found: Sequence[_Found],
    params: ScoreParams,
    refused: Mapping[str, str],
    bytes_tell_all: bool,
    read_as: str,
) -> Intake:
    """Uploads and shards in one transaction; what another scorer has entered meanwhile is left as it is."""
    moment = utc_now()
    counts = dict.fromkeys(UploadState, 0)
    with exclusive(engine) as session:
        planned = []
        for each in found:
            upload = _entered(session, each, moment, bytes_tell_all, read_as)
            if upload is not None:
                counts[upload.state] += 1
                planned += [upload] if upload.state == UploadState.PLANNED else []
        shards = plan_shards(session, planned, params, moment)
    return Intake(counts[UploadState.PLANNED], counts[UploadState.BROKEN], shards, refused)


def _entered(session: Session, found: _Found, moment: dt.datetime, bytes_tell_all: bool, read_as: str) -> Upload | None:
    """The row of an upload; None where its bytes stood there before, or are to be looked at again."""
    file = found.file
    changed = sa.or_(Upload.sha256 != found.sha256, sa.not_(_stands(read_as)))
    # its error is history
    session.execute(sa.delete(Upload).where(Upload.path == file.name, Upload.state == UploadState.BROKEN, changed))
    same = session.scalar(sa.select(Upload).where(Upload.path == file.name, Upload.sha256 == found.sha256))
    if same is not None:
        same.size, same.modified_ns = file.size, file.modified_ns
        return None
    twins = sa.select(Upload).where(_stands(read_as), Upload.sha256 == found.sha256)
    twins = twins.order_by(sa.desc(Upload.state.in_(KNOWN)))
    twin = session.scalar(twins.limit(1)) if bytes_tell_all else None
    if twin is None and found.facts is None and found.error is None:
        return None  # the twin that spared us the look is gone
    upload = Upload(
        path=file.name, size=file.size, modified_ns=file.modified_ns, sha256=found.sha256, seen_at=moment,
        state=UploadState.PLANNED,
    )  # fmt: skip
    if twin is not None and twin.state in KNOWN:
        upload.state, upload.error = UploadState.DUPLICATE, f"the same bytes as {twin.path}"
    elif found.error is not None or found.facts is None:
        upload.state, upload.read_as = UploadState.BROKEN, read_as
        upload.error = (found.error or (twin.error if twin is not None else None) or "unreadable")[:MOST_ERROR]
    else:
        upload.rows = found.facts.rows
        upload.first_at, upload.last_at = moment_of(found.facts.first_us), moment_of(found.facts.last_us)
    session.add(upload)
    session.flush()
    return upload


def plan_shards(session: Session, uploads: Iterable[Upload], params: ScoreParams, moment: dt.datetime) -> int:
    """Gather uploads into shards, oldest rows first; the number of shards."""
    shards, group, rows, last = 0, list[Upload](), 0, moment_of(0)
    dated = [(each.first_at, each.last_at, each) for each in uploads if each.first_at and each.last_at]
    for first_at, last_at, upload in sorted(dated, key=lambda each: (each[0], each[2].path)):
        rows, last = rows + (upload.rows or 0), max(last, last_at) if group else last_at
        if group and (rows > params.shard_rows or last - (group[0].first_at or first_at) > MOST_SPAN):
            shards += _plan(session, group, params, moment)
            group, rows, last = [], upload.rows or 0, last_at
        group.append(upload)
    return shards + (_plan(session, group, params, moment) if group else 0)


def _plan(session: Session, uploads: Sequence[Upload], params: ScoreParams, moment: dt.datetime) -> int:
    shard = Shard(
        name=secrets.token_hex(8),  # until it has a number
        state=ShardState.PLANNED,
        planned_at=moment,
        believed_until=moment + dt.timedelta(hours=params.future_hours),
        first_at=min(upload.first_at for upload in uploads if upload.first_at is not None),
        last_at=max(upload.last_at for upload in uploads if upload.last_at is not None),
        uploads=list(uploads),
        days=[],
    )
    session.add(shard)
    session.flush()
    shard.name = f"{shard.id:09d}-{min(upload.sha256 for upload in uploads)[:8]}"
    session.flush()
    return 1


@dataclass(frozen=True)
class Lease:
    """A shard that a scorer holds."""

    shard_id: int
    name: str
    owner: str
    uploads: tuple[SourceFile, ...]
    believed_until: dt.datetime
    read_as: str = ""  # settings and release under which an upload may turn out broken


def new_owner() -> str:
    """A name for a scorer that no other has."""
    return secrets.token_hex(8)


def claim(
    engine: Engine, params: ScoreParams, owner: str, clear: Callable[[str], None], read_as: str = ""
) -> Lease | None:
    """Lease the first shard that nobody holds and that need not wait for another; None where there is none.

    A shard whose scorers died too often is taken apart; of one upload alone that upload is set aside. `clear` removes
    what attempts before have left of a shard of that name, while nobody else can hold it.
    """
    moment = utc_now()
    with exclusive(engine) as session:
        waiting = session.scalars(sa.select(Shard).where(Shard.state == ShardState.PLANNED).order_by(Shard.id)).all()
        before = list[Shard]()
        for shard in waiting:
            held = shard.lease_until is not None and shard.lease_until > moment
            overlaps = any(other.first_at <= shard.last_at and shard.first_at <= other.last_at for other in before)
            begun = shard.attempts > 0 or shard.error is not None
            if not held and not overlaps and begun:
                clear(shard.name)
            if not held and not overlaps and shard.attempts >= params.attempts:
                _take_apart(session, shard, params, moment, read_as)
                if shard.state != ShardState.PLANNED:
                    continue
            if not held and not overlaps:
                shard.owner, shard.attempts = owner, shard.attempts + 1
                shard.lease_until = moment + _lease(params)
                return Lease(shard.id, shard.name, owner, _files(shard), shard.believed_until, read_as)
            before.append(shard)
    return None


def _lease(params: ScoreParams) -> dt.timedelta:
    return dt.timedelta(minutes=params.lease_minutes)


def _files(shard: Shard) -> tuple[SourceFile, ...]:
    """As `list_files` lists them: patterns of paths begin below `spectra`."""
    return tuple(
        SourceFile(each.path, each.size, each.path.removeprefix("spectra/"), each.modified_ns) for each in shard.uploads
    )


def _take_apart(session: Session, shard: Shard, params: ScoreParams, moment: dt.datetime, read_as: str) -> None:
    """A shard that no scorer survives: halve its uploads, or set the only one aside."""
    uploads, tried = list(shard.uploads), shard.attempts
    if len(uploads) > 1:
        half = len(uploads) // 2
        shard.uploads, shard.attempts, shard.owner = uploads[:half], 0, None
        _respan(shard)
        _plan(session, uploads[half:], params, moment)
        return
    for upload in uploads:
        upload.state, upload.read_as = UploadState.BROKEN, read_as
        upload.error = f"{tried} scorers died or lost their lease while they scored it; the last error: {shard.error}"
        upload.shard = None
    shard.state, shard.finished_at, shard.owner, shard.lease_until = ShardState.FAILED, moment, None, None


def _respan(shard: Shard) -> None:
    shard.first_at = min(each.first_at for each in shard.uploads if each.first_at is not None)
    shard.last_at = max(each.last_at for each in shard.uploads if each.last_at is not None)


def renew(engine: Engine, leases: Iterable[Lease], params: ScoreParams) -> None:
    """A sign of life for shards that are still held."""
    until = utc_now() + _lease(params)
    with Session(engine) as session, session.begin():
        for lease in leases:
            session.execute(_held(sa.update(Shard), lease).values(lease_until=until))


def _held(statement: sa.Update, lease: Lease) -> sa.Update:
    return statement.where(Shard.id == lease.shard_id, Shard.owner == lease.owner, Shard.state == ShardState.PLANNED)


def give_back(engine: Engine, lease: Lease, error: str, *, counts: bool = False) -> None:
    """Let a shard go that could not be scored; `counts`: it may be to blame, otherwise that was no attempt."""
    with Session(engine) as session, session.begin():
        session.execute(
            _held(sa.update(Shard), lease).values(
                owner=None,
                lease_until=None,
                attempts=Shard.attempts - (0 if counts else 1),
                error=error[:MOST_ERROR],
            )
        )


def settle(engine: Engine, lease: Lease, result: ShardResult, release_id: str, publish: Callable[[], None]) -> bool:
    """Enter what scoring came to; whether the shard is scored now, and its files are in the log.

    `publish` moves the files into place while nobody else can hold the shard. Broken uploads are set aside, changed
    ones are forgotten, to be found anew; the shard then goes on without them.

    Raises:
        OSError: the files could not be published.
    """
    moment = utc_now()
    with exclusive(engine) as session:
        shard = session.get(Shard, lease.shard_id)
        if shard is None or shard.owner != lease.owner or shard.state != ShardState.PLANNED:
            return False  # the lease ran out, and another has taken over
        shard.owner, shard.lease_until = None, None
        if result.broken or result.changed:
            _without(session, shard, lease, result, moment)  # an error stays: what it has left is still to be cleared
            return False
        publish()
        shard.error = None
        shard.state, shard.release_id, shard.days = ShardState.SCORED, release_id, list(result.days)
        shard.rows, shard.unusable, shard.repeated = result.rows, result.unusable, result.repeated
        shard.seconds = result.seconds
        for upload in shard.uploads:
            upload.last_at = moment_of(result.newest_us.get(upload.path, EARLIEST_US))
        shard.last_at = max((upload.last_at for upload in shard.uploads if upload.last_at), default=shard.last_at)
    return True


def _without(session: Session, shard: Shard, lease: Lease, result: ShardResult, moment: dt.datetime) -> None:
    shard.attempts -= 1
    for upload in list(shard.uploads):
        if upload.path in result.broken:
            upload.state, upload.error = UploadState.BROKEN, result.broken[upload.path][:MOST_ERROR]
            upload.read_as = lease.read_as
            shard.uploads.remove(upload)
        elif upload.path in result.changed:
            shard.uploads.remove(upload)
            session.delete(upload)
            copies = (Upload.sha256 == upload.sha256, Upload.state == UploadState.DUPLICATE)
            session.execute(sa.delete(Upload).where(*copies))  # of what was not scored: found anew as well
    if shard.uploads:
        _respan(shard)
    else:
        shard.state, shard.finished_at = ShardState.FAILED, moment


def newest_time(engine: Engine) -> dt.datetime | None:
    """The newest row that is scored and believed; never later than the newest upload came."""
    with Session(reading(engine)) as session:
        return newest_row(session)


def newest_row(session: Session) -> dt.datetime | None:
    """As `newest_time`, in a transaction of the caller's."""
    scored = Shard.state.in_((ShardState.SCORED, ShardState.DONE))
    newest = session.scalar(sa.select(sa.func.max(Shard.last_at)).where(scored))
    arrived = session.scalar(sa.select(sa.func.max(Shard.planned_at)))
    return newest if newest is None or arrived is None else min(newest, arrived)


def newest_arrival(engine: Engine) -> dt.datetime | None:
    """When the newest shard begins, scored or not: the same for every scorer, however far each has come."""
    with Session(reading(engine)) as session:
        newest, arrived = session.execute(sa.select(sa.func.max(Shard.first_at), sa.func.max(Shard.planned_at))).one()
    return None if newest is None or arrived is None else min(newest, arrived)
