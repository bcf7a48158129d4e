"""What a plant hands us: Parquet files in wide or list form, local times, context; as tables of the contract.

Two forms are known. List form: a column `spectrum` of lists. Wide form: `bin_00, bin_01 ...` (magnitudes) or
`f_000, f_001 ...` (any numbers). Both hold `machine_id` and `timestamp`; every other scalar column is context.

Shape legend: N rows, F frequency bins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.clock import Clock, is_text
from pipeline.errors import ContractError
from pipeline.schema import (
    FleetSpec,
    FloatNF,
    load_fleet_spec,
    spectra_column,
    spectra_view,
    time_column,
)
from pipeline.store import open_parquet, read_batches

KEYS = ("machine_id", "timestamp")
WIDE_FORMS: tuple[tuple[Literal["spectrum", "features"], re.Pattern[str]], ...] = (
    ("spectrum", re.compile(r"bin_(\d+)")),
    ("features", re.compile(r"f_(\d+)")),
)


@dataclass(frozen=True)
class Form:
    """How one file holds its spectra, and what else it holds."""

    kind: Literal["spectrum", "features"]
    bins: int
    columns: tuple[str, ...]  # of the spectra: one, `spectrum`, or one per bin
    context: tuple[str, ...]
    dropped: tuple[str, ...]  # neither key nor spectrum nor scalar


def source_files(source: Path) -> list[Path]:
    """The Parquet files of a source: a file, the day files of a data set, or the files of a folder, by name.

    Raises:
        ContractError: no such place, or no Parquet file in it.
    """
    if source.is_file():
        return [source]
    folder = source / "spectra" if (source / "spectra").is_dir() else source
    logs = {"maintenance.parquet", "truth.parquet", "failures.parquet", "feedback.parquet"}
    files = sorted(path for path in folder.glob("*.parquet") if path.is_file() and path.name not in logs)
    if not files:
        got = "no Parquet file" if folder.is_dir() else "no such file or folder"
        raise ContractError.of("spectra", got=got, expected="at least one Parquet file", where=folder)
    return files


def source_spec(source: Path) -> FleetSpec | None:
    """The source's fleet.yaml, if it has one."""
    path = source / "fleet.yaml"
    return load_fleet_spec(path) if source.is_dir() and path.exists() else None


def source_clock(timezone: str | None, spec: FleetSpec | None) -> Clock:
    """The zone of times without one: the setting's, else that which fleet.yaml states, else UTC is assumed."""
    stated = spec.timezone if spec is not None and "timezone" in spec.model_fields_set else None
    return Clock(timezone or stated)


def form_of(schema: pa.Schema, where: object) -> Form:
    """How a file of this schema holds its spectra.

    Raises:
        ContractError: a key or the spectra are missing, bins are not numbered 0, 1, 2 ..., or hold no numbers.

    >>> form_of(pa.schema({"machine_id": "string", "timestamp": "date32", "bin_0": "float32"}), "example").bins
    1
    """
    names = schema.names
    missing = [key for key in KEYS if key not in names]
    if missing:
        raise ContractError.of(
            "columns", got=f"no {' and no '.join(missing)}", expected=" and ".join(KEYS), where=where
        )
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ContractError.of("columns", got=f"{duplicates[0]} twice", expected="each name once", where=where)
    if "spectrum" in names:
        bins = _list_size(schema.field("spectrum").type, where)
        return _with_context(schema, "spectrum", bins, ("spectrum",))
    for kind, pattern in WIDE_FORMS:
        numbered = {int(found.group(1)): name for name in names if (found := pattern.fullmatch(name))}
        if numbered:
            gaps = set(range(max(numbered) + 1)) - set(numbered)
            if gaps:
                got = f"no column for bin {min(gaps)}"
                raise ContractError.of("bins", got=got, expected=f"0 to {max(numbered)}", where=where)
            return _with_context(schema, kind, len(numbered), tuple(numbered[i] for i in sorted(numbered)))
    expected = "spectrum (lists), bin_00 ... or f_000 ..."
    raise ContractError.of("columns", got="no spectra", expected=expected, where=where)


