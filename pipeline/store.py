"""The one module that touches the disk: atomic writes, checked reads, day files as streams.

A killed process leaves the old file or the new one, never half of one: everything is written beside its place, flushed,
and moved over it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.errors import ContractError
from pipeline.schema import BoolN, FleetSpec, FloatNF, codes_and_names, spectra_view

ROW_GROUP_ROWS = 65_536  # one leaf column decodes on one thread per row group: small groups read twice as fast
READ_THREADS = 2
DAY_PATTERN = "*.parquet"
ID_LENGTH = 16


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:60]}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:60]}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name[:60]}.", suffix=".old", dir=path.parent))
            path.replace(old / "content")
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically, keys sorted; NaN and infinity are refused (a missing figure is null)."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read JSON.

    Raises:
        ContractError: no such file, or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ContractError.of("JSON", got=error.strerror, expected="a readable file", where=path) from None
    except ValueError as error:
        raise ContractError.of("JSON", got=str(error), expected="valid JSON", where=path) from None


def write_table(path: Path | str, table: pa.Table) -> None:
    """Write a Parquet file atomically, with the project's codec, dictionaries on text columns only.

    Raises:
        ContractError: nulls in a column that may not hold them (Arrow itself would write them as values).
    """
    write_tables(path, table.schema, [table])


def write_tables(
    path: Path | str,
    schema: pa.Schema,
    tables: Iterable[pa.Table],
    repeating: Collection[str] = (),
    footer: Callable[[], Mapping[str, str]] = dict,
) -> None:
    """Write a stream of tables of one schema as one Parquet file, atomically; memory is one table's.

    Columns named in `repeating` hold numbers of which few are different, and get dictionaries as text does. What
    `footer` says once all tables are written stands in the file's metadata (see `read_footer`).

    Raises:
        ContractError: see write_table; nothing is written then.
    """
    with (
        atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, schema, **parquet_codec(schema, repeating)) as writer,
    ):
        for table in tables:
            refuse_nulls(table, path)
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        if said := footer():
            writer.add_key_value_metadata(dict(said))


def parquet_codec(schema: pa.Schema, repeating: Collection[str] = ()) -> dict[str, Any]:
    """How Parquet files of a schema are written: ZSTD, split streams of bytes, checksums, some dictionaries.

    Dictionaries are for text, and for numbers of which few are different (`repeating`).
    """
    dictionaries, floats = [], []
    for field in schema:
        if pa.types.is_dictionary(field.type) or pa.types.is_string(field.type) or field.name in repeating:
            dictionaries.append(field.name)
        elif pa.types.is_fixed_size_list(field.type):
            floats.append(f"{field.name}.list.element")
        elif pa.types.is_floating(field.type):
            floats.append(field.name)
    return {
        "compression": "zstd",
        "use_dictionary": dictionaries or False,
        "use_byte_stream_split": floats or False,
        "write_page_checksum": True,
    }


def refuse_nulls(table: pa.Table, path: Path | str) -> None:
    """Refuse nulls where a schema has none.

    Raises:
        ContractError: a column and how many it holds.
    """
    for field in table.schema:
        if not field.nullable and table[field.name].null_count:
            got = f"{table[field.name].null_count} nulls"
            raise ContractError.of(field.name, got=got, expected="none", where=path)


def write_fleet_spec(path: Path | str, spec: FleetSpec) -> None:
    """Write fleet.yaml atomically."""
    write_text(path, yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True), sort_keys=False, width=120))


def open_parquet(path: Path | str) -> pq.ParquetFile:
    """Open a Parquet file.

    Raises:
        ContractError: no such file, cut off, or no Parquet.
    """
    path = Path(path)
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise ContractError.of("Parquet", got="no file", expected="a Parquet file", where=path) from None
    except (pa.ArrowException, OSError) as error:
        got = f"a file that is cut off or no Parquet ({str(error).splitlines()[0]})"
        raise ContractError.of("Parquet", got=got, expected="a whole Parquet file", where=path) from None


def read_table(path: Path | str, columns: Sequence[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """Read a Parquet file whole.

    Raises:
        ContractError: see open_parquet; a column missing, or one that does not cast to the schema.
    """
    file = open_parquet(path)
    wanted = list(columns) if columns is not None else (schema.names if schema is not None else None)
    missing = [name for name in wanted or [] if name not in file.schema_arrow.names]
    if missing:
        got = f"no column {', '.join(missing)}"
        raise ContractError.of("columns", got=got, expected=", ".join(wanted or []), where=path)
    try:
        table = file.read(columns=wanted)
        if schema is not None:
            table = table.select(wanted).cast(pa.schema([schema.field(name) for name in wanted or []]))
    except (pa.ArrowException, OSError, ValueError) as error:
        got = str(error).splitlines()[0]
        raise ContractError.of("Parquet", got=got, expected="the contract's columns", where=path) from None
    return table


def read_footer(path: Path | str, key: str) -> str | None:
    """What a Parquet file's metadata says under a key; None where it says nothing.

    Raises:
        ContractError: see open_parquet; or text that is not UTF-8.
    """
    found = (open_parquet(path).metadata.metadata or {}).get(key.encode())
    try:
        return None if found is None else found.decode()
    except UnicodeDecodeError:
        raise ContractError.of(f"metadata {key}", got="text that is not UTF-8", expected="UTF-8", where=path) from None


def day_files(data_set: Path | str) -> list[Path]:
    """The day files of a data set, oldest first.

    Raises:
        ContractError: there are none.
    """
    folder = Path(data_set) / "spectra"
    files = sorted(folder.glob(DAY_PATTERN))
    if not files:
        raise ContractError.of("spectra", got="no Parquet file", expected="at least one day", where=folder)
    return files


def row_count(path: Path | str) -> int:
    """Rows of a Parquet file, from its footer alone."""
    return int(open_parquet(path).metadata.num_rows)


def row_group_rows(path: Path | str) -> list[int]:
    """Rows of each row group of a Parquet file, from its footer alone."""
    metadata = open_parquet(path).metadata
    return [int(metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)]


def read_row_group(path: Path, group: int, columns: Sequence[str]) -> pa.Table:
    """One row group of a file, decoded in the calling thread: several threads can each read another group.

    Raises:
        ContractError: no such file or column; the file is cut off or damaged.
    """
    file = open_parquet(path)
    missing = [name for name in columns if name not in file.schema_arrow.names]
    if missing:
        expected = ", ".join(columns)
        raise ContractError.of("columns", got=f"no column {', '.join(missing)}", expected=expected, where=path)
    try:
        return file.read_row_group(group, columns=list(columns), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        got = str(error).splitlines()[0]
        raise ContractError.of("Parquet", got=got, expected="a whole Parquet file", where=path) from None


def read_batches(path: Path, columns: Sequence[str] | None = None, rows: int = ROW_GROUP_ROWS) -> Iterator[pa.Table]:
    """One file as a stream of tables of at most `rows` rows; peak memory does not grow with the file.

    Raises:
        ContractError: the file is cut off or damaged.
    """
    file = open_parquet(path)
    try:
        for batch in file.iter_batches(rows, columns=list(columns) if columns is not None else None):
            yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        got = str(error).splitlines()[0]
        raise ContractError.of("Parquet", got=got, expected="a whole Parquet file", where=path) from None


def read_spectra(data_set: Path | str, status: pa.Table, selected_N: BoolN, bins: int) -> FloatNF:
    """The spectra of the selected rows of a status table, in its order, as one (n, F) float32 array.

    The status table is in the order of (file, row), as every stage writes it. Only row groups that hold a selected row
    are decoded, on two threads: peak memory is the array and two of them.

    Raises:
        ContractError: a day file is missing, damaged, or has another number of bins.
    """
    spectra_NF = np.empty((int(selected_N.sum()), bins), np.float32)

    def fill(part: tuple[Path, int, np.ndarray, int]) -> None:
        path, group, index, begin = part
        view = spectra_view(read_row_group(path, group, ["spectrum"])["spectrum"], bins, path)
        np.take(view, index, axis=0, out=spectra_NF[begin : begin + len(index)])

    with ThreadPoolExecutor(READ_THREADS) as pool:
        for _ in pool.map(fill, _selected_groups(data_set, status, selected_N)):
            pass
    return spectra_NF


def read_with_context(path: Path | str, columns: Sequence[str], context: str | None) -> pa.Table:
    """Some columns of a Parquet file, and a context column where the file has it.

    Raises:
        ContractError: see read_table.
    """
    wanted = [*columns, context] if context in column_names(path) and context not in columns else list(columns)
    return read_table(path, [str(name) for name in wanted])


def read_context(data_set: Path | str, status: pa.Table, selected_N: BoolN, column: str) -> pa.ChunkedArray:
    """A context column of the selected rows of a status table, in its order, as text; see `context_text`.

    Raises:
        ContractError: a day file is missing or damaged, or the column is no plain value.
    """
    chunks = []
    for path, table, index in _selected_batches(data_set, status, selected_N, column):
        chunks.append(context_text(table, column, path).take(pa.array(index)).dictionary_encode().combine_chunks())
    return pa.chunked_array(chunks, pa.dictionary(pa.int32(), pa.string()))


def context_text(table: pa.Table, column: str, where: object) -> pa.ChunkedArray:
    """A context column as text: empty where a row has none, or the table no such column.

    Raises:
        ContractError: the column is no plain value.

    >>> context_text(pa.table({"mode": ["cut", None]}), "mode", "").to_pylist()
    ['cut', '']
    >>> context_text(pa.table({"mode": ["cut", None]}), "speed", "").to_pylist()
    ['', '']
    """
    if column not in table.column_names:
        return pa.chunked_array([pa.repeat(pa.scalar(""), table.num_rows)])
    try:
        return table[column].cast(pa.string()).fill_null("")
    except pa.ArrowException:
        got = str(table[column].type)
        raise ContractError.of(f"type of {column}", got=got, expected="a plain value", where=where) from None


def column_names(path: Path | str) -> list[str]:
    """Names of the columns of a Parquet file."""
    return list(open_parquet(path).schema_arrow.names)


def _selected_batches(
    data_set: Path | str, status: pa.Table, selected_N: BoolN, column: str
) -> Iterator[tuple[Path, pa.Table, np.ndarray]]:
    """One column of the day files as (file, batch, numbers of the selected rows in it); batches without any left out.

    A file without the column gives batches of its keys.
    """
    file_codes, files = codes_and_names(status["file"])
    rows = status["row"].to_numpy()
    for path, indices in _runs_of_files(file_codes, files, rows, selected_N, Path(data_set) / "spectra"):
        begin = 0
        for table in read_batches(path, [column if column in column_names(path) else "machine_id"]):
            end = begin + table.num_rows
            first, last = np.searchsorted(indices, [begin, end])
            if first < last:
                yield path, table, indices[first:last] - begin
            begin = end
        if len(indices) and indices[-1] >= begin:
            raise ContractError.of("rows", got=begin, expected=f"more than {indices[-1]}", where=path)


def _selected_groups(
    data_set: Path | str, status: pa.Table, selected_N: BoolN
) -> Iterator[tuple[Path, int, np.ndarray, int]]:
    """Row groups that hold selected rows: file, number, the rows' numbers in it, how many selected rows come before."""
    file_codes, files = codes_and_names(status["file"])
    rows, before = status["row"].to_numpy(), 0
    for path, indices in _runs_of_files(file_codes, files, rows, selected_N, Path(data_set) / "spectra"):
        bounds = np.cumsum([0, *row_group_rows(path)])
        if indices[-1] >= bounds[-1]:
            raise ContractError.of("rows", got=bounds[-1], expected=f"more than {indices[-1]}", where=path)
        places = np.searchsorted(indices, bounds)
        for group in np.flatnonzero(np.diff(places)).tolist():
            first, last = int(places[group]), int(places[group + 1])
            yield path, group, indices[first:last] - bounds[group], before + first
        before += len(indices)


