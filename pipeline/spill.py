"""Rows in any order, gathered by UTC day on disk, and a day's rows sorted into one file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from pipeline.clock import is_text
from pipeline.errors import ContractError
from pipeline.schema import (
    MACHINE,
    MICROSECONDS_PER_DAY,
    TEXT,
    IntN,
    codes_and_names,
    dictionary_column,
    spectra_column,
    spectra_schema,
    spectra_view,
    times_us,
)
from pipeline.store import ROW_GROUP_ROWS, write_tables

FIRST_DAY, LAST_DAY = -719_162, 2_932_896  # years 1 to 9999: names of day files
MAX_TEXT = 32_000  # distinct texts of a day that int16 codes hold


class DaySpill:
    """Tables split by UTC day: held up to a number of bytes, then appended to a folder per day.

    >>> import tempfile
    >>> from pipeline.schema import time_column
    >>> with DaySpill(Path(tempfile.mkdtemp()) / "spill", 1 << 20) as spill:
    ...     spill.add(pa.table({"timestamp": time_column(np.array([0, 86_400_000_000]))}), "example")
    ...     spill.days()
    ['1970-01-01.parquet', '1970-01-02.parquet']
    """

    def __init__(self, folder: Path, buffer_bytes: int) -> None:
        self.folder, self.buffer_bytes = folder, buffer_bytes
        self._held: dict[str, list[pa.Table]] = {}
        self._bytes, self._parts = 0, dict[str, int]()
        self._kept_held, self._kept_parts = dict[str, int](), dict[str, int]()  # as of the last keep()

    def __enter__(self) -> DaySpill:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, table: pa.Table, where: object) -> None:
        """Take the rows of a table.

        Raises:
            ContractError: a time outside the years 1 to 9999.
        """
        day_N = times_us(table["timestamp"]) // MICROSECONDS_PER_DAY
        if not len(day_N):
            return
        if day_N.min() < FIRST_DAY or day_N.max() > LAST_DAY:
            got = "a time outside the years 1 to 9999"
            raise ContractError.of("timestamp", got=got, expected="a time of a plant", where=where)
        order = None if (day_N[1:] >= day_N[:-1]).all() else np.argsort(day_N, kind="stable")
        if order is not None:
            table, day_N = _taken(table, order), day_N[order]
        starts = np.flatnonzero(np.r_[True, day_N[1:] != day_N[:-1]])
        for start, end in zip(starts, np.r_[starts[1:], len(day_N)], strict=True):
            name = f"{np.datetime64(int(day_N[start]), 'D')}.parquet"
            self._held.setdefault(name, []).append(table.slice(start, end - start))
        self._bytes += table.nbytes
        if self._bytes > self.buffer_bytes:
            self._flush()

    def keep(self) -> None:
        """All rows so far stay, whatever drop() does later."""
        self._kept_held = {name: len(tables) for name, tables in self._held.items()}
        self._kept_parts = dict(self._parts)

    def drop(self) -> None:
        """Forget the rows that came after the last keep()."""
        for name in [*self._parts]:
            for number in range(self._kept_parts.get(name, 0), self._parts[name]):
                self._part(name, number).unlink()
        self._parts = dict(self._kept_parts)
        self._held = {name: self._held[name][:count] for name, count in self._kept_held.items()}
        self._bytes = sum(table.nbytes for tables in self._held.values() for table in tables)

    def days(self) -> list[str]:
        """File names of the days seen, oldest first."""
        return sorted({*self._held, *self._parts})

    def read(self, name: str) -> pa.Table:
        """All rows of a day, in the order in which they came."""
        tables = []
        for part in range(self._parts.get(name, 0)):
            with pa.memory_map(str(self._part(name, part))) as file:  # pages come and go, the heap does not grow
                tables.append(pa.ipc.open_file(file).read_all())
        tables += self._held.get(name, [])
        return _concatenated(tables, name)

    def _flush(self) -> None:
        """What was kept and what came later go to parts of their own: a part is dropped whole or not at all."""
        kept = {name: self._held[name][:count] for name, count in self._kept_held.items() if count}
        later = {name: tables[self._kept_held.get(name, 0) :] for name, tables in self._held.items()}
        self._write(kept)
        self._kept_parts, self._kept_held = self._kept_parts | {name: self._parts[name] for name in kept}, {}
        self._write({name: tables for name, tables in later.items() if tables})
        self._held, self._bytes = {}, 0

    def _write(self, held: dict[str, list[pa.Table]]) -> None:
        for name, tables in held.items():
            table = _concatenated(tables, name)
            number = self._parts.get(name, 0)
            self._part(name, number).parent.mkdir(parents=True, exist_ok=True)
            with pa.OSFile(str(self._part(name, number)), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            self._parts[name] = number + 1

    def _part(self, name: str, number: int) -> Path:
        return self.folder / name / f"{number:06d}.arrow"


def _concatenated(tables: list[pa.Table], where: object) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        got = f"columns that differ between files ({str(error).splitlines()[0]})"
        raise ContractError.of("context", got=got, expected="one type per column", where=where) from None


def write_day(table: pa.Table, path: Path) -> None:
    """Write a day's rows sorted by machine and time, text dictionary-encoded, one row group in memory at a time.

    Equal rows give equal bytes, in whatever order and chunks they came (rows of one machine and time keep theirs).
    """
    bins = table.schema.field("spectrum").type.list_size
    codes, names = codes_and_names(table["machine_id"])
    rank = np.empty(len(names), np.int32)
    rank[np.argsort(np.array(names, dtype=object))] = np.arange(len(names), dtype=np.int32)
    order = np.lexsort((times_us(table["timestamp"]), rank[codes]))
    columns = [dictionary_column(rank[codes][order], sorted(names), MACHINE), table["timestamp"].take(order)]
    fields = []
    for name in sorted(set(table.column_names) - {"machine_id", "timestamp", "spectrum"}):
        column = table[name].take(order).combine_chunks()
        if is_text(column.type):
            encoded = column.dictionary_encode()
            column = encoded.cast(TEXT if len(encoded.dictionary) <= MAX_TEXT else MACHINE)
        fields.append(pa.field(name, column.type))
        columns.append(column)
    rest = pa.Table.from_arrays(columns, names=["machine_id", "timestamp", *(field.name for field in fields)])
    schema = spectra_schema(bins, fields)
    write_tables(path, schema, _row_groups(rest.combine_chunks(), table["spectrum"], order, schema))


def _row_groups(rest: pa.Table, spectra: pa.ChunkedArray, order: IntN, schema: pa.Schema) -> Iterator[pa.Table]:
    """Row groups in their final order; the spectra of each are gathered from the chunks in which they came."""
    views = [spectra_view(chunk, chunk.type.list_size) for chunk in spectra.chunks]
    ends = np.cumsum([len(view) for view in views])
    for begin in range(0, len(order), ROW_GROUP_ROWS):
        wanted = order[begin : begin + ROW_GROUP_ROWS]
        chunk_of = np.searchsorted(ends, wanted, side="right")
        spectra_NF = np.empty((len(wanted), schema.field("spectrum").type.list_size), np.float32)
        for chunk in np.unique(chunk_of):
            here = np.flatnonzero(chunk_of == chunk)
            spectra_NF[here] = views[chunk][wanted[here] - (ends[chunk] - len(views[chunk]))]
        group = rest.slice(begin, len(wanted))
        yield pa.Table.from_arrays([*group.columns[:2], spectra_column(spectra_NF), *group.columns[2:]], schema=schema)


def _taken(table: pa.Table, order: np.ndarray) -> pa.Table:
    """Rows in another order; spectra through NumPy, which copies lists eight times as fast."""
    spectrum = "spectrum" if "spectrum" in table.column_names else None
    rest = table.drop_columns([spectrum]).take(order) if spectrum else table.take(order)
    if spectrum is None:
        return rest
    bins = table.schema.field(spectrum).type.list_size
    return rest.append_column(spectrum, spectra_column(spectra_view(table[spectrum], bins)[order]))