def _list_size(kind: pa.DataType, where: object) -> int:
    """Number of values in each list; 0 where only the rows can tell."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return 0
    raise ContractError.of("type of spectrum", got=kind, expected="lists of numbers", where=where)


def _with_context(
    schema: pa.Schema, kind: Literal["spectrum", "features"], bins: int, columns: tuple[str, ...]
) -> Form:
    rest = [entry for entry in schema if entry.name not in {*KEYS, *columns}]
    context = tuple(entry.name for entry in rest if _is_scalar(entry.type))
    return Form(kind, bins, columns, context, tuple(entry.name for entry in rest if entry.name not in context))


def _is_scalar(kind: pa.DataType) -> bool:
    known = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_timestamp, pa.types.is_date)
    return is_text(kind) or any(test(kind) for test in known)


def contract_batches(path: Path, form: Form, clock: Clock, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """One file as tables of the contract: machine_id (text), timestamp (UTC), spectrum, context; rows in file order.

    `columns` names the context to read, without spectra; by default all of it and the spectra.

    Raises:
        ContractError: nulls in the keys, text in a number, ragged lists, a damaged file.
    """
    wanted = [*KEYS, *(form.columns if columns is None else ()), *(form.context if columns is None else columns)]
    begin = 0
    for table in read_batches(path, wanted):
        where = path if begin == 0 else f"{path} (rows from {begin})"
        arrays = {"machine_id": _machines(table["machine_id"], where)}
        arrays["timestamp"] = time_column(clock.to_utc_us(table["timestamp"], where))
        if columns is None:
            arrays["spectrum"] = spectra_column(_spectra(table, form, where))
        for name in wanted:
            if name not in {*KEYS, *form.columns}:
                arrays[name] = _context(table[name])
        yield pa.table(arrays)
        begin += table.num_rows


def _machines(column: pa.ChunkedArray, where: object) -> pa.ChunkedArray:
    if pa.types.is_floating(column.type) or not _is_scalar(column.type):
        raise ContractError.of("type of machine_id", got=column.type, expected="text", where=where)
    names = column.cast(pa.string())
    if names.null_count:
        row = int(np.flatnonzero(np.asarray(pc.is_null(names)))[0])
        raise ContractError.of("machine_id", got=f"null in row {row}", expected="a name", where=where)
    return names


def _context(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string()) if is_text(column.type) else column


def _spectra(table: pa.Table, form: Form, where: object) -> FloatNF:
    if form.columns == ("spectrum",):
        return _listed(table["spectrum"], form.bins, where)
    spectra_NF = np.empty((table.num_rows, form.bins), np.float32)
    for index, name in enumerate(form.columns):
        spectra_NF[:, index] = _numbers(table[name], name, where)
    return spectra_NF


def _numbers(column: pa.ChunkedArray, name: str, where: object) -> np.ndarray:
    """A column as float32, null as NaN."""
    if is_text(column.type):
        text = column.cast(pa.string()).to_pandas()
        wrong = text[pd.to_numeric(text, errors="coerce").isna() & text.notna()]
        got = f"text ({(wrong if len(wrong) else text).iloc[0]!r})" if len(text) else "text"
        raise ContractError.of(name, got=got, expected="numbers", where=where)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise ContractError.of(f"type of {name}", got=column.type, expected="numbers", where=where)
    with np.errstate(over="ignore"):  # beyond float32: infinite, which validation sets aside
        return np.asarray(column.to_numpy(), dtype=np.float32)


def _listed(column: pa.ChunkedArray, bins: int, where: object) -> FloatNF:
    """(N, F) of a list column with the same number of values in each row."""
    if column.null_count:
        row = int(np.flatnonzero(np.asarray(pc.is_null(column)))[0])
        raise ContractError.of("spectrum", got=f"null in row {row}", expected="a list of numbers", where=where)
    value = column.type.value_type
    if not (pa.types.is_floating(value) or pa.types.is_integer(value)):
        raise ContractError.of("type of spectrum", got=column.type, expected="lists of numbers", where=where)
    lengths = np.asarray(pc.list_value_length(column))
    if (lengths != bins).any():
        row = int(np.flatnonzero(lengths != bins)[0])
        got = f"{lengths[row]} values in row {row}"
        raise ContractError.of("spectrum", got=got, expected=f"{bins} values in every row", where=where)
    if pa.types.is_fixed_size_list(column.type) and pa.types.is_float32(value):
        return spectra_view(column, bins, where)
    flat = pc.list_flatten(column)
    return np.asarray(flat.to_numpy(), dtype=np.float32).reshape(-1, bins)


@dataclass(frozen=True)
class WideFrame:
    """A whole source in memory, rows in their original order."""

    context: pd.DataFrame  # machine_id, timestamp (UTC), and every other scalar column; one row per spectrum
    spectra_NF: FloatNF
    kind: Literal["spectrum", "features"]
    bins: int
    warnings: tuple[str, ...]


def load_frame(source: Path | str, timezone: str | None = None) -> WideFrame:
    """Read a Parquet file, a folder of them, or a data set, whole.

    Raises:
        ContractError: see source_files, form_of and contract_batches; an unknown zone; no rows.
    """
    source = Path(source)
    files, spec = source_files(source), source_spec(source)
    clock = source_clock(timezone, spec)
    forms = checked_forms(files, spec)
    total = sum(open_parquet(path).metadata.num_rows for path in files)
    if total == 0:
        raise ContractError.of("spectra", got="no rows", expected="at least one", where=source)
    spectra_NF, frames, begin = np.empty((total, forms[0].bins), np.float32), [], 0
    for path, form in zip(files, forms, strict=True):
        for table in contract_batches(path, form, clock):
            spectra_NF[begin : begin + table.num_rows] = spectra_view(table["spectrum"], form.bins, path)
            begin += table.num_rows
            frames.append(table.drop_columns(["spectrum"]))
    context = pa.concat_tables(frames, promote_options="permissive")
    warnings = tuple(clock.warnings() + dropped_warning(forms))
    kind = spec.kind if spec is not None else forms[0].kind
    return WideFrame(context.to_pandas(), spectra_NF, kind, forms[0].bins, warnings)


def checked_forms(files: Sequence[Path], spec: FleetSpec | None) -> list[Form]:
    """The form of each file, all of one kind and number of bins, and of those that fleet.yaml states.

    Raises:
        ContractError: a file differs.
    """
    forms = [form_of(open_parquet(path).schema_arrow, path) for path in files]
    known = [spec.bins] if spec is not None else [form.bins for form in forms if form.bins]
    expected_bins = known[0] if known else _first_list_size(files)
    for path, form in zip(files, forms, strict=True):
        if form.bins not in (0, expected_bins):
            where = f"{path} (fleet.yaml says {expected_bins})" if spec is not None else path
            raise ContractError.of("number of bins", got=form.bins, expected=expected_bins, where=where)
        if form.kind != forms[0].kind:
            raise ContractError.of("kind of columns", got=form.kind, expected=forms[0].kind, where=path)
    return [replace(form, bins=expected_bins) for form in forms]


def _first_list_size(files: Sequence[Path]) -> int:
    """Number of values in the first list of files whose schema does not tell; 0 where there is no row."""
    for path in files:
        for table in read_batches(path, ["spectrum"], rows=1):
            if table.num_rows and table["spectrum"].null_count == 0:
                return int(pc.list_value_length(table["spectrum"])[0].as_py())
            break
    return 0


def dropped_warning(forms: Sequence[Form]) -> list[str]:
    """What was left out because it is neither key, spectrum nor scalar."""
    dropped = sorted({name for form in forms for name in form.dropped})
    return [f"columns that are no plain values were left out: {', '.join(dropped)}"] if dropped else []
