"""Times of a source, with or without a zone, as UTC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ContractError
from pipeline.layout import EPOCHS
from pipeline.schema import BoolN, IntN, codes_and_names, times_us

OFFSET = r"[T :]\d\d[\d:.]*(?:Z|[+-]\d\d(?::?\d\d)?)$"
NUMBER = r"^\s*-?\d{9,}(?:\.\d*)?\s*$"  # an epoch, not a date such as 20240301
US = pa.timestamp("us")
FIRST_US, LAST_US = (int(np.datetime64(day, "us").astype(np.int64)) for day in ("0002-01-01", "9998-12-31"))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text, dictionary-encoded or not."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def row_place(row: int) -> str:
    """How errors name a row of a table."""
    return f"row {row}"


@dataclass
class FileTimes:
    """What the rows of one file have told so far: how machines went through an hour that the clock shows twice."""

    last: dict[str, tuple[int, bool]] = field(default_factory=dict)  # machine: last local time, and in the second pass
    zoned: bool = False
    unzoned: bool = False


@dataclass
class Clock:
    """Turns times of a source into UTC, and remembers what it had to assume."""

    zone: str | None  # IANA name; None: UTC is assumed
    assumed: bool = False
    ambiguous: int = 0  # local times that the clock shows twice
    second: int = 0  # of them, those that the order of the rows shows to be the second
    skipped: int = 0  # local times that the clock never shows: moved to the end of the gap
    mixed: list[str] = field(default_factory=list)  # files that hold times with and without a zone
    _info: ZoneInfo = field(init=False)

    def __post_init__(self) -> None:
        try:
            self._info = ZoneInfo(self.zone or "UTC")
        except (KeyError, ValueError, OSError):
            expected = "an IANA name such as Europe/Berlin"
            raise ContractError.of("timezone", got=repr(self.zone), expected=expected, where="the settings") from None

    def to_utc_us(
        self,
        column: pa.Array | pa.ChunkedArray,
        where: object,
        *,
        form: str | None = None,
        machines: pa.Array | pa.ChunkedArray | None = None,
        state: FileTimes | None = None,
        at: Callable[[int], str] = row_place,
    ) -> IntN:
        """Microseconds since 1970 (UTC) of a time column: timestamps with or without zone, dates, or text.

        Args:
            column: the times, in the order of the file.
            where: the file, for messages.
            form: how text or numbers are to be read: strptime, epoch_s, epoch_ms, epoch_us; None: ISO 8601.
            machines: whose rows these are: a machine whose clock goes back within an hour that comes twice is then
                known to be in the second.
            state: of the file, where it comes in several tables.
            at: how a row is named in messages.

        Raises:
            ContractError: another type, text that is no time, or a null.

        >>> Clock("Europe/Berlin").to_utc_us(pa.array(["1970-01-01T01:00:00"]), "example").tolist()
        [0]
        """
        state = FileTimes() if state is None else state
        if column.null_count:
            row = int(np.flatnonzero(np.asarray(pc.is_null(column)))[0])
            raise ContractError.of("timestamp", got=f"null in {at(row)}", expected="a time", where=where)
        kind = column.type
        if pa.types.is_timestamp(kind) and kind.tz is not None:
            return times_us(column.cast(pa.timestamp("us", kind.tz), safe=False))
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return self._localised(times_us(column.cast(US, safe=False)), machines, state, where)
        if form in EPOCHS and (is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            return _from_epoch(column, EPOCHS[form], where, at)
        if is_text(kind):
            return self._parsed(column.cast(pa.string()), where, form, machines, state, at)
        expected = "timestamp, date or text; numbers need --timestamp-format epoch_s, epoch_ms or epoch_us"
        raise ContractError.of("type of timestamp", got=kind, expected=expected, where=where)

    def warnings(self) -> list[str]:
        """What a person should know of the times."""
        found = []
        if self.assumed:
            found.append("times without a zone were taken as UTC: set ingest.timezone if they are local")
        if self.ambiguous:
            told = f", {self.second} of them were second by the order of their rows" if self.second else ""
            text = f"{self.ambiguous} local times are ambiguous (clocks went back): the first of two was taken{told}"
            found.append(text)
        if self.skipped:
            found.append(f"{self.skipped} local times do not exist (clocks went forward): moved to the end of the gap")
        if self.mixed:
            names = ", ".join(self.mixed[:3]) + (" ..." if len(self.mixed) > 3 else "")
            found.append(f"{len(self.mixed)} files hold times with and without a zone: {names}")
        return found

    def _localised(self, naive_us: IntN, machines: pa.ChunkedArray | None, state: FileTimes, where: object) -> IntN:
        if self.zone is None:
            self.assumed = self.assumed or len(naive_us) > 0
            return naive_us
        if self.zone == "UTC" or not len(naive_us):
            return naive_us
        if naive_us.min() < FIRST_US or naive_us.max() > LAST_US:  # the zone's rules end there
            got = "a time outside the years 2 to 9998"
            raise ContractError.of("timestamp", got=got, expected="a time of a plant", where=where)
        index = pd.DatetimeIndex(naive_us.view("datetime64[us]"))
        nat = np.asarray(pd.isna(index.tz_localize(self._info, ambiguous="NaT", nonexistent="shift_forward")))
        gaps = pd.isna(index.tz_localize(self._info, ambiguous=np.ones(len(index), bool), nonexistent="NaT"))
        first = np.ones(len(index), bool)
        if nat.any() and machines is not None:
            first = ~_second_pass(naive_us, nat, machines, state)
        elif state.last:
            state.last.clear()
        self.ambiguous, self.skipped = self.ambiguous + int(nat.sum()), self.skipped + int(gaps.sum())
        self.second += int((~first).sum())
        chosen = index.tz_localize(self._info, ambiguous=first, nonexistent="shift_forward")
        return np.asarray(chosen.tz_convert("UTC").tz_localize(None).as_unit("us").asi8)

    def _parsed(
        self,
        column: pa.ChunkedArray,
        where: object,
        form: str | None,
        machines: pa.ChunkedArray | None,
        state: FileTimes,
        at: Callable[[int], str],
    ) -> IntN:
        if form is None and (plain := _cast(column, US)) is not None:
            self._note(state, where, unzoned=len(column) > 0)
            return self._localised(plain, machines, state, where)
        if form is None and (utc := _cast(column, pa.timestamp("us", "UTC"))) is not None:
            self._note(state, where, zoned=len(column) > 0)
            return utc
        text = column.to_pandas()
        has_zone = text.str.contains(OFFSET) if form is None else pd.Series("%z" in form, index=text.index)
        zoned = has_zone.to_numpy(bool)
        self._note(state, where, zoned=bool(zoned.any()), unzoned=bool((~zoned).any()))
        result = np.zeros(len(text), np.int64)
        for chosen, absolute in ((zoned, True), (~zoned, False)):
            if not chosen.any():
                continue
            parsed = pd.to_datetime(text[chosen], format=form or "ISO8601", errors="coerce", utc=absolute)
            if parsed.isna().any():
                row = int(np.flatnonzero(chosen)[np.flatnonzero(parsed.isna().to_numpy())[0]])
                raise _no_time(text.iloc[row], form, at(row), where)
            plain_times = parsed.dt.tz_localize(None) if absolute else parsed
            numbers = plain_times.to_numpy("datetime64[us]").view(np.int64)
            names = machines.filter(pa.array(chosen)) if machines is not None and not chosen.all() else machines
            result[chosen] = numbers if absolute else self._localised(numbers, names, state, where)
        return result

    def _note(self, state: FileTimes, where: object, *, zoned: bool = False, unzoned: bool = False) -> None:
        known = state.zoned and state.unzoned
        state.zoned, state.unzoned = state.zoned or zoned, state.unzoned or unzoned
        if state.zoned and state.unzoned and not known:
            self.mixed.append(str(where))


def _no_time(text: str, form: str | None, place: str, where: object) -> ContractError:
    if form is not None:
        expected = f"the form {form} (--timestamp-format)"
    elif pd.Series([text]).str.fullmatch(NUMBER).iloc[0]:
        expected = "ISO 8601; numbers need --timestamp-format epoch_s, epoch_ms or epoch_us"
    elif not any(letter.isdigit() for letter in text):
        expected = "ISO 8601; if columns are swapped, name them: --map timestamp=COLUMN --map machine_id=COLUMN"
    else:
        expected = "ISO 8601; any other form needs --timestamp-format, such as %d.%m.%Y %H:%M:%S"
    return ContractError.of("timestamp", got=f"{text[:80]!r} in {place}", expected=expected, where=where)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> IntN | None:
    """Arrow's own reading of ISO 8601, twenty times as fast as pandas'; None where it knows better than to guess."""
    try:
        return np.asarray(column.cast(kind).cast(pa.int64()).to_numpy())
    except pa.ArrowException:
        return None


def _from_epoch(column: pa.ChunkedArray, factor: float, where: object, at: Callable[[int], str]) -> IntN:
    if pa.types.is_integer(column.type):
        whole_N = np.asarray(column.cast(pa.int64(), safe=False).to_numpy())
        limit = 2**62 / factor
        if len(whole_N) and (np.abs(whole_N.astype(np.float64)) > limit).any():
            raise ContractError.of("timestamp", got="a number beyond all times", expected="an epoch", where=where)
        return whole_N * np.int64(factor)
    text = column.cast(pa.string())
    numbers = pd.to_numeric(text.to_pandas(), errors="coerce") if is_text(column.type) else column.to_pandas()
    values_N = np.asarray(numbers, dtype=np.float64) * factor
    wrong = np.flatnonzero(~(np.abs(values_N) < 2**62))
    if len(wrong):
        got = f"{text[int(wrong[0])].as_py()!r} in {at(int(wrong[0]))}"
        raise ContractError.of("timestamp", got=got, expected="a number of seconds since 1970", where=where)
    return np.asarray(np.rint(values_N), dtype=np.int64)


def _second_pass(naive_us: IntN, nat_N: BoolN, machines: pa.ChunkedArray, state: FileTimes) -> BoolN:
    """Rows in the second pass through an hour that comes twice: their machine's clock went back within that hour.

    Only machines whose rows are otherwise in order tell this; for the others the first pass is taken.
    """
    codes, names = codes_and_names(machines)
    second_N = np.zeros(len(naive_us), bool)
    for code in np.unique(codes[nat_N]):
        rows = np.flatnonzero(codes == code)
        passes, last = _passes(naive_us[rows], nat_N[rows], state.last.get(names[code]))
        second_N[rows] = passes
        state.last[names[code]] = last
    return second_N


def _passes(
    naive_n: IntN, nat_n: BoolN, before: tuple[int, bool] | None
) -> tuple[npt.NDArray[np.bool_], tuple[int, bool]]:
    previous_n = np.r_[naive_n[0] if before is None else before[0], naive_n[:-1]]
    back_n = naive_n < previous_n
    inside_n = nat_n & np.r_[nat_n[0], nat_n[:-1]]
    in_order = not (back_n & ~inside_n).any()
    run_n = np.cumsum(~nat_n)  # rows of one pass through the hour, or two, share a number
    turned_n = np.zeros(len(naive_n), np.int64)
    if in_order:
        turns_n = np.cumsum(back_n)
        starts = np.r_[True, run_n[1:] != run_n[:-1]]
        base_n = turns_n[starts][np.cumsum(starts) - 1]
        turned_n = turns_n - base_n
        if back_n[0]:
            turned_n[run_n == run_n[0]] += 1
        if before is not None and before[1]:
            turned_n[(run_n == run_n[0]) & nat_n] += 1
    second_n = nat_n & (turned_n == 1)
    return second_n, (int(naive_n[-1]), bool(second_n[-1]))
