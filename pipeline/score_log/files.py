"""Which files of a score log count, while others write, merge and remove them.

A compacted file says in its footer which files its rows come from: wherever both lie, those are passed over. It appears
in one step, under a name that is never given twice, and only then are they removed, so that at every moment each row
stands in exactly one file that counts. Nobody waits for anybody: who meets a file that is gone lists its day again.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ContractError
from pipeline.schema import MICROSECONDS_PER_DAY

Found = TypeVar("Found")
DAY_PATTERN = re.compile(r"\d{4}-\d{2}-\d{2}")
COMPACTED = "compacted-"  # then a number that only grows within a day
MERGED = b"hearken.merged"  # in the footer of a compacted file: names of the files whose rows it holds, as JSON
PATIENCE = 5  # compactions of one day that may pass a reader


def is_day(name: str) -> bool:
    """Whether a name is that of a day.

    >>> is_day("2025-02-28"), is_day("2025-02-30"), is_day("2025-2-28"), is_day("../2025")
    (True, False, False, False)
    """
    if not DAY_PATTERN.fullmatch(name):
        return False
    try:
        dt.date.fromisoformat(name)
    except ValueError:
        return False
    return True


def log_days(log: Path) -> list[str]:
    """The days of which a log has a folder or a file, oldest first; none where there is no such log."""
    try:
        entries = list(log.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = {entry.name if entry.is_dir() else entry.name.removesuffix(".parquet") for entry in entries}
    return sorted(name for name in names if is_day(name))


def days_between(log: Path, since_us: int, until_us: int) -> list[str]:
    """Those that can hold rows from `since_us` on and before `until_us` (microseconds since 1970, UTC)."""
    kept = []
    for name in log_days(log):
        start = int(np.datetime64(name, "us").astype(np.int64))
        if start + MICROSECONDS_PER_DAY > since_us and start < until_us:
            kept.append(name)
    return kept


def day_files(log: Path, day: str) -> list[Path]:
    """The files of one day that count."""
    whole = log / f"{day}.parquet"
    return [*([whole] if whole.is_file() else []), *counting(log / day)]


def counting(folder: Path) -> list[Path]:
    """The files of a day's folder that count: all but those whose rows stand in a compacted one."""
    for _ in range(PATIENCE):
        names = _names(folder)
        compacted = [name for name in names if name.startswith(COMPACTED)]
        if not compacted or len(names) == 1:
            return [folder / name for name in sorted(names)]
        try:
            merged = {name for own in compacted for name in merged_into(folder / own)}
        except FileNotFoundError:  # a newer one holds its rows
            continue
        return [folder / name for name in sorted(names - merged)]
    raise _restless(folder)


def merged_into(compacted: Path) -> list[str]:
    """Names of the files whose rows a compacted file holds; empty for any other file of the log.

    Raises:
        FileNotFoundError: it is gone.
        ContractError: it is damaged.
    """
    with open_log_file(compacted) as file:
        return list(json.loads((file.schema_arrow.metadata or {}).get(MERGED, b"[]")))


def open_log_file(path: Path) -> pq.ParquetFile:
    """Open a file of the log; to be used in a `with`.

    Raises:
        FileNotFoundError: it is gone.
        ContractError: it is damaged.
    """
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        got = f"a file that is cut off or no Parquet ({str(error).splitlines()[0]})"
        raise ContractError.of("score log", got=got, expected="a whole Parquet file", where=path) from None


def over_days(log: Path, days: Sequence[str], read: Callable[[list[Path]], Found]) -> list[Found]:
    """What `read` makes of the files of each day; a day whose file goes meanwhile is listed and read again.

    Raises:
        ContractError: files of one day are replaced faster than they can be read.
    """
    return [_of_day(log, day, read) for day in days]


def _of_day(log: Path, day: str, read: Callable[[list[Path]], Found]) -> Found:
    for _ in range(PATIENCE):
        try:
            return read(day_files(log, day))
        except FileNotFoundError:
            continue
    raise _restless(log / day)


def _restless(folder: Path) -> ContractError:
    got = f"files that were gone when they were read, {PATIENCE} times"
    return ContractError.of("score log", got=got, expected="a day that is compacted now and then", where=folder)


def _names(folder: Path) -> set[str]:
    """Names of a folder's log files; none where there is no folder.

    Listed until two lists agree: one list may miss a file that appears and, further on, one that is removed meanwhile.
    """
    before: set[str] | None = None
    while True:
        try:
            names = {entry.name for entry in folder.iterdir()}
        except (FileNotFoundError, NotADirectoryError):
            return set()
        names = {name for name in names if name.endswith(".parquet") and name[0] not in "._"}
        if names == before:
            return names
        before = names
