"""The file of a maintenance log, CSV or Parquet, as lines: where each stands, and the contract's columns of it.

In CSV a line that begins with # is a comment, and blank lines say nothing.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.clock import is_text
from pipeline.findings import Finding, Severity, nearest
from pipeline.layout import MaintenanceLayout

REQUIRED = ("machine_id", "start", "end", "tag")
OPTIONAL = ("failure_mode", "note")
COMMENT = "#"
DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class LogLines:
    """The lines of a file that say anything: where they stand, and the contract's columns as the file holds them."""

    places: list[str]
    columns: dict[str, pa.Array]
    findings: list[Finding]


def read_lines(path: Path, layout: MaintenanceLayout, data: bytes | None = None) -> LogLines:
    """The lines of a log that say anything; `data` are the file's bytes where they have been read (an object store).

    Raises:
        UnreadableLog: the file as a whole cannot be read; with the finding that says why.
    """
    try:
        content = path.read_bytes() if data is None else data
    except OSError as error:
        raise _unreadable(path, "maintenance", str(error.strerror), "a readable file") from None
    read = _parquet_lines if path.suffix == ".parquet" else _csv_lines
    return read(path, content, layout)


class UnreadableLog(Exception):
    """The file as a whole says nothing."""

    def __init__(self, finding: Finding) -> None:
        self.finding = finding
        super().__init__(str(finding.error()))


def _unreadable(path: Path, what: str, got: str, expected: str, place: str = "") -> UnreadableLog:
    return UnreadableLog(Finding(Severity.ERROR, str(path), place, what, got, expected))


def _csv_lines(path: Path, data: bytes, layout: MaintenanceLayout) -> LogLines:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        got = f"text that is not UTF-8 (byte {error.object[error.start]:#04x})"
        raise _unreadable(path, "maintenance", got, "UTF-8", f"line {line}") from None
    lines = list(io.StringIO(text, newline=""))
    header: list[str] | None = None
    places, rows, findings = list[str](), list[list[str]](), list[Finding]()
    try:
        for number, record in _records(lines, layout.delimiter or _delimiter_of(lines)):
            if header is None:
                header = [name.strip() for name in record]
            elif len(record) > len(header) and any(value.strip() for value in record[len(header) :]):
                got, expected = f"{len(record)} values", f"{len(header)}, as in the first line"
                findings.append(Finding(Severity.ERROR, str(path), f"line {number}", "the line", got, expected))
            else:
                places.append(f"line {number}")
                rows.append([*record, *[""] * (len(header) - len(record))])
    except csv.Error as error:
        raise _unreadable(path, "maintenance", f"no CSV ({error})", "a CSV file") from None
    if header is None:
        raise _unreadable(path, "maintenance", "an empty file", f"a first line {','.join(REQUIRED)}") from None
    names, unknown = _columns_of(path, header, layout)
    columns = {}
    for name, column in names.items():
        at = header.index(column)
        columns[name] = pa.array([row[at] if row[at].strip() else None for row in rows], pa.string())
    return LogLines(places, columns, findings + unknown)


def _delimiter_of(lines: Sequence[str]) -> str:
    """The delimiter that the first line that says something has most of."""
    first = next((line for line in lines if line.strip() and not line.startswith(COMMENT)), "")
    return max(DELIMITERS, key=first.count)


def _records(lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Records of a CSV text with the number of their first line; blank lines and comments are left out.

    A comment begins with #. So does the line of a machine `#3`: no space follows, and it has all columns.

    >>> list(_records(["a,b\\n", "# c,d\\n", '"x\\n', 'y",1\\n', "#3,2\\n"], ","))
    [(1, ['a', 'b']), (3, ['x\\ny', '1']), (5, ['#3', '2'])]
    """
    begin, fields = 0, 0  # number of the record's first line (0: not met yet), and of the header's values

    def is_comment(line: str) -> bool:
        is_entry = fields and line[1:2].strip() and line.count(delimiter) >= fields - 1
        return line.startswith(COMMENT) and not is_entry

    def feed() -> Iterator[str]:
        nonlocal begin
        for number, line in enumerate(lines, 1):
            if begin or not is_comment(line):  # inside a quoted value there are no comments
                begin = begin or number
                yield line

    for record in csv.reader(feed(), delimiter=delimiter):
        fields = fields or len(record)
        if any(value.strip() for value in record):
            yield begin, record
        begin = 0


def _parquet_lines(path: Path, data: bytes, layout: MaintenanceLayout) -> LogLines:
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names, unknown = _columns_of(path, file.schema_arrow.names, layout)
        table = file.read(columns=list(names.values()))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, "maintenance", str(error).splitlines()[0], "a whole Parquet file") from None
    said = np.flatnonzero(np.any([np.asarray(column.is_valid()) for column in table.columns], axis=0))
    columns = {}
    for name, column in names.items():
        values = table[column].take(pa.array(said)).combine_chunks()
        values = values.chunk(0) if isinstance(values, pa.ChunkedArray) else values
        columns[name] = values if name in ("start", "end") and not is_text(values.type) else _text(path, name, values)
    return LogLines([f"row {row}" for row in said], columns, unknown)


def _text(path: Path, name: str, values: pa.Array) -> pa.Array:
    """A column as text, blank values as null."""
    if not (is_text(values.type) or pa.types.is_integer(values.type) or pa.types.is_null(values.type)):
        raise _unreadable(path, f"type of {name}", str(values.type), "text")
    texts = values.cast(pa.string()).to_pylist()
    return pa.array([text if text and text.strip() else None for text in texts], pa.string())


def _columns_of(path: Path, header: list[str], layout: MaintenanceLayout) -> tuple[dict[str, str], list[Finding]]:
    """The file's name of each column of the contract, and a note for columns that nobody reads."""
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise _unreadable(path, "columns", f"{twice[0]!r} twice", "each name once", "line 1")
    names = {name: getattr(layout.columns, name) for name in (*REQUIRED, *OPTIONAL)}
    missing = [
        name
        for name in names
        if names[name] not in header and (name in REQUIRED or name in layout.columns.model_fields_set)
    ]
    if missing:
        hints = {name: nearest(names[name], header) for name in missing}
        got = [f"no {names[name]}{f' (but {hints[name]})' if hints[name] else ''}" for name in missing]
        expected = f"{', '.join(REQUIRED)}, or fleet.yaml's maintenance.columns to say what they are called"
        raise _unreadable(path, "columns", ", ".join(got), expected)
    names = {name: column for name, column in names.items() if column in header}
    unread = [name for name in header if name not in names.values() and name]
    note = Finding(
        Severity.NOTE, str(path), "", "columns", f"{', '.join(unread)}, which nobody reads", ", ".join(names)
    )
    return names, [note] if unread else []
