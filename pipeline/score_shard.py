"""A shard: some uploads in, their rows of the score log out, in files that do not count until they are published.

They go to `<log>/<day>/.<shard>.<token>.tmp`, a file per day; publishing renames each to `<shard>.parquet`. Scoring the
shard again replaces them, so that no row stands twice in the log.

Shape legend: N rows of an upload, S rows of a shard.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.epochs import EpochStarts
from pipeline.errors import ContractError
from pipeline.landing import SourceFile
from pipeline.release import Release, load_release
from pipeline.rows import RowKeys, conditions_of
from pipeline.schema import (
    ENSEMBLE,
    MICROSECONDS_PER_DAY,
    BoolN,
    IntN,
    codes_and_names,
    score_log_schema,
    spectra_view,
    times_us,
)
from pipeline.score import scored_table
from pipeline.score_log import keys_between
from pipeline.sensor_clocks import newest_believed
from pipeline.store import ROW_GROUP_ROWS, parquet_codec, refuse_nulls
from pipeline.train import use_threads
from pipeline.uploads import LandingZone

TEMPORARY = ".tmp"
MOST_MACHINE_NAME = 255  # characters: a key of the database
WORKERS = 2  # pieces that are scored at once
PIECE_ROWS = 100_000  # that are scored at once: the last batch of a piece is padded, and so is that of its explanations
MOST_DAYS = 500  # of one upload: each is a file that is open while the upload is read


@dataclass(frozen=True)
class ShardJob:
    """All that scoring a shard needs, wherever it runs."""

    name: str  # of its files in the score log
    landing: str = field(repr=False)  # a URI may hold credentials
    timezone: str | None  # of times without one
    uploads: tuple[SourceFile, ...]
    release: str  # folder
    release_id: str
    log: str  # folder
    believed_until_us: int  # rows later than this are scored and not believed
    added_log: pa.Table = field(repr=False)  # MAINTENANCE_SCHEMA: what people have added to the plant's log
    device: str = "auto"


@dataclass(frozen=True)
class ShardResult:
    """What scoring a shard came to; if uploads were broken or changed, nothing was written."""

    token: str = ""  # of this attempt: what its files are called until they are published
    rows: int = 0
    unusable: int = 0  # of the rows, without a score
    repeated: int = 0  # left out: their machine and time stand in the log already
    days: tuple[str, ...] = ()
    newest_us: Mapping[str, int] = field(default_factory=dict)  # of each upload the last row that is believed
    seconds: float = 0.0
    broken: Mapping[str, str] = field(default_factory=dict)  # name of the upload: what is wrong
    changed: tuple[str, ...] = ()  # uploads that are gone, or other bytes than were planned


@lru_cache(maxsize=2)
def checked_release(folder: str, identity: str, device: str) -> Release:
    """A release, loaded and checked once per process.

    Raises:
        ReleaseError: it is damaged, or another one.
    """
    return load_release(folder, identity, device)


def score_shard(job: ShardJob) -> ShardResult:
    """Score the uploads of a shard into temporary files of the score log; see `publish`.

    Of rows with the same machine and time the first counts: that in the log, else that of the first upload.

    Raises:
        ReleaseError: a damaged release.
        ContractError: the landing zone is gone, or its maintenance log is wrong.
        OSError: the score log cannot be written.
    """
    begun = time.perf_counter()
    release = checked_release(job.release, job.release_id, job.device)
    use_threads(int(release.manifest["threads"]))
    zone = LandingZone.at(job.landing, job.timezone)
    epochs = release.epochs_with(pa.concat_tables([zone.maintenance(), job.added_log]))
    keys, troubles = [], list[UploadTrouble]()
    for file in job.uploads:
        try:
            with _blaming(zone, file):
                keys.append(_keys(zone, file))
        except UploadTrouble as trouble:
            troubles.append(trouble)
    if troubles:
        return _not_scored(troubles)
    kept = _first_seen(keys, Path(job.log), job.name)
    rows = unusable = 0
    token = secrets.token_hex(6)
    with DayFiles(Path(job.log), job.name, token, score_log_schema(release.manifest["members"])) as days:
        try:
            for file, kept_N in zip(job.uploads, kept, strict=True):
                with _blaming(zone, file):
                    for scored in _scored_pieces(release, zone, file, kept_N, epochs):
                        days.write(scored)
                        rows += scored.num_rows
                        unusable += scored[f"score_{ENSEMBLE}"].null_count
        except UploadTrouble as trouble:
            days.discard()
            return _not_scored([trouble])
    repeated = sum(int((~kept_N).sum()) for kept_N in kept)
    newest = {
        file.name: newest_believed(key.time_us_N, job.believed_until_us)
        for file, key in zip(job.uploads, keys, strict=True)
    }
    return ShardResult(token, rows, unusable, repeated, days.names, newest, time.perf_counter() - begun)


def publish(log: Path | str, name: str, token: str, days: Sequence[str]) -> None:
    """Let the temporary files of an attempt take their places in the score log.

    Raises:
        OSError: a file is gone, or a folder cannot be written.
    """
    for day in days:
        place = Path(log) / day / f"{name}.parquet"
        _temporary(Path(log), day, name, token).replace(place)
        _sync(place.parent)


def drop(log: Path | str, name: str, token: str, days: Sequence[str]) -> None:
    """Remove the temporary files of an attempt that came to nothing."""
    for day in days:
        _temporary(Path(log), day, name, token).unlink(missing_ok=True)


def discard(log: Path | str, name: str) -> None:
    """Remove every file of a shard that is not done: what attempts that died have left, published or not."""
    for pattern in (f"*/.{name}.*{TEMPORARY}", f"*/{name}.parquet"):
        for path in Path(log).glob(pattern):
            path.unlink(missing_ok=True)


class UploadTrouble(Exception):
    """An upload that cannot be scored: its error, or None where it has changed meanwhile or is gone."""

    def __init__(self, name: str, error: str | None) -> None:
        self.name, self.error = name, error
        super().__init__(f"{name}: {error or 'changed'}")


def _not_scored(troubles: Sequence[UploadTrouble]) -> ShardResult:
    broken = {trouble.name: trouble.error for trouble in troubles if trouble.error is not None}
    return ShardResult(broken=broken, changed=tuple(trouble.name for trouble in troubles if trouble.error is None))


@contextmanager
def _blaming(zone: LandingZone, file: SourceFile) -> Iterator[None]:
    """Errors of the contract are the upload's own; and it must be the same before and after."""
    try:
        yield
    except (ContractError, UnicodeDecodeError) as error:
        told = str(error)
        if isinstance(error, UnicodeDecodeError):
            got, where = f"bytes that are not ({error.reason})", zone.place.where(file.name)
            told = str(ContractError.of("text", got=got, expected="UTF-8", where=where))
        raise UploadTrouble(file.name, told if _can_be_read(zone, file) else None) from None
    if not zone.is_unchanged(file):
        raise UploadTrouble(file.name, None)


