"""Levels of machines and conditions: found where days agree, shrunk where they do not, kept by the baseline table."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.detectors.baseline import fit_baselines
from pipeline.levels import FURTHEST, baseline_levels, group_levels
from pipeline.rows import RowKeys

MACHINES, DAYS, ROWS = 30, 10, 40


def scores(rng: np.random.Generator, level: np.ndarray, restless: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of machines at a level, whose days go up and down."""
    machine, day = np.repeat(np.arange(MACHINES), DAYS * ROWS), np.repeat(np.arange(MACHINES * DAYS), ROWS)
    days = np.exp(restless * rng.normal(size=MACHINES * DAYS))
    return level[machine] * days[day] * rng.exponential(size=len(machine)), machine, day


def test_machines_that_differ_are_told_apart(rng: np.random.Generator) -> None:
    level = np.exp(0.5 * rng.normal(size=MACHINES))
    found = group_levels(*scores(rng, level, restless=0.1))
    told = np.log([found[machine] for machine in range(MACHINES)])
    assert np.corrcoef(told, np.log(level))[0, 1] > 0.97
    assert np.std(told - np.log(level)) < 0.15


def test_machines_that_only_seem_to_differ_keep_the_fleets_level(rng: np.random.Generator) -> None:
    spread = [np.std(np.log(list(group_levels(*scores(rng, np.ones(MACHINES), 0.8)).values()))) for _ in range(5)]
    assert np.mean(spread) < 0.8 / np.sqrt(DAYS) / 2, "less than half of what their means differ by"


def test_one_machine_far_away_is_not_followed_all_the_way(rng: np.random.Generator) -> None:
    level = np.ones(MACHINES)
    level[3] = 1e6
    found = group_levels(*scores(rng, level, restless=0.1))
    assert found[3] == pytest.approx(FURTHEST)


def test_what_has_no_level(rng: np.random.Generator) -> None:
    values, machine, day = scores(rng, np.ones(MACHINES), 0.1)
    assert group_levels(values, np.zeros_like(machine), day) == {}, "one group is the fleet"
    few = np.arange(len(values)) % (DAYS * ROWS) < 30
    assert group_levels(values[few], machine[few], day[few]) == {}, "thirty rows are one piece, and tell no spread"
    assert group_levels(np.zeros(len(values)), machine, day) == {}, "scores of zero have no logarithm"
    assert group_levels(np.empty(0), np.empty(0, int), np.empty(0, int)) == {}


def test_levels_stand_at_the_rows_of_the_baseline_table(rng: np.random.Generator) -> None:
    spectra = np.exp(rng.normal(size=(400, 3))).astype(np.float32)
    machine, mode = np.arange(400) % 4, np.arange(400) // 4 % 2
    keys = RowKeys(["a", "b", "c", "d"], machine, np.zeros(400, int), ["idle", "cut"], mode)
    table = fit_baselines(spectra, keys)
    by_machine = baseline_levels(table, "machine", keys.machines, {1: 2.0, 3: 0.5})
    np.testing.assert_array_equal(by_machine[table.codes(keys)], np.array([1.0, 2.0, 1.0, 0.5])[machine])
    stranger = RowKeys(["new"], np.zeros(2, int), np.zeros(2, int), ["idle", "cut"], np.arange(2))
    assert by_machine[table.codes(stranger)].tolist() == [1.0, 1.0]
    by_condition = baseline_levels(table, "condition", keys.conditions, {1: 3.0})
    np.testing.assert_array_equal(by_condition[table.codes(keys)], np.array([1.0, 3.0])[mode])
    assert by_condition[table.codes(stranger)].tolist() == [1.0, 3.0], "a new machine in a known condition"
