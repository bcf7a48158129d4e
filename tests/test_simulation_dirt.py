"""Dirt: each kind does what its name says, as often as its share says, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.params import DirtParams
from pipeline.schema import MICROSECONDS_PER_HOUR
from pipeline.simulation.dirt import soil

SHARE = 0.05
ROWS = 24 * 60


def soiled(**shares: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Clean spectra, soiled ones, times, and the order of the file, of many days."""
    rng = np.random.default_rng(1)
    parts = []
    for _ in range(40):
        clean = rng.uniform(0.5, 2, (ROWS, 8)).astype(np.float32)
        dirty, time_us = clean.copy(), np.arange(ROWS) * (MICROSECONDS_PER_HOUR // 60)
        order = soil(dirty, time_us, DirtParams(**shares), rng)
        parts.append((clean, dirty, time_us, order))
    return tuple(
        np.stack(column) if len({len(a) for a in column}) == 1 else column for column in zip(*parts, strict=True)
    )


@pytest.mark.parametrize("kind", ["nan", "infinite", "negative", "flat", "stuck"])
def test_spectra_are_spoiled_as_named(kind: str) -> None:
    clean, dirty, time_us, order = soiled(**{kind: SHARE})
    changed = ~(clean == dirty).all(axis=-1)
    assert changed.mean() == pytest.approx(SHARE, rel=0.35)
    rows = dirty[changed]
    named = {
        "nan": np.isnan(rows).any(axis=1),
        "infinite": np.isinf(rows).any(axis=1),
        "negative": (rows < 0).any(axis=1),
        "flat": (rows == rows[:, :1]).all(axis=1),
        "stuck": np.isin(rows[:, 0], clean[..., 0]),
    }[kind]
    assert named.all()
    assert (np.diff(time_us) > 0).all()
    assert (order == np.arange(ROWS)).all()


def test_time_stamps_come_from_the_future() -> None:
    clean, dirty, time_us, _ = soiled(future=SHARE)
    late = time_us >= 24 * MICROSECONDS_PER_HOUR
    assert late.mean() == pytest.approx(SHARE, rel=0.35)
    assert np.array_equal(clean, dirty)


def test_rows_are_written_twice_in_another_order_or_not_at_all() -> None:
    _, _, _, orders = soiled(duplicate=SHARE)
    assert np.mean([len(order) / ROWS - 1 for order in orders]) == pytest.approx(SHARE, rel=0.35)
    assert all(np.array_equal(np.unique(order), np.arange(ROWS)) for order in orders)
    _, _, _, order = soiled(unordered=SHARE)
    assert (np.sort(order, axis=1) == np.arange(ROWS)).all()
    assert 0.3 * SHARE < (order != np.arange(ROWS)).mean() < 1.3 * SHARE
    _, _, _, orders = soiled(missing=SHARE)
    lost = [np.setdiff1d(np.arange(ROWS), order) for order in orders]
    assert np.mean([len(rows) / ROWS for rows in lost]) == pytest.approx(SHARE, rel=0.5)
    assert all(len(rows) % 60 == 0 for rows in lost)  # whole hours


def test_a_clean_fleet_stays_clean_and_chance_decides_the_rest() -> None:
    clean, dirty, _, order = soiled()
    assert np.array_equal(clean, dirty)
    assert (order == np.arange(ROWS)).all()


def test_a_day_of_one_row_survives_all_of_it() -> None:
    shares = dict.fromkeys(DirtParams.model_fields, 1.0)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        order = soil(np.ones((1, 8), np.float32), np.zeros(1, np.int64), DirtParams(**shares), rng)
        assert len(order) == 0  # its hour is missing
