"""How many independent looks rows are worth: what stretches of time tell, and what they cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.detectors.baseline import fit_baselines, spectra_features
from pipeline.detectors.looks import MIN_FREEDOM, Stretches, likeness_within
from pipeline.detectors.shrinkage import robust
from pipeline.rows import RowKeys
from pipeline.schema import MICROSECONDS_PER_HOUR, Baseline

FEATURES = 15
BINS = 6


def clustered(
    rng: np.random.Generator, rows_S: np.ndarray, key_S: np.ndarray, likeness: float, apart: float = 1.0
) -> tuple[np.ndarray, Stretches]:
    """Rows (N, G) with the part `likeness` of their variance between stretches; keys differ in level and size."""
    keys = int(key_S.max()) + 1
    stretch_N = np.repeat(np.arange(len(rows_S)), rows_S)
    of_stretch = np.sqrt(likeness) * rng.normal(size=(len(rows_S), FEATURES))
    of_rows = np.sqrt(1 - likeness) * rng.normal(size=(len(stretch_N), FEATURES))
    level, size = (apart * rng.normal(size=(keys, FEATURES)) for _ in range(2))
    key_N = key_S[stretch_N]
    features = 5 * level[key_N] + np.exp(size[key_N]) * (of_stretch[stretch_N] + of_rows)
    return features.astype(np.float32), Stretches.of(key_N, stretch_N * MICROSECONDS_PER_HOUR)


def described(features: np.ndarray, stretches: Stretches) -> tuple[np.ndarray, np.ndarray]:
    fitted = [robust(features[stretches.key_N == key]) for key in range(int(stretches.key_N.max()) + 1)]
    return np.stack([location for location, _ in fitted]), np.stack([scale for _, scale in fitted])


def likeness_of(features: np.ndarray, stretches: Stretches) -> float:
    return likeness_within(features, stretches, *described(features, stretches))


def independent_looks(features: np.ndarray, stretches: Stretches, *table: np.ndarray) -> np.ndarray:
    return stretches.looks_K(likeness_within(features, stretches, *table))


@pytest.mark.parametrize("likeness", [0.05, 0.3, 0.8])
def test_the_likeness_of_rows_is_found_in_equal_and_unequal_stretches(rng, likeness: float) -> None:
    key_S = np.repeat(np.arange(20), 30)
    for rows_S in (np.full(600, 12), rng.integers(1, 60, 600)):
        assert likeness_of(*clustered(rng, rows_S, key_S, likeness)) == pytest.approx(likeness, abs=0.04)


def test_independent_rows_are_looks_of_their_own(rng) -> None:
    key_S = np.repeat(np.arange(20), 30)
    features, stretches = clustered(rng, np.full(600, 12), key_S, 0.0)
    looks_K = independent_looks(features, stretches, *described(features, stretches))
    assert (looks_K <= 360).all()
    assert looks_K.min() > 360 / 1.1


def test_many_alike_rows_are_worth_hardly_more_looks_than_stretches(rng) -> None:
    rows_S = np.r_[np.full(40, 300), np.full(40, 3), 600]
    key_S = np.r_[np.repeat([0, 1], 40), 2]
    features, stretches = clustered(rng, rows_S, key_S, 0.6)
    looks_K = independent_looks(features, stretches, *described(features, stretches))
    # n / (1 + (m - 1) 0.6): 300 and 3 rows an hour, and one hour of 600
    np.testing.assert_allclose(looks_K, [12_000 / 180.4, 120 / 2.2, 600 / 360.4], rtol=0.12)


def test_the_variance_of_a_mean_is_that_of_a_row_over_the_looks(rng) -> None:
    rows_S, key_S = rng.integers(5, 40, 4000), np.repeat(np.arange(160), 25)
    features, stretches = clustered(rng, rows_S, key_S, 0.4, apart=0.0)
    looks_K = independent_looks(features, stretches, *described(features, stretches))
    mean_KG = np.stack([features[stretches.key_N == key].mean(axis=0) for key in range(160)])
    assert np.mean(mean_KG**2 * looks_K[:, None]) == pytest.approx(1.0, abs=0.12)


def test_too_few_stretches_tell_nothing_and_rows_stand_for_themselves(rng) -> None:
    alone, stretches = clustered(rng, np.full(6, 100), np.arange(6), 0.9)  # an hour of each of six machines
    assert likeness_of(alone, stretches) == 0.0
    np.testing.assert_array_equal(independent_looks(alone, stretches, *described(alone, stretches)), np.full(6, 100.0))
    for hours, found in ((MIN_FREEDOM, 0.0), (MIN_FREEDOM + 1, pytest.approx(0.9, abs=0.1))):
        one, stretches = clustered(rng, np.full(hours, 50), np.zeros(hours, int), 0.9)
        assert likeness_of(one, stretches) == found


def test_a_row_an_hour_is_a_look_of_its_own(rng) -> None:
    features, stretches = clustered(rng, np.ones(500, int), np.repeat(np.arange(5), 100), 0.9)
    looks_K = independent_looks(features, stretches, *described(features, stretches))
    np.testing.assert_array_equal(looks_K, np.full(5, 100.0))


def test_a_stretch_is_an_hour_of_one_key_in_whatever_order_rows_come(rng) -> None:
    features, stretches = clustered(rng, rng.integers(1, 30, 300), np.repeat(np.arange(10), 30), 0.5)
    order = rng.permutation(len(features))
    hour_N = stretches.stretch_N[order] * MICROSECONDS_PER_HOUR
    shuffled = Stretches.of(stretches.key_N[order], hour_N + rng.integers(0, MICROSECONDS_PER_HOUR, len(order)))
    location, scale = described(features, stretches)
    np.testing.assert_allclose(
        independent_looks(features[order], shuffled, location, scale),
        independent_looks(features, stretches, location, scale),
        rtol=1e-6,
    )
    before_1970 = Stretches.of(np.array([0, 0, 0]), np.array([-1, 0, 1]))
    assert before_1970.rows_S.tolist() == [1, 2]


def test_a_feature_that_never_moves_and_one_bad_feature_do_no_harm(rng) -> None:
    features, stretches = clustered(rng, np.full(300, 10), np.repeat(np.arange(10), 30), 0.5)
    features[:, 0] = 7.0
    features[:, 1] = np.where(rng.random(len(features)) < 0.01, 1e6, features[:, 1])
    assert likeness_of(features, stretches) == pytest.approx(0.5, abs=0.06)


def test_a_whole_hour_does_not_outweigh_single_minutes(rng) -> None:
    rows_S, key_S = np.tile(np.r_[np.full(4, 360), np.full(60, 6)], 150), np.repeat(np.arange(150), 64)
    features, stretches = clustered(rng, rows_S, key_S, 0.7, apart=0.0)
    fair = stretches.fair_N(0.7)
    kept_S = np.bincount(stretches.stretch_N[fair])
    assert (kept_S[rows_S == 6] == 6).all(), "minutes keep all their rows"
    assert set(kept_S[rows_S == 360]) == {7}
    thinned = Stretches.of(stretches.key_N[fair], stretches.stretch_N[fair] * MICROSECONDS_PER_HOUR)
    error = [
        np.mean([features[chosen & (stretches.key_N == key)].mean(axis=0) ** 2 for key in range(150)])
        for chosen in (fair, np.ones(len(fair), bool))
    ]
    assert error[0] < 0.25 * error[1]
    assert np.mean(thinned.looks_K(0.7)) == pytest.approx(1 / error[0], rel=0.1)
    assert np.mean(stretches.looks_K(0.7)) == pytest.approx(1 / error[1], rel=0.1)


@pytest.mark.parametrize("rows_S", [np.full(60, 12), np.tile([1, 2, 3, 4], 15)])
def test_stretches_that_are_much_alike_keep_all_their_rows(rows_S: np.ndarray) -> None:
    key_N = np.zeros(int(rows_S.sum()), int)
    hours = np.repeat(np.arange(len(rows_S)), rows_S) * MICROSECONDS_PER_HOUR
    for likeness in (0.0, 0.5, 1.0):
        assert Stretches.of(key_N, hours).fair_N(likeness).all()


def test_a_sample_of_hours_and_minutes_describes_a_machine_by_both(rng) -> None:
    hours, keys, time_us = fleet(rng, hours=4, rows=360)
    minutes, minute_keys, minute_us = fleet(rng, hours=60, rows=6)
    spectra = np.concatenate([hours, minutes])
    both = RowKeys.of(keys.machines, np.r_[keys.machine_N, minute_keys.machine_N], np.zeros(len(spectra), int))
    time_us = np.r_[time_us, minute_us + 30 * 24 * MICROSECONDS_PER_HOUR]
    table = fit_baselines(spectra, both, time_us)
    assert table.own == 5
    assert table.rows[0] == 4 * 360 + 60 * 6, "rows are reported as rows"
    alone = fit_baselines(minutes, minute_keys, minute_us)
    np.testing.assert_allclose(table.location, alone.location, atol=0.25)


def fleet(rng: np.random.Generator, hours: int, rows: int) -> tuple[np.ndarray, RowKeys, np.ndarray]:
    """Five machines heard for whole hours, days apart; a machine differs more from hour to hour than within one."""
    machine_S = np.repeat(np.arange(5), hours)
    of_hour = 0.3 * machine_S[:, None] + 0.3 * rng.normal(size=(len(machine_S), BINS))
    logs = np.repeat(of_hour, rows, axis=0) + 0.1 * rng.normal(size=(len(machine_S) * rows, BINS))
    machine_N = np.repeat(machine_S, rows)
    start_S = np.tile(np.arange(hours), 5) * 24 * MICROSECONDS_PER_HOUR
    time_us_N = np.repeat(start_S, rows) + np.tile(np.arange(rows), len(machine_S)) * (MICROSECONDS_PER_HOUR // rows)
    keys = RowKeys.of([f"m{code}" for code in range(5)], machine_N, np.zeros(len(machine_N), int))
    return np.exp(logs).astype(np.float32), keys, time_us_N


def test_hours_and_not_rows_give_a_baseline_of_its_own(rng) -> None:
    spectra, keys, time_us = fleet(rng, hours=30, rows=60)
    first_days = time_us < 10 * 24 * MICROSECONDS_PER_HOUR
    few = (keys.machine_N != 0) | first_days  # machine 0 is heard for 10 hours: 600 rows
    table = fit_baselines(spectra[few], keys.take(few), time_us[few])
    assert {machine for machine, _, _ in table.keys[: table.own]} == {"m1", "m2", "m3", "m4"}
    state = table.states(table.codes(keys))
    assert (state[keys.machine_N == 0] == Baseline.SHRUNK).all()
    assert table.rows[0] == 1800, "rows are reported as rows"
    by_rows = fit_baselines(spectra[few], keys.take(few))
    assert by_rows.own == 5
    # a scale that ten hours cannot tell is wider than their own, and covers the hours to come
    code = table.codes(keys.take(slice(1)))[0]
    own_code = by_rows.codes(keys.take(slice(1)))[0]
    assert (table.scale[code] > by_rows.scale[own_code]).mean() > 0.5
    later = spectra[(keys.machine_N == 0) & ~first_days]
    apart = [
        np.abs(spectra_features(later, each.floor, True) - each.location[place]) / each.scale[place]
        for each, place in ((table, code), (by_rows, own_code))
    ]
    assert np.percentile(apart[0], 99) < np.percentile(apart[1], 99)


def test_where_every_machine_is_short_the_fleet_is_still_that_of_machines(rng) -> None:
    spectra, keys, time_us = fleet(rng, hours=6, rows=60)
    table = fit_baselines(spectra, keys, time_us)
    assert table.own == 0
    assert abs(float(np.median(table.location[0])) - 0.6) < 0.3
    # scales within a machine are known, though no location is its own: rows are not taken to differ as machines do
    assert (table.scale[table.codes(keys)].mean(axis=0) < table.scale[0]).all()


def test_rows_an_hour_apart_make_the_same_baselines_with_and_without_times(rng) -> None:
    spectra, keys, time_us = fleet(rng, hours=30, rows=1)
    tables = [fit_baselines(spectra, keys, times) for times in (time_us, None)]
    assert tables[0].keys == tables[1].keys
    np.testing.assert_array_equal(tables[0].location, tables[1].location)
    np.testing.assert_array_equal(tables[0].scale, tables[1].scale)


def test_machines_and_conditions_are_stretches_of_their_own(rng) -> None:
    spectra, keys, time_us = fleet(rng, hours=30, rows=60)
    mixed = replace(keys, conditions=["even", "odd"], condition_N=np.arange(len(keys)) % 2)
    table = fit_baselines(spectra, mixed, time_us)
    assert table.own == 10, "thirty hours of each"
