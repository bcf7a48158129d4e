"""Parquet files of any origin as streams of tables, here or in an object store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import ContractError
from pipeline.landing.places import Place, SourceFile, first_line

BATCH_BYTES = 16 << 20  # of spectra that are read at once
MOST_BATCH_ROWS = 65_536


def first_list_size(place: Place, file: SourceFile, columns: Sequence[str]) -> int:
    """Number of values in the lists of the first row; 0 where one is null."""
    for table in parquet_tables(place, file, columns, 1):
        sizes = [pc.list_value_length(table[name])[0].as_py() for name in columns]
        return sum(sizes) if None not in sizes and len(set(sizes)) == 1 else 0
    return 0


def open_parquet(stream: pa.NativeFile, where: str, place: Place) -> pq.ParquetFile:
    """A Parquet file that is open.

    Raises:
        ContractError: it is cut off, or no Parquet.
    """
    far = place.local is None  # an object store answers slowly: columns are fetched together
    try:
        buffer = 0 if far else 1 << 18
        return pq.ParquetFile(stream, pre_buffer=far, buffer_size=buffer, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        got = f"a file that is cut off or no Parquet ({first_line(error)})"
        raise ContractError.of("Parquet", got=got, expected="a whole Parquet file", where=where) from None


def parquet_tables(place: Place, file: SourceFile, columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
    """Columns of a Parquet file, some rows at a time.

    Raises:
        ContractError: it is cut off or damaged.
    """
    where = place.where(file.name)
    with place.open_arrow(file.name) as stream:
        parquet = open_parquet(stream, where, place)
        try:
            for batch in parquet.iter_batches(rows, columns=list(columns)):
                yield pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError, ValueError) as error:
            got = first_line(error)
            raise ContractError.of("Parquet", got=got, expected="a whole Parquet file", where=where) from None


def batch_rows(bins: int) -> int:
    """How many spectra are read at once: memory does not grow with their width.

    >>> batch_rows(64), batch_rows(4096)
    (65536, 1024)
    """
    return max(256, min(MOST_BATCH_ROWS, BATCH_BYTES // (4 * max(1, bins))))
