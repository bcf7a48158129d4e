"""Times of a source, with or without a zone, as UTC."""

from __future__ import annotations

from dataclasses import dataclass, field
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ContractError
from pipeline.schema import IntN, times_us

OFFSET = r"[T :]\d\d[\d:.]*(?:Z|[+-]\d\d(?::?\d\d)?)$"


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text, dictionary-encoded or not."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


@dataclass
class Clock:
    """Turns times of a source into UTC, and remembers what it had to assume."""

    zone: str | None  # IANA name; None: UTC is assumed
    assumed: bool = False
    ambiguous: int = 0  # local times that the clock shows twice: the first of the two is taken
    skipped: int = 0  # local times that the clock never shows: moved to the end of the gap
    _info: ZoneInfo = field(init=False)

    def __post_init__(self) -> None:
        try:
            self._info = ZoneInfo(self.zone or "UTC")
        except (KeyError, ValueError, OSError):
            expected = "an IANA name such as Europe/Berlin"
            raise ContractError.of("timezone", got=repr(self.zone), expected=expected, where="the settings") from None

    def to_utc_us(self, column: pa.Array | pa.ChunkedArray, where: object) -> IntN:
        """Microseconds since 1970 (UTC) of a time column: timestamps with or without zone, dates, or ISO 8601 text.

        Raises:
            ContractError: another type, text that is no time, or a null.

        >>> Clock("Europe/Berlin").to_utc_us(pa.array(["1970-01-01T01:00:00"]), "example").tolist()
        [0]
        """
        if column.null_count:
            row = int(np.flatnonzero(np.asarray(pc.is_null(column)))[0])
            raise ContractError.of("timestamp", got=f"null in row {row}", expected="a time", where=where)
        kind = column.type
        if pa.types.is_timestamp(kind) and kind.tz is not None:
            return times_us(column.cast(pa.timestamp("us", kind.tz), safe=False))
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return self._localised(times_us(column.cast(pa.timestamp("us"), safe=False)))
        if is_text(kind):
            return self._parsed(column.cast(pa.string()), where)
        raise ContractError.of("type of timestamp", got=kind, expected="timestamp, date or ISO text", where=where)

    def warnings(self) -> list[str]:
        """What a person should know of the times."""
        found = []
        if self.assumed:
            found.append("times without a zone were taken as UTC: set ingest.timezone if they are local")
        if self.ambiguous:
            found.append(f"{self.ambiguous} local times are ambiguous (clocks went back): the first of two was taken")
        if self.skipped:
            found.append(f"{self.skipped} local times do not exist (clocks went forward): moved to the end of the gap")
        return found

    def _localised(self, naive_us: IntN) -> IntN:
        if self.zone is None:
            self.assumed = self.assumed or len(naive_us) > 0
            return naive_us
        if self.zone == "UTC":
            return naive_us
        index = pd.DatetimeIndex(naive_us.view("datetime64[us]"))
        nat = pd.isna(index.tz_localize(self._info, ambiguous="NaT", nonexistent="shift_forward"))
        gaps = pd.isna(index.tz_localize(self._info, ambiguous=np.ones(len(index), bool), nonexistent="NaT"))
        self.ambiguous, self.skipped = self.ambiguous + int(nat.sum()), self.skipped + int(gaps.sum())
        first = index.tz_localize(self._info, ambiguous=np.ones(len(index), bool), nonexistent="shift_forward")
        return np.asarray(first.tz_convert("UTC").tz_localize(None).as_unit("us").asi8)

    def _parsed(self, column: pa.Array | pa.ChunkedArray, where: object) -> IntN:
        text = column.to_pandas()
        zoned = text.str.contains(OFFSET).to_numpy(bool)
        result = np.zeros(len(text), np.int64)
        for chosen, utc in ((zoned, True), (~zoned, False)):
            parsed = pd.to_datetime(text[chosen], format="ISO8601", errors="coerce", utc=utc)
            if parsed.isna().any():
                row = int(np.flatnonzero(chosen)[np.flatnonzero(parsed.isna().to_numpy())[0]])
                got = f"{text.iloc[row]!r} in row {row}"
                raise ContractError.of("timestamp", got=got, expected="ISO 8601", where=where)
            plain = parsed.dt.tz_localize(None) if utc else parsed
            numbers = plain.to_numpy("datetime64[us]").view(np.int64)
            result[chosen] = numbers if utc else self._localised(numbers)
        return result
