"""Sampling of a simulated fleet: whole hours by a hash, every horizon, never more rows than asked for."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import ParamsError
from pipeline.params import SimulateParams
from pipeline.schema import MICROSECONDS_PER_DAY, MICROSECONDS_PER_HOUR
from pipeline.simulation.hours import kept_hours

FLEET = SimulateParams(machines=10, days=20, interval_seconds=600, bins=8)


def test_all_rows_fit_and_nothing_is_dropped() -> None:
    assert kept_hours(FLEET, [], 0, 20, 10 * 20 * 144, 24) is None


def test_a_horizon_is_kept_of_its_machine_alone() -> None:
    kept = kept_hours(FLEET, [(3, 12.0)], 0, 20, 5_000, 24)
    assert kept is not None
    moments = np.arange(11 * 24, 12 * 24) * MICROSECONDS_PER_HOUR + 1
    assert kept.select(3, moments).all()
    assert not kept.select(4, moments).all()


@pytest.mark.parametrize("max_rows", [300, 5_000, 20_000])
def test_never_more_rows_than_asked_for(max_rows: int) -> None:
    kept = kept_hours(FLEET, [(3, 12.0)], 0, 20, max_rows, 24)
    assert kept is not None
    moments = np.arange(20 * 144) * (MICROSECONDS_PER_DAY // 144)
    rows = sum(int(kept.select(machine, moments).sum()) for machine in range(10))
    assert 0.5 * max_rows < rows <= max_rows


def test_a_longer_stretch_keeps_hours_of_a_shorter_one() -> None:
    short, long = (kept_hours(FLEET, [], 0, days, 300 * days, 24) for days in (10, 20))
    assert short is not None
    assert long is not None
    first = long.hours[long.hours < 240]
    assert len(np.intersect1d(short.hours, first)) > 0.7 * min(len(short.hours), len(first))


def test_no_room_for_an_hour_is_an_error() -> None:
    with pytest.raises(ParamsError, match="expected at least 210: the horizons and an hour"):
        kept_hours(FLEET, [(3, 12.0)], 0, 20, 200, 24)
