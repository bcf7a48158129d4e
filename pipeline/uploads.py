"""Uploads: files of a landing zone as scoring reads them, one at a time and in pieces, here or in an object store.

Shape legend: N rows.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline.errors import ContractError
from pipeline.landing import Source, SourceFile, open_source
from pipeline.landing.places import Place, list_files, place_of
from pipeline.landing.source import PARQUET_SUFFIXES, source_clock, source_spec
from pipeline.maintenance import read_maintenance
from pipeline.moments import microseconds
from pipeline.schema import MAINTENANCE_SCHEMA, FleetSpec, times_us

HASHED_AT_ONCE = 4 << 20  # bytes
# of a calendar of four digits, with a day to spare for time zones
FIRST_US, LAST_US = (microseconds(dt.datetime(*day)) for day in ((1, 1, 2), (9999, 12, 30)))


@dataclass(frozen=True)
class UploadFacts:
    """What an upload holds: its rows, and the times of the first and the last (microseconds since 1970, UTC)."""

    rows: int
    first_us: int
    last_us: int


@dataclass(frozen=True)
class LandingZone:
    """A folder or a place in an object store, into which spectra arrive as files of the data contract or like it."""

    place: Place
    spec: FleetSpec | None
    timezone: str | None

    @classmethod
    def at(cls, place: Path | str, timezone: str | None = None) -> LandingZone:
        """The landing zone at a path or URI.

        Args:
            place: of the data set.
            timezone: of times without one; None: as fleet.yaml says, else UTC.

        Raises:
            ContractError: no such place, or a fleet.yaml that is wrong.
        """
        return cls(place_of(place), source_spec(place), timezone)

    @property
    def bytes_tell_all(self) -> bool:
        """Whether paths tell nothing (machine, time, axis), so that equal files hold equal rows."""
        return self.spec is None or self.spec.source is None or self.spec.source.path is None

    def files(self) -> tuple[list[SourceFile], dict[str, str]]:
        """Every file that may hold spectra; and names that were refused, with the reason.

        Raises:
            ContractError: the place cannot be listed.
        """
        return list_files(self.place)

    def is_unchanged(self, file: SourceFile) -> bool:
        """Whether a file still has the size and the time of writing that it was listed with.

        Raises:
            ContractError: the place cannot be reached.
        """
        try:
            info = self.place.files.get_file_info(self.place.path_of(file.name))
        except OSError as error:
            raise self.place.unreadable(error, file.name) from None
        found = (int(info.size or 0), int(info.mtime_ns or 0))
        return info.type == fs.FileType.File and found == (file.size, file.modified_ns)

    def sha256(self, name: str) -> str:
        """Hash of a file's bytes.

        Raises:
            ContractError: it cannot be read.
        """
        digest = hashlib.sha256()
        try:
            with self.place.open_arrow(name) as stream:
                while piece := stream.read(HASHED_AT_ONCE):
                    digest.update(piece)
        except OSError as error:
            raise self.place.unreadable(error, name) from None
        return digest.hexdigest()

    def facts(self, file: SourceFile) -> UploadFacts:
        """Rows and span of an upload, from its footer where that tells them.

        Raises:
            ContractError: another form than the contract's, a damaged file, no rows, or no times of its own.
        """
        source = self._source(file)
        told = self._footer(file, source) or self._read_facts(file, source)
        if told.first_us < FIRST_US or told.last_us > LAST_US:
            got = f"{np.datetime64(told.first_us, 'us')} to {np.datetime64(told.last_us, 'us')}"
            expected = "years of four digits"
            raise ContractError.of("timestamp", got=got, expected=expected, where=self.place.where(file.name))
        return told

    def _read_facts(self, file: SourceFile, source: Source) -> UploadFacts:
        rows, low, high = 0, np.iinfo(np.int64).max, np.iinfo(np.int64).min
        for table in source.tables(file, ()):
            time_us_N = times_us(table["timestamp"])
            rows += len(time_us_N)
            low, high = min(low, int(time_us_N.min(initial=low))), max(high, int(time_us_N.max(initial=high)))
        if not rows:
            raise ContractError.of("rows", got=0, expected="at least one", where=self.place.where(file.name))
        return UploadFacts(rows, int(low), int(high))

    def tables(self, file: SourceFile, context: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """An upload in pieces as tables of the contract; `context`: names of context without spectra, as in Source.

        Raises:
            ContractError: another form than the contract's, or a damaged file.
        """
        return self._source(file).tables(file, context)

    def maintenance(self) -> pa.Table:
        """The plant's log (MAINTENANCE_SCHEMA); empty where there is none.

        Raises:
            ContractError: a line that is wrong.
        """
        found = self.place.beside("maintenance.parquet", "maintenance.csv")
        if found is None:
            return MAINTENANCE_SCHEMA.empty_table()
        layout = self.spec.maintenance if self.spec is not None else None
        path = Path(self.place.where(found[0]))
        return read_maintenance(path, source_clock(self.timezone, self.spec), layout, found[1])[0]

    def _source(self, file: SourceFile) -> Source:
        where = self.place.where(file.name)
        source = open_source(self.place, timezone=self.timezone, only=[file])
        if source.axis_by_row:
            expected = "all axes of a spectrum in one row (`hearken ingest` joins them)"
            raise ContractError.of("axis", got="rows of one axis each", expected=expected, where=where)
        if source.times_are_counted:
            raise ContractError.of("timestamp", got="none", expected="a time in each row or path", where=where)
        return source

    def _footer(self, file: SourceFile, source: Source) -> UploadFacts | None:
        """What the statistics of a Parquet file tell; None where they say too little."""
        column = source.forms[file.name].timestamp
        if column is None or not file.name.lower().endswith(PARQUET_SUFFIXES):
            return None
        with self.place.open_arrow(file.name) as stream:
            parquet = pq.ParquetFile(stream)
            field, metadata = parquet.schema_arrow.field(column), parquet.metadata
        if not (pa.types.is_timestamp(field.type) and field.type.tz == "UTC") or not metadata.num_rows:
            return None
        index = metadata.schema.names.index(column) if column in metadata.schema.names else -1
        if index < 0:
            return None
        bounds: list[dt.datetime] = []
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(index).statistics
            if statistics is None or not statistics.has_min_max or statistics.null_count:
                return None
            try:
                bounds += [statistics.min, statistics.max]
            except OverflowError:  # years that Python's calendar does not hold
                return None
        moments = [microseconds(bound) for bound in bounds]
        return UploadFacts(metadata.num_rows, min(moments), max(moments))
