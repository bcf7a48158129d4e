"""A fair sample of the newest scored rows of a log: keys alone, one row group at a time, memory bounded.

Shape legend: P rows of the pool.
"""

from __future__ import annotations

import datetime as dt
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.drift.sampling import fair_sample, mixed, ranks
from pipeline.errors import ContractError
from pipeline.facts import STRAY_SHARE, newest_of_the_fleet
from pipeline.moments import microseconds
from pipeline.schema import MICROSECONDS_PER_DAY, MICROSECONDS_PER_HOUR, IntN, codes_and_names, times_us
from pipeline.score_log.files import log_days, open_log_file, over_days
from pipeline.score_log.read import groups_with, read_groups

WRONG_CLOCK_HOURS = 2.0  # a few rows further ahead than this have a wrong clock
DAYS_BEFORE = 30  # that rows are held against: if none of them makes them look few, no wrong clock made them
POOL = 4  # times the wanted rows, of which the final ones are chosen
LOG_COLUMNS = ("file", "row", "machine_id", "timestamp", "epoch", "baseline", "release")


@dataclass(frozen=True)
class Keys:
    """Rows of the log that were drawn, in time order, the span, and how many usable rows it holds."""

    table: pa.Table
    start_us: int
    end_us: int
    found: int


@dataclass
class _Pool:
    """The rows of a log with the smallest random numbers of each machine and hour, as they pass."""

    wanted: int
    seed: int
    tables: list[pa.Table] = field(default_factory=list)
    depth: int = 1 << 30  # rows kept of each machine and hour
    rows: int = 0
    hours: dict[int, int] = field(default_factory=dict)  # usable rows of each

    def add(self, table: pa.Table) -> None:
        """Take what counts of some rows."""
        usable = table.filter(pa.array(table["baseline"].is_valid().to_numpy(zero_copy_only=False)))
        if not usable.num_rows:
            return
        hours, counts = np.unique(times_us(usable["timestamp"]) // MICROSECONDS_PER_HOUR, return_counts=True)
        for hour, count in zip(hours.tolist(), counts.tolist(), strict=True):
            self.hours[hour] = self.hours.get(hour, 0) + count
        kept = self._thinned(usable, min(self.depth, self.wanted))
        self.tables.append(kept)
        self.rows += kept.num_rows
        if self.rows > 2 * POOL * self.wanted:
            self._settle()

    def whole(self) -> pa.Table:
        """Everything that is kept."""
        if len(self.tables) > 1:
            self.tables = [pa.concat_tables(self.tables).unify_dictionaries().combine_chunks()]
        return self.tables[0]

    def _settle(self) -> None:
        """Keep the most of each machine and hour that leave no more than the pool holds."""
        table = self.whole()
        rank_P = ranks(*_strata(table, self.seed))
        deepest = np.cumsum(np.bincount(rank_P))
        self.depth = max(1, int((deepest <= POOL * self.wanted).sum()))
        self.tables = [table.filter(pa.array(rank_P < self.depth))]
        self.rows = self.tables[0].num_rows

    def _thinned(self, table: pa.Table, depth: int) -> pa.Table:
        rank_P = ranks(*_strata(table, self.seed))
        return table if (rank_P < depth).all() else table.filter(pa.array(rank_P < depth))


def sampled_keys(log: Path, days: float, max_rows: int, seed: int, until: dt.datetime | None = None) -> Keys:
    """Keys of a fair sample of the scored rows of the newest days of a log.

    Which rows are drawn follows from seed, machine and time alone, not from the files that hold them.

    Raises:
        ContractError: no scored rows, or a damaged file.
    """
    span_us, end_us = int(days * MICROSECONDS_PER_DAY), np.iinfo(np.int64).max if until is None else microseconds(until)
    pool, newest, start_us = _Pool(max_rows, seed), 0, 0
    listed = list(reversed(log_days(log)))
    for place, day in enumerate(listed):
        first_us = int(np.datetime64(day, "us").astype(np.int64))
        if first_us >= end_us:
            continue

        def read(files: list[Path]) -> list[pa.Table]:
            return [table for path in files for table in _groups(path, int(end_us))]

        if pool.tables and first_us + MICROSECONDS_PER_DAY <= start_us and not _is_stray(pool, log, listed[place:]):
            break
        for tables in over_days(log, [day], read):
            for table in tables:
                pool.add(table)
        if pool.tables:
            kept = pool.whole()
            newest = newest_of_the_fleet(
                codes_and_names(kept["machine_id"])[0], times_us(kept["timestamp"]), WRONG_CLOCK_HOURS
            )
            start_us = (newest if until is None else microseconds(until)) - span_us
    if not pool.tables:
        raise ContractError.of("score log", got="no scored rows", expected="rows of the service", where=log)
    table = pool.whole()
    time_us_P = times_us(table["timestamp"])
    table = table.filter(pa.array((time_us_P > start_us) & (time_us_P <= newest)))
    stratum_P, random_P = _strata(table, seed)
    machine_P, _ = codes_and_names(table["machine_id"])
    picked = fair_sample(machine_P, ranks(stratum_P, random_P), random_P, max_rows)
    table = table.take(pa.array(picked))
    table = table.take(pa.array(np.argsort(times_us(table["timestamp"]), kind="stable")))
    inside = range(start_us // MICROSECONDS_PER_HOUR, newest // MICROSECONDS_PER_HOUR + 1)
    found = sum(rows for hour, rows in pool.hours.items() if hour in inside)
    return Keys(table, start_us, newest, found)


def _is_stray(pool: _Pool, log: Path, earlier: Sequence[str]) -> bool:
    """Whether all rows until now are so few beside those of a day before that only wrong clocks explain them.

    Wrong clocks leave several days ahead over time, each with few rows: those before a day may be of the same kind.

    Args:
        pool: what was read.
        log: folder of the score log.
        earlier: its days that were not, the newest first.
    """

    def read(files: list[Path]) -> int:
        rows = 0
        for path in files:
            with open_log_file(path) as file:
                rows += file.metadata.num_rows
        return rows

    found = sum(pool.hours.values())
    return any(found <= STRAY_SHARE * sum(over_days(log, [day], read)) for day in earlier[:DAYS_BEFORE])


def _groups(path: Path, end_us: int) -> list[pa.Table]:
    """Keys of a file of the log, a row group at a time."""
    tables = []
    with open_log_file(path) as file:
        for group in groups_with(file, np.iinfo(np.int64).min, end_us, None, path):
            table = read_groups(file, [group], LOG_COLUMNS, path)
            early = times_us(table["timestamp"]) < end_us
            table = table if early.all() else table.filter(pa.array(early))
            wide = pa.dictionary(pa.int32(), pa.string())
            for name in ("file", "machine_id", "baseline", "release"):  # 16-bit codes do not join
                table = table.set_column(table.column_names.index(name), name, table[name].cast(wide))
            tables.append(table)
    return tables


def _strata(table: pa.Table, seed: int) -> tuple[IntN, npt.NDArray[np.uint64]]:
    """Machine and hour of each row as a number, and a random number that follows from seed, machine and time."""
    machine_N, machines = codes_and_names(table["machine_id"])
    time_us_N = times_us(table["timestamp"])
    hour_N = time_us_N // MICROSECONDS_PER_HOUR
    hour_N = hour_N - hour_N.min(initial=0)
    salt = np.array([zlib.crc32(name.encode()) for name in machines] or [0], np.uint64)[machine_N]
    return machine_N.astype(np.int64) * (int(hour_N.max(initial=0)) + 1) + hour_N, mixed(time_us_N, salt, seed)