def _runs_of_files(
    file_codes: np.ndarray, files: Sequence[str], rows: np.ndarray, selected_N: BoolN, folder: Path
) -> Iterator[tuple[Path, np.ndarray]]:
    """Each file with the sorted row numbers wanted from it, in the order of the status table."""
    if not len(file_codes):
        return
    starts = np.flatnonzero(np.r_[True, file_codes[1:] != file_codes[:-1]])
    for start, end in zip(starts, [*starts[1:], len(file_codes)], strict=True):
        wanted = rows[start:end][selected_N[start:end]]
        if len(wanted):
            if np.any(wanted[1:] <= wanted[:-1]):
                raise ContractError.of("status rows", got="unsorted", expected="order of file and row", where=folder)
            yield folder / files[file_codes[start]], wanted.astype(np.int64)


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(folder: Path) -> dict[str, str]:
    """Hex SHA-256 of every file below a folder, by its path in there."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def sha256_folder(path: Path | str) -> str:
    """Hex SHA-256 over the names and bytes of all files below a folder; links and other things are refused.

    Raises:
        ContractError: something below is not a plain file or folder.
    """
    path, digest = Path(path), hashlib.sha256()
    for file in sorted(path.rglob("*"), key=lambda entry: entry.relative_to(path).as_posix()):
        if file.is_symlink() or not (file.is_file() or file.is_dir()):
            raise ContractError.of("file", got="a link or device", expected="plain files", where=file)
        if file.is_file():
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def folder_id(path: Path | str) -> str:
    """The first ID_LENGTH hex digits of `sha256_folder`: what a release is known by."""
    return sha256_folder(path)[:ID_LENGTH]
