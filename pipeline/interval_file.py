"""A file of lines about machines and intervals, CSV or Parquet, as text: where each line stands, and its columns.

The maintenance log, corrections of the cleaning and releases from quarantine are such files. In CSV a line that begins
with # is a comment, and blank lines say nothing.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.clock import is_text
from pipeline.findings import Finding, Severity, nearest

TIMES = ("start", "end")
COMMENT = "#"
DELIMITERS = (",", ";", "\t")
FORMULA = ("=", "+", "@", "\t")  # a spreadsheet calculates a cell that begins so


@dataclass(frozen=True)
class FileForm:
    """What the lines of a file hold, and how it is written."""

    what: str  # the file, in messages
    required: tuple[str, ...]  # columns, machine_id, start and end among them
    optional: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)  # the file's own name of a column, where it differs
    or_else: str = ""  # what a person may do instead where a column is missing
    delimiter: str | None = None  # of CSV; None: looked at
    timestamp_format: str | None = None  # strptime; None: ISO 8601
    may_be_empty: frozenset[str] = frozenset()  # of machine_id, start and end
    wider_lines: bool = False  # lines may come from a wider table: values beyond the first line's say nothing


@dataclass(frozen=True)
class FileLines:
    """The lines of a file that say anything: where they stand, and the form's columns as the file holds them."""

    places: list[str]
    columns: dict[str, pa.Array]
    findings: list[Finding]


class UnreadableFile(Exception):
    """The file as a whole says nothing."""

    def __init__(self, finding: Finding) -> None:
        self.finding = finding
        super().__init__(str(finding.error()))


def read_lines(path: Path, form: FileForm, data: bytes | None = None) -> FileLines:
    """The lines of a file that say anything; `data` are its bytes where they have been read (an object store).

    Raises:
        UnreadableFile: the file as a whole cannot be read; with the finding that says why.
    """
    try:
        content = path.read_bytes() if data is None else data
    except OSError as error:
        raise _unreadable(path, form.what, str(error.strerror), "a readable file") from None
    read = _parquet_lines if path.suffix == ".parquet" else _csv_lines
    return read(path, content, form)


def with_line(path: Path, data: bytes, form: FileForm, values: Mapping[str, str]) -> str:
    """The text of a CSV file and one line more, written as the file itself is; values without a column are left out.

    Raises:
        UnreadableFile: see read_lines.
    """
    return with_lines(path, data, form, [values])


def with_lines(
    path: Path, data: bytes, form: FileForm, rows: Sequence[Mapping[str, str]], *, beyond: Sequence[str] = ()
) -> str:
    """The text of a CSV file and lines more, written as the file itself is; values without a column are left out.

    Args:
        path: the file, for messages.
        data: its bytes.
        form: its columns.
        rows: values by column.
        beyond: columns whose values stand at the end of a line where the file has no such column; only for forms with
            `wider_lines`, whose readers pass over them.

    Raises:
        UnreadableFile: see read_lines.
    """
    text = decoded(path, data, form.what)
    lines = list(io.StringIO(text, newline=""))
    delimiter = form.delimiter or _delimiter_of(lines)
    header = next((record for _, record in _records(lines, delimiter)), None)
    if not rows:
        return text
    if header is None:
        header, delimiter = list(rows[0]), DELIMITERS[0]
        text += ("\n" if text and not text.endswith("\n") else "") + csv_line(header)
    names = [name.strip() for name in header]
    names += [name for name in beyond if name not in names]
    end = "\r\n" if text.endswith("\r\n") else "\n"
    added = [csv_line([values.get(name, "") for name in names], delimiter).removesuffix("\n") + end for values in rows]
    return text + ("" if text.endswith("\n") else end) + "".join(added)


def without_lines(path: Path, data: bytes, form: FileForm, unwanted: Callable[[Sequence[str]], bool]) -> str:
    """The text of a CSV file less the lines whose values `unwanted` names; all others stay letter by letter.

    Raises:
        UnreadableFile: see read_lines.

    >>> form = FileForm(what="example", required=("machine_id", "start", "end"))
    >>> without_lines(Path("a.csv"), b"# mine\\na,b\\n1,x\\n2,y\\n", form, lambda values: "x" in values)
    '# mine\\na,b\\n2,y\\n'
    """
    lines = list(io.StringIO(decoded(path, data, form.what), newline=""))
    dropped = set[int]()
    try:
        for number, (first, last, record) in enumerate(_spans(lines, form.delimiter or _delimiter_of(lines))):
            if number and unwanted([value for value in map(_value, record) if value is not None]):
                dropped |= set(range(first, last + 1))
    except csv.Error as error:
        raise _unreadable(path, form.what, f"no CSV ({error})", "a CSV file") from None
    return "".join(line for number, line in enumerate(lines, 1) if number not in dropped)


def csv_line(values: Sequence[str], delimiter: str = DELIMITERS[0]) -> str:
    """A line of CSV; what a spreadsheet would take for a formula begins with an apostrophe, which readers take off.

    >>> csv_line(["=pump,1", "x"])
    '"\\'=pump,1",x\\n'
    """
    out = io.StringIO()
    like_comment = bool(values) and values[0].startswith(COMMENT)
    guarded = [f"'{value}" if _is_formula(value) else value for value in values]
    writer = csv.writer(
        out, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL if like_comment else csv.QUOTE_MINIMAL
    )
    writer.writerow(guarded)
    return out.getvalue()


