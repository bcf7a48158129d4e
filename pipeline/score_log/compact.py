"""A day of the score log in one file, sorted by machine and time, and days that are no longer kept.

A shard holds a short time of many machines; a person asks for a long time of one. In a compacted day the rows of a
machine stand in one row group, or few. Memory is that of `PART_ROWS` rows, whatever the size of the fleet: a larger day
is dealt by machine to files of their own first.

The caller sees to it that nobody else compacts while these functions run; shards may be written, and readers need no
care.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ContractError
from pipeline.schema import codes_and_names, times_us
from pipeline.score_log.files import COMPACTED, MERGED, counting, is_day, log_days, merged_into, open_log_file
from pipeline.score_log.read import in_schema, read_groups, unified_schema
from pipeline.store import ROW_GROUP_ROWS, write_tables

PART_ROWS = 1_000_000
WORKING, REMOVED = ".compacting-", ".removed-"  # folders that a dead process may leave; the next one clears them


@dataclass(frozen=True)
class Compacted:
    """What a compaction came to."""

    file: Path
    rows: int
    merged: int  # files that it holds now


def compact_day(log: Path, day: str, may_change: Callable[[str], bool] = lambda _: False) -> Compacted | None:
    """Merge the files of a day's folder into one, and remove them; rows that came late join at the next call.

    At each moment, and after a crash at any, every row stands in exactly one file that readers count.

    Args:
        log: folder of the score log.
        day: name of the day's folder.
        may_change: whether the file of a shard of this name may still be written anew; then it stays as it is. Asked
            after the folder was listed.

    Returns:
        None where nothing is to be merged.

    Raises:
        ContractError: no name of a day; or a damaged file: then the day stays as it is.
    """
    if not is_day(day):
        raise ContractError.of("day", got=repr(day), expected="YYYY-MM-DD", where=log)
    folder = log / day
    _clear(log, folder)
    files = [path for path in counting(folder) if not may_change(path.stem)]
    if not files or (len(files) == 1 and files[0].name.startswith(COMPACTED)):
        return None
    # of a shard that is long merged: were it scored again, its file must not count beside this one
    merged = sorted({path.name for path in files} | {name for path in files for name in merged_into(path)})
    newest = max(
        (int(path.stem.removeprefix(COMPACTED)) for path in files if path.name.startswith(COMPACTED)), default=0
    )
    target = folder / f"{COMPACTED}{newest + 1:06}.parquet"
    rows = _write_sorted(log, files, target, {MERGED: json.dumps(merged).encode()})
    for path in files:
        path.unlink()
    return Compacted(target, rows, len(files))


def remove_days(log: Path, before: str) -> list[str]:
    """Remove all days of a log before one; returns their names, oldest first.

    Raises:
        ContractError: `before` is no name of a day.
    """
    if not is_day(before):
        raise ContractError.of("day", got=repr(before), expected="YYYY-MM-DD", where=log)
    removed = [day for day in log_days(log) if day < before]
    for day in removed:
        (log / f"{day}.parquet").unlink(missing_ok=True)
        if (log / day).is_dir():  # out of sight in one step, for readers would see a day with holes
            (log / day).replace(Path(tempfile.mkdtemp(prefix=REMOVED, dir=log)) / day)
    for leftover in log.glob(f"{REMOVED}*"):
        shutil.rmtree(leftover)
    return removed


def _clear(log: Path, folder: Path) -> None:
    """Remove what a compaction that died has left: its working files, and files whose rows it had merged already."""
    for leftover in (*log.glob(f"{WORKING}*"), *folder.glob(f".{COMPACTED}*")):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    kept = {path.name for path in counting(folder)}
    for path in folder.glob("*.parquet"):
        if path.name not in kept and path.name[0] not in "._":
            path.unlink()


def _write_sorted(log: Path, files: list[Path], target: Path, metadata: Mapping[bytes, bytes]) -> int:
    """Write the rows of some files as one, by machine, then time; returns how many."""
    with contextlib.ExitStack() as stack:
        opened = [(stack.enter_context(open_log_file(path)), path) for path in files]
        schema = unified_schema(file.schema_arrow for file, _ in opened)
        counts = _rows_by_machine(opened)
        part_of = _parts(counts)
        parts = max(part_of.values(), default=0) + 1
        if parts > 1:
            folder = Path(tempfile.mkdtemp(prefix=WORKING, dir=log))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            dealt = _deal(opened, schema, part_of, [folder / f"{part:06}.parquet" for part in range(parts)])
            tables: Iterator[pa.Table] = (pq.read_table(path) for path in dealt)
        else:
            tables = iter([pa.concat_tables([in_schema(table, schema) for table in _groups(opened)])])
        written = schema.with_metadata(dict(metadata))
        # a tail probability is one of few: that of a place among the calibration rows
        tails = [name for name in schema.names if name.startswith("tail_")]
        write_tables(target, written, (group for table in tables for group in _sorted_groups(table, written)), tails)
    return sum(counts.values())


def _groups(opened: list[tuple[pq.ParquetFile, Path]]) -> Iterator[pa.Table]:
    for file, path in opened:
        for group in range(file.metadata.num_row_groups):
            yield read_groups(file, [group], file.schema_arrow.names, path)


def _rows_by_machine(opened: list[tuple[pq.ParquetFile, Path]]) -> dict[str, int]:
    counts = dict[str, int]()
    for file, path in opened:
        for group in range(file.metadata.num_row_groups):
            code_N, names = codes_and_names(read_groups(file, [group], ["machine_id"], path)["machine_id"])
            for name, rows in zip(names, np.bincount(code_N, minlength=len(names)).tolist(), strict=True):
                counts[name] = counts.get(name, 0) + rows
    return counts


def _parts(counts: Mapping[str, int]) -> dict[str, int]:
    """The part that each machine's rows go to: neighbours by name, together at most `PART_ROWS` rows or one machine."""
    part_of, part, held = dict[str, int](), 0, 0
    for name in sorted(counts):
        if held and held + counts[name] > PART_ROWS:
            part, held = part + 1, 0
        held += counts[name]
        part_of[name] = part
    return part_of


