"""clock: an hour that comes twice is told by the order of rows, epochs are numbers, zones in one file may differ."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.clock import Clock, FileTimes
from pipeline.errors import ContractError

BERLIN = "Europe/Berlin"


def utc(clock: Clock, texts: list[str], machines: list[str] | None = None, **given: object) -> list[str]:
    names = pa.chunked_array([machines or ["m"] * len(texts)])
    found = clock.to_utc_us(pa.chunked_array([texts]), "file", machines=names, **given)
    return [str(moment)[11:16] for moment in found.view("datetime64[us]")]


def autumn(*clocks: str) -> list[str]:
    return [f"2024-10-27 {time}" for time in clocks]


def test_a_clock_that_goes_back_is_in_the_second_pass() -> None:
    clock = Clock(BERLIN)
    times = autumn("01:50", "02:10", "02:50", "02:10", "02:50", "03:10")
    assert utc(clock, times) == ["23:50", "00:10", "00:50", "01:10", "01:50", "02:10"]
    assert (clock.ambiguous, clock.second) == (4, 2)
    assert "2 of them were second by the order" in clock.warnings()[0]


def test_each_machine_has_its_own_order() -> None:
    times = autumn("02:10", "02:10", "02:50", "02:50", "02:10", "02:30")
    machines = ["a", "b", "a", "b", "a", "b"]
    # a goes back from 02:50 to 02:10, b from 02:50 to 02:30
    assert utc(Clock(BERLIN), times, machines) == ["00:10", "00:10", "00:50", "00:50", "01:10", "01:30"]


def test_the_order_is_kept_from_table_to_table() -> None:
    state, clock = FileTimes(), Clock(BERLIN)
    assert utc(clock, autumn("01:50", "02:50"), state=state) == ["23:50", "00:50"]
    assert utc(clock, autumn("02:10", "02:20"), state=state) == ["01:10", "01:20"]
    assert utc(clock, autumn("02:30", "03:00"), state=state) == ["01:30", "02:00"]
    assert utc(clock, ["2025-10-26 02:30"], state=state) == ["00:30"]  # another year's first


def test_rows_without_order_take_the_first() -> None:
    times = autumn("05:00", "02:50", "02:10", "01:00", "02:30")
    assert utc(Clock(BERLIN), times) == ["04:00", "00:50", "00:10", "23:00", "00:30"]


@pytest.mark.parametrize(
    ("form", "values"),
    [
        ("epoch_s", [1_700_000_000.25]),
        ("epoch_s", ["1700000000.25"]),
        ("epoch_ms", [1_700_000_000_250]),
        ("epoch_us", ["1700000000250000"]),
        ("%d.%m.%Y %H:%M:%S,%f", ["14.11.2023 22:13:20,25"]),
        ("%Y%m%d%H%M%S.%f%z", ["20231114231320.25+0100"]),
    ],
)
def test_stated_forms(form: str, values: list) -> None:
    found = Clock("UTC").to_utc_us(pa.chunked_array([pa.array(values)]), "file", form=form)
    assert found.tolist() == [1_700_000_000_250_000]


@pytest.mark.parametrize(
    ("values", "form", "message"),
    [
        ([1_700_000_000], None, "numbers need --timestamp-format epoch_s"),
        (["1700000000"], None, "numbers need --timestamp-format epoch_s"),
        (["pump a"], None, "if columns are swapped, name them: --map"),
        (["01.02.2024 10:00"], None, "any other form needs --timestamp-format"),
        (["2024-01-01"], "%d.%m.%Y", "the form %d.%m.%Y"),
        (["1e400"], "epoch_s", "a number of seconds"),
        ([float("nan")], "epoch_s", "a number of seconds"),
        ([2**62], "epoch_s", "beyond all times"),
        (["2024-01-01", None], None, "null in row 1"),
        ([True], None, "type of timestamp: got bool"),
    ],
)
def test_times_that_are_none_are_named(values: list, form: str | None, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        Clock("UTC").to_utc_us(pa.chunked_array([pa.array(values)]), "file", form=form)


def test_zones_may_differ_and_a_mixture_with_none_is_told() -> None:
    clock = Clock("Asia/Tokyo")
    text = ["2024-01-01T12:00:00+02:00", "2024-01-01T12:00:00-0500", "2024-01-01T12:00:00Z"]
    assert utc(clock, text) == ["10:00", "17:00", "12:00"]
    assert clock.warnings() == []
    state = FileTimes()
    utc(clock, ["2024-01-01T12:00:00Z"], state=state)
    assert utc(clock, ["2024-01-01T12:00:00"], state=state) == ["03:00"]  # another table of the same file
    assert clock.warnings() == ["1 files hold times with and without a zone: file"]


def test_fast_and_slow_reading_agree() -> None:
    fast = ["2024-01-01", "2024-01-01 10:00", "2024-01-01T10:00:00.123456"]
    slow = [*fast, "2024-01-01T10:00:00.123456789"]  # more digits than Arrow reads
    one, two = (Clock("UTC").to_utc_us(pa.chunked_array([texts]), "file") for texts in (fast, slow))
    assert np.array_equal(one, two[:3])
