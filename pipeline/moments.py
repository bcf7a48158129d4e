"""Moments in their forms: microseconds since 1970 (UTC), datetimes, ISO 8601 in files, and what people type."""

from __future__ import annotations

import datetime as dt

import numpy as np

from pipeline.errors import UserError

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def microseconds(moment: dt.datetime) -> int:
    """Microseconds since 1970; a moment without a time zone is UTC.

    >>> microseconds(dt.datetime(1970, 1, 2))
    86400000000
    """
    aware = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return (aware - EPOCH) // dt.timedelta(microseconds=1)


def moment_of(time_us: int) -> dt.datetime:
    """Microseconds since 1970 as a moment, UTC: the inverse of `microseconds`.

    Raises:
        OverflowError: beyond the calendar.

    >>> moment_of(86_400_000_000).isoformat()
    '1970-01-02T00:00:00+00:00'
    """
    return EPOCH + dt.timedelta(microseconds=time_us)


def iso(time_us: int) -> str:
    """Microseconds since 1970 as ISO 8601 in UTC, to the second.

    >>> iso(1_999_999)
    '1970-01-01T00:00:01Z'
    """
    return f"{np.datetime64(int(time_us), 'us').astype('datetime64[s]')}Z"  # data may hold years beyond the calendar


def iso_exact(time_us: int) -> str:
    """The same to the microsecond, where it is not a whole second: the inverse of `to_us`.

    >>> iso_exact(1_000_000), iso_exact(1_999_999)
    ('1970-01-01T00:00:01Z', '1970-01-01T00:00:01.999999Z')
    """
    return iso(time_us) if time_us % 1_000_000 == 0 else f"{np.datetime64(int(time_us), 'us')}Z"


def to_us(text: str) -> int:
    """Microseconds since 1970 of ISO 8601 as files hold it; without a zone it is UTC.

    Raises:
        ValueError: it is none.

    >>> to_us("1970-01-01T00:00:01Z"), to_us("1970-01-01T02:00:01+02:00")
    (1000000, 1000000)
    """
    return microseconds(dt.datetime.fromisoformat(text))


def typed_moment(text: str, option: str) -> tuple[dt.datetime, bool]:
    """A time that a person typed, in UTC, and whether that was assumed because it has no zone.

    Raises:
        UserError: it is no time.

    >>> typed_moment("1970-01-01T01:00+01:00", "--since")[0].isoformat(), typed_moment("1970-01-01", "--since")[1]
    ('1970-01-01T00:00:00+00:00', True)
    """
    try:
        moment = dt.datetime.fromisoformat(text.strip())
        return moment_of(microseconds(moment)), moment.tzinfo is None
    except (ValueError, OverflowError):
        expected = "ISO 8601, such as 2025-03-01T14:30 or 2025-03-01T14:30+01:00"
        raise UserError(f"{option}: got {text!r}, expected {expected}.") from None
