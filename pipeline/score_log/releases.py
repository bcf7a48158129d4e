"""Which releases wrote the rows of a score log: what must not be deleted while those rows stand."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ContractError
from pipeline.score_log.files import log_days, open_log_file, over_days

COLUMN = "release"


def releases_of(log: Path) -> set[str]:
    """Ids of the releases in the rows of a log; none where there is no log.

    Statistics of a row group tell it where one release wrote all of it; else its column is read.

    Raises:
        ContractError: a file of the log is damaged, so that nobody knows.

    >>> releases_of(Path("/nowhere"))
    set()
    """
    found = over_days(log, log_days(log), lambda files: [name for path in files for name in _of_file(path)])
    return {name for day in found for name in day}


def _of_file(path: Path) -> set[str]:
    names: set[str] = set()
    with open_log_file(path) as file:
        schema, metadata = file.metadata.schema, file.metadata
        index = schema.names.index(COLUMN) if COLUMN in schema.names else -1
        if index < 0:
            got, expected = f"no column {COLUMN}", "the release of each row"
            raise ContractError.of("score log", got=got, expected=expected, where=path)
        unclear = []
        for group in range(metadata.num_row_groups):
            told = metadata.row_group(group).column(index).statistics
            if told is not None and told.has_min_max and told.min == told.max and not told.null_count:
                names.add(_text(told.min))
            else:
                unclear.append(group)
        if unclear:
            names |= _read(file, unclear, path)
    return names


def _read(file: pq.ParquetFile, groups: list[int], path: Path) -> set[str]:
    try:
        column = file.read_row_groups(groups, columns=[COLUMN])[COLUMN].cast(pa.string())
    except (pa.ArrowException, OSError) as error:
        got = f"a damaged page ({str(error).splitlines()[0]})"
        raise ContractError.of("score log", got=got, expected="a whole Parquet file", where=path) from None
    return {str(name) for name in column.unique().to_pylist() if name is not None}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
