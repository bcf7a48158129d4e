"""CSV as streams of typed tables; an error names the line.

UTF-8 with or without a byte order mark, plain or gzip, any delimiter, decimal point or comma. The first megabyte tells
names and types; of a larger file, whole numbers are read as float64, since a later row may hold a fraction.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import csv as arrow_csv

from pipeline.errors import ContractError
from pipeline.landing.places import Place, first_line

LOOK_BYTES = 1 << 20
BLOCK_BYTES = 8 << 20  # of text that is parsed at once
DELIMITERS = (";", "\t", ",", "|", " ")
NULLS = ["", "NA", "N/A", "n/a", "#N/A", "NULL", "null", "None", "NaN", "nan", "-nan", "-NaN", "1.#IND", "1.#QNAN"]

csv.field_size_limit(1 << 24)


@dataclass(frozen=True)
class CsvForm:
    """A CSV file that has been looked at."""

    names: tuple[str, ...]
    types: dict[str, pa.DataType]
    delimiter: str
    header: bool
    whole: bool  # the look saw every row
    quoted: bool  # quotes may hold line breaks
    blank: int = 0  # lines before the first that holds something


def look_at_csv(place: Place, name: str, delimiter: str | None, decimal: str, *, header: bool | None = True) -> CsvForm:
    """Names and types of a CSV file's columns, from its first megabyte.

    Args:
        place: of the source.
        name: of the file.
        delimiter: None: the most frequent in the first line.
        decimal: point or comma.
        header: None: there is none where the first line holds numbers only.

    Raises:
        ContractError: an empty file, no UTF-8, or rows of different length.
    """
    where = place.where(name)
    try:
        with _text_stream(place, name) as stream:
            data = stream.read(LOOK_BYTES)
            whole = not stream.read(1)
    except (OSError, pa.ArrowException) as error:
        got = f"a file that is cut off or no CSV ({first_line(error)})"
        raise ContractError.of("CSV", got=got, expected="a whole file", where=where) from None
    if not whole:
        data = data[: data.rfind(b"\n") + 1] or data
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ContractError.of("CSV", got="text in UTF-16", expected="UTF-8", where=where)
    data = data.removeprefix(b"\xef\xbb\xbf")
    blank = data[: len(data) - len(data.lstrip(b"\r\n"))].count(b"\n")
    data = data.lstrip(b"\r\n")
    if not data.strip():
        raise ContractError.of("CSV", got="no rows", expected="a header and rows", where=where)
    if b"\0" in data:
        raise ContractError.of("CSV", got="bytes that are no text", expected="a CSV file", where=where)
    line = _decoded(data.split(b"\n", 1)[0], where).rstrip("\r")
    delimiter = delimiter or _delimiter(line, decimal)
    cells = _cells(line, delimiter, where)
    has_header = not all(_is_number(cell, decimal) for cell in cells) if header is None else header
    names = [cell.strip() for cell in cells] if has_header else [str(number) for number in range(len(cells))]
    quoted = b'"' in data
    options = CsvForm(tuple(names), {}, delimiter, has_header, whole, quoted)  # of the look, which begins later
    if len(set(names)) < len(names):
        return options  # the reader would take the last of two; the form names them
    try:
        read, parse, convert = _options(options, decimal, None)
        table = arrow_csv.read_csv(pa.BufferReader(data), read, parse, convert)
        types = {entry.name: _kept_type(entry.type, whole) for entry in table.schema}
    except pa.ArrowException as error:
        raise csv_error(error, place, name, options, where) from None
    return CsvForm(tuple(names), types, delimiter, has_header, whole, quoted, blank)


def csv_tables(
    place: Place, name: str, form: CsvForm, types: Mapping[str, pa.DataType], wanted: Sequence[str], decimal: str
) -> Iterator[pa.Table]:
    """The wanted columns of a CSV file, in these types, one block of text at a time.

    Raises:
        ContractError: a value of another type, or a row of another length; with its line.
    """
    where = place.where(name)
    read, parse, convert = _options(form, decimal, types, wanted)
    try:
        with _text_stream(place, name) as stream:
            if form.whole:  # small: threads would take longer to start than the file to read
                read.use_threads = False
                table = arrow_csv.read_csv(stream, read, parse, convert)
                batches: Iterable[pa.RecordBatch] = table.combine_chunks().to_batches()
            else:
                batches = arrow_csv.open_csv(stream, read, parse, convert)
            for batch in batches:
                if batch.num_rows:
                    yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise csv_error(error, place, name, form, where) from None


def _options(
    form: CsvForm, decimal: str, types: Mapping[str, pa.DataType] | None, wanted: Sequence[str] | None = None
) -> tuple[arrow_csv.ReadOptions, arrow_csv.ParseOptions, arrow_csv.ConvertOptions]:
    read = arrow_csv.ReadOptions(
        block_size=BLOCK_BYTES, column_names=list(form.names), skip_rows=form.blank + form.header
    )
    parse = arrow_csv.ParseOptions(delimiter=form.delimiter, newlines_in_values=form.quoted)
    convert = arrow_csv.ConvertOptions(
        column_types=dict(types) if types is not None else None,
        include_columns=list(wanted) if wanted is not None else None,
        decimal_point=decimal,
        null_values=NULLS,
        strings_can_be_null=False,
        timestamp_parsers=[],
    )
    return read, parse, convert


def _text_stream(place: Place, name: str) -> pa.NativeFile:
    file = place.open_arrow(name)
    return pa.CompressedInputStream(file, "gzip") if name.lower().endswith(".gz") else file


def _decoded(data: bytes, where: object) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ContractError.of("CSV", got="text that is not UTF-8 in line 1", expected="UTF-8", where=where) from None


def _delimiter(line: str, decimal: str) -> str:
    counts = {mark: line.count(mark) for mark in DELIMITERS if mark != decimal}
    counts[" "] = 0 if any(counts[mark] for mark in counts if mark != " ") else counts[" "]
    best = max(counts, key=lambda mark: counts[mark])
    return best if counts[best] else ","


def _cells(line: str, delimiter: str, where: object) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter))
    except (csv.Error, StopIteration) as error:
        raise ContractError.of("CSV", got=f"{error} in line 1", expected="a header", where=where) from None


def _is_number(text: str, decimal: str) -> bool:
    try:
        float(text.replace(decimal, "."))
    except ValueError:
        return False
    return True


def _kept_type(kind: pa.DataType, whole: bool) -> pa.DataType:
    """What a column is read as: times stay text, which the clock reads."""
    if pa.types.is_null(kind):
        return pa.null() if whole else pa.string()
    if pa.types.is_integer(kind) and not whole:
        return pa.float64()
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or (pa.types.is_boolean(kind) and whole):
        return kind
    return pa.string()


# --- lines ---------------------------------------------------------------------------------------------------------


def csv_line(place: Place, name: str, form: CsvForm, row: int) -> int:
    """The line on which a row (from 0) of a CSV file ends; for messages."""
    for number, (line, _) in enumerate(_records(place, name, form)):
        if number == row:
            return line
    return row + 1 + form.header


def csv_error(error: BaseException, place: Place, name: str, form: CsvForm, where: object) -> ContractError:
    """pyarrow's error as one message with the line that it means."""
    text = " ".join(str(error).split())
    ragged = re.search(r"Expected (\d+) columns, got (\d+)", text)
    if ragged:
        wanted, held = int(ragged.group(1)), int(ragged.group(2))
        records = _records(place, name, form, header=True)
        short = next((line for line, cells in records if len(cells) != wanted), None)
        ragged_line = f"line {short}" if short else "a line"
        return ContractError.of(
            "CSV", got=f"{held} values in {ragged_line}", expected=f"{wanted} in every line", where=where
        )
    wrong = re.search(r"In CSV column #(\d+)(?:: Row #\d+)?: CSV conversion error to (\w+): invalid value '(.*)'", text)
    if wrong:
        column, value = int(wrong.group(1)), wrong.group(3)
        found = (n for n, cells in _records(place, name, form) if cells[column : column + 1] == [value])
        place_text = "".join(f" in line {number}" for number in [next(found, None)] if number is not None)
        column_name = form.names[column] if column < len(form.names) else f"column {column}"
        hint = "numbers; a decimal comma needs decimal: ',' in fleet.yaml" if "," in value else "numbers"
        return ContractError.of(column_name, got=f"text ({value[:80]!r}){place_text}", expected=hint, where=where)
    if "UTF8" in text or "UTF-8" in text:
        got = f"text that is not UTF-8 in line {_line_without_utf8(place, name)}"
        return ContractError.of("CSV", got=got, expected="UTF-8", where=where)
    got = f"a file that is cut off or no CSV ({first_line(error)})"
    return ContractError.of("CSV", got=got, expected="a whole file", where=where)


def _records(place: Place, name: str, form: CsvForm, *, header: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Line and cells of each row; ends where the file breaks."""
    try:
        with _text_stream(place, name) as stream:
            text = io.TextIOWrapper(io.BufferedReader(stream), encoding="utf-8-sig", errors="replace", newline="")
            reader = csv.reader(text, delimiter=form.delimiter)
            skip = form.header and not header
            for cells in reader:
                if not cells:
                    continue
                if skip:
                    skip = False
                    continue
                yield reader.line_num, cells
    except (OSError, csv.Error, pa.ArrowException):
        return


def _line_without_utf8(place: Place, name: str) -> int:
    with _text_stream(place, name) as stream:
        for number, line in enumerate(io.BufferedReader(stream), 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1
