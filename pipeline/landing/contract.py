"""Tables as they stand in a file, turned into tables of the contract: names, UTC, one list of float32 per row.

Shape legend: N rows, F frequency bins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.clock import Clock, FileTimes, is_text
from pipeline.errors import ContractError
from pipeline.landing.forms import Form, is_number
from pipeline.layout import SourceLayout
from pipeline.schema import FloatNF, IntN, codes_and_names, spectra_column, spectra_view, time_column
from pipeline.units import Conversion

SLAB_ROWS = 2048  # of a wide table that are turned at once: they stay in the cache


@dataclass
class Counts:
    """How many rows each machine has had so far, where times are counted."""

    rows: dict[str, int] = field(default_factory=dict)


@dataclass
class TableReader:
    """Turns the tables of one file, in their order, into tables of the contract."""

    form: Form
    layout: SourceLayout
    clock: Clock
    unit: Conversion
    where: str
    at: Callable[[int], str]  # how a row of the file is named in messages
    counts: Counts
    begin: int = 0
    times: FileTimes = field(default_factory=FileTimes)

    def columns(self, context: Sequence[str] | None) -> list[str]:
        """Names in the file of all that is needed: everything, or the keys and some context."""
        keys = [name for name in (self.form.machine, self.form.timestamp, self.form.axis) if name is not None]
        spectra = self.form.columns if context is None else ()
        names = [self.form.context[name] for name in self._context_names(context) if name in self.form.context]
        return list(dict.fromkeys([*keys, *spectra, *names]))

    def read(self, table: pa.Table, context: Sequence[str] | None = None) -> pa.Table:
        """The next table; `context` names the context to read, without spectra; None: all of it and the spectra.

        Raises:
            ContractError: nulls in the keys, text in a number, ragged lists.
        """
        machines = self._machines(table)
        arrays: dict[str, object] = {"machine_id": machines, "timestamp": time_column(self._times(table, machines))}
        if context is None:
            spectra_NF = self.unit.apply(self._spectra(table))
            arrays["spectrum"] = spectra_column(spectra_NF)
        axis = self._axis(table)
        if axis is not None:
            arrays["axis"] = axis
        for name in self._context_names(context):
            if name in self.form.facts:
                arrays[name] = pa.repeat(pa.scalar(self.form.facts[name], pa.string()), table.num_rows)
            else:
                arrays[name] = _context(table[self.form.context[name]])
        self.begin += table.num_rows
        return pa.table(arrays)

    def _context_names(self, context: Sequence[str] | None) -> list[str]:
        known = context_of(self.form)
        return known if context is None else [name for name in context if name in known]

    def _at(self, row: int) -> str:
        return self.at(self.begin + row)

    def _machines(self, table: pa.Table) -> pa.ChunkedArray | pa.Array:
        if self.form.machine is None:
            name = self.form.facts.get("machine_id") or self.layout.machine_id
            return pa.repeat(pa.scalar(name, pa.string()), table.num_rows)
        column = table[self.form.machine]
        if not (is_text(column.type) or pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
            raise ContractError.of("type of machine_id", got=column.type, expected="text", where=self.where)
        names = _filled(column)
        if names.null_count:
            row = int(np.flatnonzero(np.asarray(pc.is_null(names)))[0])
            raise ContractError.of("machine_id", got=f"null in {self._at(row)}", expected="a name", where=self.where)
        return names

    def _axis(self, table: pa.Table) -> pa.ChunkedArray | pa.Array | None:
        if "axis" in self.form.facts:
            return pa.repeat(pa.scalar(self.form.facts["axis"], pa.string()), table.num_rows)
        if self.form.axis is None:
            return None
        names = _filled(table[self.form.axis])
        if names.null_count:
            row = int(np.flatnonzero(np.asarray(pc.is_null(names)))[0])
            raise ContractError.of("axis", got=f"null in {self._at(row)}", expected="a name", where=self.where)
        return names

    def _times(self, table: pa.Table, machines: pa.ChunkedArray | pa.Array) -> IntN:
        if self.form.timestamp is not None:
            column = table[self.form.timestamp]
            if is_text(column.type):
                column = _filled(column)
            form = self.layout.timestamp_format
            try:
                return self.clock.to_utc_us(
                    column, self.where, form=form, machines=machines, state=self.times, at=self._at
                )
            except ContractError:
                raise_if_swapped(column, machines, self.where)
                raise
        start_us = record_start(self.form, self.layout, self.clock, self.where)
        return counted_times(start_us, self.layout, machines, self._axis(table), self.counts, self.where)

    def _spectra(self, table: pa.Table) -> FloatNF:
        form = self.form
        if form.listed:
            parts = [self._listed(table[name], form.bins // len(form.columns)) for name in form.columns]
            return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        columns = [self._numbers(table[name], name) for name in form.columns]
        spectra_NF = np.empty((table.num_rows, form.bins), np.float32)
        # in slabs: one column after the other would walk through all of the array once per bin
        for first in range(0, table.num_rows, SLAB_ROWS):
            slab = slice(first, first + SLAB_ROWS)
            for index, column in enumerate(columns):
                spectra_NF[slab, index] = column[slab]
        return spectra_NF

    def _numbers(self, column: pa.ChunkedArray, name: str) -> npt.NDArray[np.float32]:
        """A column as float32, null as NaN."""
        if is_text(column.type):
            text = column.cast(pa.string()).to_pandas()
            wrong = np.flatnonzero((pd.to_numeric(text, errors="coerce").isna() & text.notna()).to_numpy())
            got = "text" if not len(text) else f"text ({text.iloc[wrong[0] if len(wrong) else 0]!r})"
            place = f" in {self._at(int(wrong[0]))}" if len(wrong) else ""
            raise ContractError.of(name, got=f"{got}{place}", expected="numbers", where=self.where)
        if not is_number(column.type):
            raise ContractError.of(f"type of {name}", got=column.type, expected="numbers", where=self.where)
        column = column.cast(pa.float64()) if pa.types.is_decimal(column.type) else column
        with np.errstate(over="ignore"):  # beyond float32: infinite, which validation sets aside
            return np.asarray(column.to_numpy(), dtype=np.float32)

    def _listed(self, column: pa.ChunkedArray, bins: int) -> FloatNF:
        """(N, F) of a list column with the same number of values in each row."""
        if column.null_count:
            row = int(np.flatnonzero(np.asarray(pc.is_null(column)))[0])
            got = f"null in {self._at(row)}"
            raise ContractError.of("spectrum", got=got, expected="a list of numbers", where=self.where)
        value = column.type.value_type
        if not is_number(value) or pa.types.is_decimal(value):
            raise ContractError.of("type of spectrum", got=column.type, expected="lists of numbers", where=self.where)
        lengths = np.asarray(pc.list_value_length(column))
        if (lengths != bins).any():
            row = int(np.flatnonzero(lengths != bins)[0])
            got = f"{lengths[row]} values in {self._at(row)}"
            raise ContractError.of("spectrum", got=got, expected=f"{bins} values in every row", where=self.where)
        if pa.types.is_fixed_size_list(column.type) and pa.types.is_float32(value):
            return spectra_view(column, bins, self.where)
        with np.errstate(over="ignore"):
            return np.asarray(pc.list_flatten(column).to_numpy(), dtype=np.float32).reshape(-1, bins)


def context_facts(form: Form) -> list[str]:
    """Names of the context that the path tells."""
    return [name for name in form.facts if name not in ("machine_id", "timestamp", "sequence", "axis")]


def context_of(form: Form) -> list[str]:
    """Names of all context of a file."""
    return [*form.context, *context_facts(form)]


def raise_if_swapped(times: pa.ChunkedArray, machines: pa.ChunkedArray | pa.Array, where: str) -> None:
    """Say so where the column of machines holds the times.

    Raises:
        ContractError: the first machine's name is a time.
    """
    first = machines[0].as_py() if len(machines) else ""
    if is_text(times.type) and any(mark in first for mark in "-/:") and _is_date(first):
        got = f"times in machine_id ({first[:40]!r}) and {str(times[0])[:40]!r} in timestamp"
        expected = "names and times: the columns are swapped; --map machine_id=COLUMN --map timestamp=COLUMN"
        raise ContractError.of("columns", got=got, expected=expected, where=where)


def _is_date(text: str) -> bool:
    return bool(pd.notna(pd.to_datetime(pd.Series([text]), format="ISO8601", errors="coerce")).iloc[0])


def record_start(form: Form, layout: SourceLayout, clock: Clock, where: str) -> int:
    """When a file begins (microseconds, UTC), from its path, or from its number among those of its machine.

    Raises:
        ContractError: nothing tells.
    """
    if "timestamp" in form.facts:
        text = pa.array([form.facts["timestamp"]])
        return int(clock.to_utc_us(text, where, form=layout.timestamp_format, at=lambda _: "the path")[0])
    if layout.start is None:
        expected = (
            "times: --path-pattern with {timestamp}, a column (--map timestamp=COLUMN), or --start and --interval"
        )
        raise ContractError.of("timestamp", got="no times", expected=expected, where=where)
    moment = pd.Timestamp(layout.start)
    plain = pa.array([moment.tz_convert("UTC").tz_localize(None) if moment.tzinfo else moment], pa.timestamp("us"))
    start_us = clock.to_utc_us(plain.cast(pa.timestamp("us", "UTC")) if moment.tzinfo else plain, where)[0]
    if form.sequence and layout.interval_seconds is None:
        expected = "--interval: the seconds from one record to the next"
        raise ContractError.of("timestamp", got="several records without times", expected=expected, where=where)
    return int(start_us) + round(form.sequence * (layout.interval_seconds or 0) * 1e6)


def counted_times(
    start_us: int,
    layout: SourceLayout,
    machines: pa.ChunkedArray | pa.Array,
    axis: pa.ChunkedArray | pa.Array | None,
    counts: Counts,
    where: str,
) -> IntN:
    """start + n * interval of each machine's n-th row.

    Raises:
        ContractError: a machine with several rows, and no interval.
    """
    codes, names = codes_and_names(machines)
    if axis is not None:
        axis_codes, axes = codes_and_names(axis)
        codes, names = codes * len(axes) + axis_codes, [f"{name}\0{other}" for name in names for other in axes]
    before = np.array([counts.rows.get(name, 0) for name in names] or [0], np.int64)
    index_N = pd.Series(codes).groupby(codes).cumcount().to_numpy() + before[codes]
    for code, count in zip(*np.unique(codes, return_counts=True), strict=True):
        counts.rows[names[code]] = counts.rows.get(names[code], 0) + int(count)
    if layout.interval_seconds is None and len(index_N) and index_N.max() > 0:
        expected = "a column of times (--map timestamp=COLUMN), or --interval"
        raise ContractError.of("timestamp", got="several rows without times", expected=expected, where=where)
    times_N: IntN = start_us + np.rint(index_N * (layout.interval_seconds or 0) * 1e6).astype(np.int64)
    return times_N


def _filled(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text; what is empty is null."""
    text = column.cast(pa.string())
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _context(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return _filled(column) if is_text(column.type) else column
