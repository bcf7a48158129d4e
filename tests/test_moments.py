"""Moments in their forms, and the one way in which commands read what people type."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.moments import iso, iso_exact, microseconds, moment_of, to_us, typed_moment

Run = Callable[..., tuple[int, str, str]]
TIMES_US = st.integers(microseconds(dt.datetime(1, 1, 2)), microseconds(dt.datetime(9999, 12, 30)))


@given(TIMES_US)
def test_every_form_tells_the_same_moment(time_us: int) -> None:
    assert microseconds(moment_of(time_us)) == to_us(iso_exact(time_us)) == time_us
    assert to_us(iso(time_us)) == time_us // 1_000_000 * 1_000_000
    assert typed_moment(iso_exact(time_us), "--since") == (moment_of(time_us), False)
    assert iso(time_us) == f"{moment_of(time_us):%Y-%m-%dT%H:%M:%SZ}".rjust(20, "0")


def test_a_time_beyond_the_calendar_has_words_too() -> None:
    assert (iso(2**62), iso_exact(2**62)) == ("148108-07-06T14:00:27Z", "148108-07-06T14:00:27.387904Z")


@pytest.mark.parametrize("text", ["2025-03-01T15:30+01:00", " 2025-03-01 14:30Z ", "2025-03-01T14:30"])
def test_what_a_person_types_is_utc_or_has_a_zone(text: str) -> None:
    assert typed_moment(text, "--since") == (dt.datetime(2025, 3, 1, 14, 30, tzinfo=dt.UTC), text.endswith("T14:30"))


@pytest.mark.parametrize("text", ["", "monday", "2025-02-30", "0001-01-01T00:00+01:00", "99999-01-01", "now"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=rf"--since: got '{text.replace('+', '.')}', expected ISO 8601, such as"):
        typed_moment(text, "--since")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["alerts", "list"], "--since"),
        (["quarantine", "list"], "--start"),
        (["quarantine", "release"], "--end"),
        (["history", "m", "--log", "log"], "--from"),
        (["score", "--input", "x", "--release", "v1", "--output", "y"], "--until"),
        (["recalibrate", "v1", "--data-set", "x"], "--since"),
    ],
)
def test_every_command_reads_a_time_in_the_same_way(
    arguments: list[str], option: str, tmp_path: Path, hearken: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text("")
    monkeypatch.setenv("HEARKEN_HOME", str(tmp_path / "home"))
    code, out, err = hearken(arguments[0], tmp_path, *arguments[1:], option, "monday")
    assert (code, out) == (2, "")
    assert err == (
        f"error: {option}: got 'monday', expected ISO 8601, such as 2025-03-01T14:30 or 2025-03-01T14:30+01:00.\n"
    )