def _deal(
    opened: list[tuple[pq.ParquetFile, Path]], schema: pa.Schema, part_of: Mapping[str, int], paths: list[Path]
) -> list[Path]:
    """Write each row to the file of its machine's part, a row group of the sources at a time."""
    texts = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(pq.ParquetWriter(path, schema, compression="lz4", use_dictionary=texts))
            for path in paths
        ]
        for source in _groups(opened):
            table = in_schema(source, schema)
            code_N, names = codes_and_names(table["machine_id"])
            part_N = np.array([part_of[name] for name in names], np.int32)[code_N]
            order_N = np.argsort(part_N, kind="stable")
            ends = np.searchsorted(part_N[order_N], np.arange(len(writers) + 1))
            for part, writer in enumerate(writers):
                mine = order_N[ends[part] : ends[part + 1]]
                if len(mine):
                    writer.write_table(table.take(pa.array(mine)))
    return paths


def _sorted_groups(table: pa.Table, schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows by machine and time, cut between machines into row groups where a machine is not larger than one."""
    table = table.replace_schema_metadata(schema.metadata).unify_dictionaries()
    code_N, names = codes_and_names(table["machine_id"])
    rank = np.empty(len(names), np.int32)
    rank[np.argsort(np.array(names, object))] = np.arange(len(names), dtype=np.int32)
    machine_N = rank[code_N]
    order_N = np.lexsort((times_us(table["timestamp"]), machine_N))
    cuts = _cuts(machine_N[order_N])
    for begin, end in pairwise(cuts):
        yield table.take(pa.array(order_N[begin:end]))


def _cuts(machine_N: npt.NDArray[np.int32]) -> list[int]:
    """Where row groups of at most `ROW_GROUP_ROWS` rows begin and end, so that as few machines as can be are divided.

    >>> _cuts(np.repeat(np.arange(3, dtype=np.int32), [40_000, 20_000, 30_000]))
    [0, 60000, 90000]
    """
    starts = np.flatnonzero(np.r_[True, machine_N[1:] != machine_N[:-1]]) if len(machine_N) else np.empty(0, np.int64)
    cuts = [0]
    while cuts[-1] < len(machine_N):
        most = min(cuts[-1] + ROW_GROUP_ROWS, len(machine_N))
        between = starts[(starts > cuts[-1]) & (starts <= most)]
        cuts.append(most if most == len(machine_N) or not len(between) else int(between[-1]))
    return cuts
