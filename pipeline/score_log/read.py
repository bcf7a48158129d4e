"""Rows of a score log: keys of a span, and all rows of one machine, from the row groups that can hold them.

Shape legend: N rows.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ContractError
from pipeline.moments import microseconds
from pipeline.schema import ENSEMBLE, MACHINE, BoolN, IntN, codes_and_names, score_log_schema, times_us
from pipeline.score_log.files import days_between, log_days, open_log_file, over_days

KEYS = ("machine_id", "timestamp")
NEWEST_DAYS = 3  # of which the names of machines are read


def keys_between(
    log: Path, since_us: int, until_us: int, machines: Sequence[str] | None, without: str
) -> tuple[list[str], npt.NDArray[np.int32], IntN]:
    """Machine and time of the rows of a log from `since_us` on and before `until_us`.

    Args:
        log: folder of the score log; one that is not there has no rows.
        since_us: microseconds since 1970, UTC.
        until_us: microseconds since 1970, UTC.
        machines: only these; None: all.
        without: name of the shard whose file is left out, as it stands alone. A compacted file holds the rows of shards
            that nobody scores again, and counts.

    Returns:
        Names of machines (those of `machines`, in their order, where given), the code of each row in them (N,), and its
        time in microseconds (N,), in no order.

    Raises:
        ContractError: a damaged file.

    >>> keys_between(Path("/nowhere"), 0, 1, ["pump"], "000000001-ab12cd34")
    (['pump'], array([], dtype=int32), array([], dtype=int64))
    """
    index = {name: code for code, name in enumerate(machines or ())}
    codes, times = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    only = None if machines is None else (min(machines, default=""), max(machines, default=""))

    def read(files: list[Path]) -> list[tuple[npt.NDArray[np.int32], IntN, list[str]]]:
        return [found for path in files if path.stem != without for found in _keys_of(path, since_us, until_us, only)]

    for day in over_days(log, days_between(log, since_us, until_us), read):
        for code_N, time_us_N, names in day:
            if machines is None:
                for name in names:
                    index.setdefault(name, len(index))
            own_N = np.array([index.get(name, -1) for name in names], np.int32)[code_N]
            here_N = (own_N >= 0) & (time_us_N >= since_us) & (time_us_N < until_us)
            codes.append(own_N[here_N])
            times.append(time_us_N[here_N])
    return list(index), np.concatenate(codes), np.concatenate(times)


def _keys_of(
    path: Path, since_us: int, until_us: int, only: tuple[str, str] | None
) -> Iterator[tuple[npt.NDArray[np.int32], IntN, list[str]]]:
    """Codes, times and names of the row groups of a file that can hold rows of a span and of machines between two."""
    with open_log_file(path) as file:
        groups = groups_with(file, since_us, until_us, only, path)
        if groups:
            table = read_groups(file, groups, KEYS, path)
            code_N, names = codes_and_names(table["machine_id"])
            yield code_N, times_us(table["timestamp"]), names


def machine_rows(log: Path, machine: str, since: dt.datetime, until: dt.datetime) -> pa.Table:
    """Every row of one machine from `since` on and before `until`, in time order.

    Columns are those of `pipeline.schema.score_log_schema`, with the members of all releases that scored; where a row's
    release had no such member, they are null. Memory grows with the machine's rows and not with the fleet's.

    Raises:
        ContractError: a damaged file.

    >>> day = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
    >>> machine_rows(Path("/nowhere"), "pump", day, day + dt.timedelta(days=1)).num_rows
    0
    """
    low, high = microseconds(since), microseconds(until)

    def read(files: list[Path]) -> list[pa.Table]:
        return [table for path in files for table in _machine_in(path, machine, low, high)]

    parts = [table for day in over_days(log, days_between(log, low, high), read) for table in day]
    whole = unified(parts)
    return whole.take(pa.array(np.argsort(times_us(whole["timestamp"]), kind="stable")))


def _machine_in(path: Path, machine: str, low: int, high: int) -> Iterator[pa.Table]:
    with open_log_file(path) as file:
        for group in groups_with(file, low, high, (machine, machine), path):
            keys = read_groups(file, [group], KEYS, path)
            here = np.flatnonzero(_is_here(keys, machine, low, high))
            if len(here):
                table = read_groups(file, [group], file.schema_arrow.names, path)
                # copied, or a few rows would hold the whole group
                yield table.take(pa.array(here)).unify_dictionaries().combine_chunks()


def _is_here(keys: pa.Table, machine: str, low: int, high: int) -> BoolN:
    code_N, names = codes_and_names(keys["machine_id"])
    time_us_N = times_us(keys["timestamp"])
    mine = names.index(machine) if machine in names else -2
    return np.asarray((code_N == mine) & (time_us_N >= low) & (time_us_N < high))


def newest_row_us(log: Path, machine: str) -> int | None:
    """The time of a machine's newest row in microseconds; None: it has none.

    Raises:
        ContractError: a damaged file.
    """
    lowest, highest = np.iinfo(np.int64).min, np.iinfo(np.int64).max

    def newest(files: list[Path]) -> int | None:
        found = None
        for path in files:
            for code_N, time_us_N, names in _keys_of(path, lowest, highest, (machine, machine)):
                times = time_us_N[code_N == names.index(machine)] if machine in names else time_us_N[:0]
                found = max(times.max(initial=lowest), found or lowest) if len(times) else found
        return None if found is None else int(found)

    for day in reversed(log_days(log)):
        (found,) = over_days(log, [day], newest)
        if found is not None:
            return found
    return None


def machine_names(log: Path, days: int = NEWEST_DAYS) -> list[str]:
    """The names of the machines that have rows on a log's newest days.

    Raises:
        ContractError: a damaged file.
    """
    everything = (np.iinfo(np.int64).min, np.iinfo(np.int64).max)

    def read(files: list[Path]) -> set[str]:
        return {name for path in files for _, _, names in _keys_of(path, *everything, None) for name in names}

    return sorted(set[str]().union(*over_days(log, log_days(log)[-days:], read)))


def groups_with(
    file: pq.ParquetFile, since_us: int, until_us: int, only: tuple[str, str] | None, where: Path
) -> list[int]:
    """Row groups of a file that can hold rows of a span, and of machines between two names, by their statistics."""
    leaves = {file.metadata.schema.column(place).path: place for place in range(file.metadata.num_columns)}
    missing = [name for name in KEYS if name not in leaves]
    if missing:
        got = f"no column {', '.join(missing)}"
        raise ContractError.of("score log", got=got, expected=", ".join(KEYS), where=where)
    kept = []
    for group in range(file.metadata.num_row_groups):
        columns = file.metadata.row_group(group)
        names, times = (columns.column(leaves[name]).statistics for name in KEYS)
        inside = True
        if times is not None and times.has_min_max:
            inside = microseconds(times.max) >= since_us and microseconds(times.min) < until_us
        if inside and only is not None and names is not None and names.has_min_max:
            inside = _text(names.max) >= only[0] and _text(names.min) <= only[1]
        if inside:
            kept.append(group)
    return kept


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def read_groups(file: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str], path: Path) -> pa.Table:
    """Columns of some row groups of an open file of the log.

    Raises:
        ContractError: it is damaged.
    """
    try:
        return file.read_row_groups(list(groups), columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        got = str(error).splitlines()[0]
        raise ContractError.of("score log", got=got, expected="a whole Parquet file", where=path) from None


def unified_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """One schema for files of several releases: the contract's, with the members of all of them.

    `file` gets 32-bit codes: a day may know more uploads than 16 bits tell apart.
    """
    members, others = dict[str, None](), dict[str, pa.Field]()
    for schema in schemas:
        members |= dict.fromkeys(
            name.removeprefix("score_") for name in schema.names if name.startswith("score_") and name[6:] != ENSEMBLE
        )
        others |= {field.name: field for field in schema}
    known = score_log_schema(list(members))
    known = known.set(known.get_field_index("file"), pa.field("file", MACHINE, nullable=False))
    return pa.schema([*known, *(field for name, field in others.items() if name not in known.names)])


def in_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with the columns of a schema; those that it has not are null."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def unified(parts: Sequence[pa.Table]) -> pa.Table:
    """Tables of several releases as one."""
    schema = unified_schema(part.schema for part in parts)
    whole = pa.concat_tables([in_schema(part, schema) for part in parts]) if parts else schema.empty_table()
    return whole.unify_dictionaries().combine_chunks()