def _can_be_read(zone: LandingZone, file: SourceFile) -> bool:
    """Whether an upload's bytes are there, and those that were listed: if not, it is not the upload that is broken."""
    try:
        zone.sha256(file.name)
    except ContractError:
        return False
    return zone.is_unchanged(file)


@dataclass(frozen=True)
class _Keys:
    """Machines (names and codes, N) and times of an upload."""

    machines: list[str]
    machine_N: npt.NDArray[np.int32]
    time_us_N: IntN


def _keys(zone: LandingZone, file: SourceFile) -> _Keys:
    """The keys of an upload.

    Raises:
        ContractError: it cannot be read, or has rows of too many days.
    """
    names: dict[str, int] = {}
    codes, times = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    for table in zone.tables(file, ()):
        machine_N, machines = codes_and_names(table["machine_id"])
        codes.append(np.array([names.setdefault(name, len(names)) for name in machines], np.int32)[machine_N])
        times.append(times_us(table["timestamp"]))
    where = zone.place.where(file.name)
    for name in names:
        if len(name) > MOST_MACHINE_NAME or "\0" in name:
            got = f"{name[:40]!r}, {len(name)} characters"
            expected = f"at most {MOST_MACHINE_NAME} characters without NUL"
            raise ContractError.of("machine_id", got=got, expected=expected, where=where)
    time_us_N = np.concatenate(times)
    days = len(np.unique(time_us_N // MICROSECONDS_PER_DAY))
    if days > MOST_DAYS:
        raise ContractError.of("days", got=days, expected=f"at most {MOST_DAYS}", where=where)
    return _Keys(list(names), np.concatenate(codes), time_us_N)


def _first_seen(keys: Sequence[_Keys], log: Path, name: str) -> list[BoolN]:
    """For each upload, which of its rows (N,) are the first with their machine and time."""
    names: dict[str, int] = {}
    code_S = np.concatenate(
        [
            np.array([names.setdefault(each, len(names)) for each in key.machines], np.int32)[key.machine_N]
            for key in keys
        ]
    )
    time_us_S = np.concatenate([key.time_us_N for key in keys])
    first_S = np.ones(len(time_us_S), bool)
    day_S = time_us_S // MICROSECONDS_PER_DAY
    for day in np.unique(day_S):  # one clock that is wrong must not bring the keys of all days between
        here = np.flatnonzero(day_S == day)
        low, high = int(time_us_S[here].min()), int(time_us_S[here].max())
        known, code_K, known_us_K = keys_between(log, low, high + 1, list(names), name)
        known_K = np.array([names.get(each, -1) for each in known], np.int32)[code_K]
        first_S[here] = first_of_keys(np.r_[known_K, code_S[here]], np.r_[known_us_K, time_us_S[here]])[len(known_K) :]
    return np.split(first_S, np.cumsum([len(key.time_us_N) for key in keys])[:-1])


def first_of_keys(code_N: npt.NDArray[np.integer], time_us_N: IntN) -> BoolN:
    """Which rows (N,) are the first with their code and time.

    >>> first_of_keys(np.array([0, 1, 0, 0]), np.array([5, 5, 5, 6]))
    array([ True,  True, False,  True])
    """
    first_N = np.ones(len(time_us_N), bool)
    if not len(time_us_N):
        return first_N
    low, span = int(time_us_N.min()), int(time_us_N.max()) - int(time_us_N.min()) + 1
    if (int(code_N.max()) + 2) * span < 2**63:
        packed_N = (code_N.astype(np.int64) + 1) * span + (time_us_N - low)
        if (packed_N[1:] > packed_N[:-1]).all():  # in order
            return first_N
        ordered = np.sort(packed_N)
        if (ordered[1:] != ordered[:-1]).all():  # as nearly always: no need to know where
            return first_N
        order = np.argsort(packed_N, kind="stable")
        first_N[order[1:]] = packed_N[order[1:]] != packed_N[order[:-1]]
        return first_N
    order = np.lexsort((time_us_N, code_N))
    code, time_us = code_N[order], time_us_N[order]
    first_N[order[1:]] = (code[1:] != code[:-1]) | (time_us[1:] != time_us[:-1])
    return first_N


def _scored_pieces(
    release: Release, zone: LandingZone, file: SourceFile, kept_N: BoolN, epochs: EpochStarts
) -> Iterator[pa.Table]:
    """An upload's rows of the score log, piece by piece; WORKERS pieces are scored while the next one is read.

    Half of a piece's time is torch's, which uses all cores, and half is not: two pieces at once fill them.

    Raises:
        ContractError: a damaged file, or another number of bins than the release's.
    """
    where, threads = zone.place.where(file.name), int(release.manifest["threads"])
    with ThreadPoolExecutor(WORKERS, initializer=use_threads, initargs=(threads,)) as pool:
        waiting = deque[Future[pa.Table]]()
        for row_N, table in _kept_pieces(zone, file, kept_N, int(release.manifest["bins"])):
            waiting.append(pool.submit(_scored, release, file.name, where, row_N, table, epochs))
            if len(waiting) > WORKERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _kept_pieces(zone: LandingZone, file: SourceFile, kept_N: BoolN, bins: int) -> Iterator[tuple[IntN, pa.Table]]:
    """Places and rows of an upload that are to be scored."""
    begin, where = 0, zone.place.where(file.name)
    for table in _ahead(zone.tables(file)):
        found = table.schema.field("spectrum").type.list_size
        if found != bins:
            raise ContractError.of("bins", got=found, expected=bins, where=where)
        kept = np.flatnonzero(kept_N[begin : begin + table.num_rows])
        row_N = begin + kept
        begin += table.num_rows
        if len(kept):
            yield row_N, table if len(kept) == table.num_rows else table.take(pa.array(kept))


def _scored(release: Release, file: str, where: str, row_N: IntN, table: pa.Table, epochs: EpochStarts) -> pa.Table:
    """One piece."""
    machine_N, machines = codes_and_names(table["machine_id"])
    time_us_N = times_us(table["timestamp"])
    condition_N, conditions = conditions_of(table, release.condition_column, where)
    epoch_N = epochs.of_rows(machine_N, time_us_N, machines)
    keys = RowKeys(machines, machine_N, epoch_N, conditions, condition_N)
    spectra_NF = spectra_view(table["spectrum"], int(release.manifest["bins"]), where)
    return scored_table(release, file, row_N, spectra_NF, keys, time_us_N).table


def _ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in pieces of PIECE_ROWS or more, each read while the one before is worked on."""
    tables = _gathered(tables)
    with ThreadPoolExecutor(1) as reader:
        coming: Future[pa.Table | None] = reader.submit(next, tables, None)
        while (table := coming.result()) is not None:
            coming = reader.submit(next, tables, None)
            yield table


def _gathered(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    some, rows = list[pa.Table](), 0
    for table in tables:
        some, rows = [*some, table], rows + table.num_rows
        if rows >= PIECE_ROWS:
            yield pa.concat_tables(some).combine_chunks()
            some, rows = [], 0
    if some:
        yield pa.concat_tables(some).combine_chunks()


class DayFiles:
    """The temporary files of one attempt at a shard, one per day, written beside the work that fills them."""

    def __init__(self, log: Path, name: str, token: str, schema: pa.Schema) -> None:
        self.log, self.name, self.token, self.schema = log, name, token, schema
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._behind = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The days, in order."""
        return tuple(sorted(self._writers))

    def write(self, table: pa.Table) -> None:
        """Add rows of any days; returns when the rows before them are written.

        Raises:
            OSError: the disk is full, say.
        """
        refuse_nulls(table, self.log)
        self._wait()
        self._written = self._behind.submit(self._write, table)

    def _write(self, table: pa.Table) -> None:
        day_N = times_us(table["timestamp"]) // MICROSECONDS_PER_DAY
        days = np.unique(day_N)
        for day in days:
            part = table if len(days) == 1 else table.filter(pa.array(day_N == day))
            self._writer(str(np.datetime64(int(day), "D"))).write_table(part, row_group_size=ROW_GROUP_ROWS)

    def _writer(self, day: str) -> pq.ParquetWriter:
        if day not in self._writers:
            path = _temporary(self.log, day, self.name, self.token)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writers[day] = pq.ParquetWriter(path, self.schema, **parquet_codec(self.schema))
        return self._writers[day]

    def _wait(self) -> None:
        if self._written is not None:
            self._written.result()

    def discard(self) -> None:
        """Remove the files."""
        with suppress(OSError):
            self._close()
        for day in self._writers:
            _temporary(self.log, day, self.name, self.token).unlink(missing_ok=True)
        self._writers.clear()

    def _close(self) -> None:
        self._behind.shutdown()
        for writer in self._writers.values():
            writer.close()

    def __enter__(self) -> DayFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()
            return
        try:
            self._wait()
            self._close()
            for day in self.names:
                _sync(_temporary(self.log, day, self.name, self.token))
        except BaseException:
            self.discard()
            raise


def _temporary(log: Path, day: str, name: str, token: str) -> Path:
    return log / day / f".{name}.{token}{TEMPORARY}"


def _sync(path: Path) -> None:
    """Bring a file, or the names of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