def _is_formula(value: str) -> bool:
    return value.lstrip("'").startswith(FORMULA)


def decoded(path: Path, data: bytes, what: str) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        UnreadableFile: other bytes; with their line.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        got = f"text that is not UTF-8 (byte {error.object[error.start]:#04x})"
        raise _unreadable(path, what, got, "UTF-8", f"line {line}") from None


def _unreadable(path: Path, what: str, got: str, expected: str, place: str = "") -> UnreadableFile:
    return UnreadableFile(Finding(Severity.ERROR, str(path), place, what, got, expected))


def _csv_lines(path: Path, data: bytes, form: FileForm) -> FileLines:
    lines = list(io.StringIO(decoded(path, data, form.what), newline=""))
    header, first = list[str](), ""
    places, rows, findings = list[str](), list[list[str]](), list[Finding]()
    try:
        for number, record in _records(lines, form.delimiter or _delimiter_of(lines)):
            beyond = record[len(header) :]
            if not header:
                header, first = [name.strip() for name in record], f"line {number}"
            elif any(value.strip() for value in beyond) and not form.wider_lines:
                got, expected = f"{len(record)} values", f"{len(header)}, as in the first line"
                findings.append(Finding(Severity.ERROR, str(path), f"line {number}", "the line", got, expected))
            else:
                places.append(f"line {number}")
                rows.append([*record, *[""] * (len(header) - len(record))])
    except csv.Error as error:
        raise _unreadable(path, form.what, f"no CSV ({error})", "a CSV file") from None
    if not header:
        raise _unreadable(path, form.what, "an empty file", f"a first line {','.join(form.required)}") from None
    names, unread = _columns_of(path, header, form, first)
    columns = {}
    for name, column in names.items():
        at = header.index(column)
        columns[name] = pa.array([_value(row[at]) for row in rows], pa.string())
    return FileLines(places, columns, findings + unread)


def _value(text: str) -> str | None:
    """A value as it was meant: None for a blank one, without the apostrophe of `csv_line`."""
    text = text[1:] if text.startswith("'") and _is_formula(text) else text
    return text if text.strip() else None


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
    for first, _, record in _spans(lines, delimiter):
        yield first, record


def _spans(lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, int, list[str]]]:
    """Records as `_records` has them, with the numbers of their first and last line."""
    begin, last, fields = 0, 0, 0  # numbers of the record's first line (0: not met yet) and last, values of the header

    def is_comment(line: str) -> bool:
        is_entry = fields and line[1:2].strip() and line.count(delimiter) >= fields - 1
        return line.startswith(COMMENT) and not is_entry

    def feed() -> Iterator[str]:
        nonlocal begin, last
        for number, line in enumerate(lines, 1):
            if begin or not is_comment(line):  # inside a quoted value there are no comments
                begin, last = begin or number, number
                yield line

    for record in csv.reader(feed(), delimiter=delimiter):
        fields = fields or len(record)
        if any(value.strip() for value in record):
            yield begin, last, record
        begin = 0


def _parquet_lines(path: Path, data: bytes, form: FileForm) -> FileLines:
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names, unread = _columns_of(path, file.schema_arrow.names, form)
        table = file.read(columns=list(names.values()))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, form.what, str(error).splitlines()[0], "a whole Parquet file") from None
    said = np.flatnonzero(np.any([np.asarray(column.is_valid()) for column in table.columns], axis=0))
    columns = {}
    for name, column in names.items():
        values = table[column].take(pa.array(said)).combine_chunks()
        values = values.chunk(0) if isinstance(values, pa.ChunkedArray) else values
        columns[name] = values if name in TIMES and not is_text(values.type) else _text(path, name, values)
    return FileLines([f"row {row}" for row in said], columns, unread)


def _text(path: Path, name: str, values: pa.Array) -> pa.Array:
    """A column as text, blank values as null."""
    if not (is_text(values.type) or pa.types.is_integer(values.type) or pa.types.is_null(values.type)):
        raise _unreadable(path, f"type of {name}", str(values.type), "text")
    texts = values.cast(pa.string()).to_pylist()
    return pa.array([text if text and text.strip() else None for text in texts], pa.string())


def _columns_of(
    path: Path, header: Sequence[str], form: FileForm, place: str = ""
) -> tuple[dict[str, str], list[Finding]]:
    """The file's name of each column of the form, and a note for columns that nobody reads."""
    twice = [name for name, count in Counter(header).items() if count > 1 and name]
    if twice:
        raise _unreadable(path, "columns", f"{twice[0]!r} twice", "each name once", place)
    names = {name: form.names.get(name, name) for name in (*form.required, *form.optional)}
    missing = [name for name in form.required if names[name] not in header]
    if missing:
        hints = {name: nearest(names[name], header) for name in missing}
        got = [f"no {names[name]}{f' (but {hints[name]})' if hints[name] else ''}" for name in missing]
        raise _unreadable(path, "columns", ", ".join(got), ", ".join(form.required) + form.or_else)
    names = {name: column for name, column in names.items() if column in header}
    unread = [name for name in header if name not in names.values() and name]
    says = f"{', '.join(unread)}, which nobody reads"
    return names, [Finding(Severity.NOTE, str(path), "", "columns", says, ", ".join(names))] if unread else []
